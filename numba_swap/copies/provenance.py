"""Where copies come from: the rows of the user's input behind each one, for error messages.

Nothing here is asked before something has gone wrong, so nothing is computed before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from numba_swap.copies.mapping import Integers

Addresses = npt.NDArray[np.uint64]


class Origin(Protocol):
    """What is known of the copies of a plan, by their index in it."""

    def describe(self, index: int, offset: int | None = None) -> str:
        """Say in the user's terms what a copy is, or the row that its byte `offset` is of."""

    def row(self, index: int, offset: int = 0) -> int | None:
        """Row of the user's input that a byte of a copy belongs to; None if it is not known."""

    def rows(self, count: int) -> Sequence[int] | None:
        """Rows that the first `count` copies, and no others, write; None if it is not known."""


class Described(NamedTuple):
    """Copies of which there is only a description."""

    words: Callable[[int], str]

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy."""
        return self.words(index)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return nothing."""
        return None

    def rows(self, count: int) -> Sequence[int] | None:
        """Return nothing, but for no copies at all."""
        return None if count else ()


class PointerOrigin(NamedTuple):
    """Copies between raw addresses.

    Attributes
    ----------
    src, dst, sizes : ndarray
        What the user gave.
    chosen : ndarray of int
        The rows that are not empty.
    first : ndarray of int or None
        The first of `chosen` that went into each copy, if any were merged.
    """

    src: Integers
    dst: Integers
    sizes: Integers
    chosen: Integers
    first: npt.NDArray[np.intp] | None

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the row or rows, with addresses and size."""
        start, stop = self._span(index)
        if offset is not None or stop == start + 1:
            row = self.row(index, offset or 0)
            return (
                f"copy {row} (from {self.src[row]:#x} to {self.dst[row]:#x}, "
                f"{self.sizes[row]} bytes)"
            )
        one, last = self.chosen[start], self.chosen[stop - 1]
        nbytes = self.sizes[self.chosen[start:stop]].sum()
        return (
            f"copies {one} to {last} (merged: from {self.src[one]:#x} to {self.dst[one]:#x}, "
            f"{nbytes} bytes)"
        )

    def row(self, index: int, offset: int = 0) -> int:
        """Return the index of the pointers."""
        start, stop = self._span(index)
        ends = np.cumsum(self.sizes[self.chosen[start:stop]])
        return int(self.chosen[start + np.searchsorted(ends, offset, side="right")])

    def rows(self, count: int) -> Sequence[int]:
        """Return the indices of the pointers: the first so many."""
        return range(int(self.chosen[self._span(count - 1)[1] - 1]) + 1 if count else 0)

    def _span(self, index: int) -> tuple[int, int]:
        if self.first is None:
            return index, index + 1
        start, *following = self.first[index : index + 2]
        return int(start), int(following[0]) if following else len(self.chosen)


class BlockOrigin:
    """Copies of blocks between two arrays.

    Block ids are worked out from addresses: the user may have changed the mapping since.

    Parameters
    ----------
    columns : tuple of ndarray of uint64
        Destinations and sources, one copy a row.
    blocks_at : tuple of int
        Addresses of block 0 of the destination and of the source.
    steps : tuple of int
        Bytes from block to block of each.
    offsets : tuple of ndarray of int64
        Where the runs of a block begin, in each.
    run_bytes : int
        Length of a run.
    count : int
        Number of rows.
    first : ndarray of int or None
        The first run that went into each copy, if any were merged.
    grouped : ndarray of int64, shape (n, 2), or None
        The mapping, if its rows were put into another order.
    layer : str
        Which layer, in words.
    holds : object
        What keeps the memory of the columns.
    name : str
        What the user calls the mapping.
    """

    def __init__(
        self,
        columns: tuple[Addresses, Addresses],
        blocks_at: tuple[int, int],
        steps: tuple[int, int],
        offsets: tuple[Integers, Integers],
        run_bytes: int,
        count: int,
        first: npt.NDArray[np.intp] | None,
        grouped: Integers | None,
        layer: str,
        holds: object,
        name: str = "block_mapping",
    ) -> None:
        self._columns = columns
        self._blocks_at = blocks_at
        self._steps = steps
        self._offsets = offsets
        self._run_bytes = run_bytes
        self._count = count
        self._first = first
        self._grouped = grouped
        self._layer = layer
        self._holds = holds
        self._name = name

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the row or rows, with block ids."""
        row = self.row(index, offset or 0)
        name = f"a row of {self._name}" if row is None else f"{self._name}[{row}]"
        dst_block, src_block = (self._block(side, index, offset or 0) for side in (0, 1))
        merged = ""
        if offset is None and self._first is not None and row is not None:
            stop = -(-self._runs(index)[1] // len(self._offsets[0]))
            if stop > row + 1:
                merged = f", merged with the rows up to {self._name}[{stop - 1}]"
        return (
            f"{name} (source block {src_block} to destination block {dst_block}{self._layer}"
            f"{merged})"
        )

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row of the mapping; None if the mapping was changed and it is not known."""
        if self._grouped is not None:
            return None if self._rows_grouped is None else int(self._rows_grouped[index])
        return int((self._runs(index)[0] + offset // self._run_bytes) // len(self._offsets[0]))

    def rows(self, count: int) -> Sequence[int] | None:
        """Return rows of the mapping."""
        if self._grouped is not None:
            grouped = self._rows_grouped
            return None if grouped is None else tuple(sorted(grouped[:count].tolist()))
        return range(-(-self._runs(count - 1)[1] // len(self._offsets[0])) if count else 0)

    def _runs(self, index: int) -> tuple[int, int]:
        if self._first is None:
            return index, index + 1
        start, *following = self._first[index : index + 2]
        end = following[0] if following else self._count * len(self._offsets[0])
        return int(start), int(end)

    def _block(self, side: int, index: int, offset: int) -> int | str:
        """Return the block, at the destination (0) or the source (1), of a byte of a copy."""
        step, offsets = self._steps[side], self._offsets[side]
        if step == 0:  # all blocks of a broadcast array are the same
            return 0
        inside = offset - offset % self._run_bytes
        run = self._runs(index)[0] + offset // self._run_bytes
        address = int(self._columns[side][index]) + inside - int(offsets[run % len(offsets)])
        return (address - self._blocks_at[side]) // step

    @cached_property
    def _rows_grouped(self) -> Integers | None:
        """The row behind each copy; None if the mapping is not what it was."""
        mapping = self._grouped
        if mapping is None:
            return None
        # A destination block stands in one row only, so its addresses tell the rows apart.
        dst, src = (
            np.uint64(at) + (mapping[:, 1 - side] * step).astype(np.uint64)
            for side, at, step in zip((0, 1), self._blocks_at, self._steps, strict=True)
        )
        ours, theirs = np.argsort(self._columns[0]), np.argsort(dst)
        rows = np.empty(len(ours), dtype=np.int64)
        rows[ours] = theirs
        same = np.array_equal(dst[rows], self._columns[0])
        return rows if same and np.array_equal(src[rows], self._columns[1]) else None


class LayersOrigin(NamedTuple):
    """Copies of several layers, one after the other, that share their rows."""

    parts: Sequence[Origin]
    ends: npt.NDArray[np.intp]

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its layer does."""
        part, inside = self._find(index)
        return part.describe(inside, offset)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row of the mapping."""
        part, inside = self._find(index)
        return part.row(inside, offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return the rows of the mapping of which any layer was among the copies."""
        found: set[int] = set()
        begin = 0
        for part, end in zip(self.parts, self.ends.tolist(), strict=True):
            rows = part.rows(max(0, min(count, end) - begin))
            if rows is None:
                return None
            found.update(rows)
            begin = end
        return tuple(sorted(found))

    def _find(self, index: int) -> tuple[Origin, int]:
        layer = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[layer], index - (int(self.ends[layer - 1]) if layer else 0)


class ChosenOrigin(NamedTuple):
    """Some of the copies of another origin, in its order."""

    origin: Origin
    chosen: npt.NDArray[np.intp]

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its origin does."""
        return self.origin.describe(int(self.chosen[index]), offset)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that its origin tells."""
        return self.origin.row(int(self.chosen[index]), offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return the rows that its origin tells; those left out had nothing to write."""
        return self.origin.rows(int(self.chosen[count - 1]) + 1 if count else 0)
