"""Reports as text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from numba_swap.dispatch.schema import one_line
from numba_swap.tools.bench.ab.analysis.effects import TOLERANCE, Effect, Spread, Verdict
from numba_swap.tools.bench.ab.analysis.report import ArmSummary, CellSummary, control_of, summarise
from numba_swap.tools.bench.ab.results.results import Result
from numba_swap.tools.units import format_bytes, format_ns

SIMULATED_NOTE = "simulated: measures nothing about a GPU"
_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
# With more cells than this, each is one line.
MOST_DETAILED_CELLS = 6
_WIDTH = 400  # tables take what they need, terminals break lines
_MARKS = {
    Verdict.FASTER: "F",
    Verdict.SLOWER: "S",
    Verdict.SAME: "=",
    Verdict.INCONCLUSIVE: "?",
}


def mark_simulated(lines: Iterable[str], simulated: bool) -> list[str]:
    """Say behind every line that is not empty what it does not measure, if it is simulated."""
    if not simulated:
        return list(lines)
    return [f"{line}  ({SIMULATED_NOTE})" if line.strip() else line for line in lines]


def format_result(
    result: Result,
    metric: str = "completion",
    baseline: str | None = None,
) -> str:
    """Lay a result out for a terminal.

    Parameters
    ----------
    result : Result
        What was measured.
    metric : {"completion", "enqueue", "gpu"}
        Which time the effects are of.
    baseline : str, optional
        Compare with this arm instead of each cell's first.
    """
    summaries = summarise(result, metric, baseline)
    if len(summaries) <= MOST_DETAILED_CELLS:
        lines = [line for summary in summaries for line in _detailed(summary, metric)]
    else:
        lines = _compact(summaries, metric)
    lines += [f"not measured: {skip['case']}: {skip['reason']}" for skip in result.skipped]
    lines += _conclusion(summaries, result)
    lines.append(describe_origin(result))
    return "\n".join(mark_simulated(lines, result.simulated))


def describe_origin(result: Result) -> str:
    """Say on what a result was measured, in one line."""
    machine = result.machine
    names = ", ".join(str(device.get("name")) for device in machine["devices"]) or "no device"
    release = f"{machine['driver_release']} (CUDA {machine['driver_version']})"
    driver = release if machine["driver_release"] else f"CUDA {machine['driver_version']}"
    commit = machine["commit"] or "of an unknown commit"
    if _HASH.fullmatch(commit):
        commit = commit[:12]
    changed = " with changes" if machine["uncommitted_changes"] else ""
    return one_line(f"{names}, driver {driver}, {commit}{changed}, {machine['date']}")


def format_effect(effect: Effect) -> str:
    """Write a ratio with its interval."""
    return f"{effect.ratio:.3f} [{effect.low:.3f}, {effect.high:.3f}]"


def _spread(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{format_ns(value.median)} [{format_ns(value.low)}, {format_ns(value.high)}]"


def _detailed(summary: CellSummary, metric: str) -> list[str]:
    case = summary.case
    title = (
        f"{case}: {format_bytes(case.nbytes)} scattered over {format_bytes(case.span_bytes)}, "
        f"{summary.rounds} rounds; ratios of {metric} time"
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("arm", "ran as", "enqueue", "completion", "GPU", "GB/s", "ratio", "p", "verdict"):
        table.add_column(name, no_wrap=True)
    for arm in summary.arms:
        table.add_row(
            arm.arm,
            arm.mode or "",
            _spread(arm.enqueue),
            _spread(arm.completion),
            _spread(arm.gpu),
            f"{arm.bytes_per_s / 1e9:.3g}",
            *_effect_cells(arm.effect, "baseline" if arm.arm == summary.baseline else "-"),
        )
    name = f"{summary.arms[0].arm} again (control)"
    table.add_row(name, "", "", "", "", "", *_effect_cells(summary.control, "-"))
    lines = [title, *lines_of(table)]
    lines += [f"{arm}: not measured: {reason}" for arm, reason in summary.skipped]
    for arm in summary.arms:
        lines += _notes(arm)
    if not summary.stable:
        lines.append("UNSTABLE: the control is not SAME, so no verdict of this case stands")
    return [*lines, ""]


def _effect_cells(effect: Effect | None, otherwise: str) -> tuple[str, str, str]:
    if effect is None:
        return "", "", otherwise
    return format_effect(effect), f"{effect.p_value:.2g}", str(effect.verdict)


def _notes(arm: ArmSummary) -> list[str]:
    notes = []
    if not arm.settled:
        notes.append(f"{arm.arm}: the warm-up did not settle")
    if arm.planted_ns:
        notes.append(f"{arm.arm}: made slower on purpose by {format_ns(arm.planted_ns)} a run")
    return notes


def _compact(summaries: Sequence[CellSummary], metric: str) -> list[str]:
    """One line a cell: GB/s of every arm, with the mark of its verdict."""
    names = list(dict.fromkeys(arm.arm for summary in summaries for arm in summary.arms))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("GB/s to completion", no_wrap=True)
    for name in (*names, "control"):
        table.add_column(name, no_wrap=True, justify="right")
    for summary in summaries:
        row = []
        for name in names:
            arm = summary.find(name)
            mark = _MARKS[arm.effect.verdict] if arm and arm.effect else " "
            row.append(f"{arm.bytes_per_s / 1e9:.3g} {mark}" if arm else "-")
        control = summary.control
        row.append(f"{control.ratio:.3f} {_MARKS[control.verdict]}" if control else "-")
        table.add_row(str(summary.case), *row)
    legend = (
        f"F faster, S slower, = same within {TOLERANCE:.0%}, ? inconclusive: {metric} time against "
        "the first arm, or the one named; - not measured"
    )
    missing: dict[str, list[str]] = {}
    for summary in summaries:
        for name, reason in summary.skipped:
            missing.setdefault(name, []).append(f"{summary.case}: {reason}")
    skips = [
        f"{name}: not measured in {len(why)} of its cases, the first is {why[0]}"
        for name, why in missing.items()
    ]
    unsettled = [
        f"{arm.arm}, {summary.case}: the warm-up did not settle"
        for summary in summaries
        for arm in summary.arms
        if not arm.settled
    ]
    return [*lines_of(table), legend, *skips, *unsettled]


def _conclusion(summaries: Sequence[CellSummary], result: Result) -> list[str]:
    lines = []
    control = control_of(summaries, result.seed)
    if control is not None:
        unstable = sum(not summary.stable for summary in summaries)
        text = f"control (the first arm against itself): {control.verdict}, "
        text += format_effect(control)
        if len(summaries) > 1:
            text += f" over {len(summaries)} cases; by itself not SAME in {unstable} of them"
        lines.append(text)
        if control.verdict is not Verdict.SAME:
            lines.append("UNSTABLE REPORT: the control is not SAME; do not trust its verdicts")
    if not result.complete:
        lines.append("INTERRUPTED: this is what was measured until then")
    return lines


def lines_of(table: Table) -> list[str]:
    """Return the lines of a table in plain text, as wide as it needs."""
    buffer = io.StringIO()
    Console(file=buffer, width=_WIDTH, color_system=None).print(table)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]
