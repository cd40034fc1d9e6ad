"""One interface over a real and a simulated GPU: memory, a stream, events with time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import default_driver
from numba_swap.driver.simulated.gpu import SimulatedDeviceArray, SimulatedGPU, simulate
from numba_swap.errors import DriverCallError, DriverUnavailableError
from numba_swap.paging.tiles.arrays import free_bytes

Bytes = npt.NDArray[np.uint8]
_PAGE_BYTES = 4096


class Timer(Protocol):
    """Time on the GPU between two points of a stream."""

    def start(self, stream: int) -> None:
        """Mark the first point."""

    def stop(self, stream: int) -> None:
        """Mark the second point."""

    def elapsed_ns(self) -> int:
        """Wait for the second point; return the time between the two."""


class BenchGPU:
    """What measuring needs of a GPU.

    Parameters
    ----------
    driver : Driver
        The driver.
    arrays : SimulatedGPU, optional
        What makes arrays; by default Numba.
    peer : int, optional
        Another GPU, for copies between the two.

    Attributes
    ----------
    driver : Driver
        The driver.
    simulated : bool
        Whether there is no GPU, and no time means anything.
    stream : int
        A stream to copy in, not ordered with the default one.
    timer : Timer or None
        None where it is simulated.
    device : int
        The GPU, which is that of the calling thread's context.
    peer : int or None
        As given.
    """

    def __init__(
        self, driver: Driver, arrays: SimulatedGPU | None = None, peer: int | None = None
    ) -> None:
        self.driver = driver
        driver.current_context()
        self.device, self.peer = driver.current_device(), peer
        self.simulated = arrays is not None
        self.stream = driver.create_stream()
        self.timer: Timer | None = _EventTimer(driver) if arrays is None else None
        self._event = driver.create_event()
        self._arrays = _numba_cuda() if arrays is None else arrays
        self._closing = contextlib.ExitStack()

    def host_bytes(self, kind: str, nbytes: int) -> Bytes:
        """Allocate host memory: ``"pinned"``, ``"managed"``, ``"pageable"``, ``"registered"``."""
        if kind in ("pinned", "managed"):
            make = getattr(self._arrays, f"{kind}_array")
            with _telling_shortage("cuMemHostAlloc", f"{kind} memory", nbytes):
                made: Bytes = make(nbytes, np.uint8)
            return made
        whole = np.empty(nbytes + _PAGE_BYTES, np.uint8)
        offset = -whole.ctypes.data % _PAGE_BYTES
        array = whole[offset : offset + nbytes]
        if kind == "registered":
            self._register(array)
        return array

    def _register(self, array: Bytes) -> None:
        if isinstance(self._arrays, SimulatedGPU):
            self._arrays.library.register_host(array)
            self._closing.callback(self._arrays.library.unregister_host, array)
        else:
            self._closing.enter_context(self._arrays.pinned(array))

    def device_bytes(self, nbytes: int, device: int | None = None) -> Any:
        """Allocate device memory, by default on the GPU itself."""
        where = self.device if device is None else device
        with _telling_shortage("cuMemAlloc", "device memory", nbytes):
            if isinstance(self._arrays, SimulatedGPU):
                return self._arrays.device_array(nbytes, np.uint8, device=where)
            with on_device(self.driver, where):
                return self._arrays.device_array(nbytes, np.uint8)

    def free_bytes(self) -> int | None:
        """Return how much device memory is free; None where that is not known."""
        return free_bytes(self.driver)

    def as_blocks(self, array: Any, block_bytes: int, nbytes: int) -> Any:
        """Return the first bytes of an array as a new one of shape (blocks, block_bytes)."""
        if isinstance(array, SimulatedDeviceArray):  # it cannot be reshaped, but what is behind it
            memory = self.as_blocks(array._memory, block_bytes, nbytes)
            return SimulatedDeviceArray(array._library, memory, array.device)
        return array[: nbytes // block_bytes * block_bytes].reshape(-1, block_bytes)

    def copy(self, dst: Any, src: Any, nbytes: int) -> None:
        """Copy one contiguous range with one driver call, and wait."""
        self.driver.memcpy_async(address_of(dst), address_of(src), nbytes, self.stream)
        self.wait()

    def wait(self) -> None:
        """Wait for the stream."""
        self.driver.record_event(self._event, self.stream)
        self.driver.synchronize_event(self._event)

    def close(self) -> None:
        """Unregister what was registered."""
        self._closing.close()


def gpu_of(driver: Driver, peer: int | None = None) -> BenchGPU:
    """Return the GPU of a driver whose context is current; with another one beside it, if named."""
    return BenchGPU(driver, SimulatedGPU(driver) if driver.simulated else None, peer)


@contextlib.contextmanager
def on_device(driver: Driver, device: int) -> Iterator[None]:
    """Let the context of a GPU be the calling thread's, for Numba too; then the former one."""
    if driver.current_device() == device:
        yield
        return
    # Numba's way alone may leave the thread without any: it takes away what others had set.
    with driver.activate(driver.primary_context(device)):
        if driver.simulated:
            yield
        else:
            with _numba_cuda().gpus[device]:
                yield


@contextlib.contextmanager
def open_gpu(simulated_version: str | None) -> Iterator[BenchGPU]:
    """Open the machine's GPU, or a simulated one of the given driver version."""
    with contextlib.ExitStack() as stack:
        if simulated_version is None:
            driver = default_driver()
        else:
            driver = stack.enter_context(simulate(simulated_version)).driver
        gpu = gpu_of(driver)
        stack.callback(gpu.close)
        yield gpu


def has_gpu() -> bool:
    """Whether there is a driver with a device here."""
    try:
        return default_driver().device_count() > 0
    except DriverUnavailableError:
        return False


def address_of(array: Any) -> int:
    """Return the address of an array on host or device."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return int(array.__cuda_array_interface__["data"][0])


@contextlib.contextmanager
def _telling_shortage(function: str, what: str, nbytes: int) -> Iterator[None]:
    """Let a want of memory be the same error whoever allocates, Numba or the simulation."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "code", None)
        if code is None or int(code) != abi.ERROR_OUT_OF_MEMORY:
            raise
        name, note = "CUDA_ERROR_OUT_OF_MEMORY", f"{nbytes} bytes of {what} were asked for."
        raise DriverCallError(function, abi.ERROR_OUT_OF_MEMORY, name, note=note) from None


class _EventTimer:
    """Numba's events; the driver records them, which costs less than through Numba."""

    def __init__(self, driver: Driver) -> None:
        cuda = _numba_cuda()
        self._driver = driver
        self._elapsed_ms = cuda.event_elapsed_time
        self._events = cuda.event(timing=True), cuda.event(timing=True)
        self._start, self._stop = (int(event.handle) for event in self._events)

    def start(self, stream: int) -> None:
        self._driver.record_event(self._start, stream)

    def stop(self, stream: int) -> None:
        self._driver.record_event(self._stop, stream)

    def elapsed_ns(self) -> int:
        self._driver.synchronize_event(self._stop)
        # Events tick about every half microsecond; nothing that ran took no time.
        elapsed_ms: float = self._elapsed_ms(*self._events)
        return max(1, round(elapsed_ms * 1e6))


def _numba_cuda() -> Any:
    """Import it late: the command line must be light."""
    from numba import cuda

    return cuda
