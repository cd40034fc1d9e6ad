"""The interface between arms and their timing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from numba_swap.tools.bench.ab.spec.cases import Case
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.memory import Mapping


class Action(Protocol):
    """What is timed."""

    @property
    def stream(self) -> int:
        """Where its work is, for events before and behind it."""

    @property
    def mapping(self) -> Mapping:
        """The blocks that it really moves, rows of source and destination, to be checked."""

    @property
    def mode(self) -> str | None:
        """Which mode of this package runs; None for others."""

    @property
    def reason(self) -> str | None:
        """Why that mode; None for others."""

    def enqueue(self) -> None:
        """Submit the work; may take until it is done, if the way of copying is such."""

    def wait(self) -> None:
        """Return when all bytes are in their places."""


@dataclass(frozen=True)
class Setup:
    """What an arm is made for.

    Attributes
    ----------
    gpu : BenchGPU
        Where.
    case : Case
        What.
    source, destination : array
        Shape (blocks, block_bytes), the arm's own objects.
    mapping : ndarray of int64, shape (n, 2)
        The blocks to move.
    """

    gpu: BenchGPU
    case: Case
    source: Any
    destination: Any
    mapping: Mapping


class Planted:
    """An action made slower on purpose: the host spins before each run.

    Attributes
    ----------
    spin_ns : int
        For how long; 0 until it is set from the median of the warm-up.
    """

    def __init__(self, action: Action, fraction: float) -> None:
        self._action = action
        self._fraction = fraction
        self.stream, self.mapping = action.stream, action.mapping
        self.mode, self.reason = action.mode, action.reason
        self.spin_ns = 0

    def plant(self, median_ns: int) -> None:
        """Spin from now on for the fraction of this time."""
        self.spin_ns = round(self._fraction * median_ns)

    def enqueue(self) -> None:
        """Spin, and submit the work."""
        until = time.perf_counter_ns() + self.spin_ns
        while time.perf_counter_ns() < until:
            pass
        self._action.enqueue()

    def wait(self) -> None:
        """Wait for the work."""
        self._action.wait()
