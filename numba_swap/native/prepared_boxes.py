"""Doing boxes again, elsewhere in memory of the same sort: all of it in one compiled call."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.boxes import (
    KERNEL_FORM,
    describe_forms,
    memcpy_loop,
    set_steps,
)
from numba_swap.native.ccall import call, call_attributes, column, compiled, integer, mapping, rows
from numba_swap.native.driver_calls import (
    LAUNCH_FUNCTIONS,
    NO_CONTEXT,
    enter_context,
    is_free,
    launch_if_free,
    leave_context,
)
from numba_swap.native.prepared import LAUNCH, functions_of

_functions = types.UniTuple(integer, LAUNCH_FUNCTIONS)
_words = types.Array(types.int64, 1, "C")


_arguments = (_functions, *(integer,) * 3, column, column, mapping, rows, integer, integer)


@compiled(types.UniTuple(integer, 3)(*_arguments))
def _boxes_if_free(  # type: ignore[no-untyped-def]
    functions, memcpy_3d, memcpy, context, dst, src, forms, which, stream, event
):
    """Do what `boxes_and_record` does, in the context that is current."""
    if not is_free(functions, context, stream):
        return -1, 0, 0
    code, index = memcpy_loop(memcpy_3d, memcpy, dst, src, forms, which, stream)
    if code != 0:
        return 1, code, index
    code = call(functions[5], (event, stream))
    return (2 if code != 0 else 0), code, index


@compiled(types.UniTuple(integer, 3)(*_arguments))
def boxes_and_record(  # type: ignore[no-untyped-def]
    functions, memcpy_3d, memcpy, context, dst, src, forms, which, stream, event
):
    """Submit boxes one by one and record an event behind them, if things are still as they were.

    Parameters
    ----------
    functions, context, stream, event
        As for `driver_calls.launch_and_record`.
    memcpy_3d, memcpy, dst, src, forms, which
        As for `boxes.memcpy_loop`.

    Returns
    -------
    step, code, index : int
        `step` is 0 if all went well; 1 if a box was refused, which is `index`, or 2 if the event
        was, with the driver's `code`; -1 if the context was another or the stream was being
        captured, and nothing was done.
    """
    former = enter_context(functions, context)
    if former == NO_CONTEXT:
        return -1, 0, 0
    step, code, index = _boxes_if_free(
        functions, memcpy_3d, memcpy, context, dst, src, forms, which, stream, event
    )
    leave_context(functions, context, former)
    return step, code, index


# Of each side, in bytes from the array's address: the first byte of the box, where the array begins
# and ends; then what its memory is, as the driver told it.
_SIDE = ("first", "low", "high", "memory_type", "managed", "device", "device_offset")
FIELDS = (
    *LAUNCH,
    "query",
    "codes",
    "memcpy_3d",
    "memcpy",
    "context",
    "stream",
    "kernel",
    "threads",
    "most_blocks",
    "chunk_words",
    "tile",
    *(f"src_{name}" for name in _SIDE),
    *(f"dst_{name}" for name in _SIDE),
)
_QUERY, _CODES = FIELDS.index("query"), FIELDS.index("codes")
_MEMCPY_3D, _MEMCPY = FIELDS.index("memcpy_3d"), FIELDS.index("memcpy")
_CONTEXT, _STREAM = FIELDS.index("context"), FIELDS.index("stream")
_KERNEL, _THREADS = FIELDS.index("kernel"), FIELDS.index("threads")
_MOST_BLOCKS = FIELDS.index("most_blocks")
_CHUNK_WORDS, _TILE = FIELDS.index("chunk_words"), FIELDS.index("tile")
_SRC, _DST = FIELDS.index("src_first"), FIELDS.index("dst_first")
_FORM_WORDS = len(KERNEL_FORM)
# Words of the table: both addresses, and the form.
TABLE_WORDS = 2 + _FORM_WORDS
_NUMBER_OF_WORDS = KERNEL_FORM.index("words")
_ALIGNED = 16


@compiled(integer(_words, integer, integer))
def _look(words, side, address):  # type: ignore[no-untyped-def]
    """Ask what memory an array at an address lies in.

    Returns
    -------
    int
        -1 if it is of another sort than before, or does not hold all of the array; else where it
        begins and ends, or-ed.
    """
    at = address + words[side + 1]
    code, kind, managed, device, by_kernels, start, nbytes = call_attributes(
        words[_QUERY], words[_CODES], at
    )
    if (
        code != 0
        or kind != words[side + 3]
        or managed != words[side + 4]
        or device != words[side + 5]
        or by_kernels - at != words[side + 6]
        or at < start
        or address + words[side + 2] > start + nbytes
    ):
        return -1
    return start | (start + nbytes)


@compiled(
    types.UniTuple(integer, 2)(_words, mapping, integer, integer, integer, column, integer, integer)
)
def _submit(words, form, src, dst, source_ends, memory, table, event):  # type: ignore[no-untyped-def]
    """Launch the kernel over one box, or let the driver copy it, and record an event behind it."""
    functions = functions_of(words)
    context, stream = words[_CONTEXT], words[_STREAM]
    dst_column, src_column = np.empty(1, np.uint64), np.empty(1, np.uint64)
    dst_column[0], src_column[0] = types.uint64(dst), types.uint64(src)
    which = np.empty(0, np.int64)
    if words[_KERNEL] == 0:
        step, code, _ = _boxes_if_free(
            functions,
            words[_MEMCPY_3D],
            words[_MEMCPY],
            context,
            dst_column,
            src_column,
            form,
            which,
            stream,
            event,
        )
        return step, code
    found = np.zeros((1, _FORM_WORDS), np.int64)
    may_overread = types.int64(source_ends % _ALIGNED == 0)
    describe_forms(dst_column, src_column, form, which, may_overread, found)
    set_steps(found, words[_TILE])
    memory[0], memory[1] = dst_column[0], src_column[0]
    for i in range(_FORM_WORDS):
        memory[2 + i] = types.uint64(found[0, i])
    chunk, tile, threads = words[_CHUNK_WORDS], words[_TILE], words[_THREADS]
    chunks = (found[0, _NUMBER_OF_WORDS] + chunk - 1) // chunk
    blocks = max(1, min(words[_MOST_BLOCKS], (chunks * tile + threads - 1) // threads))
    one, none = types.int64(1), types.int64(0)
    values = (table, one, chunks, chunk, tile, table + 16, none)
    return launch_if_free(
        functions, context, words[_KERNEL], blocks, threads, stream, values, event
    )


@compiled(types.UniTuple(integer, 2)(_words, mapping, integer, integer, column, integer, integer))
def copy_box(words, form, src, dst, memory, table, event):  # type: ignore[no-untyped-def]
    """Copy one box between arrays like two that were copied between before.

    Parameters
    ----------
    words : ndarray of int64
        As `pack` makes them.
    form : ndarray of int64, shape (1, 10)
        See `boxes`.
    src, dst : int
        Addresses of the two arrays.
    memory : ndarray of uint64
        Pinned memory for the table of a kernel; not used where `kernel` is 0.
    table : int
        Its address on the GPU.
    event : int
        Event to record behind it.

    Returns
    -------
    step, code : int
        As `driver_calls.launch_and_record`; -1 also if either array lies in memory of another sort,
        or not wholly in one allocation; 1 also if the driver refused a copy of the loop.
    """
    functions = functions_of(words)
    former = enter_context(functions, words[_CONTEXT])
    if former == NO_CONTEXT:
        return -1, 0
    step, code = types.int64(-1), types.int64(0)
    source_ends = _look(words, _SRC, src)
    if source_ends != -1 and _look(words, _DST, dst) != -1:
        step, code = _submit(
            words, form, src + words[_SRC], dst + words[_DST], source_ends, memory, table, event
        )
    leave_context(functions, words[_CONTEXT], former)
    return step, code
