"""What keeps memory alive, what waits for what, and what a failure leaves behind."""

import asyncio
import gc
import pickle
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
from machines import make_copies

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.device.devices import devices_of
from numba_swap.driver.simulated import Fault

MODES = ["batch", "loop", "kernel"]


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Holder:
    """An array-like whose death can be watched."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


@pytest.mark.parametrize("mode", MODES)
def test_arrays_live_until_the_wait_and_no_longer(gpu, mode):
    src, dst = Holder(gpu.device_array((4, 8))), gpu.pinned_array((4, 8))
    alive = weakref.ref(src)
    transfer = ns.swap_blocks(src, dst, [[0, 1]], mode=mode)
    del src
    gc.collect()
    assert alive() is not None
    transfer.wait()
    gc.collect()
    assert alive() is None
    transfer.wait()  # again is harmless


def test_dropped_transfers_are_released_without_another_call(gpu):
    src, dst = Holder(gpu.device_array((4, 8))), gpu.pinned_array((4, 8))
    alive = weakref.ref(src)
    ns.swap_blocks(src, dst, [[0, 1]])
    del src
    wait_until(lambda: alive() is None)
    assert not in_flight._unfinished


def test_done_does_not_wait(gpu):
    src, dst = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    transfer = ns.swap_blocks(src, dst, [[0, 1]])
    assert "in flight" in repr(transfer)
    assert not transfer.done()  # a simulated driver works when it is looked at
    assert transfer.done()
    assert "done" in repr(transfer)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("own_stream", [False, True])
def test_without_waiting_nothing_is_promised_with_waiting_all(gpu, mode, own_stream):
    """The simulated driver does nothing until something waits: returns really are early."""
    src, dst = gpu.pinned_array((4, 8)), gpu.pinned_array((4, 8))
    device = gpu.device_array((4, 8))
    src[:], dst[:] = 1.0, 2.0
    stream = gpu.stream() if own_stream else None
    ns.swap_blocks(src, device, [[0, 3]], stream=stream, mode=mode)
    transfer = ns.swap_blocks(device, dst, [[3, 1]], stream=stream, mode=mode)
    assert (dst == 2.0).all()
    transfer.wait()
    assert (dst[1] == 1.0).all()
    assert (dst[[0, 2, 3]] == 2.0).all()


@pytest.mark.parametrize("mode", MODES)
def test_work_on_the_arrays_own_stream_comes_first(gpu, mode):
    """`stream` of the array interface: the producer's work is waited for, on the GPU."""
    producer, stream = gpu.stream(), gpu.stream(non_blocking=True)
    array, dst = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    src = Holder(array)
    src.__cuda_array_interface__ = {**src.__cuda_array_interface__, "stream": producer.handle}
    filled = gpu.pinned_array((4, 8))
    filled[:] = 7.0
    array.copy_to_device(filled, stream=producer)
    ns.swap_blocks(src, dst, [[i, i] for i in range(4)], stream=stream, mode=mode).wait()
    assert (dst == 7.0).all()


def test_batch_on_the_legacy_stream_takes_a_private_one(gpu):
    src, device, dst = gpu.pinned_array((4, 8)), gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    src[:] = 3.0
    for stream in (None, 1):
        device.copy_to_device(np.zeros((4, 8)))
        pairs = [[i, 3 - i] for i in range(4)]
        ns.swap_blocks(src, device, pairs, stream=stream, mode="batch")
        # The very next work in the legacy stream sees it.
        ns.swap_blocks(device, dst, pairs, stream=0, mode="loop").wait()
        assert (dst == 3.0).all()
    assert gpu.driver.library.calls["cuStreamCreate"] == 1


def test_descriptors_are_not_reused_before_the_stream_has_passed(gpu):
    """Two launches in flight have two tables; afterwards the tables are used again."""
    src, device = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    src[:] = np.arange(8)[:, None]
    stream = gpu.stream()
    first = ns.swap_blocks(src, device, [[0, 1]], stream=stream, mode="kernel")
    second = ns.swap_blocks(src, device, [[2, 3]], stream=stream, mode="kernel")
    allocated = gpu.driver.library.calls["cuMemHostAlloc"]
    first.wait()
    second.wait()
    for _ in range(5):
        ns.swap_blocks(src, device, [[4, 5]], stream=stream, mode="kernel").wait()
    assert gpu.driver.library.calls["cuMemHostAlloc"] == allocated
    assert device.copy_to_host()[:, 0][[1, 3, 5]].tolist() == [0, 2, 4]


