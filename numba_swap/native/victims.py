"""Which slots of a page table blocks come into: free ones, then those whose blocks leave."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import compiled, integer
from numba_swap.native.ccall import mapping as table_type
from numba_swap.native.ccall import rows as words_type
from numba_swap.native.pages import (
    BLOCK,
    CLOCK,
    FREE,
    HAND,
    LEASES,
    LFU,
    LRU,
    MARK,
    NEXT,
    PREV,
    REQUEST,
    TAIL,
)

_nothing = types.none


@compiled(_nothing(words_type, words_type, integer))
def _sift_down(keys, slots, count):  # type: ignore[no-untyped-def]
    """Put the first of a heap, whose largest key is to come first, where it belongs."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= count:
            return
        if child + 1 < count and keys[child + 1] > keys[child]:
            child += 1
        if keys[child] <= keys[at]:
            return
        keys[at], keys[child] = keys[child], keys[at]
        slots[at], slots[child] = slots[child], slots[at]
        at = child


@compiled(_nothing(table_type, words_type, words_type, integer, words_type, integer, integer))
def _choose_by_score(table, heads, score, count, chosen, done, leased):  # type: ignore[no-untyped-def]
    """Choose the slots that score least: by `score` of their blocks, the farthest; else LFU."""
    request, wanted = heads[REQUEST], count - done
    keys, slots = np.empty(wanted, np.int64), np.empty(wanted, np.int64)
    full = 0
    for slot in range(len(table)):
        block = table[slot, BLOCK]
        if block < 0 or table[slot, MARK] == request or (table[slot, LEASES] != 0 and not leased):
            continue
        # (Requests, and uses, below 2**31.)
        key = -score[block] if len(score) else (table[slot, PREV] << 32) + table[slot, NEXT]
        if full < wanted:
            at = full
            full += 1
            keys[at], slots[at] = key, slot
            while at and keys[(at - 1) // 2] < keys[at]:
                parent = (at - 1) // 2
                keys[at], keys[parent] = keys[parent], keys[at]
                slots[at], slots[parent] = slots[parent], slots[at]
                at = parent
        elif key < keys[0]:
            keys[0], slots[0] = key, slot
            _sift_down(keys, slots, wanted)
    for i in range(full):
        chosen[done + i] = slots[i]


@compiled(_nothing(table_type, words_type, integer, words_type, integer, words_type, integer))
def choose(table, heads, policy, score, count, chosen, leased):  # type: ignore[no-untyped-def]
    """Choose slots for blocks that come in: free ones, then those whose blocks leave.

    Parameters
    ----------
    table, heads, policy
        As for `look`, which found that there are enough.
    score : ndarray of int64
        Of each block, when it is wanted next; empty to go by the policy.
    count : int
        How many slots are wanted.
    chosen : ndarray of int64
        Filled with them.
    leased : int
        Whether, with a score, blocks that are leased are judged like the others.
    """
    request, done = heads[REQUEST], 0
    free = heads[FREE]
    while done < count and free >= 0:
        chosen[done] = free
        done += 1
        free = table[free, NEXT]
    if done == count:
        return
    if len(score) or policy == LFU:
        _choose_by_score(table, heads, score, count, chosen, done, leased)
        return
    slot = heads[TAIL] if policy == LRU else heads[HAND]
    while done < count:
        rests = (
            table[slot, BLOCK] >= 0 and table[slot, LEASES] == 0 and table[slot, MARK] != request
        )
        if policy == LRU:
            following = table[slot, PREV]
        else:
            following = slot + 1 if slot + 1 < len(table) else 0
            if rests and table[slot, PREV]:
                table[slot, PREV] = 0
                rests = False
        if rests:
            table[slot, MARK] = request  # not twice
            chosen[done] = slot
            done += 1
        slot = following
    if policy == CLOCK:
        heads[HAND] = slot


@compiled(integer(table_type, words_type, words_type))
def resting(table, heads, out):  # type: ignore[no-untyped-def]
    """List the slots whose blocks may leave, the one that was used longest ago first (LRU)."""
    count, slot = 0, heads[TAIL]
    while slot >= 0:
        if table[slot, LEASES] == 0 and table[slot, MARK] != heads[REQUEST]:
            out[count] = slot
            count += 1
        slot = table[slot, PREV]
    return count
