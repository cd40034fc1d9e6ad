"""The simulated driver library: C functions made in Python, found by its own look-up function."""

# ruff: noqa: N802 -- two methods have the names that the driver gives them

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from ctypes import c_int, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.entry_points import ProcAddress
from numba_swap.driver.simulated.boxes import BoxFunctions
from numba_swap.driver.simulated.faults import FaultPlan
from numba_swap.driver.simulated.functions import ERROR_NAMES, ERROR_UNKNOWN
from numba_swap.driver.simulated.interrupts import callback, raise_interrupt
from numba_swap.driver.simulated.memory import Allocation, Kind, SimulatedFailure
from numba_swap.driver.simulated.peers import PeerAccess, Peers
from numba_swap.driver.simulated.timeline import Action, Graph, Stream
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverCallError, DriverUnavailableError

_NEWEST = DriverVersion(13, 0)
_LAUNCH_FAILED = 719
_BEFORE_INIT = {"cuGetProcAddress", "cuInit", "cuDriverGetVersion", "cuGetErrorName"}
# Families of functions that report the failure of earlier work.
_REPORT_STICKY = ("cuMem", "cuStream", "cuEvent", "cuLaunch")
# Exported under another name than it is asked for.
_EXPORTED_AS = {"cuMemcpy3DAsync": "cuMemcpy3DAsync_v2"}
# Functions that a capture in another thread forbids unless this thread is in relaxed mode.
_UNSAFE_IN_CAPTURE = {
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuEventQuery",
    "cuEventSynchronize",
}


