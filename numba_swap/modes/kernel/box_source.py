"""The kernel that copies boxes, as Numba source. Importing this module imports Numba-CUDA.

A box is rows of bytes at two pitches on either side. It is walked flat, word by word: a tile of
threads takes one chunk of words after another, whatever rows they are of, so that short rows share
a warp. There are four ways, told by the form:

- aligned: every address and length is a multiple of 16, and words are 16 bytes;
- split: words of 16 bytes begin where the *source's* addresses are multiples of 16, and what of
  them is the row's is written in the widest units that both sides allow. For host memory that is
  read over a link, where many narrow reads would take many requests;
- narrow: words are such units, and rows are padded to begin at segments of the *destination*. One
  access of a warp then writes whole segments, but for the first and last of a row: a link takes one
  request for each part of a segment that is written on its own.

- shifted: words of 16 bytes begin where the *destination's* addresses are multiples of 16, and each
  is put together from the two aligned words of the source in which it lies. Within the device,
  where the second of these is in a cache already.

All arithmetic is in signed 64-bit integers: Numba turns a mix of signed and unsigned ones into
floating point.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from numba import cuda

from numba_swap.modes.kernel.access import host_memory, memory


def _part_of_word(access: Any) -> tuple[Any, Any]:
    """Make the functions that read and write bytes `low` to `high` of a word, in units.

    The word begins at a multiple of 16 where it is read, and anywhere where it is written.
    """
    load16, load8, store16, store8 = access.load16, access.load8, access.store16, access.store8
    get4, get2, get1, put4, put2, put1 = (
        getattr(access, name) for name in ("get4", "get2", "get1", "put4", "put2", "put1")
    )

    def load(address, low, high, unit, may_overread):  # type: ignore[no-untyped-def]
        first = 0
        second = 0
        if high - low == 16 or (may_overread != 0 and low < high):
            first, second = load16(address)
        elif unit == 8:
            if low == 0 and high > 0:
                first = load8(address)
            if high == 16:
                second = load8(address + 8)
        else:
            at = low
            while at < high:
                if unit == 4:
                    value = get4(address + at)
                elif unit == 2:
                    value = get2(address + at)
                else:
                    value = get1(address + at)
                if at < 8:
                    first |= value << (8 * at)
                else:
                    second |= value << (8 * (at - 8))
                at += unit
        return first, second

    def store(address, first, second, low, high, unit):  # type: ignore[no-untyped-def]
        if high - low == 16 and address & 15 == 0:
            store16(address, (first, second))
        elif unit == 8:
            if low == 0 and high > 0:
                store8(address, first)
            if high == 16:
                store8(address + 8, second)
        else:
            at = low
            while at < high:
                value = first >> (8 * at)
                if at >= 8:
                    value = second >> (8 * (at - 8))
                if unit == 4:
                    put4(address + at, value)
                elif unit == 2:
                    put2(address + at, value)
                else:
                    put1(address + at, value)
                at += unit

    return load, store


def _one_unit(access: Any) -> tuple[Any, Any]:
    """Make the functions that read and write the unit `at` bytes into a row, if it is the row's."""
    load8, get4, get2, get1 = access.load8, access.get4, access.get2, access.get1
    store8, put4, put2, put1 = access.store8, access.put4, access.put2, access.put1

    def get(row, at, row_bytes, unit):  # type: ignore[no-untyped-def]
        value = 0
        if at >= 0 and at < row_bytes:
            if unit == 4:
                value = get4(row + at)
            elif unit == 8:
                value = load8(row + at)
            elif unit == 2:
                value = get2(row + at)
            else:
                value = get1(row + at)
        return value

    def put(row, value, at, row_bytes, unit):  # type: ignore[no-untyped-def]
        if at >= 0 and at < row_bytes:
            if unit == 4:
                put4(row + at, value)
            elif unit == 8:
                store8(row + at, value)
            elif unit == 2:
                put2(row + at, value)
            else:
                put1(row + at, value)

    return get, put


def _advance(col, row, plane, row_words, rows, step):  # type: ignore[no-untyped-def]
    """Go on by a fixed number of words, given as words, rows and planes."""
    col += step[0]
    row += step[1]
    plane += step[2]
    if col >= row_words:
        col -= row_words
        row += 1
    if row >= rows:
        row -= rows
        plane += 1
    return col, row, plane


def _window(at, row_bytes, left):  # type: ignore[no-untyped-def]
    """Return which bytes of the word `at` bytes into a row are the row's; none at the end."""
    low = max(0, -at)
    high = max(low, min(16, row_bytes - at))
    if left <= 0:
        high = low
    return low, high


# Each way copies every `tile`-th of the next `left` words of a box, most with several accesses in
# flight. `form` is (row_bytes, rows, row_words, unit, segment, may_overread), `strides` are
# dst_pitch, dst_plane, src_pitch and src_plane, `step` is what `_advance` goes on by.


