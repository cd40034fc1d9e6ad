"""The kernels by their names, imported when one is first wanted: that imports Numba-CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from numba_swap.native.salt import salted

KernelName: TypeAlias = Literal["copy", "exchange", "box"]


class KernelSource(NamedTuple):
    """One kernel, for each kind of compiler.

    Attributes
    ----------
    kernel : function
        The source for Numba-CUDA.
    in_python : callable
        Makes one that runs in Python, from what checks each access.
    """

    kernel: Any
    in_python: Callable[[Callable[[int, int], None]], Any]


def source_of(name: KernelName) -> KernelSource:
    """Return a kernel."""
    from numba_swap.modes.kernel import box_source, copy_source, exchange_source

    if name == "copy":
        source = KernelSource(copy_source.copy_kernel, copy_source.python_kernel)
    elif name == "box":
        source = KernelSource(box_source.box_kernel, box_source.python_kernel)
    else:
        source = KernelSource(exchange_source.exchange_kernel, exchange_source.python_kernel)
    # Its loads and stores stand in other files, at whose changes Numba's cache does not look.
    return source._replace(kernel=salted(source.kernel, __file__))