@pytest.mark.parametrize("mode", ["batch", "loop"])
def test_failure_names_the_copy_and_what_came_before(gpu, mode):
    """Free memory behind a plan's back: the driver finds copy 2 running past its allocation."""
    pieces = [gpu.pinned_array(64, np.uint8) for _ in range(4)]
    for i, piece in enumerate(pieces):
        piece[:] = i + 1
    device = gpu.device_array((4, 64), np.uint8)
    device.copy_to_device(np.zeros((4, 64), np.uint8))
    base = device.__cuda_array_interface__["data"][0]
    library = gpu.driver.library
    plan = ns.plan_blocks(pieces, [device[i] for i in (0, 2, 1, 3)], [[0, 0]] * 0)
    assert len(plan) == 0
    from numba_swap.swap.plans.plan import CopyPlan

    src = np.array([piece.ctypes.data for piece in pieces], np.uint64)
    dst = np.array([base, base + 64, base + 128, base + 192], np.uint64)
    sizes = np.array([64, 64, 1 << 20, 64], np.uint64)
    broken = CopyPlan(devices_of(gpu.driver), make_copies(dst, src, sizes))
    with pytest.raises(ns.DriverCallError) as caught:
        broken.run(mode=mode)
    error = caught.value
    assert error.code == 1
    assert error.name == "CUDA_ERROR_INVALID_VALUE"
    assert error.failing_index == 2
    assert "At fault is copy 2; the 2 copies before it were submitted" in str(error)
    assert f"[1] Call to {error.function} results in CUDA_ERROR_INVALID_VALUE at copy 2" in str(
        error
    )
    assert device.copy_to_host()[:, 0].tolist() == [1, 2, 0, 0]
    assert library.calls["cuMemcpyBatchAsync"] == (mode == "batch")  # and nothing was retried


def test_failed_submission_keeps_its_memory_until_it_is_over(gpu):
    src = Holder(gpu.device_array((4, 8)))
    dst = gpu.pinned_array((4, 8))
    alive = weakref.ref(src)
    plan = ns.plan_blocks(src, dst, [[0, 1], [2, 3]])
    gpu.driver.library.faults.add(Fault("cuMemcpyAsync", 2, call=2))
    with pytest.raises(ns.DriverCallError, match="OUT_OF_MEMORY at copy 1"):
        plan.run(mode="loop")
    del plan, src
    wait_until(lambda: alive() is None)


@pytest.mark.parametrize("again", ["plan", "arrays"])
def test_launched_but_not_recorded_keeps_its_memory(gpu, again):
    """Until an event can be recorded behind a launch, nobody knows when it is over."""
    src, dst = Holder(gpu.device_array((8, 64), np.uint8)), gpu.pinned_array((8, 64), np.uint8)
    alive, stream = weakref.ref(src), gpu.stream()
    rows = np.array([[0, 7], [2, 5], [4, 1]])
    plan = ns.plan_blocks(src, dst, rows)
    for _ in range(2):
        plan.run(stream).wait()
        ns.swap_blocks(src, dst, rows, stream=stream).wait()
    gpu.driver.library.faults.add(Fault("cuEventRecord", 2, times=None))
    calls = {"plan": plan.run, "arrays": partial(ns.swap_blocks, src, dst, rows)}
    with pytest.raises(ns.DriverCallError, match="cuEventRecord"):
        calls[again](stream=stream)
    del plan, src, calls
    gc.collect()
    assert alive() is not None
    gpu.driver.library.faults.clear()
    wait_until(lambda: alive() is None)


def test_an_index_that_the_driver_did_not_write_is_not_used(gpu):
    src, dst = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    gpu.driver.library.faults.add(Fault("cuMemcpyBatchAsync", 2))
    with pytest.raises(ns.DriverCallError) as caught:
        ns.swap_blocks(src, dst, [[0, 1]], mode="batch")
    assert caught.value.failing_index is None
    assert "is not known" in str(caught.value)


def test_failure_on_the_gpu_is_raised_at_every_wait(gpu):
    src, dst = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    transfer = ns.swap_blocks(src, dst, [[0, 1]])
    gpu.driver.library.faults.add(Fault("cuEventSynchronize", 700))
    for _ in range(2):
        with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS"):
            transfer.wait()
    with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS"):
        transfer.done()


