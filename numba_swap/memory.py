"""What an array or an address is: where it lies, how it is laid out, who may reach it."""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.api import Driver, PointerInfo
from numba_swap.errors import BadPlanError, UnsupportedArrayError

Addresses = npt.NDArray[np.uint64]


class MemoryKind(enum.StrEnum):
    """Kinds of memory that differ in who can reach them and how fast.

    Attributes
    ----------
    DEVICE
        Memory of one GPU.
    PINNED
        Page-locked host memory, allocated or registered with CUDA: the GPU can read it in place.
    MANAGED
        Memory that migrates between host and GPU.
    PAGEABLE
        Ordinary host memory; copies of it are staged by the driver.
    """

    DEVICE = "device"
    PINNED = "pinned"
    MANAGED = "managed"
    PAGEABLE = "pageable"


class Allocation(NamedTuple):
    """A range of addresses of one kind.

    Attributes
    ----------
    start, stop : int
        First address, and the one after the last.
    kind : MemoryKind
        What it is.
    device : int or None
        The GPU it belongs to; None for pageable memory.
    device_offset : int or None
        What to add to an address to get the one by which a kernel reaches it; None if none can.
    """

    start: int
    stop: int
    kind: MemoryKind
    device: int | None
    device_offset: int | None


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
        return _view_cuda_interface(interface, array, name)
    if isinstance(array, np.ndarray):
        return _view_numpy(array, name)
    if hasattr(array, "__dlpack__"):
        from numba_swap.dlpack import read_dlpack  # seldom needed

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


def find_allocation(driver: Driver, address: int) -> Allocation | None:
    """Ask the driver what an address is; None if CUDA does not know it."""
    info = driver.pointer_info(address)
    if info.memory_type == 0:
        return None
    if not info.start <= address < info.start + info.nbytes:
        raise BadPlanError(f"the driver does not tell which allocation holds {address:#x}")
    return describe_allocation(info, address)


def describe_allocation(info: PointerInfo, address: int) -> Allocation:
    """Put into words what the driver told of an address that it knows."""
    if info.managed:
        kind = MemoryKind.MANAGED
    elif info.memory_type == abi.MEMORYTYPE_DEVICE:
        kind = MemoryKind.DEVICE
    else:
        kind = MemoryKind.PINNED
    offset = info.device_address - address if info.device_address else None
    return Allocation(info.start, info.start + info.nbytes, kind, info.device, offset)


def allocations_of_range(
    driver: Driver, start: int, stop: int, name: str
) -> tuple[Allocation, ...]:
    """Every allocation that an array's range of addresses touches, in order.

    One for almost every array; host memory registered in pieces has several.

    Raises
    ------
    BadPlanError
        If the array runs past the end of a CUDA allocation into memory that CUDA does not know.
    """
    first = find_allocation(driver, start)
    if first is None:
        return (Allocation(start, stop, MemoryKind.PAGEABLE, None, None),)
    if stop <= first.stop:
        return (first,)
    found = [first]
    while found[-1].stop < stop:
        allocation = find_allocation(driver, found[-1].stop)
        if allocation is None:
            raise BadPlanError(
                f"{name} spans {start:#x} to {stop:#x}, but the CUDA allocation that holds its "
                f"beginning ends at {found[-1].stop:#x}: pin (register) all of it or none"
            )
        found.append(allocation)
    return tuple(found)
