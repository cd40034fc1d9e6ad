"""Plain NumPy memory: a section of the speed suite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.device.tuning import usable_cpus
from numba_swap.dispatch.settings import Mode, override
from numba_swap.errors import ModeUnavailableError
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.verbs import plan_blocks, swap_blocks
from numba_swap.tools.bench.memory import BenchMemory, Mapping
from numba_swap.tools.bench.speed.run import SpeedRun, check_blocks
from numba_swap.tools.bench.timing import measure_in_turn
from numba_swap.tools.units import KIB, MIB, format_bytes

# Bytes of a block, blocks, and bytes a second that 16 threads should reach in each direction.
CASES: tuple[tuple[int, int, tuple[float | None, float | None]], ...] = (
    (512, 8192, (8e9, 6e9)),
    (2 * KIB, 8192, (None, None)),
    (8 * KIB, 8192, (18e9, 14e9)),
    (32 * KIB, 4096, (None, None)),
    (256 * KIB, 512, (18e9, 14e9)),
    (MIB, 128, (None, None)),
    (4 * KIB, 16, (None, None)),
)
THREADS = (1, 2, 4, 8, 16)
LINKS = (Direction.H2D, Direction.D2H)


def measure_pageable(run: SpeedRun) -> None:
    """Random blocks of pageable memory, in every mode and by several numbers of threads."""
    memory = BenchMemory(run.gpu, run.unit_bytes, run.unit_bytes)
    host = memory.host("pageable")
    words = host[: host.size // 4 * 4].view(np.uint32)
    words[:] = np.arange(words.size)
    for direction in LINKS:
        for size, count, targets in CASES:
            src, dst = memory.blocks(direction, size, "pageable")
            mapping = memory.mapping(src, dst, min(count, src.shape[0] // 2))
            if len(mapping):
                _measure(run, direction, src, dst, mapping, targets[LINKS.index(direction)])


def _measure(
    run: SpeedRun,
    direction: Direction,
    src: Any,
    dst: Any,
    mapping: Mapping,
    target: float | None,
) -> None:
    stream, plan = run.stream, plan_blocks(src, dst, mapping)
    plan.run(stream).wait()
    check_blocks(src, dst, mapping)
    arms: dict[str, Callable[[], object]] = {
        "auto": lambda: plan.run(stream).wait(),
        "auto, fresh": lambda: swap_blocks(src, dst, mapping, stream=stream).wait(),
    }
    for mode in (Mode.LOOP, Mode.BATCH):
        with contextlib.suppress(ModeUnavailableError):
            plan.run(stream, mode).wait()
            arms[str(mode)] = lambda m=mode: plan.run(stream, m).wait()  # type: ignore[misc]
    for threads in THREADS:
        if threads <= usable_cpus():
            arms[f"staged, {threads} threads"] = lambda n=threads: _staged(plan, stream, n)  # type: ignore[misc]
    samples = measure_in_turn(arms, repeats=run.repeats, warmups=2, enough=(5, 1.0))
    size = plan.nbytes // len(mapping)
    for name, found in samples.items():
        chosen = f" ({plan.explain(stream).mode})" if name == "auto" else ""
        run.add(
            f"pageable: {direction}, {len(mapping)} x {format_bytes(size)}, {name}{chosen}",
            found.rate(plan.nbytes),
            found,
            target if name == "auto" else None,
            unit="B/s",
            direction=direction,
            block=size,
            count=len(mapping),
            cpus=usable_cpus(),
        )


def _staged(plan: CopyPlan, stream: int, threads: int) -> None:
    with override(threads=threads):
        plan.run(stream, Mode.STAGED).wait()
