"""Loops that Numba compiles for the CPU.

The modules are imported when one of their names is first asked for: to import Numba takes a
second, and the first process on a machine takes a few more to compile.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numba_swap.native import (
        box_rows,
        boxes,
        driver_calls,
        pages,
        pairing,
        prepared,
        prepared_boxes,
        rows,
        staging,
        victims,
    )

__all__ = [
    "box_rows",
    "boxes",
    "driver_calls",
    "pages",
    "pairing",
    "prepared",
    "prepared_boxes",
    "rows",
    "staging",
    "victims",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"numba_swap.native.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
