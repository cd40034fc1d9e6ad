"""What the actions of ``numba-swap ab`` do; each returns an exit status."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.analysis.effects import Verdict
from numba_swap.tools.bench.ab.analysis.report import summarise
from numba_swap.tools.bench.ab.measure.run import Bench
from numba_swap.tools.bench.ab.measure.sampling import Method
from numba_swap.tools.bench.ab.results.results import (
    Result,
    load_result,
    select_cells,
    write_result,
)
from numba_swap.tools.bench.ab.show import plots
from numba_swap.tools.bench.ab.show.compare import compare_results, format_comparison, slower_pairs
from numba_swap.tools.bench.ab.show.progress import show_progress
from numba_swap.tools.bench.ab.show.tables import format_result
from numba_swap.tools.bench.ab.spec import defaults
from numba_swap.tools.bench.ab.spec.arms import parse_arms
from numba_swap.tools.bench.ab.spec.cases import (
    Case,
    cases_of_mapping,
    make_cases,
    read_mapping,
)
from numba_swap.tools.bench.ab.spec.grids import Cell, cells_of_grid, find_grid
from numba_swap.tools.bench.gpu import BenchGPU, has_gpu, open_gpu
from numba_swap.tools.bench.memory import Mapping
from numba_swap.tools.checks import check_memory, check_writable
from numba_swap.tools.units import parse_bytes, parse_count

_MOST_NS = 1e18

# What the arguments of cases are where neither they nor a grid say it.
_CASE_DEFAULTS = {
    "direction": ["h2d"],
    "block": ["8KiB"],
    "count": ["1024"],
    "memory": ["pinned"],
    "cache": ["warm"],
}
# The arguments that a result keeps.
_RECORDED = (
    *("arms", "grid", *_CASE_DEFAULTS, "mapping", "seed", "span"),
    *("rounds", "sample_ms", "most_arm_s", "most_s", "skip", "simulate"),
)


def run(parsed: argparse.Namespace) -> int:
    """Measure, write and show."""
    cells, large, mapping = _cells(parsed)
    if parsed.json is not None:
        check_writable(parsed.json)
    method = _method(parsed)
    version = parsed.simulate or (None if has_gpu() else "13.0")
    try:
        with (
            open_gpu(version) as gpu,
            show_progress(len(cells), gpu.simulated) as report,
        ):
            _check_room(cells, gpu)
            bench = Bench(
                gpu,
                cells,
                method,
                mapping=mapping,
                skip=parsed.skip or parsed.grid is not None,
                most_s=parsed.most_s,
                report=report,
            )
            try:
                result = bench.run(_arguments(parsed))
            except Exception:
                if parsed.json is not None and bench.result is not None and bench.result.cells:
                    write_result(bench.result, parsed.json)  # what took minutes to measure
                raise
    except KeyboardInterrupt:
        print("interrupted before anything was measured", file=sys.stderr)
        return 130
    result.skipped[:0] = [{"case": case, "reason": reason} for case, reason in large]
    try:
        if parsed.json is not None:  # before it is shown, to a pipe that may be closed
            write_result(result, parsed.json)
    finally:
        status = _report(result, parsed)
    return status if result.complete else 130


def _method(parsed: argparse.Namespace) -> Method:
    rounds, sample_ms, most_arm_s = defaults.ROUNDS, defaults.SAMPLE_MS, defaults.MOST_ARM_S
    if parsed.grid is not None:
        grid = find_grid(parsed.grid)
        rounds, sample_ms, most_arm_s = grid.rounds, grid.sample_ms, grid.most_arm_s
    sample_ms = sample_ms if parsed.sample_ms is None else parsed.sample_ms
    most_arm_s = most_arm_s if parsed.most_arm_s is None else parsed.most_arm_s
    return Method(
        rounds if parsed.rounds is None else parsed.rounds,
        parsed.seed,
        _nanoseconds(sample_ms, 1e6),
        _nanoseconds(most_arm_s, 1e9),
    )


def _nanoseconds(value: float, factor: float) -> int:
    """Return whole nanoseconds; 0, which is refused later, for what is no time."""
    return round(min(value * factor, _MOST_NS)) if math.isfinite(value) else 0


def _check_room(cells: list[Cell], gpu: BenchGPU) -> None:
    """Refuse cases that there is no memory for; see `CheckedMemory` for what they need."""
    cases = sorted((cell.case for cell in cells), key=lambda case: case.span_bytes)
    for largest in cases[-1:]:
        nbytes, what = largest.span_bytes, f"the case {largest}"
        check_memory((6 if gpu.simulated else 4) * nbytes, what)
        free = gpu.free_bytes()
        if free is not None:
            check_memory(2 * nbytes, what, free)


def _arguments(parsed: argparse.Namespace) -> list[str]:
    """Return what was asked for, defaults included; no paths, which would tell of the machine."""
    values = {key: value for key, value in vars(parsed).items() if key in _RECORDED}
    if parsed.mapping is not None:
        values["mapping"] = Path(parsed.mapping).name
    return [
        f"{key}={' '.join(value) if isinstance(value, list) else value}"
        for key, value in values.items()
        if value not in (None, [])
    ]


def _cells(parsed: argparse.Namespace) -> tuple[list[Cell], list[tuple[Case, str]], Mapping | None]:
    """Return the cells, the cases left out, and the mapping if one is given."""
    span_bytes = parse_bytes(parsed.span, short=True)
    if parsed.grid is not None:
        named = [name for name in ("arms", "mapping", *_CASE_DEFAULTS) if getattr(parsed, name)]
        if named:
            raise BadArgumentError(f"--grid has its own {', '.join(named)}")
        cells, large = cells_of_grid(parsed.grid, parsed.seed, span_bytes)
        return cells, large, None
    if not parsed.arms:
        raise BadArgumentError("name the arms to measure, auto and loop for example, or a --grid")
    arms = tuple(parse_arms(parsed.arms))
    for name, default in _CASE_DEFAULTS.items():
        setattr(parsed, name, getattr(parsed, name) or default)
    cases = make_cases(
        parsed.direction,
        [parse_bytes(text, short=True) for text in parsed.block],
        [parse_count(text) for text in parsed.count],
        parsed.memory,
        parsed.cache,
        parsed.seed,
        span_bytes,
    )
    mapping = None
    if parsed.mapping is not None:
        mapping = read_mapping(parsed.mapping)
        cases = cases_of_mapping(cases, mapping, Path(parsed.mapping).name)
    return [Cell(case, arms) for case in cases], [], mapping


def show(parsed: argparse.Namespace) -> int:
    """Show a result again."""
    result = load_result(parsed.file)
    cells = select_cells(
        result.cells,
        direction=parsed.direction,
        block_bytes=[parse_bytes(text, short=True) for text in parsed.block or ()],
        count=[parse_count(text) for text in parsed.count or ()],
    )
    if result.cells and not cells:
        raise BadArgumentError(f"{parsed.file}: no such case was measured")
    result.cells = cells
    return _report(result, parsed)


def _report(result: Result, parsed: argparse.Namespace) -> int:
    baseline = getattr(parsed, "baseline", None)
    print(format_result(result, parsed.metric, baseline))
    if not parsed.fail_on_slower:
        return 0
    summaries = summarise(result, parsed.metric, baseline)
    slower = any(
        arm.effect is not None and arm.effect.verdict is Verdict.SLOWER
        for summary in summaries
        if summary.stable
        for arm in summary.arms
    )
    if slower:
        return 1
    return 0 if summaries and all(summary.stable for summary in summaries) else 3


def compare(parsed: argparse.Namespace) -> int:
    """Compare two results."""
    first, second = load_result(parsed.first), load_result(parsed.second)
    comparison = compare_results(
        first, second, parsed.metric, despite_differences=parsed.despite_differences
    )
    print(format_comparison(comparison, first, second, parsed.metric))
    if not parsed.fail_on_slower:
        return 0
    if any(pair.stable for pair in slower_pairs(comparison)):
        return 1
    return 0 if comparison.pairs and all(pair.stable for pair in comparison.pairs) else 3


def plot(parsed: argparse.Namespace) -> int:
    """Draw a result."""
    check_writable(Path(parsed.picture))
    result = load_result(parsed.file)
    if parsed.kind == "throughput":
        count = None if parsed.count is None else parse_count(parsed.count)
        figure = plots.draw_throughput(result, count)
    elif parsed.kind == "ratio":
        figure = plots.draw_ratio(result, parsed.over, parsed.under)
    else:
        figure = plots.draw_fastest(result)
    try:
        figure.savefig(parsed.picture, dpi=110)
    except OSError as error:
        raise BadArgumentError(f"{parsed.picture} cannot be written: {error.strerror}") from None
    return 0
