"""The driver as the floors above see it: Python names, checked return codes, no C spelling."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any, NamedTuple

from numba_swap import native
from numba_swap.driver import abi
from numba_swap.driver.work import WorkCalls
from numba_swap.errors import (
    DriverCallError,
    DriverUnavailableError,
    advise_on_start,
    forked_error,
)


class PointerInfo(NamedTuple):
    """What the driver knows of one address; all zero if it knows nothing.

    Attributes
    ----------
    memory_type : int
        1 host, 2 device, 0 memory that CUDA did not allocate or register.
    managed : int
        1 if it is managed memory, else 0.
    device : int
        Ordinal of the device that it belongs to or was allocated for.
    device_address : int
        The address by which a kernel reaches it, 0 if it cannot.
    start, nbytes : int
        The allocation or registration that holds the address.
    """

    memory_type: int
    managed: int
    device: int
    device_address: int
    start: int
    nbytes: int


class Driver(WorkCalls):
    """A driver library, its entry points, and typed calls of them.

    Parameters
    ----------
    library : DriverLibrary
        NVIDIA's, or a simulated one: the same code runs over both.

    Attributes
    ----------
    version : DriverVersion
        The CUDA version that the driver supports.
    entry_points : EntryPoints
        Every function asked for, with the driver's answer.
    initialized : bool
        Whether the driver was initialised through this object.
    """

    # -- devices and contexts ---------------------------------------------------------------

    def initialize(self) -> None:
        """Initialise the driver; cheap after the first time.

        Raises
        ------
        DriverUnavailableError
            If the driver finds no device or cannot start.
        """
        if self.initialized:
            return
        code = self._cuInit(0)
        if code == abi.ERROR_NOT_INITIALIZED:  # initialised by whoever used it before a fork
            raise forked_error()
        if code:
            reason = f"[{code}] cuInit results in {self.error_name(code)}"
            advice = advise_on_start(code)
            raise DriverUnavailableError(
                f"the CUDA driver {self.library.path} has no usable device: {reason}"
                f"{advice and f': {advice}'}. `numba-swap info` tells what is on this machine; use "
                "numba_swap.simulate() to run without a GPU.",
                [(self.library.path, reason)],
                advice,
            )
        self.initialized = True

    def device_count(self) -> int:
        """Return the number of devices."""
        self.initialize()
        count = c_int()
        self._check(self._cuDeviceGetCount(byref(count)), "cuDeviceGetCount")
        return count.value

    def device_name(self, device: int) -> str:
        """Name of a device."""
        self.initialize()
        name = ctypes.create_string_buffer(256)
        self._check(self._cuDeviceGetName(name, 256, device), "cuDeviceGetName")
        return name.value.decode(errors="replace")

    def device_attribute(self, attribute: int, device: int) -> int:
        """One ``CUdevice_attribute`` of a device."""
        self.initialize()
        value = c_int()
        self._check(
            self._cuDeviceGetAttribute(byref(value), attribute, device), "cuDeviceGetAttribute"
        )
        return value.value

    def current_context(self) -> int:
        """Return the calling thread's context; device 0's primary one if it has none yet."""
        self.initialize()
        context, _, _ = self.probe(0)
        if not context:
            context = self.primary_context(0)
            self._check(self._cuCtxSetCurrent(context), "cuCtxSetCurrent")
        return context

    def primary_context(self, device: int) -> int:
        """Retain the primary context of a device, making it if need be; return its handle."""
        self.initialize()
        context = c_void_p()
        code = self._cuDevicePrimaryCtxRetain(byref(context), device)
        if code:
            # It fails for reasons of cuInit, too: a GPU that is taken only shows now.
            name, advice = self.error_name(code), advise_on_start(code)
            note = f"GPU {device} gives no context{advice and f': {advice}'}."
            raise DriverCallError("cuDevicePrimaryCtxRetain", code, name, note=note)
        return context.value or 0

    def current_device(self) -> int:
        """Ordinal of the device of the calling thread's context."""
        device = c_int()
        self._check(self._cuCtxGetDevice(byref(device)), "cuCtxGetDevice")
        return device.value

    def can_access_peer(self, device: int, peer: int) -> bool:
        """Whether kernels of a device may be given access to the memory of another."""
        if not self.has("cuDeviceCanAccessPeer"):
            return False
        self.initialize()
        can = c_int()
        self._check(self._cuDeviceCanAccessPeer(byref(can), device, peer), "cuDeviceCanAccessPeer")
        return bool(can.value)

    def peer_attribute(self, attribute: int, device: int, peer: int) -> int:
        """One ``CUdevice_P2PAttribute`` of two devices; 0 where the driver does not tell."""
        if not self.has("cuDeviceGetP2PAttribute"):
            return 0
        self.initialize()
        value = c_int()
        code = self._cuDeviceGetP2PAttribute(byref(value), attribute, device, peer)
        self._check(code, "cuDeviceGetP2PAttribute")
        return value.value

    def enable_peer_access(self, peer: int) -> None:
        """Let the calling thread's context reach the memory of another one, if it does not yet."""
        with self.relaxed_capture():
            code = self._cuCtxEnablePeerAccess(peer, 0)
        if code != abi.ERROR_PEER_ACCESS_ALREADY_ENABLED:
            self._check(code, "cuCtxEnablePeerAccess")

    @functools.cached_property
    def _probed(self) -> tuple[int, int, int]:
        """Addresses that `native.driver_calls.probe` needs."""
        return (
            self.address("cuCtxGetCurrent"),
            self.address("cuStreamGetCtx"),
            self.address("cuStreamIsCapturing"),
        )

    def probe(self, stream: int) -> tuple[int, int, bool]:
        """Ask what holds for a stream, in one compiled call.

        Returns
        -------
        current : int
            The calling thread's context, 0 if it has none.
        context : int
            The stream's; for a default stream the current one.
        capturing : bool
            Whether the stream is being captured into a graph.

        Raises
        ------
        DriverCallError
            With code 906, for the legacy default stream by its handle 1, while a stream that it
            waits for is being captured: whatever is done in it then, that graph is lost. To ask
            does no harm. Handle 0 stands for no stream: nothing is asked about it.
        """
        step, code, current, context, capturing = native.driver_calls.probe(*self._probed, stream)
        if step:
            name = ("cuCtxGetCurrent", "cuStreamGetCtx", "cuStreamIsCapturing")[step - 1]
            self._check(code, name)
        return current, context, capturing != abi.CAPTURE_STATUS_NONE

    @contextlib.contextmanager
    def activate(self, context: int) -> Iterator[None]:
        """Make a context the calling thread's, and put the former one back afterwards."""
        self.initialize()
        former = self.probe(0)[0]
        if former == context:
            yield
            return
        self._check(self._cuCtxSetCurrent(context), "cuCtxSetCurrent")
        try:
            yield
        finally:
            code = self._cuCtxSetCurrent(former or None)
            if code:
                # Once more: a thread that is left in another context works on the wrong GPU.
                self._cuCtxSetCurrent(former or None)
                self._check(code, "cuCtxSetCurrent")

    # -- memory -----------------------------------------------------------------------------

    def pointer_info(self, address: int) -> PointerInfo:
        """Ask what an address is. An address unknown to CUDA is no error here."""
        code, *values = native.driver_calls.pointer_attributes(*self.query_functions, address)
        if code:
            self._check(code, "cuPointerGetAttributes")
        return PointerInfo._make(values)

    def find_allocations(
        self, starts: Any, sizes: Any, row: int, count: int, table: Any, in_order: bool
    ) -> tuple[int, int, int]:
        """Ask, once an allocation, what ranges lie in; see `driver_calls.find_allocations`."""
        problem, row, count = native.driver_calls.find_allocations(
            self._asking_functions,
            starts,
            sizes,
            row,
            count,
            table,
            int(in_order),
        )
        if problem > 0:
            self._check(problem, "cuPointerGetAttributes")
        return problem, row, count

    @functools.cached_property
    def _asking_functions(self) -> tuple[int, int, int, int]:
        """Addresses that `native.driver_calls.find_allocations` needs."""
        names = ("cuMemRetainAllocationHandle", "cuMemRelease")
        if not all(map(self.has, names)):
            return *self.query_functions, 0, 0
        return *self.query_functions, self.address(names[0]), self.address(names[1])

    def is_chunk(self, address: int) -> bool:
        """Whether an address lies in a chunk of device memory, mapped into reserved addresses.

        Chunks lie side by side, and copies may run on from one into the next; of each, the driver
        may tell as of an allocation.
        """
        chunk: bool = native.driver_calls.is_chunk(*self._asking_functions[2:], address)
        return chunk

    def device_alloc(self, nbytes: int) -> int:
        """Allocate memory on the device of the calling thread's context."""
        address = c_uint64()
        with self.relaxed_capture():
            code = self._cuMemAlloc(byref(address), nbytes)
        self._check(code, "cuMemAlloc", f"{nbytes} bytes of device memory were asked for.")
        return address.value

    def device_free(self, address: int) -> None:
        """Free device memory; the driver waits for the work that may use it."""
        with self.relaxed_capture():
            self._check(self._cuMemFree(address), "cuMemFree")

    def memory_info(self) -> tuple[int, int]:
        """Return how many bytes the device of the calling thread's context has free, and in all."""
        free, total = c_size_t(), c_size_t()
        self._check(self._cuMemGetInfo(byref(free), byref(total)), "cuMemGetInfo")
        return free.value, total.value

    def host_alloc(self, nbytes: int) -> int:
        """Allocate pinned host memory that every context can use, also during stream capture."""
        address = c_void_p()
        with self.relaxed_capture():
            code = self._cuMemHostAlloc(byref(address), nbytes, abi.MEM_HOST_ALLOC_PORTABLE)
        note = f"{nbytes} bytes of pinned host memory were asked for."
        self._check(code, "cuMemHostAlloc", note)
        return address.value or 0

    def host_free(self, address: int) -> None:
        """Free pinned host memory."""
        with self.relaxed_capture():
            self._check(self._cuMemFreeHost(address), "cuMemFreeHost")

    # -- streams and events -----------------------------------------------------------------

    @contextlib.contextmanager
    def relaxed_capture(self) -> Iterator[None]:
        """Allow this thread calls that would end another thread's stream capture.

        Allocations and event queries touch no captured stream here, but the driver cannot know.
        """
        mode, exchange = c_int(abi.CAPTURE_MODE_RELAXED), self._cuThreadExchangeStreamCaptureMode
        exchange(byref(mode))
        try:
            yield
        finally:
            # (Where it could not be relaxed, the word is as it was.)
            if mode.value != abi.CAPTURE_MODE_RELAXED and exchange(byref(mode)):
                exchange(byref(mode))

    @staticmethod
    def is_default_stream(stream: int) -> bool:
        """Whether a handle is a default stream, which belongs to whatever context is current."""
        return stream <= abi.STREAM_PER_THREAD

    def create_stream(self) -> int:
        """Create a stream that does not synchronise with the legacy default stream."""
        stream = c_void_p()
        with self.relaxed_capture():
            self._check(
                self._cuStreamCreate(byref(stream), abi.STREAM_NON_BLOCKING), "cuStreamCreate"
            )
        return stream.value or 0

    def create_event(self) -> int:
        """Create an event without timing, the cheapest kind."""
        event = c_void_p()
        with self.relaxed_capture():
            self._check(
                self._cuEventCreate(byref(event), abi.EVENT_DISABLE_TIMING), "cuEventCreate"
            )
        return event.value or 0

    def record_event(self, event: int, stream: int) -> None:
        """Mark the work enqueued in a stream so far."""
        self._check(self._cuEventRecord(event, stream), "cuEventRecord")

    def wait_event(self, stream: int, event: int) -> None:
        """Let later work in a stream wait for an event; the host does not wait."""
        self._check(self._cuStreamWaitEvent(stream, event, 0), "cuStreamWaitEvent")

    def event_done(self, event: int) -> bool:
        """Whether the work before an event is over."""
        code = self._call_relaxed("cuEventQuery", event)
        if code == abi.ERROR_NOT_READY:
            return False
        self._check(code, "cuEventQuery")
        return True

    def synchronize_event(self, event: int) -> None:
        """Block until the work before an event is over; the GIL is released."""
        self._check(self._call_relaxed("cuEventSynchronize", event), "cuEventSynchronize")

    def _call_relaxed(self, name: str, handle: int) -> int:
        addresses = self._addresses
        code: int = native.driver_calls.call_relaxed(
            addresses["cuThreadExchangeStreamCaptureMode"], addresses[name], handle
        )
        return code
