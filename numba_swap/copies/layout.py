"""How a block of an array lies in memory, and how a block of one array maps onto another's."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.copies.forms import Axis, join_axes, step_offsets
from numba_swap.copies.inputs.arrays import ArrayView
from numba_swap.errors import BadArgumentError, BadPlanError, brief

Offsets: TypeAlias = npt.NDArray[np.int64]
Lengths: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class PairLayout:
    """How the blocks of one array map onto those of another, wherever the two lie in memory.

    Attributes
    ----------
    run_bytes : int
        Length of each contiguous run; 0 if a block holds nothing.
    src_offsets, dst_offsets : ndarray of int64
        Where each run begins, in bytes from the beginning of its block.
    src_step, dst_step : int
        Bytes from one block to the next.
    src_blocks, dst_blocks : int
        Number of blocks.
    may_alias : bool
        Whether different destination blocks may share bytes.
    alignment_bits : int
        All steps, offsets and lengths, or-ed: low bits that are 0 here are 0 in all of them.
    axes : tuple of (int, int, int)
        Of a block, outermost first: length, and bytes from one to the next at the source and at the
        destination; the last are the bytes of a run.
    unwritable : str or None
        Why no block of the destination can be written, though all may be read; None if they can.
    """

    run_bytes: int
    src_offsets: Offsets
    dst_offsets: Offsets
    src_step: int
    dst_step: int
    src_blocks: int
    dst_blocks: int
    may_alias: bool
    alignment_bits: int
    axes: tuple[Axis, ...]
    unwritable: str | None


def match_blocks(src: ArrayView, dst: ArrayView, block_axis: int, name: str) -> PairLayout:
    """Find the longest runs that are contiguous at both ends.

    Elements keep their place: index ``[i, j]`` of a source block goes to ``[i, j]`` of the
    destination block. Where the two have other shapes or element sizes, their bytes correspond in
    C order.

    Parameters
    ----------
    src, dst : ArrayView
        The two arrays.
    block_axis : int
        The axis along which blocks are counted; negative from the end.
    name : str
        What to call the pair in an error message.

    Raises
    ------
    BadPlanError
        If there is no such axis, or the blocks of the two do not correspond.
    """
    if isinstance(block_axis, bool) or not isinstance(block_axis, (int, np.integer)):
        raise BadArgumentError(f"block_axis={brief(block_axis)} is no integer")
    try:
        return _match_layouts(
            src.shape, src.strides, src.itemsize, dst.shape, dst.strides, dst.itemsize, block_axis
        )
    except BadPlanError as error:
        raise BadPlanError(f"{name}: {error}") from None


@functools.lru_cache(maxsize=256)
def _match_layouts(
    src_shape: Lengths,
    src_strides: Lengths,
    src_itemsize: int,
    dst_shape: Lengths,
    dst_strides: Lengths,
    dst_itemsize: int,
    block_axis: int,
) -> PairLayout:
    src_block, src_inner = _without_axis(src_shape, src_strides, block_axis, "the source")
    dst_block, dst_inner = _without_axis(dst_shape, dst_strides, block_axis, "the destination")
    src_bytes = math.prod(src_block) * src_itemsize
    dst_bytes = math.prod(dst_block) * dst_itemsize
    if src_bytes != dst_bytes:
        raise BadPlanError(
            f"a source block has {src_bytes} bytes (shape {src_block}, {src_itemsize} bytes an "
            f"element), a destination block {dst_bytes} (shape {dst_block}, {dst_itemsize} bytes "
            "an element); they must be equal: check shapes, dtypes and the block axis"
        )
    if src_bytes == 0:
        axes = [(0, 1, 1)]
    elif src_block == dst_block and src_itemsize == dst_itemsize:
        # The order in which elements are visited is free: follow the destination's memory.
        order = sorted(
            zip(src_block, src_inner, dst_inner, strict=True), key=lambda axis: -abs(axis[2])
        )
        axes = join_axes([*order, (src_itemsize, 1, 1)])
    else:
        axes = join_axes(
            _common_axes(
                [*zip(src_block, src_inner, strict=True), (src_itemsize, 1)],
                [*zip(dst_block, dst_inner, strict=True), (dst_itemsize, 1)],
            )
        )
    *outer, (run_bytes, _, _) = axes
    dst_axes = [(n, step) for n, _, step in outer]
    unwritable = None
    if dst_shape[block_axis] and may_overlap(dst_axes, run_bytes):
        unwritable = (
            f"elements of a destination block may share memory (runs of {run_bytes} bytes, strides "
            f"{dst_inner}); a broadcast or sliding view cannot be a destination"
        )
    src_offsets = step_offsets([(n, step) for n, step, _ in outer])
    dst_offsets = step_offsets(dst_axes)
    src_step, dst_step = src_strides[block_axis], dst_strides[block_axis]
    bits = run_bytes | src_step | dst_step
    for offsets in (src_offsets, dst_offsets):
        bits |= int(np.bitwise_or.reduce(offsets))
    return PairLayout(
        run_bytes,
        src_offsets,
        dst_offsets,
        src_step,
        dst_step,
        src_shape[block_axis],
        dst_shape[block_axis],
        may_overlap([*dst_axes, (dst_shape[block_axis], dst_step)], run_bytes),
        bits,
        tuple(axes),
        unwritable,
    )


def _without_axis(
    shape: Lengths, strides: Lengths, axis: int, name: str
) -> tuple[Lengths, Lengths]:
    if not -len(shape) <= axis < len(shape):
        raise BadPlanError(f"{name} has {len(shape)} axes, so there is no block axis {axis}")
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :], strides[:axis] + strides[axis + 1 :]


def _common_axes(src: list[tuple[int, int]], dst: list[tuple[int, int]]) -> list[Axis]:
    """Split the axes of both sides, from the innermost outwards, until their lengths agree."""
    src, dst = _join_side(src), _join_side(dst)
    axes: list[Axis] = []
    while src and dst:
        (n, src_step), (m, dst_step) = src.pop(), dst.pop()
        length = min(n, m)
        if max(n, m) % length:
            raise BadPlanError(
                "the blocks have as many bytes but not the same shape of runs "
                f"(lengths {n} and {m} do not divide); copy between equal shapes"
            )
        axes.insert(0, (length, src_step, dst_step))
        if n > length:
            src.append((n // length, src_step * length))
        if m > length:
            dst.append((m // length, dst_step * length))
    return axes


def _join_side(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(n, step) for n, step, _ in join_axes([(n, step, step) for n, step in axes])]


def may_overlap(axes: Sequence[tuple[int, int]], run_bytes: int) -> bool:
    """Whether runs placed along the axes may share bytes; False is certain, True is not."""
    reach = run_bytes
    for length, step in sorted(axes, key=lambda axis: abs(axis[1])):
        if length > 1 and abs(step) < reach:
            return True
        reach += (length - 1) * abs(step)
    return False
