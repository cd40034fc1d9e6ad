"""Swaps while another stream is being captured: none ends that capture, and none is torn by it."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

import numba_swap as ns

MODES = ["auto", "batch", "loop", "kernel"]
ROWS = np.array([[0, 6], [2, 3], [5, 1]])


@pytest.fixture(autouse=True)
def _fresh_cache():
    ns.plan_cache.clear()


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


class Pools:
    """A pool on the host and one on the device, and a swap by each verb."""

    def __init__(self, gpu):
        self.gpu = gpu
        self.host = gpu.pinned_array((8, 64), np.uint8)
        self.device = gpu.device_array((8, 64), np.uint8)
        self.host[:] = 1 + np.arange(8)[:, None]
        self.device.copy_to_device(0)
        self.plan = ns.plan_blocks(self.host, self.device, ROWS)
        self.exchange = ns.plan_exchange(self.device, self.host, ROWS[:0], ROWS)
        src = self.host.ctypes.data + 64 * ROWS[:, 0]
        dst = self.device.__cuda_array_interface__["data"][0] + 64 * ROWS[:, 1]
        self.verbs = {
            "swap_blocks": lambda **how: ns.swap_blocks(self.host, self.device, ROWS, **how),
            "swap_blocks_batch": lambda **how: ns.swap_blocks_batch(src, dst, [64] * 3, **how),
            "CopyPlan.run": self.plan.run,
            "exchange": lambda **how: ns.exchange(
                self.device, self.host, ROWS[:1, ::-1], ROWS, **how
            ),
            "ExchangePlan.run": self.exchange.run,
        }

    def moved(self):
        return bool(self.device._memory.any())


VERBS = ["swap_blocks", "swap_blocks_batch", "CopyPlan.run", "exchange", "ExchangePlan.run"]


def capturing(gpu, stream, swap):
    """Run a swap in another thread while a stream is being captured; return what it said."""
    kept, said = (gpu.pinned_array(8), gpu.device_array(8)), []

    def run():
        try:
            said.append(swap())
        except Exception as error:
            said.append(error)

    gpu.library.begin_capture(stream.handle)
    gpu.library.enqueue(stream.handle, lambda: np.copyto(kept[0], 5.0))
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    graph = gpu.library.end_capture(stream.handle)  # raises if it was lost
    assert len(graph.nodes) == 1
    kept[0][:] = 0
    gpu.library.launch(graph, stream.handle)
    stream.synchronize()
    assert (kept[0] == 5).all()
    return said[0]


@pytest.mark.parametrize("warm", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("stream", [None, 0, 1], ids=["none", "handle 0", "handle 1"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_the_default_stream_is_refused_before_anything_is_done_in_it(gpu, verb, mode, stream, warm):
    pools = Pools(gpu)
    swap = pools.verbs[verb]
    for _ in range(2 * warm):  # so that it takes the short way
        swap(mode=mode, stream=stream).wait()
    gpu.synchronize()
    pools.device._memory[:] = 0
    error = capturing(gpu, gpu.stream(), lambda: swap(mode=mode, stream=stream))
    assert type(error) is ns.CapturedTransferError
    assert "the copy's stream is the legacy default stream" in str(error)
    assert "is being captured into a CUDA graph" in str(error)
    assert "give a stream of your own" in str(error)
    assert not pools.moved()
    swap(mode=mode, stream=stream).wait()
    assert pools.moved()


@pytest.mark.parametrize("non_blocking", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", VERBS)
def test_any_other_stream_is_none_of_its_business(gpu, verb, mode, non_blocking):
    pools, own = Pools(gpu), gpu.stream(non_blocking=non_blocking)
    swap = pools.verbs[verb]
    capturing(gpu, gpu.stream(), lambda: swap(mode=mode, stream=own)).wait()
    assert pools.moved()


def test_the_default_stream_of_each_thread_is_another(gpu, monkeypatch):
    monkeypatch.setenv("NUMBA_CUDA_PER_THREAD_DEFAULT_STREAM", "1")
    pools = Pools(gpu)
    capturing(gpu, gpu.stream(), pools.plan.run).wait()
    assert pools.moved()


def test_captures_that_the_default_stream_does_not_wait_for(gpu):
    pools = Pools(gpu)
    capturing(gpu, gpu.stream(non_blocking=True), pools.plan.run).wait()
    assert pools.moved()


def test_the_capturing_thread_itself_is_told(gpu):
    pools, stream = Pools(gpu), gpu.stream()
    gpu.library.begin_capture(stream.handle)
    pools.plan.run(stream, "loop")
    with pytest.raises(ns.CapturedTransferError, match="legacy default stream"):
        pools.plan.run(mode="loop")
    with pytest.raises(ns.CapturedTransferError, match="legacy default stream"):
        pools.plan.explain()
    assert len(gpu.library.end_capture(stream.handle).nodes) == 3


def test_work_pending_in_the_default_stream_cannot_be_waited_for(gpu):
    pools, own = Pools(gpu), gpu.stream(non_blocking=True)
    view = SimpleNamespace(
        __cuda_array_interface__={**pools.device.__cuda_array_interface__, "stream": 1},
        keep=pools.device,
    )
    swap = {"mode": "loop", "stream": own}
    error = capturing(gpu, gpu.stream(), lambda: ns.swap_blocks(pools.host, view, ROWS, **swap))
    assert type(error) is ns.CapturedTransferError
    assert "an array's own stream is the legacy default stream" in str(error)
    gpu.synchronize()
    assert not pools.moved()
    ns.swap_blocks(pools.host, view, ROWS, **swap).wait()
    assert pools.moved()


def test_work_pending_in_the_default_stream_is_no_part_of_a_capture(gpu):
    pools, stream = Pools(gpu), gpu.stream()
    view = SimpleNamespace(
        __cuda_array_interface__={**pools.device.__cuda_array_interface__, "stream": 1},
        keep=pools.device,
    )
    gpu.library.begin_capture(stream.handle)
    ns.swap_blocks(pools.host, view, ROWS, mode="loop", stream=stream)
    graph = gpu.library.end_capture(stream.handle)
    assert not pools.moved()
    gpu.library.launch(graph, stream.handle)
    stream.synchronize()
    assert pools.moved()


def test_to_ask_costs_one_call_of_the_default_stream_only(gpu):
    pools, own = Pools(gpu), gpu.stream()
    for stream in (None, own):
        for _ in range(3):
            pools.plan.run(stream, "kernel").wait()
        before = gpu.library.calls["cuStreamIsCapturing"]
        pools.plan.run(stream, "kernel").wait()
        assert gpu.library.calls["cuStreamIsCapturing"] == before + 1
