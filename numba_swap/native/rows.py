"""Loops and driver calls compiled by Numba for the CPU. Importing this module imports Numba.

A driver function is given by its address, as looked up, so that compiled code speaks to the same
library, real or simulated, as all else. The first process on a machine takes a few seconds to
compile, later ones load from Numba's cache on disk. Everything is a signed 64-bit integer: that is
what a Python integer becomes without conversion, and user-space addresses fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_CODE = ir.IntType(32)
_int = types.int64
_column = types.Array(types.uint64, 1, "C")
_mapping = types.Array(types.int64, 2, "C")


def _compile(signature: Any) -> Any:
    """Compile a function for a signature; calls release the GIL; cached on disk if possible."""

    def decorate(function: Any) -> Any:
        # NUMBA_DISABLE_JIT is for debugging a user's own functions; these have no Python form.
        disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # neither the installation nor the home directory can be written
            return njit(signature, nogil=True)(function)
        finally:
            config.DISABLE_JIT = disabled

    return decorate


def _call(builder: Any, address: Any, arguments: Any) -> Any:
    """Emit a call of ``CUresult (*)(...)`` at an address; the code comes back as int64."""
    prototype = ir.FunctionType(_CODE, [argument.type for argument in arguments])
    function = builder.inttoptr(address, prototype.as_pointer())
    return builder.sext(builder.call(function, arguments), _WORD)


@intrinsic  # type: ignore[untyped-decorator]
def _call1(context: Any, function: Any, a: Any) -> Any:
    """Call a driver function of one handle."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, arguments[0], arguments[1:])

    return _int(_int, _int), emit


@intrinsic  # type: ignore[untyped-decorator]
def _call2(context: Any, function: Any, a: Any, b: Any) -> Any:
    """Call a driver function of two handles."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, arguments[0], arguments[1:])

    return _int(_int, _int, _int), emit


@intrinsic  # type: ignore[untyped-decorator]
def _call_memcpy(context: Any, function: Any, dst: Any, src: Any, nbytes: Any, stream: Any) -> Any:
    """Call ``cuMemcpyAsync``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, arguments[0], arguments[1:])

    return _int(_int, types.uint64, types.uint64, types.uint64, _int), emit


@intrinsic  # type: ignore[untyped-decorator]
def _call_out(context: Any, function: Any) -> Any:
    """Call a driver function that writes one word; return code and word."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once_value(builder, ir.Constant(_WORD, 0))
        code = _call(builder, arguments[0], [place])
        return context.make_tuple(builder, signature.return_type, [code, builder.load(place)])

    return types.UniTuple(_int, 2)(_int), emit


@intrinsic  # type: ignore[untyped-decorator]
def _call_in_out(context: Any, function: Any, a: Any) -> Any:
    """Call a driver function of a handle that writes one word; return code and word."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once_value(builder, ir.Constant(_WORD, 0))
        code = _call(builder, arguments[0], [arguments[1], place])
        return context.make_tuple(builder, signature.return_type, [code, builder.load(place)])

    return types.UniTuple(_int, 2)(_int, _int), emit


@intrinsic  # type: ignore[untyped-decorator]
def _call_exchange(context: Any, function: Any, mode: Any) -> Any:
    """Call ``cuThreadExchangeStreamCaptureMode``; return the former mode."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = cgutils.alloca_once(builder, _CODE)
        builder.store(builder.trunc(arguments[1], _CODE), place)
        _call(builder, arguments[0], [place])
        return builder.sext(builder.load(place), _WORD)

    return _int(_int, _int), emit


KERNEL_PARAMETERS = 7


@intrinsic  # type: ignore[untyped-decorator]
def _call_launch(
    context: Any, function: Any, kernel: Any, blocks: Any, threads: Any, stream: Any, values: Any
) -> Any:
    """Call ``cuLaunchKernel`` with a one-dimensional grid and 64-bit parameters."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, kernel, blocks, threads, stream, values = arguments
        pointer = _WORD.as_pointer()
        pointers = cgutils.alloca_once(builder, pointer, size=KERNEL_PARAMETERS)
        for i in range(KERNEL_PARAMETERS):
            value = cgutils.alloca_once(builder, _WORD)
            builder.store(builder.extract_value(values, i), value)
            builder.store(value, cgutils.gep(builder, pointers, i))
        one, none = ir.Constant(_CODE, 1), ir.Constant(_CODE, 0)
        grid = [builder.trunc(blocks, _CODE), one, one]
        block = [builder.trunc(threads, _CODE), one, one]
        extra = ir.Constant(pointer.as_pointer(), None)
        return _call(builder, address, [kernel, *grid, *block, none, stream, pointers, extra])

    parameters = types.UniTuple(_int, KERNEL_PARAMETERS)
    return _int(_int, _int, _int, _int, _int, parameters), emit


