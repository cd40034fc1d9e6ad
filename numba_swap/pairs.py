"""Pairs of copies, one out and one in, made together so that they may share their memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies import Copies
from numba_swap.driver.api import compiled
from numba_swap.integers import Integers

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


class Pairing(NamedTuple):
    """Which rows of an exchange go together.

    Attributes
    ----------
    partner : ndarray of int64
        For each row of what goes out, the row of what comes in; -1 for one that is alone.
    alone : ndarray of int64
        The rows of what comes in that are alone.
    """

    partner: npt.NDArray[np.int64]
    alone: npt.NDArray[np.int64]


def paired_as_they_stand(out_rows: Integers, in_rows: Integers, slots: int, blocks: int) -> bool:
    """Whether rows of the same number can be partners, and none is left; in doubt not.

    Parameters
    ----------
    out_rows, in_rows, slots, blocks
        As for `pair_rows`.
    """
    return bool(compiled().paired_as_they_stand(out_rows, in_rows, slots, blocks))


def pair_rows(out_rows: Integers, in_rows: Integers, slots: int, blocks: int) -> Pairing | None:
    """Pair rows that touch the same slot or the same block, and the others as they come.

    Parameters
    ----------
    out_rows, in_rows : ndarray of int64, shape (n, 2)
        Source and destination block of each row: from slots to blocks, and from blocks to slots.
        No row writes what another one of the same array does.
    slots, blocks : int
        How many there are.

    Returns
    -------
    Pairing or None
        None if some row meets more than one other.
    """
    partner = np.full(len(out_rows), -1, dtype=np.int64)
    taken = np.full(len(in_rows), -1, dtype=np.int64)
    if not compiled().pair_rows(out_rows, in_rows, slots, blocks, partner, taken):
        return None
    return Pairing(partner, np.flatnonzero(taken < 0))
