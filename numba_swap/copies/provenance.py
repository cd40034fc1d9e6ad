"""Where copies come from: the rows of the user's input behind each one, for error messages.

Nothing here is asked before something has gone wrong, so nothing is computed before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from numba_swap.copies.inputs.mapping import Integers

Addresses = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.intp]


class Provenance(Protocol):
    """What is known of the copies of a plan, by their index in it."""

    def describe(self, index: int, offset: int | None = None) -> str:
        """Say in the user's terms what a copy is, or the row that its byte `offset` is of."""

    def describe_merged(self, start: int, stop: int) -> str:
        """Say what several copies are that became one."""

    def row(self, index: int, offset: int = 0) -> int | None:
        """Row of the user's input that a byte of a copy belongs to; None if it is not known."""

    def rows(self, count: int) -> Sequence[int] | None:
        """Rows that the first `count` copies, and no others, write; None if it is not known."""


class PointerRows(NamedTuple):
    """Copies between raw addresses.

    Attributes
    ----------
    src, dst, sizes : ndarray
        What the user gave.
    chosen : ndarray of int
        The rows that are not empty.
    """

    src: Integers
    dst: Integers
    sizes: Integers
    chosen: Integers

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the row, with addresses and size."""
        row = self.row(index)
        return (
            f"copy {row} (from {self.src[row]:#x} to {self.dst[row]:#x}, {self.sizes[row]} bytes)"
        )

    def describe_merged(self, start: int, stop: int) -> str:
        """Name the first and the last row."""
        one, last = self.chosen[start], self.chosen[stop - 1]
        nbytes = self.sizes[self.chosen[start:stop]].sum()
        return (
            f"copies {one} to {last} (merged: from {self.src[one]:#x} to {self.dst[one]:#x}, "
            f"{nbytes} bytes)"
        )

    def row(self, index: int, offset: int = 0) -> int:
        """Return the index of the pointers."""
        return int(self.chosen[index])

    def rows(self, count: int) -> Sequence[int]:
        """Return the indices of the pointers: the first so many."""
        return range(int(self.chosen[count - 1]) + 1 if count else 0)


class BlockRows:
    """Copies of blocks between two arrays, one copy for every contiguous run of every block.

    Block ids are worked out from addresses, where these differ from block to block: the user may
    have changed the mapping since.

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
    mapping : ndarray of int64 or None
        What the rows came from, if they are no longer in its order.
    name, layer : str
        What the user calls the mapping; which layer this is, if there are several.
    holds : object
        What the columns lie in.
    ids : tuple of ndarray of int64 or None
        Block of each row, in each, where all blocks have one address; None where they do not.
    """

    def __init__(
        self,
        columns: tuple[Addresses, Addresses],
        blocks_at: tuple[int, int],
        steps: tuple[int, int],
        offsets: tuple[Integers, Integers],
        mapping: Integers | None = None,
        name: str = "block_mapping",
        layer: str = "",
        holds: object = None,
        ids: tuple[Integers | None, ...] = (None, None),
    ) -> None:
        self._columns = columns
        self._blocks_at = blocks_at
        self._steps = steps
        self._offsets = offsets
        self._runs = len(offsets[0])
        self._mapping = mapping
        self._name = name
        self._layer = layer
        self._holds = holds
        self._ids = ids

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the row, with block ids."""
        return self._describe(index, "")

    def describe_merged(self, start: int, stop: int) -> str:
        """Name the first row and the last."""
        row, last = self.row(start), self.row(stop - 1)
        merged = ""
        if row is not None and last is not None and last > row:
            merged = f", merged with the rows up to {self._name}[{last}]"
        return self._describe(start, merged)

    def _describe(self, index: int, merged: str) -> str:
        row = self.row(index)
        name = f"a row of {self._name}" if row is None else f"{self._name}[{row}]"
        dst_block, src_block = (self._block(side, index) for side in (0, 1))
        return (
            f"{name} (source block {src_block} to destination block {dst_block}{self._layer}"
            f"{merged})"
        )

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row of the mapping; None if the mapping was changed and it is not known."""
        if self._mapping is not None:
            return None if self._rows_grouped is None else int(self._rows_grouped[index])
        return int(index) // self._runs

    def rows(self, count: int) -> Sequence[int] | None:
        """Return rows of the mapping."""
        if self._mapping is not None:
            grouped = self._rows_grouped
            return None if grouped is None else tuple(sorted(grouped[:count].tolist()))
        return range(-(-count // self._runs))

    def _block(self, side: int, index: int) -> int:
        """Return the block, at the destination (0) or the source (1), of a copy."""
        step, offsets, ids = self._steps[side], self._offsets[side], self._ids[side]
        if step == 0:  # all blocks of a broadcast array are the same
            row = self.row(index)
            return 0 if ids is None or row is None else int(ids[row])
        address = int(self._columns[side][index]) - int(offsets[index % self._runs])
        return (address - self._blocks_at[side]) // step

    @cached_property
    def _rows_grouped(self) -> Integers | None:
        """The row behind each copy; None if the mapping is not what it was."""
        mapping = self._mapping
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


class Layers(NamedTuple):
    """Copies of several layers, one after the other, that share their rows."""

    parts: Sequence[Provenance]
    ends: Rows

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its layer does."""
        part, inside = self._find(index)
        return part.describe(inside, offset)

    def describe_merged(self, start: int, stop: int) -> str:
        """Describe the first, and say how many follow."""
        return _first_and_more(self, start, stop)

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

    def _find(self, index: int) -> tuple[Provenance, int]:
        layer = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[layer], index - (int(self.ends[layer - 1]) if layer else 0)