POINTER_ATTRIBUTES = 6


@intrinsic  # type: ignore[untyped-decorator]
def _call_attributes(context: Any, function: Any, codes: Any, address: Any) -> Any:
    """Call ``cuPointerGetAttributes`` for six attributes; return code and six words."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, codes, address = arguments
        pointers = cgutils.alloca_once(builder, _WORD.as_pointer(), size=POINTER_ATTRIBUTES)
        places = []
        for i in range(POINTER_ATTRIBUTES):
            # Narrow attributes (int, bool) fill the low bytes of their little-endian word.
            place = cgutils.alloca_once(builder, _WORD)
            builder.store(ir.Constant(_WORD, 0), place)
            builder.store(place, cgutils.gep(builder, pointers, i))
            places.append(place)
        count = ir.Constant(_CODE, POINTER_ATTRIBUTES)
        code = _call(builder, function, [count, codes, pointers, address])
        values = [code, *(builder.load(place) for place in places)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(_int, 1 + POINTER_ATTRIBUTES)(_int, _int, _int), emit


@_compile(types.UniTuple(_int, 1 + POINTER_ATTRIBUTES)(_int, _int, _int))
def pointer_attributes(function, codes, address):  # type: ignore[no-untyped-def]
    """Ask for the six attributes whose codes stand at the address `codes`.

    Returns
    -------
    code : int
        The driver's return code.
    *values : int
        The attributes, one word each.
    """
    return _call_attributes(function, codes, address)


@_compile(types.UniTuple(_int, 5)(_int, _int, _int, _int))
def probe(get_current, get_stream_context, is_capturing, stream):  # type: ignore[no-untyped-def]
    """Ask for the current context, the stream's, and whether the stream is capturing.

    Default streams (0, 1, 2) belong to the current context, and the legacy ones (0, 1) are never
    captured.

    Returns
    -------
    step, code, current, context, capturing : int
        `step` is 0, or the number (1, 2, 3) of the call that returned `code`.
    """
    code, current = _call_out(get_current)
    if code != 0:
        return 1, code, 0, 0, 0
    context = current
    if stream > 2:
        code, context = _call_in_out(get_stream_context, stream)
        if code != 0:
            return 2, code, current, 0, 0
    capturing = 0
    if stream > 1:
        code, capturing = _call_in_out(is_capturing, stream)
        if code != 0:
            return 3, code, current, context, 0
    return 0, 0, current, context, capturing


@_compile(_int(_int, _int, _int))
def call_relaxed(exchange, function, handle):  # type: ignore[no-untyped-def]
    """Call a function of one handle, with this thread's capture mode relaxed meanwhile."""
    relaxed = 2
    former = _call_exchange(exchange, relaxed)
    code = _call1(function, handle)
    _call_exchange(exchange, former)
    return code


