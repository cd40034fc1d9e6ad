"""From the source of a kernel to a function that the driver can launch.

Everything that is particular to Numba-CUDA stands here and in the source modules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from numba_swap.driver import abi
from numba_swap.driver.calls import Driver

if TYPE_CHECKING:
    from numba_swap.driver.simulated import SimulatedLibrary

Name: TypeAlias = Literal["copy", "exchange"]

_load_lock = threading.Lock()


def load_kernel(driver: Driver, device: int, name: Name) -> int:
    """Compile and load a kernel for a device, once; return the driver's handle of it."""
    key = device, name
    if key not in driver.kernels:
        with _load_lock, driver.relaxed_capture():
            if key not in driver.kernels:
                driver.kernels[key] = (
                    _register(cast("SimulatedLibrary", driver.library), name)
                    if driver.simulated
                    else _compile(device, name)
                )
    return driver.kernels[key]


def why_not_loaded(driver: Driver, device: int, name: Name) -> str | None:
    """Load a kernel; return why it cannot be, None if it is."""
    if (device, name) in driver.kernels:
        return None
    try:
        load_kernel(driver, device, name)
    except Exception as error:  # whatever a compiler or a loader may raise
        return f"Numba could not compile or load the kernel ({type(error).__name__}: {error})"
    return None


def _sources(name: Name) -> tuple[Any, Callable[[Callable[[int, int], None]], Any]]:
    """Return the kernel for Numba, and what makes one that runs in Python."""
    from numba_swap.modes.kernel import copy_source, exchange_source

    if name == "copy":
        return copy_source.copy_kernel, copy_source.python_kernel
    return exchange_source.exchange_kernel, exchange_source.python_kernel


def _compile(device: int, name: Name) -> int:
    """Compile for a GPU with Numba, and return the driver's handle of the function."""
    from numba import cuda

    from numba_swap.modes.kernel import access, copy_source

    if access.simulator_active:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set, so Numba simulates kernels here")
    with cuda.gpus[device]:
        signature, source = copy_source.KERNEL_SIGNATURE, _sources(name)[0]
        try:
            dispatcher = cuda.jit(signature, cache=True)(source)
        except RuntimeError:  # neither the installation nor the home directory can be written
            dispatcher = cuda.jit(signature)(source)
        (kernel,) = dispatcher.overloads.values()
        function = kernel._codelibrary.get_cufunc()
    _keep.append((dispatcher, function))
    return int(function.handle)


_keep: list[Any] = []  # the loaded modules, which live as long as the process


# Numba's simulator runs one kernel at a time in a process; drivers that are simulated one after
# another may have work left at the same time.
_simulator_lock = threading.Lock()


def _register(library: SimulatedLibrary, name: Name) -> int:
    """Hand the same source to a simulated driver, run by Numba's CUDA simulator."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    from numba_swap.driver.simulated.memory import SimulatedFailure

    source = _sources(name)[1]
    kernel = FakeCUDAKernel(source(library.memory.check_kernel_access), device=False)

    def run(blocks: int, threads: int, *arguments: int) -> None:
        try:
            with _simulator_lock:
                kernel[blocks, threads](*arguments)
        except SimulatedFailure:  # raised anew by Numba's simulator, with words for a code
            raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS) from None

    return library.register_kernel(run, parameters=7)
