"""Where rows are staged: the number of each byte, and the pieces in which they go. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap import native
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.copies.provenance import Selected
from numba_swap.device.host_threads import SHARE_BYTES
from numba_swap.device.tuning import Tuning

# The kernel moves so many bytes at once where both ends agree modulo that.
_WORD = 16

Numbers = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """What is staged at a time: bytes ``begin`` to ``end``, of rows ``first`` to ``stop``."""

    begin: int
    end: int
    first: int
    stop: int


class Ring(NamedTuple):
    """How much staging memory copies need.

    Attributes
    ----------
    piece_bytes : int
        Of each piece, at most; a multiple of 16.
    pieces : int
        How many are under way at a time.
    """

    piece_bytes: int
    pieces: int


def ring_for(nbytes: int, tuning: Tuning) -> Ring:
    """Return what so many bytes need: short swaps go in pieces, too, to have link and threads busy.

    Parameters
    ----------
    nbytes : int
        Of all copies.
    tuning : Tuning
        How long pieces are.
    """
    share = 1 << max(0, -(-nbytes // tuning.ring_pieces) - 1).bit_length()
    piece = min(tuning.ring_piece_bytes, max(tuning.ring_smallest_bytes, share))
    # Two at least: threads fill one while the one before is submitted.
    return Ring(piece, max(2, min(tuning.ring_pieces, -(-nbytes // piece))))


class Layout:
    """Copies, numbered byte by byte in the order in which they are staged.

    A row has numbers that agree with its address on the device modulo 16, and so has its place in
    staging memory: the kernel then copies it 16 bytes at a time, wherever it lies on the host.

    Parameters
    ----------
    copies : Copies
        Between host and device.
    piece_bytes : int
        The most bytes of a piece; a multiple of 16.

    Attributes
    ----------
    pieces : list of Piece
        In their order. A row that is longer than a piece is cut; others are not.
    """

    def __init__(self, copies: Copies, piece_bytes: int) -> None:
        self.leaves = copies.direction is Direction.D2H
        plain = copies.unfolded()
        # Not the copies themselves, which keep this: they would keep themselves alive.
        self._origin, self._uniform, self._sizes = plain.origin, plain.uniform, plain.sizes
        # Of rows that are aligned on the host, too, nothing has to be asked piece by piece.
        bits = plain.alignment_bits
        self._bits = bits if bits % _WORD == 0 else None
        self._near, self._far = (plain.dst, plain.src) if self.leaves else (plain.src, plain.dst)
        sizes = plain.uniform or plain.sizes[:-1]
        distances = self._far[1:] - self._far[:-1]
        if plain.uniform and self._bits is not None:
            self._offsets: Numbers = np.arange(len(plain), dtype=np.int64) * plain.uniform
        else:
            steps = np.concatenate((self._far[:1] % _WORD, (distances - sizes) % _WORD + sizes))
            self._offsets = np.cumsum(steps, dtype=np.uint64).view(np.int64)
        # Neighbours on the device are neighbours in staging memory, too.
        self._may_merge = bool((distances == sizes).any())
        self.pieces = self._cut(piece_bytes)

    def _size(self, row: int) -> int:
        return self._uniform or int(self._sizes[row])

    def _cut(self, piece_bytes: int) -> list[Piece]:
        pieces: list[Piece] = []
        offsets, row, rows = self._offsets, 0, len(self._offsets)
        begin = int(offsets[0])
        while row < rows:
            limit = begin - begin % _WORD + piece_bytes
            stop = int(np.searchsorted(offsets, limit))
            last = stop - 1
            end = int(offsets[last]) + self._size(last)
            if end > limit and last > row:
                stop, last = last, last - 1
                end = int(offsets[last]) + self._size(last)
            if end > limit:  # one row, which goes on in the next piece
                pieces.append(Piece(begin, limit, row, stop))
                begin = limit
                continue
            pieces.append(Piece(begin, end, row, stop))
            row = stop
            begin = int(offsets[row]) if row < rows else end
        return pieces

    @property
    def most_rows(self) -> int:
        """Rows of the piece that has the most."""
        return max(piece.stop - piece.first for piece in self.pieces)

    def job(self, piece: Piece, address: int) -> Numbers:
        """Return what threads have to do for a piece that is staged at an address."""
        columns = (column.ctypes.data for column in (self._near, self._offsets, self._sizes))
        words = {
            **dict(zip(("near", "offsets", "sizes"), columns, strict=True)),
            "uniform": self._uniform,
            "rows": len(self._offsets),
            "begin": piece.begin,
            "end": piece.end,
            "place": self._place(piece, address),
            "share": SHARE_BYTES,
            "leaves": int(self.leaves),
        }
        return np.array([words.get(name, 0) for name in native.staging.JOB], dtype=np.int64)

    def copies(self, piece: Piece, address: int, ends: Ends) -> Copies:
        """Return the copies of a piece between the device and an address in staging memory."""
        rows = slice(piece.first, piece.stop)
        staged = (self._offsets[rows] + self._place(piece, address)).view(np.uint64)
        far, size = self._far[rows], self._uniform or self._sizes[rows]
        before = piece.begin - int(self._offsets[piece.first])
        beyond = int(self._offsets[piece.stop - 1]) + self._size(piece.stop - 1) - piece.end
        if before or beyond:
            far, size = far.copy(), np.array(self._sizes[rows])
            staged[0] += np.uint64(before)
            far[0] += np.uint64(before)
            size[0] -= np.uint64(before)
            size[-1] -= np.uint64(beyond)
        dst, src = (staged, far) if self.leaves else (far, staged)
        found = Copies(
            dst,
            src,
            size,
            ends,
            Selected(self._origin, range(piece.first, piece.stop), others_run=False),
            alignment_bits=self._bits,
            mergeable=self._may_merge,
        )
        return found.coalesced()

    @staticmethod
    def _place(piece: Piece, address: int) -> int:
        """Return where number 0 would stand."""
        return address - (piece.begin - piece.begin % _WORD)


def layout_of(copies: Copies, ring: Ring) -> Layout:
    """Return the layout of copies; made once, and kept with them."""
    key = Layout, ring.piece_bytes
    layout: Layout | None = copies.memo.get(key)
    if layout is None:
        layout = copies.memo.setdefault(key, Layout(copies, ring.piece_bytes))
    return layout
