"""Boxes of a field of 1024 x 1024 x 1024 numbers of 4 bytes: a section of the speed suite."""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import DIRECT_MODES
from numba_swap.swap.boxes import copy, plan_boxes, plan_copy
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.tools.bench.memory import ITEM_BYTES, BenchMemory, Box, FieldView
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import Samples, measure, measure_in_turn
from numba_swap.tools.units import GIB, MIB

LINKS = (Direction.H2D, Direction.D2H)
SHAPES: tuple[Box, ...] = (
    *((8, 8, 8), (16, 16, 16), (32, 32, 32), (64, 64, 64), (66, 66, 66), (96, 96, 96)),
    *((128, 128, 128), (256, 256, 256), (512, 512, 512), (16, 64, 64), (32, 512, 512)),
    (1, 512, 512),
)
COUNTS = (1, 8, 64, 512, 1024)
CHOICE_TARGETS = 1.02, 1.15
FRESH_TARGET = 0.85
BARE_TARGET = 0.98
ONE_BOX: tuple[Box, ...] = ((64, 64, 64), (128, 128, 128), (256, 256, 256), (66, 66, 66))
# Time of a loop of cuMemcpy3DAsync over that of "auto", by direction.
LOOP_TARGETS: dict[tuple[Box, int], tuple[float, float]] = {
    ((32, 32, 32), 512): (2.5, 2.0),
    ((64, 64, 64), 512): (1.35, 1.4),
    ((16, 64, 64), 1024): (1.9, 1.6),
    ((128, 128, 128), 64): (1.0, 1.0),
    ((66, 66, 66), 256): (1.15, 1.15),
}
LARGE_TARGET = 0.95
LARGE: tuple[tuple[Box, int], ...] = (
    ((256, 256, 256), 1),
    ((256, 256, 256), 8),
    ((32, 512, 512), 8),
)
WITHIN_TARGET = 0.80
PLANNING_TARGET_S = 150e-6
PEER_TARGETS = {"Numba": 8.0, "CuPy": 5.0, "PyTorch": 4.0}
_MOST_BYTES = 512 * MIB
_ROUNDS, _CELL_SECONDS = (3, 9), 0.15


def measure_boxes(run: SpeedRun) -> None:
    """Boxes at any origins, in every mode, beside the driver's own strided copies and peers."""
    memory = BenchMemory(run.gpu, 4 * GIB, 4 * GIB)
    memory.host()[:] = 0
    ceilings = {
        direction: measure(memory.contiguous(direction, GIB), repeats=5).rate(GIB)
        for direction in (*LINKS, Direction.D2D)
    }
    for direction, rate in ceilings.items():
        run.add(f"boxes: contiguous 1 GiB, {direction}", rate, Samples(), unit="B/s")
    cells = list(_grid(run, memory, ceilings))
    _add_choice(run, cells)
    _add_loop_ratios(run, cells)
    _measure_one_box(run, memory)
    _measure_planning(run, memory)
    _measure_peers(run, memory)


def _grid(
    run: SpeedRun, memory: BenchMemory, ceilings: dict[Direction, float]
) -> Iterator[dict[str, Any]]:
    """Time every shape and number in every mode and in "auto", round by round."""
    for direction in (*LINKS, Direction.D2D):
        for shape in SHAPES:
            for count in sorted({*COUNTS, *(n for s, n in LOOP_TARGETS if s == shape)}):
                if count > 1 and count * math.prod(shape) * ITEM_BYTES > _MOST_BYTES:
                    continue
                arms = {
                    name: _runner(run, memory.plan_boxes(direction, shape, count, None), name)
                    for name in ("auto", *map(str, DIRECT_MODES))
                }
                samples = measure_in_turn(
                    {name: action for name, (action, _) in arms.items()},
                    repeats=_ROUNDS[1],
                    warmups=1,
                    there_and_back=True,
                    enough=(_ROUNDS[0], _CELL_SECONDS),
                )
                plan = arms["auto"][1]
                cell: dict[str, Any] = {
                    "direction": direction,
                    "shape": shape,
                    "count": len(plan),
                    "bytes": plan.nbytes,
                    "chosen": str(plan.explain(run.stream).mode),
                    "raw_ns": {name: s.raw_ns for name, s in samples.items()},
                }
                ratios = ", ".join(
                    f"{name} {s.rate(plan.nbytes) / ceilings[direction]:.3f}"
                    for name, s in samples.items()
                )
                ratio = samples["auto"].rate(plan.nbytes) / ceilings[direction]
                target = None
                if (shape, count) in LARGE and direction is not Direction.D2D:
                    target = LARGE_TARGET
                if direction is Direction.D2D and (shape, count) == ((64, 64, 64), 512):
                    target = WITHIN_TARGET
                words = f"boxes: {direction}, {len(plan)} x {shape} ({cell['chosen']})"
                run.add(words, ratio, samples["auto"], target, **cell)
                run.report(f"          {ratios}")
                yield cell


def _runner(run: SpeedRun, plan: CopyPlan, mode: str) -> tuple[Callable[[], object], CopyPlan]:
    return lambda: plan.run(run.stream, mode).wait(), plan


def _fastest(cell: dict[str, Any], name: str) -> float:
    return float(min(cell["raw_ns"][name]))


