"""A cache beside a NumPy array that says what must be in it, and operations in random order.

"Kernels" read the slots that the lease put on the device, check what they find in the pool, and
write there: on a simulated driver when their turn in the stream comes, on a GPU as real kernels.
"""

import ctypes
from contextlib import ExitStack, suppress

import numpy as np

import numba_swap as ns


def memory_of(array):
    """Simulated device memory as a NumPy array."""
    interface = array.__cuda_array_interface__
    count = int(np.prod(interface["shape"])) * np.dtype(interface["typestr"]).itemsize
    memory = (ctypes.c_uint8 * count).from_address(interface["data"][0])
    flat = np.frombuffer(memory, np.uint8).view(interface["typestr"])
    return flat.reshape(interface["shape"])


class SimulatedKernels:
    """What kernels do, put off by the simulated driver until the stream is looked at."""

    def __init__(self, gpu):
        self._gpu = gpu
        self.wrong = 0

    def use(self, cache, lease, stream, expected, written):
        """Compare blocks with what is expected (if that is not None), then write others."""
        pool, slots = memory_of(cache.pool), memory_of(lease.slots)

        def run():
            if expected is not None:
                self.wrong += int(np.count_nonzero(pool[slots] != expected))
            if written is not None:
                pool[slots] = written

        handle = 0 if stream is None else stream.handle
        self._gpu.library.enqueue(handle, run, wait=False)


class RealKernels:
    """The same as kernels of Numba, fed from mapped memory: only the cache orders streams."""

    RING = 24

    def __init__(self):
        from numba import cuda

        @cuda.jit
        def use(pool, slots, rows, expected, written, checks, writes, wrong):
            row = rows[cuda.blockIdx.x]
            slot = slots[row]
            for i in range(cuda.threadIdx.x, pool.shape[1], cuda.blockDim.x):
                if checks and pool[slot, i] != expected[row, i]:
                    cuda.atomic.add(wrong, 0, 1)
                if writes:
                    pool[slot, i] = written[row, i]

        self._cuda, self._kernel = cuda, use
        self._wrong = cuda.to_device(np.zeros(1, np.int64))
        self._rings = {}

    @property
    def wrong(self):
        self._cuda.synchronize()
        return int(self._wrong.copy_to_host()[0])

    def _memory(self, rows, words):
        """Return mapped arrays that no kernel reads any more."""
        shape = 1 << (rows - 1).bit_length(), words
        made, used = self._rings.setdefault(shape, ([], [0]))
        if used[0] == self.RING:
            self._cuda.synchronize()
            used[0] = 0
        if used[0] == len(made):
            cuda = self._cuda
            pair = [cuda.mapped_array(shape, np.int64) for _ in range(2)]
            made.append((*pair, cuda.mapped_array(shape[0], np.int64)))
        used[0] += 1
        return made[used[0] - 1]

    def use(self, cache, lease, stream, expected, written):
        first = np.unique(lease.ids, return_index=True)[1]  # a row for each block: no races
        some = written if expected is None else expected
        arrays = self._memory(*some.shape)
        for array, content in zip(arrays, (expected, written), strict=False):
            if content is not None:
                array[: len(content)] = content
        arrays[2][: len(first)] = first
        checks, writes = expected is not None, written is not None
        self._kernel[len(first), 64, stream or 0](
            cache.pool, lease.slots, arrays[2], *arrays[:2], checks, writes, self._wrong
        )


