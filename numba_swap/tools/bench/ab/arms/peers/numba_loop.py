"""What Numba users do today: a copy for every block, each waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba_swap.tools.bench.ab.arms.actions import Setup


class NumbaLoop:
    """``copy_to_device`` or ``copy_to_host`` in a Python loop, in the default stream.

    The pairs of block numbers are made before the clock starts; slicing the arrays is timed.
    """

    mode = reason = None
    stream = 0

    def __init__(self, setup: Setup) -> None:
        self.mapping = setup.mapping
        self._pairs: list[tuple[int, int]] = [(int(i), int(j)) for i, j in setup.mapping]
        self._arrays = setup.source, setup.destination
        self._copy = _copy_between(setup)

    def enqueue(self) -> None:
        """Copy block by block; all is done when this returns."""
        source, destination = self._arrays
        copy = self._copy
        for i, j in self._pairs:
            copy(source[i], destination[j])

    def wait(self) -> None:
        """Wait for nothing more."""


def _copy_between(setup: Setup) -> Callable[[Any, Any], object]:
    direction = setup.case.direction
    if direction == "h2d":
        return lambda src, dst: dst.copy_to_device(src)
    if setup.gpu.simulated:  # its arrays only copy to new host arrays
        if direction == "d2h":
            return lambda src, dst: dst.__setitem__(..., src.copy_to_host())
        return lambda src, dst: dst.copy_to_device(src.copy_to_host())
    if direction == "d2h":
        return lambda src, dst: src.copy_to_host(dst)
    return lambda src, dst: dst.copy_to_device(src)


make = NumbaLoop
