"""Pairs of copies, one out and one in, made together so that they may share their memory."""

from __future__ import annotations

from typing import Any

from numba_swap.copies.copies import Copies

# The widths in bytes that a kernel can read and write at once, and that it can do with.
_WIDTHS = (16, 8, 4)


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
    prepared : dict
        What is derived and wanted again.
    """

    def __init__(self, out: Copies, into: Copies) -> None:
        self.out = out
        self.into = into
        self.nbytes = out.nbytes + into.nbytes
        bits = out.alignment_bits | into.alignment_bits
        self.width = next((width for width in _WIDTHS if bits % width == 0), 0)
        self.prepared: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.out)
