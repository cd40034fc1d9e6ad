"""What each C function of the simulated driver does.

Each method named ``cu...`` is one function of the C interface. It gets its arguments as ctypes
hands them to a callback, and reports failure by raising `SimulatedFailure`.
"""

# ruff: noqa: D102, N802 -- functions have the names, and do the work, that NVIDIA documents

from __future__ import annotations

import ctypes
import itertools
import math
import threading
from collections.abc import Callable
from ctypes import c_int, c_uint64, c_void_p
from typing import Any

import numpy as np

from numba_swap.driver import abi
from numba_swap.driver.simulated.memory import (
    Copies,
    Kind,
    Memory,
    SimulatedFailure,
    is_reached,
    pointer_attributes,
)
from numba_swap.driver.simulated.peers import Peers
from numba_swap.driver.simulated.timeline import Stream, Timeline

_ERROR_INVALID_DEVICE, ERROR_UNKNOWN = 101, 999
# Kept here for good: cuGetErrorName gives out their addresses.
ERROR_NAMES = {
    abi.SUCCESS: b"CUDA_SUCCESS",
    abi.ERROR_INVALID_VALUE: b"CUDA_ERROR_INVALID_VALUE",
    abi.ERROR_OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY",
    abi.ERROR_NOT_INITIALIZED: b"CUDA_ERROR_NOT_INITIALIZED",
    46: b"CUDA_ERROR_DEVICE_UNAVAILABLE",
    abi.ERROR_NO_DEVICE: b"CUDA_ERROR_NO_DEVICE",
    _ERROR_INVALID_DEVICE: b"CUDA_ERROR_INVALID_DEVICE",
    abi.ERROR_INVALID_CONTEXT: b"CUDA_ERROR_INVALID_CONTEXT",
    abi.ERROR_PEER_ACCESS_UNSUPPORTED: b"CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
    abi.ERROR_INVALID_HANDLE: b"CUDA_ERROR_INVALID_HANDLE",
    abi.ERROR_NOT_FOUND: b"CUDA_ERROR_NOT_FOUND",
    abi.ERROR_NOT_READY: b"CUDA_ERROR_NOT_READY",
    abi.ERROR_ILLEGAL_ADDRESS: b"CUDA_ERROR_ILLEGAL_ADDRESS",
    abi.ERROR_PEER_ACCESS_ALREADY_ENABLED: b"CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED",
    712: b"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
    713: b"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
    719: b"CUDA_ERROR_LAUNCH_FAILED",
    801: b"CUDA_ERROR_NOT_SUPPORTED",
    802: b"CUDA_ERROR_SYSTEM_NOT_READY",
    803: b"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: b"CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    abi.ERROR_STREAM_CAPTURE_UNSUPPORTED: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
    abi.ERROR_STREAM_CAPTURE_INVALIDATED: b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
    902: b"CUDA_ERROR_STREAM_CAPTURE_MERGE",
    903: b"CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
    904: b"CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
    905: b"CUDA_ERROR_STREAM_CAPTURE_ISOLATION",
    abi.ERROR_STREAM_CAPTURE_IMPLICIT: b"CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
    907: b"CUDA_ERROR_CAPTURED_EVENT",
    ERROR_UNKNOWN: b"CUDA_ERROR_UNKNOWN",
}
_DEVICE_ATTRIBUTES = {
    abi.DEVICE_MULTIPROCESSOR_COUNT: 2,
    abi.DEVICE_COMPUTE_CAPABILITY_MAJOR: 9,
    abi.DEVICE_COMPUTE_CAPABILITY_MINOR: 0,
    abi.DEVICE_CONCURRENT_MANAGED_ACCESS: 1,
}
_MAX_THREADS_PER_BLOCK = 1024
# What each device says that it has; more can be allocated, for it is the host's.
_DEVICE_BYTES = 16 << 30


