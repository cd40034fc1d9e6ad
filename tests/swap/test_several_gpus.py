"""Memory of several GPUs: it decides where copies run, whatever is current."""

import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from machines import address_of, capture, make_array, no_reaper, random_bytes

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.device.in_flight import pending
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.testing import Fault

MODES = ["auto", "batch", "kernel", "loop"]
ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


def on(gpu, device, content):
    gpu.driver.initialize()
    array = gpu.device_array(content.shape, content.dtype, device=device)
    array.copy_to_device(content)
    return array


def swapped(content, target, rows=ROWS):
    after = target.copy()
    after[rows[:, 1]] = content[rows[:, 0]]
    return after


def in_context(gpu, current):
    """Let this thread have the context of a device, or none."""
    driver = gpu.driver
    context = 0 if current is None else devices_of(driver)[current].primary_context
    return driver.activate(context)


# -- the data decides ---------------------------------------------------------------------------


@pytest.mark.parametrize("current", [None, 0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_whatever_is_current_the_same_runs_on_the_gpu_of_the_data(rng, mode, current):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        launched = []
        gpu.library.faults.watch(
            "cuLaunchKernel", lambda *_: launched.append(gpu.driver.current_device())
        )
        with in_context(gpu, current):
            before = gpu.driver.probe(0)[0]
            active = set(gpu.library.active_devices)
            host, device = make_array(gpu, "pinned", content), on(gpu, 1, target)
            for _ in range(3):  # the last ones in the short way
                transfer = ns.swap_blocks(host, device, ROWS, mode=mode)
                transfer.wait()
                assert gpu.driver.probe(0)[0] == before
            assert np.array_equal(device.copy_to_host(), swapped(content, target))
            back = gpu.pinned_array((12, 96), np.uint8)
            ns.swap_blocks(device, back, ROWS, mode=mode).wait()
            assert np.array_equal(back[ROWS[:, 1]], swapped(content, target)[ROWS[:, 0]])
            assert gpu.driver.probe(0)[0] == before
            assert gpu.library.active_devices == active | {1}
        assert set(launched) <= {1}
        if mode == "kernel":
            assert len(launched) == 4
        reference = ns.explain_copy("h2d", 96, 5, driver_version="13.0", mode=mode)
        assert transfer.decision.mode is reference.mode
        assert not transfer.decision.where


def test_a_thread_without_a_context_has_none_afterwards(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        host, device = make_array(gpu, "pinned", content), on(gpu, 1, target)
        found = []

        def work():
            ns.swap_blocks(host, device, ROWS, mode="kernel").wait()
            found.append(gpu.driver.probe(0)[0])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [0]
        assert gpu.library.active_devices == {1}
        assert np.array_equal(device.copy_to_host(), swapped(content, target))


# -- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_stream_of_another_gpu_orders_the_copies(rng, mode, repeats):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        host, device = gpu.pinned_array((12, 96), np.uint8), on(gpu, 1, target)
        back = gpu.pinned_array((12, 96), np.uint8)
        stream = gpu.stream(device=0)
        for _ in range(repeats):
            host[:], seen = 0, []
            gpu.library.enqueue(stream.handle, partial(np.copyto, host, content))
            transfer = ns.swap_blocks(host, device, ROWS, stream=stream, mode=mode)
            gpu.library.enqueue(stream.handle, lambda: seen.append(device._memory.copy()))  # noqa: B023
            stream.synchronize()
            assert np.array_equal(seen[0], swapped(content, target))
            assert transfer.done() or transfer.done()
            ns.swap_blocks(device, back, [[6, 6]], stream=stream, mode=mode)
            gpu.library.enqueue(stream.handle, partial(np.copyto, host, back))
            stream.synchronize()
            assert np.array_equal(host[6], content[0])
        assert gpu.driver.probe(0)[0] == 0
        if mode == "kernel":
            assert set(devices_of(gpu.driver)[1].kernels) == {"copy"}
            assert not devices_of(gpu.driver)[0].kernels


def test_a_stream_of_another_gpu_that_is_captured_is_refused(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        host, device = make_array(gpu, "pinned", content), on(gpu, 1, target)
        stream, plan = gpu.stream(device=0), ns.plan_blocks(host, device, ROWS)

        def refused():
            words = r"device 0 is being captured .* memory of device 1 takes part"
            with pytest.raises(ns.CapturedTransferError, match=words):
                plan.run(stream=stream)

        capture(gpu, stream, refused)()
        assert np.array_equal(device.copy_to_host(), target)
        own = gpu.stream(device=1)
        capture(gpu, own, lambda: plan.run(stream=own))()
        assert np.array_equal(device.copy_to_host(), swapped(content, target))


# -- between two --------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["NVLink", "PCIe", False])
@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_from_one_gpu_to_the_other(rng, mode, direction, access):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    source, destination = direction
    with ns.simulate(devices=2, peer_access=access) as gpu:
        src, dst = on(gpu, source, content), on(gpu, destination, target)
        streams = [None, 2, gpu.stream(device=0), gpu.stream(device=1)]
        if mode == "kernel" and not access:
            with pytest.raises(ns.ModeUnavailableError, match=r"cannot reach \(no peer access\)"):
                ns.swap_blocks(src, dst, ROWS, mode=mode)
            return
        for stream in streams:
            for _ in range(2):
                dst.copy_to_device(target)
                transfer = ns.swap_blocks(src, dst, ROWS, stream=stream, mode=mode)
                transfer.wait()
                assert np.array_equal(dst.copy_to_host(), swapped(content, target))
        decision = transfer.decision
        assert decision.direction is ns.Direction.P2P
        assert decision.where == f"{source} to {destination}, {access or 'no peer access'}"
        assert decision.where in str(decision)
        if mode != "auto":
            assert decision.mode == mode
        else:
            assert decision.mode == "kernel"
            assert len(decision.parts) == (0 if access else 2)  # by way of the host


def test_access_is_enabled_on_demand_for_that_pair_only(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=3) as gpu:
        enabled = []
        gpu.library.faults.watch(
            "cuCtxEnablePeerAccess",
            lambda peer, flags: enabled.append((gpu.driver.current_device(), peer)),
        )
        host, src, dst = make_array(gpu, "pinned", content), on(gpu, 0, content), on(gpu, 2, target)
        ns.swap_blocks(host, dst, ROWS, mode="kernel").wait()
        ns.swap_blocks([host, host], [src, dst], ROWS, mode="kernel").wait()
        plan = ns.plan_blocks([host, host], [src, dst], ROWS)
        plan.explain()
        assert enabled == []
        for _ in range(2):
            ns.swap_blocks(src, dst, ROWS, mode="kernel").wait()
        # Where it is written: that GPU reads.
        assert enabled == [(2, gpu.driver.primary_context(0))]
        assert gpu.library.active_devices == {0, 2}


def test_access_that_is_refused_is_a_reason_and_not_asked_for_again(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        gpu.library.faults.add(Fault("cuCtxEnablePeerAccess", 2))
        for _ in range(2):
            transfer = ns.swap_blocks(src, dst, ROWS)
            transfer.wait()
            assert transfer.decision.mode is ns.Mode.LOOP
            assert "device 1 was refused access to the memory of device 0" in str(transfer.decision)
            with pytest.raises(ns.ModeUnavailableError, match="refused access"):
                ns.swap_blocks(src, dst, ROWS, mode="kernel")
        assert gpu.library.calls["cuCtxEnablePeerAccess"] == 1
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


def test_access_that_somebody_enabled_is_no_error(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        with in_context(gpu, 1):
            gpu.driver.enable_peer_access(gpu.driver.primary_context(0))
        ns.swap_blocks(src, dst, ROWS, mode="kernel").wait()
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


@pytest.mark.parametrize("stream", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_a_default_stream_is_that_of_both(rng, mode, stream):
    """What is pending in either comes first, and what follows in either comes after."""
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content * 0), on(gpu, 1, target * 0)
        handle, seen, overwritten = stream or 0, [], []
        enqueue = gpu.library.enqueue
        for _ in range(2):
            enqueue(handle, partial(np.copyto, src._memory, content), device=0)
            enqueue(handle, partial(np.copyto, dst._memory, target), device=1)
            ns.swap_blocks(src, dst, ROWS, stream=stream, mode=mode)
            enqueue(handle, lambda: overwritten.append(src._memory.fill(0)), device=0)
            enqueue(handle, lambda: seen.append(dst._memory.copy()), device=1)
            gpu.library.enqueue(handle, lambda: None, wait=True, device=0)
            assert overwritten
            gpu.library.enqueue(handle, lambda: None, wait=True, device=1)
            assert np.array_equal(seen.pop(), swapped(content, target))


@pytest.mark.parametrize("device", [0, 1])
def test_a_stream_of_either_gpu_is_the_only_one_that_counts(rng, device):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        launched = []
        gpu.library.faults.watch("cuLaunchKernel", lambda *arguments: launched.append(arguments[8]))
        stream = gpu.stream(device=device)
        for _ in range(2):
            ns.swap_blocks(src, dst, ROWS, stream=stream, mode="kernel").wait()
        assert launched == [stream.handle] * 2
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


def test_a_plan_between_two_runs_again_in_the_short_way(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        own, plan = gpu.stream(device=1), ns.plan_blocks(src, dst, ROWS)
        plan.run(stream=None).wait()
        assert plan.last is None  # the default stream of the other GPU has to be told, too
        for _ in range(3):
            plan.run(stream=own).wait()
            assert plan.last is not None
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


def test_views_and_boxes_between_two(rng):
    content, target = random_bytes(rng, (8, 9, 10)), random_bytes(rng, (8, 9, 10))
    with ns.simulate(devices=2) as gpu:
        for mode in MODES:
            src, dst = on(gpu, 0, content), on(gpu, 1, target)
            ns.copy(src[1:4, 2:8, 3:], dst[2:5, 1:7, :7], mode=mode).wait()
            want = target.copy()
            want[2:5, 1:7, :7] = content[1:4, 2:8, 3:]
            assert np.array_equal(dst.copy_to_host(), want)
            plan = ns.plan_boxes(
                src, dst, [[0, 0, 0], [4, 4, 4]], [[1, 1, 1], [5, 4, 3]], (2, 3, 4)
            )
            decision = plan.run(mode=mode).decision
            assert decision.direction is ns.Direction.P2P
            gpu.synchronize()
            want[1:3, 1:4, 1:5], want[5:7, 4:7, 3:7] = content[:2, :3, :4], content[4:6, 4:7, 4:8]
            assert np.array_equal(dst.copy_to_host(), want)


# -- several at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("access", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", ["default", "of 0", "of 1", "of 2", "per thread"])
def test_layers_on_several_gpus_run_each_on_its_own(rng, mode, where, access):
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    targets = [random_bytes(rng, (12, 96)) for _ in range(2)]
    with ns.simulate(devices=3, peer_access=access) as gpu:
        launched = []
        gpu.library.faults.watch(
            "cuLaunchKernel", lambda *_: launched.append(gpu.driver.current_device())
        )
        stream = {"default": None, "per thread": 2}.get(where)
        if where.startswith("of"):
            stream = gpu.stream(device=int(where[-1]))
        hosts = [make_array(gpu, "pinned", content) for content in contents]
        devices = [on(gpu, k, target) for k, target in enumerate(targets)]
        before = gpu.driver.probe(0)[0]
        for _ in range(2):
            transfer = ns.swap_blocks(hosts, devices, ROWS, stream=stream, mode=mode)
            transfer.wait()
            assert transfer.done()
            assert gpu.driver.probe(0)[0] == before
        for device, content, target in zip(devices, contents, targets, strict=True):
            assert np.array_equal(device.copy_to_host(), swapped(content, target))
        decision = transfer.decision
        assert decision.direction is ns.Direction.H2D
        assert [part.where for part in decision.parts] == ["device 0", "device 1"]
        assert decision.nbytes == transfer.nbytes == 2 * 5 * 96
        assert decision.predicted_us == max(part.predicted_us for part in decision.parts)
        assert "device 1" in decision.table()
        if mode == "kernel":
            assert sorted(launched) == [0, 0, 1, 1]
        active = {0, 1} | ({2} if where == "of 2" else set())
        assert gpu.library.active_devices <= active
        returned = [gpu.pinned_array((12, 96), np.uint8) for _ in range(2)]
        back = np.stack([ROWS[:, 1]] * 2, axis=1)
        ns.swap_blocks(devices, returned, back, stream=stream, mode=mode).wait()
        for array, content in zip(returned, contents, strict=True):
            assert np.array_equal(array[ROWS[:, 1]], content[ROWS[:, 0]])


@pytest.mark.parametrize("policy", ["throughput", "latency", "overlap"])
def test_one_event_stands_for_all_parts(rng, policy):
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    with ns.simulate(devices=2) as gpu:
        hosts = [gpu.pinned_array((12, 96), np.uint8) for _ in contents]
        devices = [on(gpu, k, content * 0) for k, content in enumerate(contents)]
        stream, seen = gpu.stream(device=1), []
        for host, content in zip(hosts, contents, strict=True):
            gpu.library.enqueue(stream.handle, partial(np.copyto, host, content))
        transfer = ns.swap_blocks(hosts, devices, ROWS, stream=stream, policy=policy)
        gpu.library.enqueue(
            stream.handle, lambda: seen.extend(array._memory.copy() for array in devices)
        )
        assert not transfer.done()
        assert transfer.done()
        stream.synchronize()
        for found, content in zip(seen, contents, strict=True):
            assert np.array_equal(found[ROWS[:, 1]], content[ROWS[:, 0]])


def test_into_a_graph_they_go_in_one_stream(rng):
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    for access in (True, False):
        with ns.simulate(devices=2, peer_access=access) as gpu:
            hosts = [make_array(gpu, "pinned", content) for content in contents]
            devices = [on(gpu, k, content * 0) for k, content in enumerate(contents)]
            plan, stream = ns.plan_blocks(hosts, devices, ROWS), gpu.stream(device=1)
            replay = capture(gpu, stream, lambda: plan.run(stream=stream))  # noqa: B023
            replay()
            for array, content in zip(devices, contents, strict=True):
                found = array.copy_to_host()
                assert np.array_equal(found[ROWS[:, 1]], content[ROWS[:, 0]])


@pytest.mark.parametrize("mode", MODES)
def test_raw_pointers_of_every_sort_go_with_their_gpus(rng, mode):
    with ns.simulate(devices=2) as gpu:
        contents = [random_bytes(rng, 64 * 40) for _ in range(5)]
        arrays = [
            on(gpu, 0, contents[0]),
            on(gpu, 1, contents[1]),
            make_array(gpu, "pinned", contents[2]),
            on(gpu, 1, contents[3]),
            make_array(gpu, "managed", contents[4]),
        ]
        starts = [address_of(a) for a in arrays]
        count = 30
        which = rng.integers(0, 5, (count, 2))
        src = np.array([starts[i] + 64 * k for k, (i, _) in enumerate(which)])
        dst = np.array([starts[j] + 64 * k for k, (_, j) in enumerate(which)])
        want = [content.copy() for content in contents]
        kept = [k for k, (i, j) in enumerate(which) if i != j]
        for k in kept:
            i, j = which[k]
            want[j][64 * k : 64 * k + 64] = contents[i][64 * k : 64 * k + 64]
        transfer = ns.swap_blocks_batch(
            src[kept], dst[kept], [64] * len(kept), mode=mode, validate="full"
        )
        transfer.wait()
        gpu.synchronize()
        for array, content in zip(arrays, want, strict=True):
            found = array if isinstance(array, np.ndarray) else array.copy_to_host()
            assert np.array_equal(found, content)
        directions = {str(part.direction) for part in transfer.decision.parts}
        assert str(ns.Direction.P2P) in directions


@pytest.mark.parametrize("mode", MODES)
def test_faces_of_two_fields_both_ways(rng, mode):
    fields = [random_bytes(rng, (6, 7, 8), np.float32) for _ in range(2)]
    with ns.simulate(devices=2) as gpu:
        launched = []
        gpu.library.faults.watch(
            "cuLaunchKernel", lambda *_: launched.append(gpu.driver.current_device())
        )
        u, v = (on(gpu, k, field) for k, field in enumerate(fields))
        plan = ns.plan_many([(u[-2], v[0]), (v[1], u[-1])])
        transfer = plan.run(mode=mode)
        transfer.wait()
        want = [field.copy() for field in fields]
        want[1][0], want[0][-1] = fields[0][-2], fields[1][1]
        for array, content in zip((u, v), want, strict=True):
            assert array.copy_to_host().tobytes() == content.tobytes()
        assert [part.where[:6] for part in transfer.decision.parts] == ["1 to 0", "0 to 1"]
        if mode == "kernel":
            assert sorted(launched) == [0, 1]  # each reads what it needs
        for face, other in (
            ((slice(None), 0), (slice(None), -1)),
            ((..., slice(0, 1)), (..., slice(-1, None))),
        ):
            u.copy_to_device(fields[0])
            v.copy_to_device(fields[1])
            ns.copy_many([(u[other], v[face])], mode=mode).wait()
            want[1] = fields[1].copy()
            want[1][face] = fields[0][other]
            assert v.copy_to_host().tobytes() == want[1].tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["throughput", "latency"])
def test_an_exchange_with_a_pool_on_another_gpu(rng, mode, policy):
    pool, other = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    out_rows, in_rows = [[1, 4], [3, 0], [5, 9]], [[4, 1], [7, 3], [0, 8]]
    with ns.simulate(devices=2) as gpu:
        for k, host in ((0, "device"), (1, "device"), (1, "pinned")):
            device = on(gpu, k, pool)
            there = on(gpu, 1 - k, other) if host == "device" else make_array(gpu, host, other)
            transfer = ns.exchange(device, there, out_rows, in_rows, mode=mode, policy=policy)
            transfer.wait()
            want_pool, want_other = pool.copy(), other.copy()
            for i, j in out_rows:
                want_other[j] = pool[i]
            for i, j in in_rows:
                want_pool[j] = other[i]
            assert np.array_equal(device.copy_to_host(), want_pool)
            found = there.copy_to_host() if host == "device" else there
            assert np.array_equal(found, want_other)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", ["throughput", "latency"])
def test_an_exchange_of_layers_on_both(rng, mode, policy):
    pools = [random_bytes(rng, (12, 96)) for _ in range(2)]
    others = [random_bytes(rng, (12, 96)) for _ in range(2)]
    out_rows, in_rows = [[1, 4], [3, 0], [5, 9]], [[4, 1], [7, 3], [0, 8]]
    with ns.simulate(devices=2) as gpu:
        devices = [on(gpu, k, pool) for k, pool in enumerate(pools)]
        hosts = [make_array(gpu, "pinned", other) for other in others]
        transfer = ns.exchange(devices, hosts, out_rows, in_rows, mode=mode, policy=policy)
        transfer.wait()
        for pool, other, device, host in zip(pools, others, devices, hosts, strict=True):
            want_pool, want_other = pool.copy(), other.copy()
            for i, j in out_rows:
                want_other[j] = pool[i]
            for i, j in in_rows:
                want_pool[j] = other[i]
            assert np.array_equal(device.copy_to_host(), want_pool)
            assert np.array_equal(host, want_other)


# -- order, lifetimes, faults -------------------------------------------------------------------


@pytest.mark.parametrize("producer", [1, 2, "own"])
def test_what_is_pending_on_an_array_of_another_gpu_comes_first(rng, producer):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2) as gpu:
        src, dst = on(gpu, 0, content * 0), on(gpu, 1, target)
        stream = gpu.stream(non_blocking=True, device=0).handle if producer == "own" else producer
        interface = {**src.__cuda_array_interface__, "stream": stream}
        view = SimpleNamespace(__cuda_array_interface__=interface, keep=src)
        gpu.library.enqueue(stream, partial(np.copyto, src._memory, content), device=0)
        ns.swap_blocks(view, dst, ROWS, stream=gpu.stream(non_blocking=True, device=1)).wait()
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuEventRecord", "cuStreamWaitEvent"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_driver_that_fails_halfway_frees_nothing_too_early(rng, function, nth):
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    with ns.simulate(devices=2) as gpu:
        hosts = [make_array(gpu, "pinned", content) for content in contents]
        devices = [on(gpu, k, content * 0) for k, content in enumerate(contents)]
        ns.swap_blocks(hosts, devices, ROWS, mode="kernel").wait()
        for device, content in zip(devices, contents, strict=True):
            device.copy_to_device(content * 0)
        gpu.library.faults.add(Fault(function, 1, call=nth))
        try:
            ns.swap_blocks(hosts, devices, ROWS, mode="kernel").wait()
        except ns.DriverCallError as error:
            assert error.function == function  # noqa: PT017
        gpu.library.faults.clear()
        assert gpu.driver.probe(0)[0] == 0
        # What follows is ordered behind whatever was submitted.
        ns.swap_blocks(hosts, devices, ROWS, mode="loop").wait()
        for device, content in zip(devices, contents, strict=True):
            assert np.array_equal(device.copy_to_host()[ROWS[:, 1]], content[ROWS[:, 0]])
        gpu.synchronize()


def test_memory_is_kept_until_every_part_is_over(rng):
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    kept = len(pending()[1])
    with ns.simulate(devices=2) as gpu:
        hosts = [make_array(gpu, "pinned", content) for content in contents]
        devices = [on(gpu, k, content * 0) for k, content in enumerate(contents)]
        transfer = ns.swap_blocks(hosts, devices, ROWS)
        del hosts
        transfer.wait()
        for device, content in zip(devices, contents, strict=True):
            assert np.array_equal(device.copy_to_host()[ROWS[:, 1]], content[ROWS[:, 0]])
    assert len(pending()[1]) == kept


def test_warm_up_of_a_gpu(monkeypatch):
    with ns.simulate(devices=2) as gpu:
        ns.warm_up(device=1)
        devices = devices_of(gpu.driver)
        assert [set(devices[k].kernels) for k in (0, 1)] == [set(), {"copy", "box", "exchange"}]
        assert gpu.library.active_devices == {1}
        assert gpu.driver.probe(0)[0] == 0
        with in_context(gpu, 1):
            ns.warm_up(device=0)
        assert devices[0].kernels
        for bad in (2, -1, "1", True, 1.0):
            with pytest.raises(ns.BadArgumentError, match=r"device=.* is no GPU: .* 0 to 1"):
                ns.warm_up(device=bad)


# -- by way of the host -------------------------------------------------------------------------


@pytest.fixture
def small_pieces():
    """Pieces of four blocks, and a driver that takes very long for each copy between GPUs."""

    def change(gpu):
        for device in (devices_of(gpu.driver)[k] for k in (0, 1)):
            costs = find_costs(device)
            tuning = costs.tuning._replace(smallest_piece_bytes=400, staged_bytes=1000)
            routes = dict(costs.routes)
            routes["p2p"] = {
                mode: cost._replace(copy_us=(900.0,) * 4) for mode, cost in routes["p2p"].items()
            }
            use_costs(device, costs._replace(routes=routes, tuning=tuning))

    return change


@pytest.mark.parametrize("where", [None, 0, 1])
@pytest.mark.parametrize("direction", [(0, 1), (1, 0)])
def test_without_access_copies_are_staged_in_pinned_memory(rng, small_pieces, direction, where):
    content, target = random_bytes(rng, (60, 96)), random_bytes(rng, (60, 96))
    rows = np.stack([2 * rng.permutation(30), 2 * rng.permutation(30)], axis=1)
    source, destination = direction
    with ns.simulate(devices=2, peer_access=False) as gpu:
        small_pieces(gpu)
        src, dst = on(gpu, source, content), on(gpu, destination, target)
        plan = ns.plan_blocks(src, dst, rows)
        stream = None if where is None else gpu.stream(device=where)
        for _ in range(3):
            dst.copy_to_device(target)
            seen = []
            transfer = plan.run(stream)
            gpu.library.enqueue(
                0 if stream is None else stream.handle,
                lambda: seen.append(dst._memory.copy()),  # noqa: B023
                wait=True,
                device=destination,
            )
            assert np.array_equal(seen[0], swapped(content, target, rows))
            transfer.wait()
        decision = transfer.decision
        assert decision.direction is ns.Direction.P2P
        assert (decision.copies, decision.nbytes) == (30, 30 * 96)
        assert [part.direction for part in decision.parts] == [
            ns.Direction.D2H,
            ns.Direction.H2D,
        ]
        assert "staged in pinned memory" in str(plan.explain())
        assert "no peer access" in decision.table()
        assert gpu.driver.probe(0)[0] == 0
        # Only where nothing is forced, and never into a graph.
        assert plan.explain(mode="loop").parts == ()
        assert plan.explain(policy="latency").parts == ()
        own = gpu.stream(device=destination)
        capture(gpu, own, lambda: plan.run(own))()


def test_lengths_beyond_a_piece_are_staged_whole(rng, small_pieces):
    sizes = np.array([90, 1000, 8, 8, 390, 391, 1, 700])
    starts = np.concatenate([[0], np.cumsum(sizes + 5)[:-1]])
    content, target = random_bytes(rng, 4000), random_bytes(rng, 4000)
    with ns.simulate(devices=2, peer_access=False) as gpu:
        small_pieces(gpu)
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        transfer = ns.swap_blocks_batch(address_of(src) + starts, address_of(dst) + starts, sizes)
        transfer.wait()
        assert transfer.decision.parts
        longer = [address_of(array) for array in (src, dst)]
        assert not ns.swap_blocks_batch(longer[:1], longer[1:], [1001]).decision.parts
        want = target.copy()
        want[:1001] = content[:1001]
        for start, size in zip(starts, sizes, strict=True):
            want[start : start + size] = content[start : start + size]
        assert np.array_equal(dst.copy_to_host(), want)


def test_where_no_memory_can_be_pinned_nothing_is_staged(rng, small_pieces):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2, peer_access=False, pinned_limit=100) as gpu:
        small_pieces(gpu)
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        transfer = ns.swap_blocks(src, dst, ROWS)
        transfer.wait()
        assert transfer.decision.parts == ()
        assert np.array_equal(dst.copy_to_host(), swapped(content, target))


def test_what_the_driver_does_faster_it_does(rng):
    content, target = random_bytes(rng, (12, 96)), random_bytes(rng, (12, 96))
    with ns.simulate(devices=2, peer_access=False) as gpu:
        src, dst = on(gpu, 0, content), on(gpu, 1, target)
        decision = ns.swap_blocks(src, dst, [[0, 1]]).decision
        assert (decision.mode, decision.parts) == (ns.Mode.LOOP, ())
        many = ns.plan_blocks(
            *(gpu.device_array((20_000, 1024), np.uint8, device=k) for k in (0, 1)),
            np.stack([np.arange(0, 20_000, 2)] * 2, axis=1),
        )
        assert len(many.explain().parts) == 2


@pytest.mark.parametrize("mode", ["auto", "loop"])
def test_several_at_once_without_access(rng, small_pieces, mode):
    """Faces, and an exchange, of which a part alone would be staged."""
    fields = [random_bytes(rng, (6, 7, 8), np.float32) for _ in range(2)]
    with ns.simulate(devices=2, peer_access=False) as gpu:
        small_pieces(gpu)
        u, v = (on(gpu, k, field) for k, field in enumerate(fields))
        ns.copy_many([(u[-2], v[0]), (v[1], u[-1])], mode=mode).wait()
        want = [field.copy() for field in fields]
        want[1][0], want[0][-1] = fields[0][-2], fields[1][1]
        for array, content in zip((u, v), want, strict=True):
            assert array.copy_to_host().tobytes() == content.tobytes()
        ns.exchange(u, v, [[0, 5], [2, 3]], [[1, 0], [4, 2]], mode=mode).wait()
        after = [field.copy() for field in want]
        after[1][5], after[1][3] = want[0][0], want[0][2]
        after[0][0], after[0][2] = want[1][1], want[1][4]
        for array, content in zip((u, v), after, strict=True):
            assert array.copy_to_host().tobytes() == content.tobytes()


def test_streams_of_several_gpus_that_nothing_joins_are_waited_for(rng):
    """The user's stream could not be made to wait for them: their own ends tell."""
    contents = [random_bytes(rng, (12, 96)) for _ in range(2)]
    lost = 0
    for nth in range(1, 9):
        with ns.simulate(devices=2) as gpu, no_reaper() as dropped:
            hosts = [make_array(gpu, "pinned", content) for content in contents]
            devices = [on(gpu, k, content * 0) for k, content in enumerate(contents)]
            stream = gpu.stream(device=0)
            ns.swap_blocks(hosts, devices, ROWS[:1], stream=stream, mode="kernel").wait()
            gpu.library.faults.add(Fault("cuStreamWaitEvent", 1, call=nth))
            try:
                ns.swap_blocks(hosts, devices, ROWS, stream=stream, mode="kernel").wait()
            except ns.DriverCallError:
                (work,) = dropped
                gpu.library.faults.clear()
                work.wait_in_own_context()
                assert work.over
                whole = []
                for device, content in zip(devices, contents, strict=True):
                    found, wanted = device._memory[ROWS[:, 1]], content[ROWS[:, 0]]
                    new = (found == wanted).all(axis=1)
                    assert (new | (found == 0).all(axis=1)).all()
                    whole.append(new.all())
                lost += all(whole)  # at the join: all had been submitted
            gpu.library.faults.clear()
    assert lost
