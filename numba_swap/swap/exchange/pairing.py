"""Which rows of an exchange can be made together, so that they may share their memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.mapping import Integers
from numba_swap.driver.calls import compiled


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
