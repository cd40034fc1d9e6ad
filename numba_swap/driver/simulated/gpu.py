"""Running without a GPU: a simulated driver, with arrays and streams to use on it."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from types import EllipsisType, NoneType
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from numba_swap.driver.calls import Driver
from numba_swap.driver.current import enter_driver, leave_driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.interrupts import interrupts_kept
from numba_swap.driver.simulated.memory import Kind
from numba_swap.driver.simulated.peers import PeerAccess
from numba_swap.driver.version import DriverVersion, DriverVersionLike
from numba_swap.errors import BadArgumentError, UnsupportedArrayError

Shape: TypeAlias = int | tuple[int, ...]
BasicIndex: TypeAlias = int | np.integer[Any] | slice | EllipsisType | None


class SimulatedStream:
    """A stream of a simulated driver; made by `SimulatedGPU.stream`.

    Attributes
    ----------
    handle : int
        The driver's handle of it.
    """

    def __init__(self, library: SimulatedLibrary, handle: int) -> None:
        self._library = library
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle

    def synchronize(self) -> None:
        """Do all that is in the stream."""
        self._library.synchronize_stream(self.handle)


class SimulatedDeviceArray:
    """An array in simulated device memory; made by `SimulatedGPU.device_array`.

    The memory is freed when the array and all its views are gone.

    Attributes
    ----------
    shape, strides : tuple of int
        As those of a NumPy array.
    dtype : dtype
        Type of the elements.
    nbytes : int
        Bytes of all elements, gaps between them not counted.
    device : int
        The device whose memory it is.
    """

    def __init__(
        self, library: SimulatedLibrary, memory: npt.NDArray[Any], device: int = 0
    ) -> None:
        self._library = library
        self.device = device
        self._memory = memory
        self.shape = memory.shape
        self.strides = memory.strides
        self.dtype = memory.dtype
        self.nbytes = memory.nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        memory = self._memory
        return {
            "shape": self.shape,
            "strides": None if memory.flags.c_contiguous else self.strides,
            "typestr": self.dtype.str,
            "data": (memory.ctypes.data if memory.size else 0, False),
            "version": 3,
            "stream": None,
        }

    def __getitem__(self, index: BasicIndex | tuple[BasicIndex, ...]) -> SimulatedDeviceArray:
        """Return a view, of no dimensions for a single element."""
        indices = index if isinstance(index, tuple) else (index,)
        basic = (int, np.integer, slice, EllipsisType, NoneType)
        if not all(isinstance(i, basic) and not isinstance(i, bool) for i in indices):
            raise UnsupportedArrayError("only integers, slices, ... and None index device arrays")
        if Ellipsis not in indices:
            indices += (Ellipsis,)  # without it, a single element would be no view
        return SimulatedDeviceArray(self._library, self._memory[indices], self.device)

    def __len__(self) -> int:
        return len(self._memory)

    def reshape(self, *shape: Any) -> SimulatedDeviceArray:
        """Return a view of another shape, as of a contiguous array in Numba.

        Parameters
        ----------
        *shape : int, or one tuple of int
            The new shape; one length may be -1.

        Raises
        ------
        UnsupportedArrayError
            An array with gaps: it would have to be copied.
        """
        if not self._memory.flags.c_contiguous:
            raise UnsupportedArrayError("only contiguous device arrays can be reshaped")
        return SimulatedDeviceArray(self._library, self._memory.reshape(*shape))

    def copy_to_host(self, stream: SimulatedStream | None = None) -> npt.NDArray[Any]:
        """Return a copy as a NumPy array.

        Parameters
        ----------
        stream : SimulatedStream, optional
            Stream to copy in; the array returned holds the data once that is synchronised.
            Without one, the copy is made in the legacy default stream and waited for.
        """
        host = np.empty(self.shape, self.dtype)
        self._enqueue(host, self._memory, stream)
        return host

    def copy_to_device(self, array: npt.ArrayLike, stream: SimulatedStream | None = None) -> None:
        """Copy a host array here; it is read before this returns.

        Parameters
        ----------
        array : array_like
            What to copy, of any shape that broadcasts to this one.
        stream : SimulatedStream, optional
            Stream to copy in. Without one, the copy is made in the legacy default stream and
            waited for.
        """
        self._enqueue(self._memory, np.array(array, self.dtype), stream)

    def _enqueue(
        self, dst: npt.NDArray[Any], src: npt.NDArray[Any], stream: SimulatedStream | None
    ) -> None:
        # The views that the action holds keep this array's memory from being freed meanwhile.
        np.broadcast_to(src, dst.shape)  # raises now instead of when its turn comes
        handle = 0 if stream is None else stream.handle
        self._library.enqueue(
            handle, lambda: np.copyto(dst, src), wait=stream is None, device=self.device
        )


class SimulatedGPU:
    """A GPU that is not there; made by `simulate`.

    Attributes
    ----------
    library : SimulatedLibrary
        The driver library, to inject faults, register kernels or capture streams.
    driver : Driver
        The driver that numba_swap uses meanwhile.
    """

    def __init__(self, driver: Driver) -> None:
        self.library = cast("SimulatedLibrary", driver.library)
        self.driver = driver

    def device_array(
        self,
        shape: Shape,
        dtype: npt.DTypeLike = np.float64,
        *,
        chunk_bytes: int | None = None,
        device: int = 0,
    ) -> SimulatedDeviceArray:
        """Return an array in the memory of a device, uninitialised.

        With `chunk_bytes` it is mapped in chunks of so many bytes, and the driver tells of each
        alone, as some do of PyTorch's expandable segments.
        """
        memory = self._array(Kind.DEVICE, shape, dtype, chunk_bytes, self._checked(device))
        return SimulatedDeviceArray(self.library, memory, device)

    def pinned_array(self, shape: Shape, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        """Return a NumPy array in pinned host memory, uninitialised."""
        return self._array(Kind.PINNED, shape, dtype)

    def managed_array(self, shape: Shape, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
        """Return a NumPy array in managed memory, uninitialised."""
        return self._array(Kind.MANAGED, shape, dtype)

    def stream(self, non_blocking: bool = False, device: int = 0) -> SimulatedStream:
        """Return a new stream of a device.

        By default it is ordered with the legacy default stream, as Numba's are.
        """
        handle = self.library.create_stream(non_blocking, self._checked(device))
        return SimulatedStream(self.library, handle)

    def launch(self, function: Callable[..., object], *arguments: Any, stream: Any = None) -> None:
        """Run a Python function in stream order, as a kernel: once, on NumPy views.

        Parameters
        ----------
        function : callable
            Called when its turn comes, with the arguments. It must not call the driver.
        *arguments : object
            A device array is handed over as a NumPy array over its memory; all else as it is.
        stream : stream, int or None, optional
            As for `numba_swap.swap_blocks`.

        Raises
        ------
        DriverCallError
            If earlier work failed, or a fault was planned for ``cuLaunchKernel``.

        Notes
        -----
        What the function raises breaks the context: later calls fail with code 719, and leaving
        the simulation raises `RuntimeError` from it.

        Examples
        --------
        >>> def double(a):
        ...     a *= 2
        >>> with simulate() as gpu:
        ...     array, stream = gpu.device_array(3), gpu.stream()
        ...     array.copy_to_device([1, 2, 3], stream)
        ...     gpu.launch(double, array[1:], stream=stream)
        ...     array.copy_to_host()  # the default stream comes after it
        array([1., 4., 6.])
        """
        views = [a._memory if isinstance(a, SimulatedDeviceArray) else a for a in arguments]
        handle = 0 if stream is None else _handle_of(stream)
        # The views keep the memory of device arrays alive until then.
        self.library.run_function(handle, lambda: function(*views))

    def synchronize(self) -> None:
        """Do all that was submitted to any stream."""
        self.library.synchronize()

    def _checked(self, device: int) -> int:
        """Return the number of a device that there is."""
        count = self.library.devices
        if isinstance(device, bool) or device not in range(count):
            raise BadArgumentError(
                f"device={device!r} is none of the simulated devices, which are 0 to {count - 1}"
            )
        return device

    def _array(
        self,
        kind: Kind,
        shape: Shape,
        dtype: npt.DTypeLike,
        chunk_bytes: int | None = None,
        device: int = 0,
    ) -> npt.NDArray[Any]:
        layout = np.broadcast_to(np.empty((), dtype), shape)  # sizes without the memory
        if layout.size == 0 or layout.nbytes == 0:
            return np.empty(shape, dtype)
        if chunk_bytes is None:
            allocations = [self.library.allocate(layout.nbytes, kind, device)]
        else:
            allocations = self.library.map_chunks(layout.nbytes, chunk_bytes, device)
        # Every view of the array refers to `memory` in the end, and so keeps the finalizer waiting.
        memory = (ctypes.c_uint8 * layout.nbytes).from_address(allocations[0].start)
        for allocation in allocations:
            weakref.finalize(memory, self.library.free_later, allocation).atexit = False
        flat: npt.NDArray[Any] = np.frombuffer(memoryview(memory), np.uint8).view(dtype)
        return flat.reshape(shape)


def _handle_of(stream: Any) -> int:
    """Return the handle of a stream that has one, or is one."""
    protocol = getattr(stream, "__cuda_stream__", None)
    return int(stream if protocol is None else protocol()[1])


@contextlib.contextmanager
def simulate(
    driver_version: DriverVersionLike = (13, 0),
    *,
    pinned_limit: int | None = None,
    pageable_access: bool = False,
    devices: int = 1,
    peer_access: PeerAccess = True,
) -> Iterator[SimulatedGPU]:
    """Let numba_swap run on a simulated driver, without a GPU.

    Parameters
    ----------
    driver_version : tuple of int, str or DriverVersion
        The CUDA version that the driver is to support, 11.3 or later.
    pinned_limit : int, optional
        How many bytes of host memory can be pinned, allocated and registered ones together; also
        ``gpu.library.memory.pinned_limit``, which may be changed meanwhile.
    pageable_access : bool, optional
        Whether the GPU reaches pageable memory in place, as on HMM and ATS machines.
    devices : int, optional
        How many GPUs there are.
    peer_access : bool, str, or matrix of these, optional
        Whether kernels of one GPU may reach the memory of another, once that is enabled: ``True``
        or ``"NVLink"``, ``"PCIe"``, ``False``. One value for all pairs, or a row for each GPU with
        a value for each other one.

    Yields
    ------
    SimulatedGPU
        It makes memory and streams: ``pinned_array(shape, dtype)``, ``device_array(shape, dtype)``
        (with ``copy_to_host`` and ``copy_to_device``), ``managed_array(shape, dtype)``,
        ``stream()``; ``launch(function, *arrays, stream=)`` runs a Python function as a kernel;
        ``synchronize()`` waits for all work. Of several GPUs, ``device=1`` makes arrays and streams
        of the second one.

    Raises
    ------
    BadArgumentError
        `devices` is no positive number, or `peer_access` is none of those.
    DriverCallError
        On leaving, if work failed and no driver call has reported it.
    RuntimeError
        On leaving, if the simulation itself failed, or a function that was launched on it.

    Notes
    -----
    The simulation is that of the whole process, as with `unittest.mock.patch`: all threads use it
    while it is active. Simulations nest; the one entered last counts. Work is put off until
    something needs its result, so a missing synchronisation shows up as wrong data (unless the
    `Transfer` was dropped: the library then waits for it, as it does on a GPU); on leaving, all
    that is left is done. Pointers that belong to no simulated array are taken for pageable
    host memory, as a real driver takes them.

    Examples
    --------
    >>> with simulate((12, 4)) as gpu:
    ...     array = gpu.device_array(3)
    ...     array.copy_to_device([1, 2, 3])
    ...     array[1:].copy_to_host()
    array([2., 3.])
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise BadArgumentError(f"devices={devices!r} is no positive number of devices")
    version = DriverVersion.parse(driver_version)
    gpu = SimulatedGPU(Driver(SimulatedLibrary(version, devices, peer_access=peer_access)))
    library = gpu.library
    library.memory.pinned_limit = pinned_limit
    library.memory.pageable_access = pageable_access
    enter_driver(gpu.driver)
    try:
        with interrupts_kept():
            yield gpu
            library.finish()
    finally:
        leave_driver(gpu.driver)
        # Also over an error from the body, which is most likely the consequence (code 999).
        if library.internal_error is not None:
            raise RuntimeError(
                "the simulated driver failed, or a function that was launched on it"
            ) from library.internal_error
