"""What numba_swap declares of NVIDIA's ``cuda.h``: codes, structures, prototypes.

Every entry point is asked for at one constant version. That version *is* the ABI: CUDA 13 gives
the name ``cuMemcpyBatchAsync`` to a function of 8 parameters when asked at 13000, and to the one
of 9 parameters declared here when asked at 12080, on every driver from 12.8 on. Asking at the
version that happens to be installed would change the prototype under our feet. The batch of strided
copies, ``cuMemcpy3DBatchAsync``, has two such ABIs as well, of 5 and of 4 parameters.

Source: ``cuda.h`` and ``cudaTypedefs.h`` of CUDA 12.9 and 13.0 (the ``PFN_..._vNNNNN`` types).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

# CUresult
SUCCESS = 0
ERROR_INVALID_VALUE = 1
ERROR_OUT_OF_MEMORY = 2
ERROR_NOT_INITIALIZED = 3
ERROR_STUB_LIBRARY = 34
ERROR_NO_DEVICE = 100
ERROR_INVALID_CONTEXT = 201
ERROR_PEER_ACCESS_UNSUPPORTED = 217
ERROR_OPERATING_SYSTEM = 304
ERROR_INVALID_HANDLE = 400
ERROR_NOT_FOUND = 500
ERROR_NOT_READY = 600
ERROR_ILLEGAL_ADDRESS = 700
ERROR_PEER_ACCESS_ALREADY_ENABLED = 704
ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
ERROR_STREAM_CAPTURE_INVALIDATED = 901
ERROR_STREAM_CAPTURE_IMPLICIT = 906

# CUdriverProcAddressQueryResult
SYMBOL_FOUND = 0
SYMBOL_NOT_FOUND = 1
VERSION_NOT_SUFFICIENT = 2
PROC_ADDRESS_DEFAULT = 0

# CUmemorytype
MEMORYTYPE_HOST = 1
MEMORYTYPE_DEVICE = 2
MEMORYTYPE_UNIFIED = 4

# CUpointer_attribute
POINTER_MEMORY_TYPE = 2
POINTER_DEVICE_POINTER = 3
POINTER_IS_MANAGED = 8
POINTER_DEVICE_ORDINAL = 9
POINTER_RANGE_START = 11
POINTER_RANGE_SIZE = 12

# CUdevice_attribute
DEVICE_MULTIPROCESSOR_COUNT = 16
DEVICE_COMPUTE_CAPABILITY_MAJOR = 75
DEVICE_COMPUTE_CAPABILITY_MINOR = 76
DEVICE_PAGEABLE_MEMORY_ACCESS = 88
DEVICE_CONCURRENT_MANAGED_ACCESS = 89

# CUdevice_P2PAttribute
P2P_PERFORMANCE_RANK = 1
P2P_ACCESS_SUPPORTED = 2
P2P_NATIVE_ATOMIC_SUPPORTED = 3

# Streams. Handle 0 is the legacy default stream in the functions used here (no `_ptsz`).
STREAM_LEGACY = 1
STREAM_PER_THREAD = 2
STREAM_NON_BLOCKING = 1
CAPTURE_STATUS_NONE = 0
CAPTURE_STATUS_ACTIVE = 1
CAPTURE_STATUS_INVALIDATED = 2
CAPTURE_MODE_GLOBAL = 0
CAPTURE_MODE_RELAXED = 2

EVENT_DISABLE_TIMING = 2
MEM_HOST_ALLOC_PORTABLE = 1

# CUmemcpySrcAccessOrder: the source is read when the stream reaches the copy, not before.
SRC_ACCESS_ORDER_STREAM = 1

# CUmemcpy3DOperandType: memory at an address, no CUDA array.
OPERAND_TYPE_POINTER = 1

SIZE_MAX = ctypes.c_size_t(-1).value


class MemLocation(ctypes.Structure):
    """``CUmemLocation``: type 0 gives no hint."""

    _fields_ = (("type", c_int), ("id", c_int))


class MemcpyAttributes(ctypes.Structure):
    """``CUmemcpyAttributes``, the same in 12.8 and 13.0."""

    _fields_ = (
        ("src_access_order", c_int),
        ("src_loc_hint", MemLocation),
        ("dst_loc_hint", MemLocation),
        ("flags", c_uint),
    )


class Memcpy3D(ctypes.Structure):
    """``CUDA_MEMCPY3D``, as it is since 3.2: one copy of rows in planes, all lengths in bytes."""

    _fields_ = (
        ("src_x_in_bytes", c_size_t),
        ("src_y", c_size_t),
        ("src_z", c_size_t),
        ("src_lod", c_size_t),
        ("src_memory_type", c_int),
        ("src_host", c_void_p),
        ("src_device", c_uint64),
        ("src_array", c_void_p),
        ("reserved0", c_void_p),
        ("src_pitch", c_size_t),
        ("src_height", c_size_t),
        ("dst_x_in_bytes", c_size_t),
        ("dst_y", c_size_t),
        ("dst_z", c_size_t),
        ("dst_lod", c_size_t),
        ("dst_memory_type", c_int),
        ("dst_host", c_void_p),
        ("dst_device", c_uint64),
        ("dst_array", c_void_p),
        ("reserved1", c_void_p),
        ("dst_pitch", c_size_t),
        ("dst_height", c_size_t),
        ("width_in_bytes", c_size_t),
        ("height", c_size_t),
        ("depth", c_size_t),
    )


class Extent3D(ctypes.Structure):
    """``CUextent3D``; of memory at an address the width is in bytes."""

    _fields_ = (("width", c_size_t), ("height", c_size_t), ("depth", c_size_t))


class Memcpy3DOperand(ctypes.Structure):
    """``CUmemcpy3DOperand``, with that member of its union which stands for an address."""

    _fields_ = (
        ("type", c_int),
        ("address", c_uint64),
        ("row_length", c_size_t),
        ("layer_height", c_size_t),
        ("loc_hint", MemLocation),
    )


class Memcpy3DBatchOp(ctypes.Structure):
    """``CUDA_MEMCPY3D_BATCH_OP``, the same in 12.8 and 13.0."""

    _fields_ = (
        ("src", Memcpy3DOperand),
        ("dst", Memcpy3DOperand),
        ("extent", Extent3D),
        ("src_access_order", c_int),
        ("flags", c_uint),
    )


@dataclass(frozen=True)
class Prototype:
    """One driver function as it is asked for and called.

    Attributes
    ----------
    name : str
        Name given to ``cuGetProcAddress``, without any ``_v2`` suffix.
    version : int
        Requested version, encoded: the CUDA version that gave the name these parameters.
    argtypes : tuple of ctypes types
        Its parameters; each returns a ``CUresult``.
    essential : bool
        Whether nothing works without it. The others are reported missing where they are used.
    """

    name: str
    version: int
    argtypes: tuple[Any, ...]
    essential: bool = True

    @property
    def ctype(self) -> Any:
        """The ctypes function type; calls through it release the GIL."""
        return ctypes.CFUNCTYPE(c_int, *self.argtypes)


# Handles (contexts, streams, events, functions) and CUdeviceptr are passed as integers.
_HANDLE = c_void_p
_ADDRESS = c_uint64

GET_PROC_ADDRESS_V1 = Prototype(
    "cuGetProcAddress", 11030, (c_char_p, POINTER(c_void_p), c_int, c_uint64)
)
GET_PROC_ADDRESS_V2 = Prototype(
    "cuGetProcAddress_v2", 12000, (c_char_p, POINTER(c_void_p), c_int, c_uint64, POINTER(c_int))
)

MEMCPY_BATCH_ASYNC = Prototype(
    "cuMemcpyBatchAsync",
    12080,
    (
        c_void_p,  # CUdeviceptr *dsts
        c_void_p,  # CUdeviceptr *srcs
        c_void_p,  # size_t *sizes
        c_size_t,  # count
        POINTER(MemcpyAttributes),  # attrs
        POINTER(c_size_t),  # attrsIdxs, numAttrs entries
        c_size_t,  # numAttrs
        POINTER(c_size_t),  # failIdx
        _HANDLE,  # hStream
    ),
    essential=False,
)

MEMCPY_3D_BATCH_ASYNC = Prototype(
    "cuMemcpy3DBatchAsync",
    12080,
    (
        c_size_t,  # numOps
        POINTER(Memcpy3DBatchOp),  # opList
        POINTER(c_size_t),  # failIdx
        c_uint64,  # flags
        _HANDLE,  # hStream
    ),
    essential=False,
)

PROTOTYPES: dict[str, Prototype] = {
    prototype.name: prototype
    for prototype in (
        Prototype("cuInit", 2000, (c_uint,)),
        Prototype("cuDriverGetVersion", 2020, (POINTER(c_int),)),
        Prototype("cuGetErrorName", 6000, (c_int, POINTER(c_char_p))),
        Prototype("cuDeviceGet", 2000, (POINTER(c_int), c_int)),
        Prototype("cuDeviceGetCount", 2000, (POINTER(c_int),)),
        Prototype("cuDeviceGetName", 2000, (c_char_p, c_int, c_int)),
        Prototype("cuDeviceGetAttribute", 2000, (POINTER(c_int), c_int, c_int)),
        Prototype("cuDevicePrimaryCtxRetain", 7000, (POINTER(_HANDLE), c_int)),
        Prototype("cuCtxGetCurrent", 4000, (POINTER(_HANDLE),)),
        Prototype("cuCtxSetCurrent", 4000, (_HANDLE,)),
        Prototype("cuCtxGetDevice", 2000, (POINTER(c_int),)),
        Prototype("cuDeviceCanAccessPeer", 4000, (POINTER(c_int), c_int, c_int), essential=False),
        Prototype(
            "cuDeviceGetP2PAttribute",
            8000,
            (POINTER(c_int), c_int, c_int, c_int),
            essential=False,
        ),
        Prototype("cuCtxEnablePeerAccess", 4000, (_HANDLE, c_uint), essential=False),
        Prototype("cuPointerGetAttributes", 7000, (c_uint, c_void_p, c_void_p, _ADDRESS)),
        Prototype("cuMemAlloc", 3020, (POINTER(_ADDRESS), c_size_t)),
        Prototype("cuMemFree", 3020, (_ADDRESS,)),
        Prototype("cuMemGetInfo", 3020, (POINTER(c_size_t), POINTER(c_size_t))),
        Prototype("cuMemHostAlloc", 2020, (POINTER(c_void_p), c_size_t, c_uint)),
        Prototype("cuMemFreeHost", 2000, (c_void_p,)),
        Prototype(
            "cuMemRetainAllocationHandle", 11000, (POINTER(c_uint64), c_void_p), essential=False
        ),
        Prototype("cuMemRelease", 10020, (c_uint64,), essential=False),
        Prototype("cuMemcpyAsync", 4000, (_ADDRESS, _ADDRESS, c_size_t, _HANDLE)),
        MEMCPY_BATCH_ASYNC,
        Prototype("cuMemcpy3DAsync", 3020, (POINTER(Memcpy3D), _HANDLE)),
        MEMCPY_3D_BATCH_ASYNC,
        Prototype("cuStreamCreate", 2000, (POINTER(_HANDLE), c_uint)),
        Prototype("cuStreamGetCtx", 9020, (_HANDLE, POINTER(_HANDLE))),
        Prototype("cuStreamWaitEvent", 3020, (_HANDLE, _HANDLE, c_uint)),
        Prototype("cuStreamIsCapturing", 10000, (_HANDLE, POINTER(c_int))),
        Prototype("cuThreadExchangeStreamCaptureMode", 10010, (POINTER(c_int),)),
        Prototype("cuEventCreate", 2000, (POINTER(_HANDLE), c_uint)),
        Prototype("cuEventRecord", 2000, (_HANDLE, _HANDLE)),
        Prototype("cuEventQuery", 2000, (_HANDLE,)),
        Prototype("cuEventSynchronize", 2000, (_HANDLE,)),
        Prototype(
            "cuLaunchKernel",
            4000,
            (_HANDLE, *(c_uint,) * 7, _HANDLE, POINTER(c_void_p), POINTER(c_void_p)),
        ),
    )
}
