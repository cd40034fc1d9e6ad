"""The flat columns of copies: what every mode is given, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.ends import Direction, Ends
from numba_swap.copies.forms import Boxes, join_boxes, unfold
from numba_swap.copies.provenance import Layers, Merged, Provenance, Rows, Selected
from numba_swap.device.memory import Addresses
from numba_swap.device.resources import PinnedBuffer
from numba_swap.errors import DriverCallError


class PinnedTable(NamedTuple):
    """Pinned memory in which columns of addresses stand one after the other.

    Attributes
    ----------
    buffer : PinnedBuffer
        What holds it.
    address : int
        Where the first column begins.
    """

    buffer: PinnedBuffer
    address: int


class Copies:
    """Copies to be made in any order: validated, without empty ones, neighbours merged.

    Nothing here is changed after it was made, but for what is derived on demand.

    Parameters
    ----------
    dst, src : ndarray of uint64, shape (n,)
        Addresses, one copy a row.
    size : int or ndarray of uint64, shape (n,)
        Lengths in bytes; one number if all are equal. Of boxes, all their bytes.
    ends : Ends
        What they have in common.
    origin : Provenance
        The user's rows behind each copy.
    table : PinnedTable, optional
        Where `dst` and `src` stand in pinned memory, if they do.
    alignment_bits : int, optional
        All addresses and lengths or-ed, if known: low bits that are 0 here are 0 in all of them.
    mergeable : bool, optional
        Whether some may still have neighbours that continue them.
    boxes : Boxes, optional
        The forms of copies that are not contiguous.

    Attributes
    ----------
    nbytes, largest : int
        Bytes in all, and of the longest copy.
    uniform : int
        Bytes of every copy, or 0 if they differ.
    memo : dict
        What the floors above derive and want to find again.
    """

    def __init__(
        self,
        dst: Addresses,
        src: Addresses,
        size: Addresses | int,
        ends: Ends,
        origin: Provenance,
        *,
        table: PinnedTable | None = None,
        alignment_bits: int | None = None,
        mergeable: bool = False,
        boxes: Boxes | None = None,
    ) -> None:
        self.dst = dst
        self.src = src
        self.ends = ends if boxes is None or ends.strided else ends._replace(strided=True)
        self.origin = origin
        self.table = table
        self.mergeable = mergeable
        self.boxes = boxes
        self._alignment_bits = alignment_bits
        self._sizes: Addresses | None = None
        if isinstance(size, int):
            self.uniform = self.largest = size
            self.nbytes = size * len(dst)
        else:
            self._sizes = size
            self.nbytes = int(size.sum())
            self.largest = int(size.max(initial=0))
            self.uniform = self.largest if self.nbytes == self.largest * len(dst) else 0
        self.memo: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.dst)

    @property
    def direction(self) -> Direction:
        """Between which sides the bytes move."""
        return self.ends.direction

    @property
    def sizes(self) -> Addresses:
        """Lengths in bytes, one a row; made on demand."""
        if self._sizes is None:
            self._sizes = np.full(len(self), self.uniform, dtype=np.uint64)
        return self._sizes

    @property
    def size(self) -> Addresses | int:
        """Bytes of every copy, or of each."""
        return self.uniform or self.sizes

    @property
    def alignment_bits(self) -> int:
        """All addresses and lengths or-ed: low bits that are 0 here are 0 in all of them."""
        if self._alignment_bits is None:
            columns = [self.dst, self.src, *([] if self.boxes else [self.sizes])]
            bits = int(np.bitwise_or.reduce([np.bitwise_or.reduce(c) for c in columns]))
            self._alignment_bits = bits | self.boxes.alignment_bits if self.boxes else bits
        return self._alignment_bits

    def _aligned_bits(self) -> int | None:
        """Return bits that hold for some of the copies, too; None if theirs may be better."""
        bits = self._alignment_bits
        return bits if bits is not None and bits % 16 == 0 else None

    def select(
        self, rows: Rows | slice, ends: Ends | None = None, *, others_run: bool = True
    ) -> Copies:
        """Return some of the copies, in an order.

        Parameters
        ----------
        rows : ndarray of int or slice
            Which ones.
        ends : Ends, optional
            What these have in common, if it is less than what all have.
        others_run : bool, optional
            Whether the others run beside them, or are left out for good.
        """
        chosen = range(rows.start, rows.stop) if isinstance(rows, slice) else rows
        return Copies(
            self.dst[rows],
            self.src[rows],
            self.uniform or self.sizes[rows],
            ends or self.ends,
            Selected(self.origin, chosen, others_run),
            alignment_bits=self._aligned_bits(),
            mergeable=self.mergeable,
            boxes=self.boxes and self.boxes.select(rows),
        )

    def coalesced(self) -> Copies:
        """Return the copies with neighbours merged; the same, if there are none."""
        if not self.mergeable:
            return self
        sides = (self.ends.sources, self.ends.destinations)
        # Of several layers, the first allocation need not be the lowest.
        several = [a for side in sides if len(side) > 1 for a in side]
        inner = [bound for a in several for bound in (a.start, a.stop)]
        columns, first = merge(self.dst, self.src, self.size, np.array(inner, dtype=np.uint64))
        if first is None:
            return self
        return Copies(
            *columns,
            self.ends,
            Merged(self.origin, first, self.size, len(self)),
            alignment_bits=self._aligned_bits(),
        )

    def unfolded(self) -> Copies:
        """Return every row of every box as a plain copy; the same, if there are no boxes."""
        if self.boxes is None:
            return self
        dst, src, sizes, owner = unfold(self.dst, self.src, self.boxes)
        ends = self.ends._replace(strided=False)
        return Copies(dst, src, sizes, ends, Selected(self.origin, owner, others_run=False))

    def without_identities(self) -> Copies:
        """Leave out copies of a block, or a box, onto itself: there is nothing to move."""
        moved = self.dst != self.src
        if self.boxes:
            moved |= ~self.boxes.same_steps(len(self))
        rows = np.flatnonzero(moved)
        return self if len(rows) == len(self) else self.select(rows, others_run=False)

    def driver_error(
        self,
        function: str,
        code: int,
        name: str,
        index: int | None,
        most: int,
        *,
        least: int | None = None,
    ) -> DriverCallError:
        """Make the error of a driver function that refused one of the copies.

        Parameters
        ----------
        function, code, name
            The driver's names, and its code.
        index : int or None
            The copy that it refused, if it said so; those before were submitted.
        most : int
            Otherwise, how many copies have been submitted at most.
        least : int, optional
            How many were submitted for certain, if not all before the one refused.
        """
        begun = most if index is None else index
        if index is not None and self.boxes is not None:
            begun += 1  # a box may take several copies of the driver
        rows = self.origin.rows(begun)
        if index is None:
            note = "Which copies were submitted is not known"
            note += f": none from copy {most} on." if most < len(self) else "."
            return DriverCallError(function, code, name, None, note, submitted_rows=rows)
        copy = self.origin.describe(index)
        certain = index if least is None else least
        note = f"At fault is {copy}; the {certain} copies before it were submitted"
        if certain < index:
            note = (
                f"At fault is {copy}; of the {index} copies before it {certain} were submitted, "
                f"the others perhaps"
            )
        note += ", the rest were not."
        if self.boxes is not None and self.boxes.of_each("driver_axes", len(self))[index] < 2:
            note += " Of it, some rows may have been."
        submitted = index if certain == index else None
        return DriverCallError(function, code, name, index, note, copy, submitted, rows)


class Pairs:
    """Copies out and as many copies in: the k-th of each are read before either is written.

    Two copies of different pairs never meet, unless both only read.

    Parameters
    ----------
    out, into : Copies
        Row for row of the same length.

    Attributes
    ----------
    nbytes : int
        Bytes in both directions.
    width : int
        The widest access, 16, 8 or 4 bytes, that all addresses and lengths allow; 0 if none does.
    memo : dict
        What is derived and wanted again.
    """

    def __init__(self, out: Copies, into: Copies) -> None:
        self.out = out
        self.into = into
        self.nbytes = out.nbytes + into.nbytes
        bits = out.alignment_bits | into.alignment_bits
        # The widths that a kernel can read and write at once, and that it can do with.
        self.width = next((width for width in (16, 8, 4) if bits % width == 0), 0)
        self.memo: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.out)


def no_copies() -> Copies:
    """Return no copies at all."""
    empty = np.zeros(0, dtype=np.uint64)
    return Copies(empty, empty, 0, Ends.of((), ()), Layers((), np.zeros(0, dtype=np.intp)))


def merge(
    dst: Addresses, src: Addresses, size: Addresses | int, bounds: Addresses
) -> tuple[tuple[Addresses, Addresses, Addresses | int], npt.NDArray[np.intp] | None]:
    """Merge each copy with the one before where both ends continue it.

    Parameters
    ----------
    dst, src : ndarray of uint64
        The columns.
    size : int or ndarray of uint64
        Bytes of every copy, or of each.
    bounds : ndarray of uint64
        Addresses at which no copy may be continued.

    Returns
    -------
    columns : tuple
        Merged destinations, sources and sizes.
    first : ndarray of intp or None
        Index of the first row that went into each; None if nothing was merged.
    """
    step = np.uint64(size) if isinstance(size, int) else size[:-1]
    continues = (dst[1:] - dst[:-1] == step) & (src[1:] - src[:-1] == step)
    if bounds.size and continues.any():
        continues &= ~(np.isin(dst[1:], bounds) | np.isin(src[1:], bounds))
    if not continues.any():
        return (dst, src, size), None
    first = np.flatnonzero(np.concatenate(([True], ~continues)))
    if isinstance(size, int):
        sizes = np.diff(first, append=len(dst)).astype(np.uint64) * np.uint64(size)
    else:
        sizes = np.add.reduceat(size, first)
    return (dst[first], src[first], sizes), first


def concatenate(parts: Sequence[Copies]) -> Copies:
    """Join the copies of several layers; rows keep their descriptions."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return no_copies()
    boxes = join_boxes([(part.boxes, part.size, len(part)) for part in parts])
    return Copies(
        np.concatenate([part.dst for part in parts]),
        np.concatenate([part.src for part in parts]),
        _common_size(parts),
        Ends.joined([part.ends for part in parts]),
        Layers([part.origin for part in parts], np.cumsum([len(part) for part in parts])),
        mergeable=boxes is None and any(part.mergeable for part in parts),
        boxes=boxes,
    )


def _common_size(parts: Sequence[Copies]) -> Addresses | int:
    sizes = {part.uniform for part in parts}
    if len(sizes) == 1 and 0 not in sizes:
        return sizes.pop()
    return np.concatenate([part.sizes for part in parts])
