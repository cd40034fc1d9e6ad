"""CuPy: an asynchronous copy for every block, from Python."""

from __future__ import annotations

from typing import Any

from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.arms.peers import import_for, needs_gpu

_ARM = "cupy-loop"


class CupyLoop:
    """``set``, ``get`` or an assignment for each block, in one stream, waited for at the end.

    The arrays are wrapped before the clock starts; slicing them is timed.
    """

    mode = reason = None

    def __init__(self, setup: Setup, cupy: Any) -> None:
        self.stream = setup.gpu.stream
        self.mapping = setup.mapping
        self._queue = cupy.cuda.ExternalStream(self.stream)
        self._direction = setup.case.direction
        self._pairs: list[tuple[int, int]] = [(int(i), int(j)) for i, j in setup.mapping]
        self._source, self._destination = setup.source, setup.destination
        if self._direction != "h2d":
            self._source = cupy.asarray(self._source)
        if self._direction != "d2h":
            self._destination = cupy.asarray(self._destination)

    def enqueue(self) -> None:
        """Submit the copies."""
        source, destination, queue = self._source, self._destination, self._queue
        if self._direction == "h2d":
            for i, j in self._pairs:
                destination[j].set(source[i], queue)
        elif self._direction == "d2h":
            for i, j in self._pairs:
                source[i].get(queue, out=destination[j], blocking=False)
        else:
            with queue:
                for i, j in self._pairs:
                    destination[j] = source[i]

    def wait(self) -> None:
        """Wait for the stream."""
        self._queue.synchronize()


def make(setup: Setup) -> CupyLoop:
    """Make it ready, or say what is missing."""
    needs_gpu(_ARM, setup)
    return CupyLoop(setup, import_for(_ARM, "cupy", "cupy-cuda13x or cupy-cuda12x"))
