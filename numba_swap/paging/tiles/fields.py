"""What a user may stream: host arrays of a tiling's shape, none of which is written twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.errors import BadArgumentError, UnsupportedArrayError, brief
from numba_swap.paging.tiles.tiling import Tiling

Field = npt.NDArray[Any]
# How long to look whether views that interleave share an element.
_MOST_WORK = 1_000_000


class Fields(NamedTuple):
    """The arrays of a call.

    Attributes
    ----------
    reads, writes, updates : list of ndarray
        Those that are read with a halo, written, or both.
    """

    reads: list[Field]
    writes: list[Field]
    updates: list[Field]


def read_fields(
    reads: Any,
    writes: Any,
    updates: Any,
    tiling: Any,
    names: Sequence[str] = ("reads", "writes", "updates"),
) -> Fields:
    """Check what a user wants to stream, by the names that the user knows.

    Raises
    ------
    BadArgumentError
        No tiling; no list; an array of another shape; a boundary that the type of an array cannot
        hold; an array that is written and shares memory with another, or cannot be written.
    UnsupportedArrayError
        What is no NumPy array.
    """
    if not isinstance(tiling, Tiling):
        raise BadArgumentError(f"tiling={brief(tiling)}: give a numba_swap.Tiling")
    found = Fields([], [], [])
    seen: list[tuple[str, Field, bool]] = []
    for name, given, arrays in zip(names, (reads, writes, updates), found, strict=True):
        if not isinstance(given, list | tuple):
            raise BadArgumentError(f"{name} is a {type(given).__name__}: give a list of arrays")
        written, halo = arrays is not found.reads, arrays is not found.writes
        for i, array in enumerate(given):
            _check(array, f"{name}[{i}]", tiling, written=written, halo=halo)
            arrays.append(array)
            seen.append((f"{name}[{i}]", array, written))
    for (name, one, written), (other_name, other, other_written) in itertools.combinations(seen, 2):
        if (written or other_written) and _share(one, other):
            raise BadArgumentError(
                f"{name} and {other_name} share memory, and one of them is written: give an array "
                f"that is read and written once, in {names[-1]}"
            )
    return found


def _check(array: Any, name: str, tiling: Tiling, *, written: bool, halo: bool) -> None:
    if not isinstance(array, np.ndarray):
        raise UnsupportedArrayError(
            f"{name} is a {type(array).__name__}: give a NumPy array, pinned (numba.cuda."
            "pinned_array) or plain"
        )
    if array.dtype.hasobject:
        raise UnsupportedArrayError(f"{name} holds Python objects, not plain bytes")
    if array.shape != tiling.shape:
        raise BadArgumentError(f"{name} has the shape {array.shape}, the tiling {tiling.shape}")
    if written and not array.flags.writeable:
        raise BadArgumentError(f"{name} is read-only")
    if halo and not (tiling.clips or tiling.periodic):
        value = tiling.boundary
        try:
            fits = np.can_cast(np.min_scalar_type(value), array.dtype, "same_kind")
            np.full((), value, array.dtype)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise BadArgumentError(
                f"{name} is of {array.dtype}, which cannot hold the boundary {brief(value)}"
            )


def _share(one: Field, other: Field) -> bool:
    if not np.may_share_memory(one, other):
        return False
    try:
        return np.shares_memory(one, other, max_work=_MOST_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def least_row_bytes(fields: Sequence[Field], tiling: Tiling) -> int | None:
    """Return how many bytes the rows of tiles have, if they are not those of the field."""
    if tiling.tile[-1] == tiling.shape[-1]:
        return None
    return min(array.itemsize for array in fields) * tiling.tile[-1]