@_compile(
    types.UniTuple(_int, 2)(
        types.UniTuple(_int, 5), *(_int,) * 5, types.UniTuple(_int, KERNEL_PARAMETERS), _int
    )
)
def launch_and_record(  # type: ignore[no-untyped-def]
    functions, context, kernel, blocks, threads, stream, values, event
):
    """Launch a kernel and record an event behind it, if things are still as they were.

    Parameters
    ----------
    functions : tuple of int
        Addresses of ``cuCtxGetCurrent``, ``cuStreamGetCtx``, ``cuStreamIsCapturing``,
        ``cuLaunchKernel``, ``cuEventRecord``.
    context : int
        What the current context and the stream's must be; with 0, or for `event` 0, nothing is
        asked about the stream.
    kernel, blocks, threads, stream, values
        The launch.
    event : int
        Event to record; 0 for none, in a stream that is being captured.

    Returns
    -------
    step, code : int
        `step` is 0 if all went well; 1 or 2 if the launch or the recording returned `code`; -1 if
        the context was another or the stream was being captured, and nothing was done.
    """
    get_current, get_stream_context, is_capturing, launch, record = functions
    if context != 0 and event != 0:
        code, current = _call_out(get_current)
        if code != 0 or current != context:
            return -1, code
        if stream > 2:
            code, current = _call_in_out(get_stream_context, stream)
            if code != 0 or current != context:
                return -1, code
        if stream > 1:
            code, capturing = _call_in_out(is_capturing, stream)
            if code != 0 or capturing != 0:
                return -1, code
    code = _call_launch(launch, kernel, blocks, threads, stream, values)
    if code != 0:
        return 1, code
    if event != 0:
        code = _call2(record, event, stream)
        if code != 0:
            return 2, code
    return 0, 0


@_compile(types.UniTuple(_int, 2)(_int, _column, _column, _column, _int, _int))
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
        code = _call_memcpy(function, dst[index], src[index], nbytes, stream)
        if code != 0:
            return code, index
    return 0, len(dst)


UNKNOWN, BEYOND, UNCLEAR, MANY = -1, -2, -3, -4
# Up to so many allocations, looking through all of them is faster than sorting the addresses.
_MOST_SCANNED = 32


@_compile(types.UniTuple(_int, 3)(_int, _int, _column, _column, _int, _int, _mapping, _int))
def find_allocations(  # type: ignore[no-untyped-def]
    query, codes, starts, sizes, row, count, table, in_order
):
    """Ask the driver, once an allocation, what memory ranges lie in.

    Parameters
    ----------
    query, codes : int
        As for `pointer_attributes`.
    starts, sizes : ndarray of uint64, shape (n,)
        The ranges.
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
        0 at the end; else a return code of the driver, `UNKNOWN` (no memory that CUDA knows),
        `BEYOND` (the range ends outside its allocation, the last of the table now), `UNCLEAR`
        (the driver does not tell which allocation it is) or `MANY` (sort them first).
    row : int
        The range that has the problem.
    count : int
        Allocations known.
    """
    begin, end = types.uint64(0), types.uint64(0)
    while row < len(starts):
        start = starts[row]
        if start < begin or start >= end:
            known = count - 1
            lowest = max(0, count - _MOST_SCANNED)
            while known >= lowest:
                begin = types.uint64(table[known, 4])
                end = begin + types.uint64(table[known, 5])
                if begin <= start < end:
                    break
                known -= 1
            if known < lowest:
                if in_order == 0 and count >= _MOST_SCANNED:
                    return MANY, row, count
                found = _call_attributes(query, codes, types.int64(start))
                if found[0] != 0:
                    return found[0], row, count
                if found[1] == 0:
                    return UNKNOWN, row, count
                begin = types.uint64(found[5])
                end = begin + types.uint64(found[6])
                if start < begin or start >= end:
                    return UNCLEAR, row, count
                for i in range(POINTER_ATTRIBUTES):
                    table[count, i] = found[1 + i]
                if found[4] != 0:  # the address for kernels, of what was asked about
                    table[count, 3] = found[4] - types.int64(start - begin)
                count += 1
        if sizes[row] > end - start:
            return BEYOND, row, count
        row += 1
    return 0, row, count


SRC_OUT_OF_RANGE, DST_OUT_OF_RANGE, DST_TWICE, NEIGHBOURS = 1, 2, 4, 8
# A GPU that reads or writes host memory at random over more than about 1 GiB misses its address
# translations: blocks of 512 bytes then move at half the speed, on an H200. Copies grouped by
# regions of this size do not.
REGION_BYTES = 1 << 28
# Up to so many rows, comparing all pairs is faster than a table.
_FEW_ROWS = 32
# Up to so many blocks a row, a mark for every block is faster than a hash table of the rows.
_FEW_BLOCKS_A_ROW = 8


