"""From raw addresses to flat columns of checked copies."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies, merge, no_copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.hazards import check_hazards
from numba_swap.copies.inputs.mapping import Integers, read_integers
from numba_swap.copies.provenance import Merged, PointerRows
from numba_swap.device.addresses import allocations_of_addresses, assumed_allocation
from numba_swap.device.devices import devices_of
from numba_swap.device.memory import Addresses, MemoryKind
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadArgumentError, BadPlanError, brief

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
        raise BadArgumentError(f"validate={brief(validate)}: give 'bounds', 'full' or 'none'")
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
    origin = PointerRows(src, dst, sizes, chosen)
    if validate != "none":
        _refuse_rows(sizes < 0, sizes, "sizes", "is negative")
        # Addresses above 2**63 do not exist in user space on any platform that CUDA runs on.
        _refuse_rows((src <= 0) & (sizes > 0), src, "src_ptrs", "is not a valid address")
        _refuse_rows((dst <= 0) & (sizes > 0), dst, "dst_ptrs", "is not a valid address")
    if not len(chosen):
        return no_copies()
    columns = dst_column, src_column, lengths
    with devices_of(driver).asking_about([int(src_column[0]), int(dst_column[0])]):
        if validate == "none":
            ends = Ends.of(
                (assumed_allocation(driver, src_column),), (assumed_allocation(driver, dst_column),)
            )
            return Copies(*columns, ends, origin)
        copies = _plan_checked(driver, columns, origin)
    if validate == "full":
        copies = copies.without_identities()
        check_hazards(copies)
    return copies


def _plan_checked(
    driver: Driver, columns: tuple[Addresses, Addresses, Addresses], origin: PointerRows
) -> Copies:
    """Check that every copy lies in one allocation at both ends, and merge neighbours."""
    dst, src, sizes = columns
    sources, src_starts = allocations_of_addresses(
        driver, src, sizes, origin.chosen, "src_ptrs", writable=False
    )
    destinations, dst_starts = allocations_of_addresses(
        driver, dst, sizes, origin.chosen, "dst_ptrs", writable=True
    )
    ends = Ends.of(sources, destinations)
    if any(a.kind is MemoryKind.PAGEABLE for a in ends.allocations):
        # In pageable memory there may be registered parts, which no copy may run over.
        return Copies(*columns, ends, origin)
    merged, first = merge(dst, src, sizes, np.concatenate([src_starts, dst_starts]))
    if first is None:
        return Copies(*columns, ends, origin)
    return Copies(*merged, ends, Merged(origin, first, sizes, len(sizes)))


def _refuse_rows(wrong: npt.NDArray[np.bool_], values: Integers, name: str, what: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadPlanError(f"{name}[{row}] = {values[row]} {what}", row)