def test_threads_share_one_driver(gpu):
    """Eight threads, own and shared streams, planning, running and waiting at once."""
    errors = []
    shared = gpu.stream()

    def work(number):
        try:
            rng = np.random.default_rng(number)
            own = gpu.stream()
            src = gpu.pinned_array((16, 64), np.uint8)
            dst = gpu.pinned_array((16, 64), np.uint8)
            device = gpu.device_array((16, 64), np.uint8)
            for i in range(12):
                src[:] = rng.integers(1, 255, src.shape)
                order = rng.permutation(16)
                pairs = np.stack([np.arange(16), order], axis=1)
                stream = shared if i % 2 else own
                mode = MODES[(number + i) % 2]  # Numba's simulator runs one kernel at a time
                ns.swap_blocks(src, device, pairs, stream=stream, mode=mode)
                ns.swap_blocks(device, dst, pairs[:, ::-1], stream=stream, mode=mode).wait()
                assert np.array_equal(src, dst)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_default_driver_is_made_once(monkeypatch):
    """Threads that come first together get one driver, resolved once."""
    from numba_swap.driver import current, library
    from numba_swap.driver.simulated import SimulatedLibrary

    made = []

    class SlowLibrary(SimulatedLibrary):
        def __init__(self):
            time.sleep(0.05)
            made.append(self)
            super().__init__()

    monkeypatch.setattr(library, "NvidiaLibrary", SlowLibrary)
    monkeypatch.setattr(current, "_default", None)
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(current.default_driver())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(set(map(id, got))) == 1


