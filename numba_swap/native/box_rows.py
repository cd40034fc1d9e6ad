"""From origins of boxes to addresses, and whether boxes meet."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import column, compiled, integer
from numba_swap.native.ccall import mapping as table_type
from numba_swap.native.ccall import rows as vector
from numba_swap.native.rows import find_slot, new_slots

NOTHING, TWICE, READ_AND_WRITTEN = 0, 1, 2


@compiled(integer(table_type, vector, vector, vector, integer, column))
def place_boxes(origins, shape, strides, box, at, addresses):  # type: ignore[no-untyped-def]
    """Turn origins into addresses; return the first row whose box is not inside, or -1.

    Parameters
    ----------
    origins : ndarray of int64, shape (n, d)
        Index of each box's first element.
    shape, strides, box : ndarray of int64, shape (d,)
        Of the array; of the box.
    at : int
        Address of the array's first element.
    addresses : ndarray of uint64, shape (n,)
        Filled.
    """
    for row in range(len(origins)):
        address = at
        for axis in range(len(shape)):
            origin = origins[row, axis]
            if origin < 0 or origin > shape[axis] - box[axis]:
                return row
            address += origin * strides[axis]
        addresses[row] = address
    return -1


@compiled(types.boolean(table_type, table_type, integer, table_type, table_type, integer))
def _meet(origins, lengths, row, others, their_lengths, other):  # type: ignore[no-untyped-def]
    mine_of, theirs_of = min(row, len(lengths) - 1), min(other, len(their_lengths) - 1)
    for axis in range(origins.shape[1]):
        mine, theirs = origins[row, axis], others[other, axis]
        if mine >= theirs + their_lengths[theirs_of, axis]:
            return False
        if theirs >= mine + lengths[mine_of, axis]:
            return False
    return True


@compiled(
    integer(
        table_type,
        table_type,
        integer,
        table_type,
        table_type,
        vector,
        vector,
        vector,
        vector,
        vector,
        vector,
    )
)
def _find_near(  # type: ignore[no-untyped-def]
    origins, lengths, row, others, their_lengths, cell, cells, slots, first, following, here
):
    """Return one of the others, entered in the grid so far, that a box meets, or -1."""
    axes = len(cell)
    neighbours = 1
    for axis in range(axes):
        here[axis] = origins[row, axis] // cell[axis]
        if cell[axis] > 1 and cells[axis] > 1:
            neighbours *= 3
    for number in range(neighbours):
        rest, key, inside = number, 0, True
        for axis in range(axes):
            place = here[axis]
            if cell[axis] > 1 and cells[axis] > 1:
                place += rest % 3 - 1
                rest //= 3
            if place < 0 or place >= cells[axis]:
                inside = False
                break
            key = key * cells[axis] + place
        if inside:
            slot = find_slot(slots, key)
            if slots[slot] != 0:
                other = first[slot]
                while other >= 0:
                    if _meet(origins, lengths, row, others, their_lengths, other):
                        return other
                    other = following[other]
    return -1


@compiled(table_type(table_type, vector, integer))
def _without_axis(writes, order, axis):  # type: ignore[no-untyped-def]
    """Return rows in an order, without one of their columns."""
    rest = np.empty((len(order), writes.shape[1] - 1), dtype=np.int64)
    for place in range(len(order)):
        for i in range(rest.shape[1]):
            rest[place, i] = writes[order[place], i + (i >= axis)]
    return rest


@compiled(types.boolean(table_type, integer, integer, vector))
def _meet_alike(rest, place, earlier, reach):  # type: ignore[no-untyped-def]
    """Whether two boxes of the same lengths meet along some axes."""
    apart = False
    for i in range(len(reach)):
        apart |= abs(rest[place, i] - rest[earlier, i]) >= reach[i]
    return not apart


@compiled(types.UniTuple(integer, 2)(table_type, table_type, integer, integer))
def _find_twice_by_sweep(writes, lengths, axis, longest):  # type: ignore[no-untyped-def]
    """Return two boxes that meet, looking through them along one axis; -1, -1 if none do."""
    order = np.argsort(writes[:, axis])
    alike = len(lengths) == 1
    # Most comparisons are of boxes of one shape: in the order of memory, along the other axes.
    rest = _without_axis(writes, order, axis)
    reach = _without_axis(lengths, np.zeros(1, dtype=np.int64), axis)[0]
    low = 0
    for place in range(len(order)):
        row = order[place]
        while writes[order[low], axis] + longest <= writes[row, axis]:
            low += 1
        for earlier in range(low, place):
            other = order[earlier]
            if (
                _meet_alike(rest, place, earlier, reach)
                if alike
                else _meet(writes, lengths, row, writes, lengths, other)
            ):
                return min(row, other), max(row, other)
    return -1, -1


# So many boxes of which each would be compared with a share are compared faster than looked up in
# a grid: a comparison takes a nanosecond, the 27 look-ups of a box among boxes 400 (here).
_FEW_COMPARISONS = 100


@compiled(types.UniTuple(integer, 3)(table_type, table_type, table_type, vector, vector))
def find_meeting(writes, lengths, reads, shape, cell):  # type: ignore[no-untyped-def]
    """Find boxes of one array that would not be copied in any order with the same result.

    A grid over the array whose cells are as large as the largest box: boxes that meet lie in the
    same cell or in neighbours, so the time goes by the number of boxes, whatever their size.

    Parameters
    ----------
    writes, lengths : ndarray of int64, shape (n, d)
        Origin and lengths of every box that is written; all inside the array. One row of lengths
        is that of every box.
    reads : ndarray of int64, shape (n, d) or (0, d)
        Origin of every box that is read from the same array, of the same lengths, if any are.
    shape, cell : ndarray of int64, shape (d,)
        Of the array; the longest box along each axis.

    Returns
    -------
    what : int
        `NOTHING`, `TWICE` or `READ_AND_WRITTEN`.
    first, second : int
        The two writes; or the read and the write.
    """
    axes = len(shape)
    cells, here = np.empty(axes, dtype=np.int64), np.empty(axes, dtype=np.int64)
    best, most = 0, 0
    for axis in range(axes):
        cells[axis] = (shape[axis] - 1) // cell[axis] + 1
        # Over so many cells the boxes are spread: all may lie in one plane of the array.
        over = (writes[:, axis].max() - writes[:, axis].min()) // cell[axis] + 1
        if over > most:
            best, most = axis, over
    if len(reads) == 0 and len(writes) <= _FEW_COMPARISONS * most:
        first, second = _find_twice_by_sweep(writes, lengths, best, cell[best])
        return (TWICE if first >= 0 else NOTHING), first, second
    slots = new_slots(len(writes))
    first_of = np.empty(len(slots), dtype=np.int64)
    following = np.empty(len(writes), dtype=np.int64)
    for row in range(len(writes)):
        other = _find_near(
            writes, lengths, row, writes, lengths, cell, cells, slots, first_of, following, here
        )
        if other >= 0:
            return TWICE, other, row
        key = 0
        for axis in range(axes):
            key = key * cells[axis] + writes[row, axis] // cell[axis]
        slot = find_slot(slots, key)
        following[row] = -1 if slots[slot] == 0 else first_of[slot]
        slots[slot] = key + 1
        first_of[slot] = row
    for row in range(len(reads)):
        other = _find_near(
            reads, lengths, row, writes, lengths, cell, cells, slots, first_of, following, here
        )
        if other >= 0:
            return READ_AND_WRITTEN, row, other
    return NOTHING, -1, -1


# A box in memory: address, bytes of a row, rows, planes, pitch, plane.
_BOX = types.UniTuple(integer, 6)


@compiled(_BOX(_BOX))
def as_set(box):  # type: ignore[no-untyped-def]
    """Return a box of the same bytes, as regular as can be: ascending, the closer rows inside.

    What of its rows or planes leaves no gap is one row, so that whole boxes compare at once.
    """
    at, row_bytes, rows, planes, pitch, plane = box
    at += min((rows - 1) * pitch, 0) + min((planes - 1) * plane, 0)
    pitch, plane = abs(pitch), abs(plane)
    if planes > 1 and (rows == 1 or plane < pitch):
        rows, planes, pitch, plane = planes, rows, plane, pitch
    for _ in range(2):
        if rows > 1 and pitch <= row_bytes:
            row_bytes += (rows - 1) * pitch
            rows, pitch, planes, plane = planes, plane, 1, 0
    if planes > 1 and plane <= rows * pitch and plane % pitch == 0:
        rows += (planes - 1) * (plane // pitch)
        planes, plane = 1, 0
    return at, row_bytes, rows, planes, pitch, plane


@compiled(_BOX(table_type, integer))
def _box(boxes, row):  # type: ignore[no-untyped-def]
    return as_set(
        (
            boxes[row, 0],
            boxes[row, 1],
            boxes[row, 2],
            boxes[row, 3],
            boxes[row, 4],
            boxes[row, 5],
        )
    )


@compiled(types.boolean(integer, integer, _BOX))
def _row_meets(at, nbytes, box):  # type: ignore[no-untyped-def]
    """Whether a range of bytes meets a box, which is as `as_set` returns it."""
    begin, row_bytes, rows, planes, pitch, plane = box
    apart = at - begin
    low, high = 0, 0
    if planes > 1:
        reach = (rows - 1) * pitch + row_bytes
        low = max(0, -((reach - 1 - apart) // plane))
        high = min(planes - 1, (apart + nbytes - 1) // plane)
    for k in range(low, high + 1):
        inside = apart - k * plane
        if rows == 1:
            if -nbytes < inside < row_bytes:
                return True
        else:
            lowest = max(0, -((row_bytes - 1 - inside) // pitch))
            highest = min(rows - 1, (inside + nbytes - 1) // pitch)
            if lowest <= highest:
                return True
    return False


@compiled(types.boolean(_BOX, _BOX))
def boxes_meet(one, other):  # type: ignore[no-untyped-def]
    """Whether two boxes in memory, as `as_set` returns them, share a byte.

    Boxes of the same pitches, of one array in most cases, are compared at once; of others, the
    rows of that one which has fewer.
    """
    at, row_bytes, rows, planes, pitch, plane = one
    begin, row_bytes2, rows2, planes2, pitch2, plane2 = other
    same_pitch = rows == 1 or rows2 == 1 or pitch == pitch2
    same_plane = planes == 1 or planes2 == 1 or plane == plane2
    if same_pitch and same_plane:
        step, far = pitch if rows > 1 else pitch2, plane if planes > 1 else plane2
        fits = max(row_bytes, row_bytes2) <= step or (rows == 1 and rows2 == 1)
        longest = (max(rows, rows2) - 1) * step + max(row_bytes, row_bytes2)
        if fits and (longest <= far or (planes == 1 and planes2 == 1)):
            apart = at - begin
            k = apart // far if planes > 1 or planes2 > 1 else 0
            for dk in range(k, k + 2):
                if -planes < dk < planes2:
                    rest = apart - dk * far
                    j = rest // step if rows > 1 or rows2 > 1 else 0
                    for dj in range(j, j + 2):
                        if -rows < dj < rows2 and -row_bytes < rest - dj * step < row_bytes2:
                            return True
            return False
    if rows * planes > rows2 * planes2:
        one, other = other, one
    at, row_bytes, rows, planes, pitch, plane = one
    for k in range(planes):
        for j in range(rows):
            if _row_meets(at + k * plane + j * pitch, row_bytes, other):
                return True
    return False


@compiled(types.UniTuple(integer, 3)(table_type, vector, vector, vector))
def find_meeting_in_memory(boxes, starts, stops, written):  # type: ignore[no-untyped-def]
    """Find two boxes in memory that share a byte, of which one at least is written.

    Parameters
    ----------
    boxes : ndarray of int64, shape (n, 6)
        Address, bytes of a row, rows, planes, pitch and plane of each, in the order of `starts`.
    starts, stops : ndarray of int64, shape (n,)
        First byte of each, and the one after the last.
    written : ndarray of int64, shape (n,)
        Not 0 where it is written; else it is read.

    Returns
    -------
    what : int
        `NOTHING`, `TWICE` or `READ_AND_WRITTEN`.
    first, second : int
        Two rows of `boxes`: both written; or the read one and the written one.
    """
    # Those of the boxes so far that end after the present one begins.
    active = np.empty(len(boxes), dtype=np.int64)
    count = 0
    for row in range(len(boxes)):
        kept = 0
        for i in range(count):
            if stops[active[i]] > starts[row]:
                active[kept] = active[i]
                kept += 1
        count = kept
        mine = _box(boxes, row)
        for i in range(count):
            other = active[i]
            if (written[row] != 0 or written[other] != 0) and boxes_meet(mine, _box(boxes, other)):
                if written[row] != 0 and written[other] != 0:
                    return TWICE, other, row
                if written[other] == 0:
                    return READ_AND_WRITTEN, other, row
                return READ_AND_WRITTEN, row, other
        active[count] = row
        count += 1
    return NOTHING, -1, -1
