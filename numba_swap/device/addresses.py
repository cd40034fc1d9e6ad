"""What raw addresses are: which allocations they lie in, and that every copy is inside one."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable

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
    know must be mapped memory of this process; of that, parts may be registered, so the driver is
    asked where each copy there begins and ends.

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
    try:
        found = _ask(driver, addresses, sizes, writable=writable)
    except _Trouble as trouble:
        row, start = int(rows[trouble.index]), int(addresses[trouble.index])
        size = int(sizes[trouble.index])
        raise BadPlanError(_tell(trouble, f"{name}[{row}]", start, size, writable), row) from None
    starts = found[:, _START].astype(np.uint64)
    allocations = _one_of_each(found)
    if 1 < len(allocations) < len(found) <= _MOST_LISTED:
        allocations = tuple(map(_first_byte, found))
    return allocations, starts


def allocations_of_runs(
    driver: Driver,
    addresses: Addresses,
    nbytes: int | Addresses,
    allocations: tuple[Allocation, ...],
    describe: Callable[[int], tuple[str, int | None]],
) -> tuple[Allocation, ...]:
    """Find what the runs of an array lie in whose memory is not known as a whole.

    Parameters
    ----------
    driver : Driver
        Whom to ask.
    addresses : ndarray of uint64
        Where each run begins.
    nbytes : int or ndarray of uint64
        Bytes of every run, or of each; not 0.
    allocations : tuple of Allocation
        What is known of the array's memory.
    describe : callable
        Says what a run is, and of which row.

    Returns
    -------
    tuple of Allocation
        As given, and the parts of ordinary memory that turned out to be registered.

    Raises
    ------
    BadPlanError
        If a run is not wholly inside one of these, or one row of chunks; the message names it.
    """
    ordinary = [(a.start, a.stop) for a in allocations if a.kind is MemoryKind.PAGEABLE]
    sizes = np.broadcast_to(np.asarray(nbytes, dtype=np.uint64), addresses.shape).copy()
    try:
        found = _ask(driver, addresses, sizes, ordinary)
    except _Trouble as trouble:
        words, row = describe(trouble.index)
        start = int(addresses[trouble.index])
        size = int(sizes[trouble.index])
        raise BadPlanError(_tell(trouble, words, start, size), row) from None
    if not ordinary:
        return allocations
    registered = found[found[:, 0] != 0]
    return (*allocations, *map(_first_byte, registered))


class _Trouble(Exception):  # noqa: N818 -- not an error yet: whoever asked puts it into words
    """A range of addresses that cannot be copied.

    Attributes
    ----------
    problem : int
        As `native.driver_calls.find_allocations` returns it.
    index : int
        Which range.
    found : ndarray of int64
        The allocations known so far.
    """

    def __init__(self, problem: int, index: int, found: npt.NDArray[np.int64]) -> None:
        super().__init__(problem, index)
        self.problem = problem
        self.index = index
        self.found = found


def _ask(
    driver: Driver,
    addresses: Addresses,
    sizes: Addresses,
    ordinary: list[tuple[int, int]] | None = None,
    *,
    writable: bool = False,
) -> npt.NDArray[np.int64]:
    """Ask the driver what ranges lie in; return the attributes of each allocation.

    Memory that CUDA does not know must lie in one of the `ordinary` ranges, by default those of
    this process; they are among the allocations then, with memory type 0.
    """
    calls = native.driver_calls
    order: npt.NDArray[np.intp] | None = None
    table = np.zeros((len(addresses), len(PointerInfo._fields)), dtype=np.int64)  # mostly untouched
    at = count = 0
    while True:
        problem, at, count = driver.find_allocations(
            addresses, sizes, at, count, table, order is not None
        )
        if problem == 0:
            return table[:count]
        if problem == calls.MANY:
            order = np.argsort(addresses, kind="stable")
            addresses, sizes = addresses[order], sizes[order]
            at = count = 0
            continue
        if problem == calls.UNKNOWN:
            if ordinary is None:
                ordinary = _mapped_ranges(writable=writable)
            start, stop = _range_around(ordinary, int(addresses[at]))
            if start < stop:
                table[count] = 0
                table[count, _START:] = start, stop - start
                count += 1
                continue
        raise _Trouble(problem, at if order is None else int(order[at]), table[:count])


def _tell(trouble: _Trouble, what: str, start: int, nbytes: int, writable: bool = False) -> str:
    """Say what is wrong with a range of addresses."""
    calls, problem = native.driver_calls, trouble.problem
    if problem == calls.UNCLEAR:
        return f"the driver does not tell which allocation holds {what} = {start:#x}"
    if problem == calls.UNKNOWN:
        rights = "writable" if writable else "readable"
        return f"{what} = {start:#x} is no CUDA memory and no {rights} memory of this process"
    if problem == calls.PARTLY:
        return (
            f"{what} = {start:#x} with {nbytes} bytes begins in ordinary memory and ends in memory "
            "that is registered (pinned) with CUDA, and no copy may do both: register all or none"
        )
    holding = [a for a in map(_first_byte, trouble.found) if a.start <= start < a.stop]
    # Of a part that is registered and the ordinary memory around it, the part.
    allocation = next((a for a in holding if a.kind is not MemoryKind.PAGEABLE), holding[0])
    return (
        f"{what} = {start:#x} with {nbytes} bytes runs past its {allocation.kind} allocation, "
        f"which ends at {allocation.stop:#x}"
    )


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
