"""Rows of host memory to and from staging memory, by several threads at once, without the GIL.

What is staged is numbered: row `i` has the bytes from ``offsets[i]`` on, of all that is ever
staged. A *job* is some of these numbers, and a place for them. Threads take shares of it, a range
of numbers each, whatever the lengths of the rows, until none is left.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_swap.native.ccall import WORD, call, compiled, integer

# Words of a job. The first two are counted by its threads: shares taken, and threads at work.
JOB = (
    "taken",
    "working",
    "near",  # addresses of columns: where each row lies, its first number, its length
    "offsets",
    "sizes",
    "uniform",  # the length of every row, or 0
    "rows",
    "begin",  # the numbers of the job, and where number 0 would stand in staging memory
    "end",
    "place",
    "share",  # numbers of a share
    "leaves",  # not 0 if rows go from staging memory to where they lie
)
TAKEN, WORKING, NEAR, OFFSETS, SIZES, UNIFORM, ROWS, BEGIN, END, PLACE, SHARE, LEAVES = range(12)
# Short rows lie scattered: the one after so many others is on its way to the processor meanwhile,
# read or written. Rows of 512 bytes over 512 MiB: 6.9 instead of 4.4 GB/s a thread in, 7.0 instead
# of 4.6 out (AMD EPYC, two processors, others at work). Longer ones gain nothing.
_AHEAD = 8
_SHORT = 512
_LINE = 64
# A thread out of work asks so often for more before it sleeps, some 50 us: to be woken takes as
# long, and the next piece comes sooner.
_TRIES = 2000


@intrinsic  # type: ignore[untyped-decorator]
def _load(context: Any, address: Any) -> Any:
    """Read a word at an address."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], WORD.as_pointer()))

    return integer(integer), emit


@intrinsic  # type: ignore[untyped-decorator]
def _count(context: Any, address: Any, by: Any) -> Any:
    """Add to a word that several threads count in; return what it was."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = builder.inttoptr(values[0], WORD.as_pointer())
        return builder.atomic_rmw("add", place, values[1], "seq_cst")

    return integer(integer, integer), emit


@intrinsic  # type: ignore[untyped-decorator]
def _copy(context: Any, dst: Any, src: Any, nbytes: Any) -> Any:
    """Copy bytes, as C's memcpy does."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        dst, src = (builder.inttoptr(value, byte) for value in values[:2])
        cgutils.raw_memcpy(builder, dst, src, values[2], 1)
        return context.get_dummy_value()

    return types.void(integer, integer, integer), emit


@intrinsic  # type: ignore[untyped-decorator]
def _fetch(context: Any, address: Any) -> Any:
    """Let the processor read a line ahead; no address does harm."""

    def emit(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        prototype = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, prototype, "llvm.prefetch.p0i8")
        reads, keep, data = (flag(value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(values[0], byte), reads, keep, data])
        return context.get_dummy_value()

    return types.void(integer), emit


@compiled(types.void(integer, integer, integer))
def move_share(job, begin, end):  # type: ignore[no-untyped-def]
    """Copy the bytes of some numbers of a job."""
    near, offsets, sizes = _load(job + 8 * NEAR), _load(job + 8 * OFFSETS), _load(job + 8 * SIZES)
    uniform, rows = _load(job + 8 * UNIFORM), _load(job + 8 * ROWS)
    place, leaves = _load(job + 8 * PLACE), _load(job + 8 * LEAVES)
    row, beyond = types.int64(0), rows
    while beyond - row > 1:
        middle = (row + beyond) >> 1
        if _load(offsets + 8 * middle) <= begin:
            row = middle
        else:
            beyond = middle
    size = uniform
    while row < rows:
        start = _load(offsets + 8 * row)
        if start >= end:
            return
        if uniform == 0:
            size = _load(sizes + 8 * row)
        if size <= _SHORT and row + _AHEAD < rows:
            coming = _load(near + 8 * (row + _AHEAD))
            line = types.int64(0)
            while line < size:
                _fetch(coming + line)
                line += _LINE
        first, last = max(begin, start), min(end, start + size)
        if first < last:
            host = _load(near + 8 * row) + first - start
            if leaves == 0:
                _copy(place + first, host, last - first)
            else:
                _copy(host, place + first, last - first)
        row += 1


@compiled(types.void(integer))
def take_shares(job):  # type: ignore[no-untyped-def]
    """Take shares of a job until none is left."""
    begin, end, share = _load(job + 8 * BEGIN), _load(job + 8 * END), _load(job + 8 * SHARE)
    while True:
        first = begin + share * _count(job + 8 * TAKEN, 1)
        if first >= end:
            return
        move_share(job, first, min(end, first + share))


@compiled(types.void(integer, integer))
def _acquire(acquire, lock):  # type: ignore[no-untyped-def]
    """Take a lock: ask often for a little while, then sleep until it is free."""
    for _ in range(_TRIES):
        if call(acquire, (lock, types.int64(0))) == 1:
            return
    call(acquire, (lock, types.int64(1)))


@compiled(types.void(integer, integer, integer, integer, integer))
def serve(acquire, release, job, wake, over):  # type: ignore[no-untyped-def]
    """Help with one job after another, for good.

    Parameters
    ----------
    acquire, release : int
        Addresses of ``PyThread_acquire_lock`` and ``PyThread_release_lock``, which need no GIL.
    job : int
        Address of the words of the job.
    wake, over : int
        Locks: taken to begin; released when the last thread is through.
    """
    while True:
        _acquire(acquire, wake)
        take_shares(job)
        if _count(job + 8 * WORKING, -1) == 1:
            call(release, (over,))


@compiled(types.void(integer, integer, integer))
def wake_helpers(release, wakes, helpers):  # type: ignore[no-untyped-def]
    """Let so many threads begin; their locks stand at the address `wakes`."""
    for helper in range(helpers):
        call(release, (_load(wakes + 8 * helper),))


@compiled(types.void(integer, integer, integer, integer))
def help_and_wait(acquire, job, over, helpers):  # type: ignore[no-untyped-def]
    """Take shares of a job, too, and wait until all helpers are through."""
    take_shares(job)
    if helpers > 0:
        _acquire(acquire, over)
