"""Boxes that reach beyond an array: refused, cut, or wrapped round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from numba_swap.copies.forms import Words
from numba_swap.errors import BadPlanError

Edge = Literal["error", "clip", "wrap"]


class Pieces(NamedTuple):
    """Boxes that lie inside both arrays.

    Attributes
    ----------
    src, dst : ndarray of int64, shapes (n, src.ndim) and (n, dst.ndim)
        Origins.
    lengths : ndarray of int64, shape (n, axes)
        Lengths along the axes of the box.
    row_of : ndarray of int64, shape (n,)
        The user's row behind each, in rising order.
    """

    src: Words
    dst: Words
    lengths: Words
    row_of: Words

    def take(self, rows: Words) -> Pieces:
        """Return some of them."""
        return Pieces(*(column[rows] for column in self))


def cut_boxes(pieces: Pieces, shapes: tuple[Words, Words]) -> Pieces:
    """Cut off what lies beyond either array; boxes of which nothing is left vanish.

    Parameters
    ----------
    pieces : Pieces
        The boxes.
    shapes : tuple of ndarray of int64
        Of the source, and of the destination, along the axes of the box.
    """
    axes = pieces.lengths.shape[1]
    src, dst = pieces.src.copy(), pieces.dst.copy()
    begin, end = np.zeros_like(pieces.lengths), pieces.lengths
    sides = [side[:, side.shape[1] - axes :] for side in (src, dst)]  # views
    for side, shape in zip(sides, shapes, strict=True):
        # In an order in which nothing overflows, whatever the origin and the length.
        begin = np.maximum(begin, -np.maximum(side, -pieces.lengths))
        end = np.minimum(end, shape - np.maximum(side, shape - pieces.lengths))
    for indices in sides:
        indices += begin  # noqa: PLW2901 -- in place
    cut = Pieces(src, dst, np.maximum(end, 0) - begin, pieces.row_of)
    return cut.take(np.flatnonzero((cut.lengths > 0).all(axis=1)))


def wrap_boxes(pieces: Pieces, shapes: tuple[Words, Words]) -> Pieces:
    """Split boxes where they leave either array: what is beyond comes in on the other side.

    Raises
    ------
    BadPlanError
        If a box is longer than an array: it would meet itself.
    """
    axes = pieces.lengths.shape[1]
    for name, shape in zip(("source", "destination"), shapes, strict=True):
        longer = np.flatnonzero((pieces.lengths > shape).any(axis=1))
        if longer.size:
            raise BadPlanError(
                f"a box of {tuple(pieces.lengths[longer[0]].tolist())} elements does not fit into "
                f"the {name}, of {tuple(shape.tolist())} along these axes: wrapped round, it would "
                "meet itself; give boxes of one period at most",
                int(pieces.row_of[longer[0]]),
            )
    src, dst = pieces.src.copy(), pieces.dst.copy()
    for side, shape in zip((src, dst), shapes, strict=True):
        side[:, side.shape[1] - axes :] %= shape
    pieces = Pieces(src, dst, pieces.lengths, pieces.row_of)
    for number in range(len(shapes)):
        for axis in range(axes):
            pieces = _split(pieces, number, axis, [int(shape[axis]) for shape in shapes])
    return pieces.take(np.argsort(pieces.row_of, kind="stable"))


def _split(pieces: Pieces, side: int, axis: int, around: Sequence[int]) -> Pieces:
    """Split the boxes that leave one side along one axis, of these lengths at either side."""
    axes = pieces.lengths.shape[1]
    origins = (pieces.src, pieces.dst)[side]
    inside = around[side] - origins[:, origins.shape[1] - axes + axis]
    rows = np.flatnonzero(pieces.lengths[:, axis] > inside)
    if not rows.size:
        return pieces
    rest = pieces.take(rows)
    lengths = pieces.lengths.copy()
    lengths[rows, axis] = inside[rows]
    rest.lengths[:, axis] -= inside[rows]
    for moved, length in zip((rest.src, rest.dst), around, strict=True):
        column = moved[:, moved.shape[1] - axes + axis]
        column += inside[rows]
        column %= length
    first = pieces._replace(lengths=lengths)
    return Pieces(*(np.concatenate(both) for both in zip(first, rest, strict=True)))