_slots = types.Array(types.int64, 1, "C")


@_compile(_slots(_int))
def _new_slots(rows):  # type: ignore[no-untyped-def]
    """Make a hash table for the blocks of so many rows, at most half full; 0 is an empty slot."""
    size = 64
    while size < 2 * rows:
        size *= 2
    return np.zeros(size, dtype=np.int64)


@_compile(_int(_slots, _int))
def _find_slot(slots, block):  # type: ignore[no-untyped-def]
    """Return the slot that holds a block, as ``block + 1``, or the empty one where it belongs."""
    mask = len(slots) - 1
    # Fibonacci hashing; the high bits of the product are the mixed ones.
    slot = (((block + 1) * -7046029254386353131) >> 20) & mask
    while slots[slot] != 0 and slots[slot] != block + 1:
        slot = (slot + 1) & mask
    return slot


@_compile(types.boolean(_mapping, _int))
def _has_duplicates(mapping, blocks):  # type: ignore[no-untyped-def]
    """Whether a destination block, each in range, stands in two rows."""
    rows = len(mapping)
    if rows <= _FEW_ROWS:
        for row in range(rows):
            for other in range(row):
                if mapping[other, 1] == mapping[row, 1]:
                    return True
        return False
    if blocks <= _FEW_BLOCKS_A_ROW * rows:
        seen = np.zeros(blocks, dtype=np.uint8)
        for row in range(rows):
            block = mapping[row, 1]
            # In range a moment ago, but another thread may be writing to the mapping.
            if block < 0 or block >= blocks or seen[block] != 0:
                return True
            seen[block] = 1
        return False
    slots = _new_slots(rows)
    for row in range(rows):
        slot = _find_slot(slots, mapping[row, 1])
        if slots[slot] != 0:
            return True
        slots[slot] = mapping[row, 1] + 1
    return False


@_compile(_int(_mapping))
def find_read_and_written(mapping):  # type: ignore[no-untyped-def]
    """Find a row whose source block is the destination of another row, both ids of one pool.

    Returns
    -------
    int
        The first such row, or -1. Rows from a block to itself do no harm.
    """
    slots = _new_slots(len(mapping))
    for row in range(len(mapping)):
        if mapping[row, 0] != mapping[row, 1]:
            slots[_find_slot(slots, mapping[row, 1])] = mapping[row, 1] + 1
    for row in range(len(mapping)):
        source = mapping[row, 0]
        if source != mapping[row, 1] and slots[_find_slot(slots, source)] != 0:
            return row
    return -1


# As `_FEW_BLOCKS_A_ROW`, for a table of bits.
_MOST_BITS_A_ROW = 256

_rows = types.Array(types.int64, 1, "C")


_users = types.Array(types.int32, 1, "C")  # half the memory to clear and to go through


@_compile(types.boolean(_mapping, _int, _int, _rows, _users))
def _find_users(mapping, column, blocks, keys, users):  # type: ignore[no-untyped-def]
    """Note for each block of a column the row that has it, plus 1; -1 if several have it.

    `keys` is a hash table of the blocks, or empty if `users` has an element for each block. False
    if the mapping is no longer what it was.
    """
    for row in range(len(mapping)):
        block = mapping[row, column]
        if block < 0 or block >= blocks:
            return False
        at = block
        if len(keys):
            at = _find_slot(keys, block)
            keys[at] = block + 1
        users[at] = row + 1 if users[at] == 0 else -1
    return True


@_compile(types.boolean(_mapping, _int, _mapping, _int))
def _paired_as_they_stand(out_rows, column, in_rows, blocks):  # type: ignore[no-untyped-def]
    """Whether each block in common stands in rows of the same number, and in no others."""
    if blocks > _MOST_BITS_A_ROW * len(out_rows):
        return False  # hash tables are smaller
    # A bit for every block: so many of them fit into the caches.
    marks = np.zeros((blocks >> 6) + 1, dtype=np.int64)
    for row in range(len(out_rows)):
        block = out_rows[row, column]
        if block < 0 or block >= blocks:
            return False
        bit = 1 << (block & 63)
        if marks[block >> 6] & bit:
            return False
        marks[block >> 6] |= bit
    for row in range(len(in_rows)):
        block = in_rows[row, 1 - column]
        if block < 0 or block >= blocks:
            return False
        if marks[block >> 6] & (1 << (block & 63)) and out_rows[row, column] != block:
            return False
    return True


