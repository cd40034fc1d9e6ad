"""Where boxes lie and whether they meet, against sets of elements and bytes."""

import itertools
import time

import numpy as np
import pytest

from numba_swap.native import box_rows
from numba_swap.native.box_rows import NOTHING, READ_AND_WRITTEN, TWICE


def words(values, shape=None):
    return np.array(values, dtype=np.int64).reshape(shape or np.shape(values))


# -- addresses ----------------------------------------------------------------------------------


def test_origins_become_addresses(rng):
    for axes in range(6):
        shape = rng.integers(1, 9, axes)
        box = rng.integers(1, shape + 1)
        strides = rng.integers(-10_000, 10_000, axes)
        origins = rng.integers(0, shape - box + 1, (7, axes))
        found = np.zeros(7, np.uint64)
        at = 1 << 40
        call = words(shape), words(strides), words(box), at, found
        assert box_rows.place_boxes(words(origins), *call) == -1
        assert found.tolist() == (at + origins @ strides).tolist()


@pytest.mark.parametrize("row", [0, 3, 6])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("origin", [-1, 4, 2**63 - 1, -(2**63), 2**62])
def test_the_first_box_that_is_not_inside_is_told(row, axis, origin):
    origins = np.zeros((7, 3), np.int64)
    origins[row:, axis] = origin  # and more of them after it
    found = np.zeros(7, np.uint64)
    shape, strides, box = words([9, 9, 9]), words([800, 80, 8]), words([6, 6, 6])
    assert box_rows.place_boxes(origins, shape, strides, box, 4096, found) == row
    assert not found[row:].any()


def test_a_box_longer_than_the_array_is_never_inside():
    found = np.zeros(1, np.uint64)
    for length in (10, 2**63 - 1):
        call = words([9]), words([8]), words([length]), 0, found
        assert box_rows.place_boxes(words([[0]]), *call) == 0


# -- boxes of one array -------------------------------------------------------------------------


def elements_of(origins, lengths):
    """The elements of each box."""
    return [
        {*itertools.product(*(range(o, o + n) for o, n in zip(*box, strict=True)))}
        for box in zip(origins.tolist(), lengths.tolist(), strict=True)
    ]


def test_boxes_of_one_array_meet_where_they_share_an_element(rng):
    seen = set()
    for _ in range(1500):
        axes = int(rng.integers(1, 5))
        shape = rng.integers(1, 12, axes)
        count = int(rng.integers(1, 6))
        lengths = rng.integers(1, np.minimum(shape, rng.integers(1, 8)) + 1, (count, axes))
        writes, reads = (words(rng.integers(0, shape - lengths + 1)) for _ in range(2))
        if rng.random() < 0.3:
            reads = reads[:0]
        if rng.random() < 0.3:
            lengths[:] = lengths.min(axis=0)
        one = words(lengths[:1] if (lengths == lengths[0]).all() else lengths)
        what, first, second = box_rows.find_meeting(
            writes, one, reads, words(shape), words(lengths.max(axis=0))
        )
        seen.add(what)
        written, read = elements_of(writes, lengths), elements_of(reads, lengths[: len(reads)])
        twice = [(i, j) for j in range(count) for i in range(j) if written[i] & written[j]]
        crossed = [(i, j) for i in range(len(read)) for j in range(count) if read[i] & written[j]]
        if twice:
            assert what == TWICE
            assert (first, second) in twice
        elif crossed:
            assert what == READ_AND_WRITTEN
            assert (first, second) in crossed
        else:
            assert (what, first, second) == (NOTHING, -1, -1)
    assert seen == {NOTHING, TWICE, READ_AND_WRITTEN}


def test_the_cells_of_the_grid_do_not_take_each_other_for_neighbours():
    """Boxes at the end of one row of cells, and at the beginning of the next."""
    shape, box = words([4, 64]), np.ones((2, 2), np.int64) * 2
    for first, second in ((62, 0), (0, 62)):
        writes = words([[0, first], [2, second]])
        none = np.zeros((0, 2), np.int64)
        assert box_rows.find_meeting(writes, box, none, shape, box[0])[0] == NOTHING


