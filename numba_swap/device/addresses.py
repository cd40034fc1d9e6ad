"""What raw addresses are: which allocations they lie in, and that every copy is inside one."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from numba_swap import native
from numba_swap.device.memory import (
    Addresses,
    Allocation,
    MemoryKind,
    describe_allocation,
    find_allocation,
)
from numba_swap.driver.calls import Driver, PointerInfo
from numba_swap.errors import BadPlanError


def assumed_allocation(driver: Driver, addresses: Addresses) -> Allocation:
    """Return what the first address lies in, as if all lay there: nothing is checked."""
    first = int(addresses[0])
    known = find_allocation(driver, first)
    return known or Allocation(first, int(addresses.max()) + 1, MemoryKind.PAGEABLE, None, None)


def allocations_of_addresses(
    driver: Driver,
    addresses: Addresses,
    sizes: Addresses,
    rows: npt.NDArray[np.int64],
    name: str,
    *,
    writable: bool,
) -> tuple[tuple[Allocation, ...], Addresses]:
    """Find every allocation that raw addresses lie in, and check that each copy is inside one.

    The driver is asked once an allocation, not once an address. An address that CUDA does not
    know must be mapped memory of this process.

    Parameters
    ----------
    driver : Driver
        Whom to ask.
    addresses, sizes : ndarray of uint64
        Where each copy begins at this side, and its length, which is not 0.
    rows : ndarray of int64
        Index of each in the user's input.
    name : str
        What the user calls it.
    writable : bool
        Whether the copies write here.

    Returns
    -------
    allocations : tuple of Allocation
        One of each kind, device and offset; all of them, if they are of several sorts and few.
    starts : ndarray of uint64
        Where each allocation begins.

    Raises
    ------
    BadPlanError
        If a copy is not wholly inside one allocation; the message names it.
    """
    calls = native.driver_calls
    order: npt.NDArray[np.intp] | None = None
    table = np.zeros((len(addresses), len(PointerInfo._fields)), dtype=np.int64)  # mostly untouched
    mapped: list[tuple[int, int]] | None = None
    at = count = 0
    while True:
        problem, at, count = driver.find_allocations(
            addresses, sizes, at, count, table, order is not None
        )
        if problem == 0:
            break
        if problem == calls.MANY:
            order = np.argsort(addresses, kind="stable")
            addresses, sizes, rows = addresses[order], sizes[order], rows[order]
            at = count = 0
            continue
        row, start = int(rows[at]), int(addresses[at])
        if problem == calls.BEYOND:
            size = int(sizes[at])
            allocation = next(
                a for a in map(_first_byte, table[count - 1 :: -1]) if a.start <= start < a.stop
            )
            raise BadPlanError(
                f"{name}[{row}] = {start:#x} with {size} bytes runs past its {allocation.kind} "
                f"allocation, which ends at {allocation.stop:#x}",
                row,
            )
        if problem == calls.UNCLEAR:
            raise BadPlanError(
                f"the driver does not tell which allocation holds {name}[{row}] = {start:#x}", row
            )
        if mapped is None:
            mapped = _mapped_ranges(writable=writable)
        range_start, range_stop = _range_around(mapped, start)
        if start >= range_stop:
            raise BadPlanError(
                f"{name}[{row}] = {start:#x} is no CUDA memory and no "
                f"{'writable' if writable else 'readable'} memory of this process",
                row,
            )
        # It stands in the table from now on: memory type 0 is pageable memory.
        table[count, _START:] = range_start, range_stop - range_start
        count += 1
    found = table[:count]
    starts = found[:, _START].astype(np.uint64)
    allocations = _one_of_each(found)
    if 1 < len(allocations) < count <= _MOST_LISTED:
        allocations = tuple(map(_first_byte, found))
    return allocations, starts


# Where sorts are mixed, the directions may run side by side, which needs to know which copy lies
# where; beyond so many allocations it would take longer than it saves.
_MOST_LISTED = 1024
_START = PointerInfo._fields.index("start")


def _one_of_each(found: npt.NDArray[np.int64]) -> tuple[Allocation, ...]:
    """Return the first allocation of each kind, device and offset."""
    # Many allocations, in the order of addresses, seldom change their sort from one to the next.
    sort = found[:, :_START].copy()
    sort[:, -1] = np.where(sort[:, -1] != 0, sort[:, -1] - found[:, _START], -1)
    changes = np.ones(len(found), dtype=bool)
    changes[1:] = (sort[1:] != sort[:-1]).any(axis=1)
    firsts: dict[tuple[int, ...], Allocation] = {}
    for i in np.flatnonzero(changes):
        firsts.setdefault(tuple(sort[i].tolist()), _first_byte(found[i]))
    return tuple(firsts.values())


def _first_byte(attributes: npt.NDArray[np.int64]) -> Allocation:
    """Put into words what is known of the beginning of an allocation."""
    info = PointerInfo._make(attributes.tolist())
    if info.memory_type == 0:
        stop = info.start + info.nbytes
        return Allocation(info.start, stop, MemoryKind.PAGEABLE, None, None)
    return describe_allocation(info, info.start)


def _mapped_ranges(*, writable: bool) -> list[tuple[int, int]]:
    """Address ranges of this process that may be read (and written).

    Empty where the system does not list them (anything but Linux): addresses that CUDA does not
    know are then refused.
    """
    if not sys.platform.startswith("linux"):
        return []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        return _read_ranges(lines, writable=writable)


def _read_ranges(lines: Iterable[str], *, writable: bool) -> list[tuple[int, int]]:
    """Read a list of mappings; neighbours are joined, but for those of different shared files."""
    ranges: list[tuple[int, int]] = []
    last_file = None
    for line in lines:
        span, rights, _, _, _, *rest = line.split(maxsplit=5)
        path = rest[0].rstrip("\n") if rest else ""
        # Memory of a driver ("/dev/nvidiactl") or of the kernel ("[vvar]") is not for copies.
        if not rights.startswith("rw" if writable else "r") or path.startswith(_NOT_ORDINARY):
            continue
        start, stop = (int(bound, 16) for bound in span.split("-"))
        file = path if rights[3] == "s" else ""
        if ranges and ranges[-1][1] == start and file == last_file:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
        last_file = file
    return ranges


_NOT_ORDINARY = ("/dev/nvidia", "[v")


def _range_around(mapped: list[tuple[int, int]], address: int) -> tuple[int, int]:
    """Return the mapped range that holds an address; an empty one if none does."""
    index = bisect_right(mapped, address, key=lambda span: span[0]) - 1
    if index >= 0 and address < mapped[index][1]:
        return mapped[index]
    return address, address
