"""Which slots and blocks the rows of an exchange share, and which rows can be made together."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.inputs.mapping import Integers

OUT, IN = 0, 1


class Pairing(NamedTuple):
    """Which rows of an exchange go together.

    Attributes
    ----------
    partner : ndarray of int64
        For each row of what goes out, the row of what comes in; -1 for one that has none.
    unpaired : ndarray of int64
        The rows of what comes in that have none.
    """

    partner: Integers
    unpaired: Integers


class SlotTable:
    """The slots and blocks that rows use, numbered from 0 on: so much memory as there are rows.

    Parameters
    ----------
    out_rows, in_rows : ndarray of int64, shape (n, 2)
        Source and destination block of each row: from slots to blocks, and from blocks to slots.
        All are in range, and no row writes what another one of the same array does.
    slots, blocks : int
        How many there are.

    Attributes
    ----------
    slots, blocks : int
        How many the rows use.
    reads, writes : tuple of ndarray of int64
        For what goes out and what comes in, the number of the place that each row reads, and of
        the one that it writes: slots are read by what goes out, blocks by what comes in.
    over_slots, over_blocks : bool
        Whether what comes in overwrites a slot that goes out, and what goes out a block that comes
        in.
    """

    def __init__(self, out_rows: Integers, in_rows: Integers, slots: int, blocks: int) -> None:
        out_slots, out_blocks = (np.empty(len(out_rows), dtype=np.int64) for _ in range(2))
        in_slots, in_blocks = (np.empty(len(in_rows), dtype=np.int64) for _ in range(2))
        number = native.pairing.number_ids
        self.slots, shared_slots = number(out_rows, slots, in_rows, 0, out_slots, in_slots)
        self.blocks, shared_blocks = number(out_rows, blocks, in_rows, 1, out_blocks, in_blocks)
        self.reads = out_slots, in_blocks
        self.writes = out_blocks, in_slots
        self.over_slots, self.over_blocks = bool(shared_slots), bool(shared_blocks)

    @cached_property
    def pairing(self) -> Pairing | None:
        """The rows that touch the same slot or block in pairs, and the others as they come.

        None if some row meets more than one other.
        """
        (out_slots, in_blocks), (out_blocks, in_slots) = self.reads, self.writes
        partner = np.full(len(out_slots), -1, dtype=np.int64)
        taken = np.full(len(in_slots), -1, dtype=np.int64)
        pair = native.pairing.pair_by_number
        if not (
            pair(out_slots, in_slots, self.slots, partner, taken)
            and pair(out_blocks, in_blocks, self.blocks, partner, taken)
        ):
            return None
        native.pairing.pair_the_rest(partner, taken)
        return Pairing(partner, np.flatnonzero(taken < 0))

    def is_read(self, side: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return a mark for each place: whether a row of one direction reads it."""
        marks = np.zeros(self.slots if side == OUT else self.blocks, dtype=bool)
        marks[self.reads[side]] = True
        return marks
