"""From raw addresses to flat columns of checked copies."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies, check_hazards, drop_identities, merge, no_copies
from numba_swap.copies.mapping import Integers, read_integers
from numba_swap.copies.provenance import PointerOrigin
from numba_swap.device.addresses import allocations_of_addresses, assumed_allocation
from numba_swap.device.memory import Addresses, MemoryKind
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadArgumentError, BadPlanError

Validation = Literal["bounds", "full", "none"]


def plan_pointers(
    driver: Driver, src_ptrs: Any, dst_ptrs: Any, sizes: Any, validate: Validation = "bounds"
) -> Copies:
    """Turn raw addresses into copies, dropping those of no bytes.

    Parameters
    ----------
    driver : Driver
        Asked what kind of memory the addresses are.
    src_ptrs, dst_ptrs, sizes : array_like of int, shape (n,)
        Addresses, and lengths in bytes.
    validate : {"bounds", "full", "none"}
        How much to check.

    Raises
    ------
    BadArgumentError
        If `validate` is none of these.
    BadPlanError
        If lengths differ, a pointer is null, a copy is not inside one allocation, or (asked for)
        copies overlap.
    """
    if not isinstance(validate, str) or validate not in get_args(Validation):
        raise BadArgumentError(f"validate={validate!r}: give 'bounds', 'full' or 'none'")
    src, dst, sizes = (
        read_integers(values, name, 1)
        for values, name in ((src_ptrs, "src_ptrs"), (dst_ptrs, "dst_ptrs"), (sizes, "sizes"))
    )
    if not len(src) == len(dst) == len(sizes):
        raise BadPlanError(
            f"src_ptrs, dst_ptrs and sizes must be equally long, not {len(src)}, {len(dst)} "
            f"and {len(sizes)}"
        )
    chosen = np.flatnonzero(sizes)
    src_column, dst_column, lengths = (c[chosen].astype(np.uint64) for c in (src, dst, sizes))
    if validate == "none":
        if not len(chosen):
            return no_copies()
        return Copies(
            dst_column,
            src_column,
            lengths,
            (assumed_allocation(driver, src_column),),
            (assumed_allocation(driver, dst_column),),
            origin=PointerOrigin(src, dst, sizes, chosen, None),
        )
    _refuse_rows(sizes < 0, sizes, "sizes", "is negative")
    # Addresses above 2**63 do not exist in user space on any platform that CUDA runs on.
    _refuse_rows((src <= 0) & (sizes > 0), src, "src_ptrs", "is not a valid address")
    _refuse_rows((dst <= 0) & (sizes > 0), dst, "dst_ptrs", "is not a valid address")
    sources, src_starts = allocations_of_addresses(
        driver, src_column, lengths, chosen, "src_ptrs", writable=False
    )
    destinations, dst_starts = allocations_of_addresses(
        driver, dst_column, lengths, chosen, "dst_ptrs", writable=True
    )
    columns: tuple[Addresses, Addresses, Addresses | int] = (dst_column, src_column, lengths)
    first = None
    if all(a.kind is not MemoryKind.PAGEABLE for a in sources + destinations):
        # In pageable memory there may be registered parts, which no copy may run over.
        bounds = np.concatenate([src_starts, dst_starts])
        columns, first = merge(dst_column, src_column, lengths, bounds)
    origin = PointerOrigin(src, dst, sizes, chosen, first)
    copies = Copies(*columns, sources, destinations, origin=origin)
    if validate == "full":
        copies = drop_identities(copies)
        check_hazards(copies)
    return copies


def _refuse_rows(wrong: npt.NDArray[np.bool_], values: Integers, name: str, what: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadPlanError(f"{name}[{row}] = {values[row]} {what}", row)
