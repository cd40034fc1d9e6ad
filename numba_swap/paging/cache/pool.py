"""The slots of a cache, and the copies between them and the host."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.copies.layers import read_arrays
from numba_swap.device.devices import devices_of
from numba_swap.device.streams import probe_stream
from numba_swap.dispatch.settings import Policy, check_positive
from numba_swap.errors import BadArgumentError, BadPlanError, CapturedTransferError, brief
from numba_swap.paging.cache.memory import DeviceArray, DeviceMemory, cache_context, slots_in
from numba_swap.swap.exchange.pools import OUT_NAMES
from numba_swap.swap.exchange.verbs import exchange
from numba_swap.swap.running.transfer import Transfer
from numba_swap.swap.verbs import swap_blocks

_ALIGNMENT = 512


class Pool:
    """The slots of a cache in device memory, and the array on the host behind them.

    Parameters
    ----------
    host, slots, nbytes, axis, device, policy, max_blocks
        As `BlockCache` takes them.

    Attributes
    ----------
    context : Context
        Of the device.
    arrays : DeviceArray, or list of them
        The slots, for kernels.
    slots, blocks, block_bytes : int
        How many there are, and bytes of a block, of all layers.
    readonly : bool
        Whether the host array cannot be written.
    """

    def __init__(
        self,
        host: Any,
        slots: int | None,
        nbytes: int | str | None,
        axis: int,
        device: int | None,
        policy: Policy | str | None,
        max_blocks: int | None,
    ) -> None:
        if (slots is None) == (nbytes is None):
            raise BadArgumentError("give either slots or bytes: how large the pool is to be")
        self.context = cache_context(device)
        driver = self.context.driver
        layers = list(host) if isinstance(host, (list, tuple)) else [host]
        arrays = [BlockArray(driver, layer, axis, "host") for layer in layers]
        shapes = [array.view.shape for array in arrays]
        if not layers or any(type(axis) is not int or not 0 <= axis < len(s) for s in shapes):
            raise BadPlanError(f"host has no axis block_axis={brief(axis)} along which blocks lie")
        lengths = sorted({shape[axis] for shape in shapes})
        if len(lengths) > 1 or not lengths[0]:
            raise BadPlanError(f"host must have layers of equally many blocks, not {lengths}")
        self.blocks = lengths[0]
        sizes = [
            int(np.prod(s)) // s[axis] * a.view.itemsize
            for s, a in zip(shapes, arrays, strict=True)
        ]
        self.block_bytes = sum(sizes)
        if not self.block_bytes:
            raise BadPlanError("the blocks of host hold no bytes")
        self.readonly = any(array.view.readonly for array in arrays)
        if slots is None:
            assert nbytes is not None
            slots = slots_in(nbytes, self.block_bytes, self.context)
        else:
            check_positive(slots, "slots")
        self.slots = min(int(slots), self.blocks)
        self._host, self._axis = host, axis
        self._options: dict[str, Any] = {
            "policy": policy,
            "max_blocks": max_blocks,
            "block_axis": axis,
        }
        begins = np.cumsum(
            [0, *(-(-size * self.slots // _ALIGNMENT) * _ALIGNMENT for size in sizes)]
        )
        self._memory = DeviceMemory(self.context, int(begins[-1]))
        pools = [
            DeviceArray(
                self.context,
                self._memory.address + int(begin),
                (*shape[:axis], self.slots, *shape[axis + 1 :]),
                _dtype(layer, array.view.itemsize),
                self._memory,
            )
            for begin, shape, layer, array in zip(begins, shapes, layers, arrays, strict=False)
        ]
        self.arrays: Any = pools if isinstance(host, (list, tuple)) else pools[0]
        with devices_of(driver).asking_about([array.address for array in arrays]):
            read_arrays(driver, self.arrays, host, axis, OUT_NAMES)  # refused now, or never

    def move(self, out_rows: Integers, in_rows: Integers, stream: int) -> Transfer:
        """Copy blocks out, others in, or both at once; at least one of them has rows."""
        if not len(out_rows):
            return swap_blocks(self._host, self.arrays, in_rows, stream=stream, **self._options)
        if not len(in_rows):
            return swap_blocks(self.arrays, self._host, out_rows, stream=stream, **self._options)
        return exchange(self.arrays, self._host, out_rows, in_rows, stream=stream, **self._options)

    def current(self) -> contextlib.AbstractContextManager[None]:
        """Let the cache's context be the calling thread's."""
        if self.context.driver.probe(0)[0] == self.context.handle:
            return contextlib.nullcontext()
        return self.context.driver.activate(self.context.handle)

    def entered(self, stream: int) -> contextlib.AbstractContextManager[None]:
        """Do what `current` does, for a stream that something is to be enqueued in.

        Raises
        ------
        CapturedTransferError
            If it is being captured.
        BadArgumentError
            If it belongs to another context.
        """
        driver, context = self.context.driver, self.context.handle
        default = driver.is_default_stream(stream)
        current, owner, capturing = driver.probe(0 if default else stream)
        entered: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if current != context:
            entered = driver.activate(context)
        if default:
            with driver.activate(context):
                capturing = probe_stream(driver, stream, "the lease's stream")[2]
        elif owner != context:
            raise BadArgumentError(
                f"stream {stream:#x} belongs to another context than the cache, which is on GPU "
                f"{self.context.device.ordinal}"
            )
        if capturing:
            raise CapturedTransferError(
                "a lease in a stream that is being captured into a CUDA graph would freeze which "
                "blocks are where: open the lease before the capture, and launch the graph within"
            )
        return entered

    def free(self) -> None:
        """Free the slots. The driver waits for the work that may use them."""
        self._memory.free()


def _dtype(layer: Any, itemsize: int) -> Any:
    """Return the dtype of a layer in NumPy's terms, or words as long for what NumPy has none of."""
    try:
        return np.dtype(layer.dtype)
    except (AttributeError, TypeError):
        return np.dtype(f"u{itemsize}" if itemsize in (1, 2, 4, 8) else f"V{itemsize}")
