"""Calls of several threads into one stream: each is one piece, and none waits without need."""

import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from machines import address_of

import numba_swap as ns
from numba_swap.driver import abi

BLOCKS, NBYTES = 8, 64
# Exchanged in place: a second run undoes the first, so half a run inside another is seen.
IN_PLACE = np.stack([np.arange(BLOCKS)] * 2, axis=1)[np.random.default_rng(2).permutation(BLOCKS)]
A_RING = np.stack([np.arange(BLOCKS), np.roll(np.arange(BLOCKS), 1)], axis=1)
ENQUEUING = [
    "cuMemcpyAsync",
    "cuMemcpyBatchAsync",
    "cuLaunchKernel",
    "cuEventRecord",
    "cuStreamWaitEvent",
]


@pytest.fixture
def gpu():
    ns.plan_cache.clear()
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


class Pools:
    """Two pools, and calls that exchange blocks between them, or copy some of them."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.device = gpu.device_array((BLOCKS, NBYTES), np.uint8)
        self.host = gpu.pinned_array((BLOCKS, NBYTES), np.uint8)
        self.fill(1, 2)
        self.plans = {
            "plan": ns.plan_exchange(self.device, self.host, IN_PLACE, IN_PLACE),
            "ring": ns.plan_exchange(self.device, self.host, A_RING, A_RING),
        }

    def fill(self, device, host):
        self.device.copy_to_device(np.full(self.device.shape, device, np.uint8))
        self.host[:] = host

    def values(self):
        """The one value that each pool is full of."""
        self.gpu.synchronize()
        return [np.unique(pool).tolist() for pool in (self.device.copy_to_host(), self.host)]

    def swap(self, stream, mode):
        rows = np.array([[0, 1], [3, 5], [6, 2]])
        return ns.swap_blocks(self.host, self.device, rows, stream=stream, mode=mode)

    def swap_pointers(self, stream):
        ends = [address_of(pool) + NBYTES * np.arange(0, 6, 2) for pool in (self.host, self.device)]
        return ns.swap_blocks_batch(*ends, [NBYTES] * 3, stream=stream, mode="loop")

    def call(self, what, stream, mode):
        if what in self.plans:
            return self.plans[what].run(stream, mode)
        return ns.exchange(self.device, self.host, IN_PLACE, IN_PLACE, stream=stream, mode=mode)


@contextmanager
def eager_switching():
    """Let Python go on to another thread whenever it may."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def watch_threads(gpu):
    """Return a list of which thread enqueues each piece; at each, another one may come first."""
    threads = []

    def note(*arguments):
        threads.append(threading.get_ident())
        time.sleep(1e-4)

    for function in ENQUEUING:
        gpu.library.faults.watch(function, note)
    return threads


def at_once(*works):
    """Run functions in threads that begin together."""
    barrier, errors = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait()
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "threads wait for one another for good"
    assert not errors


CALLS = [
    (("plan", "loop"), ("plan", "loop")),
    (("plan", "batch"), ("plan", "batch")),
    (("ring", "batch"), ("ring", "loop")),
    (("exchange", "batch"), ("exchange", "loop")),
    (("exchange", "kernel"), ("plan", "loop")),
    (("plan", "kernel"), ("exchange", "batch")),
]


@pytest.mark.parametrize(("one", "other"), CALLS)
@pytest.mark.parametrize("stream", ["own", "default"])
def test_each_call_into_one_stream_is_one_piece(gpu, tune, one, other, stream):
    tune(fewest_bytes_for_streams=1, fewest_copies_a_stream=2)
    pools, made, runs = Pools(gpu), gpu.stream(), 6
    # (The same stream, by different names.)
    names = [made, made.handle] if stream == "own" else [None, abi.STREAM_LEGACY]
    calls = [
        partial(pools.call, what, name, mode)
        for (what, mode), name in zip((one, other), names, strict=True)
    ]
    for call in calls:
        make_known(call)
    pools.fill(1, 2)
    threads, kept = watch_threads(gpu), []

    def work(call):
        for _ in range(runs):
            kept.append(call())

    with eager_switching():
        at_once(*(partial(work, call) for call in calls))
    assert sum(a != b for a, b in pairwise(threads)) < runs * len(calls)
    assert pools.values() == [[1], [2]]  # after an even number of runs
    for transfer in kept:
        transfer.wait()


class Gate:
    """Holds the first thread that calls a driver function in the midst of it, until let go."""

    def __init__(self, driver, function):
        self.held, self.open, self.first = threading.Event(), threading.Event(), threading.Lock()
        real = getattr(driver, f"_{function}")

        def gated(*arguments):
            if self.first.acquire(blocking=False):
                self.held.set()
                assert self.open.wait(60)
            return real(*arguments)

        setattr(driver, f"_{function}", gated)


