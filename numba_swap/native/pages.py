"""The page table of a cache of blocks: looking up, choosing who leaves, and what follows.

A table has one row of 64 bytes for each slot, so that all that is known of a slot is read at once.
"""

from __future__ import annotations

from numba import types

from numba_swap.native.ccall import compiled, integer
from numba_swap.native.ccall import mapping as table_type
from numba_swap.native.ccall import rows as words_type

# Of each slot: the block in it (-1: none), whether it was written since it was fetched, its leases
# (-1: one that writes), the last ticket of any use and of any write, the last request that touched
# it, and two words of the policy: neighbours in the order of use (LRU), or mark (CLOCK), or number
# of uses and last request (LFU). Of a free slot the last one is the next free slot.
BLOCK, DIRTY, LEASES, USED, WRITTEN, MARK, PREV, NEXT = range(8)
FIELDS = 8
# Of the whole: requests so far, the ends of the order of use, the hand of the clock, the first free
# slot, how many are free and how many leased; then what the last call found.
REQUEST, HEAD, TAIL, HAND, FREE, FREE_COUNT, IN_USE = range(7)
HITS, MISSES, WAIT, AT, CLEAN_OUT, DIRTY_OUT = range(7, 13)
HEADS = 13
LRU, CLOCK, LFU = range(3)
HIT, MISS, OUT_OF_RANGE, CONFLICT, FULL = range(5)
# A block that is being looked for, by the number of its miss: -2 is the first one.
_FIRST_MISS = -2
_UNLINKED = -2  # a slot that is not in the order of use

_slots_type = types.Array(types.int32, 1, "C")
_nothing = types.none


@compiled(_nothing(_slots_type, table_type, words_type, integer, integer, integer))
def _take(  # type: ignore[no-untyped-def]  # noqa: PLR0912 -- see below
    slots, table, heads, policy, writes, holds
):
    """Lease the slots of a request (if it is to hold them) and touch them, each once.

    (One function for all of them: to pass arrays on takes ten times as long as what is done.)
    """
    request = heads[REQUEST]
    for i in range(len(slots)):
        slot = slots[i]
        if slot < 0 or table[slot, MARK] != request:
            continue
        table[slot, MARK] = -request
        if holds:
            if table[slot, LEASES] == 0:
                heads[IN_USE] += 1
            if writes:
                table[slot, LEASES] = -1
            else:
                table[slot, LEASES] += 1
        if policy == CLOCK:
            table[slot, PREV] = 1
        elif policy == LFU:
            table[slot, PREV] += 1
            table[slot, NEXT] = request
        elif heads[HEAD] != slot:
            before, after = table[slot, PREV], table[slot, NEXT]
            if before != _UNLINKED:
                table[before, NEXT] = after  # it is not the first one
                if after >= 0:
                    table[after, PREV] = before
                else:
                    heads[TAIL] = before
            first = heads[HEAD]
            table[slot, PREV], table[slot, NEXT] = -1, first
            if first >= 0:
                table[first, PREV] = slot
            else:
                heads[TAIL] = slot
            heads[HEAD] = slot


@compiled(_nothing(words_type, integer, _slots_type))
def abort(misses, count, slot_of):  # type: ignore[no-untyped-def]
    """Forget that blocks were looked for."""
    for i in range(count):
        slot_of[misses[i]] = -1


