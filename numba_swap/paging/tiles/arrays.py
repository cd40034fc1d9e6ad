"""Where arrays and streams for a user's kernels come from: Numba, or the simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadArgumentError


def arrays_of(driver: Driver) -> Any:
    """Return what has ``device_array``, ``pinned_array`` and ``stream`` for a driver.

    Its streams are ordered with the legacy default stream, as Numba's are: a kernel that is
    launched there by mistake is slow, and not wrong.
    """
    if driver.simulated:
        from numba_swap.driver.simulated.gpu import SimulatedGPU

        return SimulatedGPU(driver)
    from numba import cuda

    return cuda


def free_bytes(driver: Driver) -> int | None:
    """Return how much device memory is free; None where that is not known."""
    arrays = arrays_of(driver)
    if driver.simulated:
        left: int | None = arrays.library.memory.free_device_bytes()
        return left
    try:
        return int(arrays.current_context().get_memory_info()[0])
    except NotImplementedError:  # a memory manager of the user's, set in Numba
        return None


def check_fits(driver: Driver, needed: int, what: str, advise: Callable[[int], str]) -> None:
    """Refuse what needs more device memory than is free.

    Raises
    ------
    BadArgumentError
        With both numbers, and what to do.
    """
    free = free_bytes(driver)
    if free is not None and needed > free:
        raise BadArgumentError(
            f"{what} needs {needed} bytes of device memory, and {free} are free: {advise(free)}"
        )


def like(driver: Driver, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a new host array of the same shape, type and kind of memory: pinned or plain."""
    if driver.pointer_info(array.ctypes.data).memory_type == abi.MEMORYTYPE_HOST:
        made: npt.NDArray[Any] = arrays_of(driver).pinned_array(array.shape, array.dtype)
        return made
    return np.empty(array.shape, array.dtype)
