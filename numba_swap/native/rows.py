"""From rows of block ids to addresses, and all that may be wrong with them on the way."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import (
    column,
    compiled,
    integer,
)
from numba_swap.native.ccall import mapping as mapping_type
from numba_swap.native.ccall import rows as slots_type

SRC_OUT_OF_RANGE, DST_OUT_OF_RANGE, DST_TWICE, NEIGHBOURS = 1, 2, 4, 8
# A GPU that reads or writes host memory at random over more than about 1 GiB misses its address
# translations: blocks of 512 bytes then move at half the speed, on an H200. Copies grouped by
# regions of this size do not.
REGION_BYTES = 1 << 28
# Up to so many rows, comparing all pairs is faster than a table.
_FEW_ROWS = 32
# Up to so many blocks a row, a mark for every block is faster than a hash table of the rows.
FEW_BLOCKS_A_ROW = 8


@compiled(slots_type(integer))
def new_slots(rows):  # type: ignore[no-untyped-def]
    """Make a hash table for the blocks of so many rows, at most half full; 0 is an empty slot."""
    size = 64
    while size < 2 * rows:
        size *= 2
    return np.zeros(size, dtype=np.int64)


@compiled(integer(slots_type, integer))
def find_slot(slots, block):  # type: ignore[no-untyped-def]
    """Return the slot that holds a block, as ``block + 1``, or the empty one where it belongs."""
    mask = len(slots) - 1
    # Fibonacci hashing; the high bits of the product are the mixed ones.
    slot = (((block + 1) * -7046029254386353131) >> 20) & mask
    while slots[slot] != 0 and slots[slot] != block + 1:
        slot = (slot + 1) & mask
    return slot


@compiled(types.boolean(mapping_type, integer))
def _has_duplicates(mapping, blocks):  # type: ignore[no-untyped-def]
    """Whether a destination block, each in range, stands in two rows."""
    rows = len(mapping)
    if rows <= _FEW_ROWS:
        for row in range(rows):
            for other in range(row):
                if mapping[other, 1] == mapping[row, 1]:
                    return True
        return False
    if blocks <= FEW_BLOCKS_A_ROW * rows:
        seen = np.zeros(blocks, dtype=np.uint8)
        for row in range(rows):
            block = mapping[row, 1]
            # In range a moment ago, but another thread may be writing to the mapping.
            if block < 0 or block >= blocks or seen[block] != 0:
                return True
            seen[block] = 1
        return False
    slots = new_slots(rows)
    for row in range(rows):
        slot = find_slot(slots, mapping[row, 1])
        if slots[slot] != 0:
            return True
        slots[slot] = mapping[row, 1] + 1
    return False


@compiled(integer(mapping_type))
def find_read_and_written(mapping):  # type: ignore[no-untyped-def]
    """Find a row whose source block is the destination of another row, both ids of one pool.

    Returns
    -------
    int
        The first such row, or -1. Rows from a block to itself do no harm.
    """
    slots = new_slots(len(mapping))
    for row in range(len(mapping)):
        if mapping[row, 0] != mapping[row, 1]:
            slots[find_slot(slots, mapping[row, 1])] = mapping[row, 1] + 1
    for row in range(len(mapping)):
        source = mapping[row, 0]
        if source != mapping[row, 1] and slots[find_slot(slots, source)] != 0:
            return row
    return -1


@compiled(types.boolean(mapping_type, types.UniTuple(integer, 6), integer, column, column))
def _group_rows(mapping, sides, grouped_by, dst, src):  # type: ignore[no-untyped-def]
    """Place rows by regions of one side; False if the mapping is no longer what it was."""
    src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks = sides
    blocks, step = (src_blocks, src_step) if grouped_by == 0 else (dst_blocks, dst_step)
    step = abs(step)
    # A counting sort: how many rows each region has, where it begins, and each row's place.
    # Another thread may be writing to the mapping: what it says is looked at anew each time.
    places = np.zeros(blocks * step // REGION_BYTES + 2, dtype=np.int64)
    for row in range(len(mapping)):
        block = mapping[row, grouped_by]
        if block < 0 or block >= blocks:
            return False
        places[block * step // REGION_BYTES + 1] += 1
    for region in range(1, len(places)):
        places[region] += places[region - 1]
    for row in range(len(mapping)):
        source, target = mapping[row, 0], mapping[row, 1]
        if source < 0 or source >= src_blocks or target < 0 or target >= dst_blocks:
            return False
        region = (source if grouped_by == 0 else target) * step // REGION_BYTES
        place = places[region]
        if place >= len(mapping):
            return False
        places[region] = place + 1
        src[place] = src_at + source * src_step
        dst[place] = dst_at + target * dst_step
    return True


@compiled(
    integer(
        mapping_type,
        integer,
        integer,
        integer,
        integer,
        integer,
        integer,
        integer,
        integer,
        column,
        column,
    )
)
def place_rows(  # type: ignore[no-untyped-def]
    mapping,
    src_at,
    src_step,
    src_blocks,
    dst_at,
    dst_step,
    dst_blocks,
    nbytes,
    grouped_by,
    dst,
    src,
):
    """Turn rows of block ids into addresses, and look for all that may be wrong with them.

    Parameters
    ----------
    mapping : ndarray of int64, shape (n, 2)
        Source and destination block of each row.
    src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks : int
        Address of block 0, bytes from block to block, and number of blocks, of each side.
    nbytes : int
        Bytes of a contiguous block; 0 if blocks are not contiguous, so that none are neighbours.
    grouped_by : int
        The column, 0 or 1, whose addresses are to be grouped by regions of `REGION_BYTES`; -1 to
        keep the rows in order. Not done where there are neighbours.
    dst, src : ndarray of uint64, shape (n,)
        Filled with the addresses.

    Returns
    -------
    int
        0, or which of the flags above was found first.
    """
    found = 0
    rows = len(mapping)
    for row in range(rows):
        source, target = mapping[row, 0], mapping[row, 1]
        if source < 0 or source >= src_blocks:
            return SRC_OUT_OF_RANGE
        if target < 0 or target >= dst_blocks:
            return DST_OUT_OF_RANGE
        src[row] = src_at + source * src_step
        dst[row] = dst_at + target * dst_step
        if (
            row > 0
            and (source - mapping[row - 1, 0]) * src_step == nbytes
            and (target - mapping[row - 1, 1]) * dst_step == nbytes
        ):
            found = NEIGHBOURS
    if _has_duplicates(mapping, dst_blocks):
        return DST_TWICE
    if grouped_by >= 0 and found == 0:
        sides = (src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks)
        if not _group_rows(mapping, sides, grouped_by, dst, src):
            return SRC_OUT_OF_RANGE
    return found
