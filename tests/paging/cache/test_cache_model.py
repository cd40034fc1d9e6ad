"""A cache beside a NumPy array: operations at random, several streams, failures on purpose."""

import threading

import numpy as np
import pytest
from cache_model import CacheModel, SimulatedKernels

import numba_swap as ns
from numba_swap.testing import Fault

RUNS = [
    (seed, evict, mode)
    for seed, evict in enumerate(["lru", "clock", "lfu", lambda blocks, count: blocks[-count:]])
    for mode in ("loop", "kernel", "batch")
]


@pytest.mark.parametrize(("seed", "evict", "mode"), RUNS)
def test_whatever_the_order_every_byte_is_right(seed, evict, mode):
    with ns.simulate() as gpu, ns.override(mode=mode):
        kernels = SimulatedKernels(gpu)
        model = CacheModel(gpu, kernels, np.random.default_rng(seed), evict=evict)
        for _ in range(60):
            model.step()
        model.end()
        assert model.failures == 0


FAULTS = ["cuMemcpyAsync", "cuMemcpyBatchAsync", "cuLaunchKernel", "cuEventRecord",
          "cuStreamWaitEvent", "cuEventSynchronize"]  # fmt: skip


SUBMIT = {"cuMemcpyAsync", "cuMemcpyBatchAsync", "cuLaunchKernel"}


@pytest.mark.parametrize("mode", ["loop", "kernel", "batch", "auto"])
@pytest.mark.parametrize("seed", range(4))
def test_after_failures_it_says_what_is_lost_and_all_else_is_right(seed, mode):
    rng = np.random.default_rng(seed)
    with ns.simulate() as gpu, ns.override(mode=mode):
        kernels = SimulatedKernels(gpu)
        model = CacheModel(gpu, kernels, rng)
        for step in range(80):
            if step % 4 == 0:
                function = FAULTS[rng.integers(len(FAULTS))]
                # (A copy or launch that is refused was not made: the package relies on that.)
                done = bool(rng.integers(2)) and function not in SUBMIT
                gpu.library.faults.add(Fault(function, 1, call=int(rng.integers(1, 4)), done=done))
            model.step()
            if step % 4 == 3:
                gpu.library.faults.clear()
        gpu.library.faults.clear()
        assert model.failures > 0
        model.end()


def test_threads_with_streams_of_their_own_share_a_cache():
    with ns.simulate() as gpu, ns.override(mode="loop"):
        host = gpu.pinned_array((64, 8), np.int64)
        host[:] = np.arange(64)[:, None]
        cache = ns.BlockCache(host, 32)
        errors = []

        def work(number):
            rng, stream = np.random.default_rng(number), gpu.stream()
            kernels = SimulatedKernels(gpu)
            mine = np.arange(number, 64, 4)  # written by this thread only
            truth = {int(block): int(block) for block in mine}
            try:
                for _ in range(40):
                    ids = rng.choice(mine, 6)
                    mode = ("r", "rw")[rng.integers(2)]
                    with cache.lease(ids, mode, stream) as lease:
                        now = np.array([[truth[int(i)]] * 8 for i in ids])
                        new = (now + 100) if mode == "rw" else None
                        if new is not None:
                            truth.update((int(i), truth[int(i)] + 100) for i in set(ids.tolist()))
                        kernels.use(cache, lease, stream, now, new)
                stream.synchronize()
                assert kernels.wrong == 0
                expected[number] = truth
            except BaseException as error:
                errors.append(error)

        expected = {}
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        cache.close()
        for truth in expected.values():
            for block, value in truth.items():
                assert (host[block] == value).all()
