"""Driver calls in one compiled piece, so that few of them cross from Python."""

from __future__ import annotations

import numpy as np
from numba import types

from numba_swap.native.ccall import (
    KERNEL_PARAMETERS,
    POINTER_ATTRIBUTES,
    call,
    call_attributes,
    call_launch,
    call_out,
    column,
    compiled,
    integer,
    mapping,
    rows,
)


@compiled(types.UniTuple(integer, 1 + POINTER_ATTRIBUTES)(integer, integer, integer))
def pointer_attributes(function, codes, address):  # type: ignore[no-untyped-def]
    """Ask for the six attributes whose codes stand at the address `codes`.

    Returns
    -------
    code : int
        The driver's return code.
    *values : int
        The attributes, one word each.
    """
    return call_attributes(function, codes, address)


@compiled(types.UniTuple(integer, 5)(integer, integer, integer, integer))
def probe(get_current, get_stream_context, is_capturing, stream):  # type: ignore[no-untyped-def]
    """Ask for the current context, the stream's, and whether the stream is capturing.

    Default streams (1, 2) belong to the current context; of handle 0 nothing more is asked. The
    legacy one (1) is never captured, but the answer is an error while it must not be used.

    Returns
    -------
    step, code, current, context, capturing : int
        `step` is 0, or the number (1, 2, 3) of the call that returned `code`.
    """
    code, current = call_out(get_current, (), 0)
    if code != 0:
        return 1, code, 0, 0, 0
    context = current
    if stream > 2:
        code, context = call_out(get_stream_context, (stream,), 0)
        if code != 0:
            return 2, code, current, 0, 0
    capturing = 0
    if stream > 0:
        code, capturing = call_out(is_capturing, (stream,), 0)
        if code != 0:
            return 3, code, current, context, 0
    return 0, 0, current, context, capturing


@compiled(integer(integer, integer, integer))
def call_relaxed(exchange, function, handle):  # type: ignore[no-untyped-def]
    """Call a function of one handle, with this thread's capture mode relaxed meanwhile."""
    relaxed = 2
    _, former = call_out(exchange, (), relaxed)
    code = call(function, (handle,))
    # (Where it could not be relaxed, the word is as it was.)
    if former != relaxed and call_out(exchange, (), former)[0] != 0:
        call_out(exchange, (), former)
    return code


LAUNCH_FUNCTIONS = 6
_functions = types.UniTuple(integer, LAUNCH_FUNCTIONS)
_values = types.UniTuple(integer, KERNEL_PARAMETERS)


@compiled(types.boolean(_functions, integer, integer))
def is_free(functions, context, stream):  # type: ignore[no-untyped-def]
    """Whether a stream is of a context, and no capture forbids work in it."""
    if stream > 2:
        code, current = call_out(functions[2], (stream,), 0)
        if code != 0 or current != context:
            return False
    code, capturing = call_out(functions[3], (stream,), 0)
    return code == 0 and capturing == 0


@compiled(types.UniTuple(integer, 2)(_functions, *(integer,) * 4, _values, integer))
def _launch_and_record(functions, kernel, blocks, threads, stream, values, event):  # type: ignore[no-untyped-def]
    code = call_launch(functions[4], kernel, blocks, threads, stream, values)
    if code != 0:
        return 1, code
    if event != 0:
        code = call(functions[5], (event, stream))
        if code != 0:
            return 2, code
    return 0, 0


NO_CONTEXT = -1


@compiled(integer(_functions, integer))
def enter_context(functions, context):  # type: ignore[no-untyped-def]
    """Make a context current; return the former one, or `NO_CONTEXT` if that was not possible."""
    code, former = call_out(functions[0], (), 0)
    if code == 0 and former != context:
        code = call(functions[1], (context,))
    return former if code == 0 else NO_CONTEXT


@compiled(types.void(_functions, integer, integer))
def leave_context(functions, context, former):  # type: ignore[no-untyped-def]
    """Make the former context current again."""
    if former != context and call(functions[1], (former,)) != 0:
        call(functions[1], (former,))  # once more, as `Driver.activate` does


