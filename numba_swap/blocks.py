"""How a block of an array lies in memory, and how a block of one array maps onto another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numba_swap.errors import BadPlanError
from numba_swap.memory import ArrayView

Offsets = npt.NDArray[np.int64]

# Axes as (length, bytes between elements at the source, the same at the destination).
_Axis = tuple[int, int, int]


@dataclass(frozen=True)
class BlockRuns:
    """The contiguous runs of one block, the same for every block of a pair of arrays.

    Attributes
    ----------
    run_bytes : int
        Length of each run; 0 if a block holds nothing.
    src_offsets, dst_offsets : ndarray of int64
        Where each run begins, in bytes from the beginning of its block.
    dst_axes : tuple of tuple of int
        The destination block's axes over its runs: length, and bytes between runs.
    """

    run_bytes: int
    src_offsets: Offsets
    dst_offsets: Offsets
    dst_axes: tuple[tuple[int, int], ...]


def match_blocks(src: ArrayView, dst: ArrayView, block_axis: int, name: str) -> BlockRuns:
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
    src_shape, src_strides = _without_axis(src, block_axis, f"source of {name}")
    dst_shape, dst_strides = _without_axis(dst, block_axis, f"destination of {name}")
    src_bytes, dst_bytes = (
        int(np.prod(shape, dtype=np.int64)) * view.itemsize
        for shape, view in ((src_shape, src), (dst_shape, dst))
    )
    if src_bytes != dst_bytes:
        raise BadPlanError(
            f"{name}: a source block has {src_bytes} bytes (shape {src_shape}, {src.itemsize} "
            f"bytes an element), a destination block {dst_bytes} (shape {dst_shape}, "
            f"{dst.itemsize} bytes an element); they must be equal"
        )
    if src_bytes == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return BlockRuns(0, nothing, nothing, ())
    if src_shape == dst_shape and src.itemsize == dst.itemsize:
        # The order in which elements are visited is free: follow the destination's memory.
        axes = sorted(
            zip(src_shape, src_strides, dst_strides, strict=True), key=lambda axis: -abs(axis[2])
        )
        axes = [*axes, (src.itemsize, 1, 1)]
    else:
        axes = _common_axes(
            [*zip(src_shape, src_strides, strict=True), (src.itemsize, 1)],
            [*zip(dst_shape, dst_strides, strict=True), (dst.itemsize, 1)],
            name,
        )
    *outer, (run_bytes, _, _) = _join_axes(axes)
    dst_axes = tuple((n, step) for n, _, step in outer)
    if may_overlap(dst_axes, run_bytes):
        raise BadPlanError(
            f"{name}: elements of a destination block may share memory (runs of {run_bytes} bytes, "
            f"strides {dst_strides}); a broadcast or sliding view cannot be a destination"
        )
    return BlockRuns(
        run_bytes,
        _offsets([(n, step) for n, step, _ in outer]),
        _offsets(dst_axes),
        dst_axes,
    )


def _without_axis(view: ArrayView, axis: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    shape, strides = view.shape, view.strides
    if not -len(shape) <= axis < len(shape):
        raise BadPlanError(f"{name} has {len(shape)} axes, so there is no block axis {axis}")
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :], strides[:axis] + strides[axis + 1 :]


def _common_axes(src: list[tuple[int, int]], dst: list[tuple[int, int]], name: str) -> list[_Axis]:
    """Split the axes of both sides, from the innermost outwards, until their lengths agree."""
    src, dst = _join_side(src), _join_side(dst)
    axes: list[_Axis] = []
    while src and dst:
        (n, src_step), (m, dst_step) = src.pop(), dst.pop()
        length = min(n, m)
        if max(n, m) % length:
            raise BadPlanError(
                f"{name}: the blocks have as many bytes but not the same shape of runs "
                f"(lengths {n} and {m} do not divide); copy between equal shapes"
            )
        axes.insert(0, (length, src_step, dst_step))
        if n > length:
            src.append((n // length, src_step * length))
        if m > length:
            dst.append((m // length, dst_step * length))
    return axes


def _join_side(axes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(n, step) for n, step, _ in _join_axes([(n, step, step) for n, step in axes])]


def _join_axes(axes: list[_Axis]) -> list[_Axis]:
    """Drop axes of one element, and join neighbours without a gap at either end."""
    joined: list[_Axis] = []
    for axis in axes:
        if axis[0] == 1:
            continue
        if joined:
            n, src_step, dst_step = joined[-1]
            if src_step == axis[0] * axis[1] and dst_step == axis[0] * axis[2]:
                joined[-1] = (n * axis[0], axis[1], axis[2])
                continue
        joined.append(axis)
    if not joined or joined[-1][1:] != (1, 1):
        joined.append((1, 1, 1))  # elements of one byte that are not neighbours
    return joined


def may_overlap(axes: Sequence[tuple[int, int]], run_bytes: int) -> bool:
    """Whether runs placed along the axes may share bytes; False is certain, True is not."""
    reach = run_bytes
    for length, step in sorted(axes, key=lambda axis: abs(axis[1])):
        if length > 1 and abs(step) < reach:
            return True
        reach += (length - 1) * abs(step)
    return False


def _offsets(axes: Sequence[tuple[int, int]]) -> Offsets:
    offsets = np.zeros(1, dtype=np.int64)
    for length, step in axes:
        offsets = (offsets[:, None] + np.arange(length, dtype=np.int64) * step).ravel()
    return offsets
