"""Boxes that reach beyond an array, element by element."""

import itertools

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.boxes.edges import Pieces, cut_boxes, wrap_boxes

BIG = 2**63 - 1


def pieces_of(src, dst, box, *, rows=None):
    src, dst = (np.atleast_2d(np.array(side, dtype=np.int64)) for side in (src, dst))
    lengths = np.tile(np.array(box, dtype=np.int64), (len(src), 1))
    return Pieces(src, dst, lengths, np.arange(len(src)) if rows is None else np.array(rows))


def elements(pieces):
    """All (row, source, destination) indices, in the order of the pieces."""
    found = []
    for src, dst, lengths, row in zip(*(column.tolist() for column in pieces), strict=True):
        lead = [len(origin) - len(lengths) for origin in (src, dst)]
        for step in itertools.product(*map(range, lengths)):
            moved = [
                (*origin[:n], *(a + b for a, b in zip(origin[n:], step, strict=True)))
                for origin, n in zip((src, dst), lead, strict=True)
            ]
            found.append((row, *moved))
    return found


def random_calls(rng, reach):
    for _ in range(150):
        axes = int(rng.integers(1, 4))
        shapes = tuple(rng.integers(1, 6, axes) for _ in range(2))
        leads = rng.integers(0, 2, 2)
        count = int(rng.integers(1, 5))
        origins = [
            np.concatenate(
                [
                    rng.integers(0, 3, (count, lead)),
                    rng.integers(-reach, shape + reach, (count, axes)),
                ],
                axis=1,
            )
            for lead, shape in zip(leads, shapes, strict=True)
        ]
        yield origins, shapes, leads


def test_what_lies_inside_both_arrays_is_left(rng):
    for origins, shapes, leads in random_calls(rng, 8):
        box = rng.integers(1, 7, len(shapes[0]))
        given = pieces_of(*origins, box)
        want = [
            (row, *places)
            for row, *places in elements(given)
            if all(
                all(0 <= i < n for i, n in zip(place[lead:], shape, strict=True))
                for place, lead, shape in zip(places, leads, shapes, strict=True)
            )
        ]
        cut = cut_boxes(given, shapes)
        assert elements(cut) == want
        assert len(set(cut.row_of.tolist())) == len(cut.row_of)  # a box stays one


def test_what_is_beyond_comes_in_on_the_other_side(rng):
    for origins, shapes, leads in random_calls(rng, 20):
        box = rng.integers(1, np.minimum(*shapes) + 1)
        given = pieces_of(*origins, box)
        want = [
            (
                row,
                *(
                    (*place[:lead], *(np.array(place[lead:]) % shape).tolist())
                    for place, lead, shape in zip(places, leads, shapes, strict=True)
                ),
            )
            for row, *places in elements(given)
        ]
        wrapped = wrap_boxes(given, shapes)
        assert sorted(elements(wrapped)) == sorted(want)
        assert (np.diff(wrapped.row_of) >= 0).all()
        assert (wrapped.lengths > 0).all()
        # At most two cuts an axis: where it leaves the source, and the destination.
        assert np.bincount(wrapped.row_of).max() <= 3 ** len(box)


def test_a_box_at_a_corner_becomes_as_many_as_there_are_octants():
    shapes = (np.array([8, 8, 8]), np.array([4, 4, 4]))
    wrapped = wrap_boxes(pieces_of([-1, 7, -1], [0, 0, 0], (2, 2, 2)), shapes)
    assert len(wrapped.row_of) == 8
    assert {*map(tuple, wrapped.src.tolist())} == {*itertools.product((7, 0), repeat=3)}
    assert {*map(tuple, wrapped.dst.tolist())} == {*itertools.product((0, 1), repeat=3)}
    assert (wrapped.lengths == 1).all()


def test_a_box_that_leaves_both_arrays_at_different_places():
    """What comes in again on one side may have to leave the other later."""
    shapes = (np.array([8]), np.array([8]))
    wrapped = wrap_boxes(pieces_of([5], [7], [6]), shapes)
    assert sorted(zip(*(c.ravel().tolist() for c in wrapped[:3]), strict=True)) == [
        (0, 2, 3),
        (5, 7, 1),
        (6, 0, 2),
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_a_box_longer_than_an_array_would_meet_itself(side):
    shapes = [np.array([9, 9]), np.array([9, 9])]
    shapes[side] = np.array([9, 3])
    given = pieces_of([[0, 0], [0, 0]], [[0, 0], [0, 0]], (2, 4), rows=[5, 7])
    name = ("source", "destination")[side]
    with pytest.raises(
        ns.BadPlanError, match=rf"\(2, 4\) .* into the {name}, of \(9, 3\)"
    ) as error:
        wrap_boxes(given, tuple(shapes))
    assert error.value.index == 5
    assert len(wrap_boxes(pieces_of([0, 0], [0, 0], (9, 3)), tuple(shapes)).row_of) == 1


@pytest.mark.parametrize("length", [1, 5, BIG])
@pytest.mark.parametrize("origin", [BIG, BIG - 1, -BIG, -BIG - 1, 2**62, -(2**62)])
@pytest.mark.parametrize("side", [0, 1])
def test_nothing_overflows_at_the_ends_of_64_bits(side, origin, length):
    origins = [[0], [0]]
    origins[side] = [origin]
    shapes = (np.array([4]), np.array([3]))
    # The other side begins at 0, so nothing of the box lies inside both.
    assert not len(cut_boxes(pieces_of(*origins, [length]), shapes).row_of)
    if length == 1:
        ((row, src, dst),) = elements(wrap_boxes(pieces_of(*origins, [1]), shapes))
        assert (row, src, dst) == (0, (origins[0][0] % 4,), (origins[1][0] % 3,))


@pytest.mark.parametrize("origins", [(0, 0), (1, 0), (0, 2), (-1, 0), (0, -2)])
def test_the_longest_box_is_cut_to_what_there_is(origins):
    shapes = (np.array([4]), np.array([3]))
    cut = cut_boxes(pieces_of([origins[0]], [origins[1]], [BIG]), shapes)
    begin = max(0, -origins[0], -origins[1])
    length = min(4 - origins[0], 3 - origins[1]) - begin
    assert [column.ravel().tolist() for column in cut] == [
        [origins[0] + begin],
        [origins[1] + begin],
        [length],
        [0],
    ]
