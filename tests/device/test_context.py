"""What is kept for a context: used again, and given back whatever goes wrong."""

import weakref

import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver import abi
from numba_swap.driver.simulated import Fault


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def context(gpu):
    return devices_of(gpu.driver).context(gpu.driver.current_context())


def test_events_are_used_again(gpu, context):
    assert context.take_spare_event() == 0
    events = [context.take_event() for _ in range(2)]
    assert 0 not in events
    for event in events:
        context.give_event(event)
    assert {context.take_event(), context.take_spare_event()} == set(events)
    assert context.take_spare_event() == 0
    assert gpu.library.calls["cuEventCreate"] == 2


def test_calls_into_one_stream_share_a_lock_for_as_long_as_one_needs_it(context):
    lock = context.stream_lock(77)
    assert context.stream_lock(77) is lock
    assert context.stream_lock(78) is not lock
    died = weakref.ref(lock)
    del lock
    assert died() is None  # so locks do not pile up with the streams of a program
    by_names = context.stream_lock(0), context.stream_lock(abi.STREAM_LEGACY)
    assert by_names[0] is by_names[1]


def test_private_streams_of_each_key_are_kept(gpu, context):
    two = context.private_streams(2)
    assert len(set(two)) == 2
    assert context.private_streams(1) == two[:1]
    three = context.private_streams(3)
    assert three[:2] == two
    others = context.private_streams(2, "other")
    assert not {*others} & {*three}
    assert context.private_streams(2, "other") == others
    assert gpu.library.calls["cuStreamCreate"] == 5


def test_device_memory_is_used_again_for_as_much(gpu, context):
    first = context.take_buffer(5000)
    address = first.address
    assert context.take_buffer(5000).address != address
    before = gpu.library.calls["cuMemAlloc"]
    del first
    assert address in {context.take_buffer(8192).address, context.take_buffer(4097).address}
    assert gpu.library.calls["cuMemAlloc"] == before
    assert context.take_buffer(8193).address != address
    assert gpu.library.calls["cuMemAlloc"] == before + 1


@pytest.mark.parametrize("fails", [None, "cuEventRecord", "cuStreamWaitEvent"])
def test_an_event_comes_back_from_every_wait(gpu, context, fails):
    before, after = (gpu.stream(non_blocking=True).handle for _ in range(2))
    ran = []
    gpu.library.enqueue(before, lambda: ran.append("before"))
    if fails is None:
        context.wait_for(before, after)
        gpu.library.enqueue(after, lambda: ran.append("after"))
        gpu.library.synchronize_stream(after)
        assert ran == ["before", "after"]
    else:
        gpu.library.faults.add(Fault(fails, 1))
        with pytest.raises(ns.DriverCallError, match=fails):
            context.wait_for(before, after)
    assert context.take_spare_event()
    assert context.take_spare_event() == 0


def forked(gpu, context, stream, sides, inside, lost):
    with context.fork_join(stream, sides, lambda: lost.append(True)):
        for side in sides:
            gpu.library.enqueue(side, lambda side=side: inside.append(side))


@pytest.mark.parametrize("count", [1, 3])
def test_forked_work_runs_as_if_it_stood_in_the_stream(gpu, context, count):
    stream, sides = gpu.stream(non_blocking=True).handle, context.private_streams(count)
    ran, lost = [], []
    gpu.library.enqueue(stream, lambda: ran.append("first"))
    forked(gpu, context, stream, sides, ran, lost)
    gpu.library.enqueue(stream, lambda: ran.append("last"))
    gpu.library.synchronize_stream(stream)
    assert (ran[0], ran[-1], len(ran), lost) == ("first", "last", count + 2, [])
    events = 0
    while context.take_spare_event():
        events += 1
    assert gpu.library.calls["cuEventCreate"] == events


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_it_is_told_if_the_stream_cannot_be_made_to_wait(gpu, context, call):
    """Of four waits the first two fork, and the others join."""
    stream, sides = gpu.stream(non_blocking=True).handle, context.private_streams(2)
    ran, lost = [], []
    gpu.library.faults.add(Fault("cuStreamWaitEvent", 1, call=call))
    with pytest.raises(ns.DriverCallError, match="cuStreamWaitEvent"):
        forked(gpu, context, stream, sides, ran, lost)
    assert lost == ([] if call < 3 else [True])
    events = 0
    while context.take_spare_event():
        events += 1
    assert gpu.library.calls["cuEventCreate"] == events


@pytest.mark.parametrize("twice", [False, True])
def test_the_first_error_is_told_and_what_was_submitted_is_joined(gpu, context, twice):
    stream, (side,) = gpu.stream(non_blocking=True).handle, context.private_streams(1)
    ran, lost = [], []

    def work():
        with context.fork_join(stream, [side], lambda: lost.append(True)):
            gpu.library.enqueue(side, lambda: ran.append(side))
            if twice:
                gpu.library.faults.add(Fault("cuStreamWaitEvent", 1))
            raise MemoryError("the first")

    with pytest.raises(MemoryError, match="the first"):
        work()
    assert lost == [True] * twice
    gpu.library.synchronize_stream(stream)
    assert ran == ([] if twice else [side])
