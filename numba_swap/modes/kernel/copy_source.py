"""The copy kernel, as Numba source. Importing this module imports Numba-CUDA.

A tile of threads, a power of two and at most a warp, takes one copy, or one chunk of a long copy,
after another. Where source and destination have the same remainder modulo 16, the tile copies
single bytes up to the first 16-byte boundary, then 16 bytes a thread with four loads in flight,
then the last bytes; otherwise the widest access that both addresses allow after such a head.
All arithmetic is in signed 64-bit
integers: Numba turns a mix of signed and unsigned ones into floating point.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from numba import cuda

from numba_swap.modes.kernel.access import host_memory, memory

KERNEL_SIGNATURE = "void(int64, int64, int64, int64, int64, int64, int64)"


def _copy_words(load: Any, store: Any, width: int) -> Any:
    """Make the function that copies `count` aligned words of `width` bytes with one tile."""

    def copy(dst, src, count, rank, tile):  # type: ignore[no-untyped-def]
        word = rank
        while word + 3 * tile < count:
            first = word * width
            second = first + tile * width
            third = second + tile * width
            fourth = third + tile * width
            a = load(src + first)
            b = load(src + second)
            c = load(src + third)
            d = load(src + fourth)
            store(dst + first, a)
            store(dst + second, b)
            store(dst + third, c)
            store(dst + fourth, d)
            word += 4 * tile
        while word < count:
            store(dst + word * width, load(src + word * width))
            word += tile

    return copy


def _copy_parts(wide: Any, words8: Any, words4: Any, words1: Any) -> Any:
    """Make the function that copies any number of bytes between any two addresses."""

    def copy(dst, src, size, rank, tile):  # type: ignore[no-untyped-def]
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
            words1(dst, src, head, rank, tile)
        if width == 16:
            wide(dst + head, src + head, count, rank, tile)
        elif width == 8:
            words8(dst + head, src + head, count, rank, tile)
        elif width == 4:
            words4(dst + head, src + head, count, rank, tile)
        else:
            words1(dst + head, src + head, count, rank, tile)
        done = head + body
        if done < size:
            words1(dst + done, src + done, size - done, rank, tile)

    return copy


def device_function(function: Any) -> Any:
    """Compile a function into the kernels that call it."""
    return cuda.jit(device=True, inline="always")(function)


_load8 = memory.load8
_copy_aligned = device_function(_copy_words(memory.load16, memory.store16, 16))
_copy = device_function(
    _copy_parts(
        device_function(_copy_words(memory.load16, memory.store16, 16)),
        device_function(_copy_words(memory.load8, memory.store8, 8)),
        device_function(_copy_words(memory.load4, memory.store4, 4)),
        device_function(_copy_words(memory.load1, memory.store1, 1)),
    )
)


def copy_kernel(table, count, size, chunks, chunk_bytes, tile, aligned):  # type: ignore[no-untyped-def]
    """Run the copies that a table describes.

    Parameters
    ----------
    table : int64
        Address of 64-bit words: `count` destinations, `count` sources and, if `size` is 0,
        `count` lengths in bytes.
    count : int64
        Number of copies.
    size : int64
        Bytes of every copy, or 0.
    chunks : int64
        How many tiles share one copy; 1 if `size` is 0.
    chunk_bytes : int64
        Bytes of every chunk but the last; not read if `chunks` is 1.
    tile : int64
        Threads that share one chunk: 1, 2, 4, 8, 16 or 32.
    aligned : int64
        Not 0 if every address and length is a multiple of 16. All tiles of a warp then take the
        same way, and stay together; where each decides for itself they drift apart, which halves
        the speed of short copies.
    """
    thread = cuda.grid(1)
    rank = thread & (tile - 1)
    tiles = cuda.gridsize(1) // tile
    item = thread // tile
    items = count * chunks
    if item >= items:
        return
    row = item
    if chunks > 1:
        row = item // chunks
    dst = _load8(table + 8 * row)
    src = _load8(table + 8 * (count + row))
    length = size
    if size == 0:
        length = _load8(table + 8 * (2 * count + row))
    while item < items:
        # The next descriptor is on its way while this chunk is copied: a table in pinned host
        # memory then costs no waiting.
        next_item = item + tiles
        next_row = row
        next_dst = dst
        next_src = src
        next_length = length
        if next_item < items:
            next_row = next_item
            if chunks > 1:
                next_row = next_item // chunks
            next_dst = _load8(table + 8 * next_row)
            next_src = _load8(table + 8 * (count + next_row))
            if size == 0:
                next_length = _load8(table + 8 * (2 * count + next_row))
        if chunks > 1:
            offset = (item - row * chunks) * chunk_bytes
            dst += offset
            src += offset
            length = min(chunk_bytes, length - offset)
        if aligned != 0:
            _copy_aligned(dst, src, length >> 4, rank, tile)
        else:
            _copy(dst, src, length, rank, tile)
        item = next_item
        row = next_row
        dst = next_dst
        src = next_src
        length = next_length


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
    copy_words16 = _copy_words(access.load16, access.store16, 16)
    copy_any = _copy_parts(
        copy_words16,
        _copy_words(access.load8, access.store8, 8),
        _copy_words(access.load4, access.store4, 4),
        _copy_words(access.load1, access.store1, 1),
    )

    def checked(copy: Any, width: int) -> Any:
        def copy_if_allowed(dst: int, src: int, count: int, rank: int, tile: int) -> None:
            check(dst, count * width)
            check(src, count * width)
            copy(dst, src, count, rank, tile)

        return copy_if_allowed

    namespace = {
        "cuda": cuda,
        "_load8": access.load8,
        "_copy": checked(copy_any, 1),
        "_copy_aligned": checked(copy_words16, 16),
    }
    return types.FunctionType(copy_kernel.__code__, namespace, "copy_kernel")
