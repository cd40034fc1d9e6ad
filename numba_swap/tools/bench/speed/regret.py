"""How good the choice of a mode is, and what it costs: two sections of the speed suite."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.copies.from_pointers import plan_pointers
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import reference_costs, use_costs
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.settings import DIRECT_MODES, Mode
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.running.context import RunOptions, launching
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.calibrate import calibrate
from numba_swap.tools.bench.gpu import address_of
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import Samples, measure_in_turn
from numba_swap.tools.units import KIB, MIB

SIZES = (512, 2 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
# Mixed lengths are log-uniform between these.
MIXED_BYTES = 256, MIB
_CELL_SECONDS = 0.04
_ROUNDS = (5, 21)

SEEN_TARGET_S = 3e-6
FRESH_TARGET_S = 10e-6
# Geometric mean and worst of the time of "auto" over that of the best forced mode.
CALIBRATED_TARGETS = 1.05, 1.25
SHIPPED_TARGETS = 1.10, 1.6

# vLLM's rule, as its pull request 42212 gives it: a kernel for host to device below 28 KiB and from
# 16 copies on, else the batch.
_VLLM_BYTES = 28 * KIB
_VLLM_COPIES = 16


def measure_choosing(run: SpeedRun) -> None:
    """Measure what it takes to choose a mode."""
    arrays = run.memory.blocks(Direction.H2D, 8 * KIB)
    count = min(1024, len(arrays[0]) // 2)
    plan = plan_blocks(*arrays, run.memory.mapping(*arrays, count))
    copies, options = plan.copies, RunOptions(run.stream)
    with launching(
        devices_of(run.gpu.driver), copies.ends.device, copies.direction, options
    ) as launch:

        def seen() -> None:
            plan.select(launch, "auto")

        def fresh() -> None:
            plan.forget()
            plan.select(launch, "auto")

        _measure_choosing(run, seen, fresh)


def _measure_choosing(run: SpeedRun, seen: Callable[[], None], fresh: Callable[[], None]) -> None:
    for words, action, target in (
        ("a plan seen before", seen, SEEN_TARGET_S),
        ("a fresh uniform plan", fresh, FRESH_TARGET_S),
    ):
        samples = Samples()
        for _ in range(21):
            action()
            start = time.perf_counter_ns()
            for _ in range(1000):
                action()
            samples.raw_ns.append((time.perf_counter_ns() - start) // 1000)
        name = f"choosing the mode of {words}"
        run.add(
            name,
            samples.median_s,
            samples,
            target,
            unit="s",
            at_least=False,
            calls_a_sample=1000,
        )


def measure_regret(run: SpeedRun) -> None:
    """Measure the time of "auto" over that of the best forced mode, over a grid of swaps."""
    calibrated = calibrate(store=False).costs
    cells = list(_cells(run, calibrated))
    details: dict[str, Any] = {"cells": cells}
    for words, arm, targets in (
        ("calibrated", "auto, calibrated", CALIBRATED_TARGETS),
        ("shipped figures", "auto, shipped", SHIPPED_TARGETS),
        ("vLLM's rule", "vLLM's rule", (None, None)),
    ):
        regrets = [regret(cell, arm) for cell in cells]
        for kind, value, target in (
            ("geometric mean", statistics.geometric_mean(regrets), targets[0]),
            ("worst", max(regrets), targets[1]),
        ):
            name = f"regret, {words}, {kind} of {len(cells)} swaps"
            run.add(name, value, Samples(), target, at_least=False, **details)
            details = {}  # once is enough
    device = devices_of(run.gpu.driver)[0]
    use_costs(device, reference_costs(device.name))


def regret(cell: dict[str, Any], arm: str) -> float:
    """Return the time of an arm over that of the best forced mode, the fastest round of each.

    Not the medians: a run right after one of another mode takes some microseconds longer, and the
    arms stand in turns.
    """
    fastest = {name: min(times) for name, times in cell["raw_ns"].items()}
    best = min(fastest[mode] for mode in Mode if mode in fastest)
    if arm == "vLLM's rule":
        arm = vllm_mode(cell["direction"], cell["copies"], cell["bytes"])
    ratio: float = fastest[arm] / best
    return ratio


def vllm_mode(direction: str, copies: int, nbytes: int) -> str:
    """Return the mode by vLLM's rule."""
    short = nbytes / copies < _VLLM_BYTES
    if direction == Direction.H2D and short and copies >= _VLLM_COPIES:
        return Mode.KERNEL
    return Mode.BATCH


def _cells(run: SpeedRun, calibrated: CostModel) -> Iterator[dict[str, Any]]:
    for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
        for size in (*SIZES, None):
            for count in COUNTS:
                plan = _planner(run, direction, size, count)
                if plan is not None:
                    yield {
                        "direction": str(direction),
                        "block": size,
                        "copies": count,
                        "bytes": plan().nbytes,
                        "raw_ns": _time(run, plan, calibrated),
                    }


def _planner(
    run: SpeedRun, direction: Direction, size: int | None, count: int
) -> Callable[[], CopyPlan] | None:
    """Return what plans a swap; None if it would be too long."""
    if size is not None:
        if count * size > run.unit_bytes // 2:
            return None
        source, destination = run.memory.blocks(direction, size)
        mapping = run.memory.mapping(source, destination, count)
        return lambda: plan_blocks(source, destination, mapping)
    rng = np.random.default_rng(count)
    low, high = np.log(MIXED_BYTES)
    sizes = np.exp(rng.uniform(low, high, count)).astype(np.int64) // 16 * 16
    ends = []
    for order in (np.arange(count), rng.permutation(count)):
        begins = np.empty(count, dtype=np.int64)
        begins[order] = np.concatenate([[0], np.cumsum(sizes[order] + 256)[:-1]])
        ends.append(begins)
    if int(sizes.sum()) + 256 * count > run.unit_bytes:
        return None
    src, dst = (address_of(side) for side in run.memory.sides(direction)[:2])
    driver = run.gpu.driver
    devices = devices_of(driver)
    return lambda: CopyPlan(devices, plan_pointers(driver, src + ends[0], dst + ends[1], sizes))


def _time(
    run: SpeedRun, plan: Callable[[], CopyPlan], calibrated: CostModel
) -> dict[str, list[int]]:
    """Return the times of every arm, one round after another, in alternating order.

    Each arm has a plan of its own, for a plan remembers how it ran last.
    """
    device, stream = devices_of(run.gpu.driver)[0], run.stream
    costs_of = {"auto, shipped": reference_costs(device.name), "auto, calibrated": calibrated}

    def action(mode: str) -> Callable[[], object]:
        mine = plan()
        return lambda: mine.run(stream, mode).wait()

    def prepare(name: str) -> None:
        if name in costs_of:
            use_costs(device, costs_of[name])

    names = (*map(str, DIRECT_MODES), *costs_of)
    fewest, most = _ROUNDS
    samples = measure_in_turn(
        {name: action("auto" if name in costs_of else name) for name in names},
        repeats=most,
        there_and_back=True,
        before=prepare,
        enough=(fewest, _CELL_SECONDS * len(names)),
    )
    return {name: found.raw_ns for name, found in samples.items()}
