"""Reading a DLPack capsule: address, shape, strides and device of a tensor.

NumPy's own reader refuses element types it does not know (bfloat16) and devices it cannot read;
a copy needs only the element's size. Structures as in DLPack 1.0, with and without a version.
"""

from __future__ import annotations

import contextlib
import ctypes
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

from numba_swap.errors import UnsupportedArrayError, brief

_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED = 1, 2, 3, 13
_USABLE = {_CPU, _CUDA, _CUDA_HOST, _CUDA_MANAGED}
_READ_ONLY = 1
_VERSION = (1, 0)  # of the structures below
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


def _capsule_function(name: str, restype: Any) -> Any:
    """Make a prototype of our own: those in `ctypes.pythonapi` belong to the whole process."""
    prototype = ctypes.PYFUNCTYPE(restype, ctypes.py_object, ctypes.c_char_p)
    return prototype((name, ctypes.pythonapi))


_is_valid = _capsule_function("PyCapsule_IsValid", ctypes.c_int)
_pointer = _capsule_function("PyCapsule_GetPointer", c_void_p)


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


def read_dlpack(producer: Any, name: str = "array") -> DLPackTensor:
    """Ask an object for its DLPack capsule and read it. Nothing is copied.

    Parameters
    ----------
    producer : object
        The array.
    name : str
        What to call it in an error message.

    Raises
    ------
    UnsupportedArrayError
        If the tensor lies on a device that CUDA cannot reach, has sub-byte elements, or comes in
        a form that is not known here.
    Exception
        Whatever the producer raises.
    """
    device_type, _ = producer.__dlpack_device__()
    _check_device(int(device_type), name)
    # Work on the tensor is ordered before the legacy default stream, which the copy waits for.
    stream = _LEGACY_STREAM if device_type in (_CUDA, _CUDA_MANAGED) else None
    capsule = _ask(producer, {} if stream is None else {"stream": stream})
    flags = 0
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if versioned.major != _VERSION[0]:
            raise UnsupportedArrayError(
                f"{name} comes as DLPack {versioned.major}.{versioned.minor}, though "
                f"{_VERSION[0]}.{_VERSION[1]} was asked for: another layout, not known here"
            )
        tensor, flags = versioned.tensor, versioned.flags
    elif _is_valid(capsule, b"dltensor"):
        tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
    else:
        raise UnsupportedArrayError(f"{name} gives {brief(capsule)}, which is no DLPack capsule")
    _check_device(tensor.device_type, name)
    if tensor.bits % 8 or not tensor.bits * tensor.lanes:
        # The same number of bits is one to a byte, several, or several to a lane.
        raise UnsupportedArrayError(
            f"{name} has elements of {tensor.bits} bits (in DLPack), which are not whole bytes: "
            "copy the bytes that they are packed in, as .view(uint8) gives them"
        )
    itemsize = tensor.bits // 8 * tensor.lanes
    if tensor.ndim < 0 or (tensor.ndim and not tensor.shape):
        raise UnsupportedArrayError(f"{name} comes as a DLPack tensor without a shape")
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


def _check_device(device_type: int, name: str) -> None:
    if device_type not in _USABLE:
        raise UnsupportedArrayError(
            f"{name} lies on DLPack device type {device_type}, which CUDA cannot reach: move it "
            "to the host or to a CUDA device"
        )


def _ask(producer: Any, stream: dict[str, int]) -> Any:
    """Ask for a capsule: producers of before DLPack 1.0 take no version, some no stream either.

    One that takes none has its work in the legacy default stream, as DLPack has it.
    """
    version = {"max_version": _VERSION}
    for keywords in ({**version, **stream}, stream, version):
        with contextlib.suppress(TypeError):
            return producer.__dlpack__(**keywords)
    return producer.__dlpack__()
