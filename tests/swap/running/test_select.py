"""What is allowed, what each policy makes of it, and what a choice follows from."""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from machines import MACHINES, address_of, capture, make_array, random_bytes, read_array, real_modes

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch import settings
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.dispatch.conditions import Conditions, LaunchContext, driver_capabilities
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import ROUTES
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver, enter_driver, leave_driver
from numba_swap.driver.simulated import Fault, SimulatedLibrary
from numba_swap.driver.simulated.gpu import SimulatedGPU
from numba_swap.driver.simulated.memory import Kind
from numba_swap.modes import batch
from numba_swap.modes.kernel import launch as kernel
from numba_swap.swap.running import select
from numba_swap.swap.running.context import RunOptions, launching
from numba_swap.swap.running.steps import Step, submit_steps

# What is staged is pageable memory: see modes/test_staged.py.
MODES = [Mode.BATCH, Mode.LOOP, Mode.KERNEL]
ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


@pytest.fixture(params=MACHINES)
def machine(request):
    if request.param.machine == "real" and "batch" not in real_modes():
        pytest.skip("the driver is capped below 12.8")
    with request.param.open() as gpu:
        driver = current_driver()
        driver.current_context()
        device = devices_of(driver)[0]
        before = find_costs(device)
        yield gpu
        use_costs(device, before)


def set_costs(driver, device, costs):
    """Choose by other costs, with the other figures as they are."""
    gpu = devices_of(driver)[device]
    use_costs(gpu, costs._replace(tuning=gpu.tuning))


def by_mode(loop=None, batch=None, kernel=None):
    """Costs of one route, of the modes that have any."""
    costs = {Mode.LOOP: loop, Mode.BATCH: batch, Mode.KERNEL: kernel}
    return {mode: cost for mode, cost in costs.items() if cost is not None}


def flat(**microseconds):
    """Costs of which only the start counts; a mode not named costs a second."""
    costs = {
        mode: ModeCost(microseconds.get(mode, 1e6), 0.0, (0.0,) * 4, (0.0,) * 4)
        for mode in (Mode.LOOP, Mode.BATCH, Mode.KERNEL)
    }
    return CostModel(dict.fromkeys(ROUTES, costs), "made up")


def pools(gpu, rng, src="pinned", dst="device", nbytes=96):
    """Two pools, what the second must hold after `ROWS`, and what the first holds."""
    content, target = random_bytes(rng, (12, nbytes)), random_bytes(rng, (12, nbytes))
    arrays = make_array(gpu, src, content), make_array(gpu, dst, target)
    target[ROWS[:, 1]] = content[ROWS[:, 0]]
    return *arrays, target


def check_modes(gpu, rng, allowed, refused, *arrays, **kinds):
    """Allowed modes run, and right; the refused raise, are never chosen, and nothing moves."""
    for forced in MODES:
        src, dst, after = arrays or pools(gpu, rng, **kinds)
        before = read_array(gpu, dst)
        plan = ns.plan_blocks(src, dst, ROWS)
        if forced in allowed:
            plan.run(gpu.stream(), forced).wait()
            assert np.array_equal(read_array(gpu, dst), after)
            continue
        with pytest.raises(ns.ModeUnavailableError, match=refused[forced]) as caught:
            plan.run(gpu.stream(), forced)
        with pytest.raises(ns.ModeUnavailableError, match=refused[forced]):
            plan.explain(gpu.stream(), forced)
        assert caught.value.mode == forced
        assert np.array_equal(read_array(gpu, dst), before)
        # However fast it were, it is not chosen.
        set_costs(current_driver(), 0, flat(**{forced: 1.0, allowed[0]: 2.0}))
        transfer = plan.run(gpu.stream())
        transfer.wait()
        assert np.array_equal(read_array(gpu, dst), after)
        assert transfer.decision.mode is allowed[0]
        assert str(transfer.decision.rejected[forced]) in transfer.decision.reason
        (estimate,) = [e for e in plan.explain(gpu.stream()).estimates if e.mode is forced]
        assert estimate.obstacle == caught.value.reason


# -- every rule of what is allowed --------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "allowed"),
    [
        ("12.8", [Mode.KERNEL, Mode.BATCH, Mode.LOOP]),
        ("12.7", [Mode.KERNEL, Mode.LOOP]),
        ("12.0", [Mode.KERNEL, Mode.LOOP]),
        ("11.9", [Mode.LOOP]),
        ("11.3", [Mode.LOOP]),
    ],
)
def test_the_driver_version(machine, rng, version, allowed):
    with ns.override(driver_version=version):
        check_modes(
            machine,
            rng,
            allowed,
            {
                Mode.BATCH: rf"driver {version} \(pretended\) has no cuMemcpyBatchAsync.* 12\.8",
                Mode.KERNEL: rf"driver {version} \(pretended\) is older than 12\.0",
            },
        )


def test_a_driver_that_does_not_give_the_function(rng):
    """New enough, but the look-up fails: that is a reason, too."""

    class Poor(SimulatedLibrary):
        def _look_up(self, name, version, flags):
            return (
                (0, 1) if name == b"cuMemcpyBatchAsync" else super()._look_up(name, version, flags)
            )

    with entered(Poor()) as gpu:
        check_modes(
            gpu, rng, [Mode.LOOP, Mode.KERNEL], {Mode.BATCH: "driver 13.0 did not give cuMemcpyB"}
        )


@pytest.mark.parametrize("mode", ["auto", "loop", "kernel"])
@pytest.mark.parametrize("kinds", [("pinned", "device"), ("device", "pinned")])
def test_a_captured_stream_gets_no_batch_and_replays_right(machine, rng, mode, kinds):
    src, dst, _ = pools(machine, rng, *kinds)
    set_costs(current_driver(), 0, flat(batch=1.0, kernel=2.0, loop=3.0))
    stream = machine.stream()
    plan = ns.plan_blocks(src, dst, ROWS)
    plan.run(stream, "batch").wait()
    seen = []

    def work():
        with pytest.raises(ns.ModeUnavailableError, match="captured into a graph"):
            plan.run(stream, "batch")
        seen.append(plan.run(stream, mode))
        seen.append(plan.explain(stream, mode))

    replay = capture(machine, stream, work)
    transfer, explained = seen
    assert transfer.decision.mode == ("kernel" if mode == "auto" else mode)
    assert explained.mode is transfer.decision.mode
    with pytest.raises(ns.CapturedTransferError):
        transfer.wait()
    for _ in range(3):
        content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
        write(src, content)
        write(dst, target)
        replay()
        target[ROWS[:, 1]] = content[ROWS[:, 0]]
        assert np.array_equal(read_array(machine, dst), target)
    # Outside of it the batch is what it was.
    assert plan.run(stream).decision.mode is Mode.BATCH


def write(array, content):
    if isinstance(array, np.ndarray):
        array[...] = content
    else:
        array.copy_to_device(content)


@pytest.mark.parametrize("kinds", [("pageable", "device"), ("device", "pageable")])
def test_pageable_memory_is_not_for_the_kernel(machine, rng, kinds):
    check_modes(
        machine,
        rng,
        [Mode.LOOP, Mode.BATCH],
        {Mode.KERNEL: "cannot reach pageable memory"},
        src=kinds[0],
        dst=kinds[1],
    )


@pytest.mark.parametrize(
    "kinds",
    [("pinned", "device"), ("device", "pinned"), ("managed", "device"), ("device", "managed")],
)
def test_pinned_and_managed_memory_is_for_all(machine, rng, kinds):
    check_modes(machine, rng, MODES, {}, src=kinds[0], dst=kinds[1])


