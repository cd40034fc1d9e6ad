"""Boxes: strided copies, each of some planes of some rows, submitted or written down in one loop.

A call has few *forms* and many boxes. ``forms`` is an int64 array of ten columns: bytes of a row,
rows, planes; pitch and plane of the destination, then of the source, in bytes from one row or plane
to the next; how much of a box one copy of the driver expresses (2: all of it; 1: a plane; 0: a
row); memory types (``CUmemorytype``) of the destination and the source. ``which`` names the form of
each box; if it is empty, all have form 0.
"""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import (
    call,
    call_structure,
    column,
    compiled,
    integer,
    mapping,
    rows,
)

ROW_BYTES, ROWS, PLANES, DST_PITCH, DST_PLANE, SRC_PITCH, SRC_PLANE = range(7)
DRIVER_AXES, DST_TYPE, SRC_TYPE, FORM_COLUMNS = range(7, 11)
# A `CUDA_MEMCPY3D_BATCH_OP` is so many 64-bit words.
OPERATION_WORDS = 14

_POINTER_OPERAND = 1  # upper half: padding
_STREAM_ORDER = 1  # upper half: no flags


@compiled(integer(integer, integer, integer, mapping, integer, integer, integer))
def _copy_planes(function, dst, src, forms, form, planes, stream):  # type: ignore[no-untyped-def]
    """Submit some planes of a box as one 3-D copy; return the driver's code."""
    rows, zero = forms[form, ROWS], types.int64(0)
    dst_pitch, src_pitch = forms[form, DST_PITCH], forms[form, SRC_PITCH]
    dst_rows, src_rows = rows, rows
    if planes > 1:
        dst_rows = forms[form, DST_PLANE] // dst_pitch
        src_rows = forms[form, SRC_PLANE] // src_pitch
    # CUDA_MEMCPY3D: where the copy begins and the level of detail; memory type, host and device
    # address, CUDA array, reserved; bytes from row to row, rows from plane to plane.
    return call_structure(
        function,
        (
            *(zero, zero, zero, zero),
            *(forms[form, SRC_TYPE], src, src, zero, zero, src_pitch, src_rows),
            *(zero, zero, zero, zero),
            *(forms[form, DST_TYPE], dst, dst, zero, zero, dst_pitch, dst_rows),
            *(forms[form, ROW_BYTES], rows, planes),
        ),
        stream,
    )


@compiled(types.UniTuple(integer, 2)(integer, integer, column, column, mapping, rows, integer))
def memcpy_loop(memcpy_3d, memcpy, dst, src, forms, which, stream):  # type: ignore[no-untyped-def]
    """Submit boxes one by one until one is refused.

    Parameters
    ----------
    memcpy_3d, memcpy : int
        Addresses of ``cuMemcpy3DAsync`` and ``cuMemcpyAsync``.
    dst, src : ndarray of uint64, shape (n,)
        Addresses of each box's first byte.
    forms : ndarray of int64, shape (m, 10)
        See the module.
    which : ndarray of int64, shape (n,) or (0,)
        The form of each box.

    Returns
    -------
    code, index : int
        The driver's return code, and the box it refused, of which some planes or rows may have
        been submitted; 0 and the number of boxes if none.
    """
    form = types.int64(0)
    for index in range(len(dst)):
        if len(which) > 0:
            form = which[index]
        to, origin = types.int64(dst[index]), types.int64(src[index])
        axes, planes = forms[form, DRIVER_AXES], forms[form, PLANES]
        if axes == 2:
            code = _copy_planes(memcpy_3d, to, origin, forms, form, planes, stream)
            if code != 0:
                return code, index
            continue
        for plane in range(planes):
            row_to = to + plane * forms[form, DST_PLANE]
            row_origin = origin + plane * forms[form, SRC_PLANE]
            if axes == 1:
                code = _copy_planes(memcpy_3d, row_to, row_origin, forms, form, 1, stream)
                if code != 0:
                    return code, index
                continue
            for _ in range(forms[form, ROWS]):
                code = call(memcpy, (row_to, row_origin, forms[form, ROW_BYTES], stream))
                if code != 0:
                    return code, index
                row_to += forms[form, DST_PITCH]
                row_origin += forms[form, SRC_PITCH]
    return 0, len(dst)


