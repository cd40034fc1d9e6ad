"""What follows from a result: medians, effects, verdicts, and whether they can be trusted.

Everything here is computed from the raw values each time; a file holds no summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.analysis.effects import (
    Effect,
    Spread,
    Times,
    Verdict,
    judge,
    paired_effect,
    pooled_effect,
    round_values,
    spread,
)
from numba_swap.tools.bench.ab.results.results import ArmResult, CellResult, Result
from numba_swap.tools.bench.ab.spec.cases import Case

METRICS = ("completion", "enqueue", "gpu")


@dataclass(frozen=True)
class ArmSummary:
    """One arm of one cell.

    Attributes
    ----------
    arm : str
        The arm.
    mode, reason : str or None
        Which mode of this package ran, and why.
    enqueue, completion : Spread
        Host times in nanoseconds.
    gpu : Spread or None
        Times by events.
    bytes_per_s : float
        Bytes of the case over the median time to completion.
    settled : bool
        Whether the warm-up settled.
    planted_ns : int
        How much slower it was made on purpose.
    effect : Effect or None
        Against the baseline; None for the baseline itself, and where there is no GPU time.
    """

    arm: str
    mode: str | None
    reason: str | None
    enqueue: Spread
    completion: Spread
    gpu: Spread | None
    bytes_per_s: float
    settled: bool
    planted_ns: int
    effect: Effect | None


@dataclass(frozen=True)
class CellSummary:
    """One cell.

    Attributes
    ----------
    case : Case
        What was copied.
    baseline : str
        The arm that the others are compared with.
    arms : tuple of ArmSummary
        All but the control.
    control : Effect or None
        The first arm against itself; None where the metric was not measured.
    rounds : int
        How many there were.
    skipped : tuple of (str, str)
        Arms that were not measured, and why.
    """

    case: Case
    baseline: str
    arms: tuple[ArmSummary, ...]
    control: Effect | None
    rounds: int
    skipped: tuple[tuple[str, str], ...]

    @property
    def stable(self) -> bool:
        """Whether the control came out SAME."""
        return self.control is not None and self.control.verdict is Verdict.SAME

    def find(self, arm: str) -> ArmSummary | None:
        """Return an arm by its text; None if it was not measured here."""
        return next((summary for summary in self.arms if summary.arm == arm), None)


def values_of(arm: ArmResult, metric: str) -> Times | None:
    """Return the rounds' values of a metric; None if it was not measured.

    Raises
    ------
    BadArgumentError
        If there is no such metric.
    """
    if metric not in METRICS:
        raise BadArgumentError(f"{metric!r} is no metric: choose of {', '.join(METRICS)}")
    samples = getattr(arm, f"{metric}_ns")
    return None if samples is None else round_values(samples)


def effect_between(
    cell: CellResult, baseline: ArmResult, other: ArmResult, metric: str, seed: int
) -> Effect | None:
    """Compare two arms of one cell; None if the metric was not measured."""
    one, two = values_of(baseline, metric), values_of(other, metric)
    return None if one is None or two is None else paired_effect(one, two, seed)


def summarise_cell(
    cell: CellResult, seed: int, metric: str = "completion", baseline: str | None = None
) -> CellSummary:
    """Summarise one cell.

    Parameters
    ----------
    cell : CellResult
        The raw values.
    seed : int
        Of the bootstrap.
    metric : {"completion", "enqueue", "gpu"}
        Which time the effects are of.
    baseline : str, optional
        Compare with this arm instead of the first.

    Raises
    ------
    BadArgumentError
        If there is no such metric, or the baseline was not measured in this cell.
    """
    base = cell.arms[0]
    if baseline is not None:
        named = [arm for arm in cell.arms if arm.arm == baseline]
        if not named:
            raise BadArgumentError(f"{cell.case}: {baseline} was not measured")
        base = named[0]
    return CellSummary(
        cell.case,
        base.arm,
        tuple(
            ArmSummary(
                arm.arm,
                arm.mode,
                arm.reason,
                spread(arm.enqueue_ns),
                spread(arm.completion_ns),
                None if arm.gpu_ns is None else spread(arm.gpu_ns),
                cell.case.nbytes / float(np.median(arm.completion_ns)) * 1e9,
                arm.settled,
                arm.planted_ns,
                None if arm is base else effect_between(cell, base, arm, metric, seed),
            )
            for arm in cell.arms
            if not arm.control
        ),
        effect_between(cell, cell.arms[0], cell.arms[1], metric, seed),
        len(cell.orders),
        tuple((skip["arm"], skip["reason"]) for skip in cell.skipped),
    )


def summarise(
    result: Result, metric: str = "completion", baseline: str | None = None
) -> list[CellSummary]:
    """Summarise all cells; see `summarise_cell`."""
    return [summarise_cell(cell, result.seed, metric, baseline) for cell in result.cells]


def control_of(summaries: Sequence[CellSummary], seed: int) -> Effect | None:
    """Return the control of a whole report; None if there is none.

    That of one cell is the cell's. That of several is the median of the cells' ratios, with a
    bootstrap over cells: it tells a bias that all cells share, while the noise of a single cell
    is told by that cell's own control.
    """
    controls = [summary.control for summary in summaries if summary.control is not None]
    if len(controls) < 2:
        return controls[0] if controls else None
    effect = pooled_effect(np.array([control.ratio for control in controls]), seed)
    rounds = min(control.rounds for control in controls)
    return effect._replace(rounds=rounds, verdict=judge(effect.low, effect.high, rounds))
