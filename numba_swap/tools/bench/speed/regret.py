"""How good the choice of a mode is, and what it costs: two sections of the speed suite."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from numba_swap.copies.copies import Direction
from numba_swap.copies.from_pointers import plan_pointers
from numba_swap.dispatch.calibration import reference_costs, use_costs
from numba_swap.dispatch.cost_model import Costs
from numba_swap.dispatch.settings import Mode
from numba_swap.swap import select
from numba_swap.swap.verbs import CopyPlan, plan_blocks
from numba_swap.tools.bench.calibrate import calibrate
from numba_swap.tools.bench.memory import GIB, Pools
from numba_swap.tools.bench.speed.rows import Row
from numba_swap.tools.bench.timing import Samples

KIB, MIB = 1 << 10, 1 << 20
SIZES = (512, 2 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
COUNTS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
MOST_BYTES = 512 * MIB
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

Add = Callable[[Row], None]
Times = dict[str, list[int]]


def measure_choosing(pools: Pools, add: Add) -> None:
    """Measure what it takes to choose a mode."""
    source, destination = pools.blocks(Direction.H2D, 8 * KIB)
    plan = plan_blocks(source, destination, pools.mapping(source, destination, 1024))
    copies, driver = plan._copies, pools.driver

    def fresh() -> None:
        copies.prepared.clear()
        select.decide(driver, copies, situation, "auto")

    def seen() -> None:
        select.decide(driver, copies, situation, "auto")

    def keep(found: Any) -> Any:
        return found

    situation = select.in_context(
        driver, copies.device, copies.direction, select.How(pools.stream), keep
    )
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
        add(Row(name, samples.median_s, "s", target, False, {"calls_a_sample": 1000}, samples))


def measure_regret(pools: Pools, add: Add) -> None:
    """Measure the time of "auto" over that of the best forced mode, over a grid of swaps."""
    calibrated = calibrate(store=False).costs
    cells = list(_cells(pools, calibrated))
    details = {"cells": cells}
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
            add(Row(name, value, "ratio", target, False, details, Samples()))
            details = {}  # once is enough
    use_costs(pools.driver, 0, reference_costs())


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


def _cells(pools: Pools, calibrated: Costs) -> Iterator[dict[str, Any]]:
    for direction in (Direction.H2D, Direction.D2H, Direction.D2D):
        for size in (*SIZES, None):
            for count in COUNTS:
                copies = _copies(pools, direction, size, count)
                if copies is not None:
                    yield {
                        "direction": str(direction),
                        "block": size,
                        "copies": count,
                        "bytes": copies().nbytes,
                        "raw_ns": _time(pools, copies, calibrated),
                    }


def _copies(
    pools: Pools, direction: Direction, size: int | None, count: int
) -> Callable[[], CopyPlan] | None:
    """Return what plans a swap; None if it would be too long."""
    if size is not None:
        if count * size > MOST_BYTES:
            return None
        source, destination = pools.blocks(direction, size)
        mapping = pools.mapping(source, destination, count)
        return lambda: plan_blocks(source, destination, mapping)
    rng = np.random.default_rng(count)
    low, high = np.log(MIXED_BYTES)
    sizes = np.exp(rng.uniform(low, high, count)).astype(np.int64) // 16 * 16
    ends = []
    for order in (np.arange(count), rng.permutation(count)):
        begins = np.empty(count, dtype=np.int64)
        begins[order] = np.concatenate([[0], np.cumsum(sizes[order] + 256)[:-1]])
        ends.append(begins)
    if int(sizes.sum()) + 256 * count > GIB:
        return None
    src, dst = pools.addresses(direction)
    driver = pools.driver
    return lambda: CopyPlan(driver, plan_pointers(driver, src + ends[0], dst + ends[1], sizes))


def _time(pools: Pools, copies: Callable[[], CopyPlan], calibrated: Costs) -> Times:
    """Return the times of every arm, one round after another, in alternating order.

    Each arm has a plan of its own, for a plan remembers how it ran last.
    """
    driver, stream = pools.driver, pools.stream
    costs_of = {"auto, shipped": reference_costs(), "auto, calibrated": calibrated}
    plans = {name: copies() for name in (*map(str, Mode), *costs_of)}

    def run(name: str) -> None:
        plans[name].run(stream, "auto" if name in costs_of else name).wait()

    def prepare(name: str) -> None:
        if name in costs_of:
            use_costs(driver, 0, costs_of[name])

    raw_ns: Times = {name: [] for name in plans}
    for name in plans:
        for _ in range(2):
            prepare(name)
            run(name)
    order = list(plans)
    start, (fewest, most) = time.perf_counter(), _ROUNDS
    for done in range(most):
        if done >= fewest and time.perf_counter() - start > _CELL_SECONDS * len(order):
            break
        for name in order:
            prepare(name)
            begin = time.perf_counter_ns()
            run(name)
            raw_ns[name].append(time.perf_counter_ns() - begin)
        order.reverse()
    return raw_ns
