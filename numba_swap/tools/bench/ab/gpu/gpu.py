"""One interface over a real and a simulated GPU: memory, a stream, events with time, clocks."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from numba_swap.driver.calls import Driver
from numba_swap.driver.current import default_driver
from numba_swap.driver.simulated.gpu import SimulatedGPU, simulate
from numba_swap.errors import DriverUnavailableError

Bytes = npt.NDArray[np.uint8]
_PAGE_BYTES = 4096
_CLOCK_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}


class Timer(Protocol):
    """Time on the GPU between two points of a stream."""

    def start(self, stream: int) -> None:
        """Mark the first point."""

    def stop(self, stream: int) -> None:
        """Mark the second point."""

    def elapsed_ns(self) -> int:
        """Wait for the second point; return the time between the two."""


class GPU(Protocol):
    """What the bench room needs of a GPU.

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
    """

    driver: Driver
    simulated: bool
    stream: int
    timer: Timer | None

    def reserve(self, nbytes: int) -> None:
        """Say how much the largest of the device arrays will be."""

    def host_bytes(self, kind: str, nbytes: int) -> Bytes:
        """Allocate host memory of a kind named in `cases.MEMORY_KINDS`."""

    def device_blocks(self, name: str, blocks: int, block_bytes: int) -> Any:
        """Return device memory as a new array object of shape (blocks, block_bytes).

        The memory behind a name may be the same for each call.
        """


@contextlib.contextmanager
def open_gpu(simulated_version: str | None) -> Iterator[GPU]:
    """Open the machine's GPU, or a simulated one of the given driver version."""
    with contextlib.ExitStack() as stack:
        if simulated_version is None:
            yield _RealGPU(stack)
        else:
            yield _SimulatedGPU(stack, stack.enter_context(simulate(simulated_version)))


def has_gpu() -> bool:
    """Whether there is a driver with a device here."""
    try:
        return default_driver().device_count() > 0
    except DriverUnavailableError:
        return False


class _RealGPU:
    simulated = False

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.driver = default_driver()
        self.driver.current_context()
        self.stream = self.driver.create_stream()
        self.timer: Timer | None = _EventTimer(self.driver)
        self._stack = stack
        self._device: dict[str, Any] = {}
        self._reserve_bytes = 0

    def reserve(self, nbytes: int) -> None:
        self._reserve_bytes = nbytes

    def host_bytes(self, kind: str, nbytes: int) -> Bytes:
        from numba import cuda

        if kind == "pinned":
            pinned: Bytes = cuda.pinned_array(nbytes, np.uint8)
            return pinned
        if kind == "managed":
            managed: Bytes = cuda.managed_array(nbytes, np.uint8)
            return managed
        array = _page_aligned(nbytes)
        if kind == "registered":
            self._stack.enter_context(cuda.pinned(array))
        return array

    def device_blocks(self, name: str, blocks: int, block_bytes: int) -> Any:
        from numba import cuda

        nbytes = blocks * block_bytes
        if name not in self._device or self._device[name].size < nbytes:
            self._device.pop(name, None)  # before more is taken
            self._device[name] = cuda.device_array(max(nbytes, self._reserve_bytes), np.uint8)
        return self._device[name][:nbytes].reshape(blocks, block_bytes)


class _EventTimer:
    """Numba's events; the driver records them, which costs less than through Numba."""

    def __init__(self, driver: Driver) -> None:
        from numba import cuda

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


class _SimulatedGPU:
    simulated = True
    timer: Timer | None = None

    def __init__(self, stack: contextlib.ExitStack, gpu: SimulatedGPU) -> None:
        self.driver = gpu.driver
        self.driver.current_context()
        self.stream = self.driver.create_stream()
        self._gpu = gpu
        self._stack = stack
        self._device: dict[str, tuple[tuple[int, int], Any]] = {}

    def reserve(self, nbytes: int) -> None:
        """Reserve nothing: arrays are made for each shape."""

    def host_bytes(self, kind: str, nbytes: int) -> Bytes:
        if kind == "pinned":
            return self._gpu.pinned_array(nbytes, np.uint8)
        if kind == "managed":
            return self._gpu.managed_array(nbytes, np.uint8)
        array = _page_aligned(nbytes)
        if kind == "registered":
            self._gpu.library.register_host(array)
            self._stack.callback(self._gpu.library.unregister_host, array)
        return array

    def device_blocks(self, name: str, blocks: int, block_bytes: int) -> Any:
        shape = blocks, block_bytes
        if name not in self._device or self._device[name][0] != shape:
            self._device.pop(name, None)
            self._device[name] = shape, self._gpu.device_array(shape, np.uint8)
        return self._device[name][1][...]


def _page_aligned(nbytes: int) -> Bytes:
    whole = np.empty(nbytes + _PAGE_BYTES, np.uint8)
    offset = -whole.ctypes.data % _PAGE_BYTES
    return whole[offset : offset + nbytes]


def address_of(array: Any) -> int:
    """Return the address of an array on host or device."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return int(array.__cuda_array_interface__["data"][0])


def read_clocks() -> dict[str, float | None] | None:
    """Ask ``nvidia-smi`` for clocks, temperature and power of GPU 0; None if it cannot tell.

    Returns
    -------
    dict or None
        ``sm_mhz``, ``memory_mhz``, ``temperature_c``, ``power_w``, each None if not supported.
    """
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_CLOCK_FIELDS)}",
        "--format=csv,noheader,nounits",
        "--id=0",
    ]
    try:
        result = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_clocks(result.stdout)


def parse_clocks(text: str) -> dict[str, float | None] | None:
    """Read the first line of what ``nvidia-smi`` answers; None if it is something else."""
    words = [word.strip() for word in text.strip().partition("\n")[0].split(",")]
    if len(words) != len(_CLOCK_FIELDS):
        return None
    clocks: dict[str, float | None] = {}
    for name, word in zip(_CLOCK_FIELDS.values(), words, strict=True):
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        clocks[name] = value if value >= 0 and value != float("inf") else None
    return clocks
