"""PyTorch as one would write it well: gather into pinned staging, one copy, ``index_copy_``."""

from __future__ import annotations

import warnings
from typing import Any

from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.arms.peers import import_for, needs_gpu

_ARM = "torch-staging"
_WIDTHS = ((8, "int64"), (4, "int32"), (2, "int16"), (1, "uint8"))


class TorchStaging:
    """Gather on one side, one contiguous copy, scatter on the other.

    Index tensors and staging are made before the clock starts. Gathering and scattering on the
    host use as many threads as PyTorch takes. Elements are as wide as the block allows. Where the
    host scatters (to the host), that is part of waiting, since only then are bytes in their places.
    """

    mode = reason = None

    def __init__(self, setup: Setup, torch: Any) -> None:
        self.stream = setup.gpu.stream
        self.mapping = setup.mapping
        self._direction = setup.case.direction
        self._torch = torch
        self._queue = torch.cuda.ExternalStream(self.stream)
        size = setup.case.block_bytes
        width, name = next(pair for pair in _WIDTHS if size % pair[0] == 0)
        dtype = getattr(torch, name)
        on_host = self._direction == "h2d", self._direction == "d2h"
        self._source, self._destination = (
            (torch.from_numpy(array) if host else torch.as_tensor(array, device="cuda")).view(dtype)
            for array, host in zip((setup.source, setup.destination), on_host, strict=True)
        )
        ids = [torch.from_numpy(column.copy()) for column in setup.mapping.T]
        self._from, self._to = (
            column if host else column.cuda() for column, host in zip(ids, on_host, strict=True)
        )
        shape = setup.case.count, size // width
        self._on_device = torch.empty(shape, dtype=dtype, device="cuda")
        if any(on_host):
            self._staging = torch.empty(shape, dtype=dtype, pin_memory=True)

    def enqueue(self) -> None:
        """Gather, and submit what the GPU does."""
        torch = self._torch
        if self._direction == "h2d":
            torch.index_select(self._source, 0, self._from, out=self._staging)
            with torch.cuda.stream(self._queue):
                self._on_device.copy_(self._staging, non_blocking=True)
                self._destination.index_copy_(0, self._to, self._on_device)
            return
        with torch.cuda.stream(self._queue):
            torch.index_select(self._source, 0, self._from, out=self._on_device)
            if self._direction == "d2h":
                self._staging.copy_(self._on_device, non_blocking=True)
            else:
                self._destination.index_copy_(0, self._to, self._on_device)

    def wait(self) -> None:
        """Wait for the stream, and scatter if the host has to."""
        self._queue.synchronize()
        if self._direction == "d2h":
            self._destination.index_copy_(0, self._to, self._staging)


def make(setup: Setup) -> TorchStaging:
    """Make it ready, or say what is missing."""
    needs_gpu(_ARM, setup)
    torch = import_for(_ARM, "torch", "torch")
    with warnings.catch_warnings():
        # PyTorch warns once of arrays that it must not write; it only reads those.
        warnings.simplefilter("ignore", UserWarning)
        return TorchStaging(setup, torch)