@compiled(types.UniTuple(integer, 2)(_functions, *(integer,) * 5, _values, integer))
def launch_if_free(  # type: ignore[no-untyped-def]
    functions, context, kernel, blocks, threads, stream, values, event
):
    """Do what `launch_and_record` does, in the context that is current."""
    if not is_free(functions, context, stream):
        return -1, 0
    return _launch_and_record(functions, kernel, blocks, threads, stream, values, event)


@compiled(types.UniTuple(integer, 2)(_functions, *(integer,) * 5, _values, integer))
def launch_and_record(  # type: ignore[no-untyped-def]
    functions, context, kernel, blocks, threads, stream, values, event
):
    """Launch a kernel and record an event behind it, if things are still as they were.

    Parameters
    ----------
    functions : tuple of int
        Addresses of ``cuCtxGetCurrent``, ``cuCtxSetCurrent``, ``cuStreamGetCtx``,
        ``cuStreamIsCapturing``, ``cuLaunchKernel``, ``cuEventRecord``.
    context : int
        What the stream's context must be. It is made current meanwhile if another one is, or
        none. With 0, or for `event` 0, nothing is asked about the stream.
    kernel, blocks, threads, stream, values
        The launch.
    event : int
        Event to record; 0 for none, in a stream that is being captured.

    Returns
    -------
    step, code : int
        `step` is 0 if all went well; 1 or 2 if the launch or the recording returned `code`; -1 if
        the context was another or a capture forbids work in the stream, and nothing was done.
    """
    if context == 0 or event == 0:
        return _launch_and_record(functions, kernel, blocks, threads, stream, values, event)
    former = enter_context(functions, context)
    if former == NO_CONTEXT:
        return -1, 0
    step, code = launch_if_free(functions, context, kernel, blocks, threads, stream, values, event)
    leave_context(functions, context, former)
    return step, code


@compiled(types.UniTuple(integer, 2)(integer, column, column, column, integer, integer))
def memcpy_loop(function, dst, src, sizes, uniform, stream):  # type: ignore[no-untyped-def]
    """Submit copies one by one until one is refused.

    Parameters
    ----------
    sizes : ndarray of uint64
        Bytes of each copy; not read if `uniform` is not 0.
    uniform : int
        Bytes of every copy, or 0.

    Returns
    -------
    code, index : int
        The driver's return code, and the copy it refused; 0 and the number of copies if none.
    """
    for index in range(len(dst)):
        nbytes = types.uint64(uniform) if uniform != 0 else sizes[index]
        code = call(function, (dst[index], src[index], nbytes, stream))
        if code != 0:
            return code, index
    return 0, len(dst)


@compiled(types.boolean(integer, integer, integer))
def is_chunk(retain, release, address):  # type: ignore[no-untyped-def]
    """Whether an address lies in device memory that was mapped into reserved addresses.

    Only such memory has a handle; it is given back at once.

    Parameters
    ----------
    retain, release : int
        Addresses of ``cuMemRetainAllocationHandle`` and ``cuMemRelease``, 0 if there are none.
    address : int
        The address.
    """
    if retain == 0:
        return False
    handle = np.zeros(1, dtype=np.int64)
    if call(retain, (types.int64(handle.ctypes.data), address)) != 0:
        return False
    call(release, (handle[0],))
    return True


UNKNOWN, BEYOND, UNCLEAR, MANY, PARTLY = -1, -2, -3, -4, -5
# Up to so many allocations, looking through all of them is faster than sorting the addresses.
_MOST_SCANNED = 32
_DEVICE = 2  # CU_MEMORYTYPE_DEVICE


@compiled(integer(mapping, integer, integer, integer))
def _find_known(table, count, address, known_to_cuda):  # type: ignore[no-untyped-def]
    """Return which of the last allocations of a table holds an address; -1 if none does."""
    for row in range(count - 1, max(0, count - _MOST_SCANNED) - 1, -1):
        begin = table[row, 4]
        if begin <= address < begin + table[row, 5] and (table[row, 0] != 0) == (
            known_to_cuda != 0
        ):
            return row
    return -1


_asking = types.UniTuple(integer, 4)


