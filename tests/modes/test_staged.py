"""Pageable memory by way of a ring of pinned memory: bytes, order, faults, threads."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import address_of, capture, examples, make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.copies.from_pointers import plan_pointers
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.calibration import find_costs, reference_costs, use_costs
from numba_swap.dispatch.cost_model import ModeCost
from numba_swap.driver.simulated import Fault
from numba_swap.modes.staged.layout import Layout, Ring, ring_for

VERSIONS = ["11.4", "12.4", "13.0"]


@pytest.fixture(params=[1, 3])
def threads(request):
    with ns.override(threads=request.param):
        yield request.param


@pytest.fixture
def small(tune):
    """A ring of three pieces of 256 bytes: little is a lot."""

    def make(**figures):
        tune(ring_piece_bytes=256, ring_smallest_bytes=64, ring_pieces=3, **figures)

    return make


@pytest.fixture
def gpu(small):
    with ns.simulate() as gpu:
        small()
        yield gpu


class Pools:
    """A pageable pool and one on the device, and rows from every other block of the first."""

    def __init__(self, gpu, rng, blocks=24, nbytes=100, direction="in"):
        self.gpu, self.inward = gpu, direction == "in"
        self.host, other = random_bytes(rng, (blocks, nbytes)), random_bytes(rng, (blocks, nbytes))
        self.device = make_array(gpu, "device", other)
        order = rng.permutation(blocks // 2)
        self.rows = 2 * np.stack([order, order[::-1]], axis=1)

    @property
    def arrays(self):
        return (self.host, self.device) if self.inward else (self.device, self.host)

    def expected(self):
        src, dst = (np.array(read_array(self.gpu, array)) for array in self.arrays)
        dst[self.rows[:, 1]] = src[self.rows[:, 0]]
        return dst

    def swap(self, **how):
        return ns.swap_blocks(*self.arrays, self.rows, **{"mode": "staged", **how})

    def written(self):
        return read_array(self.gpu, self.arrays[1])


# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("nbytes", [1, 7, 16, 48, 100, 255, 256, 257, 700])
def test_every_byte_is_right(gpu, rng, threads, nbytes, direction):
    """Blocks shorter and longer than a piece, of any alignment, in more pieces than the ring."""
    pools = Pools(gpu, rng, nbytes=nbytes, direction=direction)
    after = pools.expected()
    transfer = pools.swap(stream=gpu.stream())
    transfer.wait()
    assert transfer.decision.mode == "staged"
    assert transfer.done()
    assert np.array_equal(pools.written(), after)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("direction", ["in", "out"])
def test_on_every_driver(version, rng, direction, small):
    """Where there is no kernel, pieces go by copies one by one."""
    with ns.simulate(driver_version=version) as gpu:
        small()
        pools = Pools(gpu, rng, direction=direction)
        after = pools.expected()
        pools.swap().wait()
        assert np.array_equal(pools.written(), after)
        assert bool(gpu.library.calls["cuLaunchKernel"]) == (version != "11.4")


COPY = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 600))


@examples(60)
@given(copies=st.lists(COPY, min_size=1, max_size=12), inward=st.booleans(), seed=st.integers(0, 9))
def test_any_copies_between_pointers(copies, inward, seed):
    """Any lengths and alignments, in any order, with anything between them."""
    rng = np.random.default_rng(seed)
    with ns.simulate() as gpu, ns.override(threads=1 + seed % 3):
        device = devices_of(gpu.driver)[0]
        costs = find_costs(device)
        figures = {"ring_piece_bytes": 64 << seed % 4, "ring_smallest_bytes": 16, "ring_pieces": 2}
        use_costs(device, costs._replace(tuning=costs.tuning._replace(**figures)))
        gaps, sizes = np.array(copies)[:, :2], np.array(copies)[:, 2]
        total = int(sizes.sum() + gaps.sum()) + 1
        near, far = random_bytes(rng, total), random_bytes(rng, total)
        array = make_array(gpu, "device", far)
        starts = [np.cumsum(gaps[:, i] + sizes) - sizes for i in (0, 1)]
        order = rng.permutation(len(copies))
        host = near.ctypes.data + starts[0][order]
        other = address_of(array) + starts[1][order]
        columns = (host, other) if inward else (other, host)
        after = np.array(far if inward else near)
        for i in range(len(copies)):
            here, there = (slice(starts[k][i], starts[k][i] + sizes[i]) for k in (0, 1))
            if inward:
                after[there] = near[here]
            else:
                after[here] = far[there]
        ns.swap_blocks_batch(*columns, sizes[order], mode="staged").wait()
        assert np.array_equal(array.copy_to_host() if inward else near, after)


@pytest.mark.parametrize("direction", ["in", "out"])
def test_boxes_go_row_by_row(gpu, rng, threads, direction):
    field = random_bytes(rng, (9, 10, 24))
    pool = make_array(gpu, "device", random_bytes(rng, (3, 4, 5, 8)))
    corners, slots = [[1, 0, 3], [5, 5, 16], [0, 5, 8]], [[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    boxes = [tuple(slice(o, o + n) for o, n in zip(c, (4, 5, 8), strict=True)) for c in corners]
    tiles = pool.copy_to_host()
    if direction == "in":
        ns.copy_boxes(field, pool, corners, slots, (4, 5, 8), mode="staged").wait()
        got = pool.copy_to_host()
        for slot, box in zip(slots, boxes, strict=True):
            assert np.array_equal(got[slot[0]], field[box])
    else:
        after = field.copy()
        for slot, box in zip(slots, boxes, strict=True):
            after[box] = tiles[slot[0]]
        ns.copy_boxes(pool, field, slots, corners, (4, 5, 8), mode="staged").wait()
        assert np.array_equal(field, after)


def test_layers_of_which_one_is_pinned(gpu, rng, threads):
    hosts = [random_bytes(rng, (8, 40)), make_array(gpu, "pinned", random_bytes(rng, (8, 40)))]
    devices = [make_array(gpu, "device", random_bytes(rng, (8, 40))) for _ in hosts]
    ns.swap_blocks(hosts, devices, [[1, 3], [6, 0]], mode="staged").wait()
    for host, device in zip(hosts, devices, strict=True):
        assert np.array_equal(device.copy_to_host()[[3, 0]], host[[1, 6]])


def test_read_only_memory_is_read_and_never_written(gpu, rng):
    pools = Pools(gpu, rng)
    pools.host.flags.writeable = False
    after = pools.expected()
    pools.swap().wait()
    assert np.array_equal(pools.written(), after)
    with pytest.raises(ns.BadPlanError, match="read-only"):
        ns.swap_blocks(pools.device, pools.host, pools.rows, mode="staged")


def test_neighbours_on_the_device_are_one_copy(gpu, rng):
    """From wherever on the host: a copy engine gets one long copy a piece."""
    pools = Pools(gpu, rng, blocks=64, nbytes=64)
    rows = np.stack([rng.permutation(64), np.arange(64)], axis=1)
    with ns.override(driver_version="11.8"):  # no kernel
        before = gpu.library.calls["cuMemcpyAsync"]
        ns.swap_blocks(pools.host, pools.device, rows, mode="staged").wait()
    assert gpu.library.calls["cuMemcpyAsync"] - before == 64 * 64 // 256
    assert np.array_equal(pools.device.copy_to_host(), pools.host[rows[:, 0]])


# -- where rows are staged ------------------------------------------------------------------------


def test_a_row_is_staged_where_it_is_on_the_device_modulo_16(gpu, rng):
    src, dst = 7 + 1000 * np.arange(9), address_of(gpu.device_array(9000, np.uint8))
    host = random_bytes(rng, 9000)
    plan_rows = host.ctypes.data + src, dst + np.cumsum(np.arange(9) * 37), np.arange(9) * 29 + 3
    gpu.driver.current_context()
    planned = plan_pointers(gpu.driver, *plan_rows, "bounds")
    layout = Layout(planned, 256)
    for piece in layout.pieces:
        assert piece.end - piece.begin + piece.begin % 16 <= 256
        some = layout.copies(piece, 1 << 20, planned.ends)
        assert ((some.dst ^ some.src) % 16 == 0).all()
        assert (some.src >= 1 << 20).all()
        assert (some.src + some.sizes <= (1 << 20) + 256).all()


@pytest.mark.parametrize(
    ("nbytes", "ring"),
    [
        (1, Ring(512 << 10, 2)),
        (512 << 10, Ring(512 << 10, 2)),
        (4 << 20, Ring(1 << 20, 4)),
        (5 << 20, Ring(2 << 20, 3)),
        (16 << 20, Ring(4 << 20, 4)),
        (1 << 40, Ring(4 << 20, 4)),
    ],
)
def test_the_ring_is_as_large_as_it_is_useful(nbytes, ring):
    assert ring_for(nbytes, DEFAULT_TUNING) == ring


# -- order ----------------------------------------------------------------------------------------


def test_the_source_may_be_changed_when_the_call_returns(gpu, rng, threads):
    pools = Pools(gpu, rng)
    after = pools.expected()
    transfer = pools.swap(stream=gpu.stream())
    pools.host[:] = 0
    transfer.wait()
    assert np.array_equal(pools.written(), after)


def test_the_source_is_read_after_what_is_in_the_stream(gpu, rng):
    """A copy of the driver that has not run yet writes what is to be read."""
    pools, stream = Pools(gpu, rng), gpu.stream()
    fresh = random_bytes(rng, pools.host.shape)
    gpu.library.enqueue(stream.handle, lambda: np.copyto(pools.host, fresh))
    pools.swap(stream=stream).wait()
    got = pools.device.copy_to_host()
    assert np.array_equal(got[pools.rows[:, 1]], fresh[pools.rows[:, 0]])


def test_the_destination_is_written_when_the_call_returns(gpu, rng, threads):
    """All of it, whatever was enqueued before; so a later swap in any stream sees it."""
    pools, stream = Pools(gpu, rng, direction="out"), gpu.stream()
    fresh = random_bytes(rng, pools.host.shape)
    pools.device.copy_to_device(fresh, stream=stream)
    pools.swap(stream=stream)
    assert np.array_equal(pools.host[pools.rows[:, 1]], fresh[pools.rows[:, 0]])
    for other, mode in ((stream, "loop"), (gpu.stream(), "staged"), (gpu.stream(), "batch")):
        back = gpu.device_array(pools.host.shape, np.uint8)
        ns.swap_blocks(pools.host, back, pools.rows[:, [1, 0]], stream=other, mode=mode).wait()
        got = back.copy_to_host()[pools.rows[:, 0]]
        assert np.array_equal(got, fresh[pools.rows[:, 0]]), mode


def test_what_follows_in_the_stream_comes_after(gpu, rng):
    pools, stream = Pools(gpu, rng), gpu.stream()
    after = pools.expected()
    pools.swap(stream=stream)
    assert np.array_equal(_later(pools.device, stream), after)


def _later(array, stream):
    host = array.copy_to_host(stream=stream)
    stream.synchronize()
    return host


def test_plans_run_again(gpu, rng, threads):
    pools = Pools(gpu, rng)
    plan = ns.plan_blocks(*pools.arrays, pools.rows)
    for _ in range(4):
        pools.host[:] = random_bytes(rng, pools.host.shape)
        after = pools.expected()
        plan.run(gpu.stream(), "staged").wait()
        assert np.array_equal(pools.written(), after)


def test_several_threads_at_once(gpu, rng):
    """One of them has the helpers, the others do without."""
    many = [
        Pools(gpu, np.random.default_rng(i), nbytes=90, direction="in" if i % 2 else "out")
        for i in range(8)
    ]
    after = [pools.expected() for pools in many]

    def run(pools):
        with ns.override(threads=3):
            stream = gpu.stream()
            for _ in range(5):
                pools.swap(stream=stream).wait()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, many))
    for pools, wanted in zip(many, after, strict=True):
        assert np.array_equal(pools.written(), wanted)


# -- what it is not for ---------------------------------------------------------------------------


def refused(call, words):
    with pytest.raises(ns.ModeUnavailableError, match=words) as caught:
        call()
    assert caught.value.mode == "staged"


def test_memory_that_needs_no_staging_is_refused(gpu, rng):
    pinned, device, other = (
        make_array(gpu, kind, random_bytes(rng, (4, 32))) for kind in ("pinned", "device", "device")
    )
    for src, dst in ((pinned, device), (device, pinned)):
        refused(lambda a=src, b=dst: ns.swap_blocks(a, b, [[0, 1]], mode="staged"), "no pageable")
    refused(lambda: ns.swap_blocks(device, other, [[0, 1]], mode="staged"), "host and device")
    host = random_bytes(rng, (4, 32))
    refused(lambda: ns.swap_blocks(host, pinned, [[0, 1]], mode="staged"), "host and device")
    refused(lambda: ns.exchange(device, host, [[0, 1]], [[2, 3]], mode="staged"), "other direction")


def test_a_capture_takes_another_mode(gpu, rng, cheap):
    pools, stream = Pools(gpu, rng), gpu.stream()
    after, seen = pools.expected(), []
    assert ns.plan_blocks(*pools.arrays, pools.rows).explain().mode == "staged"

    def work():
        refused(lambda: pools.swap(stream=stream), "captured into a graph")
        seen.append(pools.swap(stream=stream, mode="auto"))

    replay = capture(gpu, stream, work)
    assert seen[0].decision.mode == "loop"
    assert "no staged: the stream is being captured" in seen[0].decision.reason
    replay()
    assert np.array_equal(pools.written(), after)


def test_an_exchange_goes_as_before(gpu, rng, cheap):
    host, device = random_bytes(rng, (8, 64)), make_array(gpu, "device", random_bytes(rng, (8, 64)))
    before = host.copy(), device.copy_to_host()
    transfer = ns.exchange(device, host, [[0, 5], [1, 6]], [[2, 0], [3, 1]])
    transfer.wait()
    assert "staged" not in transfer.decision.modes
    assert np.array_equal(host[[5, 6]], before[1][[0, 1]])
    assert np.array_equal(device.copy_to_host()[[0, 1]], before[0][[2, 3]])


@pytest.fixture
def cheap(gpu):
    """Costs by which staging is the best for everything."""
    device = devices_of(gpu.driver)[0]
    costs = find_costs(device)
    routes = {route: dict(modes) for route, modes in costs.routes.items()}
    for route in ("h2d pageable", "d2h pageable"):
        routes[route][ns.Mode.STAGED] = ModeCost(0.0, 0.0, (0.0,) * 4, (0.0,) * 4)
    use_costs(device, costs._replace(routes=routes))


# -- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_short_swaps_stay_as_they_are(direction):
    how = {"host_memory": "pageable", "driver_version": "13.0"}
    with ns.override(threads=16):
        for size, count in ((4096, 1), (4096, 4), (1 << 18, 1)):
            assert ns.explain_copy(direction, size, count, **how).mode == "loop"
        for size, count in ((512, 8192), (8192, 8192), (1 << 18, 512)):
            assert ns.explain_copy(direction, size, count, **how).mode == "staged"
            assert ns.explain_copy(direction, size, count, driver_version="13.0").mode != "staged"


def test_few_threads_are_predicted_to_take_longer():
    def predicted(threads):
        with ns.override(threads=threads):
            found = ns.explain_copy("h2d", 8192, 8192, host_memory="pageable", mode="staged")
        return found.predicted_us

    assert predicted(64) == predicted(16)
    start_us = reference_costs().routes["h2d pageable"][ns.Mode.STAGED].start_us
    slower = (predicted(2) - start_us) / (predicted(16) - start_us)
    assert slower == pytest.approx(8.0)


def test_pinning_is_advised_with_its_gain(gpu, rng):
    pools = Pools(gpu, rng, blocks=128, nbytes=512)
    plan = ns.plan_blocks(*pools.arrays, pools.rows)
    decision = plan.explain()
    words = r"Pinned, it is predicted to take \d+ us instead of \d+ us, \d+\.\d times less"
    assert decision.advice in decision.table()
    assert re.search(words, decision.advice)
    assert plan.run().decision.advice == ""
    pinned = make_array(gpu, "pinned", pools.host)
    assert ns.plan_blocks(pinned, pools.device, pools.rows).explain().advice == ""
    with ns.override(driver_version="11.4"):  # nor would the kernel be there
        assert plan.explain().advice != decision.advice
    assert "Pinned, it is" in ns.explain_copy("d2h", 4096, 100, host_memory="pageable").advice


# -- what goes wrong ------------------------------------------------------------------------------


def test_without_pinned_memory_it_is_not_chosen(rng, small):
    with ns.simulate(pinned_limit=0) as gpu:
        small()
        pools = Pools(gpu, rng)
        after = pools.expected()
        refused(pools.swap, "no pinned host memory is left for the 768 bytes of its ring")
        transfer = pools.swap(mode="auto")
        transfer.wait()
        assert transfer.decision.mode != "staged"
        assert np.array_equal(pools.written(), after)


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuEventRecord", "cuEventSynchronize"])
def test_an_error_says_what_was_submitted(gpu, rng, threads, direction, function):
    """At every call of it; what was not reported as perhaps written is as it was."""
    pools = Pools(gpu, rng, direction=direction)
    pools.swap().wait()
    faults, calls = gpu.library.faults, gpu.library.calls
    before = calls[function]
    pools.swap().wait()
    count = calls[function] - before
    assert count > 3
    for call in range(1, count + 1):
        faults.add(Fault(function, 1, call=call))
        with pytest.raises(ns.DriverCallError) as caught:
            pools.swap().wait()
        assert caught.value.function == function
        if function == "cuLaunchKernel" and call > 1:
            assert f"the {call - 1} before this one were submitted" in str(caught.value)
        elif function == "cuLaunchKernel":
            assert list(caught.value.submitted_rows) == []
        faults.clear()
        after = pools.expected()
        pools.swap().wait()
        assert np.array_equal(pools.written(), after)


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuEventRecord", "cuEventSynchronize"])
def test_ctrl_c_in_any_call(gpu, rng, threads, direction, function):
    """The threads are through before it is raised, and serve again."""
    pools = Pools(gpu, rng, direction=direction)
    for number in range(6):
        times = []

        def interrupt(*arguments, number=number, times=times):
            times.append(1)
            if len(times) == number + 1:
                raise KeyboardInterrupt

        gpu.library.faults.watch(function, interrupt)
        try:
            pools.swap().wait()
        except KeyboardInterrupt:
            assert len(times) > number
        before = pools.host.copy()
        gpu.synchronize()
        assert np.array_equal(pools.host, before)
        after = pools.expected()
        gpu.library.faults.watch(function, lambda *arguments: None)
        pools.swap().wait()
        assert np.array_equal(pools.written(), after)


def test_a_swap_in_the_midst_of_another(gpu, rng):
    """As from a signal handler: in the same thread and stream, while the helpers are busy."""
    outer, inner = Pools(gpu, rng), Pools(gpu, rng, direction="out")
    after, inner_after, stream, ran = outer.expected(), inner.expected(), gpu.stream(), []

    def handler(*arguments):
        if not ran:
            ran.append(threading.get_ident())
            inner.swap(stream=stream).wait()

    with ns.override(threads=3):
        gpu.library.faults.watch("cuLaunchKernel", handler)
        outer.swap(stream=stream).wait()
    assert ran
    assert np.array_equal(outer.written(), after)
    assert np.array_equal(inner.written(), inner_after)


# -- GPUs that reach pageable memory --------------------------------------------------------------


@pytest.mark.parametrize("direction", ["in", "out"])
def test_the_kernel_takes_pageable_memory_in_place_where_the_gpu_reaches_it(rng, direction):
    """On HMM and ATS machines; seen on the simulated driver only."""
    with ns.simulate(pageable_access=True) as gpu:
        pools = Pools(gpu, rng, direction=direction)
        after, plan = pools.expected(), ns.plan_blocks(*pools.arrays, pools.rows)
        plan.run(mode="kernel").wait()
        assert np.array_equal(pools.written(), after)
        # What it costs there nobody has measured: it is not chosen before that was done.
        assert plan.explain().mode != "kernel"
        device = devices_of(gpu.driver)[0]
        costs = find_costs(device)
        routes = dict(costs.routes)
        route = "h2d pageable" if direction == "in" else "d2h pageable"
        pinned = costs.routes[route.split(maxsplit=1)[0]]
        routes[route] = {**costs.routes[route], ns.Mode.KERNEL: pinned[ns.Mode.KERNEL]}
        use_costs(device, costs._replace(routes=routes))
        assert plan.run().decision.mode == "kernel"


def test_the_kernel_is_refused_pageable_memory_elsewhere(rng):
    with ns.simulate() as gpu:
        pools = Pools(gpu, rng)
        with pytest.raises(ns.ModeUnavailableError, match="cannot reach pageable memory"):
            pools.swap(mode="kernel")
