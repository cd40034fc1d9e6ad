"""From arrays and origins to checked copies of boxes of one shape."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from numba_swap import native
from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.boxes.edges import Edge, Pieces, cut_boxes, wrap_boxes
from numba_swap.copies.boxes.meeting import (
    check_allocations,
    check_by_origins,
    check_in_memory,
)
from numba_swap.copies.copies import Copies, concatenate, no_copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import (
    NO_FORMS,
    Boxes,
    Words,
    axes_of,
    expand,
    fold,
    form_words,
    memory_type,
)
from numba_swap.copies.hazards import spans_meet
from numba_swap.copies.inputs.mapping import read_integers, read_rows
from numba_swap.copies.layout import may_overlap
from numba_swap.copies.provenance import BoxRows
from numba_swap.device.memory import Addresses
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadArgumentError, BadPlanError


class BoxCall(NamedTuple):
    """What the user asks for.

    Attributes
    ----------
    src, dst : BlockArray
        The arrays.
    src_origins, dst_origins : ndarray of int64, shapes (n, src.ndim) and (n, dst.ndim)
        First element of each box, in either.
    box : tuple of int
        Lengths of a box along the last axes of both.
    """

    src: BlockArray
    dst: BlockArray
    src_origins: Words
    dst_origins: Words
    box: tuple[int, ...]

    @property
    def sides(self) -> tuple[tuple[BlockArray, Words], tuple[BlockArray, Words]]:
        """Source and destination, each with its origins."""
        return (self.src, self.src_origins), (self.dst, self.dst_origins)


def read_boxes(
    src: BlockArray, dst: BlockArray, src_origins: Any, dst_origins: Any, box_shape: Any
) -> BoxCall:
    """Read and check what does not depend on the origins' values.

    Raises
    ------
    BadArgumentError, BadPlanError, UnsupportedArrayError
        If shapes, dtypes or origins do not fit.
    """
    box = _read_shape(box_shape, min(len(src.view.shape), len(dst.view.shape)))
    from_, to = (
        # A copy: whoever changes them meanwhile, all that follows is of the same origins.
        read_rows(given, name, len(array.view.shape)).copy()
        for given, name, array in (
            (src_origins, "src_origins", src),
            (dst_origins, "dst_origins", dst),
        )
    )
    if len(from_) != len(to):
        raise BadPlanError(
            f"src_origins and dst_origins must be equally long, not {len(from_)} and {len(to)}"
        )
    check_pair(src, dst)
    return BoxCall(src, dst, from_, to, box)


def check_pair(src: BlockArray, dst: BlockArray) -> None:
    """Refuse arrays between which no element can be copied."""
    if dst.view.readonly:
        raise BadPlanError(f"{dst.name} is read-only, so it cannot be a destination")
    if src.view.itemsize != dst.view.itemsize:
        raise BadPlanError(
            f"{src.name} has elements of {src.view.itemsize} bytes, {dst.name} of "
            f"{dst.view.itemsize}: bytes are copied as they are, so these must be equal"
        )


def _read_shape(box_shape: Any, axes: int) -> tuple[int, ...]:
    try:
        box = tuple(read_integers(box_shape, "box_shape", 1).tolist())
    except BadPlanError as error:
        raise BadArgumentError(str(error)) from None
    if any(length < 0 for length in box):
        raise BadArgumentError(f"box_shape={box} has a negative length")
    while len(box) > axes and box[0] == 1:
        box = box[1:]
    if len(box) > axes:
        raise BadArgumentError(
            f"box_shape={box} has {len(box)} axes, the array with fewer axes has {axes}: it is "
            "aligned to the last axes of both arrays"
        )
    return box


def plan_origins(driver: Driver, call: BoxCall, edge: Edge = "error") -> Copies:
    """Turn boxes into checked copies.

    Raises
    ------
    BadArgumentError
        If `edge` is none of the words.
    BadPlanError
        If a box is not inside, or boxes meet.
    """
    if not isinstance(edge, str) or edge not in get_args(Edge):
        raise BadArgumentError(f"edge={edge!r}: give 'error', 'clip' or 'wrap'")
    src, dst, box = call.src, call.dst, call.box
    count = len(call.src_origins)
    if count == 0 or 0 in box or src.view.itemsize == 0:
        return no_copies()
    pieces = None
    columns = [_place(array, origins, box) for array, origins in call.sides]
    if any(outside >= 0 for _, outside in columns):
        if edge == "error":
            raise _outside(call, columns)
        pieces = _fit(call, edge)
        if not len(pieces.row_of):
            return no_copies()
    origin, ends = BoxRows(np.arange(count), call.src_origins, call.dst_origins), ends_of(src, dst)
    if pieces is None:
        copies = _copies_of_form(call, box, columns[1][0], columns[0][0], origin, ends)
    else:
        copies = _copies_of_pieces(call, pieces, origin, ends)
    copies = check_allocations(driver, copies, [(np.arange(len(copies)), src, dst)])
    return _check_meetings(call, pieces, copies, origin)


def ends_of(src: BlockArray, dst: BlockArray) -> Ends:
    """Return what copies from one array to the other have in common."""
    streams = tuple(s for s in (src.view.stream, dst.view.stream) if s is not None)
    return Ends.of(src.allocations, dst.allocations, (src.view.owner, dst.view.owner), streams)


class _Geometry(NamedTuple):
    """An array and the boxes in it, as compiled functions take them.

    Attributes
    ----------
    shape, strides : ndarray of int64
        Of the array.
    lengths : ndarray of int64
        Of a box, along all axes of the array.
    may_alias : bool
        Whether elements of the array may share memory.
    """

    shape: Words
    strides: Words
    lengths: Words
    may_alias: bool


@functools.lru_cache(maxsize=256)
def _geometry(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, box: tuple[int, ...]
) -> _Geometry:
    lengths = (1,) * (len(shape) - len(box)) + box
    return _Geometry(
        np.array(shape, dtype=np.int64),
        np.array(strides, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        may_overlap(list(zip(shape, strides, strict=True)), itemsize),
    )


def _geometry_of(array: BlockArray, box: tuple[int, ...]) -> _Geometry:
    view = array.view
    return _geometry(view.shape, view.strides, view.itemsize, box)


def _place(array: BlockArray, origins: Words, box: tuple[int, ...]) -> tuple[Addresses, int]:
    """Return addresses, and the first row whose box is not inside, or -1."""
    addresses = np.empty(len(origins), dtype=np.uint64)
    shape, strides, lengths, _ = _geometry_of(array, box)
    outside = native.box_rows.place_boxes(
        origins, shape, strides, lengths, array.view.address, addresses
    )
    return addresses, int(outside)


def _outside(call: BoxCall, columns: Sequence[tuple[Addresses, int]]) -> BadPlanError:
    row, side = min((outside, side) for side, (_, outside) in enumerate(columns) if outside >= 0)
    name, (array, origins) = ("src", "dst")[side], call.sides[side]
    return _outside_error(call, row, name, array, origins)


def _outside_error(
    call: BoxCall, row: int, name: str, array: BlockArray, origins: Words
) -> BadPlanError:
    shape, origin = array.view.shape, origins[row].tolist()
    lead, advice = len(shape) - len(call.box), ""
    # Along the axes before those of the box nothing is cut or wrapped.
    if all(0 <= at < length for at, length in zip(origin[:lead], shape[:lead], strict=True)):
        advice = "; give edge='clip' or 'wrap' for boxes that reach beyond"
    return BadPlanError(
        f"{name}_origins[{row}] = {tuple(origins[row].tolist())}: a box of {call.box} there is not "
        f"inside {array.name}, of shape {array.view.shape}{advice}",
        row,
    )


def _fit(call: BoxCall, edge: Edge) -> Pieces:
    """Cut or wrap the boxes that reach beyond an array."""
    axes, count = len(call.box), len(call.src_origins)
    shapes = []
    for (array, origins), name in zip(call.sides, ("src", "dst"), strict=True):
        whole = np.array(array.view.shape, dtype=np.int64)
        lead = len(whole) - axes
        outside = (origins[:, :lead] < 0) | (origins[:, :lead] >= whole[:lead])
        wrong = np.flatnonzero(outside.any(axis=1))
        if wrong.size:  # only along the axes of the box is there an edge to reach beyond
            row = int(wrong[0])
            raise BadPlanError(
                f"{name}_origins[{row}] = {tuple(origins[row].tolist())} is not inside "
                f"{array.name}, of shape {array.view.shape}, along an axis before those of the box",
                row,
            )
        shapes.append(whole[lead:])
    pieces = Pieces(
        call.src_origins,
        call.dst_origins,
        np.tile(np.array(call.box, dtype=np.int64), (count, 1)),
        np.arange(count),
    )
    fit = cut_boxes if edge == "clip" else wrap_boxes
    return fit(pieces, (shapes[0], shapes[1]))


def _copies_of_form(
    call: BoxCall,
    box: tuple[int, ...],
    dst: Addresses,
    src: Addresses,
    origin: BoxRows,
    ends: Ends,
) -> Copies:
    """Return the copies of boxes of one shape, which begin at these addresses."""
    src_view, dst_view = call.src.view, call.dst.view
    axes = len(box)
    folded = fold(
        axes_of(
            box,
            src_view.strides[len(src_view.strides) - axes :],
            dst_view.strides[len(dst_view.strides) - axes :],
            src_view.itemsize,
        )
    )
    form, runs = folded.form, len(folded.dst_offsets)
    if may_overlap([(form.planes, form.dst_plane), (form.rows, form.dst_pitch)], form.row_bytes):
        raise overlapping_error(call.dst)
    if folded.dst_offsets.any() or folded.src_offsets.any() or runs > 1:
        dst, src = expand(dst, folded.dst_offsets), expand(src, folded.src_offsets)
    if runs > 1:
        origin = origin._replace(row_of=np.repeat(origin.row_of, runs))
    boxes = None
    if form.rows > 1 or form.planes > 1:
        types = memory_type(call.dst.allocations), memory_type(call.src.allocations)
        boxes = Boxes(np.array([form_words(form, *types)], dtype=np.int64), NO_FORMS)
    return Copies(dst, src, form.nbytes, ends, origin, boxes=boxes)


def overlapping_error(array: BlockArray) -> BadPlanError:
    """Make the error of a destination whose elements share memory."""
    return BadPlanError(
        f"elements of {array.name} may share memory (shape {array.view.shape}, strides "
        f"{array.view.strides}); a broadcast or sliding view cannot be a destination"
    )


def _copies_of_pieces(call: BoxCall, pieces: Pieces, origin: BoxRows, ends: Ends) -> Copies:
    """Return the copies of pieces of boxes, whose shapes may differ."""
    shapes, which = np.unique(pieces.lengths, axis=0, return_inverse=True)
    parts: list[Copies] = []
    rows: list[Words] = []
    for number, shape in enumerate(shapes.tolist()):
        some = pieces.take(np.flatnonzero(which.reshape(-1) == number))
        dst, src = (
            _place(array, np.ascontiguousarray(origins), tuple(shape))[0]
            for array, origins in ((call.dst, some.dst), (call.src, some.src))
        )
        rows_here = origin._replace(row_of=some.row_of)
        part = _copies_of_form(call, tuple(shape), dst, src, rows_here, ends)
        parts.append(part)
        rows.append(np.repeat(some.row_of, len(part) // len(some.row_of)))
    row_of = np.concatenate(rows)
    order = np.argsort(row_of, kind="stable")
    joined = concatenate(parts)
    return Copies(
        joined.dst[order],
        joined.src[order],
        joined.uniform or joined.sizes[order],
        ends,
        origin._replace(row_of=row_of[order]),
        boxes=joined.boxes and joined.boxes.select(order),
    )


def _check_meetings(
    call: BoxCall, pieces: Pieces | None, copies: Copies, origin: BoxRows
) -> Copies:
    """Refuse boxes of which the order of copies would matter; return those that move anything."""
    src, dst = call.src, call.dst
    shares = spans_meet([(*src.span, False), (*dst.span, True)])
    views = src.view, dst.view
    same = (views[0].address, views[0].shape, views[0].strides) == (
        views[1].address,
        views[1].shape,
        views[1].strides,
    )
    if shares:
        copies = copies.without_identities()
        if not len(copies):
            return copies
    shape, _, whole, may_alias = _geometry_of(dst, call.box)
    if (shares and not same) or may_alias:
        check_in_memory(copies)
        return copies
    if pieces is None:
        lengths = np.tile(whole, (len(origin.row_of) if shares else 1, 1))
        pieces = Pieces(call.src_origins, call.dst_origins, lengths, origin.row_of)
    elif pieces.lengths.shape[1] < len(shape):
        lead = np.ones((len(pieces.lengths), len(shape) - len(call.box)), dtype=np.int64)
        pieces = pieces._replace(lengths=np.concatenate([lead, pieces.lengths], axis=1))
    moved = (pieces.src != pieces.dst).any(axis=1) if shares else None
    if moved is not None and not moved.all():
        pieces = pieces.take(np.flatnonzero(moved))
    check_by_origins(pieces, shape, origin, read=shares)
    return copies
