"""The speed targets: ceilings and products in one run, target against measured.

Run it with ``scripts/speed_targets`` or ``python -m numba_swap.tools.bench.speed.suite``. All
ratios are to
a ceiling measured in the same run; the mode is ``"auto"`` unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from numba_swap.copies.copies import Direction
from numba_swap.dispatch.settings import Mode
from numba_swap.modes.kernel import launch as kernel
from numba_swap.swap.verbs import CopyPlan, plan_blocks, swap_blocks
from numba_swap.tools.bench.machine import describe_machine
from numba_swap.tools.bench.memory import GIB, Pools
from numba_swap.tools.bench.speed import exchange as exchanging
from numba_swap.tools.bench.speed import regret as choosing
from numba_swap.tools.bench.speed.rows import Row
from numba_swap.tools.bench.timing import Samples, measure

KIB, MIB = 1 << 10, 1 << 20
LINK_BYTES = 512 * MIB
DEVICE_BYTES = GIB
SMALL_TOTALS = (MIB, 4 * MIB, 16 * MIB, 64 * MIB)
THROUGHPUT_TARGETS = {
    Direction.H2D: {
        512: 0.86,
        2 * KIB: 0.91,
        8 * KIB: 0.92,
        32 * KIB: 0.92,
        256 * KIB: 0.95,
        MIB: 0.97,
    },
    Direction.D2H: {
        512: 0.86,
        2 * KIB: 0.92,
        8 * KIB: 0.93,
        32 * KIB: 0.93,
        256 * KIB: 0.95,
        MIB: 0.97,
    },
    Direction.D2D: {512: 0.82, 2 * KIB: 0.84, 8 * KIB: 0.85, 32 * KIB: 0.85, 256 * KIB: 0.90},
}
FEW_BLOCKS_TARGET = 0.90
RUN_LATENCY_TARGET = 1.15
FRESH_LATENCY_TARGET = 1.6
ENQUEUE_TARGET_S = 200e-6
PLAN_TARGET_S = 50e-3
DUPLEX_TARGET = 0.67
NUMBA_LOOP_TARGET = 1000.0
PLOTTED_SIZES = tuple(512 << i for i in range(12))


class Suite:
    """All measurements of one run.

    Parameters
    ----------
    repeats : int
        How often each throughput is measured.
    report : callable
        Gets a line of progress for every row.
    """

    def __init__(self, repeats: int, report: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self.ceilings: dict[Direction, Samples] = {}
        self._repeats = repeats
        self._report = report
        self._start = time.perf_counter()
        self.pools = Pools()

    def run(self, only: Sequence[str] | None = None) -> None:
        """Measure everything, or only some sections."""
        sections: dict[str, Callable[[], None]] = {
            "throughput": self.measure_throughput,
            "few-blocks": self.measure_few_blocks,
            "latency": self.measure_latency,
            "planning": self.measure_planning,
            "duplex": self.measure_duplex,
            "numba-loop": self.measure_numba_loop,
            "modes": self.measure_modes,
            "choosing": lambda: choosing.measure_choosing(self.pools, self._add),
            "regret": lambda: choosing.measure_regret(self.pools, self._add),
            "exchange": lambda: exchanging.measure_exchange(self.pools, self._add, self._repeats),
            "capture": lambda: exchanging.measure_capture(self.pools, self._add),
            "overlap": lambda: exchanging.measure_overlap(self.pools, self._add),
        }
        self.measure_ceilings()
        for name, section in sections.items():
            if only is None or name in only:
                section()
        # Once more at the end: both count, so that a drift of the machine shows and evens out.
        self.measure_ceilings()

    # -- sections ---------------------------------------------------------------------------

    def measure_ceilings(self) -> None:
        """One contiguous copy of 1 GiB in each direction."""
        for direction in THROUGHPUT_TARGETS:
            samples = measure(lambda d=direction: self.pools.copy_contiguous(d), repeats=7)  # type: ignore[misc]
            former = self.ceilings.get(direction)
            if former is not None:
                samples.raw_ns = former.raw_ns + samples.raw_ns
            self.ceilings[direction] = samples
            self._add(
                Row(
                    f"contiguous 1 GiB, {direction}",
                    samples.rate(GIB),
                    "B/s",
                    None,
                    True,
                    {"direction": direction, "bytes": GIB},
                    samples,
                )
            )

    def measure_throughput(self) -> None:
        """Random blocks, one plan run many times, against the contiguous copy."""
        for direction, targets in THROUGHPUT_TARGETS.items():
            total = DEVICE_BYTES if direction is Direction.D2D else LINK_BYTES
            for size, target in targets.items():
                for nbytes in (total, *SMALL_TOTALS):
                    if nbytes >= size:
                        self._throughput(
                            direction, size, nbytes, target if nbytes == total else None
                        )

    def _throughput(
        self, direction: Direction, size: int, nbytes: int, target: float | None
    ) -> None:
        plan = self._plan(direction, size, nbytes // size)
        # The ceiling is measured beside each row: machines drift by a per cent within a run.
        ceiling = measure(lambda: self.pools.copy_contiguous(direction), repeats=3, warmups=1)
        samples = measure(lambda: plan.run(self.pools.stream).wait(), repeats=self._repeats)
        more = measure(lambda: self.pools.copy_contiguous(direction), repeats=3, warmups=1)
        ceiling.raw_ns += more.raw_ns
        mode = plan.explain(self.pools.stream).mode
        self._add(
            Row(
                f"{direction}, {_bytes(size)} blocks, {_bytes(nbytes)} in all ({mode})",
                samples.rate(nbytes) / ceiling.rate(GIB),
                "ratio",
                target,
                True,
                {
                    "direction": direction,
                    "block": size,
                    "bytes": nbytes,
                    "mode": mode,
                    "ceiling_ns": ceiling.raw_ns,
                },
                samples,
            )
        )

    def measure_few_blocks(self) -> None:
        """Run the kernel on at most four thread blocks, to leave the GPU to others."""
        size = 8 * KIB
        for direction in (Direction.H2D, Direction.D2H):
            plan = self._plan(direction, size, LINK_BYTES // size)
            samples = measure(
                lambda p=plan: p.run(self.pools.stream, "kernel", max_blocks=4).wait(),  # type: ignore[misc]
                repeats=self._repeats,
            )
            self._add(
                Row(
                    f"{direction}, 8 KiB blocks, 4 thread blocks of 512",
                    samples.rate(plan.nbytes) / self._ceiling(direction),
                    "ratio",
                    FEW_BLOCKS_TARGET,
                    True,
                    {"direction": direction, "block": size, "bytes": plan.nbytes, "max_blocks": 4},
                    samples,
                )
            )

    def measure_latency(self) -> None:
        """Sixteen blocks of 4 KiB, against a bare launch of the same kernel."""
        size, count, stream = 4 * KIB, 16, self.pools.stream
        arrays = self.pools.blocks(Direction.H2D, size)
        mapping = self.pools.mapping(*arrays, count)
        plan = plan_blocks(*arrays, mapping)
        if plan.explain(stream).mode is not Mode.KERNEL:
            self._report("latency: skipped, for these copies run in another mode here")
            return
        plan.run(stream).wait()
        launch = self._bare_launch(plan)
        actions: dict[str, Callable[[], object]] = {
            "bare": launch,
            "run": lambda: plan.run(stream).wait(),
            "fresh": lambda: swap_blocks(*arrays, mapping, stream=stream).wait(),
        }
        samples = {name: Samples() for name in actions}
        for round_number in range(20):
            order = list(actions) if round_number % 2 else list(reversed(actions))
            for name in order:
                part = measure(actions[name], repeats=100, warmups=10)
                samples[name].warmups_ns += part.warmups_ns
                samples[name].raw_ns += part.raw_ns
        bare = samples["bare"].median_s
        details = {"direction": Direction.H2D, "block": size, "count": count}
        self._add(Row("16 x 4 KiB, bare launch", bare, "s", None, True, details, samples["bare"]))
        for name, target, words in (
            ("run", RUN_LATENCY_TARGET, "plan.run to completion / bare launch"),
            ("fresh", FRESH_LATENCY_TARGET, "swap_blocks, fresh mapping / bare launch"),
        ):
            ratio = samples[name].median_s / bare
            self._add(
                Row(f"16 x 4 KiB, {words}", ratio, "ratio", target, False, details, samples[name])
            )

    def _bare_launch(self, plan: CopyPlan) -> Callable[[], object]:
        """Return a plain ``cuLaunchKernel`` of the plan's kernel, and a wait for its stream."""
        driver, stream = self.pools.driver, self.pools.stream
        prepared = kernel.find_launch(plan._copies, 0, None)
        values = (ctypes.c_int64 * len(prepared.arguments))(*prepared.arguments)
        pointers = (ctypes.c_void_p * len(values))(
            *(ctypes.addressof(values) + 8 * i for i in range(len(values)))
        )
        launch = driver.entry_points.function("cuLaunchKernel")
        record = driver.entry_points.function("cuEventRecord")
        synchronize = driver.entry_points.function("cuEventSynchronize")
        event = driver.create_event()
        grid, block = (prepared.blocks, 1, 1), (prepared.threads, 1, 1)

        # The driver reads the parameters through `pointers` at every launch: `values` must live.
        def run(kept: object = values) -> None:
            codes = (
                launch(prepared.function, *grid, *block, 0, stream, pointers, None),
                record(event, stream),
                synchronize(event),
            )
            if any(codes):
                raise AssertionError(f"the bare launch failed: {codes}")

        return run

    def measure_planning(self) -> None:
        """Processor time of planning and enqueueing."""
        stream = self.pools.stream
        arrays = self.pools.blocks(Direction.H2D, 8 * KIB)
        mapping = self.pools.mapping(*arrays, 8192)
        transfers: list[Any] = []

        def finish() -> None:
            while transfers:
                transfers.pop().wait()

        samples = measure(
            lambda: transfers.append(swap_blocks(*arrays, mapping, stream=stream)),
            repeats=50,
            warmups=5,
            before=finish,
        )
        finish()
        details = {"direction": Direction.H2D, "block": 8 * KIB, "count": 8192}
        self._add(
            Row(
                "enqueue 8192 fresh blocks of 8 KiB through swap_blocks",
                samples.median_s,
                "s",
                ENQUEUE_TARGET_S,
                False,
                details,
                samples,
            )
        )
        arrays = self.pools.blocks(Direction.H2D, 512)
        mapping = self.pools.mapping(*arrays, 1_000_000)
        samples = measure(lambda: plan_blocks(*arrays, mapping), repeats=10)
        self._add(
            Row(
                "plan 1,000,000 fresh blocks of 512 B",
                samples.median_s,
                "s",
                PLAN_TARGET_S,
                False,
                {"direction": Direction.H2D, "block": 512, "count": 1_000_000},
                samples,
            )
        )

    def measure_duplex(self) -> None:
        """Both directions at once, each with its own plan and stream."""
        pools, half = self.pools, GIB // 2
        other_stream = pools.driver.create_stream()
        ceiling = measure(lambda: pools.copy_both_ways(other_stream), repeats=self._repeats)
        self._add(
            Row(
                "contiguous, both directions at once",
                ceiling.rate(2 * half),
                "B/s",
                None,
                True,
                {"bytes": 2 * half},
                ceiling,
            )
        )
        for size in (2 * KIB, 8 * KIB, 32 * KIB):
            upper = slice(half, 2 * half)
            count = half // size // 2
            plans = []
            for source, destination in (
                (pools.host[:half], pools.device[:half]),
                (pools.device[upper], pools.host[upper]),
            ):
                src, dst = source.reshape(-1, size), destination.reshape(-1, size)
                plans.append(plan_blocks(src, dst, pools.mapping(src, dst, count)))

            def both(plans: list[CopyPlan] = plans) -> None:
                transfers = [
                    plan.run(stream)
                    for plan, stream in zip(plans, (pools.stream, other_stream), strict=True)
                ]
                for transfer in transfers:
                    transfer.wait()

            samples = measure(both, repeats=self._repeats)
            nbytes = sum(plan.nbytes for plan in plans)
            self._add(
                Row(
                    f"both directions at once, {_bytes(size)} blocks",
                    samples.rate(nbytes) / ceiling.rate(2 * half),
                    "ratio",
                    DUPLEX_TARGET,
                    True,
                    {"block": size, "bytes": nbytes},
                    samples,
                )
            )

    def measure_numba_loop(self) -> None:
        """Time what a Numba user does today: `copy_to_device` for every block."""
        size, count = 8 * KIB, 8192
        source, destination = self.pools.blocks(Direction.H2D, size)
        mapping = self.pools.mapping(source, destination, count)

        def loop() -> None:
            for i, j in mapping:
                destination[j].copy_to_device(source[i])

        looped = measure(loop, repeats=3, warmups=1)
        swapped = measure(
            lambda: swap_blocks(source, destination, mapping, stream=self.pools.stream).wait(),
            repeats=self._repeats,
        )
        details = {"direction": Direction.H2D, "block": size, "count": count}
        self._add(
            Row("8192 x 8 KiB, copy_to_device", looped.median_s, "s", None, True, details, looped)
        )
        self._add(
            Row(
                "8192 x 8 KiB, copy_to_device / swap_blocks",
                looped.median_s / swapped.median_s,
                "ratio",
                NUMBA_LOOP_TARGET,
                True,
                details,
                swapped,
            )
        )

    def measure_modes(self) -> None:
        """Every mode over block sizes, for the picture."""
        for direction in (Direction.H2D, Direction.D2H):
            for size in PLOTTED_SIZES:
                count = min(8192, 256 * MIB // size)
                plan = self._plan(direction, size, count)
                for mode in ("auto", *Mode):
                    samples = measure(
                        lambda p=plan, m=mode: p.run(self.pools.stream, m).wait(),  # type: ignore[misc]
                        repeats=5,
                        warmups=1,
                    )
                    self._add(
                        Row(
                            f"{direction}, {count} x {_bytes(size)}, {mode}",
                            samples.rate(plan.nbytes),
                            "B/s",
                            None,
                            True,
                            {
                                "direction": direction,
                                "block": size,
                                "count": count,
                                "mode": str(mode),
                                "plot": True,
                            },
                            samples,
                        )
                    )

    # -- helpers ----------------------------------------------------------------------------

    def _plan(self, direction: Direction, size: int, count: int) -> CopyPlan:
        """Make a plan, run it in every mode it is timed in, and check bytes of a sample."""
        source, destination = self.pools.blocks(direction, size)
        mapping = self.pools.mapping(source, destination, count)
        plan = plan_blocks(source, destination, mapping)
        plan.run(self.pools.stream).wait()
        for i, j in mapping[:: max(1, count // 8)]:
            if not np.array_equal(_host(source[int(i)]), _host(destination[int(j)])):
                raise AssertionError(f"{direction}, {size} bytes: block {i} arrived wrong in {j}")
        return plan

    def _ceiling(self, direction: Direction) -> float:
        return self.ceilings[direction].rate(GIB)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._report(f"[{time.perf_counter() - self._start:5.1f} s] {row}")

    def as_json(self) -> dict[str, Any]:
        """Return everything that was measured, raw values included."""
        return {
            "schema": "numba_swap speed targets 1",
            "machine": describe_machine(),
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
        }


def _host(array: Any) -> np.ndarray[Any, Any]:
    return array if isinstance(array, np.ndarray) else array.copy_to_host()


def _bytes(count: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} B"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; exit status 1 if a target is missed.

    Parameters
    ----------
    arguments : sequence of str, optional
        Instead of those of the process.
    """
    parser = argparse.ArgumentParser(prog="speed_targets", description=__doc__)
    parser.add_argument("--json", type=Path, help="write all raw values there")
    parser.add_argument("--repeats", type=int, default=15, help="of each throughput (default: 15)")
    parser.add_argument("--only", nargs="+", help="sections, throughput or latency for example")
    parsed = parser.parse_args(arguments)
    suite = Suite(parsed.repeats, lambda line: print(line, flush=True))
    suite.run(parsed.only)
    if parsed.json:
        parsed.json.write_text(json.dumps(suite.as_json()) + "\n")
    machine = describe_machine()
    device = machine["devices"][0]["name"]
    print(f"\n{device}, driver {machine['driver_release']} (CUDA {machine['driver_version']})")
    targets = [row for row in suite.rows if row.target is not None]
    missed = [row for row in targets if not row.met]
    for row in targets:
        print(row)
    shares = [row.value / row.target for row in targets if row.at_least and row.target]
    print(f"{len(targets) - len(missed)} of {len(targets)} targets met", end="")
    print(f"; median of value over target {statistics.median(shares):.3f}" if shares else "")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
