"""What an address is: kinds of memory, and the allocations that the driver knows."""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver, PointerInfo
from numba_swap.errors import BadPlanError

Addresses = npt.NDArray[np.uint64]


class MemoryKind(enum.StrEnum):
    """Kinds of memory that differ in who can reach them and how fast.

    Attributes
    ----------
    DEVICE
        Memory of one GPU.
    PINNED
        Page-locked host memory, allocated or registered with CUDA: the GPU can read it in place.
    MANAGED
        Memory that migrates between host and GPU.
    PAGEABLE
        Ordinary host memory; copies of it are staged by the driver.
    """

    DEVICE = "device"
    PINNED = "pinned"
    MANAGED = "managed"
    PAGEABLE = "pageable"


class Allocation(NamedTuple):
    """A range of addresses of one kind.

    Attributes
    ----------
    start, stop : int
        First address, and the one after the last.
    kind : MemoryKind
        What it is.
    device : int or None
        The GPU it belongs to; None for pageable memory.
    device_offset : int or None
        What to add to an address to get the one by which a kernel reaches it; None if none can.
    """

    start: int
    stop: int
    kind: MemoryKind
    device: int | None
    device_offset: int | None


def find_allocation(driver: Driver, address: int) -> Allocation | None:
    """Ask the driver what an address is; None if CUDA does not know it."""
    info = driver.pointer_info(address)
    if info.memory_type == 0:
        return None
    if not info.start <= address < info.start + info.nbytes:
        raise BadPlanError(f"the driver does not tell which allocation holds {address:#x}")
    return describe_allocation(info, address)


def describe_allocation(info: PointerInfo, address: int) -> Allocation:
    """Put into words what the driver told of an address that it knows."""
    if info.managed:
        kind = MemoryKind.MANAGED
    elif info.memory_type == abi.MEMORYTYPE_DEVICE:
        kind = MemoryKind.DEVICE
    else:
        kind = MemoryKind.PINNED
    offset = info.device_address - address if info.device_address else None
    if kind is MemoryKind.DEVICE:
        # Its address is the same everywhere. The driver tells of none where the context that asks
        # is another GPU's, without access to this one: that is for whoever wants to run there.
        offset = 0
    return Allocation(info.start, info.start + info.nbytes, kind, info.device, offset)


def allocations_of_range(
    driver: Driver, start: int, stop: int, name: str
) -> tuple[Allocation, ...]:
    """Every allocation that an array's range of addresses touches, in order.

    One for almost every array; host memory registered in pieces has several. Of device memory in
    chunks, the first and the last stand for all, and of ordinary memory nothing is known but where
    it begins: see `known_as_a_whole`.

    Raises
    ------
    BadPlanError
        If the array runs past the end of a CUDA allocation into memory that CUDA does not know, or
        into another allocation of device memory.
    """
    first = find_allocation(driver, start)
    if first is None:
        return (Allocation(start, stop, MemoryKind.PAGEABLE, None, None),)
    if stop <= first.stop:
        return (first,)
    if first.kind is MemoryKind.DEVICE:
        return first, _last_chunk(driver, first, start, stop, name)
    found = [first]
    while found[-1].stop < stop:
        allocation = find_allocation(driver, found[-1].stop)
        if allocation is None:
            raise BadPlanError(
                f"{name} spans {start:#x} to {stop:#x}, but the CUDA allocation that holds its "
                f"beginning ends at {found[-1].stop:#x}: pin (register) all of it or none"
            )
        found.append(allocation)
    return tuple(found)


def _last_chunk(driver: Driver, first: Allocation, start: int, stop: int, name: str) -> Allocation:
    """Return the chunk in which an array in chunks of device memory ends."""
    last = find_allocation(driver, stop - 1) if driver.is_chunk(start) else None
    if last is None or last.device != first.device or not driver.is_chunk(stop - 1):
        raise BadPlanError(
            f"{name} spans {start:#x} to {stop:#x}, but the device memory that holds its beginning "
            f"ends at {first.stop:#x}: it says that it is longer than its memory"
        )
    return last


def known_as_a_whole(allocations: tuple[Allocation, ...]) -> bool:
    """Whether the driver has told of all of an array's memory.

    Otherwise it is to be asked about what is copied: parts of ordinary memory may be registered
    with CUDA, and device memory in chunks may have gaps.
    """
    if not allocations:
        return True
    kind = allocations[0].kind
    return kind is not MemoryKind.PAGEABLE and (
        len(allocations) == 1 or kind is not MemoryKind.DEVICE
    )
