"""One run of the suite: what it measures on, and the rows so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.machine import describe_machine
from numba_swap.tools.bench.memory import BenchMemory, Mapping
from numba_swap.tools.bench.speed.rows import Row
from numba_swap.tools.bench.timing import Samples, measure
from numba_swap.tools.units import GIB, format_bytes


class SpeedRun:
    """What every section of the suite gets.

    Parameters
    ----------
    gpu : BenchGPU
        Where.
    repeats : int
        How often each throughput is measured.
    report : callable
        Gets a line of progress for every row.
    unit_bytes : int
        How much a ceiling copies, and how much host memory there is; most else is a share of it.

    Attributes
    ----------
    gpu, stream, memory
        What is measured on. The host's memory holds random bytes, the device's begins with them.
    repeats, unit_bytes : int
        As given.
    rows : list of Row
        What was measured.
    ceilings : dict of Direction to Samples
        What one contiguous copy of the unit took.
    """

    def __init__(
        self,
        gpu: BenchGPU,
        repeats: int,
        report: Callable[[str], None],
        unit_bytes: int = GIB,
    ) -> None:
        self.gpu, self.stream = gpu, gpu.stream
        self.repeats, self.report, self.unit_bytes = repeats, report, unit_bytes
        self.rows: list[Row] = []
        self.ceilings: dict[Direction, Samples] = {}
        self._start = time.perf_counter()
        self.memory = BenchMemory(gpu, unit_bytes, 2 * unit_bytes)
        host = self.memory.host()
        host[:] = np.frombuffer(np.random.default_rng(0).bytes(unit_bytes), dtype=np.uint8)
        gpu.copy(self.memory.device(), host, unit_bytes)

    def add(
        self,
        name: str,
        value: float,
        samples: Samples,
        target: float | None = None,
        *,
        unit: str = "ratio",
        at_least: bool = True,
        **details: Any,
    ) -> None:
        """Keep a row, and report it; see `Row`."""
        row = Row(name, value, unit, target, at_least, details, samples)
        self.rows.append(row)
        self.report(f"[{time.perf_counter() - self._start:5.1f} s] {row}")

    def add_rate(
        self,
        name: str,
        samples: Samples,
        nbytes: int,
        ceiling: Samples | None = None,
        target: float | None = None,
        **details: Any,
    ) -> None:
        """Keep the rate of copying so many bytes: over that of a ceiling, or by itself."""
        details["bytes"] = nbytes
        if ceiling is None:
            self.add(name, samples.rate(nbytes), samples, unit="B/s", **details)
        else:
            ratio = samples.rate(nbytes) / ceiling.rate(self.unit_bytes)
            self.add(name, ratio, samples, target, **details)

    def measure_ceilings(self) -> None:
        """One contiguous copy in each direction."""
        for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
            samples = self.measure_ceiling(direction, repeats=7)
            former = self.ceilings.get(direction)
            if former is not None:
                samples.raw_ns = former.raw_ns + samples.raw_ns
            self.ceilings[direction] = samples
            name = f"contiguous {format_bytes(self.unit_bytes)}, {direction}"
            self.add_rate(name, samples, self.unit_bytes, direction=direction)

    def measure_ceiling(self, direction: Direction, repeats: int, warmups: int = 2) -> Samples:
        """Time one contiguous copy; its rate is ``rate(unit_bytes)``."""
        action = self.memory.contiguous(direction, self.unit_bytes)
        return measure(action, repeats=repeats, warmups=warmups)

    def plan(self, direction: Direction, size: int, count: int) -> CopyPlan:
        """Plan a swap of random blocks, run it, and check a sample of them byte by byte."""
        source, destination = self.memory.blocks(direction, size)
        mapping = self.memory.mapping(source, destination, count)
        plan = plan_blocks(source, destination, mapping)
        plan.run(self.stream).wait()
        check_blocks(source, destination, mapping)
        return plan

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured, raw values included."""
        return {
            "schema": "numba_swap speed targets 1",
            "machine": describe_machine(),
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
        }


def check_blocks(source: Any, destination: Any, mapping: Mapping) -> None:
    """Look at every byte of a sample of blocks."""
    for i, j in mapping[:: max(1, len(mapping) // 8)]:
        if not np.array_equal(_host(source[int(i)]), _host(destination[int(j)])):
            raise AssertionError(f"blocks of {source.shape[1]} bytes: {i} arrived wrong in {j}")


def _host(array: Any) -> np.ndarray[Any, Any]:
    return array if isinstance(array, np.ndarray) else array.copy_to_host()