def _add_choice(run: SpeedRun, cells: list[dict[str, Any]]) -> None:
    regrets = [
        _fastest(cell, "auto") / min(_fastest(cell, str(mode)) for mode in DIRECT_MODES)
        for cell in cells
    ]
    for kind, value, target in (
        ("geometric mean", statistics.geometric_mean(regrets), CHOICE_TARGETS[0]),
        ("worst", max(regrets), CHOICE_TARGETS[1]),
    ):
        name = f"boxes: auto over the best mode, {kind} of {len(cells)}"
        run.add(name, value, Samples(), target, at_least=False)


def _add_loop_ratios(run: SpeedRun, cells: list[dict[str, Any]]) -> None:
    for cell in cells:
        targets = LOOP_TARGETS.get((cell["shape"], cell["count"]))
        if targets is None or cell["direction"] not in LINKS:
            continue
        target = targets[LINKS.index(cell["direction"])]
        medians = {name: statistics.median(cell["raw_ns"][name]) for name in ("loop", "auto")}
        name = f"boxes: loop over auto, {cell['direction']}, {cell['count']} x {cell['shape']}"
        run.add(name, medians["loop"] / medians["auto"], Samples(), target)


def _measure_one_box(run: SpeedRun, memory: BenchMemory) -> None:
    """One box, planned, afresh, and by a bare call of cuMemcpy3DAsync."""
    driver, stream = run.gpu.driver, run.stream
    for direction in LINKS:
        for shape in ONE_BOX:
            src, dst = _views(memory, direction, shape)
            plan = plan_copy(src, dst)
            copies = plan.copies
            boxes = copies.boxes
            if boxes is None:
                continue

            def bare(copies: Any = copies, boxes: Any = boxes) -> None:
                driver.memcpy_boxes_loop(copies.dst, copies.src, boxes.forms, boxes.which, stream)
                run.gpu.wait()

            samples = measure_in_turn(
                {
                    "bare": bare,
                    "planned": lambda p=plan: p.run(stream).wait(),  # type: ignore[misc]
                    "fresh": lambda s=src, d=dst: copy(s, d, stream=stream).wait(),  # type: ignore[misc]
                },
                repeats=9,
                warmups=1,
                runs=(5, 20),
                there_and_back=True,
            )
            bare_s, planned_s, fresh_s = (samples[name].median_s for name in samples)
            words = f"{direction}, one {shape}"
            mode = str(plan.explain(stream).mode)
            run.add(
                f"boxes: bare cuMemcpy3DAsync over planned, {words}",
                bare_s / planned_s, samples["planned"], BARE_TARGET, mode=mode,
            )  # fmt: skip
            run.add(
                f"boxes: planned over fresh, {words}",
                planned_s / fresh_s, samples["fresh"], FRESH_TARGET, mode=mode,
            )  # fmt: skip


def _views(memory: BenchMemory, direction: Direction, shape: Box) -> tuple[Any, Any]:
    """Return views of a box of the field and of a tile, as source and destination."""
    field = memory.host().view(np.float32)[: 1 << 30].reshape(1024, 1024, 1024)
    box = field[tuple(slice(101, 101 + n) for n in shape)]
    tile = FieldView(memory.device(), shape)
    return (box, tile) if direction is Direction.H2D else (tile, box)


def _measure_planning(run: SpeedRun, memory: BenchMemory) -> None:
    shape = (64, 64, 64)
    for direction in LINKS:
        field, pool, corners, slots = memory.field_and_pool(direction, shape, 512, None)
        if direction is Direction.D2H:
            field, pool, corners, slots = pool, field, slots, corners

        def plan(a: Any = field, b: Any = pool, c: Any = corners, d: Any = slots) -> None:
            plan_boxes(a, b, c, d, shape)

        samples = measure(plan, repeats=101)
        name = f"boxes: planning {len(corners)} x {shape}, {direction}"
        run.add(name, samples.median_s, samples, PLANNING_TARGET_S, unit="s", at_least=False)


def _measure_peers(run: SpeedRun, memory: BenchMemory) -> None:
    """One box of 128^3 to the device by what else a user has."""
    shape = (128, 128, 128)
    box, _ = _views(memory, Direction.H2D, shape)
    stream = run.stream
    plan = plan_copy(*_views(memory, Direction.H2D, shape))
    ours = measure(lambda: plan.run(stream).wait(), repeats=run.repeats)
    for name, action in _peers(box).items():
        samples = measure(action, repeats=5, warmups=2)
        words = f"boxes: {name}'s own way over ours, one {shape}"
        run.add(words, samples.median_s / ours.median_s, samples, PEER_TARGETS[name])


def _peers(box: Any) -> dict[str, Callable[[], object]]:
    """Return what copies the box to a device, for each package that is here."""
    found: dict[str, Callable[[], object]] = {}
    cuda, cupy, torch = (_package(name) for name in ("numba.cuda", "cupy", "torch"))
    tile = cuda.device_array(box.shape, box.dtype)

    def by_numba() -> None:
        tile.copy_to_device(np.ascontiguousarray(box))
        cuda.synchronize()

    found["Numba"] = by_numba
    if cupy is not None:

        def by_cupy() -> None:
            cupy.asarray(box)
            cupy.cuda.Device().synchronize()

        found["CuPy"] = by_cupy
    if torch is not None:
        source = torch.from_numpy(box)
        target = torch.empty(box.shape, dtype=source.dtype, device="cuda")

        def by_torch() -> None:
            target.copy_(source)
            torch.cuda.synchronize()

        found["PyTorch"] = by_torch
    return found


def _package(name: str) -> Any:
    """Import a package that may not be here; only this section measures it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
