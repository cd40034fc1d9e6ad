"""Measuring what copies cost on this machine: `calibrate`."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.copies import Direction
from numba_swap.dispatch.calibration import (
    SCHEMA,
    costs_as_json,
    find_costs,
    key_of,
    load_document,
    path_of,
    reference_costs,
    use_costs,
)
from numba_swap.dispatch.cost_model import ORDER, ROUTES, Cost, Costs, Load, load_of, route_key
from numba_swap.dispatch.settings import DRIVER_VERSION_VARIABLE, Mode, current_settings
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.errors import CalibrationError, ModeUnavailableError
from numba_swap.swap.verbs import CopyPlan, plan_blocks
from numba_swap.tools.bench.fit import Cell, fit_cost
from numba_swap.tools.bench.memory import allocator, as_blocks

KIB, MIB = 1 << 10, 1 << 20

# Two lengths or more of every class, on both sides of where the batch copy is known to jump.
SIZES = (512, 2 * KIB, 4 * KIB, 12 * KIB, 24 * KIB, 32 * KIB, 96 * KIB, 128 * KIB, 256 * KIB, MIB)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096)
MOST_BYTES = 256 * MIB
# Pageable copies are staged by the driver at some 10 GB/s: fewer bytes tell as much.
MOST_PAGEABLE_BYTES = 16 * MIB
# A cell is measured so often, or for so long, and is left out if once would take longer.
_REPEATS = 9
_CELL_SECONDS = 0.03
_FEWEST_REPEATS = 3
_LONGEST_US = 40_000.0
# To see how many thread blocks a kernel needs.
_FEW_BLOCKS = 4
_SIZE_FOR_FEW_BLOCKS = 64 * KIB


class Progress(NamedTuple):
    """How far a calibration is.

    Attributes
    ----------
    done, total : int
        Cells measured, and cells in all.
    what : str
        What is measured now.
    """

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes
    ----------
    costs : Costs
        The fitted costs.
    cells : tuple of Cell
        What was measured.
    before : Costs
        The costs by which was chosen before.
    path : Path or None
        The file; None if none was written.
    seconds : float
        How long it took.
    simulated : bool
        Whether a simulated driver was measured, which says nothing about a GPU.
    """

    costs: Costs
    cells: tuple[Cell, ...]
    before: Costs
    path: Path | None
    seconds: float
    simulated: bool

    def errors(self) -> dict[tuple[str, Mode], tuple[float, float]]:
        """Return, for every route and mode, predicted over measured: median and worst."""
        ratios: dict[tuple[str, Mode], list[float]] = {}
        for mode, load, measured_us in self.cells:
            predicted = {m: us for us, m in self.costs.predict(load)}[mode]
            ratios.setdefault((load.route, mode), []).append(predicted / measured_us)
        return {
            key: (statistics.median(values), max(values, key=lambda r: abs(math.log(r))))
            for key, values in ratios.items()
        }

    def regret(self, costs: Costs) -> tuple[float, float]:
        """Return the time of the mode that costs would choose over that of the best mode.

        Returns
        -------
        mean, worst : float
            Geometric mean, and the largest, over all swaps that were measured in several modes.
        """
        swaps: dict[Load, dict[Mode, float]] = {}
        for mode, load, measured_us in self.cells:
            swaps.setdefault(load, {})[mode] = measured_us
        regrets = [1.0]
        for load, times in swaps.items():
            known = [(us, mode) for us, mode in costs.predict(load) if mode in times]
            chosen = min(known, key=lambda item: item[0])[1]  # of equal ones the first, as `rank`
            regrets.append(times[chosen] / min(times.values()))
        return statistics.geometric_mean(regrets), max(regrets)

    @property
    def gain(self) -> float:
        """How many times faster the modes chosen now are than those before, geometric mean."""
        return self.regret(self.before)[0] / self.regret(self.costs)[0]


