"""Reading a DLPack capsule: address, shape, strides and device of a tensor.

NumPy's own reader refuses element types it does not know (bfloat16) and devices it cannot read;
a copy needs only the element's size. Structures as in DLPack 1.0, with and without a version.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from numba_swap.errors import UnsupportedArrayError

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_USABLE = {_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED}
_READ_ONLY = 1
_LEGACY_STREAM = 1


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("type_code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("manager_context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.argtypes, _is_valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes, _pointer.restype = (ctypes.py_object, ctypes.c_char_p), c_void_p


@dataclass(frozen=True)
class DLPackTensor:
    """What a DLPack producer says of its tensor.

    Attributes
    ----------
    address : int
        Address of the first element.
    shape : tuple of int
        Elements along each axis.
    strides : tuple of int or None
        Bytes between elements along each axis; None if contiguous in C order.
    itemsize : int
        Bytes of an element.
    readonly : bool
        Whether the producer forbids writing.
    stream : int or None
        The stream that the producer has ordered its work before; None on the host.
    capsule : object
        Keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    itemsize: int
    readonly: bool
    stream: int | None
    capsule: object


def read_dlpack(producer: Any) -> DLPackTensor:
    """Ask an object for its DLPack capsule and read it. Nothing is copied.

    Raises
    ------
    UnsupportedArrayError
        If the tensor lies on a device that CUDA cannot reach, or has sub-byte elements.
    """
    device_type = int(producer.__dlpack_device__()[0])
    if device_type not in _USABLE:
        raise UnsupportedArrayError(
            f"a tensor on DLPack device type {device_type} cannot be copied by CUDA; "
            "move it to the host or to a CUDA device"
        )
    # Work on the tensor is ordered before the legacy default stream, which the copy waits for.
    stream = _LEGACY_STREAM if device_type in (_CUDA, _CUDA_MANAGED) else None
    keywords = {} if stream is None else {"stream": stream}
    try:
        capsule = producer.__dlpack__(max_version=(1, 0), **keywords)
    except TypeError:  # a producer of before DLPack 1.0
        capsule = producer.__dlpack__(**keywords)
    flags = 0
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        tensor, flags = versioned.tensor, versioned.flags
    else:
        tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
    bits = tensor.bits * tensor.lanes
    if bits % 8:
        raise UnsupportedArrayError(f"elements of {bits} bits are not whole bytes")
    itemsize = bits // 8
    strides = (
        tuple(tensor.strides[i] * itemsize for i in range(tensor.ndim)) if tensor.strides else None
    )
    return DLPackTensor(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[i] for i in range(tensor.ndim)),
        strides=strides,
        itemsize=itemsize,
        readonly=bool(flags & _READ_ONLY),
        stream=stream,
        capsule=capsule,
    )