@compiled(types.void(column, integer, *(integer,) * 9))
def _write_operation(  # type: ignore[no-untyped-def]
    words, count, dst, src, width, rows, planes, dst_pitch, dst_rows, src_pitch, src_rows
):
    """Write one `CUDA_MEMCPY3D_BATCH_OP`, number `count` of a list."""
    at = count * OPERATION_WORDS
    # An operand: its type; address, length of a row, rows of a layer; no hint of the location.
    words[at], words[at + 1] = _POINTER_OPERAND, src
    words[at + 2], words[at + 3], words[at + 4] = src_pitch, src_rows, 0
    words[at + 5], words[at + 6] = _POINTER_OPERAND, dst
    words[at + 7], words[at + 8], words[at + 9] = dst_pitch, dst_rows, 0
    words[at + 10], words[at + 11], words[at + 12] = width, rows, planes
    words[at + 13] = _STREAM_ORDER


@compiled(integer(column, column, mapping, rows, integer, integer, column))
def fill_operations(dst, src, forms, which, start, stop, operations):  # type: ignore[no-untyped-def]
    """Write boxes down as the operations that ``cuMemcpy3DBatchAsync`` takes.

    A box becomes one operation, or one for each of its planes, or for each of its rows, in this
    order.

    Parameters
    ----------
    dst, src, forms, which
        As for `memcpy_loop`.
    start, stop : int
        Which boxes.
    operations : ndarray of uint64
        Where they are written, `OPERATION_WORDS` for each; it must be long enough.

    Returns
    -------
    int
        The number of operations.
    """
    form, count = types.int64(0), types.int64(0)
    for index in range(start, stop):
        if len(which) > 0:
            form = which[index]
        to, origin = types.int64(dst[index]), types.int64(src[index])
        width, rows, planes = forms[form, ROW_BYTES], forms[form, ROWS], forms[form, PLANES]
        dst_pitch, src_pitch = forms[form, DST_PITCH], forms[form, SRC_PITCH]
        dst_plane, src_plane = forms[form, DST_PLANE], forms[form, SRC_PLANE]
        axes = forms[form, DRIVER_AXES]
        if axes == 2:
            dst_rows, src_rows = rows, rows
            if planes > 1:
                dst_rows, src_rows = dst_plane // dst_pitch, src_plane // src_pitch
            _write_operation(
                *(operations, count, to, origin, width, rows, planes),
                *(dst_pitch, dst_rows, src_pitch, src_rows),
            )
            count += 1
            continue
        for plane in range(planes):
            row_to, row_origin = to + plane * dst_plane, origin + plane * src_plane
            if axes == 1:
                _write_operation(
                    *(operations, count, row_to, row_origin, width, rows, 1),
                    *(dst_pitch, rows, src_pitch, rows),
                )
                count += 1
                continue
            for _ in range(rows):
                _write_operation(
                    *(operations, count, row_to, row_origin, width, 1, 1), *(width, 1, width, 1)
                )
                count += 1
                row_to += dst_pitch
                row_origin += src_pitch
    return count


# What the kernel of boxes reads of a form, one word each, in this order.
KERNEL_FORM = (
    "row_bytes",
    "rows",
    "dst_pitch",
    "dst_plane",
    "src_pitch",
    "src_plane",
    "row_words",
    "words",
    "step_words",
    "step_rows",
    "step_planes",
    "unit",
    "segment",
    "may_overread",
)
_ROW_WORDS, _WORDS = KERNEL_FORM.index("row_words"), KERNEL_FORM.index("words")
_STEP_WORDS = KERNEL_FORM.index("step_words")
_UNIT, _SEGMENT = KERNEL_FORM.index("unit"), KERNEL_FORM.index("segment")
_WORD_BYTES = 16
_HOST = 1  # CUmemorytype
# What stands for a segment where the words of one side are shifted to be those of the other.
SHIFTED = -1


