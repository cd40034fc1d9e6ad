"""The four ways in which the kernel of boxes copies words; see `box_source`.

Each is made over one kind of access, for a compiler or for Python: `wrap` compiles a function into
those that call it, or returns it as it is.
"""

from __future__ import annotations

from typing import Any


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


def aligned_way(access: Any, wrap: Any) -> Any:
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


def split_way(access: Any, wrap: Any) -> Any:
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


def narrow_way(access: Any, wrap: Any) -> Any:
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


def shifted_way(access: Any, wrap: Any) -> Any:
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