def test_managed_memory_that_cannot_be_shared_is_not_for_the_kernel(rng, monkeypatch):
    from numba_swap.driver import abi
    from numba_swap.driver.simulated import functions

    monkeypatch.setitem(functions._DEVICE_ATTRIBUTES, abi.DEVICE_CONCURRENT_MANAGED_ACCESS, 0)
    with ns.simulate() as gpu:
        refused = {Mode.KERNEL: "shares managed memory .* only while the host leaves it alone"}
        check_modes(gpu, rng, [Mode.BATCH, Mode.LOOP], refused, src="managed")
        check_modes(gpu, rng, MODES, {})


def test_registered_memory_is_for_all_at_its_own_address_only(rng, monkeypatch):
    with ns.simulate() as gpu:
        src, dst, after = pools(gpu, rng, src="pageable")
        gpu.library.register_host(src)
        check_modes(gpu, rng, MODES, {}, src, dst, after)
        gpu.library.unregister_host(src)
        gpu.library.register_host(src, device_offset=1 << 20)
        dst.copy_to_device(random_bytes(rng, dst.shape))
        after = dst.copy_to_host()
        after[ROWS[:, 1]] = src[ROWS[:, 0]]
        words = "pinned memory at .* has another address on the GPU"
        refused = {Mode.KERNEL: words, Mode.BATCH: f"{words}, which cuMemcpyBatchAsync does not"}
        check_modes(gpu, rng, [Mode.LOOP], refused, src, dst, after)
    # They are not refused for nothing: such a kernel fails, and such a batch.
    monkeypatch.setattr(kernel, "_unreachable", lambda *arguments: None)
    monkeypatch.setattr(batch, "why_not", lambda *arguments: None)
    for mode in ("kernel", "batch"):
        with ns.simulate() as gpu:
            src, dst, after = pools(gpu, rng, src="pageable")
            gpu.library.register_host(src, device_offset=1 << 20)
            transfer = ns.swap_blocks(src, dst, ROWS, mode=mode)
            with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS"):
                transfer.wait()


@contextmanager
def entered(library):
    gpu = SimulatedGPU(Driver(library))
    enter_driver(gpu.driver)
    try:
        gpu.driver.current_context()
        yield gpu
        library.finish()
    finally:
        leave_driver(gpu.driver)


def test_another_devices_memory_is_not_for_the_kernel(rng):
    with entered(SimulatedLibrary(devices=2, peer_access=False)) as gpu:
        content = random_bytes(rng, (4, 64))

        def on_device(device):
            memory = gpu.library.allocate(4 * 64, Kind.DEVICE, device)
            memory.buffer[:] = 0
            return memory

        def run(src, dst, mode):
            src.buffer[:] = content.ravel()
            arguments = [src.start, src.start + 128], [dst.start + 64, dst.start], [64, 64]
            transfer = ns.swap_blocks_batch(*arguments, mode=mode)
            transfer.wait()
            assert np.array_equal(dst.buffer[:128].reshape(2, 64), content[[2, 0]])
            dst.buffer[:] = 0
            return transfer.decision

        here, there, also_there = on_device(0), on_device(1), on_device(1)
        for pair in ((here, there), (there, here)):
            with pytest.raises(
                ns.ModeUnavailableError, match=r"device memory at .* to device \d, which device"
            ):
                run(*pair, "kernel")
            assert run(*pair, "batch").mode is Mode.BATCH
            assert run(*pair, "auto").mode is not Mode.KERNEL
        # Within the other device it runs there.
        assert run(there, also_there, "kernel").mode is Mode.KERNEL
        assert [set(devices_of(gpu.driver)[i].kernels) for i in (0, 1)] == [set(), {"copy"}]


def test_an_exchange_in_a_default_stream_is_for_the_device_of_its_data(rng):
    with entered(SimulatedLibrary(devices=2)) as gpu:
        memory = gpu.library.allocate(4 * 64, Kind.DEVICE, 1)
        device = SimpleNamespace(
            __cuda_array_interface__={
                "shape": (4, 64),
                "typestr": "|u1",
                "data": (memory.start, False),
                "version": 3,
            }
        )
        host = make_array(gpu, "pinned", random_bytes(rng, (4, 64)))
        for rows in (([[0, 1]], []), ([], [[2, 3]])):
            devices_of(gpu.driver)[1].kernels.clear()
            ns.exchange(device, host, *rows, mode="kernel").wait()
            assert [set(devices_of(gpu.driver)[i].kernels) for i in (0, 1)] == [set(), {"copy"}]
        assert np.array_equal(memory.buffer.reshape(4, 64)[3], host[2])


