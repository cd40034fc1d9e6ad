"""Tiles of a field: every element once, halos as the boundary says, neighbours both ways."""

import numpy as np
import pytest
from hypothesis import given
from machines import examples
from tile_model import cases, numbers

import numba_swap as ns


@examples(80)
@given(cases())
def test_tiles_make_up_the_field(case):
    tiling = case.tiling
    field, count = numbers(tiling.shape), np.zeros(tiling.shape, int)
    for i in range(len(tiling)):
        inner, outer = tiling.boxes(i)
        count[inner.slices] += 1
        assert all(map(int.__le__, inner.shape, tiling.tile))
        assert outer.shape == tiling.split(field)[i].shape
    assert (count == 1).all()
    assert (tiling.join(tiling.split(field)) == field).all()
    without = [field[tiling.boxes(i).inner.slices] for i in range(len(tiling))]
    assert (tiling.join(without) == field).all()


@examples(80)
@given(cases())
def test_halos_are_what_numpy_pads(case):
    tiling = case.tiling
    field, pads = numbers(tiling.shape), [(h, h) for h in tiling.halo]
    if tiling.boundary == "clip":
        around, (first, last) = field, ((0,) * field.ndim, field.shape)
    else:
        periodic = tiling.boundary == "periodic"
        options = {"mode": "wrap"} if periodic else {"constant_values": tiling.boundary}
        around = np.pad(field, pads, **options)
        first = tuple(-h for h in tiling.halo)
        last = tuple(n + h for n, h in zip(field.shape, tiling.halo, strict=True))
    for i, tile in enumerate(tiling.split(field)):
        inner = tiling.boxes(i).inner
        start = [max(a - h, f) for a, h, f in zip(inner.start, tiling.halo, first, strict=True)]
        stop = [min(b + h, n) for b, h, n in zip(inner.stop, tiling.halo, last, strict=True)]
        spans = zip(start, stop, first, strict=True)
        assert (tile == around[tuple(slice(a - f, b - f) for a, b, f in spans)]).all()


@examples(80)
@given(cases())
def test_neighbours_are_those_that_a_halo_reads(case):
    tiling = case.tiling
    owner = np.empty(tiling.shape, int)
    for i in range(len(tiling)):
        owner[tiling.boxes(i).inner.slices] = i
    for i in range(len(tiling)):
        read = set()
        for source in tiling.sources(i):
            read |= set(owner[source.field.slices].ravel().tolist())
        assert tiling.neighbours(i) == tuple(sorted(read - {i}))
        assert all(i in tiling.neighbours(other) for other in tiling.neighbours(i))


@examples(100)
@given(cases())
def test_releases_come_after_the_last_neighbour(case):
    tiling, order = case.tiling, case.tiling.order(case.order).tolist()
    after, most = tiling.releases(case.order)
    assert sorted(order) == list(range(len(tiling)))
    assert sorted(n for some in after for n in some) == list(range(len(tiling)))
    kept, seen = set(), 0
    for n, tile in enumerate(order):
        kept.add(n)
        seen = max(seen, len(kept))
        for released in after[n]:
            late = {order.index(other) for other in tiling.neighbours(order[released])}
            assert max(late | {released}) == n
            kept.discard(released)
        assert tile == order[n]
    assert seen == most
    assert not kept


def test_morton_keeps_neighbours_together():
    tiling = ns.Tiling((4, 4), 1)
    assert tiling.order("morton").tolist() == [
        *(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)
    ]
    assert ns.Tiling((1, 5), 1).order("morton").tolist() == [0, 1, 2, 3, 4]


def test_slabs_are_kept_two_at_a_time():
    assert ns.Tiling((64, 8, 8), (4, 8, 8), halo=(1, 0, 0)).releases("rows").most == 2
    assert ns.Tiling((64, 8, 8), (4, 8, 8)).releases("rows").most == 1
    # A plane of 16 tiles, a row of 4, and two.
    assert ns.Tiling((16, 16, 16), 4, halo=1).releases("rows").most == 16 + 4 + 2
    periodic = ns.Tiling((64,), 4, halo=1, boundary="periodic").releases("rows")
    assert periodic.most == 3  # the first one, too


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), 4), r"shape=\(\): give integers from 1"),
        (((4, 0), 4), "from 1 on"),
        (((4.5,), 4), "give integers"),
        ((4, 4), "shape=4: give integers"),
        (((4, 4), (4,)), "of 1 axes, the field of 2"),
        (((4, 4), 0), "from 1 on"),
        (((4, 4), 2, -1), "halo.*from 0 on"),
        (((4, 4), 2, 1, "wrap"), "boundary='wrap'"),
        (((4, 4), 2, 1, None), "boundary=None"),
        (((4, 2), 2, 3, "periodic"), "longer than the field"),
    ],
)
def test_what_is_no_tiling(arguments, words):
    with pytest.raises(ns.BadArgumentError, match=words):
        ns.Tiling(*arguments)


def test_what_does_not_fit_a_tiling():
    tiling = ns.Tiling((4, 4), 2, halo=1)
    for i in (-1, 4, 0.5, "a"):
        with pytest.raises(ns.BadArgumentError, match="none of the 4 tiles"):
            tiling.boxes(i)
    with pytest.raises(ns.BadArgumentError, match="order='columns'"):
        tiling.order("columns")
    with pytest.raises(ns.BadArgumentError, match=r"shape \(4, 5\)"):
        tiling.split(np.zeros((4, 5)))
    with pytest.raises(ns.BadArgumentError, match="3 tiles were given"):
        tiling.join([np.zeros((2, 2))] * 3)
    with pytest.raises(ns.BadArgumentError, match=r"tile 0 has the shape \(1, 2\)"):
        tiling.join([np.zeros((1, 2))] * 4)