def calibrate(
    *,
    store: bool = True,
    progress: Callable[[Progress], object] | None = None,
) -> Calibration:
    """Measure what copies cost in each mode here, and choose by that from now on.

    Parameters
    ----------
    store : bool
        Whether to write the result to the user's cache, where every later process finds it. It
        holds for this GPU, driver and version of numba_swap, and is ignored for any other.
    progress : callable, optional
        Gets a `Progress` before each measurement.

    Returns
    -------
    Calibration
        The fitted costs, and what was measured.

    Raises
    ------
    CalibrationError
        The file of an earlier calibration is broken (delete it), or the new one cannot be written;
        or an older driver is pretended, so that a mode is missing which later processes may have.
    DriverUnavailableError
        No CUDA driver or device.

    Notes
    -----
    It takes about ten seconds, 512 MiB of pinned memory and 1 GiB on the GPU, and should have the
    GPU to itself. On a simulated driver it only goes through the motions, with a few short swaps;
    nothing is stored or used then.
    """
    start = time.perf_counter()
    driver = current_driver()
    device = driver.context_device(driver.current_context())
    key = key_of(driver, device)
    path = None
    if store and not driver.simulated:
        version = current_settings().cap(driver.version)
        if version < driver.version:
            raise CalibrationError(
                f"the driver is treated as {version} (by override or {DRIVER_VERSION_VARIABLE}), "
                "and what is measured so would hold without that too: lift it, or do not store"
            )
        path = path_of(key)
        if os.path.exists(path):
            load_document(path)  # a broken one is not overwritten unseen
    before = find_costs(driver, device)
    cells: list[Cell] = []
    blocks: dict[str, float] = {}
    bench = _Bench(driver)
    cases = list(bench.cases())
    for done, case in enumerate(cases):
        if progress is not None:
            progress(Progress(done, len(cases), case.words))
        cells += bench.measure(case)
    for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
        blocks[route_key(direction)] = bench.full_blocks(direction)
    costs = _fit(cells, blocks, f"{key.device}, {key.driver}, measured now")
    if not driver.simulated:
        use_costs(driver, device, costs)
    if path is not None:
        _write(path, _document(key._asdict(), costs, cells))
    return Calibration(
        costs, tuple(cells), before, path, time.perf_counter() - start, driver.simulated
    )