class Functions:
    """What the C functions do, apart from crossing the boundary; and the state they share."""

    def __init__(self, version: int, devices: int, peers: Peers | None = None) -> None:
        self._version = version
        self.peers = Peers(devices) if peers is None else peers
        self.memory = Memory()
        self.timeline = Timeline()
        self.initialized = False
        self.contexts = {next(self.timeline.handles): device for device in range(devices)}
        self.thread = threading.local()
        self.kernels: dict[int, tuple[Callable[..., object], int]] = {}
        self.kernel_devices: dict[int, int] = {}  # of those that are bound to one
        self.active_devices: set[int] = set()
        self.retained: set[int] = set()

    @property
    def context(self) -> int | None:
        """The calling thread's context."""
        return getattr(self.thread, "context", None)

    @property
    def capture_mode(self) -> int:
        """The calling thread's."""
        return getattr(self.thread, "capture_mode", abi.CAPTURE_MODE_GLOBAL)

    def _required_context(self) -> int:
        if self.context is None:
            raise SimulatedFailure(abi.ERROR_INVALID_CONTEXT)
        return self.context

    def _check_device(self, device: int) -> None:
        if device not in self.contexts.values():
            raise SimulatedFailure(_ERROR_INVALID_DEVICE)

    # -- start, errors, devices, contexts ---------------------------------------------------

    def cuInit(self, flags: int) -> None:
        if flags:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        if not self.contexts:
            raise SimulatedFailure(abi.ERROR_NO_DEVICE)
        self.initialized = True

    def cuDriverGetVersion(self, version: Any) -> None:
        version[0] = self._version

    def cuGetErrorName(self, code: int, name: Any) -> None:
        name[0] = ERROR_NAMES.get(code)
        if code not in ERROR_NAMES:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)

    def cuDeviceGet(self, device: Any, ordinal: int) -> None:
        self._check_device(ordinal)
        device[0] = ordinal

    def cuDeviceGetCount(self, count: Any) -> None:
        count[0] = len(self.contexts)

    def cuDeviceGetName(self, name: int, length: int, device: int) -> None:
        self._check_device(device)
        text = b"Simulated GPU"[: length - 1] + b"\0"
        ctypes.memmove(name, text, len(text))

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        self._check_device(device)
        if attribute == abi.DEVICE_PAGEABLE_MEMORY_ACCESS:
            value[0] = int(self.memory.pageable_access)
            return
        if attribute not in _DEVICE_ATTRIBUTES:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        value[0] = _DEVICE_ATTRIBUTES[attribute]

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:
        self._check_device(device)
        context[0] = self.primary_context(device)
        self.active_devices.add(device)

    def primary_context(self, device: int) -> int:
        return list(self.contexts)[device]

    def cuCtxGetCurrent(self, context: Any) -> None:
        context[0] = self.context

    def cuCtxSetCurrent(self, context: int | None) -> None:
        if context is not None and context not in self.contexts:
            raise SimulatedFailure(abi.ERROR_INVALID_CONTEXT)
        self.thread.context = context

    def cuCtxGetDevice(self, device: Any) -> None:
        device[0] = self.contexts[self._required_context()]

    # -- other devices ----------------------------------------------------------------------

    def cuDeviceCanAccessPeer(self, can: Any, device: int, peer: int) -> None:
        self._check_device(device)
        self._check_device(peer)
        can[0] = int(self.peers.can_access(device, peer))

    def cuDeviceGetP2PAttribute(self, value: Any, attribute: int, device: int, peer: int) -> None:
        self._check_device(device)
        self._check_device(peer)
        if device == peer:
            raise SimulatedFailure(_ERROR_INVALID_DEVICE)
        value[0] = self.peers.attribute(attribute, device, peer)

    def cuCtxEnablePeerAccess(self, peer: int | None, flags: int) -> None:
        context = self._required_context()
        if flags:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        if peer not in self.contexts or peer == context:
            raise SimulatedFailure(abi.ERROR_INVALID_CONTEXT)
        self.peers.enable(context, self.contexts[context], self.contexts[peer])

    def _reached_from(self, context: int | None) -> set[int] | None:
        """Return the devices whose memory a context reaches; None if there is no context."""
        if context is None:
            return None
        return {self.contexts[context]} | self.peers.enabled(context)

    # -- memory and copies ------------------------------------------------------------------

    def cuMemAlloc(self, address: Any, nbytes: int) -> None:
        device = self.contexts[self._required_context()]
        address[0] = self.memory.allocate(nbytes, Kind.DEVICE, device).start

    def cuMemHostAlloc(self, address: Any, nbytes: int, flags: int) -> None:
        device = self.contexts[self._required_context()]
        address[0] = self.memory.allocate(nbytes, Kind.PINNED, device).start

    def cuMemFree(self, address: int) -> None:
        """Free it, after all that was submitted is done, as the driver does."""
        self.timeline.synchronize()
        self.memory.free(address, Kind.DEVICE)

    def cuMemGetInfo(self, free: Any, total: Any) -> None:
        device = self.contexts[self._required_context()]
        total[0] = _DEVICE_BYTES
        free[0] = max(0, _DEVICE_BYTES - self.memory.device_bytes(device))

    def cuMemFreeHost(self, address: int | None) -> None:
        self.memory.free(address or 0, Kind.PINNED)

    def cuMemRetainAllocationHandle(self, handle: Any, address: int | None) -> None:
        """Give the handle of a chunk of device memory, which no other memory has."""
        self.memory.check_chunk(address or 0)
        handle[0] = next(self.timeline.handles)
        self.retained.add(handle[0])

    def cuMemRelease(self, handle: int) -> None:
        if handle not in self.retained:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        self.retained.remove(handle)

    def cuPointerGetAttributes(
        self, count: int, attributes: int | None, values: int | None, address: int
    ) -> None:
        if not (count and attributes and values):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        allocation = self.memory.find(address)
        if allocation is not None and not allocation.alive:
            allocation = None
        places = (c_void_p * count).from_address(values)
        known = pointer_attributes(address, allocation)
        reached = self._reached_from(self.context)
        for code, place in zip((c_int * count).from_address(attributes), places, strict=True):
            if code not in known:
                raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
            value = known[code]
            if code == abi.POINTER_DEVICE_POINTER and not is_reached(allocation, reached):
                # Told in a context only, and of another GPU's memory only where access to it is
                # enabled (driver 580).
                value = c_uint64(0)
            ctypes.memmove(place, ctypes.byref(value), ctypes.sizeof(value))

    def cuMemcpyAsync(self, dst: int, src: int, nbytes: int, stream: int | None) -> None:
        """Copy; at once, and with all that it depends on, if either side is pageable."""
        queue = self.timeline.stream(stream or 0, self._required_context())
        if not nbytes:
            return
        copies = Copies(self.memory)
        copies.add(dst, src, nbytes)
        operation = self.timeline.submit(queue, copies)
        if copies.pageable and queue.graph is None:
            self.timeline.run(operation)

    def _begin_batch(
        self, stream: int | None, fail_index: Any
    ) -> tuple[Stream, Callable[[int], SimulatedFailure]]:
        """Return the stream of a batch of copies, and how to tell which of them failed."""
        handle = stream or 0
        queue = self.timeline.stream(handle, self._required_context())
        if handle == 0:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        if queue.graph is not None:
            raise SimulatedFailure(abi.ERROR_STREAM_CAPTURE_UNSUPPORTED)

        def fail(index: int) -> SimulatedFailure:
            if fail_index:
                fail_index[0] = index
            return SimulatedFailure(abi.ERROR_INVALID_VALUE)

        return queue, fail

    def cuMemcpyBatchAsync(
        self,
        dsts: int | None,
        srcs: int | None,
        sizes: int | None,
        count: int,
        attributes: Any,
        attribute_indices: Any,
        attribute_count: int,
        fail_index: Any,
        stream: int | None,
    ) -> None:
        """Submit copies, as CUDA 12.8 does."""
        queue, fail = self._begin_batch(stream, fail_index)
        bounds = [attribute_indices[i] for i in range(attribute_count)] if attribute_indices else []
        if (
            queue.legacy
            or not (count and dsts and srcs and sizes and attributes and bounds)
            or bounds[0] != 0
            or any(a >= b for a, b in itertools.pairwise([*bounds, count]))
        ):
            raise fail(abi.SIZE_MAX)
        # Both early orders read at once: the earliest moment that ANY (3) allows.
        orders = [attributes[i].src_access_order for i in range(attribute_count)]
        if not all(1 <= order <= 3 for order in orders):
            raise fail(abi.SIZE_MAX)
        early = np.repeat([order > 1 for order in orders], np.diff([*bounds, count])).tolist()
        columns = [(c_uint64 * count).from_address(column) for column in (dsts, srcs, sizes)]
        copies = Copies(self.memory, translated=False)
        try:
            for index, (dst, src, nbytes) in enumerate(zip(*columns, strict=True)):
                if not nbytes:
                    raise fail(index)
                try:
                    copies.add(dst, src, nbytes, read_now=early[index])
                except SimulatedFailure:
                    raise fail(index) from None
        finally:
            # After an error, too: what came before it is submitted and does land.
            self.timeline.submit(queue, copies)

    def cuMemcpyBatchAsync_v2(self, *arguments: Any) -> None:
        """Submit copies, as CUDA 13.0 does: without telling which one failed."""
        with_fail_index = [*arguments[:-1], None, arguments[-1]]
        self.cuMemcpyBatchAsync(*with_fail_index)

    # -- streams, events, kernels -------------------------------------------------------------

    def stream(self, handle: int | None) -> Stream:
        """Find the stream of a handle, as seen from the calling thread."""
        return self.timeline.stream(handle or 0, self.context)

    def cuStreamCreate(self, stream: Any, flags: int) -> None:
        blocking = not flags & abi.STREAM_NON_BLOCKING
        stream[0] = self.timeline.create_stream(self._required_context(), blocking)

    def cuStreamGetCtx(self, stream: int | None, context: Any) -> None:
        context[0] = self.stream(stream).context

    def cuStreamGetCtx_v2(self, stream: int | None, context: Any, green_context: Any) -> None:
        """Tell the context, as CUDA 12.5 does; green contexts are not simulated."""
        self.cuStreamGetCtx(stream, context)
        green_context[0] = None

    def cuStreamWaitEvent(self, stream: int | None, event: int | None, flags: int) -> None:
        self.timeline.wait(self.stream(stream), self.timeline.event(event or 0))

    def cuStreamIsCapturing(self, stream: int | None, status: Any) -> None:
        status[0] = self.timeline.capture_status(self.stream(stream))

    def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> None:
        former, self.thread.capture_mode = self.capture_mode, mode[0]
        mode[0] = former

    def cuEventCreate(self, event: Any, flags: int) -> None:
        event[0] = self.timeline.create_event(self._required_context())

    def cuEventRecord(self, event: int | None, stream: int | None) -> None:
        self.timeline.record(self.timeline.event(event or 0), self.stream(stream))

    def cuEventQuery(self, event: int | None) -> None:
        if not self.timeline.query(self.timeline.event(event or 0)):
            raise SimulatedFailure(abi.ERROR_NOT_READY)

    def cuEventSynchronize(self, event: int | None) -> None:
        self.timeline.synchronize_event(self.timeline.event(event or 0))

    def cuLaunchKernel(self, kernel: int | None, *arguments: Any) -> None:
        grid, block, (_, stream, parameters, _) = arguments[:3], arguments[3:6], arguments[6:]
        queue = self.stream(stream)
        if kernel not in self.kernels or queue.context != self.context:
            raise SimulatedFailure(abi.ERROR_INVALID_HANDLE)
        device = self.contexts[queue.context]
        if self.kernel_devices.get(kernel, device) != device:
            raise SimulatedFailure(abi.ERROR_INVALID_HANDLE)
        function, count = self.kernels[kernel]
        blocks, threads = math.prod(grid), math.prod(block)
        if not blocks or not 0 < threads <= _MAX_THREADS_PER_BLOCK or (count and not parameters):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        values = [c_uint64.from_address(parameters[i]).value for i in range(count)]

        def run() -> None:
            self.memory.reached = self._reached_from(queue.context)
            try:
                function(blocks, threads, *values)
            finally:
                self.memory.reached = None

        self.timeline.submit(queue, run)