class Selected(NamedTuple):
    """Some of the copies of another origin.

    Attributes
    ----------
    origin : Provenance
        Of all of them.
    chosen : ndarray of int or range
        Which ones these are.
    others_run : bool
        Whether those left out run beside these, in what order nobody knows; else there was
        nothing to move.
    """

    origin: Provenance
    chosen: Rows | range
    others_run: bool

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its origin does."""
        return self.origin.describe(int(self.chosen[index]), offset)

    def describe_merged(self, start: int, stop: int) -> str:
        """Describe the first, and say how many follow."""
        return _first_and_more(self, start, stop)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that its origin tells."""
        return self.origin.row(int(self.chosen[index]), offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return the rows that its origin tells, unless others may have been written too."""
        if self.others_run:
            return None
        return self.origin.rows(int(self.chosen[count - 1]) + 1 if count else 0)


class Merged(NamedTuple):
    """Copies of another origin, several of which may have become one.

    Attributes
    ----------
    origin : Provenance
        Of the copies before.
    first : ndarray of int
        Index of the first that went into each.
    size : int or ndarray of uint64
        Bytes of every copy before, or of each.
    total : int
        How many there were.
    """

    origin: Provenance
    first: Rows
    size: Addresses | int
    total: int

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe all that went into a copy, or the one that its byte `offset` is of."""
        start, stop = self._span(index)
        if offset is not None:
            return self.origin.describe(*self._find(index, offset))
        if stop == start + 1:
            return self.origin.describe(start)
        return self.origin.describe_merged(start, stop)

    def describe_merged(self, start: int, stop: int) -> str:
        """Describe all that went into several copies."""
        return self.origin.describe_merged(self._span(start)[0], self._span(stop - 1)[1])

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that its origin tells of the one that the byte is of."""
        return self.origin.row(*self._find(index, offset))

    def rows(self, count: int) -> Sequence[int] | None:
        """Return the rows that its origin tells."""
        return self.origin.rows(self._span(count - 1)[1] if count else 0)

    def _span(self, index: int) -> tuple[int, int]:
        start, *following = self.first[index : index + 2]
        return int(start), int(following[0]) if following else self.total

    def _find(self, index: int, offset: int) -> tuple[int, int]:
        """Return which copy before a byte is of, and where in it."""
        start, stop = self._span(index)
        if isinstance(self.size, int):
            return start + offset // self.size, offset % self.size
        ends = np.cumsum(self.size[start:stop])
        inside = int(np.searchsorted(ends, offset, side="right"))
        return start + inside, offset - (int(ends[inside - 1]) if inside else 0)


class BoxRows(NamedTuple):
    """Copies of boxes between two arrays.

    Attributes
    ----------
    row_of : ndarray of int64
        The row of the origins behind each copy, in rising order.
    src_origins, dst_origins : ndarray of int64
        What the user gave.
    """

    row_of: Integers
    src_origins: Integers
    dst_origins: Integers

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the row, with both origins."""
        return self.describe_row(self.row(index))

    def describe_row(self, row: int) -> str:
        """Name a row, with both origins."""
        src, dst = (
            tuple(origins[row].tolist()) for origins in (self.src_origins, self.dst_origins)
        )
        return f"box {row} (from {src} to {dst})"

    def describe_merged(self, start: int, stop: int) -> str:
        """Name the first row and the last."""
        return f"{self.describe(start)} to {self.describe(stop - 1)}"

    def row(self, index: int, offset: int = 0) -> int:
        """Return the row of the origins."""
        return int(self.row_of[index])

    def rows(self, count: int) -> Sequence[int]:
        """Return rows of the origins."""
        return range(int(self.row_of[count - 1]) + 1 if count else 0)


class PairRows(NamedTuple):
    """Copies between pairs of views.

    Attributes
    ----------
    row_of : ndarray of int64
        The pair behind each copy, in rising order.
    names : sequence of str
        What the user calls each pair.
    """

    row_of: Integers
    names: Sequence[str]

    def describe(self, index: int, offset: int | None = None) -> str:
        """Name the pair."""
        return self.names[self.row(index)]

    def describe_merged(self, start: int, stop: int) -> str:
        """Name the first pair and the last."""
        return f"{self.describe(start)} to {self.describe(stop - 1)}"

    def row(self, index: int, offset: int = 0) -> int:
        """Return the index of the pair."""
        return int(self.row_of[index])

    def rows(self, count: int) -> Sequence[int]:
        """Return the indices of the pairs."""
        return range(int(self.row_of[count - 1]) + 1 if count else 0)


def _first_and_more(origin: Provenance, start: int, stop: int) -> str:
    more = stop - start - 1
    words = origin.describe(start)
    return f"{words}, merged with the {more} {'copy' if more == 1 else 'copies'} after it"
