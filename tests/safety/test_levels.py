"""After a failure of any driver call all is as it was: nothing is kept, and nothing is lost.

Every verb is called in every mode, again and again, and each time another one of the driver calls
that it makes fails: once, or from there on. When the fault is over and the device idle, as much
must be there as before, and the next call must find it.
"""

import dataclasses
import gc
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from ctypes import byref, c_int, c_void_p

import numpy as np
import pytest
from machines import address_of, no_reaper

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.driver import abi
from numba_swap.driver.simulated import Fault

INVALID_VALUE, OUT_OF_MEMORY = 1, 2
ROWS = 2 * np.stack([np.arange(8), np.arange(8)[::-1]], axis=1)
A_RING = np.stack([np.arange(8), np.roll(np.arange(8), 1)], axis=1)
NBYTES = 64
# What gives the calling thread its context and its capture mode back: tried twice, no more.
RESTORING = {"cuCtxSetCurrent", "cuThreadExchangeStreamCaptureMode"}


class Produced:
    """An array with work pending on it, in the calling thread's own default stream."""

    def __init__(self, array):
        self.array = array
        interface = array.__cuda_array_interface__
        self.__cuda_array_interface__ = {**interface, "stream": abi.STREAM_PER_THREAD}


class Arrays:
    """A pool on the host and two on the device, and calls that copy between them."""

    def __init__(self, gpu, *, pageable=False):
        shape = 16, NBYTES
        self.host = np.empty(shape, np.uint8) if pageable else gpu.pinned_array(shape, np.uint8)
        self.device, self.other = (gpu.device_array(shape, np.uint8) for _ in range(2))
        self.plans = {}

    def watched(self):
        return [weakref.ref(array) for array in (self.host, self.device, self.other)]

    def swap(self, **how):
        return ns.swap_blocks(self.host, self.device, ROWS, **how)

    def swap_produced(self, **how):
        return ns.swap_blocks(Produced(self.device), self.host, ROWS, **how)

    def swap_within(self, **how):
        return ns.swap_blocks(self.device, self.other, ROWS, **how)

    def swap_layers(self, **how):
        halves = slice(0, NBYTES // 2), slice(NBYTES // 2, None)
        src, dst = ([array[:, half] for half in halves] for array in (self.host, self.device))
        return ns.swap_blocks(src, dst, ROWS, **how)

    def pointers(self, **how):
        src, dst = (address_of(array) + NBYTES * ROWS[:, 0] for array in (self.host, self.device))
        return ns.swap_blocks_batch(src, dst, np.full(len(src), NBYTES), **how)

    def pointers_both_ways(self, **how):
        ends = [address_of(array) + NBYTES * ROWS[:, 0] for array in (self.host, self.device)]
        src, dst = np.concatenate(ends), np.concatenate(ends[::-1]) + NBYTES
        return ns.swap_blocks_batch(src, dst, np.full(len(src), NBYTES), **how)

    def plan(self, **how):
        return self._planned(ns.plan_blocks, self.device, self.host, ROWS).run(**how)

    def plan_within(self, **how):
        return self._planned(ns.plan_blocks, self.device, self.other, ROWS).run(**how)

    def exchange(self, **how):
        return ns.exchange(self.device, self.host, ROWS, ROWS + 1, **how)

    def exchange_in_place(self, **how):
        return ns.exchange(self.device, self.host, ROWS, ROWS[:, ::-1], **how)

    def plan_of_a_ring(self, **how):
        return self._planned(ns.plan_exchange, self.device, self.host, A_RING, A_RING).run(**how)

    def _planned(self, make, *arguments):
        if make not in self.plans:
            self.plans[make] = make(*arguments)
        return self.plans[make]


VERBS = [name for name in vars(Arrays) if not name.startswith("_") and name != "watched"]


@contextmanager
def simulated():
    ns.plan_cache.clear()
    in_flight._kept.clear()  # what other tests have captured
    with no_reaper(), ns.simulate() as gpu:
        gpu.driver.initialize()
        yield gpu
    ns.plan_cache.clear()


def settle(gpu):
    """Let the device be idle, and the package know of it: nothing is in flight, or kept."""
    gpu.library.synchronize()
    for work in in_flight.pending()[0]:
        work.wait_in_own_context()
    assert in_flight.pending() == ([], [])


def call(arrays, verb, end, how):
    """Call a verb, and see to the transfer; return the error in words, which keep nothing alive."""
    try:
        transfer = getattr(arrays, verb)(**how)
        if end == "wait":
            transfer.wait()
        while end == "poll" and not transfer.done():
            pass
    except ns.DriverCallError as error:
        return str(error)
    return None


def faults_of(calls):
    """Yield faults of each call that was counted: of that one alone, and of all from there on."""
    for function, count in sorted(calls.items()):
        for number in range(1, count + 1):
            for times in (1, None):
                yield Fault(function, OUT_OF_MEMORY, call=number, times=times)


def thread_state(gpu):
    """The calling thread's context, and whether captures of other threads bind it."""
    driver, library, place = gpu.driver, gpu.library, c_void_p()
    stream = library.create_stream()
    with driver.activate(driver.primary_context(0)):
        library.begin_capture(stream)
        bound = driver._cuMemHostAlloc(byref(place), 64, 0) != 0
        with suppress(ns.DriverCallError):  # that attempt may have ended it
            library.end_capture(stream)
    library.destroy_stream(stream)
    return driver.probe(0)[0], bound


def restore_thread(gpu):
    gpu.driver._cuCtxSetCurrent(None)
    gpu.driver._cuThreadExchangeStreamCaptureMode(byref(c_int(0)))


@pytest.mark.parametrize("again", [False, True], ids=["other-arrays", "same-arrays"])
@pytest.mark.parametrize(
    ("verb", "mode", "pageable", "stream", "end"),
    [
        *((verb, "loop", False, "own", "wait") for verb in VERBS),
        *((verb, "batch", True, None, "drop") for verb in VERBS),
        *((verb, "batch", False, abi.STREAM_PER_THREAD, "poll") for verb in VERBS),
        *((verb, "kernel", False, None, "wait") for verb in VERBS),
        *((verb, "staged", True, "own", "drop") for verb in ("swap", "swap_produced", "plan")),
        ("swap_produced", "staged", True, None, "wait"),
    ],
)
def test_all_comes_back_to_the_level_before(verb, mode, pageable, stream, end, again, tune):
    # (Simulated device memory may lie in the very range of ordinary memory that a pointer is in.)
    pageable = pageable and not verb.startswith("pointers")
    with simulated() as gpu:
        tune(fewest_bytes_of_a_direction=1, fewest_bytes_for_streams=1, fewest_copies_a_stream=2)
        tune(ring_piece_bytes=128, ring_smallest_bytes=64, ring_pieces=2)  # four pieces
        how = {"stream": gpu.stream() if stream == "own" else stream, "mode": mode}
        library, faults, kept = gpu.library, gpu.library.faults, Arrays(gpu, pageable=pageable)

        def run():
            """Make one call, and let it end; return its error, and what its arrays were."""
            arrays = kept if again else Arrays(gpu, pageable=pageable)
            error, watched = call(arrays, verb, end, how), arrays.watched()
            faults.clear()
            settle(gpu)
            return error, watched

        for _ in range(4):  # until nothing is made anew
            before = library.calls.copy()
            assert run()[0] is None
        calls = library.calls - before
        level, thread = library.live(), thread_state(gpu)
        for fault in faults_of(calls):
            faults.add(fault)
            _, watched = run()
            if not again and any(ref() is not None for ref in watched):
                gc.collect()  # an error and the frames that it went through
            assert library.live() == level, fault
            if fault.times == 1 or fault.function not in RESTORING:
                assert thread_state(gpu) == thread, fault
            restore_thread(gpu)
            assert run()[0] is None
            assert library.live() == level, (fault, "the next call")


@pytest.mark.parametrize("mode", ["batch", "kernel"])
@pytest.mark.parametrize("verb", ["swap", "swap_within", "exchange_in_place"])
def test_what_fails_at_the_very_first_call_is_made_later(verb, mode):
    """Contexts, streams, events and memory are made once, however often that was tried."""

    def run_fresh(fault=None):
        with simulated() as gpu:
            arrays = Arrays(gpu)
            if fault is not None:
                gpu.library.faults.add(fault)
                call(arrays, verb, "wait", {"mode": mode})
                gpu.library.faults.clear()
                settle(gpu)
                restore_thread(gpu)
            before = gpu.library.calls.copy()
            assert call(arrays, verb, "wait", {"mode": mode}) is None
            settle(gpu)
            return gpu.library.live(), gpu.library.calls - before

    level, calls = run_fresh()
    for fault in faults_of(calls):
        if fault.function == "cuModuleLoadData":
            continue  # a kernel that cannot be loaded is not tried again: test_loading.py
        if fault.function == "cuMemHostAlloc":
            # Where none is left the driver is not asked again at once: test_no_pinned_memory.py.
            fault = dataclasses.replace(fault, code=INVALID_VALUE)
        assert run_fresh(fault)[0] == level, fault


@pytest.mark.parametrize("function", ["cuEventRecord", "cuEventSynchronize", "cuCtxSetCurrent"])
def test_the_library_asks_again_until_the_driver_can_tell(function):
    """Nobody waits for what has failed, or was dropped: a thread of the library does."""
    with ns.simulate() as gpu:
        arrays = Arrays(gpu)
        watched, stream, faults = arrays.watched(), gpu.stream(), gpu.library.faults
        faults.add(Fault(function, OUT_OF_MEMORY, times=None))
        assert (call(arrays, "swap", "drop", {"stream": stream, "mode": "loop"}) is None) == (
            function == "cuEventSynchronize"
        )
        del arrays
        time.sleep(0.2)
        faults.clear()
        end = time.monotonic() + 10
        while in_flight.pending()[0] or any(ref() is not None for ref in watched):
            assert time.monotonic() < end, "it is still kept"
            gc.collect()
            time.sleep(0.01)


@pytest.mark.parametrize("stream", ["own", None, abi.STREAM_PER_THREAD])
@pytest.mark.parametrize(("verb", "mode"), [("swap", "batch"), ("exchange_in_place", "loop")])
def test_nothing_is_released_before_it_is_over(verb, mode, stream, tune):
    """What a failure left in flight is waited for in another thread, as the library does."""
    with simulated() as gpu:
        tune(fewest_bytes_for_streams=1, fewest_copies_a_stream=2)
        library, arrays = gpu.library, Arrays(gpu)
        how = {"stream": gpu.stream(non_blocking=True) if stream == "own" else stream, "mode": mode}
        for _ in range(2):
            before = library.calls.copy()
            assert call(arrays, verb, "drop", how) is None
            calls = library.calls - before
            settle(gpu)
        for fault in faults_of(calls):
            arrays.host[:] = np.random.default_rng(1).integers(0, 256, arrays.host.shape)
            arrays.device.copy_to_device(np.zeros(arrays.device.shape, np.uint8))
            library.faults.add(fault)
            call(arrays, verb, "drop", how)
            library.faults.clear()
            waiter = threading.Thread(target=finish, args=in_flight.pending()[:1])
            waiter.start()
            waiter.join()
            assert in_flight.pending() == ([], [])
            pools = arrays.host, arrays.device._memory
            now = [pool.copy() for pool in pools]
            library.synchronize()
            assert all(map(np.array_equal, pools, now)), fault
            restore_thread(gpu)


def finish(works):
    for work in works:
        work.wait_in_own_context()


@pytest.mark.parametrize(
    ("verb", "mode"), [("swap", "kernel"), ("swap", "loop"), ("plan_of_a_ring", "loop")]
)
def test_a_failed_capture_keeps_only_what_was_captured(verb, mode):
    """A graph may replay for ever what went into it; of what did not, nothing is kept."""
    with simulated() as gpu:
        arrays, stream, library = Arrays(gpu), gpu.stream(), gpu.library
        how = {"stream": stream, "mode": mode}
        call(arrays, verb, "wait", how)
        before = library.calls.copy()
        library.begin_capture(stream.handle)
        assert call(arrays, verb, "drop", how) is None
        library.end_capture(stream.handle)
        calls = library.calls - before
        assert len(in_flight.pending()[1]) == 1
        for fault in faults_of(calls):
            in_flight._kept.clear()
            library.begin_capture(stream.handle)
            library.faults.add(fault)
            error = call(arrays, verb, "drop", how)
            library.faults.clear()
            graph = library.end_capture(stream.handle)
            assert in_flight.pending()[0] == []
            assert len(in_flight.pending()[1]) == (error is None or len(graph.nodes) > 0), fault
            restore_thread(gpu)
        in_flight._kept.clear()
