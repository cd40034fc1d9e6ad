"""What an exchange is planned by, without any driver; and fresh exchanges by the short way."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import capture, examples, make_array, random_bytes

import numba_swap as ns
from numba_swap import native
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.swap.exchange.pairing import IN, OUT, SlotTable
from numba_swap.swap.exchange.schedule import assign_evenly, make_schedule
from numba_swap.swap.plans.prepared.rows import PreparedRows
from numba_swap.testing import Fault

# -- numbers of slots and blocks -----------------------------------------------------------------


def as_rows(pairs):
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@st.composite
def mappings(draw, most=9):
    """Rows out and in, of few or of very many places; destinations stand in one row only."""
    slots, blocks = draw(st.integers(1, 9)), draw(st.integers(1, 12))

    def rows(sources, destinations):
        targets = draw(st.lists(st.integers(0, destinations - 1), unique=True, max_size=most))
        return as_rows([[draw(st.integers(0, sources - 1)), target] for target in targets])

    out, into = rows(slots, blocks), rows(blocks, slots)
    spread = draw(st.sampled_from([1, 7, 100, 10**8]))
    return out * spread, into * spread, slots * spread, blocks * spread


@examples(400)
@given(case=mappings())
def test_places_are_told_apart_by_number(case):
    out, into, *_ = case
    table = SlotTable(*case)
    used = (
        # The pool's places, by the rows that read and that write them; how many; what says so.
        (out[:, 0], into[:, 1], table.reads[OUT], table.writes[IN], table.slots, OUT),
        (into[:, 0], out[:, 1], table.reads[IN], table.writes[OUT], table.blocks, IN),
    )
    for read, written, read_numbers, written_numbers, count, side in used:
        numbers = {}
        for ids, given_numbers in ((read, read_numbers), (written, written_numbers)):
            for place, number in zip(ids.tolist(), given_numbers.tolist(), strict=True):
                assert numbers.setdefault(place, number) == number
        assert sorted(numbers.values()) == list(range(count))
        marks = {numbers[place] for place in read.tolist()}
        assert np.flatnonzero(table.is_read(side)).tolist() == sorted(marks)
        assert len(table.is_read(side)) == count
    assert table.over_slots == bool(set(out[:, 0].tolist()) & set(into[:, 1].tolist()))
    assert table.over_blocks == bool(set(into[:, 0].tolist()) & set(out[:, 1].tolist()))


@pytest.mark.parametrize("count", [1, 100, 5000])
def test_memory_follows_from_the_rows(rng, count):
    """A table of all places would not fit anywhere."""
    ids = [rng.choice(10**9, count, replace=False) for _ in range(2)]
    out = np.stack(ids, axis=1)
    into = np.stack([rng.integers(0, 10**9, count), rng.permutation(ids[0])], axis=1)
    table = SlotTable(out, into, 1 << 60, 1 << 60)
    assert table.slots == count
    assert count <= table.blocks <= 2 * count
    assert table.over_slots
    assert (np.sort(table.reads[OUT]) == np.arange(count)).all()
    place_of = dict(zip(table.reads[OUT].tolist(), out[:, 0].tolist(), strict=True))
    assert [place_of[number] for number in table.writes[IN].tolist()] == into[:, 1].tolist()


def partners(out, into):
    """Which rows go together, looked for one by one; None if a row meets more than one."""
    meets = [
        [j for j, (block, slot) in enumerate(into) if i[0] == slot or i[1] == block] for i in out
    ]
    met = [j for others in meets for j in others]
    if any(len(others) > 1 for others in meets) or len(set(met)) < len(met):
        return None
    free = iter([j for j in range(len(into)) if j not in met])
    partner = [others[0] if others else next(free, -1) for others in meets]
    return partner, list(free)


@examples(600)
@given(case=mappings(most=6))
def test_rows_that_meet_go_together_and_the_others_as_they_come(case):
    out, into, *_ = case
    pairing = SlotTable(*case).pairing
    expected = partners(out.tolist(), into.tolist())
    if expected is None:
        assert pairing is None
    else:
        assert (pairing.partner.tolist(), pairing.unpaired.tolist()) == expected


# -- rows that go together as they stand ---------------------------------------------------------


def place_pairs(out, into, device, host, nbytes):
    """What `native.pairing.place_pairs` returns, and the columns, by plain Python."""
    rows = len(out)
    bits = 256 * rows
    columns = [
        [host[0] + block * host[1] for _, block in out],
        [device[0] + slot * device[1] for slot, _ in out],
        [device[0] + slot * device[1] for _, slot in into],
        [host[0] + block * host[1] for block, _ in into],
    ]
    ends = [(slot, block) for slot, block in out], [(slot, block) for block, slot in into]
    if not rows or len(into) != rows or max(device[2], host[2]) > bits:
        return -1, columns
    for side in ends:
        for slot, block in side:
            if not (0 <= slot < device[2] and 0 <= block < host[2]):
                return -1, columns
    slots, blocks = ([end[i] for end in ends[0]] for i in (0, 1))
    arrivals = [slot for slot, _ in ends[1]]
    for ids in (slots, blocks, arrivals):
        if len(set(ids)) < rows:
            return -1, columns
    shared = [0, 0]
    for row, end in enumerate(ends[1]):
        for i, ids in enumerate((slots, blocks)):
            if end[i] in ids:
                if ids[row] != end[i]:
                    return -1, columns
                shared[i] += 1
    neighbours = sum(
        columns[i][row] - columns[i][row - 1] == nbytes
        and columns[i + 1][row] - columns[i + 1][row - 1] == nbytes
        for i in (0, 2)
        for row in range(1, rows)
    )
    return (neighbours, *shared), columns


@st.composite
def standing(draw):
    """Rows that often go together: each row in takes its partner's slot and block, or others."""
    slots, blocks, count = (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
        draw(st.integers(0, 6)),
    )

    def ids(most):
        if draw(st.booleans()):  # one after the other
            first = draw(st.integers(-1, most))
            return list(range(first, first + count))
        unique = draw(st.booleans()) and most >= count
        return draw(
            st.lists(st.integers(0, most - 1), min_size=count, max_size=count, unique=unique)
        )

    out = list(zip(ids(slots), ids(blocks), strict=True))
    into = list(zip(ids(blocks), ids(slots), strict=True))
    same = draw(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=count, max_size=count))
    into = [
        (out[row][1] if block else into[row][0], out[row][0] if slot else into[row][1])
        for row, (block, slot) in enumerate(same)
    ]
    if draw(st.integers(0, 9)) == 0:
        into = into[1:]
    return as_rows(out), as_rows(into), slots, blocks


