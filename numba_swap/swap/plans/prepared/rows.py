"""Other blocks between two arrays that were copied between before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.layers import LayerPair
from numba_swap.device.memory import describe_allocation
from numba_swap.device.resources import BufferList
from numba_swap.swap.plans.plan_cache import ByCount
from numba_swap.swap.plans.prepared.runs import PreparedLaunch
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.select import Selection
from numba_swap.swap.running.transfer import Transfer


class Ready(NamedTuple):
    """What follows from a number of rows.

    Attributes
    ----------
    selections : tuple of Selection
        What a call with so many may select.
    blocks : int
        Thread blocks of the launch.
    buffers : BufferList
        Pinned memory for the table.
    """

    selections: tuple[Selection, ...]
    blocks: int
    buffers: BufferList


class PreparedRows:
    """Copies of other rows between two arrays that were copied between before.

    Parameters
    ----------
    run : PreparedLaunch
        How copies between them ran, without these: uniform, in order, over a host link.
    pair : LayerPair
        The arrays, as they were read for it, not kept alive.
    bytes_a_row : int
        Of the table of addresses.
    select : callable
        Gets a number of rows; returns what a call with so many may select, nothing if that is
        not this kernel.

    Attributes
    ----------
    run : PreparedLaunch
        As given.
    """

    def __init__(
        self,
        run: PreparedLaunch,
        pair: LayerPair,
        bytes_a_row: int,
        select: Callable[[int], tuple[Selection, ...]],
    ) -> None:
        self.run = run
        self._select = select
        self._ready = ByCount(self._make_ready)
        self._buffers = run.launched.devices.host_buffers
        self._driver = run.launched.driver
        kernel, layout = run.kernel, pair.layout
        self._threads, self._most_blocks = kernel.threads, kernel.most_blocks
        _, _, size, chunks, chunk_bytes, tile, access = kernel.arguments
        self._threads_a_row = chunks * tile
        self._bytes_a_row = bytes_a_row
        self._memory = pair.src.allocations, pair.dst.allocations
        words = dict(
            zip(
                native.prepared.LAUNCH,
                self._driver.launch_functions,
                strict=True,
            )
        )
        words |= zip(("query", "codes"), self._driver.query_functions, strict=True)
        words |= {
            "context": run.context.handle,
            "stream": run.stream,
            "kernel": kernel.function,
            "threads": kernel.threads,
            "size": size,
            "chunks": chunks,
            "chunk_bytes": chunk_bytes,
            "tile": tile,
            "access": access,
            "src_step": layout.src_step,
            "src_blocks": layout.src_blocks,
            "dst_step": layout.dst_step,
            "dst_blocks": layout.dst_blocks,
        }
        with self._driver.activate(run.context.handle):
            for side, array in (("src", pair.src), ("dst", pair.dst)):
                asked = array.span[0]
                answers = self._driver.pointer_info(asked)
                if (describe_allocation(answers, asked),) != array.allocations:
                    raise LookupError("the memory is not what it was")
                words |= {f"{side}_at": array.address, f"{side}_asked": asked}
                words |= {f"{side}_answer{i}": value for i, value in enumerate(answers)}
        self._words = native.prepared.pack(native.prepared.FIELDS, words)

    def copy(self, mapping: Any, options: RunOptions, holds: tuple[object, ...]) -> Transfer | None:
        """Copy other blocks; None, with nothing done, if this needs the long way.

        Parameters
        ----------
        mapping : object
            Source and destination block of each row.
        options : RunOptions
            What the user said, with the handle of the stream.
        holds : tuple of object
            What must outlive the work.
        """
        return self._submit(self._driver.copy_rows, (mapping,), options, holds)

    def exchange(
        self, out_rows: Any, in_rows: Any, options: RunOptions, holds: tuple[object, ...]
    ) -> Transfer | None:
        """Exchange other blocks, as `copy` copies them."""
        return self._submit(self._driver.exchange_rows, (out_rows, in_rows), options, holds)

    def _submit(
        self,
        submit: Callable[..., int],
        tables: tuple[Any, ...],
        options: RunOptions,
        holds: tuple[object, ...],
    ) -> Transfer | None:
        """Submit tables of equally many rows; None, with nothing done, if that cannot be."""
        if not (all(map(_is_plain, tables)) and self.run.holds(*options)):
            return None
        rows = len(tables[0])
        ready = self._ready(rows) if rows == len(tables[-1]) else None
        if ready is None:
            return None
        selections, blocks, buffers = ready
        buffer = buffers.take_spare()
        if buffer is None:
            return None
        return self.run.track(
            selections,
            (buffer, *holds),
            submit,
            self._words,
            *tables,
            buffer.words,
            buffer.address,
            blocks,
        )

    def stays_right(self, options: RunOptions, pair: LayerPair) -> bool:
        """Whether the same would be prepared again: it was the rows that took the long way.

        Parameters
        ----------
        options : RunOptions
            What the user said, with the handle of the stream.
        pair : LayerPair
            The arrays, as they were read just now.
        """
        return self.run.holds(*options) and self._memory == (
            pair.src.allocations,
            pair.dst.allocations,
        )

    def _make_ready(self, rows: int) -> Ready | None:
        """Return all that follows from a number of rows; None if it is not this kernel."""
        selections = self._select(rows)
        if not selections:
            return None
        blocks = min(self._most_blocks, -(-rows * self._threads_a_row // self._threads))
        return Ready(selections, blocks, self._buffers.of_size(self._bytes_a_row * rows))


_INT64 = np.dtype(np.int64)


def _is_plain(mapping: Any) -> bool:
    """Whether compiled code can read rows of block ids as they are."""
    return (
        type(mapping) is np.ndarray
        and mapping.dtype is _INT64
        and mapping.ndim == 2
        and mapping.shape[1] == 2
        and len(mapping) > 0
        and mapping.flags.carray
    )
