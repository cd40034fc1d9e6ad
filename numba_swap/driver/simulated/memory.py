"""The memory that a simulated driver knows: who owns an address, and whether it still does.

All of it is host memory. What a copy may touch is decided when it is submitted; whether the
memory is still there is asked again when the copy is done, as much later as the streams allow.
"""

from __future__ import annotations

import ctypes
import enum
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from ctypes import c_int, c_uint, c_uint64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi

_ALIGNMENT = 256
_FRESH, _FREED = 0xCD, 0xDB
_ALREADY_REGISTERED, _NOT_REGISTERED = 712, 713
# Freed memory is kept this long, in bytes, so that late accesses are noticed instead of crashing.
_QUARANTINE_BYTES = 64 << 20


class SimulatedFailure(Exception):  # noqa: N818 -- a return code on its way out, not an error
    """A ``CUresult`` other than success, on its way to the C caller."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Kind(enum.Enum):
    """How memory came to be known to the driver."""

    DEVICE = "device"
    PINNED = "pinned"
    MANAGED = "managed"
    REGISTERED = "registered"


@dataclass(eq=False, slots=True)
class Allocation:
    """A range of addresses; `buffer` keeps its memory mapped as long as anything refers to it.

    The GPU reaches it at `device_offset` from its own address, which only matters where that is 0:
    nobody is to let a kernel or a batch loose on the rest. Device memory that is not `whole` is a
    chunk mapped into reserved addresses: copies may run on into the next one.
    """

    start: int
    nbytes: int
    kind: Kind
    device: int
    buffer: npt.NDArray[np.uint8]
    alive: bool = True
    device_offset: int = 0
    whole: bool = False


class Memory:
    """All allocations of one simulated driver, by address. Not thread-safe by itself.

    Attributes
    ----------
    pinned_limit : int or None
        How many bytes may be pinned, allocated and registered ones together.
    pageable_access : bool
        Whether kernels reach memory that is not known here, as on HMM and ATS machines.
    reached : set of int or None
        The devices whose memory the kernel that runs just now reaches; None if none runs.
    device_limit : int or None
        How many bytes of device memory there are, on all devices together.
    """

    def __init__(self) -> None:
        self.pinned_limit: int | None = None
        self.pageable_access = False
        self.reached: set[int] | None = None
        self.device_limit: int | None = None
        self._starts: list[int] = []
        self._allocations: list[Allocation] = []
        self._quarantine: deque[Allocation] = deque()
        self._quarantined_bytes = 0

    def allocate(self, nbytes: int, kind: Kind, device: int) -> Allocation:
        """Allocate memory of one kind, filled with a pattern, at a multiple of 256."""
        if kind is Kind.PINNED:
            self._check_limit(nbytes)
        free = self.free_device_bytes()
        if kind is Kind.DEVICE and free is not None and nbytes > free:
            raise SimulatedFailure(abi.ERROR_OUT_OF_MEMORY)
        buffer = self._fresh(nbytes)
        allocation = Allocation(buffer.ctypes.data, nbytes, kind, device, buffer, whole=True)
        return self._insert(allocation)

    def map_chunks(self, nbytes: int, chunk_bytes: int, device: int) -> list[Allocation]:
        """Map chunks of device memory side by side; each is told of, and freed, by itself."""
        buffer = self._fresh(nbytes)
        parts = [buffer[i : i + chunk_bytes] for i in range(0, nbytes, chunk_bytes)]
        return [
            self._insert(Allocation(part.ctypes.data, part.nbytes, Kind.DEVICE, device, part))
            for part in parts
        ]

    @staticmethod
    def _fresh(nbytes: int) -> npt.NDArray[np.uint8]:
        if nbytes == 0:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        try:
            whole = np.empty(nbytes + _ALIGNMENT, dtype=np.uint8)
        except MemoryError:
            raise SimulatedFailure(abi.ERROR_OUT_OF_MEMORY) from None
        offset = -whole.ctypes.data % _ALIGNMENT
        buffer = whole[offset : offset + nbytes]
        # Otherwise recycled memory may by chance hold the very bytes that a test expects.
        buffer[:] = _FRESH
        return buffer

    def _check_limit(self, nbytes: int) -> None:
        """Refuse to pin more than there is to pin."""
        if self.pinned_limit is None:
            return
        kinds = (Kind.PINNED, Kind.REGISTERED)
        pinned = sum(a.nbytes for a in self._allocations if a.alive and a.kind in kinds)
        if pinned + nbytes > self.pinned_limit:
            raise SimulatedFailure(abi.ERROR_OUT_OF_MEMORY)

    def free_device_bytes(self) -> int | None:
        """How much device memory is left; None if there is no limit."""
        if self.device_limit is None:
            return None
        used = (a.nbytes for a in self._allocations if a.alive and a.kind is Kind.DEVICE)
        return self.device_limit - sum(used)

    def register(
        self, buffer: npt.NDArray[np.uint8], device: int, device_offset: int = 0
    ) -> Allocation:
        """Register host memory that belongs to someone else; it is kept alive meanwhile."""
        start = buffer.ctypes.data
        # Any allocation that starts before the end of the range and ends after its start.
        before = bisect_left(self._starts, start + buffer.nbytes) - 1
        if before >= 0:
            last = self._allocations[before]
            if last.start + last.nbytes > start:
                raise SimulatedFailure(_ALREADY_REGISTERED)
        self._check_limit(buffer.nbytes)
        allocation = Allocation(start, buffer.nbytes, Kind.REGISTERED, device, buffer)
        allocation.device_offset = device_offset
        return self._insert(allocation)

    def free(self, start: int, *kinds: Kind) -> None:
        """Free the allocation of one of these kinds that starts at an address, at once.

        Work that is still to be done on it is not waited for (real drivers mostly do wait, but do
        not promise it): it will find the memory gone.
        """
        allocation = self.find(start)
        if (
            allocation is None
            or not allocation.alive
            or allocation.start != start
            or allocation.kind not in kinds
        ):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        allocation.alive = False
        allocation.buffer[:] = _FREED
        self._quarantine.append(allocation)
        self._quarantined_bytes += allocation.nbytes
        while self._quarantined_bytes > _QUARANTINE_BYTES:
            oldest = self._quarantine.popleft()
            self._quarantined_bytes -= oldest.nbytes
            self._remove(oldest)

    def device_bytes(self, device: int) -> int:
        """Bytes of device memory that are allocated on a device."""
        return sum(
            a.nbytes
            for a in self._allocations
            if a.alive and a.kind is Kind.DEVICE and a.device == device
        )

    def living(self) -> Counter[str]:
        """Count what was allocated or registered and not freed, by kind."""
        return Counter(a.kind.value for a in self._allocations if a.alive)

    def unregister(self, start: int) -> None:
        """Forget registered memory; its owner keeps it."""
        allocation = self.find(start)
        if allocation is None or (allocation.start, allocation.kind) != (start, Kind.REGISTERED):
            raise SimulatedFailure(_NOT_REGISTERED)
        allocation.alive = False
        self._remove(allocation)

    def find(self, address: int) -> Allocation | None:
        """Return the allocation, living or freed, that holds an address."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        allocation = self._allocations[index]
        return allocation if address - allocation.start < allocation.nbytes else None

    def find_span(self, address: int, nbytes: int) -> tuple[Allocation, ...]:
        """Return the allocations of a range that is to be copied; none for pageable memory.

        Where it begins decides (seen with driver 580). An address unknown here counts as pageable
        host memory, whatever the range runs into: if it is no memory at all, the copy kills the
        process, here as there. One that is known must be so to its end, in one allocation, or in
        several chunks.
        """
        if not address:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        found: list[Allocation] = []
        stop = address
        while not found or stop < address + nbytes:
            allocation = self.find(stop)
            if allocation is None and not found:
                return ()
            if allocation is None or not allocation.alive:
                raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
            found.append(allocation)
            stop = allocation.start + allocation.nbytes
        if len(found) > 1 and not all(map(_is_chunk, found)):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        return tuple(found)

    def check_chunk(self, address: int) -> None:
        """Fail unless an address lies in a chunk of device memory."""
        allocation = self.find(address)
        if allocation is None or not (allocation.alive and _is_chunk(allocation)):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)

    def check_kernel_access(self, address: int, nbytes: int) -> None:
        """Let a simulated kernel fail as a real one does if it must not touch these bytes."""
        try:
            found = self.find_span(address, nbytes)
        except SimulatedFailure:
            found = ()
        if not found and self.pageable_access:
            return
        outside = self.reached is not None and not all(is_reached(a, self.reached) for a in found)
        if not found or found[0].device_offset or outside:
            raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS)

    def _insert(self, allocation: Allocation) -> Allocation:
        index = bisect_left(self._starts, allocation.start)
        self._starts.insert(index, allocation.start)
        self._allocations.insert(index, allocation)
        return allocation

    def _remove(self, allocation: Allocation) -> None:
        index = bisect_left(self._starts, allocation.start)
        del self._starts[index], self._allocations[index]


