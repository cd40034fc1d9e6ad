"""Exchanges of a few blocks of pools with very many."""

import resource
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

import numba_swap as ns


@contextmanager
def little_memory_left(nbytes):
    """Let this process have so much memory more, which simulated kernels need for threads, too."""
    limits, stack = resource.getrlimit(resource.RLIMIT_AS), threading.stack_size(1 << 18)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        threading.stack_size(stack)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
@pytest.mark.parametrize("mode", ["auto", "batch", "kernel"])
def test_memory_goes_by_the_rows_and_not_by_the_pools(mode):
    """Of a hundred million blocks three change places: no table has an entry for each of them."""
    blocks = 100_000_000
    huge = np.empty((blocks, 4), np.uint8)  # never touched, but for a few pages
    rows = np.array([[0, 5], [2, blocks - 1], [3, 77]])
    calls = {
        "pairs": (rows, rows[:, ::-1]),
        "ring": (rows, np.stack([rows[:, 1], np.roll(rows[:, 0], 1)], axis=1)),
        "apart": (rows, np.array([[6, 4], [blocks // 2, 5]])),
    }
    with ns.simulate() as gpu:
        gpu.library.register_host(huge)
        device, small = gpu.device_array((8, 4), np.uint8), gpu.pinned_array((128, 4), np.uint8)
        for limit in (None, 64 << 20):  # once to have all compiled and loaded
            for out, into in calls.values():
                host = small if limit is None else huge
                out, into = (np.minimum(table, len(host) - 1) for table in (out, into))
                device.copy_to_device(np.arange(32).reshape(8, 4))
                host[out[:, 1]] = 200 + np.arange(3)[:, None]
                host[into[:, 0]] = 100 + np.arange(len(into))[:, None]
                before = host[into[:, 0]], device.copy_to_host()[out[:, 0]]
                with little_memory_left(limit) if limit else nullcontext():
                    ns.exchange(device, host, out, into, mode=mode).wait()
                    ns.exchange(device, host, into[:0], into[:0], mode=mode).wait()
                assert np.array_equal(device.copy_to_host()[into[:, 1]], before[0])
                assert np.array_equal(host[out[:, 1]], before[1])
        gpu.library.unregister_host(huge)
