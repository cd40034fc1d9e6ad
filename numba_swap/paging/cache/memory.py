"""Device memory of a cache, as arrays that kernels can take."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.inputs.arrays import contiguous_strides
from numba_swap.device.context import Context
from numba_swap.dispatch.settings import check_positive
from numba_swap.errors import BadArgumentError, brief
from numba_swap.swap.verbs import current_devices

_log = logging.getLogger("numba_swap")
# What is left for others by default: libraries take workspaces when they are first called.
_LEFT_FREE = 0.1


class DeviceArray:
    """An array in device memory; Numba, CuPy and PyTorch read it by its CUDA array interface.

    Attributes
    ----------
    shape, strides : tuple of int
        As those of a NumPy array.
    dtype : dtype
        Type of the elements.
    nbytes : int
        Bytes of all elements.
    """

    def __init__(
        self, context: Context, address: int, shape: tuple[int, ...], dtype: Any, holds: object
    ) -> None:
        self._context = context
        self._holds = holds
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.strides = contiguous_strides(shape, self.dtype.itemsize)
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": self.dtype.str,
            "data": (address, False),
            "strides": None,
            "version": 3,
            "stream": None,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def copy_to_host(self, stream: int = 0) -> npt.NDArray[Any]:
        """Return a copy as a NumPy array, after the work that is in a stream; for tests and looks.

        Parameters
        ----------
        stream : int, optional
            The handle of the stream; by default the legacy default one.
        """
        host = np.empty(self.shape, self.dtype)
        if not self.nbytes:
            return host
        address = self.__cuda_array_interface__["data"][0]
        driver = self._context.driver
        with driver.activate(self._context.handle):
            event = self._context.take_event()
            driver.memcpy_async(host.ctypes.data, address, self.nbytes, stream)
            driver.record_event(event, stream)
            driver.synchronize_event(event)
            self._context.give_event(event)
        return host


class DeviceMemory:
    """A piece of device memory, freed with `free`, or when nothing refers to it any more."""

    def __init__(self, context: Context, nbytes: int) -> None:
        self._context = context
        with context.driver.activate(context.handle):
            self.address = context.driver.device_alloc(max(1, nbytes))

    def free(self) -> None:
        """Free it. The driver waits for the work that may use it."""
        address, self.address = self.address, 0
        if address:
            with self._context.driver.activate(self._context.handle):
                self._context.driver.device_free(address)

    def __del__(self) -> None:
        try:
            if getattr(self, "address", 0):
                self.free()
        except Exception as error:  # the context is broken, or the process ends
            _log.debug("memory of a cache was not freed: %s", error)


class SlotAdvice(NamedTuple):
    """How many slots fit.

    Attributes
    ----------
    slots : int
        How many.
    reason : str
        The figures behind it.
    """

    slots: int
    reason: str

    def __str__(self) -> str:
        return f"{self.slots} slots: {self.reason}"


def suggest_slots(
    block_bytes: int, device: int | None = None, *, leave_bytes: int | None = None
) -> SlotAdvice:
    """Say how many slots of a `BlockCache` fit into the memory that a GPU has free now.

    Parameters
    ----------
    block_bytes : int
        Bytes of a block, of all layers.
    device : int, optional
        The GPU; by default that of the calling thread's context, else the first one.
    leave_bytes : int, optional
        How much memory to leave free. By default a tenth of what is free, for libraries take
        workspaces when they are first called.

    Returns
    -------
    SlotAdvice
        The number and the reason, in that order. Nothing is allocated.

    Raises
    ------
    BadArgumentError
        A number that is no integer from 1 on (from 0 on for `leave_bytes`).
    DriverUnavailableError
        No CUDA driver or device.

    Examples
    --------
    >>> import numba_swap as ns
    >>> with ns.simulate():
    ...     print(ns.suggest_slots(1 << 20, leave_bytes=1 << 30))
    15360 slots: 17179869184 bytes free on GPU 0, 1073741824 left free, 1048576 a block
    """
    check_positive(block_bytes, "block_bytes")
    if leave_bytes not in (None, 0):
        check_positive(leave_bytes, "leave_bytes")
    context = cache_context(device)
    with context.driver.activate(context.handle):
        free, _ = context.driver.memory_info()
    left = int(free * _LEFT_FREE) if leave_bytes is None else leave_bytes
    slots = max(0, free - left) // block_bytes
    return SlotAdvice(
        slots,
        f"{free} bytes free on GPU {context.device.ordinal}, {left} left free, "
        f"{block_bytes} a block",
    )


def cache_context(device: int | None) -> Context:
    """Return the context that a cache works in: the calling thread's, or a device's primary one."""
    devices = current_devices()
    current = devices.driver.probe(0)[0]
    if current and (device is None or devices.context(current).device.ordinal == device):
        return devices.context(current)
    if device is not None and (
        type(device) is not int or not 0 <= device < devices.driver.device_count()
    ):
        raise BadArgumentError(
            f"device={brief(device)} is not one of the {devices.driver.device_count()} GPUs"
        )
    handle = devices[device or 0].primary_context
    with devices.driver.activate(handle):
        return devices.context(handle)


def slots_in(nbytes: int | str, block_bytes: int, context: Context) -> int:
    """Return how many blocks fit into so many bytes, or into a share of what is free ("60%").

    Raises
    ------
    BadArgumentError
        Neither, or not even one block fits.
    """
    with context.driver.activate(context.handle):
        free, _ = context.driver.memory_info()
    if isinstance(nbytes, str):
        try:
            share = float(nbytes.strip().removesuffix("%")) / 100
        except ValueError:
            share = 0.0
        if not (nbytes.strip().endswith("%") and 0 < share <= 1):
            raise BadArgumentError(
                f"bytes={brief(nbytes)} is no share of the memory that is free: '60%' for example"
            )
        nbytes = int(free * share)
    else:
        check_positive(nbytes, "bytes")
    if nbytes < block_bytes:
        raise BadArgumentError(
            f"a block has {block_bytes} bytes, which do not fit into {nbytes} ({free} are free)"
        )
    return nbytes // block_bytes
