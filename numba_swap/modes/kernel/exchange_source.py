"""The exchange kernel, as Numba source. Importing this module imports Numba-CUDA.

A tile of threads, a power of two and at most a warp, takes one pair of copies, or one chunk of a
pair of long ones, after another: what goes out and what comes in. Every thread reads its words of
both before it writes either, so the two may share a slot, or a host block, or both. So both
directions of the link are busy all the time, and nothing is staged.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from numba import cuda

from numba_swap.modes.kernel.access import host_memory, memory
from numba_swap.modes.kernel.copy_source import device_function

COLUMNS = 4  # of the table: where each half goes and comes from; lengths follow if they differ


def _exchange_words(load: Any, store: Any, width: int) -> Any:
    """Make the function that exchanges `count` aligned words of `width` bytes with one tile."""

    def exchange(out_dst, out_src, in_dst, in_src, count, rank, tile):  # type: ignore[no-untyped-def]
        word = rank
        while word + 3 * tile < count:
            first = word * width
            second = first + tile * width
            third = second + tile * width
            fourth = third + tile * width
            e = load(in_src + first)  # over the link: the slowest of all begins first
            f = load(in_src + second)
            g = load(in_src + third)
            h = load(in_src + fourth)
            a = load(out_src + first)
            b = load(out_src + second)
            c = load(out_src + third)
            d = load(out_src + fourth)
            store(out_dst + first, a)
            store(out_dst + second, b)
            store(out_dst + third, c)
            store(out_dst + fourth, d)
            store(in_dst + first, e)
            store(in_dst + second, f)
            store(in_dst + third, g)
            store(in_dst + fourth, h)
            word += 4 * tile
        while word < count:
            at = word * width
            e = load(in_src + at)
            a = load(out_src + at)
            store(out_dst + at, a)
            store(in_dst + at, e)
            word += tile

    return exchange


_load8 = memory.load8
_exchange16 = device_function(_exchange_words(memory.load16, memory.store16, 16))
_exchange8 = device_function(_exchange_words(memory.load8, memory.store8, 8))
_exchange4 = device_function(_exchange_words(memory.load4, memory.store4, 4))


def exchange_kernel(table, count, size, chunks, chunk_bytes, tile, width):  # type: ignore[no-untyped-def]
    """Run the pairs of copies that a table describes.

    Parameters
    ----------
    table : int64
        Address of 64-bit words: `count` destinations and `count` sources of what goes out, as many
        of what comes in and, if `size` is 0, `count` lengths in bytes, which hold for both.
    count, size, chunks, chunk_bytes, tile : int64
        As for `copy_source.copy_kernel`.
    width : int64
        16, 8 or 4, of which every address and length is a multiple.
    """
    thread = cuda.grid(1)
    rank = thread & (tile - 1)
    tiles = cuda.gridsize(1) // tile
    item = thread // tile
    items = count * chunks
    while item < items:
        row = item
        offset = 0
        if chunks > 1:
            row = item // chunks
            offset = (item - row * chunks) * chunk_bytes
        length = size
        if size == 0:
            length = _load8(table + 8 * (4 * count + row))
        if chunks > 1:
            length = min(chunk_bytes, length - offset)
        out_dst = _load8(table + 8 * row) + offset
        out_src = _load8(table + 8 * (count + row)) + offset
        in_dst = _load8(table + 8 * (2 * count + row)) + offset
        in_src = _load8(table + 8 * (3 * count + row)) + offset
        if width == 16:
            _exchange16(out_dst, out_src, in_dst, in_src, length >> 4, rank, tile)
        elif width == 8:
            _exchange8(out_dst, out_src, in_dst, in_src, length >> 3, rank, tile)
        else:
            _exchange4(out_dst, out_src, in_dst, in_src, length >> 2, rank, tile)
        item += tiles


def python_kernel(check: Callable[[int, int], None]) -> Any:
    """Bind the same source to host memory, as `copy_source.python_kernel` does for the copies."""
    access = host_memory()

    def checked(load: Any, store: Any, width: int) -> Any:
        exchange = _exchange_words(load, store, width)

        def exchange_if_allowed(*arguments: int) -> None:
            *addresses, count, _lane, _team = arguments
            for address in addresses:
                check(address, count * width)
            exchange(*arguments)

        return exchange_if_allowed

    namespace = {
        "cuda": cuda,
        "_load8": access.load8,
        "_exchange16": checked(access.load16, access.store16, 16),
        "_exchange8": checked(access.load8, access.store8, 8),
        "_exchange4": checked(access.load4, access.store4, 4),
    }
    return types.FunctionType(exchange_kernel.__code__, namespace, "exchange_kernel")
