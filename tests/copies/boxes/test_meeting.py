"""Boxes whose copies would depend on an order: found by origins, and by addresses."""

import numpy as np
import pytest
from machines import make_copies

import numba_swap as ns
from numba_swap.copies.boxes.edges import Pieces
from numba_swap.copies.boxes.meeting import check_by_origins, check_in_memory
from numba_swap.copies.forms import Boxes, axes_of, fold, form_words
from numba_swap.copies.provenance import BoxRows


def call_of(rng, shape, count):
    """Boxes of one array, read and written, some of them cut shorter than others."""
    axes = len(shape)
    lengths = rng.integers(1, np.minimum(shape, rng.integers(1, 6)) + 1, (count, axes))
    src, dst = (rng.integers(0, shape - lengths + 1) for _ in range(2))
    return Pieces(src, dst, lengths, np.arange(count))


def copies_of(pieces, shape, origin):
    """The same as copies in memory, each with a form of its own."""
    strides = [int(np.prod(shape[i + 1 :])) * 4 for i in range(len(shape))]
    parts, dst, src, sizes = [], [], [], []
    for from_, to, lengths in zip(*(c.tolist() for c in pieces[:3]), strict=True):
        folded = fold(axes_of(lengths, strides, strides, 4))
        assert len(folded.dst_offsets) == 1
        parts.append(form_words(folded.form, 4, 4))
        sizes.append(folded.form.nbytes)
        src.append((1 << 20) + int(np.dot(from_, strides)))
        dst.append((1 << 20) + int(np.dot(to, strides)))
    boxes = Boxes(np.array(parts), np.arange(len(parts)))
    columns = (np.array(column, np.uint64) for column in (dst, src, sizes))
    return make_copies(*columns, origin=origin, boxes=boxes)


def refusal(check):
    try:
        check()
    except ns.BadPlanError as error:
        return error
    return None


def test_origins_and_addresses_say_the_same(rng):
    """Of boxes of one array, of any lengths, that move."""
    refused = 0
    for _ in range(500):
        shape = rng.integers(1, 9, rng.integers(1, 4))
        pieces = call_of(rng, shape, int(rng.integers(1, 6)))
        pieces = pieces.take(np.flatnonzero((pieces.src != pieces.dst).any(axis=1)))
        if not len(pieces.row_of):
            continue
        pieces = pieces._replace(row_of=np.arange(len(pieces.row_of)))
        origin = BoxRows(np.arange(len(pieces.row_of)), pieces.src, pieces.dst)
        copies = copies_of(pieces, shape, origin)
        by_origin = refusal(
            lambda pieces=pieces, shape=shape, origin=origin: check_by_origins(
                pieces, shape.astype(np.int64), origin, read=True
            )
        )
        in_memory = refusal(lambda copies=copies: check_in_memory(copies))
        assert (by_origin is None) == (in_memory is None)
        refused += by_origin is not None
    assert 150 < refused < 450


@pytest.fixture
def origin():
    return BoxRows(np.array([4, 7, 9]), np.arange(40).reshape(20, 2), np.arange(40).reshape(20, 2))


def test_the_rows_are_named(origin):
    box = np.array([[2, 2]] * 3)
    apart = np.array([[0, 0], [0, 4], [0, 8]])
    none = np.array([[5, 0], [5, 3], [5, 6]])
    shape = np.array([9, 11])
    pieces = Pieces(none, apart, box, origin.row_of)
    check_by_origins(pieces, shape, origin, read=True)
    twice = pieces._replace(dst=np.array([[0, 0], [0, 4], [1, 1]]))
    with pytest.raises(ns.BadPlanError, match=r"^box 9 \(.*\) writes what box 4 \(.*\) writes too"):
        check_by_origins(twice, shape, origin, read=False)
    crossed = pieces._replace(src=np.array([[5, 0], [1, 7], [5, 6]]))
    check_by_origins(crossed, shape, origin, read=False)
    words = r"^box 7 \(from \(14, 15\) to \(14, 15\)\) reads what box 9 \(.*\) writes"
    with pytest.raises(ns.BadPlanError, match=words) as error:
        check_by_origins(crossed, shape, origin, read=True)
    assert error.value.index == 7
    itself = pieces._replace(src=np.array([[5, 0], [1, 4], [5, 6]]))
    with pytest.raises(ns.BadPlanError, match=r"^box 7 \(.*\) reads what it writes"):
        check_by_origins(itself, shape, origin, read=True)


def plain(dst, src, origin, size=16):
    return make_copies(np.array(dst, np.uint64), np.array(src, np.uint64), size, origin=origin)


def test_plain_copies_beside_boxes_are_looked_at_too(origin):
    check_in_memory(plain([4096, 4112, 4128], [8192, 8192, 8200], origin))
    with pytest.raises(
        ns.BadPlanError, match=r"^box 9 .* writes what box 4 .* writes too"
    ) as error:
        check_in_memory(plain([4096, 4200, 4111], [8192] * 3, origin))
    assert error.value.index == 9
    with pytest.raises(ns.BadPlanError, match=r"^box 4 .* reads what box 9 .* writes") as error:
        check_in_memory(plain([4096, 4200, 8200], [8192, 9000, 9000], origin))
    assert error.value.index == 4
    with pytest.raises(ns.BadPlanError, match=r"^box 7 .* reads what it writes"):
        check_in_memory(plain([4096, 4200, 8200], [7000, 4201, 9000], origin))


def test_runs_of_one_box_that_meet_are_called_by_one_name(origin):
    """A box of more axes than a copy may have becomes several copies of one row."""
    rows = origin._replace(row_of=np.array([4, 4, 9]))
    with pytest.raises(ns.BadPlanError, match=r"^box 4 \(.*\) writes what it writes too"):
        check_in_memory(plain([4096, 4100, 8200], [7000, 7100, 9000], rows))
