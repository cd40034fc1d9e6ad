"""What an array is: where it lies, how it is laid out, who may write it."""

from __future__ import annotations

import functools
import operator
import re
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.errors import UnsupportedArrayError, brief, say

_INT64 = 1 << 63


class ArrayView(NamedTuple):
    """The layout of one array, whatever library it came from.

    Attributes
    ----------
    address : int
        Address of the element at index 0.
    shape, strides : tuple of int
        Elements, and bytes between elements, along each axis.
    itemsize : int
        Bytes of an element.
    readonly : bool
        Whether it must not be written.
    owner : object
        Keeps the memory alive.
    stream : int or None
        A stream whose work on the array may not be over yet.
    on_cuda : bool
        Whether it says of itself that CUDA knows its memory.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    readonly: bool
    owner: object
    stream: int | None = None
    on_cuda: bool = False


@functools.lru_cache(maxsize=256)
def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return the first byte that an array touches, and the one after the last, from index 0."""
    if 0 in shape or itemsize == 0:
        return 0, 0
    spans = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(s for s in spans if s < 0), sum(s for s in spans if s > 0) + itemsize


@functools.lru_cache(maxsize=256)
def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of a C-ordered array without gaps."""
    strides = [itemsize] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def view_array(array: Any, name: str) -> ArrayView:
    """Read the layout of an array through the first protocol that it speaks.

    Parameters
    ----------
    array : object
        A PyTorch tensor, ``__cuda_array_interface__``, a NumPy array, or DLPack.
    name : str
        What to call it in an error message.

    Raises
    ------
    UnsupportedArrayError
        If it speaks none of them, says what cannot be, or holds something that has no bytes to
        copy.
    """
    if type(array) is np.ndarray:  # the most frequent case, and it has no other interface
        return _view_numpy(array, name)
    refusals = []
    for protocol, read in _PROTOCOLS.items():
        try:
            view = read(array, name)
        except UnsupportedArrayError:
            raise
        except Exception as error:  # whatever another library raises, of some types or states
            refusals.append(f"no {protocol} ({say(error)})")
        else:
            if view is not None:
                return _checked(view, name)
    if refusals:
        raise UnsupportedArrayError(f"{name} gives {' and '.join(refusals)}")
    raise UnsupportedArrayError(
        f"{name} is a {type(array).__name__}: give a NumPy array, an object with "
        "__cuda_array_interface__ (Numba, CuPy, PyTorch) or one that speaks DLPack"
    )


def _read_tensor(array: Any, name: str) -> ArrayView | None:
    if getattr(array, "data_ptr", None) is None:
        return None
    from numba_swap.copies.inputs.tensors import is_tensor, view_tensor

    return view_tensor(array, name) if is_tensor(array) else None


def _read_interface(array: Any, name: str) -> ArrayView | None:
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        return None
    view = _view_cuda_interface(interface, array, name)
    # Numba's mapped and managed arrays say of themselves that they may always be written.
    locked = isinstance(array, np.ndarray) and not array.flags.writeable
    return view._replace(readonly=True) if locked else view


def _read_numpy(array: Any, name: str) -> ArrayView | None:
    return _view_numpy(array, name) if isinstance(array, np.ndarray) else None


def _read_dlpack(array: Any, name: str) -> ArrayView | None:
    if getattr(array, "__dlpack__", None) is None:
        return None
    from numba_swap.copies.inputs.dlpack import read_dlpack  # seldom needed

    tensor = read_dlpack(array, name)
    return ArrayView(
        address=tensor.address,
        shape=tensor.shape,
        strides=tensor.strides or contiguous_strides(tensor.shape, tensor.itemsize),
        itemsize=tensor.itemsize,
        readonly=tensor.readonly,
        owner=(array, tensor.capsule),
        stream=tensor.stream,
        on_cuda=tensor.stream is not None,
    )


# In this order: a tensor's own methods know all of its types, its interface and DLPack only some,
# and its DLPack waits in the default stream. An object may speak several, and refuse one of them.
_PROTOCOLS = {
    "tensor": _read_tensor,
    "CUDA array interface": _read_interface,
    "NumPy array": _read_numpy,
    "DLPack tensor": _read_dlpack,
}


def _view_numpy(array: npt.NDArray[Any], name: str) -> ArrayView:
    dtype = array.dtype
    if dtype.hasobject:
        raise UnsupportedArrayError(
            f"{name} holds Python objects ({str(dtype)[:60]}), not plain bytes"
        )
    if dtype.isbuiltin != 1:  # made by another package, or of fields
        refuse_sub_byte(dtype.name, name)
    return ArrayView(
        array.ctypes.data,
        array.shape,
        array.strides,
        array.itemsize,
        not array.flags.writeable,
        array,
    )


def _view_cuda_interface(interface: dict[str, Any], array: object, name: str) -> ArrayView:
    if interface.get("mask") is not None:
        raise UnsupportedArrayError(f"{name} is masked; fill or drop the mask first")
    try:
        part = "typestr"
        itemsize = _itemsize(interface[part])
        part = "shape"
        shape = tuple(map(operator.index, interface[part]))
        part = "strides"
        strides = interface.get(part)
        strides = (
            contiguous_strides(shape, itemsize)
            if strides is None
            else tuple(map(operator.index, strides))
        )
        part = "data"
        address, readonly = interface[part]
        address = 0 if address is None else operator.index(address)
        part = "stream"
        stream = interface.get(part)
        if stream is not None:
            stream = operator.index(stream)
            if not 0 <= stream < _INT64:
                raise ValueError("no handle of a stream")
    except KeyError:
        raise UnsupportedArrayError(f"{name}'s CUDA array interface has no {part!r}") from None
    except (TypeError, ValueError) as error:
        raise UnsupportedArrayError(
            f"{name}'s CUDA array interface has {part!r}: {brief(interface[part])}, which cannot "
            f"be read ({say(error)})"
        ) from None
    return ArrayView(address, shape, strides, itemsize, bool(readonly), array, stream, on_cuda=True)


@functools.cache
def _itemsize(typestr: str) -> int:
    if not isinstance(typestr, str):
        raise TypeError("it is no string")
    dtype = np.dtype(typestr)
    if dtype.hasobject:
        raise TypeError("Python objects are no plain bytes")
    return dtype.itemsize


def _checked(view: ArrayView, name: str) -> ArrayView:
    """Refuse a layout that no memory can have: compiled code counts in 64 bits."""
    shape, strides = view.shape, view.strides
    if len(shape) != len(strides):
        raise UnsupportedArrayError(f"{name} has the shape {shape}, but strides {brief(strides)}")
    if shape and not (
        0 <= min(shape) <= max(shape) < _INT64 and -_INT64 <= min(strides) <= max(strides) < _INT64
    ):
        raise UnsupportedArrayError(
            f"{name} has the shape {brief(shape)} and strides {brief(strides)}: no memory has these"
        )
    low, high = extent(shape, strides, view.itemsize)
    if not 0 <= view.address + low <= view.address + high < _INT64:
        raise UnsupportedArrayError(
            f"{name} spans the addresses {view.address + low:#x} to {view.address + high:#x}, and "
            "no memory lies there"
        )
    return view


_SUB_BYTE = re.compile(r"(?:int|float|bits)([1-7])(?!\d)")


def refuse_sub_byte(dtype: str, name: str) -> None:
    """Refuse elements that share bytes, or may: how they are packed differs between libraries.

    Raises
    ------
    UnsupportedArrayError
        If the type's name says that an element has less than 8 bits.
    """
    found = _SUB_BYTE.search(dtype)
    if found is not None:
        raise UnsupportedArrayError(
            f"{name} has elements of {found[1]} bits ({dtype}), which are not whole bytes: copy "
            "the bytes that they are packed in, as .view(uint8) gives them"
        )