class CacheModel:
    """Operations on a cache, and what must follow from them.

    Parameters
    ----------
    gpu : SimulatedGPU or RealGPU
        Where.
    kernels : SimulatedKernels or RealKernels
        What uses the blocks.
    rng : Generator
        What is random.
    blocks, slots, words : int
        How many there are, and numbers of 8 bytes in a block.
    """

    def __init__(self, gpu, kernels, rng, blocks=60, slots=16, words=16, streams=3, **options):
        self.gpu, self.kernels, self.rng = gpu, kernels, rng
        self.host = gpu.pinned_array((blocks, words), np.int64)
        self.host[:] = rng.integers(0, 1 << 40, self.host.shape)
        self.truth = np.array(self.host)
        self.cache = ns.BlockCache(self.host, slots, **options)
        self.streams = [gpu.stream() for _ in range(streams)] + [None]
        self.failures = 0

    def ids(self, most):
        count = int(self.rng.integers(1, most + 1))
        return np.minimum(self.rng.zipf(1.3, count), len(self.truth)) - 1

    def step(self):
        """Do one thing at random; failures that were planned leave the model right."""
        try:
            self.steps[self.rng.integers(len(self.steps))](self)
        except (ns.DriverCallError, ns.BlocksLostError) as error:
            self.failures += 1
            if getattr(error, "sticky", False):
                raise
        if self.cache.lost:
            self.forgive()

    def forgive(self):
        """Take what is on the host for blocks that were lost."""
        lost = list(self.cache.lost)
        assert not self.cache.resident(lost).any()
        self.gpu.synchronize()
        self.cache.drop(lost, discard=True)
        self.truth[lost] = self.host[lost]
        assert not self.cache.lost

    def lease(self, most=None):
        rng = self.rng
        mode = ("r", "r", "rw", "w")[rng.integers(4)]
        ids = self.ids(most or self.cache.slots)
        stream = self.streams[rng.integers(len(self.streams))]
        with self.cache.lease(ids, mode, stream) as lease:
            self.use(ids, mode, stream, lease)

    def use(self, ids, mode, stream, lease):
        assert self.cache.resident(ids).all()
        expected = None if mode == "w" else self.truth[ids].copy()
        written = None
        if mode != "r":
            values = self.rng.integers(0, 1 << 40, self.truth.shape)
            written = values[ids]
            self.truth[ids] = written
        self.kernels.use(self.cache, lease, stream, expected, written)

    def leases_side_by_side(self):
        half = self.cache.slots // 2
        parts = [self.ids(half), self.ids(half)]
        with ExitStack() as stack:
            modes = [("r", "rw")[self.rng.integers(2)] for _ in parts]
            streams = [self.streams[self.rng.integers(len(self.streams))] for _ in parts]
            leases = []
            clash = np.isin(*parts).any() and "rw" in modes
            for ids, mode, stream in zip(parts, modes, streams, strict=True):
                try:
                    leases.append(stack.enter_context(self.cache.lease(ids, mode, stream)))
                except ns.LeaseConflictError as error:
                    assert clash
                    assert error.block in parts[0]  # noqa: PT017
                    assert error.block in parts[1]  # noqa: PT017
                else:
                    assert not clash or len(leases) < 2
            for lease in leases:
                i = 0 if lease is leases[0] else 1
                self.use(parts[i], modes[i], streams[i], lease)

    def broken_lease(self):
        """An exception in a lease for reading changes nothing."""
        with suppress(ZeroDivisionError), self.cache.lease(self.ids(4), "r", self.streams[0]):
            raise ZeroDivisionError

    def prefetch(self):
        self.cache.prefetch(self.ids(self.cache.slots))

    def too_much(self):
        wanted = self.rng.permutation(len(self.truth))[: self.cache.slots + 1]
        before = self.cache.resident(range(len(self.truth)))
        with np.testing.assert_raises(ns.CacheFullError):
            self.cache.prefetch(wanted)
        assert (self.cache.resident(range(len(self.truth))) == before).all()

    def flush(self):
        self.cache.flush()
        assert (self.host == self.truth).all()

    def drop(self):
        ids = self.ids(6)
        with suppress(ns.BadArgumentError):  # dirty
            self.cache.drop(ids)

    def scheduled(self):
        stream = self.streams[self.rng.integers(len(self.streams))]
        mode = ("r", "rw")[self.rng.integers(2)]
        requests = [self.ids(self.cache.slots // 2) for _ in range(5)]
        for lease in self.cache.schedule(requests, mode, stream):
            with lease:
                self.use(lease.ids, mode, stream, lease)

    steps = (
        *[lease] * 8, leases_side_by_side, leases_side_by_side, broken_lease, prefetch, prefetch,
        too_much, flush, drop, scheduled,
    )  # fmt: skip

    def end(self):
        """Close, and compare all."""
        self.cache.close()
        self.gpu.synchronize()
        assert self.kernels.wrong == 0
        assert (self.host == self.truth).all()