def run_with_progress(*, store: bool) -> Calibration:
    """Calibrate with a progress bar in the terminal, and print what was found."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(highlight=False)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting")

        def show(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                total=progress.total,
                description=progress.what,
            )

        found = calibrate(store=store, progress=show)
    console.print(format_calibration(found), soft_wrap=True)
    return found


def format_calibration(found: Calibration) -> str:
    """Return measured against fitted, and what was gained, as a table in plain text."""
    lines = [
        f"{len(found.cells)} swaps measured in {found.seconds:.1f} s",
        "",
        f"{'route':<14}{'mode':<8}{'start':>8}{'fork':>8}  "
        "GB/s at 2 KiB  at 64 KiB  at 1 MiB  predicted/measured: median  worst",
    ]
    for (route, mode), (median, worst) in found.errors().items():
        cost = next(
            cost
            for other, cost in zip(ORDER, found.costs.routes[route], strict=True)
            if other is mode and cost is not None
        )
        rates = [_rate(cost, i, size) for i, size in ((0, 2 * KIB), (2, 64 * KIB), (3, MIB))]
        lines.append(
            f"{route:<14}{mode:<8}{cost.start_us:>5.0f} us{cost.fork_us:>5.0f} us  "
            f"{rates[0]:>13.2f}{rates[1]:>11.2f}{rates[2]:>10.2f}  "
            f"{median:>26.2f}{worst:>7.2f}"
        )
    (before, worst_before), (now, worst_now) = (
        found.regret(found.before),
        found.regret(found.costs),
    )
    lines += [
        "",
        f"The modes chosen took {before:.3f} times as long as the best before (worst "
        f"{worst_before:.2f}), {now:.3f} now (worst {worst_now:.2f}): the choice got "
        f"{found.gain:.3f} times faster.",
    ]
    if found.path is not None:
        lines.append(f"Stored in {found.path}.")
    if found.simulated:
        lines.append(
            "The driver is simulated: this measures nothing about a GPU, and is not stored."
        )
    return "\n".join(lines)


def _rate(cost: Cost, length_class: int, size: int) -> float:
    """Return GB/s of many copies; infinite where a fit found no cost but the start-up."""
    copy_us = cost.copy_us[length_class] + size * 1e-6 * cost.megabyte_us[length_class]
    return size / copy_us / 1e3 if copy_us else math.inf


def _fit(cells: list[Cell], blocks: dict[str, float], source: str) -> Costs:
    routes = {}
    for route in ROUTES:
        of_modes: list[Cost | None] = []
        for mode in ORDER:
            mine = [cell for cell in cells if (cell.load.route, cell.mode) == (route, mode)]
            full_blocks = blocks.get(route, 0.0) if mode is Mode.KERNEL else 0.0
            of_modes.append(fit_cost(mine, full_blocks) if mine else None)
        loop, batch, kernel = of_modes
        if loop is None and batch is None and kernel is None:
            loop, batch, kernel = reference_costs().routes[route]
        routes[route] = loop, batch, kernel
    return Costs(routes, source)


def _document(key: dict[str, str], costs: Costs, cells: list[Cell]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": key,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "costs": costs_as_json(costs),
        "measured": [
            {
                "mode": str(mode),
                "route": load.route,
                "copies": load.copies,
                "nbytes": load.nbytes,
                "median_us": round(measured_us, 2),
            }
            for mode, load, measured_us in cells
        ],
    }


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write a file in one step: no reader ever sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error}") from None


class _Case(NamedTuple):
    direction: Direction
    pageable: bool
    size: int
    number: int

    @property
    def words(self) -> str:
        kind = " (pageable)" if self.pageable else ""
        return f"{self.direction}{kind}, {self.number} x {self.size} bytes"


class _Bench:
    """Memory to copy between, on the current driver, real or simulated."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._rng = np.random.default_rng(0)
        self._copy_us: dict[tuple[Direction, bool, Mode], float] = {}
        self.sizes: tuple[int, ...] = SIZES
        self.counts: tuple[int, ...] = COUNTS
        self.most_bytes, self.most_pageable = MOST_BYTES, MOST_PAGEABLE_BYTES
        if driver.simulated:
            # The simulated kernel runs in Python, one thread after another.
            self.sizes, self.counts = (64, 4 * KIB, 32 * KIB, 128 * KIB), (1, 4)
            self.most_bytes = self.most_pageable = 512 * KIB
        nbytes = 2 * self.most_bytes
        make = allocator(driver)
        self._stream = driver.create_stream()
        self._memory = {
            "pinned": make.pinned_array(nbytes, np.uint8),
            "pageable": np.zeros(2 * self.most_pageable, dtype=np.uint8),
            "device": make.device_array(nbytes, np.uint8),
            "other device": make.device_array(nbytes, np.uint8),
        }
        self._memory["pinned"][:] = 1

    def cases(self) -> Iterator[_Case]:
        for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
            for pageable in (False, True):
                most = self.most_pageable if pageable else self.most_bytes
                if pageable and direction is Direction.D2D:
                    continue
                for size in self.sizes:
                    for count in self.counts:
                        if count * size <= most:
                            yield _Case(direction, pageable, size, count)

    def plan(self, case: _Case) -> CopyPlan:
        host = "pageable" if case.pageable else "pinned"
        names = {
            Direction.H2D: (host, "device"),
            Direction.D2H: ("device", host),
            Direction.D2D: ("device", "other device"),
        }[case.direction]
        most = self.most_pageable if case.pageable else self.most_bytes
        src, dst = (as_blocks(self._memory[name], case.size, 2 * most) for name in names)
        # Every other block, so that no two are merged.
        ids = [2 * self._rng.permutation(most // case.size)[: case.number] for _ in range(2)]
        return plan_blocks(src, dst, np.stack(ids, axis=1))

    def measure(self, case: _Case) -> list[Cell]:
        """Return the median time of each mode that can run; a round of all after another."""
        plan = self.plan(case)
        load = load_of(plan._copies)
        actions: dict[Mode, list[float]] = {}
        for mode in Mode:
            if self._would_take_us(case, mode) > _LONGEST_US:
                continue
            with contextlib.suppress(ModeUnavailableError):
                self._time_us(plan, mode)  # warms up
                actions[mode] = []
        start = time.perf_counter()
        while actions:
            rounds = len(next(iter(actions.values())))
            if rounds >= _REPEATS or (
                rounds >= _FEWEST_REPEATS and time.perf_counter() - start > _CELL_SECONDS
            ):
                break
            for mode, times in actions.items():
                times.append(self._time_us(plan, mode))
        cells = [Cell(mode, load, statistics.median(times)) for mode, times in actions.items()]
        for cell in cells:
            self._copy_us[case.direction, case.pageable, cell.mode] = cell.measured_us / case.number
        return cells

    def full_blocks(self, direction: Direction) -> float:
        """Return about how many thread blocks a kernel needs for its full speed."""
        size = min(_SIZE_FOR_FEW_BLOCKS, max(self.sizes))
        plan = self.plan(_Case(direction, False, size, min(1024, self.most_bytes // size)))
        try:
            few, many = (
                statistics.median(
                    self._time_us(plan, Mode.KERNEL, max_blocks=blocks)
                    for _ in range(_FEWEST_REPEATS + 1)
                )
                for blocks in (_FEW_BLOCKS, None)
            )
        except ModeUnavailableError:
            return 0.0
        return round(_FEW_BLOCKS * max(1.0, few / many), 1)

    def _would_take_us(self, case: _Case, mode: Mode) -> float:
        """Return a guess from the case before, which had fewer or shorter copies."""
        return case.number * self._copy_us.get((case.direction, case.pageable, mode), 0.0)

    def _time_us(self, plan: CopyPlan, mode: Mode, max_blocks: int | None = None) -> float:
        start = time.perf_counter()
        plan.run(self._stream, mode, max_blocks=max_blocks).wait()
        return (time.perf_counter() - start) * 1e6