@compiled(
    integer(
        words_type,
        _slots_type,
        table_type,
        words_type,
        words_type,
        integer,
        integer,
        integer,
        _slots_type,
        words_type,
    )
)
def look(  # type: ignore[no-untyped-def]
    ids, slot_of, table, heads, saved, policy, writes, holds, out, misses
):
    """Look up the blocks of a request; lease and touch their slots if all of them are there.

    Parameters
    ----------
    ids : ndarray of int64, shape (n,)
        The blocks; one may stand there several times.
    slot_of : ndarray of int32
        Of each block.
    table, heads : ndarray of int64
        The page table.
    saved : ndarray of int64
        Of each block, the ticket of its last way back to the host.
    policy, writes, holds : int
        Who leaves first, whether the blocks are to be written, and whether slots are leased.
    out : ndarray of int32
        Filled with the slot of each id.
    misses : ndarray of int64
        Filled with the blocks that are not there; `heads` tells how many. They are marked until
        `commit` or `abort`.

    Returns
    -------
    int
        HIT: done. MISS: nothing was done yet. Else nothing was changed: OUT_OF_RANGE, CONFLICT
        (`heads` tells the index), or FULL.
    """
    heads[REQUEST] += 1
    request = heads[REQUEST]
    blocks, count = len(slot_of), 0
    hits, resting, wait = 0, 0, 0
    status, at = HIT, -1
    for i in range(len(ids)):
        block = ids[i]
        if block < 0 or block >= blocks:
            status, at = OUT_OF_RANGE, i
            break
        slot = slot_of[block]
        if slot == -1:
            slot = _FIRST_MISS - count
            misses[count] = block
            slot_of[block] = slot
            count += 1
            wait = max(wait, saved[block])
        elif slot >= 0 and table[slot, MARK] != request:
            leases = table[slot, LEASES]
            if holds and (leases < 0 or (writes and leases > 0)):
                status, at = CONFLICT, i
                break
            table[slot, MARK] = request
            hits += 1
            if leases == 0:
                resting += 1
            wait = max(wait, table[slot, WRITTEN])
            if writes:
                wait = max(wait, table[slot, USED])
        out[i] = slot
    heads[HITS], heads[MISSES], heads[WAIT], heads[AT] = hits, count, wait, at
    if status == HIT and len(table) - heads[IN_USE] - resting < count:
        status = FULL
    if status != HIT:
        abort(misses, count, slot_of)
        return status
    if count:
        return MISS
    _take(out, table, heads, policy, writes, holds)
    return HIT


@compiled(integer(table_type, words_type, words_type, words_type, integer, table_type))
def leaving(table, heads, misses, chosen, count, moves):  # type: ignore[no-untyped-def]
    """Say what moves: rows [slot, block] of dirty blocks, then rows [block, slot] of misses.

    `heads` then tells for which ticket all of it must wait: uses of a slot come after the last way
    back of the block in it. Returns the number of dirty blocks.
    """
    dirty, wait = 0, heads[WAIT]
    for i in range(count):
        slot = chosen[i]
        wait = max(wait, table[slot, USED], table[slot, WRITTEN])
        if table[slot, BLOCK] >= 0 and table[slot, DIRTY]:
            moves[dirty, 0], moves[dirty, 1] = slot, table[slot, BLOCK]
            dirty += 1
    for i in range(count):
        moves[dirty + i, 0], moves[dirty + i, 1] = misses[i], chosen[i]
    heads[WAIT] = wait
    return dirty


@compiled(_nothing(words_type, _slots_type, table_type, words_type, integer))
def drop(slots, slot_of, table, heads, policy):  # type: ignore[no-untyped-def]
    """Take the blocks out of slots, which are free then; of slots without a block, nothing."""
    for i in range(len(slots)):
        slot = slots[i]
        if table[slot, BLOCK] < 0:
            continue
        if policy == LRU:
            before, after = table[slot, PREV], table[slot, NEXT]
            if before >= 0:
                table[before, NEXT] = after
            else:
                heads[HEAD] = after
            if after >= 0:
                table[after, PREV] = before
            else:
                heads[TAIL] = before
        slot_of[table[slot, BLOCK]] = -1
        table[slot, BLOCK], table[slot, DIRTY] = -1, 0
        table[slot, NEXT] = heads[FREE]
        heads[FREE] = slot
        heads[FREE_COUNT] += 1


