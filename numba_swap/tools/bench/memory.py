"""Pools of blocks to copy between, and random mappings over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Direction
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import default_driver
from numba_swap.driver.simulated.gpu import SimulatedGPU

GIB = 1 << 30


class _DeviceBlocks:
    """Device memory as a two-dimensional array of bytes."""

    def __init__(self, owner: Any, size: int, nbytes: int) -> None:
        self._owner = owner
        interface = owner.__cuda_array_interface__
        self.__cuda_array_interface__ = {
            **interface,
            "shape": (nbytes // size, size),
            "strides": None,
        }


def as_blocks(array: Any, size: int, nbytes: int) -> Any:
    """Return the first bytes of an array of bytes, of any kind, as blocks of a size."""
    if isinstance(array, np.ndarray):
        return array[: nbytes // size * size].reshape(-1, size)
    return _DeviceBlocks(array, size, nbytes)


def allocator(driver: Driver) -> Any:
    """Return what makes arrays (``pinned_array``, ``device_array``) for a driver."""
    if driver.simulated:
        return SimulatedGPU(driver)
    from numba import cuda

    return cuda


class Pools:
    """One pinned host array and two device arrays, cut into blocks at will.

    Parameters
    ----------
    host_bytes, device_bytes : int
        Size of each.
    seed : int
        Seed of contents and mappings.

    Attributes
    ----------
    host, device, other_device : array of uint8
        The memory. The host's holds random bytes.
    driver : Driver
        The driver that all is measured on.
    stream : int
        A stream of its own.
    """

    def __init__(self, host_bytes: int = GIB, device_bytes: int = 2 * GIB, seed: int = 0) -> None:
        from numba import cuda

        self.driver: Driver = default_driver()
        self.driver.current_context()
        self._rng = np.random.default_rng(seed)
        self.host: npt.NDArray[np.uint8] = cuda.pinned_array(host_bytes, np.uint8)
        self.host[:] = np.frombuffer(self._rng.bytes(host_bytes), dtype=np.uint8)
        self.device: Any = cuda.device_array(device_bytes, np.uint8)
        self.other_device: Any = cuda.device_array(device_bytes, np.uint8)
        self.device[:host_bytes].copy_to_device(self.host)
        self.stream = self.driver.create_stream()
        self._event = self.driver.create_event()

    def blocks(self, direction: Direction, block_bytes: int) -> tuple[Any, Any]:
        """Return source and destination as two-dimensional arrays of blocks."""
        source, destination = {
            Direction.H2D: (self.host, self.device),
            Direction.D2H: (self.device[: self.host.size], self.host),
            Direction.D2D: (self.device, self.other_device),
        }[direction]
        return source.reshape(-1, block_bytes), destination.reshape(-1, block_bytes)

    def mapping(self, source: Any, destination: Any, count: int) -> npt.NDArray[np.int64]:
        """Return a random mapping of `count` rows without neighbouring blocks."""
        columns = [
            2 * self._rng.permutation(array.shape[0] // 2)[:count]
            for array in (source, destination)
        ]
        return np.stack(columns, axis=1)

    def addresses(self, direction: Direction) -> tuple[int, int]:
        """Return where source and destination begin."""
        host = self.host.ctypes.data
        device, other = (
            array.__cuda_array_interface__["data"][0] for array in (self.device, self.other_device)
        )
        return {
            Direction.H2D: (host, device),
            Direction.D2H: (device, host),
            Direction.D2D: (device, other),
        }[direction]

    def copy_contiguous(self, direction: Direction, nbytes: int = GIB) -> None:
        """Copy one contiguous range with one driver call, and wait: the ceiling."""
        src, dst = self.addresses(direction)
        self.driver.memcpy_async(dst, src, nbytes, self.stream)
        self.wait()

    def copy_both_ways(self, other_stream: int) -> None:
        """Copy half a GiB in each direction of the link at once, and wait: the duplex ceiling."""
        half, driver = GIB // 2, self.driver
        host = self.host.ctypes.data
        device = self.device.__cuda_array_interface__["data"][0]
        driver.memcpy_async(device, host, half, self.stream)
        driver.memcpy_async(host + half, device + half, half, other_stream)
        driver.record_event(self._event, other_stream)
        driver.synchronize_event(self._event)
        self.wait()

    def wait(self) -> None:
        """Wait for the stream."""
        self.driver.record_event(self._event, self.stream)
        self.driver.synchronize_event(self._event)