@examples(1500)
@given(
    case=standing(),
    nbytes=st.sampled_from([16, 96]),
    steps=st.tuples(*[st.sampled_from([96, 128, -96])] * 2),
)
def test_rows_that_go_together_as_they_stand(case, nbytes, steps):
    out, into, slots, blocks = case
    device, host = (1 << 46, steps[0], slots), ((1 << 45) + 64, steps[1], blocks)
    expected, columns = place_pairs(out.tolist(), into.tolist(), device, host, nbytes)
    words = np.full(4 * len(out) + 1, 77, dtype=np.uint64)
    found = native.pairing.place_pairs(out, into, device, host, nbytes, words)
    assert words[-1] == 77
    if expected == -1:
        assert found[0] == -1
    else:
        assert found == expected
        assert words[:-1].tolist() == [address for column in columns for address in column]


@pytest.mark.parametrize("rows", [1, 3])
def test_pairs_among_very_many_blocks_are_in_doubt(rows):
    """Marks for all of them would take more memory than the rows do."""
    out = as_rows([[row, 2 * row] for row in range(rows)])
    words = np.empty(4 * rows, dtype=np.uint64)
    for most, slots, blocks in ((256, 8, 256), (256, 256, 8), (257, 8, 257), (257, 257, 8)):
        pools = (1 << 40, 96, slots * rows), (1 << 41, 96, blocks * rows)
        found = native.pairing.place_pairs(out, out[:, ::-1].copy(), *pools, 96, words)
        assert found == ((0, rows, rows) if most == 256 else (-1, 0, 0))


