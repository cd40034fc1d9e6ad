"""Rows of an array picked up by their ids, and put down again: `gather` and `scatter`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from numba_swap.copies.inputs.mapping import Integers, read_integers
from numba_swap.copies.layers import ArgumentNames
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.errors import BadArgumentError, BadPlanError, brief
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.transfer import After, Transfer
from numba_swap.swap.verbs import RowsRequest, swap_rows

Duplicates = Literal["raise", "first", "last"]
_GATHER = ArgumentNames("(ids, slots)", "src", "out")
_SCATTER = ArgumentNames("(slots, ids)", "src", "dst")


def gather(
    src: Any,
    ids: Any,
    out: Any,
    *,
    slots: Any = None,
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Pick up blocks by their ids: ``out[slots[k]] = src[ids[k]]``.

    Parameters
    ----------
    src, out : array, or sequence of arrays
        Where the blocks come from and go to, as for `numba_swap.plan_blocks`.
    ids : array_like of int, shape (n,)
        The blocks of `src`, in host memory. One may stand there several times.
    slots : array_like of int, shape (n,), optional
        The block of `out` for each of them, none of them twice. By default 0 to n - 1.
    block_axis : int, optional
        The axis along which the blocks lie.
    stream, mode, policy, max_blocks, after
        As for `numba_swap.swap_blocks`.

    Returns
    -------
    Transfer
        The call returns as soon as the work is enqueued: wait on this, or on the stream.

    Raises
    ------
    NumbaSwapError
        As for `numba_swap.swap_blocks`; `BadPlanError` also if there are not as many slots as ids.
        `BadPlanError.index` is k.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     table = gpu.pinned_array((100, 8), np.float32)
    ...     table[:] = np.arange(100)[:, None]
    ...     rows = gpu.device_array((4, 8), np.float32)
    ...     ns.gather(table, [17, 3, 17, 99], rows).wait()
    ...     rows.copy_to_host()[:, 0].tolist()
    [17.0, 3.0, 17.0, 99.0]
    """
    blocks = _read(ids, "ids")
    mapping = _join(blocks, _slots_of(slots, blocks))
    request = RowsRequest(src, out, mapping, block_axis, stream, after, _GATHER)
    return swap_rows(request, RunOptions(stream, mode, max_blocks, policy))


def scatter(
    src: Any,
    dst: Any,
    ids: Any,
    *,
    slots: Any = None,
    duplicates: Duplicates = "raise",
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Put blocks down by their ids: ``dst[ids[k]] = src[slots[k]]``.

    Parameters
    ----------
    src, dst : array, or sequence of arrays
        Where the blocks come from and go to, as for `numba_swap.plan_blocks`.
    ids : array_like of int, shape (n,)
        The blocks of `dst`, in host memory.
    slots : array_like of int, shape (n,), optional
        The block of `src` for each of them. By default 0 to n - 1.
    duplicates : {"raise", "first", "last"}, optional
        What to do with an id that stands there several times: refuse it, or take the first or the
        last of its blocks, whatever the others hold.
    block_axis : int, optional
        The axis along which the blocks lie.
    stream, mode, policy, max_blocks, after
        As for `numba_swap.swap_blocks`.

    Returns
    -------
    Transfer
        The call returns as soon as the work is enqueued: wait on this, or on the stream.

    Raises
    ------
    BadArgumentError
        Another value of `duplicates`.
    NumbaSwapError
        As for `numba_swap.swap_blocks`; `BadPlanError` also if there are not as many slots as ids.
        `BadPlanError.index` is k.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     table, rows = gpu.pinned_array((100, 8)), gpu.device_array((3, 8))
    ...     table[:] = 0.0
    ...     rows.copy_to_device(np.arange(1.0, 4.0)[:, None])
    ...     ns.scatter(rows, table, [17, 3, 17], duplicates="last").wait()
    ...     table[[3, 17], 0].tolist()
    [2.0, 3.0]
    """
    if duplicates not in ("raise", "first", "last"):
        raise BadArgumentError(
            f"duplicates={brief(duplicates)} is none of 'raise', 'first' and 'last'"
        )
    blocks = _read(ids, "ids")
    mapping = _join(_slots_of(slots, blocks), blocks)
    kept: Integers | None = None
    if duplicates != "raise":
        kept = _one_of_each(blocks, last=duplicates == "last")
        mapping = mapping[kept]
    try:
        request = RowsRequest(src, dst, mapping, block_axis, stream, after, _SCATTER)
        return swap_rows(request, RunOptions(stream, mode, max_blocks, policy))
    except BadPlanError as error:
        if kept is not None and error.index is not None:
            error.index = int(kept[error.index])
        raise


def _read(values: Any, name: str) -> Integers:
    return read_integers(values, name, 1)


def _slots_of(slots: Any, blocks: Integers) -> Integers:
    """Return the slot of each block.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If they are not as many integers as there are blocks.
    """
    if slots is None:
        return np.arange(len(blocks))
    read = _read(slots, "slots")
    if len(read) != len(blocks):
        raise BadPlanError(f"there are {len(blocks)} ids and {len(read)} slots: give one for each")
    return read


def _join(sources: Integers, destinations: Integers) -> Integers:
    mapping = np.empty((len(sources), 2), dtype=np.int64)
    mapping[:, 0], mapping[:, 1] = sources, destinations
    return mapping


def _one_of_each(blocks: Integers, *, last: bool) -> Integers:
    """Return where each block stands first, or last, in order."""
    ordered = blocks[::-1] if last else blocks
    kept = np.unique(ordered, return_index=True)[1]
    return np.sort(len(blocks) - 1 - kept if last else kept)