def test_time_goes_by_the_boxes_whatever_their_size():
    """More elements than anybody could look at, touching on all sides."""
    size, count = 1 << 40, 64
    along = np.arange(count) * size
    writes = words([[a, b] for a in along[:8] for b in along[:8]])
    lengths = np.full_like(writes, size)
    shape = words([size * 9, size * 9])
    reads = writes + words([0, size * 8]) * (writes[:, 1:] == 0)
    reads = reads[writes[:, 1] == 0]
    assert box_rows.find_meeting(writes, lengths, reads, shape, lengths[0])[0] == NOTHING
    reads[3, 1] -= 1
    assert box_rows.find_meeting(writes, lengths, reads, shape, lengths[0])[0] == READ_AND_WRITTEN
    writes[9] -= 1
    assert box_rows.find_meeting(writes, lengths, reads, shape, lengths[0])[0] == TWICE


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_boxes_that_all_lie_in_one_plane_are_not_compared_with_each_other(axis):
    """A face, in tiles: along one axis, and that the longest, nothing tells them apart."""
    count = 1 << 18
    along = np.arange(512)
    writes = words(np.stack(np.meshgrid(along, along), -1).reshape(-1, 2) * 8)
    writes = np.insert(writes, axis, 77, axis=1)
    shape = words(np.insert(np.array([4096, 4096]), axis, 1 << 20))
    lengths = words(np.insert(np.array([8, 8]), axis, 1))[None]
    none = np.zeros((0, 3), np.int64)
    begin = time.process_time()
    assert box_rows.find_meeting(writes, lengths, none, shape, lengths[0])[0] == NOTHING
    writes[count // 2] += np.insert(np.array([1, 0]), axis, 0)
    what, *rows = box_rows.find_meeting(writes, lengths, none, shape, lengths[0])
    assert what == TWICE
    assert count // 2 in rows
    assert time.process_time() - begin < 10  # to compare all pairs takes minutes


# -- boxes in memory ----------------------------------------------------------------------------


def bytes_of(box):
    at, row_bytes, rows, planes, pitch, plane = box
    begins = [at + k * plane + j * pitch for k in range(planes) for j in range(rows)]
    return {begin + i for begin in begins for i in range(row_bytes)}


def random_box(rng, *, written=False):
    """Any box; the rows of one that is written do not meet each other."""
    while True:
        row_bytes, rows, planes = (int(n) for n in rng.integers(1, [9, 6, 5]))
        pitch, plane = (int(n) for n in rng.integers(-40, 41, 2))
        if rng.random() < 0.5:
            pitch, plane = int(rng.choice([8, 12, 16])), int(rng.choice([48, 64, 96]))
        at = int(rng.integers(500, 700))
        box = at, row_bytes, rows, planes, pitch if rows > 1 else 0, plane if planes > 1 else 0
        if not written or len(bytes_of(box)) == row_bytes * rows * planes:
            return box


def test_a_box_made_regular_has_the_same_bytes(rng):
    for _ in range(4000):
        box = random_box(rng)
        at, row_bytes, rows, planes, pitch, plane = found = box_rows.as_set(box)
        assert bytes_of(found) == bytes_of(box)
        assert at == min(bytes_of(box))
        assert rows == 1 or pitch > row_bytes
        assert planes == 1 or (rows > 1 and plane >= pitch)


def test_boxes_in_memory_meet_where_they_share_a_byte(rng):
    met = 0
    for _ in range(6000):
        one, other = random_box(rng), random_box(rng)
        meet = box_rows.boxes_meet(box_rows.as_set(one), box_rows.as_set(other))
        assert meet == bool(bytes_of(one) & bytes_of(other)), (one, other)
        assert meet == box_rows.boxes_meet(box_rows.as_set(other), box_rows.as_set(one))
        met += meet
    assert 1000 < met < 5000


def in_order(boxes, written):
    """The arguments of the search, and the order in which the boxes stand there."""
    extents = [(min(bytes_of(box)), max(bytes_of(box)) + 1) for box in boxes]
    order = sorted(range(len(boxes)), key=lambda i: extents[i])
    columns = [boxes, [e[0] for e in extents], [e[1] for e in extents], written]
    return order, [words([column[i] for i in order]) for column in columns]


def test_two_boxes_of_many_that_meet_are_found(rng):
    seen = set()
    for _ in range(1500):
        count = int(rng.integers(1, 7))
        written = [bool(rng.integers(2)) for _ in range(count)]
        boxes = []
        for w in written:
            at, *rest = random_box(rng, written=w)
            boxes.append((at + int(rng.integers(0, 900)), *rest))
        order, call = in_order(boxes, written)
        what, first, second = box_rows.find_meeting_in_memory(*call)
        seen.add(what)
        pairs = {
            (i, j)
            for i, j in itertools.permutations(range(count), 2)
            if written[j] and bytes_of(boxes[i]) & bytes_of(boxes[j])
        }
        if not pairs:
            assert (what, first, second) == (NOTHING, -1, -1)
            continue
        one, other = order[first], order[second]
        assert (one, other) in pairs
        assert what == (TWICE if written[one] else READ_AND_WRITTEN)
    assert seen == {NOTHING, TWICE, READ_AND_WRITTEN}


def test_boxes_only_read_may_meet():
    box = (1000, 8, 4, 3, 16, 64)
    _, call = in_order([box] * 3, [0] * 3)
    assert box_rows.find_meeting_in_memory(*call)[0] == NOTHING


MANY = 1 << 20
PITCH, PLANE = 1 << 11, 1 << 32


@pytest.mark.parametrize(
    ("other", "shift"),
    [
        ((8, 8, MANY, MANY, PITCH, PLANE), -1),  # beside it in every row
        ((PLANE * MANY - 8, 8, MANY, MANY, -PITCH, -PLANE), 1),
        ((8, 8, MANY, MANY, PLANE, PITCH), -1),  # transposed
        ((8, 8, MANY, MANY, 0, PLANE), -1),  # broadcast
        ((PITCH * MANY, 100, MANY, MANY, 3, PLANE), -2041),  # sliding, behind every plane
        ((8, 2040, 1, 1, 0, 0), 1),
        ((24, 8, 3, 2, 1 << 12, 1 << 20), -17),  # of another array, but small
    ],
)
def test_time_does_not_grow_with_the_rows_of_a_box(other, shift):
    """2^40 rows: nobody could look at each of them."""
    one = box_rows.as_set((0, 8, MANY, MANY, PITCH, PLANE))
    for moved in (0, shift):
        box = box_rows.as_set((other[0] + moved, *other[1:]))
        assert box_rows.boxes_meet(one, box) == box_rows.boxes_meet(box, one) == bool(moved)
