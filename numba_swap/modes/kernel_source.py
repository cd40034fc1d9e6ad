"""The copy kernel, as Numba source. Importing this module imports Numba-CUDA.

A team of threads, a power of two and at most a warp, takes one copy after another. Where source
and destination have the same remainder modulo 16, the team copies single bytes up to the first
16-byte boundary, then 16 bytes a thread with four loads in flight, then the last bytes; otherwise
the widest access that both addresses allow after such a head. All arithmetic is in signed 64-bit
integers: Numba turns a mix of signed and unsigned ones into floating point.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from numba import cuda

from numba_swap.modes.kernel_memory import host_memory, memory

KERNEL_SIGNATURE = "void(int64, int64, int64)"


def _copy_words(load: Any, store: Any, width: int) -> Any:
    """Make the function that copies `count` aligned words of `width` bytes with one team."""

    def copy(dst, src, count, lane, team):  # type: ignore[no-untyped-def]
        word = lane
        while word + 3 * team < count:
            first = word * width
            second = first + team * width
            third = second + team * width
            fourth = third + team * width
            a = load(src + first)
            b = load(src + second)
            c = load(src + third)
            d = load(src + fourth)
            store(dst + first, a)
            store(dst + second, b)
            store(dst + third, c)
            store(dst + fourth, d)
            word += 4 * team
        while word < count:
            store(dst + word * width, load(src + word * width))
            word += team

    return copy


def _copy_parts(wide: Any, words8: Any, words4: Any, words1: Any) -> Any:
    """Make the function that copies any number of bytes between any two addresses."""

    def copy(dst, src, size, lane, team):  # type: ignore[no-untyped-def]
        apart = dst ^ src
        width = 1
        if apart & 15 == 0:
            width = 16
        elif apart & 7 == 0:
            width = 8
        elif apart & 3 == 0:
            width = 4
        head = min(size, -dst & (width - 1))
        count = (size - head) // width
        body = count * width
        if head > 0:
            words1(dst, src, head, lane, team)
        if width == 16:
            wide(dst + head, src + head, count, lane, team)
        elif width == 8:
            words8(dst + head, src + head, count, lane, team)
        elif width == 4:
            words4(dst + head, src + head, count, lane, team)
        else:
            words1(dst + head, src + head, count, lane, team)
        done = head + body
        if done < size:
            words1(dst + done, src + done, size - done, lane, team)

    return copy


def _device_function(function: Any) -> Any:
    return cuda.jit(device=True, inline="always")(function)


_load8 = memory.load8
_copy = _device_function(
    _copy_parts(
        _device_function(_copy_words(memory.load16, memory.store16, 16)),
        _device_function(_copy_words(memory.load8, memory.store8, 8)),
        _device_function(_copy_words(memory.load4, memory.store4, 4)),
        _device_function(_copy_words(memory.load1, memory.store1, 1)),
    )
)


def copy_kernel(table, count, team):  # type: ignore[no-untyped-def]
    """Run `count` copies described by three columns: destinations, sources, sizes in bytes.

    Parameters
    ----------
    table : int64
        Address of the columns, each of `count` 64-bit words, one after the other.
    count : int64
        Number of copies.
    team : int64
        Threads that share one copy: 1, 2, 4, 8, 16 or 32.
    """
    thread = cuda.grid(1)
    lane = thread % team
    teams = cuda.gridsize(1) // team
    copy = thread // team
    while copy < count:
        descriptor = table + 8 * copy
        _copy(
            _load8(descriptor),
            _load8(descriptor + 8 * count),
            _load8(descriptor + 16 * count),
            lane,
            team,
        )
        copy += teams


def python_kernel(check: Callable[[int, int], None]) -> Any:
    """Bind the same source to host memory, to be run by Numba's simulator without a GPU.

    Parameters
    ----------
    check : callable
        Called with address and length of all that a copy is about to read or write; raises where
        a GPU would fault.

    Returns
    -------
    function
        `copy_kernel` whose loads and stores are Python functions.
    """
    access = host_memory()
    copy_unchecked = _copy_parts(
        _copy_words(access.load16, access.store16, 16),
        _copy_words(access.load8, access.store8, 8),
        _copy_words(access.load4, access.store4, 4),
        _copy_words(access.load1, access.store1, 1),
    )

    def copy(dst: int, src: int, size: int, lane: int, team: int) -> None:
        check(dst, size)
        check(src, size)
        copy_unchecked(dst, src, size, lane, team)

    namespace = {"cuda": cuda, "_load8": access.load8, "_copy": copy}
    return types.FunctionType(copy_kernel.__code__, namespace, "copy_kernel")
