"""NVIDIA's own Python: ``cuda.core.utils.copy_batch``."""

from __future__ import annotations

from typing import Any

from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.arms.peers import import_for, needs_gpu
from numba_swap.tools.bench.ab.spec.errors import ArmUnavailableError
from numba_swap.tools.bench.gpu import address_of

_ARM = "cuda.core"


class CopyBatch:
    """One call of ``copy_batch`` on buffers of one block each.

    The buffers, one for each block of each side, are made before the clock starts: that costs
    some microseconds a buffer, which a program with a fresh mapping would pay each time.
    """

    mode = reason = None

    def __init__(self, setup: Setup, core: Any, utils: Any) -> None:
        self.stream = setup.gpu.stream
        self.mapping = setup.mapping
        core.Device(0).set_current()
        self._queue = core.Stream.from_handle(self.stream)
        self._copy_batch = utils.copy_batch
        size = setup.case.block_bytes
        self._buffers = [
            [
                core.Buffer.from_handle(address_of(array) + int(i) * size, size, owner=array)
                for i in column
            ]
            for array, column in (
                (setup.source, setup.mapping[:, 0]),
                (setup.destination, setup.mapping[:, 1]),
            )
        ]

    def enqueue(self) -> None:
        """Submit the batch."""
        self._copy_batch(self._queue, *self._buffers)

    def wait(self) -> None:
        """Wait for the stream."""
        self._queue.sync()


def make(setup: Setup) -> CopyBatch:
    """Make it ready, or say what is missing."""
    needs_gpu(_ARM, setup)
    core = import_for(_ARM, "cuda.core", "cuda-core")
    utils = import_for(_ARM, "cuda.core.utils", "cuda-core")
    if not hasattr(utils, "copy_batch"):
        raise ArmUnavailableError(f"{_ARM} needs cuda-core 1.2 or later, which has copy_batch")
    if setup.case.count < 2:
        raise ArmUnavailableError(f"{_ARM}: copy_batch is for two blocks and more")
    return CopyBatch(setup, core, utils)