@compiled(integer(_asking, mapping, integer, integer, types.uint64))
def _check_ordinary(functions, table, count, start, size):  # type: ignore[no-untyped-def]
    """Return what is wrong with a range that begins in memory which CUDA does not know."""
    around = _find_known(table, count, start, 0)
    if around < 0:
        return UNKNOWN
    if size > types.uint64(table[around, 4] + table[around, 5] - start):
        return BEYOND
    found = call_attributes(functions[0], functions[1], start + types.int64(size) - 1)
    if found[0] != 0:
        return found[0]
    return 0 if found[1] == 0 else PARTLY


@compiled(integer(_asking, rows, integer, types.uint64))
def _check_end(functions, allocation, start, size):  # type: ignore[no-untyped-def]
    """Return what is wrong with the end of a range that begins in an allocation.

    Copies may run on into the next chunk of device memory, but into nothing else: neighbouring
    chunks become one allocation here.
    """
    query, codes, retain, release = functions
    end = allocation[4] + allocation[5]
    while size > types.uint64(end - start):
        if allocation[0] != _DEVICE or not is_chunk(retain, release, end - 1):
            return BEYOND
        found = call_attributes(query, codes, end)
        if found[0] != 0:
            return found[0]
        if found[1] != _DEVICE or found[3] != allocation[2] or found[5] != end:
            return BEYOND
        if not is_chunk(retain, release, end):
            return BEYOND
        end += found[6]
        allocation[5] = end - allocation[4]
    return 0


@compiled(types.UniTuple(integer, 3)(_asking, column, column, integer, integer, mapping, integer))
def find_allocations(functions, starts, sizes, row, count, table, in_order):  # type: ignore[no-untyped-def]
    """Ask the driver, once an allocation, what memory ranges lie in.

    Of memory that CUDA does not know, parts may be registered with it: about each range there, the
    driver is asked where it begins and where it ends.

    Parameters
    ----------
    functions : tuple of int
        `query` and `codes` as for `pointer_attributes`, `retain` and `release` as for `is_chunk`.
    starts, sizes : ndarray of uint64, shape (n,)
        The ranges; none of 0 bytes.
    row : int
        The range to begin with.
    count : int
        Allocations known before, which stand in `table`.
    table : ndarray of int64, shape (m, 6)
        Filled with the attributes of each allocation, as if asked at its beginning.
    in_order : int
        Not 0 if the ranges are sorted by their starts: only then may there be many allocations.

    Returns
    -------
    problem : int
        0 at the end; else a return code of the driver, `UNKNOWN` (no memory that CUDA knows, nor
        any in the table), `BEYOND` (the range ends outside its allocation), `PARTLY` (it begins in
        memory that CUDA does not know and ends in some that it does), `UNCLEAR` (the driver does
        not tell which allocation it is) or `MANY` (sort them first).
    row : int
        The range that has the problem.
    count : int
        Allocations known.
    """
    known = -1  # the allocation that CUDA knows and that was found last, and its addresses
    begin, end = 0, 0
    while row < len(starts):
        start = types.int64(starts[row])
        if start < begin or start >= end:
            known = _find_known(table, count, start, 1)
            if known < 0:
                if in_order == 0 and count >= _MOST_SCANNED:
                    return MANY, row, count
                found = call_attributes(functions[0], functions[1], start)
                if found[0] != 0:
                    return found[0], row, count
                if found[1] == 0:
                    problem = _check_ordinary(functions, table, count, start, sizes[row])
                    if problem != 0:
                        return problem, row, count
                    begin, end = 0, 0
                    row += 1
                    continue
                if start < found[5] or start >= found[5] + found[6]:
                    return UNCLEAR, row, count
                for i in range(POINTER_ATTRIBUTES):
                    table[count, i] = found[1 + i]
                if found[4] != 0:  # the address for kernels, of what was asked about
                    table[count, 3] = found[4] - (start - found[5])
                known = count
                count += 1
            begin = table[known, 4]
            end = begin + table[known, 5]
        if sizes[row] > types.uint64(end - start):
            problem = _check_end(functions, table[known], start, sizes[row])
            if problem != 0:
                return problem, row, count
            end = begin + table[known, 5]
        row += 1
    return 0, row, count
