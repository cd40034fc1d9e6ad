"""Pinned and device memory for descriptors, used again instead of made anew."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.errors import DriverCallError

_SMALLEST_BUFFER_BYTES = 1 << 12
# Codes of a driver that finds nothing to pin, or may not: no memory, a limit of the system.
_NONE_LEFT = (abi.ERROR_OUT_OF_MEMORY, abi.ERROR_OPERATING_SYSTEM)
# To ask in vain takes a driver 0.2 ms and more (H100, driver 580): not at every swap.
_ASK_AGAIN_AFTER_S = 1.0
_log = logging.getLogger("numba_swap")

Words: TypeAlias = npt.NDArray[np.uint64]


class PinnedBuffer:
    """Pinned host memory for descriptors, as 64-bit words; goes back when it is dropped.

    So whoever reads it, on the GPU too, must hold it until then.

    Attributes
    ----------
    address : int
        The same for host and device.
    words : ndarray of uint64
        The memory; its length is a power of two. Not to be kept longer than the buffer.
    """

    __slots__ = ("_free_list", "address", "words")

    def __init__(self, address: int, words: Words, free_list: list[tuple[int, Words]]) -> None:
        self.address = address
        self.words = words
        self._free_list = free_list

    def __del__(self) -> None:
        self._free_list.append((self.address, self.words))


def buffer_size(nbytes: int) -> int:
    """Return the size of the buffers that serve for so many bytes: a power of two."""
    return max(_SMALLEST_BUFFER_BYTES, 1 << (nbytes - 1).bit_length())


class DeviceBuffer:
    """Device memory for descriptors; goes back when it is dropped, as `PinnedBuffer` does.

    Attributes
    ----------
    address : int
        Where it lies on the device.
    """

    __slots__ = ("_free_list", "address")

    def __init__(self, address: int, free_list: list[int]) -> None:
        self.address = address
        self._free_list = free_list

    def __del__(self) -> None:
        self._free_list.append(self.address)


class BufferList:
    """The pinned buffers of one size that are not in use.

    Parameters
    ----------
    size : int
        Bytes of each.
    """

    __slots__ = ("_free_list", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        # No locks: single operations of lists and dictionaries are atomic, with a GIL or without.
        self._free_list: list[tuple[int, Words]] = []

    def take_spare(self) -> PinnedBuffer | None:
        """Take a buffer if there is one to spare, whatever context is current."""
        try:
            return PinnedBuffer(*self._free_list.pop(), self._free_list)
        except IndexError:
            return None

    def take_at(self, address: int) -> PinnedBuffer:
        """Take new memory at an address, which comes here when it is no longer used."""
        memory = (ctypes.c_uint64 * (self.size // 8)).from_address(address)
        return PinnedBuffer(address, np.ctypeslib.as_array(memory), self._free_list)


class HostBuffers:
    """Pinned buffers, which every context can use. Safe to use from several threads.

    Nothing here is ever given back to the driver: the amount is that of the busiest moment.

    Parameters
    ----------
    allocate : callable
        Returns the address of so many bytes of new pinned memory, for a device if that is known.
    """

    def __init__(self, allocate: Callable[[int, int | None], int]) -> None:
        self._allocate = allocate
        self._lists: dict[int, BufferList] = {}
        self._shortage: Shortage | None = None
        self._told = False

    def of_size(self, nbytes: int) -> BufferList:
        """Return the buffers of at least `nbytes`, which must not be 0."""
        size = buffer_size(nbytes)
        return self._lists.get(size) or self._lists.setdefault(size, BufferList(size))

    def take(self, nbytes: int, device: int | None = None) -> PinnedBuffer:
        """Take a pinned buffer of at least `nbytes`, which must not be 0.

        Parameters
        ----------
        nbytes : int
            How many bytes.
        device : int, optional
            The GPU that will use it: its context serves where the calling thread has none.
        """
        buffers = self.of_size(nbytes)
        try:
            return buffers.take_spare() or buffers.take_at(self._allocate(buffers.size, device))
        except DriverCallError as error:
            larger = self._take_larger(buffers.size) if error.code in _NONE_LEFT else None
            if larger is None:
                raise
            return larger

    def _take_larger(self, size: int) -> PinnedBuffer | None:
        """Take a spare buffer of this size or more; for when no new ones are to be had."""
        sizes = sorted(known for known in self._lists if known >= size)
        return next(filter(None, (self._lists[known].take_spare() for known in sizes)), None)

    def find(self, nbytes: int, device: int | None = None) -> PinnedBuffer | None:
        """Do what `take` does, or return None if no pinned memory is left.

        A driver that had none is asked again after a while only.
        """
        size, shortage = buffer_size(nbytes), self._shortage
        if shortage is not None and size >= shortage.size:
            if time.monotonic() < shortage.ask_again_at:
                return self._take_larger(size)
            self._shortage = None
        try:
            return self.take(nbytes, device)
        except DriverCallError as error:
            if error.function != "cuMemHostAlloc" or error.code not in _NONE_LEFT:
                raise
            self._shortage = Shortage(size, time.monotonic() + _ASK_AGAIN_AFTER_S)
            if not self._told:
                self._told = True
                _log.warning("no pinned memory is left for the kernel's tables: %s", error)
            return None


class Shortage(NamedTuple):
    """That no pinned memory was left.

    Attributes
    ----------
    size : int
        For a buffer of so many bytes.
    ask_again_at : float
        When the driver may be asked again, by `time.monotonic`.
    """

    size: int
    ask_again_at: float
