"""Where one arm overtakes another along the block size. Pure functions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from numba_swap.tools.bench.ab.analysis.effects import TOLERANCE
from numba_swap.tools.bench.ab.analysis.report import CellSummary


def find_crossovers(
    sizes: Sequence[int], one: Sequence[float], other: Sequence[float]
) -> list[float]:
    """Return the sizes at which one curve of time overtakes the other.

    Parameters
    ----------
    sizes : sequence of int
        Rising.
    one, other : sequence of float
        Times at these sizes, positive.

    Returns
    -------
    list of float
        Interpolated on logarithmic axes. Only where one curve leads by more than 2 % on one side
        and the other does on the other: two that run together cross by chance.
    """
    points = [
        (math.log(size), math.log(a / b)) for size, a, b in zip(sizes, one, other, strict=True)
    ]
    clear = [i for i, (_, lead) in enumerate(points) if abs(lead) > math.log1p(TOLERANCE)]
    return [
        math.exp(_crossing(points[i : j + 1]))
        for i, j in itertools.pairwise(clear)
        if points[i][1] * points[j][1] < 0
    ]


def _crossing(points: Sequence[tuple[float, float]]) -> float:
    """Return where a line through points whose ends have unlike signs first reaches 0."""
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if y * next_y <= 0 and y != next_y:
            return x + (next_x - x) * y / (y - next_y)
    raise ValueError("the ends have one sign")


def time_curve(
    summaries: Sequence[CellSummary], arm: str, direction: str, count: int
) -> Mapping[int, float]:
    """Return an arm's median time to completion in nanoseconds by block size."""
    curve = {}
    for summary in sorted(summaries, key=lambda summary: summary.case.block_bytes):
        case, found = summary.case, summary.find(arm)
        if found is not None and (case.direction, case.count) == (direction, count):
            curve[case.block_bytes] = found.completion.median
    return curve


def crossovers_between(
    summaries: Sequence[CellSummary], one: str, other: str, direction: str, count: int
) -> list[float]:
    """Return the block sizes at which two arms are equally fast, for one number of blocks."""
    first, second = (time_curve(summaries, arm, direction, count) for arm in (one, other))
    sizes = [size for size in first if size in second]
    return find_crossovers(sizes, [first[size] for size in sizes], [second[size] for size in sizes])