@contextmanager
def held_in(gpu, function, call):
    """Let another thread make a call, and hold it in a driver function meanwhile."""
    gate = Gate(gpu.driver, function)
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        assert gate.held.wait(60)
        yield
    finally:
        gate.open.set()
        thread.join(60)
    assert not thread.is_alive()


def in_a_thread(call, seconds):
    """Make a call in a thread; whether it returned in time, and what waits until it has."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive(), thread.join


def make_known(call):
    """Repeat a call until the short way of repeated ones is known, and has all that it needs."""
    for transfer in [call() for _ in range(6)]:
        transfer.wait()


KINDS = {
    "repeated plan": lambda pools, stream: pools.plans["plan"].run(stream, "kernel"),
    "repeated exchange": lambda pools, stream: pools.call("exchange", stream, "kernel"),
    "repeated swap": lambda pools, stream: pools.swap(stream, "kernel"),
    "loop": lambda pools, stream: pools.swap(stream, "loop"),
    "batch": lambda pools, stream: pools.swap(stream, "batch"),
    "pointers": lambda pools, stream: pools.swap_pointers(stream),
    "exchange": lambda pools, stream: pools.call("exchange", stream, "batch"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", ["own", "default"])
def test_no_call_comes_between_the_pieces_of_another(gpu, kind, stream):
    pools, others, made = Pools(gpu), Pools(gpu), gpu.stream()
    one, other = (made, made.handle) if stream == "own" else (abi.STREAM_LEGACY, None)
    call = partial(KINDS[kind], others, other)
    make_known(call)
    calls = gpu.library.calls
    with held_in(gpu, "cuStreamWaitEvent", partial(pools.call, "plan", one, "loop")):
        before = {name: calls[name] for name in ENQUEUING}
        done, join = in_a_thread(call, 0.2)
        assert not done
        assert {name: calls[name] for name in ENQUEUING} == before
    join(60)
    gpu.synchronize()


@pytest.mark.parametrize("kind", KINDS)
def test_calls_into_other_streams_do_not_wait(gpu, kind):
    """Every thread's own default stream is another one."""
    pools, others, made = Pools(gpu), Pools(gpu), [gpu.stream() for _ in range(2)]
    per_thread = abi.STREAM_PER_THREAD
    for one, other in [(made[0], made[1]), (None, made[0]), (made[0], None), (per_thread,) * 2]:
        call = partial(KINDS[kind], others, other)
        make_known(call)
        with held_in(gpu, "cuStreamWaitEvent", partial(pools.call, "plan", one, "loop")):
            assert in_a_thread(call, 60)[0]
    gpu.synchronize()


@pytest.mark.parametrize(
    ("function", "what"),
    [("cuMemHostAlloc", "swap"), ("cuMemAlloc", "move"), ("cuMemAlloc", "ring")],
)
def test_nobody_waits_for_memory_that_another_call_takes(gpu, function, what):
    pools, others, stream = Pools(gpu), Pools(gpu), gpu.stream()
    calls = {
        "swap": lambda: pools.swap(stream, "kernel"),
        "move": lambda: ns.swap_blocks(
            pools.device, others.device, [[0, 1]], stream=stream, mode="kernel"
        ),
        "ring": lambda: pools.call("ring", stream, "loop"),
    }
    with held_in(gpu, function, calls[what]):
        assert in_a_thread(partial(others.swap, stream, "loop"), 60)[0]
    gpu.synchronize()


def test_a_call_from_within_a_call_does_not_wait_for_itself(gpu):
    """A signal handler, or a finalizer, may run anywhere."""
    pools, others, stream, inner = Pools(gpu), Pools(gpu), gpu.stream(), []

    def interrupt(*arguments):
        if not inner:
            inner.append(None)
            inner.append(others.swap(stream, "batch"))

    gpu.library.faults.watch("cuStreamWaitEvent", interrupt)
    at_once(partial(pools.call, "plan", stream, "loop"))
    inner[1].wait()


@pytest.mark.parametrize("kind", ["repeated plan", "loop", "exchange"])
def test_a_call_that_was_broken_off_holds_up_no_other(gpu, kind):
    pools, stream = Pools(gpu), gpu.stream()
    call = partial(KINDS[kind], pools, stream)
    make_known(call)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    names = ["record_event", "wait_event", "launch_kernel", "memcpy_loop", "memcpy_batch_async"]
    for name in names:
        setattr(gpu.driver, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        call()
    for name in names:
        delattr(gpu.driver, name)
    at_once(lambda: call().wait())