@_compile(types.boolean(_mapping, _mapping, _int, _int))
def paired_as_they_stand(out_rows, in_rows, slots, blocks):  # type: ignore[no-untyped-def]
    """Whether rows of the same number can be partners, and none is left; in doubt not."""
    return (
        len(out_rows) == len(in_rows)
        and _paired_as_they_stand(out_rows, 0, in_rows, slots)
        and _paired_as_they_stand(out_rows, 1, in_rows, blocks)
    )


@_compile(types.boolean(_mapping, _int, _mapping, _int, _rows, _rows))
def _pair_by_block(out_rows, column, in_rows, blocks, partner, taken):  # type: ignore[no-untyped-def]
    """Pair rows that have a block in common; False if one would need two partners."""
    direct = blocks <= _FEW_BLOCKS_A_ROW * len(out_rows)
    keys = np.zeros(0, dtype=np.int64) if direct else _new_slots(len(out_rows))
    users = np.zeros(blocks if direct else len(keys), dtype=np.int32)
    if not _find_users(out_rows, column, blocks, keys, users):
        return False
    for row in range(len(in_rows)):
        block = in_rows[row, 1 - column]
        if block < 0 or block >= blocks:
            return False
        user = users[block if direct else _find_slot(keys, block)]
        if user == 0:
            continue
        if user < 0:
            return False
        other = user - 1
        if taken[row] != other:
            if taken[row] >= 0 or partner[other] >= 0:
                return False
            taken[row] = other
            partner[other] = row
    return True


@_compile(types.boolean(_mapping, _mapping, _int, _int, _rows, _rows))
def pair_rows(out_rows, in_rows, slots, blocks, partner, taken):  # type: ignore[no-untyped-def]
    """Pair the rows of two mappings, from slots to blocks and back; see `pairing.pair_rows`.

    Parameters
    ----------
    partner, taken : ndarray of int64
        All -1. Filled with the partner of each row of `out_rows`, and of `in_rows`, that has one.

    Returns
    -------
    bool
        Whether no row needs two partners.
    """
    if not (
        _pair_by_block(out_rows, 0, in_rows, slots, partner, taken)
        and _pair_by_block(out_rows, 1, in_rows, blocks, partner, taken)
    ):
        return False
    # The others go together as they come.
    row = 0
    for other in range(len(out_rows)):
        while row < len(in_rows) and taken[row] >= 0:
            row += 1
        if partner[other] < 0 and row < len(in_rows):
            partner[other] = row
            taken[row] = other
    return True


