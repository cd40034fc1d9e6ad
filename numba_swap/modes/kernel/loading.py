"""From the source of a kernel to a function that the driver can launch."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

from numba_swap.device.device import Device
from numba_swap.modes.kernel.sources import KernelName

if TYPE_CHECKING:
    from numba_swap.driver.simulated import SimulatedLibrary

_load_lock = threading.Lock()


def load_kernel(device: Device, name: KernelName) -> int:
    """Compile and load a kernel for a device, once; return the driver's handle of it."""
    if name not in device.kernels:
        with _load_lock, device.driver.relaxed_capture():
            if name not in device.kernels:
                device.kernels[name] = _compile(device, name)
    return device.kernels[name]


def _compile(device: Device, name: KernelName) -> int:
    if device.driver.simulated:
        from numba_swap.modes.kernel.compilers import simulator

        return simulator.register(cast("SimulatedLibrary", device.driver.library), name)
    from numba_swap.modes.kernel.compilers import numba_cuda

    return numba_cuda.compile_kernel(device.ordinal, name)


def why_not_loaded(device: Device, name: KernelName) -> str | None:
    """Load a kernel; return why it cannot be, None if it is."""
    if name in device.kernels:
        return None
    try:
        load_kernel(device, name)
    except Exception as error:  # whatever a compiler or a loader may raise
        return f"Numba could not compile or load the kernel ({type(error).__name__}: {error})"
    return None