@pytest.mark.parametrize("stream", [None, 0, 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_default_streams_are_for_every_mode(machine, rng, mode, stream):
    src, dst, after = pools(machine, rng)
    ns.swap_blocks(src, dst, ROWS, stream=stream, mode=mode)
    back = machine.pinned_array((12, 96), np.uint8)
    every = np.stack([np.arange(0, 12, 2)] * 2, axis=1)
    ns.swap_blocks(dst, back, every, stream=stream, mode=mode).wait()  # after the first
    assert np.array_equal(back[::2], after[::2])


@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_a_number_of_thread_blocks_that_is_none_is_refused(gpu, rng, bad):
    src, dst, _ = pools(gpu, rng)
    with pytest.raises(ns.BadArgumentError, match=rf"^max_blocks={bad} is no positive integer"):
        ns.swap_blocks(src, dst, ROWS, max_blocks=bad)


def streams_of(gpu, function, position):
    """Note the streams that a C function is called with, in the list returned."""
    streams = []
    gpu.library.faults.watch(function, lambda *arguments: streams.append(arguments[position] or 0))
    return streams


@pytest.mark.parametrize(("stream", "private"), [(None, True), (1, True), (2, False)])
def test_the_batch_leaves_the_legacy_stream_only(rng, stream, private):
    with ns.simulate() as gpu:
        src, dst, after = pools(gpu, rng)
        batch = streams_of(gpu, "cuMemcpyBatchAsync", 8)
        ns.swap_blocks(src, dst, ROWS, stream=stream, mode="batch").wait()
        assert np.array_equal(dst.copy_to_host(), after)
        assert len(batch) == 1
        assert (batch[0] not in (0, 1, 2)) == private
        assert gpu.library.calls["cuStreamCreate"] == private


def test_a_default_stream_is_of_the_datas_context_else_of_the_current_one():
    with entered(SimulatedLibrary(devices=2)) as gpu:
        driver = gpu.driver
        contexts = [driver.primary_context(device) for device in range(2)]

        def found(device, stream):
            options = RunOptions(stream)
            with launching(devices_of(driver), device, ns.Direction.H2H, options) as here:
                assert here.context.handle == contexts[here.device.ordinal]
                return here.device.ordinal

        for stream in (None, 1, 2):
            assert [found(device, stream) for device in (0, 1, None)] == [0, 1, 0]
            with driver.activate(contexts[1]):
                assert [found(device, stream) for device in (0, 1, None)] == [0, 1, 1]
            with ThreadPoolExecutor(1) as without_context:
                devices = without_context.map(found, (0, 1, None), [stream] * 3)
                assert list(devices) == [0, 1, 0]


def test_the_default_stream_of_a_thread_may_be_captured(gpu, rng):
    src, dst, after = pools(gpu, rng)
    gpu.library.begin_capture(2)
    transfer = ns.swap_blocks(src, dst, ROWS, stream=2)
    graph = gpu.library.end_capture(2)
    assert transfer.decision.mode is not Mode.BATCH
    with pytest.raises(ns.CapturedTransferError):
        transfer.wait()
    gpu.library.launch(graph, 2)
    gpu.synchronize()
    assert np.array_equal(dst.copy_to_host(), after)


def test_rows_aligned_otherwise_than_those_before(machine, rng):
    """The launch of a swap between the same arrays is kept, with what it says of alignment."""
    content, target = random_bytes(rng, (64, 24)), random_bytes(rng, (64, 16))
    src, dst = make_array(machine, "pinned", content)[:, :16], make_array(machine, "device", target)
    stream = machine.stream()
    for odd in (0, 1, 1, 0):
        rows = np.stack([2 * rng.permutation(31)[:20] + odd, 3 * rng.permutation(21)[:20]], axis=1)
        ns.swap_blocks(src, dst, rows, stream=stream, mode="kernel").wait()
        target[rows[:, 1]] = content[rows[:, 0], :16]
        assert np.array_equal(read_array(machine, dst), target)


# -- policies -----------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


@pytest.mark.parametrize(
    ("batch", "loop", "mode"),
    [(120.0, 1e6, "batch"), (1e6, 124.0, "loop"), (126.0, 130.0, "kernel"), (90.0, 95.0, "batch")],
)
def test_overlap_has_patience_with_copy_engines(machine, rng, batch, loop, mode):
    src, dst, after = pools(machine, rng)
    set_costs(current_driver(), 0, flat(batch=batch, loop=loop, kernel=100.0))
    transfer = ns.swap_blocks(src, dst, ROWS, policy="overlap")
    transfer.wait()
    assert np.array_equal(read_array(machine, dst), after)
    assert transfer.decision.mode == mode
    assert transfer.decision.reason.startswith("for overlap, predicted: ")
    fastest = min((batch, "batch"), (loop, "loop"), (100.0, "kernel"))[1]
    assert ns.swap_blocks(src, dst, ROWS).decision.mode == fastest


@pytest.mark.parametrize(
    ("kinds", "arguments", "most"),
    [
        (("pinned", "device"), {}, 13),
        (("pinned", "device"), {"policy": "overlap"}, 4),
        (("device", "pinned"), {"policy": "overlap"}, 4),
        (("device", "device"), {"policy": "overlap"}, 13),
        (("pinned", "device"), {"policy": "overlap", "max_blocks": 2}, 2),
        (("pinned", "device"), {"policy": "overlap", "max_blocks": 9}, 4),
        (("pinned", "device"), {"max_blocks": 9}, 9),
        (("pinned", "device"), {"policy": "latency", "max_blocks": 9}, 9),
    ],
)
def test_thread_blocks_of_a_launch(gpu, rng, tune, kinds, arguments, most):
    """50 copies of 128 bytes, 8 threads each, 32 threads a block: 13 blocks if they may."""
    tune(link_blocks=64, link_blocks_short=64, device_blocks=64)
    src, dst = (make_array(gpu, kind, random_bytes(rng, (100, 128))) for kind in kinds)
    rows = 2 * np.stack([rng.permutation(50), rng.permutation(50)], axis=1)
    launched = streams_of(gpu, "cuLaunchKernel", 1)
    stream, plan = gpu.stream(), ns.plan_blocks(src, dst, rows)
    for _ in range(2):  # anew, and again as before
        ns.swap_blocks(src, dst, rows, stream=stream, mode="kernel", **arguments).wait()
        plan.run(stream, "kernel", **arguments).wait()
        assert np.array_equal(read_array(gpu, dst)[rows[:, 1]], read_array(gpu, src)[rows[:, 0]])
    assert launched == [most] * 4
    # The fewer blocks there are, the longer it is predicted to take.
    costs = find_costs(devices_of(gpu.driver)[0])
    slow = ModeCost(0.0, 0.0, (0.0,) * 4, (1e6,) * 4, full_blocks=26.0)
    set_costs(
        gpu.driver, 0, costs._replace(routes=dict.fromkeys(ROUTES, by_mode(slow, slow, slow)))
    )
    limited = most < 13 or "policy" in arguments
    blocks = {4: 4, 2: 2, 9: 9, 13: 16}[most] if limited else 26
    assert plan.explain(stream, "kernel", **arguments).predicted_us == pytest.approx(
        50 * 128 * 26 / blocks
    )


def mixed_pools(gpu, rng, short=8, long=8):
    """Raw pointers from pinned to device memory: short copies, and long ones between them."""
    sizes = np.array([64] * short + [32 << 10] * long)
    rng.shuffle(sizes)
    starts = np.concatenate([[0], np.cumsum(sizes + 16)[:-1]])
    content = random_bytes(rng, int(starts[-1] + sizes[-1]))
    target = random_bytes(rng, len(content))
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    for start, size in zip(starts, sizes, strict=True):
        target[start : start + size] = content[start : start + size]
    return src, dst, address(src) + starts, address(dst) + starts, sizes, target


def address(array):
    return address_of(array)


def test_latency_stays_in_one_stream(gpu, rng):
    """No fork, whatever is copied: where nothing is said, each of these does fork."""
    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    many = [
        make_array(gpu, kind, random_bytes(rng, (32, 1 << 16))) for kind in ("pinned", "device")
    ]
    rows = 2 * np.stack([rng.permutation(16), rng.permutation(16)], axis=1)
    _src, _dst, *pointers, after = mixed_pools(gpu, rng)
    both = [
        np.concatenate(
            [
                address(many[i]) + np.arange(0, 24, 2) * 65536,
                address(many[1 - i]) + np.arange(1, 24, 2) * 65536,
            ]
        )
        for i in range(2)
    ]
    out, into = [[1, 0], [4, 3]], [[2, 1], [5, 6]]
    swaps = [
        lambda **how: ns.swap_blocks(*many, rows, mode="batch", **how),
        lambda **how: ns.swap_blocks_batch(*pointers, **how),
        lambda **how: ns.swap_blocks_batch(*both, [65536] * 24, mode="batch", **how),
        lambda **how: ns.exchange(many[1], many[0], out, into, mode="loop", **how),
    ]
    stream = gpu.stream()
    used = [
        streams_of(gpu, function, position)
        for function, position in (
            ("cuMemcpyBatchAsync", 8),
            ("cuMemcpyAsync", 3),
            ("cuLaunchKernel", 7),
            ("cuEventRecord", 1),
            ("cuStreamWaitEvent", 0),
        )
    ]
    for swap in swaps:
        swap(stream=stream, policy="latency").wait()
        with ns.override(policy="latency"):
            swap(stream=stream).wait()
    assert gpu.library.calls["cuStreamCreate"] == 0
    assert {handle for handles in used for handle in handles} == {stream.handle}
    assert np.array_equal(_dst.copy_to_host(), after)
    for swap in swaps:
        created = [handles.clear() for handles in used]
        swap(stream=stream).wait()
        created = {handle for handles in used for handle in handles}
        assert created > {stream.handle}


def test_the_argument_beats_override_beats_the_environment(gpu, monkeypatch):
    src, dst = gpu.pinned_array((4, 64)), gpu.device_array((4, 64))
    plan = ns.plan_blocks(src, dst, [[0, 1]])

    def policies():
        return [
            str(decision.policy)
            for decision in (
                plan.explain(),
                plan.run().decision,
                plan.run(policy="throughput").decision,
                ns.swap_blocks(src, dst, [[0, 1]], policy=ns.Policy.LATENCY).decision,
                ns.swap_blocks_batch([address(src)], [address(dst)], [8]).decision,
                ns.exchange(dst, src, [[0, 1]], []).decision,
            )
        ]

    given = ["throughput", "latency"]
    assert policies() == ["throughput"] * 3 + ["latency"] + ["throughput"] * 2
    environment = settings.settings_from_environment({"NUMBA_SWAP_POLICY": " Overlap"})
    monkeypatch.setattr(settings, "_environment_settings", lambda: environment)
    assert policies() == ["overlap"] * 2 + given + ["overlap"] * 2
    with ns.override(policy="latency"):
        assert policies() == ["latency"] * 2 + given + ["latency"] * 2
        with ns.override(mode="loop"):
            assert plan.explain().policy == "latency"
    gpu.synchronize()  # raw pointers keep nothing alive


@pytest.mark.parametrize("bad", ["fast", "", None.__class__, 3])
def test_a_policy_that_is_none_is_refused(gpu, bad):
    src, dst = gpu.pinned_array((4, 64)), gpu.device_array((4, 64))
    plan = ns.plan_blocks(src, dst, [[0, 1]])
    message = "policy=.* is no policy: choose one of 'throughput', 'overlap', 'latency'"
    for call in (
        lambda: plan.run(policy=bad),
        lambda: plan.explain(policy=bad),
        lambda: ns.swap_blocks(src, dst, [[0, 1]], policy=bad),
        lambda: ns.exchange(dst, src, [[0, 1]], [], policy=bad),
        lambda: ns.override(policy=bad).__enter__(),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert gpu.library.calls["cuMemcpyAsync"] == 0
    with pytest.raises(ValueError, match="NUMBA_SWAP_POLICY='fast' is no policy"):
        settings.settings_from_environment({"NUMBA_SWAP_POLICY": "fast"})


# -- what is pending on an array -----------------------------------------------------------------


def of_stream(array, stream):
    return SimpleNamespace(
        __cuda_array_interface__={**array.__cuda_array_interface__, "stream": stream.handle}
    )


def test_only_what_is_pending_elsewhere_is_waited_for(gpu, rng):
    src, dst, after = pools(gpu, rng)
    content = random_bytes(rng, (12, 96))
    source = make_array(gpu, "pinned", content)
    own, busy = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    ns.swap_blocks(src, of_stream(dst, own), ROWS, stream=own, mode="loop").wait()
    assert gpu.library.calls["cuStreamWaitEvent"] == 0
    dst.copy_to_device(source, stream=busy)  # must come before the swap
    ns.swap_blocks(src, of_stream(dst, busy), ROWS, stream=own, mode="loop").wait()
    content[ROWS[:, 1]] = after[ROWS[:, 1]]
    assert np.array_equal(dst.copy_to_host(), content)


def test_what_is_pending_on_an_array_during_a_capture(gpu, rng):
    src, dst, after = pools(gpu, rng)
    own, other = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    context = devices_of(gpu.driver).context(gpu.driver.current_context())
    view = of_stream(dst, other)
    with pytest.raises(ns.CapturedTransferError, match="is being captured into a CUDA graph"):
        capture(gpu, other, lambda: ns.swap_blocks(src, view, ROWS, stream=own, mode="loop"))
    # It is not waited for where it is not part of the graph.
    capture(gpu, own, lambda: ns.swap_blocks(src, view, ROWS, stream=own, mode="loop"))()
    assert np.array_equal(dst.copy_to_host(), after)

    def both():
        context.wait_for(own.handle, other.handle)
        ns.swap_blocks(src, view, ROWS, stream=own, mode="loop")

    src[:] += 1
    after[ROWS[:, 1]] += 1
    capture(gpu, own, both)()
    assert np.array_equal(dst.copy_to_host(), after)


# -- what a choice follows from -----------------------------------------------------------------

SOME = ModeCost(10.0, 5.0, (1.0,) * 4, (1.0,) * 4)
GROUNDS = {
    "version": ns.DriverVersion(12, 4),
    "pretended": True,
    "capturing": True,
    "device": 1,
    "max_blocks": 1,
    "policy": ns.Policy.OVERLAP,
    "duplex": True,
}


@pytest.mark.parametrize("changed", [*GROUNDS, "mode", "override", "costs"])
def test_a_choice_is_kept_until_what_it_follows_from_changes(rng, changed):
    with entered(SimulatedLibrary(devices=2)) as gpu:
        driver = gpu.driver
        costs = CostModel(
            dict.fromkeys(
                ROUTES, by_mode(SOME, SOME._replace(start_us=8.0), SOME._replace(full_blocks=9))
            ),
            "some",
        )
        if changed == "device":  # which matters to the kernel
            costs = flat(kernel=1.0, loop=2.0)
        for device in range(2):
            set_costs(driver, device, costs)
        src, dst, _ = pools(gpu, rng, nbytes=5000)
        devices = devices_of(driver)
        contexts = []
        for device in range(2):
            with driver.activate(devices[device].primary_context):
                contexts.append(devices.context(devices[device].primary_context))
        capabilities = driver_capabilities(driver, settings.current_settings())
        base = LaunchContext(gpu.stream().handle, contexts[0], Conditions(capabilities))

        def choice(copies, launch=base, mode=None):
            return select.select(copies, launch, mode)

        def changed_by(name, value):
            if name in ("version", "pretended"):
                return base.under(capabilities=replace(capabilities, **{name: value}))
            if name == "device":
                there = replace(capabilities, device=value)
                return base.under(capabilities=there)._replace(context=contexts[value])
            return base.under(**{name: value})

        def fresh():
            return ns.plan_blocks(src, dst, ROWS).copies

        copies = fresh()
        first = choice(copies)
        assert choice(copies).decision is first.decision
        elsewhere = base._replace(stream=gpu.stream().handle)
        assert choice(copies, elsewhere).decision is first.decision
        if changed == "pretended":
            # Never without another version, which it goes with.
            capabilities = replace(capabilities, version=ns.DriverVersion(12, 9))
            base = base.under(capabilities=capabilities)
            first = choice(copies, base)
        if changed == "override":
            with ns.override(mode="loop"):
                second, expected = choice(copies), choice(fresh())
        elif changed == "costs":
            set_costs(driver, 0, flat(loop=1.0))
            second, expected = choice(copies), choice(fresh())
        elif changed == "mode":
            second, expected = choice(copies, mode="loop"), choice(fresh(), mode="loop")
        else:
            there = changed_by(changed, GROUNDS[changed])
            second, expected = choice(copies, there), choice(fresh(), there)
        assert second.decision == expected.decision
        if changed != "pretended":
            assert second.decision != first.decision
        assert choice(copies).decision == choice(fresh()).decision


def test_a_plan_that_ran_as_a_kernel_obeys_other_costs(machine, rng):
    """The short ways, too: of a plan, and of a swap between the same arrays."""
    src, dst, after = pools(machine, rng)
    stream, plan = machine.stream(), ns.plan_blocks(src, dst, ROWS)

    def modes():
        transfers = [plan.run(stream), ns.swap_blocks(src, dst, ROWS, stream=stream)]
        for transfer in transfers:
            transfer.wait()
        assert np.array_equal(read_array(machine, dst), after)
        return [str(transfer.decision.mode) for transfer in transfers]

    for mode in ("kernel", "loop", "kernel", "batch", "kernel"):
        set_costs(current_driver(), 0, flat(**{mode: 1.0}))
        for _ in range(3):
            assert modes() == [mode] * 2


# -- two parts: short copies in the kernel, long ones in the batch ------------------------------

WORTH_A_SPLIT = CostModel(
    dict.fromkeys(
        ROUTES,
        by_mode(
            ModeCost(1e5, 0.0, (0.0,) * 4, (0.0,) * 4),
            ModeCost(0.0, 0.0, (1000.0, 1000.0, 1.0, 1.0), (0.0,) * 4),
            ModeCost(0.0, 0.0, (1.0, 1.0, 1000.0, 1000.0), (0.0,) * 4),
        ),
    ),
    "made up",
)


@pytest.fixture
def submitted(monkeypatch):
    """What each mode was given, in order."""
    from numba_swap.modes import MODES as modules

    seen = []
    for mode, module in modules.items():

        def submit(copies, launch, work, mode=mode, real=module.submit):
            seen.append((mode, len(copies), launch))
            return real(copies, launch, work)

        monkeypatch.setattr(module, "submit", submit)
    return seen


def test_short_copies_go_to_the_kernel_and_long_ones_to_the_batch(machine, rng, submitted):
    set_costs(current_driver(), 0, WORTH_A_SPLIT)
    _src, dst, *pointers, after = mixed_pools(machine, rng, short=9, long=7)
    stream = machine.stream()
    transfer = ns.swap_blocks_batch(*pointers, stream=stream)
    transfer.wait()
    assert np.array_equal(read_array(machine, dst), after)
    assert [(mode, count) for mode, count, _ in submitted] == [(Mode.KERNEL, 9), (Mode.BATCH, 7)]
    handle = stream.__cuda_stream__()[1]
    handles = {launch.stream for _, _, launch in submitted}
    assert len(handles | {handle}) == 3
    decision = transfer.decision
    assert decision.modes == (Mode.KERNEL, Mode.BATCH)
    assert decision.mode is Mode.BATCH  # that of most bytes
    assert [(part.copies, part.nbytes) for part in decision.parts] == [(9, 9 * 64), (7, 7 << 15)]
    assert decision.predicted_us == pytest.approx(9 + 7)
    assert (
        "short copies in the kernel and long ones in the batch, at once, 16 us" in decision.reason
    )
    assert "all in the kernel 7009 us" in decision.reason
    assert str(decision).startswith("kernel and batch for 16 copies, ")


def test_a_split_plan_runs_again(gpu, rng, submitted):
    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    content = random_bytes(rng, (2, 8, 64)), random_bytes(rng, (1, 8, 1 << 15))
    src = [make_array(gpu, "pinned", layer) for layers in content for layer in layers]
    dst = [gpu.device_array(layer.shape, np.uint8) for layers in content for layer in layers]
    plan, stream = ns.plan_blocks(src, dst, [[0, 7], [2, 4], [6, 0]]), gpu.stream()
    for value in (1, 2, 3):
        for layer in src:
            layer[:] = layer + np.uint8(value)
        plan.run(stream).wait()
        for layer, there in zip(src, dst, strict=True):
            assert np.array_equal(there.copy_to_host()[[7, 4, 0]], layer[[0, 2, 6]])
    assert [mode for mode, _, _ in submitted] == [Mode.KERNEL, Mode.BATCH] * 3


@pytest.mark.parametrize(
    "circumstances",
    ["uniform", "forced", "override", "latency", "overlap", "12.7", "11.8", "pageable", "captured"],
)
def test_one_piece_where_a_split_is_not_for(machine, rng, submitted, circumstances):
    set_costs(current_driver(), 0, WORTH_A_SPLIT)
    short = 0 if circumstances == "uniform" else 8
    src, dst, *pointers, after = mixed_pools(machine, rng, short=short)
    how, inside = {"stream": machine.stream()}, {}
    if circumstances == "pageable":
        pointers[0] = pointers[0] - address(src) + address(src := np.array(src))
    elif circumstances == "forced":
        how["mode"] = "kernel"
    elif circumstances == "override":
        inside["mode"] = "batch"
    elif circumstances in ("latency", "overlap"):
        how["policy"] = circumstances
    elif circumstances in ("12.7", "11.8"):
        inside["driver_version"] = circumstances
    seen = []

    def work():
        seen.append(ns.swap_blocks_batch(*pointers, **how).decision)

    with ns.override(**inside):
        if circumstances == "captured":
            capture(machine, how["stream"], work)()
        else:
            work()
    (decision,) = seen
    machine.synchronize()
    assert np.array_equal(read_array(machine, dst), after)
    assert len(submitted) == 1
    assert not decision.parts
    assert len(decision.modes) == 1


def test_copies_within_the_device_are_not_split(gpu):
    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    src, dst = ([gpu.device_array((6, n), np.uint8) for n in (64, 1 << 15)] for _ in range(2))
    transfer = ns.swap_blocks(src, dst, [[0, 3], [2, 1], [4, 5]])
    transfer.wait()
    assert not transfer.decision.parts


def test_a_failing_part_is_raised_its_memory_kept_and_nothing_retried(gpu, rng, monkeypatch):
    import gc
    import weakref

    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    contents = random_bytes(rng, (6, 64)), random_bytes(rng, (6, 1 << 15))

    class Holder:
        def __init__(self, array):
            self.__cuda_array_interface__ = array.__cuda_array_interface__
            self.array = array

    src = [Holder(make_array(gpu, "device", content)) for content in contents]
    dst = [make_array(gpu, "pinned", np.zeros_like(content)) for content in contents]
    alive = [weakref.ref(array) for array in src]
    plan = ns.plan_blocks(src, dst, [[0, 3], [2, 1], [4, 5]])

    gpu.library.faults.add(Fault("cuMemcpyBatchAsync", 1, fail_index=1))
    abandoned, abandon = [], InFlight.abandon
    monkeypatch.setattr(InFlight, "abandon", lambda work: abandoned.append(work))
    stream = gpu.stream(non_blocking=True)
    with pytest.raises(ns.DriverCallError, match="INVALID_VALUE") as caught:
        plan.run(stream)
    assert "block_mapping[1] (source block 2 to destination block 1 of layer 1)" in str(
        caught.value
    )
    calls = gpu.library.calls
    assert (calls["cuLaunchKernel"], calls["cuMemcpyBatchAsync"]) == (1, 1)
    assert calls["cuMemcpyAsync"] == 0
    caught = None
    del plan, src
    gc.collect()
    # What was submitted may still run, and does: its memory is there, and the stream knows of it.
    assert None not in [ref() for ref in alive]
    assert not dst[0].any()
    stream.synchronize()
    assert np.array_equal(dst[0][[3, 1, 5]], contents[0][[0, 2, 4]])
    assert not dst[1].any()
    (work,) = abandoned
    abandon(work)  # to the thread that waits for it
    work.wait()
    del work, abandoned[:]
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_parts_keep_no_array_alive_in_a_circle(gpu, rng):
    """Device memory is given back when the last name of it goes, not when Python tidies up."""
    import gc
    import weakref

    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    gc.collect()
    gc.disable()
    try:
        src = [gpu.pinned_array((6, n), np.uint8) for n in (64, 1 << 15)]
        dst = [gpu.device_array((6, n), np.uint8) for n in (64, 1 << 15)]
        alive = weakref.ref(dst[0])
        transfer = ns.swap_blocks(src, dst, [[0, 3], [2, 1]])
        assert transfer.decision.parts
        transfer.wait()
        del src, dst, transfer
        assert alive() is None
    finally:
        gc.enable()


# -- several directions -------------------------------------------------------------------------


def both_ways(gpu, rng, nbytes, rows):
    """Pointers in both directions between a pinned and a device array, in random order."""
    contents = [random_bytes(rng, (4 * rows, nbytes)) for _ in range(2)]
    arrays = [
        make_array(gpu, kind, c) for kind, c in zip(("pinned", "device"), contents, strict=True)
    ]
    ends = [address(array) + np.arange(4 * rows) * nbytes for array in arrays]
    lower, upper = (rng.permutation(rows) * 2 + shift for shift in (0, 2 * rows))
    src = np.concatenate([ends[0][lower], ends[1][lower]])
    dst = np.concatenate([ends[1][upper], ends[0][upper]])
    after = [content.copy() for content in contents]
    after[1][upper], after[0][upper] = contents[0][lower], contents[1][lower]
    order = rng.permutation(2 * rows)
    return arrays, after, src[order], dst[order], [nbytes] * (2 * rows)


@pytest.mark.parametrize("mode", ["auto", "loop", "batch", "kernel"])
def test_directions_run_side_by_side(machine, rng, submitted, tune, mode):
    tune(fewest_bytes_of_a_direction=16 * 1024)
    arrays, after, *pointers = both_ways(machine, rng, 1024, 16)
    stream = machine.stream()
    transfer = ns.swap_blocks_batch(*pointers, stream=stream, mode=mode)
    transfer.wait()
    for array, content in zip(arrays, after, strict=True):
        assert np.array_equal(read_array(machine, array), content)
    assert len(submitted) == 2
    handles = [launch.stream for _, _, launch in submitted]
    assert len({*handles, stream.__cuda_stream__()[1]}) == 3
    assert [launch.key for _, _, launch in submitted] == [0, 1]
    parts = transfer.decision.parts
    assert [part.direction for part in parts] == [ns.Direction.H2D, ns.Direction.D2H]
    assert [part.copies for part in parts] == [16, 16]
    assert transfer.decision.direction is ns.Direction.MIXED
    assert "every direction in streams of its own" in transfer.decision.reason
    if mode != "auto":
        assert transfer.decision.modes == (mode,)


@pytest.mark.parametrize(
    ("nbytes", "circumstances"),
    [(65536, "plenty"), (65535, "few bytes"), (65536, "latency"), (65536, "captured")],
)
def test_directions_of_a_mebibyte_each(machine, rng, submitted, nbytes, circumstances):
    arrays, after, *pointers = both_ways(machine, rng, nbytes, 16)
    how = {"stream": machine.stream(), "mode": "loop"}
    if circumstances == "latency":
        how["policy"] = "latency"
    if circumstances == "captured":
        capture(machine, how["stream"], lambda: ns.swap_blocks_batch(*pointers, **how))()
    else:
        ns.swap_blocks_batch(*pointers, **how).wait()
    for array, content in zip(arrays, after, strict=True):
        assert np.array_equal(read_array(machine, array), content)
    assert len(submitted) == (2 if circumstances == "plenty" else 1)


def test_layers_of_both_directions_and_within_the_device(gpu, rng, submitted, tune):
    tune(fewest_bytes_of_a_direction=1)
    set_costs(gpu.driver, 0, flat(kernel=1.0, loop=2.0))
    kinds = [
        ("pinned", "device"),
        ("device", "pinned"),
        ("device", "device"),
        ("pageable", "device"),
    ]
    contents = [random_bytes(rng, (6, 48)) for _ in kinds]
    src = [make_array(gpu, kind, c) for (kind, _), c in zip(kinds, contents, strict=True)]
    dst = [make_array(gpu, kind, np.zeros_like(contents[0])) for _, kind in kinds]
    decision = ns.swap_blocks(src, dst, [[0, 5], [2, 3], [4, 1]], stream=gpu.stream()).decision
    gpu.synchronize()
    for array, content in zip(dst, contents, strict=True):
        got = read_array(gpu, array)
        assert np.array_equal(got[[5, 3, 1]], content[[0, 2, 4]])
        assert not got[[0, 2, 4]].any()
    assert [part.direction for part in decision.parts] == [
        ns.Direction.H2D,
        ns.Direction.D2H,
        ns.Direction.D2D,
    ]
    # Only the direction with pageable memory in it cannot have the kernel.
    assert [part.mode is Mode.KERNEL for part in decision.parts] == [False, True, True]
    assert [list(part.rejected) for part in decision.parts] == [[Mode.KERNEL], [], []]
    assert decision.rejected == {}


def test_a_direction_of_few_bytes_runs_with_the_other(gpu, rng, submitted):
    _arrays, _after, src, dst, sizes = both_ways(gpu, rng, 1 << 16, 20)
    to_host = np.flatnonzero(src >= dst)  # one direction, whichever
    rows = np.sort([*to_host[:3], *np.setdiff1d(np.arange(40), to_host)])
    ns.swap_blocks_batch(src[rows], dst[rows], [sizes[0]] * len(rows), mode="loop").wait()
    assert len(submitted) == 1


def test_directions_are_predicted_side_by_side(gpu, rng, submitted):
    """Beside the other direction a kernel takes 1.4 times as long."""
    set_costs(gpu.driver, 0, flat(kernel=1000.0, batch=1200.0))
    arrays, after, *pointers = both_ways(gpu, rng, 1 << 16, 16)
    assert ns.swap_blocks_batch(*pointers).decision.modes == (Mode.BATCH,)
    gpu.synchronize()
    for array, content in zip(arrays, after, strict=True):
        assert np.array_equal(read_array(gpu, array), content)
    assert {mode for mode, _, _ in submitted} == {Mode.BATCH}


SPLITS = {"length": 2, "direction": 2, "exchange": 2, "exchange in pairs": 0}


def parted(gpu, rng, split):
    """A swap in parts, of device memory that is written before and read after: what runs it."""
    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    contents = [random_bytes(rng, (8, n)) for n in (64, 1 << 15)]
    first = [make_array(gpu, "device", np.zeros_like(content)) for content in contents]
    rows = np.array([[0, 7], [2, 4], [6, 0]])
    if split == "length":
        second = [make_array(gpu, "pinned", np.zeros_like(content)) for content in contents]
        plan = ns.plan_blocks(first, second, rows)
    elif split == "direction":
        second = [
            make_array(gpu, kind, np.zeros_like(content))
            for kind, content in zip(("pinned", "device"), contents, strict=True)
        ]
        plan = ns.plan_blocks(first, second, rows)
    else:
        second = [make_array(gpu, "pinned", np.zeros_like(content)) for content in contents]
        # Block 7 is written by the row that reads slot 0: a chain, of which no pairs can be made.
        chain = [[7, 1], [3, 0]]
        into = chain if split == "exchange" else [[1, 1], [3, 0], [5, 5]]
        if split == "exchange in pairs":
            set_costs(gpu.driver, 0, flat(kernel=1.0))
        plan = ns.plan_exchange(first, second, rows, into)
    return plan, contents, first, second


@pytest.mark.parametrize("split", SPLITS)
def test_parts_come_after_what_is_in_the_stream(gpu, rng, tune, split):
    tune(fewest_bytes_of_a_direction=1)
    plan, contents, first, second = parted(gpu, rng, split)
    stream = gpu.stream(non_blocking=True)
    for array, content in zip(first, contents, strict=True):
        array.copy_to_device(content, stream=stream)  # put off until something needs it
    transfer = plan.run(stream)
    assert len(transfer.decision.parts) == SPLITS[split]
    transfer.wait()
    for array, content in zip(second, contents, strict=True):
        assert np.array_equal(read_array(gpu, array)[[7, 4, 0]], content[[0, 2, 6]])


@pytest.mark.parametrize("split", SPLITS)
def test_what_follows_in_the_stream_comes_after_all_parts(gpu, rng, tune, split):
    tune(fewest_bytes_of_a_direction=1)
    plan, contents, first, second = parted(gpu, rng, split)
    for array, content in zip(first, contents, strict=True):
        array.copy_to_device(content)
    stream = gpu.stream(non_blocking=True)
    transfer = plan.run(stream)
    # Over what is read: only this stream is looked at, so only what it waits for has been done.
    for array in first:
        array.copy_to_device(np.zeros(array.shape, np.uint8), stream=stream)
    stream.synchronize()
    for array, content in zip(second, contents, strict=True):
        got = array.copy_to_host(gpu.stream()) if hasattr(array, "copy_to_host") else array
        gpu.synchronize()
        assert np.array_equal(np.array(got)[[7, 4, 0]], content[[0, 2, 6]])
    transfer.wait()


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_several_runs_at_once(gpu, rng, tune, split):
    """The lanes are shared by all runs; each is right all the same."""
    tune(fewest_bytes_of_a_direction=1)
    runs = [parted(gpu, rng, split) for _ in range(3)]
    streams = [gpu.stream(non_blocking=True) for _ in runs]
    for (_, contents, first, _), stream in zip(runs, streams, strict=True):
        for array, content in zip(first, contents, strict=True):
            array.copy_to_device(content, stream=stream)
    transfers = [run[0].run(stream) for run, stream in zip(runs, streams, strict=True)]
    for transfer, (_, contents, _, second) in reversed(list(zip(transfers, runs, strict=True))):
        transfer.wait()
        for array, content in zip(second, contents, strict=True):
            assert np.array_equal(read_array(gpu, array)[[7, 4, 0]], content[[0, 2, 6]])


@pytest.mark.parametrize("split", ["length", "exchange"])
def test_a_wait_is_for_all_parts(gpu, rng, split):
    plan, contents, first, second = parted(gpu, rng, split)
    for array, content in zip(first, contents, strict=True):
        array.copy_to_device(content)
    transfer = plan.run(gpu.stream(non_blocking=True))
    assert len(transfer.decision.parts) == 2
    transfer.wait()
    for array, content in zip(second, contents, strict=True):  # pinned: nothing else waits here
        assert np.array_equal(array[[7, 4, 0]], content[[0, 2, 6]])


def two_pools(gpu):
    return gpu.device_array((8, 96), np.uint8), gpu.pinned_array((8, 96), np.uint8)


def run_steps(gpu, copies, steps, stream, *, forked=True):
    devices, options = devices_of(gpu.driver), RunOptions(stream)
    with launching(devices, 0, copies.direction, options) as launch:
        work = InFlight(launch.context, (copies,), captured=False)
        submit_steps(steps, launch, work, forked=forked)
        work.close(launch.stream)
        work.wait()


def test_strands_wait_for_the_users_stream_only_and_once(gpu):
    """However many steps run in each: it is for them to be at work at the same time."""
    stream, (device, host) = gpu.stream(), two_pools(gpu)
    copies = ns.plan_blocks(device, host, [[i, i] for i in range(0, 8, 2)]).copies
    recorded, waits = {}, []
    faults = gpu.library.faults
    faults.watch("cuEventRecord", recorded.__setitem__)
    faults.watch("cuStreamWaitEvent", lambda to, event, _: waits.append((to, recorded[event])))

    steps = [
        Step(copies.select(np.array([row])), Mode.LOOP, strand)
        for row, strand in enumerate([1, 2, 2, 3])
    ]
    run_steps(gpu, copies, steps, stream)
    user = stream.handle
    lanes = [to for to, _ in waits[:3]]
    assert len({*lanes, user}) == 4
    assert waits == [*((lane, user) for lane in lanes), *((user, lane) for lane in lanes)]


def test_a_step_waits_for_earlier_ones(gpu):
    stream, (device, host) = gpu.stream(), two_pools(gpu)
    copies = ns.plan_blocks(device, host, [[i, i] for i in range(8)]).copies
    recorded, waits = {}, []
    gpu.library.faults.watch("cuEventRecord", recorded.__setitem__)
    gpu.library.faults.watch(
        "cuStreamWaitEvent", lambda to, at, _: waits.append((to, recorded[at]))
    )

    steps = [Step(copies, Mode.LOOP, 1, has_waiters=True), Step(copies, Mode.LOOP, 2, (0,))]
    run_steps(gpu, copies, steps, stream)
    first, second = (to for to, _ in waits[:2])
    assert (second, first) in waits


def test_every_step_has_an_event_of_its_own(gpu):
    """Also where none waits for it: without, the copy engines do not keep both directions busy."""
    stream, (device, host) = gpu.stream(), two_pools(gpu)
    copies = ns.plan_blocks(device, host, [[i, i] for i in range(0, 8, 2)]).copies
    recorded, waits, behind = {}, [], []
    faults = gpu.library.faults

    def record(event, at):
        recorded[event] = at
        behind.append(at)

    faults.watch("cuEventRecord", record)
    faults.watch("cuStreamWaitEvent", lambda to, event, _: waits.append((to, recorded[event])))

    steps = [
        Step(copies.select(np.array([row])), Mode.LOOP, strand, has_waiters=row < 2)
        for row, strand in enumerate([1, 2, 3, 3])
    ]
    run_steps(gpu, copies, steps, stream)
    # A strand that begins late waits for what was in the user's stream, and for no earlier step.
    lanes = [to for to, _ in waits[:3]]
    assert waits[:3] == [(lane, stream.handle) for lane in lanes]
    # One behind each step, and one more by which the user's stream waits for each strand.
    assert [behind.count(lane) for lane in lanes] == [2, 2, 3]
    created = gpu.library.calls["cuEventCreate"]
    run_steps(gpu, copies, steps, stream)
    assert gpu.library.calls["cuEventCreate"] == created


def test_kernels_beside_each_other_have_other_grids(gpu, tune):
    tune(link_blocks=2, link_blocks_short=2, link_blocks_beside=3)
    stream = gpu.stream()
    device, host = gpu.device_array((64, 1024), np.uint8), gpu.pinned_array((64, 1024), np.uint8)
    rows = [[i, i] for i in range(0, 64, 2)]
    plans = ns.plan_blocks(device, host, rows), ns.plan_blocks(host, device, rows)
    launched = streams_of(gpu, "cuLaunchKernel", 1)
    steps = [Step(plan.copies, Mode.KERNEL, i) for i, plan in enumerate(plans)]
    run_steps(gpu, plans[0].copies, steps, stream)
    run_steps(gpu, plans[0].copies, steps, stream, forked=False)
    assert launched == [3, 3, 2, 2]


def test_events_of_lanes_are_used_again(gpu):
    device, host = two_pools(gpu)

    def run():
        ns.exchange(device, host, [[0, 1]], [[2, 3]], mode="loop").wait()
        return gpu.library.calls["cuEventCreate"]

    assert run() == run() == run()


def test_each_direction_spreads_its_batch_over_streams_of_its_own(gpu, rng):
    arrays, after, *pointers = both_ways(gpu, rng, 1 << 16, 16)
    used = streams_of(gpu, "cuMemcpyBatchAsync", 8)
    ns.swap_blocks_batch(*pointers, mode="batch", stream=gpu.stream()).wait()
    for array, content in zip(arrays, after, strict=True):
        assert np.array_equal(read_array(gpu, array), content)
    assert len(used) == len(set(used)) == 2 * 4


# -- what a decision says -----------------------------------------------------------------------


def test_the_table_shows_every_mode(gpu, rng):
    set_costs(gpu.driver, 0, flat(kernel=12_345.0, batch=120_000.0, loop=40.4))
    src, dst, _ = pools(gpu, rng)
    decision = ns.plan_blocks(src, dst, ROWS).explain()
    assert decision.table().splitlines() == [
        "loop for 5 copies, 480 bytes, host to device, simulated driver 13.0: "
        "predicted: loop 40 us, kernel 12.3 ms, batch 0.12 s",
        "",
        "mode    predicted  chosen  why not",
        "loop    40 us      yes",
        "kernel  12.3 ms",
        "batch   0.12 s",
        "",
        "predicted from made up",
    ]
    src, dst, _ = pools(gpu, rng, src="pageable")
    with ns.override(driver_version=(12, 4)):
        plan = ns.plan_blocks(src, dst, ROWS)
        lines = plan.explain().table().splitlines()
        # A decision of a run knows what was looked at, no more.
        assert plan.run().decision.table().splitlines()[3:5] == ["loop  40 us      yes", ""]
    where = f"{address(src):#x}"
    assert lines[3:6] == [
        "loop    40 us      yes",
        "kernel  -                  the GPU cannot reach pageable memory at "
        f"{where} (pin it, with cuda.pinned_array for example)",
        "batch   -                  driver 12.4 (pretended) has no cuMemcpyBatchAsync, which is "
        "new in 12.8",
    ]


def test_the_table_of_parts(gpu, rng):
    set_costs(gpu.driver, 0, WORTH_A_SPLIT)
    _src, _dst, *pointers, _ = mixed_pools(gpu, rng, short=3, long=1)
    transfer = ns.swap_blocks_batch(*pointers)
    transfer.wait()
    lines = transfer.decision.table().splitlines()
    assert lines[2:] == [
        "mode    predicted  chosen  why not",
        "kernel  1003 us    yes",
        "batch   3001 us    yes",
        "",
        "at once:",
        "  kernel, 3 copies, 192 bytes, host to device, 3 us",
        "  batch, 1 copy, 32768 bytes, host to device, 1 us",
        "",
        "predicted from made up",
    ]


def test_reasons(gpu, rng, monkeypatch):
    src, dst, _ = pools(gpu, rng)
    plan = ns.plan_blocks(src, dst, ROWS)
    set_costs(gpu.driver, 0, flat(batch=3.0, kernel=7.0, loop=11.0))
    words = "predicted: batch 3 us, kernel 7 us, loop 11 us"
    assert plan.explain().reason == words
    assert plan.explain(policy="latency").reason == f"for latency, {words}"
    assert plan.explain(mode="kernel").reason == "forced by the mode argument"
    assert plan.explain(mode="kernel").forced
    with ns.override(mode="loop"):
        assert plan.explain().reason == "forced by override"
        assert plan.explain(mode="batch").reason == "forced by the mode argument"
        assert plan.explain(mode="auto").reason == words
        with ns.override(mode="auto"):
            assert plan.explain().reason == words
    environment = settings.settings_from_environment({"NUMBA_SWAP_MODE": "loop"})
    with monkeypatch.context() as patch:
        patch.setattr(settings, "_environment_settings", lambda: environment)
        assert plan.explain().reason == "forced by the environment variable NUMBA_SWAP_MODE"
        assert plan.explain(mode="auto").reason == words
    with ns.override(driver_version=(11, 8)):
        decision = plan.explain()
    assert decision.reason == (
        f"{words}, but no batch: {decision.rejected[Mode.BATCH]}; no kernel: "
        f"{decision.rejected[Mode.KERNEL]}; so loop"
    )
    assert not decision.forced
    nothing = ns.plan_blocks(src, dst, []).explain()
    assert (nothing.reason, nothing.predicted_us) == ("nothing to copy", None)
    assert nothing.estimates == ()
    assert (nothing.mode, nothing.simulated) == (Mode.LOOP, True)
    forced = ns.plan_blocks(src, dst, []).explain(mode="kernel", policy="overlap")
    assert (forced.mode, forced.policy) == (Mode.KERNEL, "overlap")
    assert len(ns.plan_blocks(src, dst, ROWS[:1]).explain().estimates) == 3
    set_costs(gpu.driver, 0, CostModel(dict.fromkeys(ROUTES, by_mode(SOME)), "made up"))
    assert plan.explain().reason == "predicted: loop 15 us"
    assert plan.explain(mode="kernel").predicted_us is None
    assert math.inf in [estimate.predicted_us for estimate in plan.explain().estimates]


# -- what was decided before ----------------------------------------------------------------------


@pytest.fixture
def decisions(monkeypatch):
    """Count the decisions that are made anew."""
    made = []
    decide = select.decide

    def count(workload, *arguments):
        made.append(workload)
        return decide(workload, *arguments)

    monkeypatch.setattr(select, "decide", count)
    return made


def rows_from(first, count=8):
    return np.stack([np.arange(first, first + 2 * count, 2), np.arange(0, 2 * count, 2)], axis=1)


def test_copies_that_are_alike_are_decided_on_once(decisions):
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((64, 64), np.uint8), gpu.device_array((64, 64), np.uint8)
        other = gpu.device_array((64, 64), np.uint8)
        explained = [
            ns.plan_blocks(host, to, rows_from(first)).explain()
            for to in (device, other)
            for first in (0, 1, 20)
        ]
        assert len(decisions) == 1
        assert len({(d.mode, d.reason, d.copies, d.nbytes) for d in explained}) == 1
        assert len(explained[0].estimates) == len(MODES)
        # Whatever a choice follows from makes another one.
        unlike = (
            lambda: ns.plan_blocks(host, device, rows_from(0, 9)).explain(),
            lambda: ns.plan_blocks(host[:, 1:33], device[:, 1:33], rows_from(0)).explain(),
            lambda: ns.plan_blocks(device, host, rows_from(0)).explain(),
            lambda: ns.plan_blocks(host, device, rows_from(0)).explain(mode="loop"),
            lambda: ns.plan_blocks(host, device, rows_from(0)).explain(policy="overlap"),
            lambda: ns.plan_blocks(np.array(host), device, rows_from(0)).explain(),
        )
        for number, explain in enumerate(unlike, 2):
            explain()
            assert len(decisions) == number
        with ns.override(policy="latency"):
            ns.plan_blocks(host, device, rows_from(0)).explain()
        gpu_device = devices_of(gpu.driver)[0]
        use_costs(gpu_device, find_costs(gpu_device)._replace(source="others"))
        assert ns.plan_blocks(host, device, rows_from(0)).explain().costs_source == "others"
        assert len(decisions) == 9


def test_what_cannot_run_is_told_of_each_copy_by_its_own_address(decisions):
    with ns.simulate() as gpu:
        device = gpu.device_array((64, 4096), np.uint8)
        for _ in range(2):
            host = np.zeros((64, 4096), np.uint8)
            decision = ns.plan_blocks(host, device, rows_from(0)).explain()
            kernel_says = [e.obstacle for e in decision.estimates if e.mode is Mode.KERNEL]
            assert f"{host.ctypes.data:#x}" in kernel_says[0]


def test_a_kernel_that_was_chosen_before_needs_memory_again(decisions):
    with ns.simulate() as gpu:
        host, device = (
            gpu.pinned_array((4096, 64), np.uint8),
            gpu.device_array((4096, 64), np.uint8),
        )
        first = ns.plan_blocks(host, device, rows_from(0, 1024))
        assert first.explain().mode is Mode.KERNEL
        gpu.library.faults.add(Fault("cuMemHostAlloc", 2, times=None))
        second = ns.plan_blocks(host, device, rows_from(1, 1024))
        decision = second.explain()
        assert decision.mode is not Mode.KERNEL
        assert "no pinned host memory is left" in decision.reason
        assert len(decisions) == 2


def test_parts_that_were_chosen_before_need_memory_again():
    """Short copies in the kernel beside long ones in the batch, whose mode is that of the whole."""
    with ns.simulate() as gpu:
        widths = [2048] * 10 + [1 << 21]
        hosts = [gpu.pinned_array((100, 2 * w), np.uint8)[:, :w] for w in widths[:-1]]
        hosts.append(gpu.pinned_array((100, widths[-1]), np.uint8))
        devices = [gpu.device_array((100, w), np.uint8) for w in widths]
        rows = np.stack([np.arange(100), np.arange(100)[::-1]], axis=1)
        first = ns.plan_blocks(hosts, devices, rows)
        assert [part.mode for part in first.explain().parts] == [Mode.KERNEL, Mode.BATCH]
        gpu.library.faults.add(Fault("cuMemHostAlloc", 2, times=None))
        second = ns.plan_blocks(hosts, devices, rows[::-1].copy())  # the first holds the table
        decision = second.run().decision
        assert decision.modes == (Mode.BATCH,)
        assert "no pinned host memory is left" in decision.reason
        gpu.synchronize()
        assert (devices[0].copy_to_host()[::-1] == hosts[0]).all()


def test_decisions_that_are_kept_do_not_grow_without_end(monkeypatch):
    monkeypatch.setattr(select, "_MOST_CHOICES", 3)
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((64, 64), np.uint8), gpu.device_array((64, 64), np.uint8)
        for count in range(1, 9):
            ns.plan_blocks(host, device, rows_from(0, count)).explain()
            assert len(devices_of(gpu.driver)[0].choices) <= 3
