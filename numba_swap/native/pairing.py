"""Rows of an exchange: which slots and blocks they share, and which rows go together."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import column, compiled, integer
from numba_swap.native.ccall import mapping as mapping_type
from numba_swap.native.ccall import rows as rows_type
from numba_swap.native.rows import FEW_BLOCKS_A_ROW, find_slot, new_slots

# As `FEW_BLOCKS_A_ROW`, for a table of bits.
_MOST_BITS_A_ROW = 256


@compiled(integer(rows_type, integer))
def _find(keys, block):  # type: ignore[no-untyped-def]
    """Return the place of a block in a hash table, and put it there."""
    at = find_slot(keys, block)
    keys[at] = block + 1
    return at


@compiled(
    types.UniTuple(integer, 2)(mapping_type, integer, mapping_type, integer, rows_type, rows_type)
)
def number_ids(one, blocks, other, column, numbers, other_numbers):  # type: ignore[no-untyped-def]
    """Give the ids of one pool numbers from 0 on: those in a column of `one`, and in `other`.

    Parameters
    ----------
    one, other : ndarray of int64, shape (n, 2) and (m, 2)
        Rows of ids, all in range.
    blocks : int
        How many there may be.
    column : int
        Which column of `one`; the ids of the same pool stand in the other column of `other`.
    numbers, other_numbers : ndarray of int64
        Filled with the number of the id of each row.

    Returns
    -------
    count, shared : int
        How many different ids there are, and how many rows of `other` have one that `one` has.
    """
    rows = len(one) + len(other)
    direct = blocks <= FEW_BLOCKS_A_ROW * rows
    keys = np.zeros(0, dtype=np.int64) if direct else new_slots(rows)
    known = np.zeros(blocks if direct else len(keys), dtype=np.int32)  # the number plus 1
    count = shared = 0
    for row in range(len(one)):
        at = one[row, column] if direct else _find(keys, one[row, column])
        if known[at] == 0:
            count += 1
            known[at] = count
        numbers[row] = known[at] - 1
    in_one = count
    for row in range(len(other)):
        at = other[row, 1 - column] if direct else _find(keys, other[row, 1 - column])
        if known[at] == 0:
            count += 1
            known[at] = count
        if known[at] <= in_one:
            shared += 1
        other_numbers[row] = known[at] - 1
    return count, shared


@compiled(types.boolean(rows_type, rows_type, integer, rows_type, rows_type))
def pair_by_number(out_numbers, in_numbers, count, partner, taken):  # type: ignore[no-untyped-def]
    """Pair rows that have a number in common; False if one would need two partners."""
    users = np.zeros(count, dtype=np.int32)  # the row that has it, plus 1; -1 if several do
    for row in range(len(out_numbers)):
        at = out_numbers[row]
        users[at] = row + 1 if users[at] == 0 else -1
    for row in range(len(in_numbers)):
        user = users[in_numbers[row]]
        if user == 0:
            continue
        if user < 0:
            return False
        other = user - 1
        if taken[row] != other:
            if taken[row] >= 0 or partner[other] >= 0:
                return False
            taken[row] = other
            partner[other] = row
    return True


@compiled(types.void(rows_type, rows_type))
def pair_the_rest(partner, taken):  # type: ignore[no-untyped-def]
    """Let the rows that have no partner go together as they come."""
    row = 0
    for other in range(len(partner)):
        while row < len(taken) and taken[row] >= 0:
            row += 1
        if partner[other] < 0 and row < len(taken):
            partner[other] = row
            taken[row] = other


@compiled(types.boolean(rows_type, integer))
def _was_marked(marks, number):  # type: ignore[no-untyped-def]
    """Mark a number; whether it was marked before."""
    bit = 1 << (number & 63)
    before = marks[number >> 6] & bit
    marks[number >> 6] |= bit
    return before != 0


_pool = types.UniTuple(integer, 3)
_place = integer(mapping_type, _pool, _pool, integer, column, rows_type, rows_type)


@compiled(types.boolean(column, integer, integer))
def _continues(words, at, nbytes):  # type: ignore[no-untyped-def]
    return words[at] - words[at - 1] == types.uint64(nbytes)


@compiled(_place)
def _place_out(out_rows, device, host, nbytes, words, read_slots, written_blocks):  # type: ignore[no-untyped-def]
    """Place what goes out; -1 if a slot or block is out of range, or stands in two rows.

    Otherwise the number of rows that continue the one before at both ends.
    """
    rows = len(out_rows)
    neighbours = 0
    for row in range(rows):
        # Each id is read once: another thread may be writing to the mapping.
        slot, block = out_rows[row, 0], out_rows[row, 1]
        if slot < 0 or slot >= device[2] or block < 0 or block >= host[2]:
            return -1
        if _was_marked(read_slots, slot) or _was_marked(written_blocks, block):
            return -1
        words[row] = host[0] + block * host[1]
        words[rows + row] = device[0] + slot * device[1]
        if row > 0 and _continues(words, row, nbytes) and _continues(words, rows + row, nbytes):
            neighbours += 1
    return neighbours


@compiled(_pool(mapping_type, _pool, _pool, integer, column, rows_type, rows_type))
def _place_in(in_rows, device, host, nbytes, words, read_slots, written_blocks):  # type: ignore[no-untyped-def]
    """Place what comes in; -1 also if a row meets one that goes out, but for its own.

    Otherwise what `place_pairs` returns.
    """
    rows = len(in_rows)
    written_slots = np.zeros(len(read_slots), dtype=np.int64)
    neighbours = slots_shared = blocks_shared = 0
    for row in range(rows):
        block, slot = in_rows[row, 0], in_rows[row, 1]
        if slot < 0 or slot >= device[2] or block < 0 or block >= host[2]:
            return -1, 0, 0
        to, at = types.uint64(device[0] + slot * device[1]), types.uint64(host[0] + block * host[1])
        slot_is_read = read_slots[slot >> 6] & (1 << (slot & 63)) != 0
        block_is_written = written_blocks[block >> 6] & (1 << (block & 63)) != 0
        if (
            _was_marked(written_slots, slot)
            or (slot_is_read and words[rows + row] != to)
            or (block_is_written and words[row] != at)
        ):
            return -1, 0, 0
        slots_shared += slot_is_read
        blocks_shared += block_is_written
        words[2 * rows + row] = to
        words[3 * rows + row] = at
        if (
            row > 0
            and _continues(words, 2 * rows + row, nbytes)
            and _continues(words, 3 * rows + row, nbytes)
        ):
            neighbours += 1
    return neighbours, slots_shared, blocks_shared


@compiled(_pool(mapping_type, mapping_type, _pool, _pool, integer, column))
def place_pairs(out_rows, in_rows, device, host, nbytes, words):  # type: ignore[no-untyped-def]
    """Turn the rows of both directions into addresses, if they go together as they stand.

    That is so where there are as many of each, no block is written twice, and every slot or block
    that is read and written is so by rows of one number, and read by no others.

    Parameters
    ----------
    out_rows, in_rows : ndarray of int64, shape (n, 2)
        From slots of `device` to blocks of `host`, and back.
    device, host : tuple of int
        Of each pool: its address, bytes from block to block, and how many blocks.
    nbytes : int
        Bytes of a block.
    words : ndarray of uint64
        Filled with four columns of n addresses: where each block that goes out arrives, where it
        comes from, and the same for what comes in.

    Returns
    -------
    neighbours : int
        How many rows continue the one before at both ends; -1 if they do not go together, or
        where that is in doubt: a closer look then tells what it is.
    slots, blocks : int
        How many slots are read and overwritten, and how many blocks.
    """
    rows = len(out_rows)
    if rows == 0 or len(in_rows) != rows or max(device[2], host[2]) > _MOST_BITS_A_ROW * rows:
        return -1, 0, 0
    read_slots = np.zeros((device[2] >> 6) + 1, dtype=np.int64)
    written_blocks = np.zeros((host[2] >> 6) + 1, dtype=np.int64)
    out = _place_out(out_rows, device, host, nbytes, words, read_slots, written_blocks)
    if out < 0:
        return -1, 0, 0
    into, slots_shared, blocks_shared = _place_in(
        in_rows, device, host, nbytes, words, read_slots, written_blocks
    )
    if into < 0:
        return -1, 0, 0
    return out + into, slots_shared, blocks_shared
