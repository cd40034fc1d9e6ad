"""Both directions of an exchange at once: in which piece each row runs, and what waits for what.

For what pairs cannot do, or copy engines do better. Where rows of one direction overwrite what the
other one reads, each piece of the first waits for the piece of the other that frees its places. If
each overwrites what the other reads, what comes in is staged in device memory until what goes out
has left. Nothing here asks a driver.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.inputs.mapping import Integers
from numba_swap.device.tuning import Tuning
from numba_swap.swap.exchange.pairing import IN, OUT, SlotTable


class Schedule(NamedTuple):
    """When each row runs.

    Attributes
    ----------
    strands, pieces : int
        Each direction runs in so many strands, which nothing joins before the end, of so many
        pieces each, one after the other.
    cells : tuple of ndarray of int64
        For what goes out and what comes in, the piece of each row: ``strand * pieces + piece``.
    leader : {OUT, IN} or None
        The direction that goes ahead: a piece of the other waits for that of the same number, in
        the same strand.
    staged : ndarray of bool or None
        Which incoming rows wait in device memory until their piece of what goes out has left.
    """

    strands: int
    pieces: int
    cells: tuple[Integers, Integers]
    leader: int | None = None
    staged: Any = None


def make_schedule(
    table: SlotTable,
    nbytes: int,
    block_bytes: int,
    tuning: Tuning,
    *,
    may_alias: bool = False,
) -> Schedule:
    """Find the simplest schedule that is right, by what overwrites what.

    Parameters
    ----------
    table : SlotTable
        Which rows use which places.
    nbytes : int
        Bytes of the longer direction.
    block_bytes : int
        Bytes of a block.
    tuning : Tuning
        How large pieces are.
    may_alias : bool, optional
        Whether different blocks of a pool may share bytes: ids then tell nothing.
    """
    rows = tuple(map(len, table.reads))
    if may_alias and all(rows):
        # Nothing is written before all is read.
        return _in_one_piece(rows, np.ones(rows[IN], dtype=bool))
    if table.over_slots and table.over_blocks:
        return _staged(table, block_bytes, tuning)
    leader = OUT if table.over_slots else IN if table.over_blocks else None
    steps = max(1, nbytes // tuning.smallest_piece_bytes)
    strands = min(tuning.strands, steps)
    pieces = min(tuning.pieces_a_strand, steps // strands)
    if leader is not None and np.count_nonzero(table.is_read(leader)) < rows[leader]:
        strands = 1  # a place that is read twice is free when both have, in whatever strands
    cells = [assign_evenly(count, strands * pieces) for count in rows]
    if leader is not None:
        # A place is free when its last reader has it: of equal indices the last one counts.
        follower = IN if leader == OUT else OUT
        free_after = np.full(len(table.is_read(leader)), -1)
        free_after[table.reads[leader]] = cells[leader]
        waits_for = free_after[table.writes[follower]]
        cells[follower] = np.where(waits_for >= 0, waits_for, cells[follower])
    return Schedule(strands, pieces, (cells[OUT], cells[IN]), leader)


def _in_one_piece(rows: tuple[int, ...], staged: Any) -> Schedule:
    none = [np.zeros(count, dtype=np.int64) for count in rows]
    return Schedule(1, 1, (none[OUT], none[IN]), IN, staged)


def _staged(table: SlotTable, block_bytes: int, tuning: Tuning) -> Schedule:
    """Put rows into pieces that may run one after another, what comes in going ahead."""
    (out_slots, in_blocks), (out_blocks, in_slots) = table.reads, table.writes
    rows = len(out_slots), len(in_slots)
    staged = table.is_read(OUT)[in_slots]
    whole = _in_one_piece(rows, staged)
    a_piece = max(1, tuning.staged_bytes // max(1, block_bytes))
    count = int(np.count_nonzero(staged))
    pieces = -(-count // a_piece)
    if pieces <= 1:
        return whole
    in_piece = assign_evenly(rows[IN], pieces)
    in_piece[staged] = np.arange(count) // a_piece
    # What goes out of a slot leaves in the piece in which something comes into it.
    of_slot = np.full(table.slots, -1)
    of_slot[in_slots[staged]] = in_piece[staged]
    out_piece = assign_evenly(rows[OUT], pieces)
    out_piece = np.where(of_slot[out_slots] >= 0, of_slot[out_slots], out_piece)
    # Several may read one block: the last one counts.
    of_block = np.full(table.blocks, -1)
    np.maximum.at(of_block, in_blocks, in_piece)
    if (of_block[out_blocks] > out_piece).any():
        return whole
    return Schedule(1, pieces, (out_piece, in_piece), IN, staged)


def assign_evenly(rows: int, cells: int) -> Integers:
    """Return the cell of each row: equally many successive rows have the same one."""
    return np.arange(rows, dtype=np.int64) * cells // max(1, rows)
