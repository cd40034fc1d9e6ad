"""Two results against each other: yesterday's commit against today's."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.table import Table

from numba_swap.tools.bench.ab.analysis.effects import Effect, Verdict, unpaired_effect
from numba_swap.tools.bench.ab.analysis.report import summarise_cell, values_of
from numba_swap.tools.bench.ab.results.results import ArmResult, CellResult, Result
from numba_swap.tools.bench.ab.show.tables import (
    describe_origin,
    format_effect,
    lines_of,
    mark_simulated,
)
from numba_swap.tools.bench.ab.spec.cases import Case
from numba_swap.tools.bench.ab.spec.errors import DifferentMachinesError


@dataclass(frozen=True)
class Pair:
    """One arm of one case in both results.

    Attributes
    ----------
    case : Case
        What was copied.
    arm : str
        Who copied.
    effect : Effect
        The second result's time against the first's.
    stable : bool
        Whether both cells' controls are SAME.
    """

    case: Case
    arm: str
    effect: Effect
    stable: bool


@dataclass(frozen=True)
class Comparison:
    """All that two results have in common, and what they have not.

    Attributes
    ----------
    pairs : tuple of Pair
        In the order of the first.
    only_first, only_second : tuple of (Case, str)
        Cases and arms that one has alone.
    differences : tuple of str
        How the machines differ, if that was allowed.
    """

    pairs: tuple[Pair, ...]
    only_first: tuple[tuple[Case, str], ...]
    only_second: tuple[tuple[Case, str], ...]
    differences: tuple[str, ...]


def find_differences(first: Result, second: Result) -> list[str]:
    """Say how the devices or drivers of two results differ, one sentence each."""

    def facts(result: Result) -> dict[str, object]:
        machine = result.machine
        return {
            "devices": [device.get("name") for device in machine["devices"]],
            "driver version": machine["driver_version"],
            "driver release": machine["driver_release"],
            "pretended version": machine["pretended_version"],
            "simulated": result.simulated,
        }

    one, two = facts(first), facts(second)
    return [f"{name}: {one[name]} and {two[name]}" for name in one if one[name] != two[name]]


def compare_results(
    first: Result, second: Result, metric: str = "completion", *, despite_differences: bool = False
) -> Comparison:
    """Compare what two results have in common.

    Parameters
    ----------
    first, second : Result
        The first is the baseline.
    metric : {"completion", "enqueue", "gpu"}
        Which time.
    despite_differences : bool
        Compare even if devices or drivers differ.

    Raises
    ------
    DifferentMachinesError
        If they differ and that was not allowed.

    Notes
    -----
    The two were not measured in turn. Whatever changed on the machine between them is in the
    ratios, and the intervals, which come from within the runs, do not show it.
    """
    differences = find_differences(first, second)
    if differences and not despite_differences:
        raise DifferentMachinesError(
            f"not measured on the same device and driver: {'; '.join(differences)} "
            "(--despite-differences compares all the same)"
        )
    ones, twos = _arms_of(first), _arms_of(second)
    pairs = []
    for key in ones:
        if key not in twos:
            continue
        (cell, arm), (other_cell, other_arm) = ones[key], twos[key]
        one, two = values_of(arm, metric), values_of(other_arm, metric)
        if one is None or two is None:
            continue
        effect = unpaired_effect(one, two, first.seed)
        stable = all(
            summarise_cell(c, result.seed, metric).stable
            for c, result in ((cell, first), (other_cell, second))
        )
        pairs.append(Pair(*key, effect, stable))
    return Comparison(
        tuple(pairs),
        tuple(key for key in ones if key not in twos),
        tuple(key for key in twos if key not in ones),
        tuple(differences),
    )


def _arms_of(result: Result) -> dict[tuple[Case, str], tuple[CellResult, ArmResult]]:
    return {
        (cell.case, arm.arm): (cell, arm)
        for cell in result.cells
        for arm in cell.arms
        if not arm.control
    }


def format_comparison(
    comparison: Comparison, first: Result, second: Result, metric: str = "completion"
) -> str:
    """Lay a comparison out for a terminal."""
    lines = [f"first:  {describe_origin(first)}", f"second: {describe_origin(second)}"]
    lines += [f"DIFFERENT MACHINES: {text}" for text in comparison.differences]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("case", "arm", f"{metric}, second / first", "p", "verdict", "controls"):
        table.add_column(name, no_wrap=True)
    for pair in comparison.pairs:
        table.add_row(
            str(pair.case),
            pair.arm,
            format_effect(pair.effect),
            f"{pair.effect.p_value:.2g}",
            str(pair.effect.verdict),
            "SAME" if pair.stable else "UNSTABLE",
        )
    lines += ["", *lines_of(table), ""]
    lines += [f"only in the first: {case}, {arm}" for case, arm in comparison.only_first]
    lines += [f"only in the second: {case}, {arm}" for case, arm in comparison.only_second]
    if not comparison.pairs:
        lines.append(f"nothing in common has {metric} times")
    lines.append(
        "The two were not measured in turn: what changed on the machine between them is in the "
        "ratios and not in the intervals."
    )
    return "\n".join(mark_simulated(lines, first.simulated or second.simulated))


def slower_pairs(comparison: Comparison) -> list[Pair]:
    """Return the pairs whose second result is SLOWER."""
    return [pair for pair in comparison.pairs if pair.effect.verdict is Verdict.SLOWER]