@compiled(
    _nothing(
        words_type,
        words_type,
        integer,
        _slots_type,
        table_type,
        words_type,
        words_type,
        integer,
        integer,
        integer,
        integer,
        _slots_type,
    )
)
def commit(  # type: ignore[no-untyped-def]
    misses, chosen, count, slot_of, table, heads, saved, ticket, policy, writes, holds, out
):
    """Let blocks be in the slots that were chosen for them; then lease and touch all of a request.

    Parameters
    ----------
    misses, slot_of, table, heads, saved, policy, writes, holds, out
        As for `look`.
    chosen : ndarray of int64
        The slots of the misses.
    count : int
        How many of the misses get theirs.
    ticket : int
        That of what moves; 0 if nothing does.
    """
    clean_out, dirty_out, request = 0, 0, heads[REQUEST]
    free = heads[FREE]
    for i in range(count):
        slot = chosen[i]
        if table[slot, BLOCK] < 0:
            free = table[slot, NEXT]  # free ones were chosen in their order
        elif table[slot, DIRTY]:
            saved[table[slot, BLOCK]] = ticket
            dirty_out += 1
        else:
            clean_out += 1
    drop(chosen[:count], slot_of, table, heads, policy)
    heads[FREE] = free
    heads[FREE_COUNT] -= count
    for i in range(count):
        slot = chosen[i]
        table[slot, BLOCK] = misses[i]
        slot_of[misses[i]] = slot
        if ticket:
            table[slot, USED] = table[slot, WRITTEN] = ticket
        table[slot, MARK] = request
        table[slot, PREV] = _UNLINKED if policy == LRU else 0
        table[slot, NEXT] = 0
    heads[CLEAN_OUT], heads[DIRTY_OUT] = clean_out, dirty_out
    for i in range(len(out)):
        at = _FIRST_MISS - out[i]
        if 0 <= at < count:
            out[i] = chosen[at]
    _take(out, table, heads, policy, writes, holds)


@compiled(_nothing(_slots_type, table_type, words_type, integer, integer))
def release(slots, table, heads, ticket, dirty):  # type: ignore[no-untyped-def]
    """End a lease of slots, which may stand there several times; `dirty` if they were written."""
    heads[REQUEST] += 1
    for i in range(len(slots)):
        slot = slots[i]
        if table[slot, MARK] == heads[REQUEST]:
            continue
        table[slot, MARK] = heads[REQUEST]
        table[slot, LEASES] = 0 if table[slot, LEASES] < 0 else table[slot, LEASES] - 1
        if table[slot, LEASES] == 0:
            heads[IN_USE] -= 1
        table[slot, USED] = ticket
        if dirty:
            table[slot, DIRTY] = 1
            table[slot, WRITTEN] = ticket


@compiled(_nothing(words_type, table_type, words_type, integer))
def cleaned(slots, table, saved, ticket):  # type: ignore[no-untyped-def]
    """Note that the blocks in slots go back to the host."""
    for i in range(len(slots)):
        slot = slots[i]
        table[slot, DIRTY], table[slot, USED] = 0, ticket
        saved[table[slot, BLOCK]] = ticket


@compiled(_nothing(words_type, words_type, words_type, words_type, words_type))
def next_uses(ids, ends, last, following, first):  # type: ignore[no-untyped-def]
    """Say when each block of a list of requests is wanted next.

    Parameters
    ----------
    ids : ndarray of int64
        The blocks of all requests, one request after the other.
    ends : ndarray of int64
        Where each request ends in it.
    last : ndarray of int64
        Of each block, filled with NEVER; afterwards the first request that wants it.
    following : ndarray of int64
        Filled, for each of `ids`, with the next later request that wants the block.
    first : ndarray of int64
        Room for as many words as there are ids.
    """
    for request in range(len(ends) - 1, -1, -1):
        begin = ends[request - 1] if request else 0
        for i in range(begin, ends[request]):
            first[i] = last[ids[i]]
        for i in range(begin, ends[request]):
            following[i] = first[i]
            last[ids[i]] = request


NEVER = 1 << 62
