"""Who is in which slot, who leaves, and that knowing the future is best."""

import itertools
from collections import Counter, OrderedDict
from functools import lru_cache

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.native import pages
from numba_swap.paging.cache.page_table import MISS, POLICIES, PageTable
from numba_swap.paging.cache.replay import ALL, replay


def check(table):
    """Table and blocks say the same of each other, and no slot is lost."""
    blocks = table.table[:, pages.BLOCK]
    for slot in np.flatnonzero(blocks >= 0):
        assert table.slot_of[blocks[slot]] == slot
    assert (table.slot_of >= 0).sum() == (blocks >= 0).sum()
    free, slot = set(), int(table.heads[pages.FREE])
    while slot >= 0:
        assert slot not in free
        assert blocks[slot] == -1
        free.add(slot)
        slot = int(table.table[slot, pages.NEXT])
    assert len(free) == table.heads[pages.FREE_COUNT] == (blocks < 0).sum()
    assert table.in_use == (table.table[:, pages.LEASES] != 0).sum()
    if table.policy == pages.LRU:
        order, slot = [], int(table.heads[pages.HEAD])
        while slot >= 0:
            order.append(slot)
            slot = int(table.table[slot, pages.NEXT])
        assert sorted(order) == np.flatnonzero(blocks >= 0).tolist()


def lease(table, ids, *, writes=False):
    ids = np.asarray(ids, np.int64)
    out, misses = np.empty(len(ids), np.int32), np.empty(len(ids), np.int64)
    status = table.look(ids, out, misses, writes=int(writes), holds=1)
    if status == MISS:
        count = int(table.heads[pages.MISSES])
        table.commit(misses[:count], table.choose(count), out, 1, writes=int(writes), holds=1)
    return status, out


class Model:
    """The same in a few lines of Python, for requests of single blocks."""

    def __init__(self, slots, policy):
        self.slots, self.policy = slots, policy
        self.there, self.counts, self.hand, self.ring = OrderedDict(), Counter(), 0, []

    def request(self, block):
        if block in self.there:
            self.there.move_to_end(block)
            self.counts[block] += 1
            if self.policy == "clock":
                self.ring[
                    self.ring.index([block, 0])
                    if [block, 0] in self.ring
                    else self.ring.index([block, 1])
                ][1] = 1
            return 0
        if len(self.there) == self.slots:
            self.evict(block)
        elif self.policy == "clock":
            self.ring.append([block, 1])
        self.there[block] = True
        self.counts[block] = 1
        return 1

    def evict(self, block):
        if self.policy == "lru":
            victim = next(iter(self.there))
        elif self.policy == "lfu":
            victim = min(self.there, key=self.counts.__getitem__)  # the first: used longest ago
        else:
            while self.ring[self.hand][1]:
                self.ring[self.hand][1] = 0
                self.hand = (self.hand + 1) % self.slots
            victim = self.ring[self.hand][0]
            self.ring[self.hand] = [block, 1]
            self.hand = (self.hand + 1) % self.slots
        del self.there[victim]
        del self.counts[victim]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_policies_are_what_their_names_say(policy, seed):
    rng = np.random.default_rng(seed)
    table, model = PageTable(12, 5, policy), Model(5, policy)
    for step in range(300):
        block = int(min(rng.zipf(1.3), 12)) - 1
        assert table.request([block]) == model.request(block), step
        assert set(table.residents().tolist()) == set(model.there)
        check(table)


@pytest.mark.parametrize("policy", [*POLICIES, lambda blocks, count: blocks[-count:]])
def test_random_requests_leases_and_drops_keep_the_table_right(policy, rng):
    table, open_leases = PageTable(40, 12, policy), []
    for _ in range(400):
        what = rng.integers(4)
        if what < 2:
            ids = rng.integers(0, 40, rng.integers(1, 8))
            writes = bool(rng.integers(2))
            before = table.slot_of.copy()
            leased = {int(slot) for out, _ in open_leases for slot in out}
            status, out = lease(table, ids, writes=writes)
            if status > MISS:
                assert (table.slot_of == before).all()
            else:
                assert (table.slot_of[ids] == out).all()
                open_leases.append((out, writes))
                for slot in leased:  # nobody who was leased has left
                    assert table.slot_of[np.flatnonzero(before == slot)[0]] == slot
        elif what == 2 and open_leases:
            out, writes = open_leases.pop(rng.integers(len(open_leases)))
            table.release(out, 2, dirty=writes)
            if writes:
                assert set(out.tolist()) <= set(table.dirty_slots().tolist())
        else:
            resting = np.flatnonzero(table.table[:, pages.LEASES] == 0)
            table.drop(rng.choice(resting, min(2, len(resting)), replace=False).astype(np.int64))
        check(table)


def test_duplicates_are_one_block():
    table = PageTable(10, 2)
    status, out = lease(table, [3, 3, 5, 3])
    assert status == MISS
    assert out[0] == out[1] == out[3] != out[2]
    assert table.in_use == 2
    table.release(out, 1, dirty=False)
    assert table.in_use == 0
    check(table)


def test_a_function_may_choose_but_only_whom_it_was_given():
    table = PageTable(10, 3, lambda blocks, count: blocks[-count:])  # most recently used
    for block in (0, 1, 2):
        table.request([block])
    table.request([3])
    assert table.residents().tolist() == [0, 1, 3]
    for wrong in (lambda b, n: b[:0], lambda b, n: [9] * n, lambda b, n: [0.5] * n):
        table = PageTable(10, 1, wrong)
        table.request([0])
        with pytest.raises(ns.BadArgumentError, match="evict chose"):
            table.request([1])
    with pytest.raises(ns.BadArgumentError, match="none of 'lru'"):
        PageTable(10, 1, "fifo")


def fewest(requests, slots):
    """How many blocks must come in at least, tried by brute force."""

    @lru_cache(None)
    def go(i, there):
        if i == len(requests):
            return 0
        wanted = frozenset(requests[i])
        missing = wanted - there
        leave = max(0, len(there) + len(missing) - slots)
        return len(missing) + min(
            go(i + 1, (there - frozenset(some)) | missing)
            for some in itertools.combinations(sorted(there - wanted), leave)
        )

    return go(0, frozenset())


@pytest.mark.parametrize("seed", range(60))
def test_nobody_fetches_less_than_who_knows_the_future(seed):
    rng = np.random.default_rng(seed)
    blocks, slots = int(rng.integers(3, 8)), int(rng.integers(2, 5))
    requests = [
        rng.integers(0, blocks, rng.integers(1, slots + 1)).tolist()
        for _ in range(rng.integers(1, 10))
    ]
    fetched = {policy: replay(requests, blocks, slots, policy).fetched for policy in ALL}
    assert fetched["belady"] == fewest([tuple(ids) for ids in requests], slots)
    assert min(fetched.values()) == fetched["belady"]


def test_on_long_traces_too_it_is_never_below_the_others(rng):
    requests = [np.minimum(rng.zipf(1.2, 20), 500) - 1 for _ in range(300)]
    for slots in (20, 60, 200):
        rates = {policy: replay(requests, 500, slots, policy).hit_rate for policy in ALL}
        assert max(rates, key=rates.get) == "belady"
