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
  request for each part of a segment that is written on its own;
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
from numba_swap.modes.kernel.box_ways import aligned_way, narrow_way, shifted_way, split_way


def device_function(function: Any) -> Any:
    """Compile a function into the kernel that calls it."""
    return cuda.jit(device=True, inline="always")(function)


_load8 = memory.load8
_copy_aligned = aligned_way(memory, device_function)
_copy_split = split_way(memory, device_function)
_copy_narrow = narrow_way(memory, device_function)
_copy_shifted = shifted_way(memory, device_function)


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
        "_copy_aligned": aligned_way(access, as_it_is),
        "_copy_split": split_way(access, as_it_is),
        "_copy_narrow": narrow_way(access, as_it_is),
        "_copy_shifted": shifted_way(access, as_it_is),
    }
    return types.FunctionType(box_kernel.__code__, namespace, "box_kernel")
