"""Caches on a real GPU: real kernels, several streams, memory that stays flat, graphs."""

import numpy as np
import pytest
from cache_model import CacheModel, RealKernels
from machines import RealGPU, capture, real_modes
from soak import ALLOWED_GROWTH_BYTES, device_bytes, resident_bytes

import numba_swap as ns

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu():
    return RealGPU()


@pytest.mark.parametrize("mode", ["auto", *real_modes()])
@pytest.mark.parametrize("evict", ["lru", "clock", "lfu"])
def test_whatever_the_order_every_byte_is_right(gpu, rng, mode, evict):
    with ns.override(mode=mode):
        model = CacheModel(gpu, RealKernels(), rng, 2000, 300, 256, evict=evict)
        for _ in range(150):
            model.step()
        model.end()


def test_a_hundred_thousand_requests_take_no_more_memory(gpu, rng):
    host = gpu.pinned_array((5000, 64), np.int64)
    host[:] = np.arange(5000)[:, None]
    streams = [gpu.stream() for _ in range(3)]
    requests = [np.minimum(rng.zipf(1.2, 64), 5000) - 1 for _ in range(500)]
    with ns.BlockCache(host, 500) as cache:
        before = None
        for i in range(100_000):
            with cache.lease(requests[i % 500], ("r", "rw")[i % 2], streams[i % 3]):
                pass
            if i == 25_000:
                before = resident_bytes(), device_bytes(True)
        cache.flush()
        growth = resident_bytes() - before[0], device_bytes(True) - before[1]
    assert max(growth) <= ALLOWED_GROWTH_BYTES, growth
    assert (host == np.arange(5000)[:, None]).all()


def test_a_stream_waits_for_a_transfer(gpu):
    host, back = gpu.pinned_array((64, 1 << 18)), gpu.pinned_array((64, 1 << 18))
    device, ids = gpu.device_array((64, 1 << 18)), np.stack([np.arange(64)] * 2, axis=1)
    copies, compute = gpu.stream(), gpu.stream()
    for value in range(1, 6):
        host[:] = value
        transfer = ns.swap_blocks(host, device, ids, stream=copies)
        ns.swap_blocks(device, back, ids, stream=compute, after=[transfer]).wait()
        assert (back == value).all()


def test_a_captured_graph_copies_what_the_plan_was_updated_to(gpu):
    host, device = gpu.pinned_array((512, 256)), gpu.device_array((64, 256))
    host[:] = np.arange(512)[:, None]
    stream = gpu.stream()
    rows = np.stack([np.arange(64), np.arange(64)], axis=1)
    plan = ns.plan_blocks(host, device, rows, updatable=True)
    replay = capture(gpu, stream, lambda: plan.run(stream, "kernel"))
    replay()
    assert (device.copy_to_host()[:, 0] == np.arange(64)).all()
    for first in (64, 128, 300):
        plan.update(np.stack([first + np.arange(64), np.arange(64)], axis=1), stream=stream)
        replay()
        assert (device.copy_to_host()[:, 0] == first + np.arange(64)).all()
    plan.update([[7, 0]], stream=stream)
    replay()
    assert device.copy_to_host()[:2, 0].tolist() == [7, 301]
