"""Reading block ids, addresses and sizes, in whatever form a user gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.errors import BadPlanError, UnsupportedArrayError, brief, say

Integers = npt.NDArray[np.int64]

_MAPPING_DIMENSIONS = 2
_SHAPES = {
    1: "be a sequence of integers",
    _MAPPING_DIMENSIONS: "have rows [source block, destination block], shape (n, 2)",
}


def read_integers(values: Any, name: str, dimensions: int, must: str = "") -> Integers:
    """Read a host sequence of integers as int64; values that do not fit are refused.

    Parameters
    ----------
    values : array_like of int
        What the user gave.
    name : str
        What the user calls it.
    dimensions : {1, 2}
        1 for a column, 2 for rows of block ids.
    must : str, optional
        What to call rows of something else, for messages.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If they are no integers, not so many dimensions, or not in host memory.
    """
    if (
        type(values) is np.ndarray
        and values.dtype == np.int64
        and values.ndim == dimensions
        and values.size
        and values.flags.carray  # compiled functions take no read-only arrays
    ):
        return values
    if _is_on_device(values):
        raise UnsupportedArrayError(
            f"{name} lies on a device; give it in host memory (the order of arguments is source, "
            f"destination, {name})"
            if dimensions == _MAPPING_DIMENSIONS and not must
            else f"{name} lies on a device; give it in host memory"
        )
    try:
        array = np.asarray(values)
    except MemoryError:
        raise
    except Exception as error:  # whatever its own conversion raises
        raise BadPlanError(f"{name} is no array of integers: {say(error)}") from None
    if array.shape in ((0,), (0, 2)[:dimensions]):
        return np.zeros((0, 2)[:dimensions], dtype=np.int64)
    if array.ndim != dimensions or not (array.size or must):
        must = must or _SHAPES[dimensions]
        raise BadPlanError(f"{name} must {must}, not {_what(values, array)}")
    if array.dtype.kind not in "iu" and array.size:  # an empty list has no type of its own
        raise BadPlanError(
            f"{name} must hold integers below 2**63, not {str(array.dtype)[:60]} "
            f"({brief(array.item(0))} for example): convert it with .astype(np.int64)"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        too_large = np.flatnonzero(array.ravel() > np.uint64(np.iinfo(np.int64).max))
        if too_large.size:
            row = int(too_large[0]) // (array.shape[1] if dimensions == 2 else 1)
            raise BadPlanError(f"{name} holds {array.ravel()[too_large[0]]}, beyond 2**63", row)
    return np.require(array, dtype=np.int64, requirements=["C", "A", "W"])


def _is_on_device(values: Any) -> bool:
    try:
        return hasattr(values, "__cuda_array_interface__")
    except Exception:  # as JAX does, of arrays in host memory: their values tell
        return False


def _what(values: Any, array: npt.NDArray[Any]) -> str:
    return f"the shape {array.shape}" if array.ndim else f"a {type(values).__name__}"


def read_rows(values: Any, name: str, columns: int) -> Integers:
    """Read rows of so many integers as int64, as `read_integers` reads block ids.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If they are no integers, not such rows, or not in host memory.
    """
    listed = isinstance(values, (list, tuple)) and not values
    if listed or getattr(values, "shape", None) == (0,):
        return np.zeros((0, columns), dtype=np.int64)
    must = f"have rows of {columns} integers, one for each axis of the array"
    rows = read_integers(values, name, _MAPPING_DIMENSIONS, must)
    if rows.shape[1] != columns:
        raise BadPlanError(f"{name} must {must}, not the shape {rows.shape}")
    return rows
