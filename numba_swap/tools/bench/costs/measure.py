"""A grid of swaps, each timed in every mode."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from numba_swap.copies.ends import Direction
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import workload_of
from numba_swap.driver import abi
from numba_swap.errors import DriverCallError, ModeUnavailableError
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.costs.fit import TimedSwap
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.memory import ITEM_BYTES, BenchMemory
from numba_swap.tools.bench.timing import measure, measure_in_turn
from numba_swap.tools.units import KIB, MIB

_log = logging.getLogger("numba_swap")

# To see how many thread blocks a kernel needs.
_FEW_BLOCKS = 4
_SIZE_FOR_FEW_BLOCKS = 64 * KIB
_WARM_UP_SWAPS = 10


class GridSwap(NamedTuple):
    """A swap of the grid: so many blocks of one size."""

    direction: Direction
    pageable: bool
    size: int
    number: int

    def __str__(self) -> str:
        kind = " (pageable)" if self.pageable else ""
        return f"{self.direction}{kind}, {self.number} x {self.size} bytes"


class GridBoxes(NamedTuple):
    """Boxes of the grid: so many of one shape, of 4-byte elements."""

    direction: Direction
    aligned: bool
    shape: tuple[int, int, int]
    number: int

    @property
    def pageable(self) -> bool:
        """They are measured in pinned memory only."""
        return False

    def __str__(self) -> str:
        kind = "" if self.aligned else " (odd addresses)"
        return f"{self.direction}{kind}, {self.number} boxes of {self.shape}"


@dataclass(frozen=True)
class CostGrid:
    """What is measured, and how often.

    Attributes
    ----------
    sizes, counts : tuple of int
        All combinations are swaps.
    shapes, box_counts : tuple
        All combinations are boxes.
    most_bytes, most_pageable_bytes : int
        Swaps of more are left out.
    repeats, fewest_repeats, swap_s : int or float
        How often a swap is measured in each mode; the fewest are enough once that time is over.
    longest_us : float
        A mode is left out where a single run would take longer.
    shared_sizes, shared_shapes : tuple
        Of what, and of boxes of what shapes, both engines at once are measured.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    most_bytes: int
    most_pageable_bytes: int
    shapes: tuple[tuple[int, int, int], ...]
    box_counts: tuple[int, ...]
    repeats: int = 9
    fewest_repeats: int = 3
    swap_s: float = 0.03
    longest_us: float = 40_000.0
    shared_sizes: tuple[int, ...] = ()
    shared_shapes: tuple[tuple[int, int, int], ...] = ()

    def most_of(self, pageable: bool) -> int:
        """Return the most bytes of a swap."""
        return self.most_pageable_bytes if pageable else self.most_bytes

    def swaps(self) -> Iterator[GridSwap | GridBoxes]:
        """Yield every swap of one GPU, of rising sizes and counts; then all boxes."""
        return self._swaps((Direction.H2D, Direction.D2H, Direction.D2D))

    def swaps_between(self) -> Iterator[GridSwap | GridBoxes]:
        """Yield every swap from one GPU to another, as `swaps` does."""
        return self._swaps((Direction.P2P,))

    def _swaps(self, directions: Sequence[Direction]) -> Iterator[GridSwap | GridBoxes]:
        for direction in directions:
            over_host = direction in (Direction.H2D, Direction.D2H)
            for pageable in (False, True) if over_host else (False,):
                for size in self.sizes:
                    for count in self.counts:
                        if count * size <= self.most_of(pageable):
                            yield GridSwap(direction, pageable, size, count)
        for direction in directions:
            for aligned in (True, False):
                for shape in self.shapes:
                    for count in self.box_counts:
                        if count * math.prod(shape) * ITEM_BYTES <= self.most_bytes:
                            yield GridBoxes(direction, aligned, shape, count)

    def shared_swaps(self) -> Iterator[GridSwap | GridBoxes]:
        """Yield what both engines are measured with, as many as there may be."""
        for direction in (Direction.H2D, Direction.D2H):
            for size in self.shared_sizes:
                yield GridSwap(direction, False, size, self.most_bytes // size)
            for aligned in (True, False):
                for shape in self.shared_shapes:
                    nbytes = math.prod(shape) * ITEM_BYTES
                    yield GridBoxes(direction, aligned, shape, self.most_bytes // (2 * nbytes))


FULL = CostGrid(
    # Two lengths or more of every class, on both sides of where the batch copy is known to jump.
    (512, 2 * KIB, 4 * KIB, 12 * KIB, 24 * KIB, 32 * KIB, 96 * KIB, 128 * KIB, 256 * KIB, MIB),
    (1, 4, 16, 64, 256, 1024, 4096),
    256 * MIB,
    # Pageable copies take longer, so fewer bytes tell as much; but they should not fit in a cache.
    64 * MIB,
    # Rows of every class, and boxes of few and of many rows.
    (
        *((8, 8, 8), (32, 32, 32), (16, 32, 64), (64, 64, 64), (66, 66, 66), (16, 32, 160)),
        *((128, 128, 128), (8, 32, 192), (8, 32, 256), (8, 128, 512), (1, 512, 768)),
        *((64, 512, 512), (256, 512, 512)),
    ),
    (1, 8, 64, 512),
    # The shortest of a class, which takes a batch the longest; below 28 KiB a batch only hurts.
    shared_sizes=(32 * KIB, 128 * KIB),
    shared_shapes=((32, 32, 32), (64, 64, 64), (128, 128, 128), (64, 64, 256)),
)
# The simulated kernel runs in Python, one thread after another.
SIMULATED = CostGrid(
    (64, 4 * KIB, 32 * KIB, 128 * KIB),
    (1, 4),
    512 * KIB,
    512 * KIB,
    ((2, 2, 32), (2, 2, 256)),
    (1, 2),
)


def _pools(grid: CostGrid) -> tuple[int, int]:
    """Return the bytes of an array of the host, and of one of the device."""
    return 2 * grid.most_bytes, 2 * grid.most_bytes  # for every other block is left out


def grid_that_fits(gpu: BenchGPU, grid: CostGrid) -> CostGrid:
    """Return a grid without the swaps for which there is no memory.

    Raises
    ------
    DriverCallError
        If there is too little for the longest blocks.
    """
    # First what the kernel's tables need, for the arrays may use up all that can be pinned.
    for count in grid.counts:
        devices_of(gpu.driver).host_buffers.find(16 * count)
    wanted = grid.most_bytes
    while True:
        memory = BenchMemory(gpu, *_pools(grid))
        half = grid.most_bytes // 2
        try:
            if gpu.peer is None:
                memory.host()
                memory.sides(Direction.D2D)
            else:
                memory.sides(Direction.P2P)
            break
        except DriverCallError as error:
            if error.code != abi.ERROR_OUT_OF_MEMORY or half < max(grid.sizes):
                raise
        pageable = min(half, grid.most_pageable_bytes)
        grid = dataclasses.replace(grid, most_bytes=half, most_pageable_bytes=pageable)
    if grid.most_bytes < wanted:
        _log.warning("no memory for swaps of more than %d bytes: not measured", grid.most_bytes)
    return grid


class SwapTimer:
    """Times the swaps of a grid on one GPU.

    Parameters
    ----------
    gpu : BenchGPU
        Where.
    grid : CostGrid
        What, in the order in which it yields them.

    Attributes
    ----------
    stream : int
        Where they run.
    """

    def __init__(self, gpu: BenchGPU, grid: CostGrid) -> None:
        self._grid = grid
        self.stream = gpu.stream
        self._memory = BenchMemory(gpu, *_pools(grid))
        if gpu.peer is None:
            self._memory.host()[:] = 1
        self._warm_up()
        self._copy_us: dict[tuple[type, Direction, bool, Mode], float] = {}

    def _warm_up(self) -> None:
        """Let the clocks of an idle GPU and host rise: the first swaps took up to twice as long."""
        copy = self._memory.contiguous(Direction.H2D, self._grid.most_bytes)
        end = time.perf_counter() + self._grid.swap_s * _WARM_UP_SWAPS
        copy()
        while time.perf_counter() < end and not self._memory.gpu.driver.simulated:
            copy()

    def measure(self, swap: GridSwap | GridBoxes) -> list[TimedSwap]:
        """Return the median time of each mode that can run; a round of all after another."""
        stream, plan = self.stream, self.plan(swap)
        load = workload_of(plan.copies)
        if not load.terms:  # boxes for which there is no memory
            return []
        actions: dict[Mode, Callable[[], object]] = {}
        for mode in Mode:
            if self._would_take_us(swap, mode) > self._grid.longest_us:
                continue
            # A plan of its own each, for a plan remembers how it ran last.
            with contextlib.suppress(ModeUnavailableError):
                mine = CopyPlan(devices_of(self._memory.gpu.driver), plan.copies)
                mine.run(stream, mode).wait()  # warms up
                actions[mode] = lambda p=mine, m=mode: p.run(stream, m).wait()  # type: ignore[misc]
        samples = measure_in_turn(
            actions,
            repeats=self._grid.repeats,
            warmups=0,
            enough=(self._grid.fewest_repeats, self._grid.swap_s),
        )
        timed = [TimedSwap(mode, load, s.median_s * 1e6) for mode, s in samples.items()]
        for mode, _, measured_us in timed:
            self._copy_us[type(swap), swap.direction, swap.pageable, mode] = (
                measured_us / swap.number
            )
        return timed

    def full_blocks(self, direction: Direction) -> float:
        """Return about how many thread blocks a kernel needs for its full speed."""
        size = min(_SIZE_FOR_FEW_BLOCKS, max(self._grid.sizes))
        count = min(1024, self._grid.most_bytes // size)
        plan, stream = self.plan(GridSwap(direction, False, size, count)), self.stream
        try:
            few, many = (
                measure(
                    lambda b=blocks: plan.run(stream, Mode.KERNEL, max_blocks=b).wait(),  # type: ignore[misc]
                    repeats=self._grid.fewest_repeats + 1,
                    warmups=0,
                ).median_s
                for blocks in (_FEW_BLOCKS, None)
            )
        except ModeUnavailableError:
            return 0.0
        return round(_FEW_BLOCKS * max(1.0, few / many), 1)

    def plan(self, swap: GridSwap | GridBoxes) -> CopyPlan:
        """Return the plan of a swap."""
        if isinstance(swap, GridBoxes):
            return self._memory.plan_boxes(swap.direction, swap.shape, swap.number, swap.aligned)
        host = "pageable" if swap.pageable else "pinned"
        most = 2 * self._grid.most_of(swap.pageable)  # for every other block is left out
        arrays = self._memory.blocks(swap.direction, swap.size, host, most)
        return plan_blocks(*arrays, self._memory.mapping(*arrays, swap.number))

    def _would_take_us(self, swap: GridSwap | GridBoxes, mode: Mode) -> float:
        """Return a guess from the swap before, which had fewer or shorter copies."""
        return swap.number * self._copy_us.get(
            (type(swap), swap.direction, swap.pageable, mode), 0.0
        )