def _is_chunk(allocation: Allocation) -> bool:
    return allocation.kind is Kind.DEVICE and not allocation.whole


def is_reached(allocation: Allocation | None, reached: set[int] | None) -> bool:
    """Whether kernels reach memory, that of these devices and of the host; None for no context."""
    if reached is None:
        return False
    return allocation is None or allocation.kind is not Kind.DEVICE or allocation.device in reached


def pointer_attributes(address: int, allocation: Allocation | None) -> dict[int, Any]:
    """Return the value of each ``CUpointer_attribute``, in its own C type; zero if unknown."""
    on_host = allocation and allocation.kind in (Kind.PINNED, Kind.REGISTERED)
    memory_type = abi.MEMORYTYPE_HOST if on_host else abi.MEMORYTYPE_DEVICE
    managed = allocation is not None and allocation.kind is Kind.MANAGED
    return {
        abi.POINTER_MEMORY_TYPE: c_uint(memory_type if allocation else 0),
        abi.POINTER_DEVICE_POINTER: c_uint64(
            address + allocation.device_offset if allocation else 0
        ),
        # A boolean: nobody may count on more than its first byte.
        abi.POINTER_IS_MANAGED: ctypes.c_bool(managed),
        abi.POINTER_DEVICE_ORDINAL: c_int(allocation.device if allocation else 0),
        abi.POINTER_RANGE_START: c_uint64(allocation.start if allocation else 0),
        abi.POINTER_RANGE_SIZE: c_uint64(allocation.nbytes if allocation else 0),
    }


