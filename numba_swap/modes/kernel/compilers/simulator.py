"""Numba's CUDA simulator: the same sources, run in Python for a simulated driver."""

from __future__ import annotations

import threading

from numba_swap.driver import abi
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.simulated.memory import SimulatedFailure
from numba_swap.modes.kernel.sources import KernelName, source_of

# Numba's simulator runs one kernel at a time in a process; drivers that are simulated one after
# another may have work left at the same time.
_simulator_lock = threading.Lock()


def register(library: SimulatedLibrary, name: KernelName) -> int:
    """Hand a kernel to a simulated driver; return its handle there."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    in_python = source_of(name).in_python(library.memory.check_kernel_access)
    kernel = FakeCUDAKernel(in_python, device=False)

    def run(blocks: int, threads: int, *arguments: int) -> None:
        try:
            with _simulator_lock:
                kernel[blocks, threads](*arguments)
        except SimulatedFailure:  # raised anew by Numba's simulator, with words for a code
            raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS) from None

    return library.register_kernel(run, parameters=7)
