"""From the source of a kernel to a function that the driver can launch."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, cast

from numba_swap.device.device import Device
from numba_swap.dispatch.settings import Mode
from numba_swap.errors import ModeUnavailableError
from numba_swap.modes.kernel.sources import KernelName

if TYPE_CHECKING:
    from numba_swap.driver.simulated import SimulatedLibrary

_log = logging.getLogger("numba_swap")
_load_lock = threading.Lock()
# A compiler may hand on pages of what it was given.
_LONGEST_WORDS = 400


def load_kernel(device: Device, name: KernelName) -> int:
    """Compile and load a kernel for a device, once; return the driver's handle of it.

    Raises
    ------
    ModeUnavailableError
        If that cannot be, or could not when it was tried before.
    """
    obstacle = why_not_loaded(device, name)
    if obstacle is not None:
        raise ModeUnavailableError(Mode.KERNEL, obstacle)
    return device.kernels[name]


def why_not_loaded(device: Device, name: KernelName) -> str | None:
    """Load a kernel; return why it cannot be, None if it is.

    It is tried once: where it fails, it fails after seconds of compiling, and would at every call.
    """
    if name in device.kernels:
        return None
    if name not in device.kernel_failures:
        with _load_lock, device.driver.relaxed_capture():
            # Threads that get here together wait for the first of them.
            if name not in device.kernels and name not in device.kernel_failures:
                _try_to_load(device, name)
    return device.kernel_failures.get(name)


def _try_to_load(device: Device, name: KernelName) -> None:
    try:
        device.kernels[name] = _compile(device, name)
    except Exception as error:  # whatever a compiler or a loader may raise
        words = " ".join(f"{type(error).__name__}: {error}".split())
        if len(words) > _LONGEST_WORDS:
            words = f"{words[:_LONGEST_WORDS]}..."
        reason = (
            f"Numba could not compile or load the kernel for device {device.ordinal} ({words}), "
            "which is not tried again in this process"
        )
        if not device.kernel_failures:
            _log.warning("the kernel mode is not used: %s", reason)
        device.kernel_failures[name] = reason


def _compile(device: Device, name: KernelName) -> int:
    if device.driver.simulated:
        from numba_swap.modes.kernel.compilers import simulator

        library = cast("SimulatedLibrary", device.driver.library)
        handle = simulator.register(library, name)
        library.bind_kernel(handle, device.ordinal)
        return handle
    from numba_swap.modes.kernel.compilers import numba_cuda

    return numba_cuda.compile_kernel(device.ordinal, name)