def _aligned_way(access: Any, wrap: Any) -> Any:
    """Make the function that copies words of 16 bytes which are aligned on both sides."""
    load16, store16, advance = access.load16, access.store16, wrap(_advance)

    def copy_aligned(  # type: ignore[no-untyped-def]
        dst, src, col, row, plane, left, tile, form, strides, step
    ):
        rows, row_words = form[1], form[2]
        dst_pitch, dst_plane, src_pitch, src_plane = strides
        while left > 3 * tile:
            d0 = dst + plane * dst_plane + row * dst_pitch + 16 * col
            v0 = load16(src + plane * src_plane + row * src_pitch + 16 * col)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            d1 = dst + plane * dst_plane + row * dst_pitch + 16 * col
            v1 = load16(src + plane * src_plane + row * src_pitch + 16 * col)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            d2 = dst + plane * dst_plane + row * dst_pitch + 16 * col
            v2 = load16(src + plane * src_plane + row * src_pitch + 16 * col)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            d3 = dst + plane * dst_plane + row * dst_pitch + 16 * col
            v3 = load16(src + plane * src_plane + row * src_pitch + 16 * col)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            store16(d0, v0)
            store16(d1, v1)
            store16(d2, v2)
            store16(d3, v3)
            left -= 4 * tile
        while left > 0:
            value = load16(src + plane * src_plane + row * src_pitch + 16 * col)
            store16(dst + plane * dst_plane + row * dst_pitch + 16 * col, value)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            left -= tile

    return wrap(copy_aligned)


def _split_way(access: Any, wrap: Any) -> Any:
    """Make the function that copies words of 16 bytes which are aligned at the source."""
    load_part, store_part = map(wrap, _part_of_word(access))
    advance, window = wrap(_advance), wrap(_window)

    def copy_split(  # type: ignore[no-untyped-def]
        dst, src, col, row, plane, left, tile, form, strides, step
    ):
        row_bytes, rows, row_words, unit, _, may_overread = form
        dst_pitch, dst_plane, src_pitch, src_plane = strides
        while left > 0:
            s = src + plane * src_plane + row * src_pitch
            d0 = dst + plane * dst_plane + row * dst_pitch
            at0 = 16 * col - (s & 15)
            low0, high0 = window(at0, row_bytes, left)
            a0, b0 = load_part(s + at0, low0, high0, unit, may_overread)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            s = src + plane * src_plane + row * src_pitch
            d1 = dst + plane * dst_plane + row * dst_pitch
            at1 = 16 * col - (s & 15)
            low1, high1 = window(at1, row_bytes, left - tile)
            a1, b1 = load_part(s + at1, low1, high1, unit, may_overread)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            store_part(d0 + at0, a0, b0, low0, high0, unit)
            store_part(d1 + at1, a1, b1, low1, high1, unit)
            left -= 2 * tile

    return wrap(copy_split)


def _narrow_way(access: Any, wrap: Any) -> Any:
    """Make the function that copies units, in segments of the destination."""
    get, put = map(wrap, _one_unit(access))
    advance = wrap(_advance)

    def copy_narrow(  # type: ignore[no-untyped-def]
        dst, src, col, row, plane, left, tile, form, strides, step
    ):
        row_bytes, rows, row_words, unit, segment, _ = form
        dst_pitch, dst_plane, src_pitch, src_plane = strides
        inside = segment - 1
        while left > 0:
            d0 = dst + plane * dst_plane + row * dst_pitch
            at0 = unit * col - (d0 & inside)
            v0 = get(src + plane * src_plane + row * src_pitch, at0, row_bytes, unit)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            d1 = dst + plane * dst_plane + row * dst_pitch
            at1 = unit * col - (d1 & inside) if left > tile else -1
            v1 = get(src + plane * src_plane + row * src_pitch, at1, row_bytes, unit)
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            put(d0, v0, at0, row_bytes, unit)
            put(d1, v1, at1, row_bytes, unit)
            left -= 2 * tile

    return wrap(copy_narrow)


def _shift(a, b, c, d, by):  # type: ignore[no-untyped-def]
    """Return the 16 bytes that begin `by` bytes, 1 to 15, into four words of 8."""
    if by >= 8:
        a = b
        b = c
        c = d
        by -= 8
    first = a
    second = b
    if by > 0:
        right = 8 * by
        left = 64 - right
        kept = (1 << left) - 1  # a shift to the right brings in the sign
        first = ((a >> right) & kept) | (b << left)
        second = ((b >> right) & kept) | (c << left)
    return first, second