@_compile(types.boolean(_mapping, types.UniTuple(_int, 6), _int, _column, _column))
def _group_rows(mapping, sides, grouped_by, dst, src):  # type: ignore[no-untyped-def]
    """Place rows by regions of one side; False if the mapping is no longer what it was."""
    src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks = sides
    blocks, step = (src_blocks, src_step) if grouped_by == 0 else (dst_blocks, dst_step)
    step = abs(step)
    # A counting sort: how many rows each region has, where it begins, and each row's place.
    # Another thread may be writing to the mapping: what it says is looked at anew each time.
    places = np.zeros(blocks * step // REGION_BYTES + 2, dtype=np.int64)
    for row in range(len(mapping)):
        block = mapping[row, grouped_by]
        if block < 0 or block >= blocks:
            return False
        places[block * step // REGION_BYTES + 1] += 1
    for region in range(1, len(places)):
        places[region] += places[region - 1]
    for row in range(len(mapping)):
        source, target = mapping[row, 0], mapping[row, 1]
        if source < 0 or source >= src_blocks or target < 0 or target >= dst_blocks:
            return False
        region = (source if grouped_by == 0 else target) * step // REGION_BYTES
        place = places[region]
        if place >= len(mapping):
            return False
        places[region] = place + 1
        src[place] = src_at + source * src_step
        dst[place] = dst_at + target * dst_step
    return True


@_compile(_int(_mapping, _int, _int, _int, _int, _int, _int, _int, _int, _column, _column))
def place_rows(  # type: ignore[no-untyped-def]
    mapping,
    src_at,
    src_step,
    src_blocks,
    dst_at,
    dst_step,
    dst_blocks,
    nbytes,
    grouped_by,
    dst,
    src,
):
    """Turn rows of block ids into addresses, and look for all that may be wrong with them.

    Parameters
    ----------
    mapping : ndarray of int64, shape (n, 2)
        Source and destination block of each row.
    src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks : int
        Address of block 0, bytes from block to block, and number of blocks, of each side.
    nbytes : int
        Bytes of a contiguous block; 0 if blocks are not contiguous, so that none are neighbours.
    grouped_by : int
        The column, 0 or 1, whose addresses are to be grouped by regions of `REGION_BYTES`; -1 to
        keep the rows in order. Not done where there are neighbours.
    dst, src : ndarray of uint64, shape (n,)
        Filled with the addresses.

    Returns
    -------
    int
        0, or which of the flags above was found first.
    """
    found = 0
    rows = len(mapping)
    for row in range(rows):
        source, target = mapping[row, 0], mapping[row, 1]
        if source < 0 or source >= src_blocks:
            return SRC_OUT_OF_RANGE
        if target < 0 or target >= dst_blocks:
            return DST_OUT_OF_RANGE
        src[row] = src_at + source * src_step
        dst[row] = dst_at + target * dst_step
        if (
            row > 0
            and (source - mapping[row - 1, 0]) * src_step == nbytes
            and (target - mapping[row - 1, 1]) * dst_step == nbytes
        ):
            found = NEIGHBOURS
    if _has_duplicates(mapping, dst_blocks):
        return DST_TWICE
    if grouped_by >= 0 and found == 0:
        sides = (src_at, src_step, src_blocks, dst_at, dst_step, dst_blocks)
        if not _group_rows(mapping, sides, grouped_by, dst, src):
            return SRC_OUT_OF_RANGE
    return found


@_compile(
    types.UniTuple(_int, 2)(types.Array(types.int64, 1, "C"), _mapping, _column, _int, _int, _int)
)
def swap_again(constants, mapping, words, table, blocks, event):  # type: ignore[no-untyped-def]
    """Place rows and launch the kernel on them, if all is as it was the last time.

    Parameters
    ----------
    constants : ndarray of int64
        As `plan_cache.Recipe` lays them out.
    mapping : ndarray of int64, shape (n, 2)
        Source and destination block of each row.
    words : ndarray of uint64
        Pinned memory for the table.
    table : int
        Its address on the GPU.
    blocks : int
        Thread blocks of the launch.
    event : int
        Event to record behind it.

    Returns
    -------
    step, code : int
        As `launch_and_record`; -1 also if memory is not what it was, or the rows need a closer
        look.
    """
    c = constants
    functions = (c[0], c[1], c[2], c[3], c[4])
    query, codes, context, stream, kernel, threads = c[5], c[6], c[7], c[8], c[9], c[10]
    src_at, src_step, src_blocks = c[11], c[12], c[13]
    dst_at, dst_step, dst_blocks = c[14], c[15], c[16]
    size, pieces, piece_bytes, team, aligned = c[17], c[18], c[19], c[20], c[21]
    for first in (22, 29):
        found = _call_attributes(query, codes, constants[first])
        if found[0] != 0:
            return -1, found[0]
        for i in range(1, 1 + POINTER_ATTRIBUTES):
            if found[i] != constants[first + i]:
                return -1, 0
    rows = len(mapping)
    problem = place_rows(
        mapping,
        src_at,
        src_step,
        src_blocks,
        dst_at,
        dst_step,
        dst_blocks,
        size,
        -1,
        words[:rows],
        words[rows : 2 * rows],
    )
    if problem != 0:
        return -1, 0
    values = (table, rows, size, pieces, piece_bytes, team, aligned)
    return launch_and_record(functions, context, kernel, blocks, threads, stream, values, event)
