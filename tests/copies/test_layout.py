"""How a block of one array maps onto a block of another."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.copies.inputs.arrays import ArrayView
from numba_swap.copies.layout import match_blocks, may_overlap


def array_view(array):
    return ArrayView(0, array.shape, array.strides, array.itemsize, False, None)


def bytes_of_block(array, axis):
    """Where each byte of block 0 lies from the beginning of the block, in C order."""
    lengths = [n for i, n in enumerate(array.shape) if i != axis % array.ndim]
    strides = [s for i, s in enumerate(array.strides) if i != axis % array.ndim]
    at = np.zeros(1, np.int64)
    for length, stride in [*zip(lengths, strides, strict=True), (array.itemsize, 1)]:
        at = (at[:, None] + np.arange(length) * stride).ravel()
    return at


def runs_of(pairs):
    """The fewest runs that are contiguous at both ends."""
    pairs = pairs[np.argsort(pairs[:, 1])]
    return int((np.diff(pairs, axis=0) != 1).any(axis=1).sum()) + 1


def layouts(rng, cases):
    """Arrays of one shape and another stride, and of other shapes with as many bytes."""
    for _ in range(cases):
        shape = [3, *rng.integers(1, 4, rng.integers(1, 4)), 2]
        sides = []
        for _ in range(2):
            order = rng.permutation(len(shape))
            gaps = rng.integers(1, 3, len(shape))
            base = np.zeros([shape[i] * g for i, g in zip(order, gaps, strict=True)], np.int16)
            view = base[tuple(slice(None, None, g) for g in gaps)].transpose(np.argsort(order))
            sides.append(view[..., ::-1] if rng.random() < 0.2 else view)
        axis = int(rng.integers(-len(shape), len(shape)))
        yield (*sides, axis)
    plain = np.zeros((3, 4, 6), np.int16)
    for other in (
        np.zeros((5, 6, 4), np.int16),
        np.zeros((5, 2, 2, 6), np.int16),
        np.zeros((5, 8, 12), np.int16)[:, ::2, ::2],
        np.zeros((5, 24), np.int16),
        np.zeros((5, 12), np.int32),
        np.zeros((5, 48), np.uint8),
        np.zeros((5, 4, 12), np.uint8),
        np.zeros((5, 4, 24), np.uint8)[:, :, ::2],
        np.zeros((5, 24, 2), np.int16)[:, :, 0],
        np.zeros((5, 4, 6, 2), np.int16)[..., 0],
        np.zeros((5, 4, 9), np.int16)[:, :, :6],
        np.lib.stride_tricks.as_strided(np.zeros(72, np.int16), (3, 4, 1, 6), (48, 12, 998, 2)),
    ):
        yield plain, other, 0
        yield other, plain, 0
    yield np.zeros((3, 4, 7), np.int16)[:, :, :6], np.zeros((3, 8, 4), np.int16)[:, :, :3], 0
    yield np.zeros((3, 8, 4), np.int16)[:, :, :3], np.zeros((3, 4, 7), np.int16)[:, :, :6], 0


def test_every_byte_of_a_block_has_its_place(rng):
    for src, dst, axis in layouts(rng, 150):
        layout = match_blocks(array_view(src), array_view(dst), axis, "both")
        inside = np.arange(layout.run_bytes)
        found = np.stack(
            [
                (offsets[:, None] + inside).ravel()
                for offsets in (layout.src_offsets, layout.dst_offsets)
            ],
            axis=1,
        )
        expected = np.stack([bytes_of_block(side, axis) for side in (src, dst)], axis=1)
        assert {*map(tuple, found.tolist())} == {*map(tuple, expected.tolist())}
        assert len(found) == len(expected)
        assert len(layout.dst_offsets) == runs_of(expected)
        assert (layout.src_step, layout.dst_step) == (src.strides[axis], dst.strides[axis])
        assert (layout.src_blocks, layout.dst_blocks) == (src.shape[axis], dst.shape[axis])
        values = [layout.run_bytes, layout.src_step, layout.dst_step]
        values += [*layout.src_offsets.tolist(), *layout.dst_offsets.tolist()]
        assert layout.alignment_bits == int(np.bitwise_or.reduce(values))
        assert not layout.may_alias
        order = np.argsort(layout.dst_offsets, kind="stable")  # memory is visited in order
        backwards = any(stride < 0 for stride in dst.strides)
        assert backwards or (np.diff(order) >= 0).all()


def test_blocks_that_do_not_correspond():
    plain, bits = np.zeros((3, 6), np.uint8), np.zeros((3, 12), np.uint8)[:, ::2]
    assert match_blocks(array_view(plain), array_view(bits), -2, "both").run_bytes == 1
    for axis in (2, -3):
        with pytest.raises(ns.BadPlanError, match=f"^both: the source.* no block axis {axis}"):
            match_blocks(array_view(plain), array_view(plain), axis, "both")
    rows = np.zeros((3, 2, 7), np.uint8)[:, :, :6:2], np.zeros((3, 3, 5), np.uint8)[:, :, :4:2]
    with pytest.raises(ns.BadPlanError, match=r"lengths 3 and 2 do not divide"):
        match_blocks(*map(array_view, rows), 0, "both")


@pytest.mark.parametrize(
    ("axes", "run", "overlap"),
    [
        ([], 5, False),
        ([(4, 5)], 5, False),
        ([(4, 4)], 5, True),
        ([(2, 4)], 5, True),
        ([(4, -4)], 5, True),
        ([(1, 0)], 5, False),
        ([(2, 0)], 5, True),
        ([(2, 10), (2, 5)], 5, False),
        ([(2, 9), (2, 5)], 5, True),
        ([(3, 6), (2, 17)], 5, False),
        ([(3, 6), (2, 16)], 5, True),
        ([(3, -6), (2, -16)], 5, True),
        ([(3, 6), (2, 17), (2, 34)], 5, False),
        ([(3, 6), (2, 17), (2, 33)], 5, True),
        ([(4, 5), (2, 20)], 5, False),
        ([(4, 5), (2, 19)], 5, True),
    ],
)
def test_runs_that_may_overlap(axes, run, overlap):
    assert may_overlap(axes, run) is overlap