class Copies:
    """The copies of one submission; called when their turn comes.

    Parameters
    ----------
    memory : Memory
        What they touch.
    translated : bool, optional
        Whether addresses become those that the GPU has for the memory. `cuMemcpyAsync` does so,
        batches do not: registered memory with another address there is an illegal access.
    """

    def __init__(self, memory: Memory, *, translated: bool = True) -> None:
        self._memory = memory
        self._translated = translated
        self._copies: list[tuple[tuple[Allocation, ...], int, int | bytes, int]] = []
        self.pageable = False

    def add(self, dst: int, src: int, nbytes: int, read_now: bool = False) -> None:
        """Check one copy and note it; with `read_now` the source is read before the call ends."""
        to, origin = self._memory.find_span(dst, nbytes), self._memory.find_span(src, nbytes)
        self.pageable |= not (to and origin)
        source = ctypes.string_at(src, nbytes) if read_now else src
        self._copies.append((to + origin, dst, source, nbytes))

    def __call__(self) -> None:
        """Do them, unless some of the memory is gone by now."""
        # No order is promised within a batch: the last one first, so that nobody relies on one.
        for touched, dst, source, nbytes in reversed(self._copies):
            if not all(a.alive and (self._translated or not a.device_offset) for a in touched):
                raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS)
            ctypes.memmove(dst, source, nbytes)
