"""Numba-CUDA: from a kernel's source to a function on a GPU."""

from __future__ import annotations

from typing import Any

from numba_swap.modes.kernel.sources import KernelName, source_of
from numba_swap.native.disk_cache import cache_on_disk


def compile_kernel(device: int, name: KernelName) -> int:
    """Compile for a GPU, and return the driver's handle of the function."""
    from numba import cuda

    from numba_swap.modes.kernel import access, copy_source

    if access.simulator_active:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set, so Numba simulates kernels here")
    with cuda.gpus[device]:
        dispatcher = cuda.jit(source_of(name).kernel)
        cache_on_disk(dispatcher)
        kernel = dispatcher.compile(copy_source.KERNEL_SIGNATURE)
        function = kernel._codelibrary.get_cufunc()
    _keep.append((dispatcher, function))
    return int(function.handle)


_keep: list[Any] = []  # the loaded modules, which live as long as the process
