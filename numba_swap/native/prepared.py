"""Doing again what was done before with other rows: all of it in one compiled call.

What a launch follows from besides its rows is packed into one array of words, once; the names of
the words stand here, beside the code that reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from numba import types

from numba_swap.native.ccall import (
    POINTER_ATTRIBUTES,
    call_attributes,
    column,
    compiled,
    integer,
)
from numba_swap.native.ccall import mapping as mapping_type
from numba_swap.native.driver_calls import (
    LAUNCH_FUNCTIONS,
    NO_CONTEXT,
    enter_context,
    launch_if_free,
    leave_context,
)
from numba_swap.native.pairing import place_pairs
from numba_swap.native.rows import place_rows

# Of each side: its blocks, the address that the driver was asked about, and what it answered.
_SIDE = ("at", "step", "blocks", "asked")
_ANSWERS = tuple(f"answer{i}" for i in range(POINTER_ATTRIBUTES))
LAUNCH = (
    "get_current",
    "set_current",
    "get_stream_context",
    "is_capturing",
    "launch",
    "record",
)
FIELDS = (
    *LAUNCH,
    "query",
    "codes",
    "context",
    "stream",
    "kernel",
    "threads",
    "size",
    "chunks",
    "chunk_bytes",
    "tile",
    "access",
    *(f"src_{name}" for name in (*_SIDE, *_ANSWERS)),
    *(f"dst_{name}" for name in (*_SIDE, *_ANSWERS)),
)
_FUNCTIONS = FIELDS.index("get_current")
_QUERY, _CODES = FIELDS.index("query"), FIELDS.index("codes")
_CONTEXT, _STREAM = FIELDS.index("context"), FIELDS.index("stream")
_KERNEL, _THREADS = FIELDS.index("kernel"), FIELDS.index("threads")
_SIZE = FIELDS.index("size")
_SRC, _DST = FIELDS.index("src_at"), FIELDS.index("dst_at")
_ASKED = _SIDE.index("asked")

_words = types.Array(types.int64, 1, "C")
functions_type = types.UniTuple(integer, LAUNCH_FUNCTIONS)


def pack(fields: Sequence[str], values: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Return words in the order of their names.

    Raises
    ------
    KeyError
        If one of `fields` is missing, or another is given.
    """
    if unknown := set(values) - set(fields):
        raise KeyError(unknown)
    return np.array([values[name] for name in fields], dtype=np.int64)


@compiled(types.boolean(_words))
def _as_before(words):  # type: ignore[no-untyped-def]
    """Whether the memory that both arrays lie in is what it was."""
    for side in (_SRC, _DST):
        found = call_attributes(words[_QUERY], words[_CODES], words[side + _ASKED])
        if found[0] != 0:
            return False
        for i in range(POINTER_ATTRIBUTES):
            if found[1 + i] != words[side + _ASKED + 1 + i]:
                return False
    return True


@compiled(functions_type(_words))
def functions_of(words):  # type: ignore[no-untyped-def]
    """Return the driver's functions, with which the words of every prepared call begin."""
    f = _FUNCTIONS
    return words[f], words[f + 1], words[f + 2], words[f + 3], words[f + 4], words[f + 5]


@compiled(types.UniTuple(integer, 2)(_words, integer, integer, integer, integer))
def _launch(words, table, rows, blocks, event):  # type: ignore[no-untyped-def]
    s = _SIZE
    values = (
        table,
        rows,
        words[s],
        words[s + 1],
        words[s + 2],
        words[s + 3],
        words[s + 4],
    )
    return launch_if_free(
        functions_of(words),
        words[_CONTEXT],
        words[_KERNEL],
        blocks,
        words[_THREADS],
        words[_STREAM],
        values,
        event,
    )


@compiled(types.UniTuple(integer, 2)(_words, mapping_type, column, integer, integer, integer))
def _copy_rows(words, mapping, memory, table, blocks, event):  # type: ignore[no-untyped-def]
    if not _as_before(words):
        return -1, 0
    rows = len(mapping)
    found = place_rows(
        mapping,
        words[_SRC],
        words[_SRC + 1],
        words[_SRC + 2],
        words[_DST],
        words[_DST + 1],
        words[_DST + 2],
        words[_SIZE],
        -1,
        memory[:rows],
        memory[rows : 2 * rows],
    )
    if found != 0:
        return -1, 0
    return _launch(words, table, rows, blocks, event)


@compiled(
    types.UniTuple(integer, 2)(
        _words, mapping_type, mapping_type, column, integer, integer, integer
    )
)
def _exchange_rows(words, out_rows, in_rows, memory, table, blocks, event):  # type: ignore[no-untyped-def]
    if not _as_before(words):
        return -1, 0
    device = (words[_SRC], words[_SRC + 1], words[_SRC + 2])
    host = (words[_DST], words[_DST + 1], words[_DST + 2])
    found, slots, shared = place_pairs(out_rows, in_rows, device, host, words[_SIZE], memory)
    if found != 0:
        return -1, 0
    step, code = _launch(words, table, len(out_rows), blocks, event)
    return step, min(slots, shared) if step == 0 else code


@compiled(types.UniTuple(integer, 2)(_words, mapping_type, column, integer, integer, integer))
def copy_rows(words, mapping, memory, table, blocks, event):  # type: ignore[no-untyped-def]
    """Place rows and launch the copy kernel on them, if all is as it was the last time.

    Parameters
    ----------
    words : ndarray of int64
        As `pack` makes them.
    mapping : ndarray of int64, shape (n, 2)
        Source and destination block of each row.
    memory : ndarray of uint64
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
    functions = functions_of(words)
    former = enter_context(functions, words[_CONTEXT])
    if former == NO_CONTEXT:
        return -1, 0
    step, code = _copy_rows(words, mapping, memory, table, blocks, event)
    leave_context(functions, words[_CONTEXT], former)
    return step, code


@compiled(
    types.UniTuple(integer, 2)(
        _words, mapping_type, mapping_type, column, integer, integer, integer
    )
)
def exchange_rows(words, out_rows, in_rows, memory, table, blocks, event):  # type: ignore[no-untyped-def]
    """Place the rows of both directions and launch the exchange kernel, if all is as it was.

    Parameters
    ----------
    words, memory, table, blocks, event
        As for `copy_rows`; the source is the pool that `out_rows` leave.
    out_rows, in_rows : ndarray of int64, shape (n, 2)
        Rows that go together as they stand.

    Returns
    -------
    step, code : int
        As for `copy_rows`; if all went well, `code` is not 0 if slots and blocks are both read
        and overwritten.
    """
    functions = functions_of(words)
    former = enter_context(functions, words[_CONTEXT])
    if former == NO_CONTEXT:
        return -1, 0
    step, code = _exchange_rows(words, out_rows, in_rows, memory, table, blocks, event)
    leave_context(functions, words[_CONTEXT], former)
    return step, code