def test_interpreter_ends_well_with_transfers_in_flight():
    code = """
import numpy as np, numba_swap as ns
simulation = ns.simulate()
gpu = simulation.__enter__()
src, dst = gpu.pinned_array((64, 4096), np.uint8), gpu.device_array((64, 4096), np.uint8)
kept = [ns.swap_blocks(src, dst, [[i, 63 - i]]) for i in range(8)]
for i in range(8):
    ns.swap_blocks(src, dst, [[i, 31 - i]])
print("end")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "end\n", "")


@pytest.mark.parametrize("most", [1, 3, 128])
def test_batch_is_called_in_chunks_over_several_streams(gpu, most, rng):
    """Whatever the chunk, every byte arrives, in the user's stream order."""
    rows, nbytes = 40, 1 << 16
    src, device = (
        gpu.pinned_array((2 * rows, nbytes), "u1"),
        gpu.device_array((2 * rows, nbytes), "u1"),
    )
    back = gpu.pinned_array((2 * rows, nbytes), np.uint8)
    src[:] = rng.integers(0, 256, src.shape)
    mapping = 2 * np.stack([rng.permutation(rows), rng.permutation(rows)], axis=1)
    stream = gpu.stream()
    with ns.override(batch_descriptors=most):
        ns.swap_blocks(src, device, mapping, stream=stream, mode="batch")
        ns.swap_blocks(device, back, mapping[:, ::-1], stream=stream, mode="batch").wait()
    assert np.array_equal(back[::2], src[::2])
    calls = gpu.driver.library.calls
    assert calls["cuMemcpyBatchAsync"] == 2 * -(-rows // min(most, rows // 8))
    assert calls["cuStreamCreate"] == 8


def test_failing_index_counts_over_chunks(gpu):
    from numba_swap.swap.plans.plan import CopyPlan

    pinned, device = gpu.pinned_array(64, np.uint8), gpu.device_array((10, 64), np.uint8)
    device.copy_to_device(np.zeros((10, 64), np.uint8))
    pinned[:] = 1
    dst = device.__cuda_array_interface__["data"][0] + 64 * np.arange(10, dtype=np.uint64)
    sizes = np.full(10, 64, np.uint64)
    sizes[7] = 1 << 20
    src = np.full(10, pinned.ctypes.data, np.uint64)
    gpu.driver.current_context()
    plan = CopyPlan(devices_of(gpu.driver), make_copies(dst, src, sizes))
    with ns.override(batch_descriptors=3), pytest.raises(ns.DriverCallError) as caught:
        plan.run(mode="batch", stream=gpu.stream())
    assert caught.value.failing_index == 7
    assert device.copy_to_host()[:, 0].tolist() == [1] * 7 + [0] * 3


def test_repeated_run_sees_every_change(gpu):
    """The short way of a repeated launch is left as soon as anything is not as before."""
    src, device = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    plan = ns.plan_blocks(src, device, [[0, 7], [2, 5], [4, 1]])
    stream, other = gpu.stream(), gpu.stream()
    library = gpu.driver.library
    for _ in range(3):
        assert plan.run(stream).decision.mode == "kernel"
    assert plan.run(other).decision.mode == "kernel"
    assert plan.run(stream, "loop").decision.mode == "loop"
    with ns.override(mode="loop"):
        assert plan.run(stream).decision.mode == "loop"
    with ns.override(driver_version=(11, 8)):
        assert plan.run(stream).decision.driver_version == (11, 8)
    plan.run(stream).wait()
    library.begin_capture(stream.handle)
    captured = plan.run(stream)
    assert len(library.end_capture(stream.handle).nodes) == 1
    with pytest.raises(ns.CapturedTransferError):
        captured.wait()
    src[:] = 9
    plan.run(stream).wait()
    assert (device.copy_to_host()[[7, 5, 1]] == 9).all()
    with pytest.raises(ValueError, match="max_blocks=0"):
        plan.run(stream, max_blocks=0)


def test_descriptors_staged_on_the_device_are_right_in_every_stream(gpu, rng):
    """Within a device the kernel reads descriptors from device memory, staged once."""
    src, dst = (gpu.device_array((64, 64), np.uint8) for _ in range(2))
    content = rng.integers(0, 256, (64, 64), dtype=np.uint8)
    mapping = 2 * np.stack([rng.permutation(32), rng.permutation(32)], axis=1)
    plan = ns.plan_blocks(src, dst, mapping)
    streams = [gpu.stream(non_blocking=True) for _ in range(3)]
    copies = gpu.driver.library.calls
    for round_number in range(2):
        for stream in streams:
            src.copy_to_device(content)
            dst.copy_to_device(np.zeros_like(content))
            before = copies["cuMemcpyAsync"]
            plan.run(stream, "kernel").wait()
            assert np.array_equal(dst.copy_to_host()[mapping[:, 1]], content[mapping[:, 0]])
            staged = copies["cuMemcpyAsync"] - before
            assert staged == (round_number == 0 and stream is streams[0])


def test_a_question_that_fails_says_nothing_about_the_work(gpu):
    """Only errors that break the context release what is in flight."""
    src, dst = Holder(gpu.device_array((4, 8))), gpu.pinned_array((4, 8))
    alive = weakref.ref(src)
    transfer = ns.swap_blocks(src, dst, [[0, 1]])
    del src
    gpu.driver.library.faults.add(Fault("cuEventQuery", 800))
    with pytest.raises(ns.DriverCallError, match=r"\[800\]"):
        transfer.done()
    gc.collect()
    assert alive() is not None
    transfer.wait()
    assert transfer.done()
    gc.collect()
    assert alive() is None


def test_an_exception_of_any_kind_leaves_nothing_behind(gpu, monkeypatch):
    from numba_swap.modes import kernel

    src, dst = Holder(gpu.device_array((8, 8))), gpu.pinned_array((8, 8))
    alive = weakref.ref(src)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel, "submit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ns.swap_blocks(src, dst, [[0, 1], [2, 3], [4, 6]])
    del src
    wait_until(lambda: alive() is None)


def test_one_plan_first_run_by_many_threads_at_once(gpu, rng):
    """All must use, and hold, the same table of descriptors."""
    from numba_swap.modes.kernel import launch as kernel

    prepare, prepared = kernel._prepare, []

    def slow(*arguments):
        launch = prepare(*arguments)
        time.sleep(0.02)
        prepared.append(None)  # counted, not held
        return launch

    src, dst = gpu.pinned_array((64, 64), np.uint8), gpu.pinned_array((64, 64), np.uint8)
    device = gpu.device_array((64, 64), np.uint8)
    src[:] = rng.integers(0, 256, src.shape)
    there = ns.plan_blocks(
        [src[:32], src[32:]], [device[:32], device[32:]], [[0, 5], [7, 1], [9, 3]]
    )
    streams, transfers = [gpu.stream() for _ in range(6)], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_prepare", slow)
        threads = [
            threading.Thread(target=lambda s=s: transfers.append(there.run(s, "kernel")))
            for s in streams
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    launches = [x for x in there.copies.memo.values() if isinstance(x, kernel.Launch)]
    assert len(launches) == 1
    assert len(prepared) > 1  # several threads did get there at once
    ns.plan_blocks(dst, device, [[0, 40], [2, 42], [4, 44]]).run(mode="kernel").wait()
    for transfer in transfers:
        transfer.wait()
    got = device.copy_to_host()
    for half in (0, 32):
        for i, j in ((0, 5), (7, 1), (9, 3)):
            assert (got[half + j] == src[half + i]).all()


def test_a_producer_stream_in_a_capture_is_refused(gpu):
    producer = gpu.stream()
    array, dst = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    src = Holder(array)
    src.__cuda_array_interface__ = {**src.__cuda_array_interface__, "stream": producer.handle}
    plan = ns.plan_blocks(src, dst, [[0, 1], [2, 3]])
    library = gpu.driver.library
    library.begin_capture(producer.handle)
    with pytest.raises(ns.CapturedTransferError, match="own stream"):
        plan.run(gpu.stream())
    library.end_capture(producer.handle)
    plan.run(gpu.stream()).wait()


def test_an_illegal_access_of_a_simulated_kernel_is_told():
    with ns.simulate() as gpu:
        src, dst = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
        transfer = ns.swap_blocks(src, dst, [[0, 1], [2, 4], [5, 7]], mode="kernel")
        gpu.driver.library.free(dst.__cuda_array_interface__["data"][0])
        with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS"):
            transfer.wait()


def test_a_thread_gets_back_the_context_that_it_had(gpu):
    """Also none: no context of a device that nobody uses is made on the way."""
    driver, seen = gpu.driver, []
    context = driver.current_context()

    def work():
        with driver.activate(context):
            seen.append(driver.probe(0)[0])
        seen.append(driver.probe(0)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [context, 0]


def test_errors_survive_a_process_pool():
    for error in (
        ns.DriverCallError("cuX", 1, "CUDA_ERROR_INVALID_VALUE", 3, "note"),
        ns.ModeUnavailableError("batch", "no"),
        ns.BadPlanError("bad"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)


# -- order between streams, and being told of the end -------------------------------------------


def two_streams(gpu):
    return gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)


def test_a_stream_waits_for_a_transfer_and_the_host_does_not(gpu):
    """The simulated driver does nothing that is not ordered: without `wait_on`, old data."""
    src, device, dst = (gpu.pinned_array((4, 8)), gpu.device_array((4, 8)), gpu.pinned_array(8))
    src[:], dst[:] = 3.0, 0.0
    copies, compute = two_streams(gpu)
    for ordered in (False, True):
        device.copy_to_device(np.zeros((4, 8)))
        transfer = ns.swap_blocks(src, device, [[1, 2]], stream=copies)
        if ordered:
            transfer.wait_on(compute)
        ns.copy(device[2], dst, stream=compute)
        compute.synchronize()
        assert (dst == (3.0 if ordered else 0.0)).all()
        transfer.wait()


VERBS = {
    "swap_blocks": lambda dev, out, **o: ns.swap_blocks(dev, out, [[2, 0]], **o),
    "pointers": lambda dev, out, **o: ns.swap_blocks_batch(
        [dev[2].__cuda_array_interface__["data"][0]], [out.ctypes.data], [64], **o
    ),
    "copy": lambda dev, out, **o: ns.copy(dev[2], out[0], **o),
    "copy_many": lambda dev, out, **o: ns.copy_many([(dev[2], out[0])], **o),
    "copy_boxes": lambda dev, out, **o: ns.copy_boxes(dev, out, [[2, 0]], [[0, 0]], (8,), **o),
    "exchange": lambda dev, out, **o: ns.exchange(dev, out, [[2, 0]], [[1, 3]], **o),
    "gather": lambda dev, out, **o: ns.gather(dev, [2], out, **o),
    "scatter": lambda dev, out, **o: ns.scatter(dev, out, [0], slots=[2], **o),
    "plan": lambda dev, out, **o: ns.plan_blocks(dev, out, [[2, 0]]).run(**o),
    "planned exchange": lambda dev, out, **o: ns.plan_exchange(dev, out, [[2, 0]], [[1, 3]]).run(
        **o
    ),
}


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_comes_after_what_it_is_told_to(gpu, verb, default):
    src, device, out = gpu.pinned_array((4, 8)), gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
    src[:], out[:] = 3.0, 0.0
    copies, compute = two_streams(gpu)
    compute = None if default else compute
    device.copy_to_device(np.zeros((4, 8)))
    # Twice: the second call may take the short way.
    for value in (3.0, 4.0):
        src[:] = value
        transfer = ns.swap_blocks(src, device, [[1, 2]], stream=copies)
        VERBS[verb](device, out, stream=compute, after=[transfer]).wait()
        assert (out[0] == value).all()
        VERBS[verb](device, out, stream=compute, after=transfer).wait()


def test_what_comes_after_must_be_transfers(gpu):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    for wrong in (3, [3], ["transfer"]):
        with pytest.raises(ns.BadArgumentError, match="no Transfer"):
            ns.swap_blocks(src, device, [[0, 0]], after=wrong)
    ns.swap_blocks(src, device, [[0, 0]], after=[]).wait()


def test_a_captured_stream_does_not_wait_for_what_is_outside(gpu):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    copies, compute = two_streams(gpu)
    transfer = ns.swap_blocks(src, device, [[0, 0]], stream=copies)
    gpu.library.begin_capture(compute.handle)
    with pytest.raises(ns.CapturedTransferError, match="before the capture"):
        transfer.wait_on(compute)
    captured = ns.swap_blocks(src, device, [[1, 1]], stream=compute, mode="kernel")
    gpu.library.end_capture(compute.handle)  # it was not lost
    for ask in (captured.wait_on, captured.add_done_callback):
        with pytest.raises(ns.CapturedTransferError):
            ask(copies)
    transfer.wait()
    transfer.wait_on(compute)  # nothing is left to wait for


def test_a_wait_ends_when_its_time_is_over(gpu, monkeypatch):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    transfer = ns.swap_blocks(src, device, [[0, 0]])
    with monkeypatch.context() as patch:
        patch.setattr(gpu.driver, "event_done", lambda event: False)
        start = time.monotonic()
        with pytest.raises(ns.TransferTimeoutError, match=r"not over after 0\.02 s") as caught:
            transfer.wait(timeout=0.02)
        assert time.monotonic() - start >= 0.02
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(ns.TransferTimeoutError):
            ns.wait_all([transfer], timeout=0.01)
    transfer.wait(timeout=10)
    for wrong in (-1, "soon", True):
        with pytest.raises(ns.BadArgumentError, match="timeout"):
            transfer.wait(timeout=wrong)


def test_all_are_waited_for_even_if_one_fails(gpu):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    transfers = [ns.swap_blocks(src, device, [[i, i]]) for i in range(3)]
    gpu.library.faults.add(Fault("cuEventSynchronize", 1))
    with pytest.raises(ns.DriverCallError):
        ns.wait_all(transfers)
    assert [transfer._work.over for transfer in transfers] == [False, True, True]
    ns.wait_all(iter(transfers))
    with pytest.raises(ns.BadArgumentError, match="transfers holds 3"):
        ns.wait_all([3])


def test_callbacks_are_called_once_when_it_is_over(gpu, caplog):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    told = []
    transfer = ns.swap_blocks(src, device, [[0, 0]])
    transfer.add_done_callback(lambda some: told.append((some, some.done())))
    transfer.add_done_callback(lambda some: 1 / 0)
    wait_until(lambda: told and "ZeroDivisionError" in caplog.text)
    assert told == [(transfer, True)]
    transfer.add_done_callback(told.append)  # at once
    assert told[1:] == [transfer]


def test_a_callback_is_told_of_a_failure_too(gpu):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    transfer = ns.swap_blocks(src, device, [[0, 0]])
    gpu.library.faults.add(Fault("cuEventQuery", 700, times=None))
    told = threading.Event()
    transfer.add_done_callback(lambda some: told.set())
    assert told.wait(10)
    gpu.library.faults.clear()
    with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS"):
        transfer.wait()


def test_a_coroutine_waits_for_a_transfer(gpu):
    src, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))

    async def run():
        transfer = ns.swap_blocks(src, device, [[0, 0]])
        await transfer
        assert transfer._work.over
        await transfer  # again is harmless
        failing = ns.swap_blocks(src, device, [[0, 0]])
        gpu.library.faults.add(Fault("cuEventQuery", 700, times=None))
        with pytest.raises(ns.DriverCallError):
            await failing
        gpu.library.faults.clear()

    asyncio.run(run())