class SimulatedLibrary:
    """A driver library over host memory, for one driver version.

    Parameters
    ----------
    version : DriverVersion
        The CUDA version it supports: decides which functions it has and how look-ups answer.
    devices : int
        Number of devices.
    faults : FaultPlan, optional
        What is to fail; more can be added at any time.
    peer_access : bool, str, or matrix of these
        Which devices reach the memory of which, as for `simulate`.

    Attributes
    ----------
    exports : dict of str to C function
        What a linker would find in it, by exported name (``cuMemcpyBatchAsync_v2`` included).
    memory : Memory
        Its allocations; kernels call ``memory.check_kernel_access`` before they touch any.
    calls : Counter
        Number of calls of each C function.
    faults : FaultPlan
        What is to fail.
    internal_error : Exception or None
        The first Python exception inside a C function, which returned 999, or inside a function
        that was launched as a kernel.

    Raises
    ------
    DriverUnavailableError
        If the version is below 11.3: such a driver has no ``cuGetProcAddress``.
    """

    simulated = True
    found_via = "simulation"
    raise_interrupt = staticmethod(raise_interrupt)

    def __init__(
        self,
        version: DriverVersion = _NEWEST,
        devices: int = 1,
        faults: FaultPlan | None = None,
        peer_access: PeerAccess = True,
    ) -> None:
        self.path = f"simulated CUDA driver {version}"
        if version < (11, 3):
            reason = "it exports no cuGetProcAddress, so it is older than CUDA 11.3"
            raise DriverUnavailableError(f"{self.path} cannot be used: {reason}.")
        self.version = version
        self.devices = devices
        self.calls: Counter[str] = Counter()
        self.faults = FaultPlan() if faults is None else faults
        self.internal_error: Exception | None = None
        self.sticky_reported = False
        self._lock = threading.RLock()
        self._functions = BoxFunctions(version.encoded, devices, Peers(devices, peer_access))
        # The devices whose primary context somebody has asked for.
        self.active_devices = self._functions.active_devices
        self._timeline = self._functions.timeline
        self.memory = self._functions.memory
        # Filled by finalizers, which may run at any allocation, in the midst of any call.
        self._to_free: deque[Allocation] = deque()
        self.exports: dict[str, Any] = {}
        # Name -> (version that introduced it, address), oldest first.
        self._revisions: dict[str, list[tuple[int, int]]] = {}
        v1, v2 = abi.GET_PROC_ADDRESS_V1, abi.GET_PROC_ADDRESS_V2
        self._export(v1.name, v1.name, v1.version, v1.argtypes)
        self._export(v2.name, v1.name, v2.version, v2.argtypes)
        for name, prototype in abi.PROTOTYPES.items():
            symbol = _EXPORTED_AS.get(name, name)
            self._export(symbol, name, prototype.version, prototype.argtypes)
        for batch, fail_index in (abi.MEMCPY_BATCH_ASYNC, 7), (abi.MEMCPY_3D_BATCH_ASYNC, 2):
            without = batch.argtypes[:fail_index] + batch.argtypes[fail_index + 1 :]
            self._export(f"{batch.name}_v2", batch.name, 13000, without)
        context = abi.PROTOTYPES["cuStreamGetCtx"]
        with_green_context = (*context.argtypes, context.argtypes[-1])
        self._export(f"{context.name}_v2", context.name, 12050, with_green_context)
        introduced, address = self._revisions[v1.name][-1]
        self.proc_address = ProcAddress(address, 2 if introduced == v2.version else 1)

    # -- the C boundary ---------------------------------------------------------------------

    def _export(self, symbol: str, name: str, introduced: int, argtypes: tuple[Any, ...]) -> None:
        if introduced > self.version.encoded:
            return
        if name == "cuDeviceGetName":
            # ctypes would hand a callback's `char *` over as a copy, which cannot be written.
            argtypes = (c_void_p, *argtypes[1:])
        method = getattr(self if symbol.startswith("cuGetProc") else self._functions, symbol)

        call = functools.partial(self._call, name, method)
        function = ctypes.CFUNCTYPE(c_int, *argtypes)(callback(call, ERROR_UNKNOWN))
        self.exports[symbol] = function
        address = ctypes.cast(function, c_void_p).value or 0
        self._revisions.setdefault(name, []).append((introduced, address))

    def _call(self, name: str, method: Callable[..., None], *arguments: Any) -> int:
        """Run a C function and return its code."""
        with self._lock:
            try:
                self.calls[name] += 1
                self._free_dead()
                fault = self.faults.due(name, arguments)
                if fault is not None:
                    fault.strike(method, arguments)
                    if fault.sticky:
                        self._timeline.sticky, self.sticky_reported = fault.code, True
                    return fault.code
                self._check_state(name)
                method(*arguments)
                self._check_sticky(name)
            except SimulatedFailure as failure:
                return failure.code
            except Exception as error:  # noqa: BLE001, RUF100
                if self.internal_error is None:
                    self.internal_error = error
                return ERROR_UNKNOWN
            return abi.SUCCESS

    def _check_state(self, name: str) -> None:
        if not self._functions.initialized and name not in _BEFORE_INIT:
            raise SimulatedFailure(abi.ERROR_NOT_INITIALIZED)
        self._check_sticky(name)
        relaxed = self._functions.capture_mode == abi.CAPTURE_MODE_RELAXED
        if name in _UNSAFE_IN_CAPTURE and not relaxed:
            self._timeline.forbid()

    def _check_sticky(self, function: str) -> None:
        if self._timeline.sticky and function.startswith(_REPORT_STICKY):
            self.sticky_reported = True
            raise SimulatedFailure(self._timeline.sticky)

    def _free_dead(self) -> None:
        while self._to_free:
            allocation = self._to_free.popleft()
            if allocation.alive:
                self.memory.free(allocation.start, allocation.kind)

    # -- look-up ----------------------------------------------------------------------------

    def _look_up(self, name: bytes | None, version: int, flags: int) -> tuple[int, int]:
        """Return an address (0 for a miss) and a status."""
        # Flag 2, the functions with a per-thread default stream, is not simulated.
        if name is None or flags not in (0, 1):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        if version > self.version.encoded >= 13000:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        known = self._revisions.get(name.decode(errors="replace"), [])
        old_enough = [address for introduced, address in known if introduced <= version]
        if old_enough:
            return old_enough[-1], abi.SYMBOL_FOUND
        return 0, abi.VERSION_NOT_SUFFICIENT if known else abi.SYMBOL_NOT_FOUND

    def cuGetProcAddress(self, name: bytes | None, pointer: Any, version: int, flags: int) -> None:
        """Look a function up; on a miss the pointer is left as it is."""
        address, _ = self._look_up(name, version, flags)
        if not address:
            raise SimulatedFailure(abi.ERROR_NOT_FOUND)
        pointer[0] = address

    def cuGetProcAddress_v2(
        self, name: bytes | None, pointer: Any, version: int, flags: int, status: Any
    ) -> None:
        """Look a function up; a miss is a success with a NULL pointer and a status."""
        address, answer = self._look_up(name, version, flags)
        pointer[0] = address or None
        if status:
            status[0] = answer

    # -- for the simulation itself ----------------------------------------------------------

    @contextlib.contextmanager
    def _host_call(self, function: str) -> Iterator[None]:
        """Run what the C interface here does not offer, with the errors of a `Driver`."""
        with self._lock:
            self._free_dead()
            try:
                yield
            except SimulatedFailure as failure:
                name = ERROR_NAMES.get(failure.code, b"unknown error").decode()
                raise DriverCallError(function, failure.code, name) from None

    def live(self) -> Counter[str]:
        """Count what there is now: events, streams, and living allocations of each kind."""
        with self._lock:
            self._free_dead()
            return self.memory.living() + self._timeline.living()

    def register_kernel(self, function: Callable[..., object], parameters: int = 0) -> int:
        """Make a function launchable.

        Parameters
        ----------
        function : callable
            Called as ``function(blocks, threads, *parameters)`` when the launch's turn comes.
        parameters : int
            Number of its 64-bit parameters.

        Returns
        -------
        int
            Handle for ``cuLaunchKernel``.

        Raises
        ------
        DriverCallError
            If a fault was planned for ``cuModuleLoadData``, which real kernels are loaded by.
        """
        with self._host_call("cuModuleLoadData"):
            self.calls["cuModuleLoadData"] += 1
            fault = self.faults.due("cuModuleLoadData", ())
            if fault is not None:
                raise SimulatedFailure(fault.code)
            handle = next(self._timeline.handles)
            self._functions.kernels[handle] = (function, parameters)
            return handle

    def bind_kernel(self, handle: int, device: int) -> None:
        """Let a kernel be one of a device: to launch it on any other is an invalid handle."""
        self._functions.kernel_devices[handle] = device

    def allocate(self, nbytes: int, kind: Kind, device: int = 0) -> Allocation:
        """Allocate device, pinned or managed memory."""
        with self._host_call("cuMemAlloc"):
            return self.memory.allocate(nbytes, kind, device)

    def map_chunks(self, nbytes: int, chunk_bytes: int, device: int = 0) -> list[Allocation]:
        """Map chunks of device memory side by side, as ``cuMemMap`` does."""
        with self._host_call("cuMemMap"):
            return self.memory.map_chunks(nbytes, chunk_bytes, device)

    def free(self, address: int) -> None:
        """Free what `allocate` gave, whatever is still to be done on it."""
        with self._host_call("cuMemFree"):
            self.memory.free(address, Kind.DEVICE, Kind.PINNED, Kind.MANAGED)

    def free_later(self, allocation: Allocation) -> None:
        """Free it at the next call, if it is not free by then; takes no lock: for finalizers."""
        self._to_free.append(allocation)

    def register_host(
        self, array: npt.NDArray[Any], device: int = 0, device_offset: int = 0
    ) -> None:
        """Register (pin) the memory of a C-contiguous host array, and keep it alive meanwhile.

        With `device_offset` it has another address on the GPU, as on WSL2: kernels and batches
        must not be given its own.
        """
        with self._host_call("cuMemHostRegister"):
            self.memory.register(array.reshape(-1).view(np.uint8), device, device_offset)

    def unregister_host(self, array: npt.NDArray[Any]) -> None:
        """Take back `register_host`."""
        with self._host_call("cuMemHostUnregister"):
            self.memory.unregister(array.ctypes.data)

    def create_stream(self, non_blocking: bool = False, device: int = 0) -> int:
        """Create a stream and return its handle; no context need be current."""
        with self._host_call("cuStreamCreate"):
            context = self._functions.primary_context(device)
            return self._timeline.create_stream(context, not non_blocking)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream: what is in it will still be done, but its handle is no stream."""
        with self._host_call("cuStreamDestroy"):
            self._timeline.destroy_stream(stream)

    def run_function(self, stream: int, function: Callable[[], object]) -> None:
        """Put a Python function into a stream that stands for a kernel of the user's.

        What it raises breaks the context, as a failing kernel does, and is told when the
        simulation is left. Faults of ``cuLaunchKernel`` raise here.
        """

        def action() -> None:
            try:
                function()
            except Exception as error:
                if self.internal_error is None:
                    self.internal_error = error
                raise SimulatedFailure(_LAUNCH_FAILED) from None

        with self._host_call("cuLaunchKernel"):
            self.calls["cuLaunchKernel"] += 1
            fault = self.faults.due("cuLaunchKernel", ())
            if fault is not None:
                raise SimulatedFailure(fault.code)
            self._check_sticky("cuLaunchKernel")
            self._timeline.submit(self._stream(stream), action)

    def enqueue(
        self, stream: int, action: Action, wait: bool = False, device: int | None = None
    ) -> None:
        """Put any Python function into a stream; with `wait`, run it before returning.

        A default stream is that of `device`, by default of the current context.
        """
        with self._host_call("cuMemcpyAsync"):
            operation = self._timeline.submit(self._stream(stream, device), action)
            if wait:
                self._timeline.run(operation)
                self._check_sticky("cuMemcpyAsync")

    def synchronize_stream(self, stream: int) -> None:
        """Do all that is in a stream."""
        with self._host_call("cuStreamSynchronize"):
            self._timeline.synchronize_stream(self._stream(stream))
            self._check_sticky("cuStreamSynchronize")

    def synchronize(self) -> None:
        """Do all that was ever submitted."""
        with self._host_call("cuCtxSynchronize"):
            self._timeline.synchronize()
            self._check_sticky("cuStreamSynchronize")

    def finish(self) -> None:
        """Do all that is left, unless some call has already reported that work failed.

        Memory dropped since the last call is still there for it: that a program ends without
        waiting for its copies is no error, that it works on after dropping their memory is.
        """
        raise_interrupt()
        with self._lock:
            if not self.sticky_reported:
                self._timeline.synchronize()
                self.synchronize()

    def begin_capture(self, stream: int) -> None:
        """Capture a stream into a graph, in the strictest mode (global).

        What a capture does not allow, in any thread, makes `end_capture` fail (code 901).
        """
        with self._host_call("cuStreamBeginCapture"):
            self._timeline.begin_capture(self._stream(stream))

    def end_capture(self, stream: int) -> Graph:
        """End the capture; ``len(graph.nodes)`` tells how much was captured."""
        with self._host_call("cuStreamEndCapture"):
            return self._timeline.end_capture(self._stream(stream))

    def launch(self, graph: Graph, stream: int) -> None:
        """Submit a captured graph to a stream."""
        with self._host_call("cuGraphLaunch"):
            self._timeline.launch(graph, self._stream(stream))

    def _stream(self, handle: int, device: int | None = None) -> Stream:
        context = self._functions.context or self._functions.primary_context(0)
        if device is not None:
            context = self._functions.primary_context(device)
        return self._timeline.stream(handle, context)
