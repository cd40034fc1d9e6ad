"""What may change about an array object while it stays the same object, read as cheaply as can be.

Reading an array in full takes some microseconds; a swap between arrays that were read before asks
only whether anything is different now.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_swap.copies.inputs.tensors import is_tensor, tensor_state

StateReader = Callable[[Any], object]
Likeness = tuple[object, ...]

# NumPy's C interface: an array object begins with Python's header, then the address of its data.
_DATA_OFFSET = object.__basicsize__
_TOP = 1 << 63  # no memory lies there


def state_reader(array: Any) -> StateReader | None:
    """Return a function that reads the state of this one array object; None if there is none.

    States are values: they compare equal as long as nothing has changed. The function keeps
    nothing alive. It raises whatever the array raises: then something has changed, too.
    """
    if isinstance(array, np.ndarray):  # Numba's mapped and managed arrays are, too
        return _numpy_reader(array)
    try:
        if is_tensor(array):
            return tensor_state
        gpu_data = getattr(array, "gpu_data", None)
        if gpu_data is not None and hasattr(array, "stream"):
            return _numba_reader(gpu_data)
        return _read_interface if hasattr(array, "__cuda_array_interface__") else None
    except Exception:  # an interface that is refused was not read either
        return None


def _numpy_reader(array: Any) -> StateReader:
    # `array.ctypes` is some twenty times slower than all the rest.
    data = ctypes.c_size_t.from_address(id(array) + _DATA_OFFSET)
    if data.value != array.ctypes.data:  # another NumPy, or another Python
        return lambda array: (
            array.ctypes.data,
            array.shape,
            array.strides,
            array.flags.writeable,
        )
    if type(array) is np.ndarray:
        return lambda array: (data.value, array.shape, array.strides, array.flags.writeable)
    return lambda array: (
        data.value,
        array.shape,
        array.strides,
        array.flags.writeable,
        getattr(array, "stream", None),
    )


def _numba_reader(gpu_data: Any) -> StateReader:
    """Read an array of Numba, whose memory object says where it lies, and never changes."""
    try:
        memory = weakref.ref(gpu_data)
    except TypeError:
        return _read_interface

    def read(array: Any) -> object:
        return array.gpu_data is memory(), array.shape, array.strides, array.stream

    return read


def read_likeness(array: Any) -> tuple[int, Likeness] | None:
    """Return the address of an array, and what arrays must share to be read alike.

    None for arrays that are read in another way: tensors, those that speak DLPack only, and
    subclasses of NumPy's, which may be more.
    """
    if type(array) is np.ndarray:
        if _KNOWS_NUMPY:
            address = ctypes.c_size_t.from_address(id(array) + _DATA_OFFSET).value
        else:
            address = array.ctypes.data
        return address, (array.shape, array.strides, array.dtype, array.flags.writeable)
    try:
        # (Of Numba's mapped arrays, which are NumPy's, the interface says that all may be written.)
        if isinstance(array, np.ndarray) or hasattr(array, "data_ptr"):
            return None
        interface = array.__cuda_array_interface__
        (address, readonly), shape = interface["data"], interface["shape"]
        strides = interface.get("strides")
        numbers = (address, *shape, *(strides or ()))
        if set(map(type, numbers)) != {int} or not 0 < address < _TOP:
            return None
        likeness = (
            shape,
            strides,
            interface["typestr"],
            readonly,
            interface.get("stream"),
            interface.get("mask") is None,
        )
        hash(likeness)
    except Exception:  # the long way says what is wrong with it
        return None
    return address, likeness


def _knows_numpy() -> bool:
    """Whether arrays of this NumPy lie as `_DATA_OFFSET` says."""
    array = np.zeros(3)[1:]
    found = ctypes.c_size_t.from_address(id(array) + _DATA_OFFSET).value
    return found == array.ctypes.data


_KNOWS_NUMPY = _knows_numpy()


def _read_interface(array: Any) -> object:
    """Read any array by its CUDA array interface: its values, for some give the same dict again."""
    interface = array.__cuda_array_interface__
    return tuple(
        [
            value if value is None or isinstance(value, (int, str)) else tuple(value)
            for value in map(interface.get, _FIELDS)
        ]
    )


_FIELDS = ("data", "shape", "strides", "typestr", "stream", "mask")
