"""What an array is: where it lies, how it is laid out, who may write it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.errors import UnsupportedArrayError


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
        ``__cuda_array_interface__``, a NumPy array, or DLPack.
    name : str
        What to call it in an error message.

    Raises
    ------
    UnsupportedArrayError
        If it speaks none of them, or holds something that has no bytes to copy.
    """
    if type(array) is np.ndarray:  # the most frequent case, and it has no other interface
        return _view_numpy(array, name)
    try:
        interface = getattr(array, "__cuda_array_interface__", None)
    except Exception as error:  # PyTorch refuses tensors that require gradients with RuntimeError
        raise UnsupportedArrayError(f"{name} gives no CUDA array interface: {error}") from error
    if interface is not None:
        view = _view_cuda_interface(interface, array, name)
        # Numba's mapped and managed arrays say of themselves that they may always be written.
        locked = isinstance(array, np.ndarray) and not array.flags.writeable
        return view._replace(readonly=True) if locked else view
    if isinstance(array, np.ndarray):
        return _view_numpy(array, name)
    if hasattr(array, "__dlpack__"):
        from numba_swap.copies.inputs.dlpack import read_dlpack  # seldom needed

        try:
            tensor = read_dlpack(array)
        except (BufferError, RuntimeError) as error:
            raise UnsupportedArrayError(f"{name} gives no DLPack tensor: {error}") from error
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
    raise UnsupportedArrayError(
        f"{name} is a {type(array).__name__}: give a NumPy array, an object with "
        "__cuda_array_interface__ (Numba, CuPy, PyTorch) or one that speaks DLPack"
    )


def _view_numpy(array: npt.NDArray[Any], name: str) -> ArrayView:
    if array.dtype.hasobject:
        raise UnsupportedArrayError(f"{name} holds Python objects ({array.dtype}), not plain bytes")
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
    itemsize = _itemsize(interface["typestr"])
    shape = tuple(map(int, interface["shape"]))
    strides = interface.get("strides")
    address, readonly = interface["data"]
    return ArrayView(
        int(address or 0),
        shape,
        tuple(map(int, strides)) if strides else contiguous_strides(shape, itemsize),
        itemsize,
        bool(readonly),
        array,
        interface.get("stream"),
        on_cuda=True,
    )


@functools.cache
def _itemsize(typestr: str) -> int:
    return np.dtype(typestr).itemsize