@compiled(integer(integer, integer))
def _lowest(bits, most):  # type: ignore[no-untyped-def]
    """Return the largest power of two, `most` at most, that divides all that bits stand for."""
    bits |= most
    return bits & -bits


@compiled(integer(integer))
def _segment_bytes(row_bytes):  # type: ignore[no-untyped-def]
    """Return how many bytes a warp should write to host memory at once.

    Measured on an H100 with rows of 128 to 1024 bytes at odd addresses: 256 were as good as 128 or
    better, and both better than 64 and 32.
    """
    return 256 if row_bytes >= 256 else 128 if row_bytes >= 128 else 32


@compiled(types.void(column, column, mapping, rows, integer, mapping))
def describe_forms(dst, src, forms, which, may_overread, found):  # type: ignore[no-untyped-def]
    """Write down what the kernel of boxes reads of each form, but for the steps of a tile.

    Parameters
    ----------
    dst, src, forms, which
        As for `memcpy_loop`.
    may_overread : int
        Not 0 if the 16 aligned bytes around any byte of the sources may be read.
    found : ndarray of int64, shape (m, len(KERNEL_FORM))
        Filled.
    """
    # All addresses of each form or-ed, at the destination and at the source.
    bits = np.zeros((len(forms), 2), dtype=np.int64)
    for index in range(len(dst)):
        form = which[index] if len(which) > 0 else types.int64(0)
        bits[form, 0] |= types.int64(dst[index])
        bits[form, 1] |= types.int64(src[index])
    for form in range(len(forms)):
        row_bytes = forms[form, ROW_BYTES]
        dst_strides = forms[form, DST_PITCH] | forms[form, DST_PLANE]
        src_strides = forms[form, SRC_PITCH] | forms[form, SRC_PLANE]
        unit = _lowest(
            bits[form, 0] | bits[form, 1] | dst_strides | src_strides | row_bytes, _WORD_BYTES
        )
        found[form, 0], found[form, 1] = row_bytes, forms[form, ROWS]
        for i in range(4):
            found[form, 2 + i] = forms[form, DST_PITCH + i]
        found[form, _UNIT], found[form, 13] = unit, may_overread
        # What comes, at most, of a row's first segment before the row begins.
        word, segment, before = _WORD_BYTES, _WORD_BYTES, types.int64(0)
        if unit < _WORD_BYTES and forms[form, DST_TYPE] == _HOST:
            word, segment = unit, _segment_bytes(row_bytes)
            found[form, _SEGMENT] = segment
            before = segment - _lowest(bits[form, 0] | dst_strides, segment)
        elif unit < _WORD_BYTES and forms[form, SRC_TYPE] != _HOST:
            found[form, _SEGMENT] = SHIFTED
            before = segment - _lowest(bits[form, 0] | dst_strides, segment)
        elif unit < _WORD_BYTES:
            before = segment - _lowest(bits[form, 1] | src_strides, segment)
        row_words = (before + row_bytes + segment - 1) // segment * (segment // word)
        found[form, _ROW_WORDS] = row_words
        found[form, _WORDS] = row_words * forms[form, ROWS] * forms[form, PLANES]


@compiled(types.void(mapping, integer))
def set_steps(found, tile):  # type: ignore[no-untyped-def]
    """Write down what a tile of so many threads goes on by, in words, rows and planes."""
    for form in range(len(found)):
        row_words = found[form, _ROW_WORDS]
        plane = row_words * found[form, 1]
        rest = tile % plane
        found[form, _STEP_WORDS] = rest % row_words
        found[form, _STEP_WORDS + 1] = rest // row_words
        found[form, _STEP_WORDS + 2] = tile // plane