def _shifted_way(access: Any, wrap: Any) -> Any:
    """Make the function that copies words of 16 bytes which are aligned at the destination."""
    load16, store16 = access.load16, access.store16
    get, put = map(wrap, _one_unit(access))
    advance, shift = wrap(_advance), wrap(_shift)

    def copy_shifted(  # type: ignore[no-untyped-def]
        dst, src, col, row, plane, left, tile, form, strides, step
    ):
        row_bytes, rows, row_words, unit, _, may_overread = form
        dst_pitch, dst_plane, src_pitch, src_plane = strides
        while left > 0:
            d = dst + plane * dst_plane + row * dst_pitch
            s = src + plane * src_plane + row * src_pitch
            at = 16 * col - (d & 15)
            apart = (s + at) & 15
            if at >= 0 and at + 16 <= row_bytes and (apart == 0 or may_overread != 0):
                a, b = load16(s + at - apart)
                if apart != 0:
                    e, f = load16(s + at - apart + 16)
                    a, b = shift(a, b, e, f, apart)
                store16(d + at, (a, b))
            else:
                stop = at + 16
                while at < stop:
                    put(d, get(s, at, row_bytes, unit), at, row_bytes, unit)
                    at += unit
            col, row, plane = advance(col, row, plane, row_words, rows, step)
            left -= tile

    return wrap(copy_shifted)


def device_function(function: Any) -> Any:
    """Compile a function into the kernel that calls it."""
    return cuda.jit(device=True, inline="always")(function)


_load8 = memory.load8
_copy_aligned = _aligned_way(memory, device_function)
_copy_split = _split_way(memory, device_function)
_copy_narrow = _narrow_way(memory, device_function)
_copy_shifted = _shifted_way(memory, device_function)


def box_kernel(table, count, chunks, chunk_words, tile, forms, unlike):  # type: ignore[no-untyped-def]
    """Copy the boxes that a table describes.

    Parameters
    ----------
    table : int64
        Address of 64-bit words: `count` destinations, `count` sources and, of unlike boxes,
        `count` words: in the low 40 bits the word of its box at which a row begins, above them the
        number of its form.
    count : int64
        Rows of the table: boxes, or chunks of unlike ones.
    chunks : int64
        How many chunks a box has; 1 of unlike ones.
    chunk_words : int64
        Words of every chunk but the last of a box.
    tile : int64
        Threads that share one chunk: 1, 2, 4, 8, 16 or 32.
    forms : int64
        Address of the 14 words of each form that `native.boxes.KERNEL_FORM` names.
    unlike : int64
        Not 0 if the boxes are of several forms.
    """
    thread = cuda.grid(1)
    rank = thread & (tile - 1)
    tiles = cuda.gridsize(1) // tile
    item = thread // tile
    kept = -1
    words = 0
    form = (0, 1, 1, 16, 16, 0)
    strides = (0, 0, 0, 0)
    step = (0, 0, 0)
    while item < count * chunks:
        line = item // chunks
        word = (item - line * chunks) * chunk_words
        number = 0
        if unlike != 0:
            place = _load8(table + 8 * (2 * count + line))
            number = place >> 40
            word = place & 0xFFFFFFFFFF
        dst = _load8(table + 8 * line)
        src = _load8(table + 8 * (count + line))
        if number != kept:
            kept = number
            at = forms + 112 * number
            strides = (_load8(at + 16), _load8(at + 24), _load8(at + 32), _load8(at + 40))
            words = _load8(at + 56)
            step = (_load8(at + 64), _load8(at + 72), _load8(at + 80))
            form = (
                _load8(at),
                _load8(at + 8),
                _load8(at + 48),
                _load8(at + 88),
                _load8(at + 96),
                _load8(at + 104),
            )
        left = min(chunk_words, words - word) - rank
        # Three divisions a chunk; from then on only additions.
        word += rank
        row = word // form[2]
        col = word - row * form[2]
        plane = row // form[1]
        row -= plane * form[1]
        if form[3] == 16:
            _copy_aligned(dst, src, col, row, plane, left, tile, form, strides, step)
        elif form[4] == 0:
            _copy_split(dst, src, col, row, plane, left, tile, form, strides, step)
        elif form[4] < 0:
            _copy_shifted(dst, src, col, row, plane, left, tile, form, strides, step)
        else:
            _copy_narrow(dst, src, col, row, plane, left, tile, form, strides, step)
        item += tiles


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
        `box_kernel` whose loads and stores are Python functions.
    """

    def checked(function: Any, width: int) -> Any:
        def access_if_allowed(address: int, *value: Any) -> Any:
            check(address, width)
            return function(address, *value)

        return access_if_allowed

    plain = host_memory()
    access = types.SimpleNamespace(
        **{
            name: checked(function, int(name.strip("abcdefghijklmnopqrstuvwxyz")))
            for name, function in vars(plain).items()
        }
    )

    def as_it_is(function: Any) -> Any:
        return function

    namespace = {
        "cuda": cuda,
        "_load8": plain.load8,
        "_copy_aligned": _aligned_way(access, as_it_is),
        "_copy_split": _split_way(access, as_it_is),
        "_copy_narrow": _narrow_way(access, as_it_is),
        "_copy_shifted": _shifted_way(access, as_it_is),
    }
    return types.FunctionType(box_kernel.__code__, namespace, "box_kernel")