@pytest.mark.parametrize("bad", [-1, 5, 1 << 40, -(1 << 40)])
@pytest.mark.parametrize(("side", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_ids_out_of_range_touch_no_other_memory(bad, side, column):
    rows = as_rows([[0, 1], [2, 3], [4, 0]]), as_rows([[1, 0], [3, 2], [0, 4]])
    words = np.empty(12, dtype=np.uint64)
    pools = (1 << 40, 96, 5), (1 << 41, 96, 5)
    assert native.pairing.place_pairs(*rows, *pools, 96, words) == (0, 3, 3)
    rows[side][1, column] = bad
    assert native.pairing.place_pairs(*rows, *pools, 96, words)[0] == -1


# -- when each row runs --------------------------------------------------------------------------


def moments(schedule, counts):
    """When each row reads and writes, and what is over before what: as `Schedule` promises.

    Returns
    -------
    reads, writes : tuple of list
        For what goes out and what comes in, the moment of each row.
    after : dict
        For each moment, those that are certainly over before it.
    """
    strands, pieces = schedule.strands, schedule.pieces
    reads, writes = ([], []), ([], [])
    for side in (OUT, IN):
        cells = schedule.cells[side].tolist()
        assert len(cells) == counts[side]
        assert all(0 <= cell < strands * pieces for cell in cells)
        staged = [False] * len(cells)
        if schedule.staged is not None and side == IN:
            staged = schedule.staged.tolist()
        for cell, waits in zip(cells, staged, strict=True):
            where = divmod(cell, pieces)
            reads[side].append((side, *where))
            writes[side].append(("settle" if waits else side, *where))
    before = {}
    for strand in range(strands):
        for piece in range(pieces):
            for side in (OUT, IN):
                before[side, strand, piece] = {(side, strand, piece - 1)} if piece else set()
            if schedule.leader is not None:
                follower = IN if schedule.leader == OUT else OUT
                before[follower, strand, piece].add((schedule.leader, strand, piece))
            if schedule.staged is not None:
                before["settle", strand, piece] = {(OUT, strand, piece), (IN, strand, piece)}
    after = {}

    def all_before(moment):
        if moment not in after:
            after[moment] = set(before[moment]).union(*map(all_before, before[moment]))
        return after[moment]

    for moment in before:
        assert moment not in all_before(moment)
    return reads, writes, after


def check(schedule, out, into):
    """No place is written before it is read, in whatever order things happen."""
    rows = out.tolist(), into.tolist()
    reads, writes, after = moments(schedule, (len(out), len(into)))
    for reader, writer in ((OUT, IN), (IN, OUT)):
        readers = {}
        for row, (place, _) in enumerate(rows[reader]):
            readers.setdefault(place, []).append(row)
        for row, (_, place) in enumerate(rows[writer]):
            for other in readers.get(place, ()):
                assert reads[reader][other] in after[writes[writer][row]], (reader, other, row)
    return reads, writes, after


def happen(rng, rows, reads, writes, after):
    """Let everything happen in some order that is allowed; return what is in the pools then."""
    pools = {OUT: {}, IN: {}}  # by the direction that reads them; what is not there is as it was
    under_way = {}
    left = set(after)
    while left:
        ready = sorted(
            (moment for moment in left if not after[moment] & left),
            key=lambda m: tuple(map(str, m)),
        )
        moment = ready[rng.integers(len(ready))]
        left.remove(moment)
        acts = [
            (act, side, row)
            for act, when in (("read", reads), ("write", writes))
            for side in (OUT, IN)
            for row, its in enumerate(when[side])
            if its == moment
        ]
        # Of one row reading comes first; else there is no order within a piece.
        turns = rng.permutation(len(acts))
        for act, side, row in sorted((acts[i] for i in turns), key=lambda a: a[0] == "write"):
            source, target = rows[side][row]
            if act == "read":
                under_way[side, row] = pools[side].get(source, (side, source))
            else:
                pools[IN if side == OUT else OUT][target] = under_way.pop((side, row))
    assert not under_way
    return pools


def expected_pools(rows):
    return {
        OUT: {slot: (IN, block) for block, slot in rows[IN]},
        IN: {block: (OUT, slot) for slot, block in rows[OUT]},
    }


BLOCK = 64


def random_exchange(rng, kind):
    """Rows of some kind, how large pieces are, and the schedule's other arguments."""
    slots, blocks = rng.integers(1, 30, 2).tolist()
    counts = rng.integers(0, blocks + 1), rng.integers(0, slots + 1)
    out = np.stack([rng.integers(0, slots, counts[0]), rng.permutation(blocks)[: counts[0]]], 1)
    into = np.stack([rng.integers(0, blocks, counts[1]), rng.permutation(slots)[: counts[1]]], 1)
    if kind == "refilled":  # no block that comes in is overwritten
        into[:, 0] += blocks
    elif kind == "freed":  # no slot that goes out is overwritten
        into[:, 1] += slots
    elif kind == "apart":
        into += [blocks, slots]
    elif kind == "in place":
        out = np.stack([rng.permutation(slots), np.arange(slots)], 1)
        into = rng.permutation(out[:, ::-1])
        blocks = slots
    elif kind == "once":  # nothing is read twice
        count = min(slots, blocks)
        out[:count, 0] = rng.permutation(slots)[: len(out[:count])]
        out, into = out[:count], into[:count]
        into[:, 0] = blocks + rng.permutation(blocks)[: len(into)]
    tuning = DEFAULT_TUNING._replace(
        strands=int(rng.integers(1, 5)),
        pieces_a_strand=int(rng.integers(1, 5)),
        smallest_piece_bytes=int(rng.integers(1, 5)) * BLOCK,
        staged_bytes=int(rng.integers(1, 5 * BLOCK)),
    )
    return as_rows(out), as_rows(into), slots * 2, blocks * 2, tuning


def scheduled(out, into, slots, blocks, tuning, **how):
    table = SlotTable(out, into, slots, blocks)
    nbytes = max(len(out), len(into)) * BLOCK
    return table, make_schedule(table, nbytes, BLOCK, tuning, **how)


@pytest.mark.parametrize("kind", ["random", "refilled", "freed", "apart", "in place", "once"])
def test_all_is_read_before_anything_is_written(rng, kind):
    kinds = set()
    for _ in range(400):
        out, into, slots, blocks, tuning = random_exchange(rng, kind)
        table, schedule = scheduled(out, into, slots, blocks, tuning)
        order = check(schedule, out, into)
        rows = out.tolist(), into.tolist()
        for _ in range(3):
            assert happen(rng, rows, *order) == expected_pools(rows)
        # And no more is done than that takes.
        both = table.over_slots and table.over_blocks
        assert (schedule.staged is not None) == both
        if both:
            read = set(out[:, 0].tolist())
            assert schedule.staged.tolist() == [slot in read for slot in into[:, 1].tolist()]
            if schedule.pieces > 1:
                waiting = np.bincount(schedule.cells[IN][schedule.staged])
                assert waiting.max() <= max(1, tuning.staged_bytes // BLOCK)
        else:
            leader = OUT if table.over_slots else IN if table.over_blocks else None
            assert schedule.leader == leader
            assert schedule.strands <= tuning.strands
            assert schedule.pieces <= tuning.pieces_a_strand
        kinds.add((schedule.leader, schedule.staged is None, schedule.strands > 1))
    if kind in ("refilled", "once"):
        assert (OUT, True, True) in kinds
    if kind == "random":
        assert len(kinds) >= 5


def test_a_check_that_finds_what_is_wrong(rng):
    """Schedules that are no longer right are found out, by both ways of looking."""
    found = happened = spoilt = 0
    for _ in range(300):
        out, into, slots, blocks, tuning = random_exchange(rng, "once")
        table, schedule = scheduled(out, into, slots, blocks, tuning)
        if schedule.leader != OUT or schedule.strands * schedule.pieces < 3:
            continue
        writers = np.flatnonzero(table.is_read(OUT)[table.writes[IN]])
        movable = writers[schedule.cells[IN][writers] % schedule.pieces > 0]
        if not len(movable):
            continue
        schedule.cells[IN][movable] -= 1  # before what is in their slots has left
        spoilt += 1
        try:
            check(schedule, out, into)
        except AssertionError:
            found += 1
        rows = out.tolist(), into.tolist()
        order = moments(schedule, (len(out), len(into)))
        happened += any(happen(rng, rows, *order) != expected_pools(rows) for _ in range(20))
    assert spoilt > 20
    assert found == spoilt
    assert happened > spoilt // 2


@pytest.mark.parametrize("kind", ["random", "apart", "in place"])
def test_blocks_that_may_share_bytes_are_all_read_first(rng, kind):
    for _ in range(100):
        out, into, slots, blocks, tuning = random_exchange(rng, kind)
        _, schedule = scheduled(out, into, slots, blocks, tuning, may_alias=True)
        reads, writes, after = moments(schedule, (len(out), len(into)))
        for reader, writer in ((OUT, IN), (IN, OUT)):
            for write in writes[writer]:
                assert set(reads[reader]) <= after[write]
        if not (len(out) and len(into)):
            assert schedule.staged is None


@pytest.mark.parametrize(("a_piece", "pieces"), [(1, 12), (5, 3), (12, 1), (100, 1), (0, 12)])
def test_what_swaps_places_is_staged_piece_by_piece(rng, a_piece, pieces):
    ids = np.arange(12)
    out = as_rows(np.stack([ids, rng.permutation(12)], axis=1))
    tuning = DEFAULT_TUNING._replace(staged_bytes=a_piece * BLOCK)
    _, schedule = scheduled(out, out[:, ::-1].copy(), 12, 12, tuning)
    assert (schedule.strands, schedule.pieces, schedule.leader) == (1, pieces, IN)
    assert schedule.staged.all()
    check(schedule, out, out[:, ::-1])


def test_a_ring_that_no_order_of_pieces_resolves_is_staged_at_once():
    out, into = as_rows([[0, 0], [1, 1], [2, 2]]), as_rows([[2, 0], [0, 1], [1, 2]])
    tuning = DEFAULT_TUNING._replace(staged_bytes=BLOCK)
    _, schedule = scheduled(out, into, 3, 3, tuning)
    assert schedule.pieces == 1
    check(schedule, out, into)


def test_of_several_that_read_a_block_the_one_in_the_last_piece_counts():
    """It need not be the last row: those that are staged have pieces of their own."""
    ids = np.arange(12)
    out = np.insert(np.stack([ids, ids + 300], axis=1), 9, [40, 5], axis=0)
    into = np.concatenate(
        [np.stack([ids + first, ids + slot], axis=1) for first, slot in ((100, 0), (200, 12))]
    )
    into[11:13, 0] = 5
    tuning = DEFAULT_TUNING._replace(staged_bytes=BLOCK)
    _, schedule = scheduled(out, into, 400, 400, tuning)
    assert schedule.pieces == 1
    check(schedule, out, into)
    into[11, 0] = 111  # the other one reads it in an earlier piece than it is overwritten
    _, schedule = scheduled(out, into, 400, 400, tuning)
    assert schedule.pieces == 12
    check(schedule, out, into)


def test_every_piece_waits_for_the_one_that_frees_its_places():
    """In four strands of several pieces, whatever the order of the rows."""
    ids = np.arange(64)
    out, into = np.stack([ids, ids], axis=1), np.stack([ids + 64, ids[::-1]], axis=1)
    tuning = DEFAULT_TUNING._replace(smallest_piece_bytes=2 * BLOCK)
    _, schedule = scheduled(out, into, 64, 128, tuning)
    assert (schedule.strands, schedule.pieces, schedule.leader) == (4, 8, OUT)
    assert np.array_equal(schedule.cells[IN], schedule.cells[OUT][::-1])
    into = np.stack([ids + 64, (ids + 1) % 64], axis=1)
    out[63, 0] = 0  # read twice: in one strand only one piece is the last to read it
    _, schedule = scheduled(out, into, 64, 128, tuning)
    assert schedule.strands == 1
    check(schedule, out, into)


@pytest.mark.parametrize("leader", [OUT, IN])
def test_rows_that_wait_for_nothing_are_spread_evenly(leader):
    """They do not all go with the first piece."""
    ids = np.arange(64)
    leading = np.stack([ids, ids], axis=1)
    following = np.stack([ids + 64, ids + 64], axis=1)
    following[0, 1] = 63  # the only one that waits
    out, into = (leading, following) if leader == OUT else (following, leading)
    tuning = DEFAULT_TUNING._replace(smallest_piece_bytes=2 * BLOCK)
    _, schedule = scheduled(out, into, 128, 128, tuning)
    assert schedule.leader == leader
    ahead, behind = schedule.cells if leader == OUT else schedule.cells[::-1]
    assert behind[0] == ahead[63] == 31
    assert np.array_equal(behind[1:], assign_evenly(64, 32)[1:])


def test_one_direction_alone_waits_for_nothing():
    rows, none = as_rows([[0, 1], [1, 0], [0, 2]]), as_rows([])
    for out, into in ((rows, none), (none, rows), (none, none)):
        for may_alias in (False, True):
            _, schedule = scheduled(out, into, 3, 3, DEFAULT_TUNING, may_alias=may_alias)
            assert (schedule.leader, schedule.staged) == (None, None)
            assert [len(cells) for cells in schedule.cells] == [len(out), len(into)]


@pytest.mark.parametrize("rows", [0, 1, 3, 7, 8, 9, 1000])
@pytest.mark.parametrize("cells", [1, 2, 8])
def test_rows_are_shared_out_evenly(rows, cells):
    assigned = assign_evenly(rows, cells)
    assert len(assigned) == rows
    assert (np.diff(assigned) >= 0).all()
    counts = np.bincount(assigned, minlength=cells)
    assert len(counts) == cells
    assert counts.max() - counts.min() <= 1


# -- fresh rows between the same pools -----------------------------------------------------------


@pytest.fixture
def taken(monkeypatch):
    """Counts of the short way: taken, and left to the long one."""
    counts = {"short": 0, "long": 0}
    exchange = PreparedRows.exchange

    def counting(self, *arguments):
        transfer = exchange(self, *arguments)
        counts["long" if transfer is None else "short"] += 1
        return transfer

    monkeypatch.setattr(PreparedRows, "exchange", counting)
    return counts


class Pools:
    """A pool on the device and one in pinned memory, between which blocks were exchanged before."""

    def __init__(self, gpu, rng, kinds=("device", "pinned")):
        self.contents = [random_bytes(rng, (count, 96)) for count in (64, 96)]
        self.front, self.back = (
            make_array(gpu, kind, content)
            for kind, content in zip(kinds, self.contents, strict=True)
        )
        self.gpu, self.stream = gpu, gpu.stream()

    def exchange(self, out, into, **how):
        """Exchange, and note what must be in the pools then."""
        how = {"stream": self.stream, **how}
        transfer = ns.exchange(self.front, self.back, out, into, **how)
        self.follow(out, into)
        return transfer

    def follow(self, out, into):
        out, into = (np.asarray(rows).reshape(-1, 2) for rows in (out, into))
        before = [content.copy() for content in self.contents]
        self.contents[1][out[:, 1]] = before[0][out[:, 0]]
        self.contents[0][into[:, 1]] = before[1][into[:, 0]]

    def check(self):
        """All is where it belongs."""
        for pool, content in zip((self.front, self.back), self.contents, strict=True):
            self.gpu.synchronize()
            got = pool if isinstance(pool, np.ndarray) else pool.copy_to_host()
            assert np.array_equal(got, content)


@pytest.fixture
def simulated():
    """A simulated GPU whose context is the thread's, as where Numba was used before."""
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def pools(simulated, rng, taken):
    pools = Pools(simulated, rng)
    for _ in range(3):
        pools.exchange(*pairs_for(rng, 5)).wait()
    gc.collect()
    pools.exchange(*GOOD).wait()
    pools.check()
    assert taken["short"]
    taken.update(short=0, long=0)
    return pools


def pairs_for(rng, count):
    """Rows that are no neighbours and go together; some share their slot, block, or both."""
    slots, blocks = 2 * rng.permutation(32), 2 * rng.permutation(48)
    keep = rng.integers(0, 2, (2, count)).astype(bool)
    out = np.stack([slots[:count], blocks[:count]], axis=1)
    into = np.stack(
        [
            np.where(keep[0], blocks[:count], blocks[count : 2 * count]),
            np.where(keep[1], slots[:count], slots[count : 2 * count]),
        ],
        axis=1,
    )
    return np.ascontiguousarray(out), np.ascontiguousarray(into)


GOOD = np.array([[0, 8], [2, 4], [40, 90]]), np.array([[8, 0], [70, 2], [50, 62]])


@pytest.mark.parametrize("kinds", [("device", "pinned"), ("pinned", "managed")])
def test_fresh_rows_arrive_every_time(simulated, rng, taken, kinds):
    pools = Pools(simulated, rng, kinds)
    for count in (3, 16, 5, 11, 16, 12, *rng.integers(2, 17, 30).tolist()):
        out, into = pairs_for(rng, count)
        transfer = pools.exchange(out, into)
        transfer.wait()
        pools.check()
        assert (transfer.decision.copies, transfer.nbytes) == (2 * count, 2 * count * 96)
        assert transfer.decision.mode == "kernel"
        assert transfer.decision.direction is ns.Direction.MIXED
        assert "pair by pair in one kernel" in transfer.decision.reason
    assert taken == {"short": 35, "long": 0}


@pytest.mark.parametrize("how", [{}, {"mode": "kernel"}, {"policy": "latency"}, {"max_blocks": 2}])
def test_rows_of_every_kind_arrive(simulated, rng, taken, how):
    pools = Pools(simulated, rng)
    for step in range(40):
        out, into = pairs_for(rng, int(rng.integers(2, 17)))
        if step % 4 == 1:
            into = np.ascontiguousarray(out[:, ::-1])  # in place, all of them
        transfer = pools.exchange(out, into, **how)
        transfer.wait()
        pools.check()
    assert taken["short"] > 30


@pytest.mark.parametrize("how", [{}, {"mode": "kernel"}, {"policy": "latency"}])
@pytest.mark.parametrize("what", ["apart", "refilled", "freed", "in place"])
def test_what_is_said_is_what_the_long_way_says(pools, taken, what, how):
    for count in (3, 9, 14, 3, 14):
        ids = 2 * np.arange(count)
        out = np.stack([ids, ids], axis=1)
        into = np.ascontiguousarray(out[:, ::-1])
        if what in ("apart", "refilled"):
            into[:, 0] += 2 * count
        if what in ("apart", "freed"):
            into[:, 1] += 2 * count
        expected = ns.plan_exchange(pools.front, pools.back, out, into).explain(pools.stream, **how)
        transfer = pools.exchange(out, into, **how)
        assert transfer.decision == expected
        transfer.wait()
        pools.check()
    assert taken["short"] >= 3


@pytest.mark.parametrize(
    ("out", "into", "message"),
    [
        ([[0, 8], [64, 4], [40, 0]], None, r"page_out\[1\]: device block 64 is not one of its 64"),
        ([[0, 8], [2, 96], [40, 0]], None, r"page_out\[1\]: host block 96 is not one of its 96"),
        ([[-1, 8], [2, 4], [40, 0]], None, r"page_out\[0\]: device block -1 is not one of"),
        ([[0, 8], [2, 8], [40, 0]], None, r"page_out\[1\]: destination block 8 is written twice"),
        (None, [[8, 0], [96, 2], [50, 62]], r"page_in\[1\]: host block 96 is not one of its 96"),
        (None, [[8, 0], [70, 2], [50, -1]], r"page_in\[2\]: device block -1 is not one of its 64"),
        (None, [[8, 0], [70, 62], [50, 62]], r"page_in\[2\]: destination block 62 is written tw"),
        (None, np.zeros((3, 3), np.int64), "page_in must have rows of two columns"),
        (np.zeros(4, np.int64), None, "page_out must"),
        (np.zeros((3, 2)), None, "page_out must hold integers"),
    ],
)
def test_bad_rows_get_the_same_errors(pools, taken, out, into, message):
    rows = [
        np.array(good if bad is None else bad) for bad, good in zip((out, into), GOOD, strict=True)
    ]
    with pytest.raises(ns.BadPlanError, match=f"^{message}") as caught:
        ns.exchange(pools.front, pools.back, *rows, stream=pools.stream)
    with pytest.raises(ns.BadPlanError) as planned:
        ns.plan_exchange(pools.front, pools.back, *rows)
    assert str(caught.value) == str(planned.value)
    assert taken == {"short": 0, "long": 1}
    pools.check()
    for _ in range(2):  # the error keeps memory for descriptors, so the first may make new ones
        pools.exchange(*GOOD).wait()
        pools.check()
    assert taken["short"] >= 1


OTHER_WAYS = {
    "fewer in": (GOOD[0], GOOD[1][:2], {}),
    "fewer out": (GOOD[0][:1], GOOD[1], {}),
    "none in": (GOOD[0], GOOD[1][:0], {}),
    "none": (GOOD[0][:0], GOOD[1][:0], {}),
    "in another order": (GOOD[0], GOOD[1][::-1].copy(), {}),
    "a ring": (np.array([[0, 0], [2, 2]]), np.array([[0, 2], [2, 0]]), {}),
    "a slot that is read twice": (np.array([[0, 8], [0, 4], [40, 90]]), GOOD[1], {}),
    "a block that is read twice": (GOOD[0], np.array([[8, 0], [8, 2], [50, 62]]), {}),
    "a slot that another row fills": (GOOD[0], np.array([[8, 0], [70, 40], [50, 62]]), {}),
    "a block that another row needs": (GOOD[0], np.array([[8, 0], [90, 2], [50, 62]]), {}),
    "neighbours out": (
        np.array([[0, 8], [1, 9], [40, 90]]),
        GOOD[1] + [[0, 0], [0, 1], [0, 1]],
        {},
    ),
    "neighbours in": (GOOD[0], np.array([[8, 0], [70, 11], [71, 12]]), {}),
    "lists": (GOOD[0].tolist(), GOOD[1].tolist(), {}),
    "short integers": (GOOD[0].astype(np.int32), GOOD[1], {}),
    "columns": (GOOD[0], np.asfortranarray(GOOD[1]), {}),
    "a view": (np.repeat(GOOD[0], 2, axis=0)[::2], GOOD[1], {}),
    "another mode": (*GOOD, {"mode": "loop"}),
    "a forced mode": (*GOOD, {"mode": "kernel"}),
    "another policy": (*GOOD, {"policy": "overlap"}),
    "a limit": (*GOOD, {"max_blocks": 1}),
}


@pytest.mark.parametrize("what", OTHER_WAYS)
def test_what_is_not_as_before_takes_the_long_way(pools, taken, what):
    out, into, how = OTHER_WAYS[what]
    pools.exchange(out, into, **how).wait()
    assert taken == {"short": 0, "long": 1}
    pools.check()


def test_another_stream_has_its_own(pools, taken):
    stream = pools.gpu.stream()
    for other in (stream, None, stream.handle):
        pools.exchange(*GOOD, stream=other).wait()
        pools.check()
    # The handle is the same stream: what was prepared for it may serve.
    assert taken["short"] + taken["long"] <= 1
    pools.exchange(*GOOD).wait()
    pools.check()
    assert taken["short"] >= 1


def test_what_its_rows_keep_from_the_short_way_is_prepared_once(pools, taken, monkeypatch):
    made = []
    original = PreparedRows.__init__

    def counting(self, *arguments):
        made.append(self)
        original(self, *arguments)

    monkeypatch.setattr(PreparedRows, "__init__", counting)
    merged = np.stack([np.arange(16), np.arange(16)], axis=1)  # neighbours become one copy
    for _ in range(4):
        pools.exchange(merged, merged[:, ::-1].copy()).wait()
        pools.check()
    assert taken == {"short": 0, "long": 4}
    assert not made
    pools.exchange(*GOOD).wait()
    pools.check()
    assert taken == {"short": 1, "long": 4}


def test_bad_arguments_are_refused_still(pools, taken):
    for how in ({"mode": "quick"}, {"policy": "best"}, {"max_blocks": 0}, {"max_blocks": 1.5}):
        with pytest.raises(ns.BadArgumentError):
            ns.exchange(pools.front, pools.back, *GOOD, stream=pools.stream, **how)
    with pytest.raises(ns.NumbaSwapError):
        ns.exchange(pools.front, pools.back, *GOOD, stream="1")
    with pytest.raises(ns.BadPlanError):
        ns.exchange(pools.front, pools.back, *GOOD, stream=pools.stream, block_axis=1)
    assert taken["short"] == 0
    pools.check()


def test_settings_are_seen(pools, taken):
    with ns.override(driver_version=(11, 8)):
        transfer = pools.exchange(*GOOD)
    assert "pair by pair" not in transfer.decision.reason
    transfer.wait()
    pools.check()
    with ns.override(mode="loop"):
        transfer = pools.exchange(*GOOD)
    assert transfer.decision.modes == ("loop",)
    transfer.wait()
    pools.check()
    assert taken == {"short": 0, "long": 2}
    pools.exchange(*GOOD).wait()
    pools.check()
    assert taken["short"] == 1


def test_a_capture_is_seen(pools, taken):
    transfers = []
    replay = capture(
        pools.gpu,
        pools.stream,
        lambda: transfers.append(ns.exchange(pools.front, pools.back, *GOOD, stream=pools.stream)),
    )
    with pytest.raises(ns.CapturedTransferError):
        transfers[0].wait()
    assert taken == {"short": 0, "long": 1}
    pools.check()
    for _ in range(2):
        replay()
        pools.follow(*GOOD)
        pools.check()
    for _ in range(2):  # the graph keeps the descriptors, so the first of these may make new ones
        pools.exchange(*GOOD).wait()
        pools.check()
    assert taken["short"] >= 1


def test_a_pool_that_becomes_read_only_is_seen(pools, taken):
    pools.back.flags.writeable = False
    with pytest.raises(ns.BadPlanError, match="host is read-only"):
        ns.exchange(pools.front, pools.back, *GOOD, stream=pools.stream)
    assert taken["short"] == 0
    pools.check()
    pools.exchange(GOOD[0][:0], GOOD[1]).wait()
    pools.check()
    pools.back.flags.writeable = True
    for _ in range(3):
        pools.exchange(*GOOD).wait()
        pools.check()
    assert taken["short"] >= 1


@pytest.mark.parametrize("change", ["address", "step", "blocks", "producer"])
def test_an_array_that_was_changed_in_place_is_seen(simulated, rng, taken, change):
    class Pool(SimpleNamespace):
        """An array of which everything may change."""

        __hash__ = object.__hash__

    content, back = random_bytes(rng, (64, 96)), random_bytes(rng, (96, 96))
    arrays = [make_array(simulated, "device", content) for _ in range(2)]
    host, stream = make_array(simulated, "pinned", back), simulated.stream()
    pool = Pool(__cuda_array_interface__=dict(arrays[0].__cuda_array_interface__))
    out, into = GOOD
    for _ in range(4):
        gc.collect()
        ns.exchange(pool, host, out, into, stream=stream).wait()
    assert taken["short"] >= 1
    taken.update(short=0, long=0)
    for array in arrays:
        array.copy_to_device(content)
    host[...] = back
    interface = pool.__cuda_array_interface__
    after, where = content.copy(), arrays[0]
    if change == "address":
        interface["data"], where = arrays[1].__cuda_array_interface__["data"], arrays[1]
    elif change == "step":
        interface["shape"], interface["strides"] = (32, 96), (192, 1)
        out, into = np.array([[0, 8], [2, 4], [30, 90]]), np.array([[8, 0], [70, 2], [50, 12]])
    elif change == "blocks":
        interface["shape"] = (60, 96)
        with pytest.raises(ns.BadPlanError, match="device block 62 is not one of its 60"):
            ns.exchange(pool, host, out, into, stream=stream)
        into = into - [[0, 0], [0, 0], [0, 10]]
    else:
        busy = simulated.stream()
        interface["stream"] = busy.handle
        content = random_bytes(rng, (64, 96))
        after = content.copy()
        arrays[0].copy_to_device(make_array(simulated, "pinned", content), stream=busy)
    ns.exchange(pool, host, out, into, stream=stream).wait()
    assert taken["short"] == 0
    step = 2 if change == "step" else 1
    stored = back.copy()
    stored[out[:, 1]] = content[step * out[:, 0]]
    after[step * into[:, 1]] = back[into[:, 0]]
    assert np.array_equal(where.copy_to_host(), after)
    assert np.array_equal(host, stored)
    if change == "address":
        assert np.array_equal(arrays[0].copy_to_host(), content)


def test_memory_that_is_no_longer_pinned_is_seen(simulated, rng, taken):
    library = simulated.driver.library
    front, host = random_bytes(rng, (64, 96)), random_bytes(rng, (96, 96))
    device, stream = make_array(simulated, "device", front), simulated.stream()
    library.register_host(host)
    for _ in range(4):
        gc.collect()
        ns.exchange(device, host, *GOOD, stream=stream).wait()
    assert taken["short"] >= 1
    front, back = device.copy_to_host(), host.copy()
    library.unregister_host(host)
    taken.update(short=0, long=0)
    transfer = ns.exchange(device, host, *GOOD, stream=stream)
    transfer.wait()
    assert "kernel" not in transfer.decision.modes
    assert taken["short"] == 0
    after, stored = front.copy(), back.copy()
    stored[GOOD[0][:, 1]] = front[GOOD[0][:, 0]]
    after[GOOD[1][:, 1]] = back[GOOD[1][:, 0]]
    assert np.array_equal(device.copy_to_host(), after)
    assert np.array_equal(host, stored)


def test_layers_and_odd_blocks_take_the_long_way(simulated, rng, taken):
    stream = simulated.stream()
    for shapes, axis in (([(64, 96)] * 2, 0), ([(2, 64, 96)], 1), ([(64, 98)], 0)):
        fronts, backs = ([random_bytes(rng, shape) for shape in shapes] for _ in range(2))
        device = [make_array(simulated, "device", front) for front in fronts]
        host = [make_array(simulated, "pinned", back) for back in backs]
        rows = [np.stack([2 * np.arange(6) + i, 2 * np.arange(6)], axis=1) for i in (0, 12)]
        for _ in range(3):
            ends = (device, host) if len(shapes) > 1 else (device[0], host[0])
            ns.exchange(*ends, *rows, block_axis=axis, stream=stream).wait()
            for i, (front, back) in enumerate(zip(fronts, backs, strict=True)):
                a, b = front.swapaxes(0, axis).copy(), back.swapaxes(0, axis).copy()
                after, stored = a.copy(), b.copy()
                stored[rows[0][:, 1]] = a[rows[0][:, 0]]
                after[rows[1][:, 1]] = b[rows[1][:, 0]]
                fronts[i], backs[i] = after.swapaxes(0, axis), stored.swapaxes(0, axis)
                assert np.array_equal(device[i].copy_to_host(), fronts[i])
                assert np.array_equal(host[i], backs[i])
    assert taken["short"] == 0


def test_costs_that_are_measured_anew_are_seen(pools, taken, tune):
    tune(exchange_blocks=1)
    pools.exchange(*GOOD).wait()
    pools.check()
    assert taken == {"short": 0, "long": 1}


def test_a_failing_launch_is_raised_and_nothing_is_retried(pools, taken):
    library = pools.gpu.driver.library
    library.faults.add(Fault("cuLaunchKernel", 2))
    before = library.calls["cuLaunchKernel"]
    with pytest.raises(ns.DriverCallError, match="cuLaunchKernel results in CUDA_ERROR_OUT_OF_MEM"):
        ns.exchange(pools.front, pools.back, *GOOD, stream=pools.stream)
    assert library.calls["cuLaunchKernel"] == before + 1
    pools.check()
    library.faults.clear()
    for _ in range(2):
        pools.exchange(*GOOD).wait()
        pools.check()
    assert taken["short"] >= 1


def test_exchanges_under_way_at_once_have_their_own_rows(pools, taken, rng):
    transfers = []
    for _ in range(8):
        out, into = pairs_for(rng, 9)
        transfers.append(pools.exchange(out, into))
        out[:] = into[:] = 0  # read before the call returned
    for transfer in transfers:
        transfer.wait()
    pools.check()
    assert sum(taken.values()) == 8


def test_swaps_and_exchanges_of_the_same_arrays_do_not_mix(pools, rng):
    for _ in range(4):
        gc.collect()
        pools.exchange(*pairs_for(rng, 4)).wait()
        pools.check()
        rows = pairs_for(rng, 4)[0]
        ns.swap_blocks(pools.front, pools.back, rows, stream=pools.stream).wait()
        pools.follow(rows, rows[:0])
        pools.check()


def test_the_second_call_takes_the_short_way(simulated, rng, taken):
    """Nothing of the first holds the memory for descriptors that it needs."""
    pools = Pools(simulated, rng)
    pools.exchange(*GOOD).wait()
    gc.collect()  # of the frames that Numba kept while it compiled
    pools.exchange(*GOOD).wait()
    assert taken == {"short": 1, "long": 0}


def test_a_thread_without_a_context_takes_the_short_way_too(rng, taken):
    with ns.simulate() as gpu:
        pools = Pools(gpu, rng)
        for _ in range(4):
            gc.collect()
            pools.exchange(*GOOD).wait()
            pools.check()
    assert taken["short"] >= 1


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_pair_that_is_remembered_keeps_no_array_alive(simulated, rng, taken, calls):
    pools = Pools(simulated, rng)
    for _ in range(calls):
        pools.exchange(*GOOD).wait()
    alive = weakref.ref(pools.front), weakref.ref(pools.back)
    del pools
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


@pytest.mark.parametrize("mode", ["auto", "loop"])
def test_a_plan_that_is_dropped_is_gone_at_once(simulated, rng, mode):
    """With its arrays, and the memory that others could use: not when garbage is collected."""
    pools = Pools(simulated, rng)
    pools.exchange(*GOOD).wait()  # Numba keeps frames while it compiles
    gc.collect()
    gc.disable()
    try:
        plan = ns.plan_exchange(pools.front, pools.back, *GOOD)
        plan.run(pools.stream, mode).wait()
        parts = weakref.ref(plan), *map(weakref.ref, plan.copies)
        del plan
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()
