"""Random blocks by size, mode and number of thread blocks: sections of the speed suite."""

from __future__ import annotations

from typing import Any

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import DIRECT_MODES
from numba_swap.swap.verbs import swap_blocks
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import measure
from numba_swap.tools.units import KIB, MIB, format_bytes

SMALL_TOTALS = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)
THROUGHPUT_TARGETS = {
    Direction.H2D: {
        512: 0.86,
        2 * KIB: 0.91,
        8 * KIB: 0.92,
        32 * KIB: 0.97,
        64 * KIB: 0.985,
        256 * KIB: 0.985,
        MIB: 0.97,
    },
    Direction.D2H: {
        512: 0.86,
        2 * KIB: 0.92,
        8 * KIB: 0.93,
        32 * KIB: 0.97,
        64 * KIB: 0.975,
        256 * KIB: 0.975,
        MIB: 0.97,
    },
    Direction.D2D: {512: 0.82, 2 * KIB: 0.84, 8 * KIB: 0.85, 32 * KIB: 0.85, 256 * KIB: 0.90},
}
FEW_BLOCKS_TARGET = 0.90
NUMBA_LOOP_TARGET = 1000.0
PLOTTED_SIZES = tuple(512 << i for i in range(12))


def measure_throughput(run: SpeedRun) -> None:
    """Random blocks, one plan run many times, against the contiguous copy."""
    for direction, targets in THROUGHPUT_TARGETS.items():
        # Half of the memory: every other block is left out.
        total = run.unit_bytes if direction is Direction.D2D else run.unit_bytes // 2
        for size, target in targets.items():
            for nbytes in (total, *(small for small in SMALL_TOTALS if small < total)):
                if nbytes >= size:
                    aim = target if nbytes == total else None
                    _measure_throughput(run, direction, size, nbytes, aim)


def _measure_throughput(
    run: SpeedRun, direction: Direction, size: int, nbytes: int, target: float | None
) -> None:
    plan, stream = run.plan(direction, size, nbytes // size), run.stream
    # The ceiling is measured beside each row: machines drift by a per cent within a run.
    ceiling = run.measure_ceiling(direction, repeats=3, warmups=1)
    samples = measure(lambda: plan.run(stream).wait(), repeats=run.repeats)
    ceiling.raw_ns += run.measure_ceiling(direction, repeats=3, warmups=1).raw_ns
    mode = plan.explain(stream).mode
    name = f"{direction}, {format_bytes(size)} blocks, {format_bytes(nbytes)} in all ({mode})"
    case = {"direction": direction, "block": size, "mode": mode, "ceiling_ns": ceiling.raw_ns}
    run.add_rate(name, samples, nbytes, ceiling, target, **case)


def measure_few_blocks(run: SpeedRun) -> None:
    """Run the kernel on at most four thread blocks, to leave the GPU to others."""
    size, stream = 8 * KIB, run.stream
    for direction in (Direction.H2D, Direction.D2H):
        plan = run.plan(direction, size, run.unit_bytes // 2 // size)
        samples = measure(
            lambda p=plan: p.run(stream, "kernel", max_blocks=4).wait(),  # type: ignore[misc]
            repeats=run.repeats,
        )
        name = f"{direction}, 8 KiB blocks, 4 thread blocks of 512"
        case = {"direction": direction, "block": size, "max_blocks": 4}
        ceiling = run.ceilings[direction]
        run.add_rate(name, samples, plan.nbytes, ceiling, FEW_BLOCKS_TARGET, **case)


def measure_modes(run: SpeedRun) -> None:
    """Every mode over block sizes, for the picture."""
    stream = run.stream
    for direction in (Direction.H2D, Direction.D2H):
        for size in PLOTTED_SIZES:
            count = min(8192, run.unit_bytes // 4 // size)
            plan = run.plan(direction, size, count)
            for mode in ("auto", *DIRECT_MODES):
                samples = measure(
                    lambda p=plan, m=mode: p.run(stream, m).wait(),  # type: ignore[misc]
                    repeats=5,
                    warmups=1,
                )
                name = f"{direction}, {count} x {format_bytes(size)}, {mode}"
                run.add_rate(
                    name,
                    samples,
                    plan.nbytes,
                    direction=direction,
                    block=size,
                    count=count,
                    mode=str(mode),
                    plot=True,
                )


def measure_numba_loop(run: SpeedRun) -> None:
    """Time what a Numba user does today: `copy_to_device` for every block."""
    size, stream = 8 * KIB, run.stream
    count = min(8192, run.unit_bytes // 2 // size)
    source, destination = run.memory.blocks(Direction.H2D, size)
    mapping = run.memory.mapping(source, destination, count)

    def loop() -> None:
        for i, j in mapping:
            destination[j].copy_to_device(source[i])

    looped = measure(loop, repeats=3, warmups=1)
    swapped = measure(
        lambda: swap_blocks(source, destination, mapping, stream=stream).wait(),
        repeats=run.repeats,
    )
    case: dict[str, Any] = {"direction": Direction.H2D, "block": size, "count": count}
    name = f"{count} x 8 KiB, copy_to_device"
    run.add(name, looped.median_s, looped, unit="s", **case)
    ratio = looped.median_s / swapped.median_s
    run.add(f"{name} / swap_blocks", ratio, swapped, NUMBA_LOOP_TARGET, **case)
