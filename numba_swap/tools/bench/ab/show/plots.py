"""Pictures of a result; needs matplotlib."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.analysis.crossover import crossovers_between
from numba_swap.tools.bench.ab.analysis.effects import Verdict
from numba_swap.tools.bench.ab.analysis.report import CellSummary, effect_between, summarise
from numba_swap.tools.bench.ab.results.results import ArmResult, CellResult, Result
from numba_swap.tools.bench.ab.show.tables import SIMULATED_NOTE, describe_origin
from numba_swap.tools.bench.ab.spec.arms import MODES
from numba_swap.tools.bench.ab.spec.cases import DIRECTIONS
from numba_swap.tools.units import format_bytes

_STYLES: dict[str, dict[str, Any]] = {
    "auto": {"color": "black", "linewidth": 4, "alpha": 0.25},
    "kernel": {"color": "#1b6ca8", "marker": "o"},
    "batch": {"color": "#c8553d", "marker": "s"},
    "loop": {"color": "#6a994e", "marker": "^"},
    "contiguous": {"color": "grey", "linestyle": "--"},
    "numba-loop": {"color": "#8d6a9f", "marker": "v", "linestyle": ":"},
    "cuda.core": {"color": "#d4a017", "marker": "D", "linestyle": ":"},
    "cupy-loop": {"color": "#4b8f8c", "marker": "<", "linestyle": ":"},
    "torch-staging": {"color": "#e07a9b", "marker": ">", "linestyle": ":"},
}
_OTHER: dict[str, Any] = {"color": "#7a5195"}
_FORCED = MODES[1:]
_DARK = 2.5  # the logarithm of a ratio from which on its colour needs white letters


def draw_throughput(result: Result, count: int | None = None) -> Any:
    """Draw GB/s against block size, a panel for each direction.

    Parameters
    ----------
    result : Result
        What was measured.
    count : int, optional
        How many blocks; by default, in each direction, the number measured with most block
        sizes, the largest such.

    Returns
    -------
    matplotlib figure
        Medians with quartiles; vertical lines where the fastest mode changes.

    Raises
    ------
    BadArgumentError
        If nothing was measured with so many blocks.
    """
    summaries = summarise(result)
    directions = _directions(summaries)
    figure, panels = _panels(result, len(directions), "Random blocks to completion")
    for panel, direction in zip(panels, directions, strict=True):
        here = [s for s in summaries if s.case.direction == direction]
        chosen = _widest_count(here) if count is None else count
        cells = sorted(
            (s for s in here if s.case.count == chosen), key=lambda s: s.case.block_bytes
        )
        if not cells:
            raise BadArgumentError(f"nothing was measured with {chosen} blocks, {direction}")
        for arm in dict.fromkeys(arm.arm for cell in cells for arm in cell.arms):
            _draw_curve(panel, cells, arm)
        for size in _changes_of_the_fastest(cells):
            panel.axvline(size, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
            name = format_bytes(round(size / 1024) * 1024) if size >= 1024 else f"{size:.0f} B"
            panel.annotate(
                name,
                (size, 0),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                rotation=90,
                ha="right",
                va="bottom",
                xytext=(-1, 3),
                textcoords="offset points",
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        sizes = [cell.case.block_bytes for cell in cells]
        panel.set_xticks(sizes, [format_bytes(size) for size in sizes], rotation=45, fontsize=8)
        panel.minorticks_off()
        panel.set_title(f"{str(DIRECTIONS[direction]).capitalize()}, {chosen} blocks", fontsize=10)
        panel.set_xlabel("block size; dotted lines: the fastest mode changes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s, call to completion")
    handles = {h.get_label(): h for p in panels for h in p.get_legend_handles_labels()[0]}
    figure.legend(handles=list(handles.values()), loc="outside right center", fontsize=8)
    return figure


def _draw_curve(panel: Any, cells: Sequence[CellSummary], arm: str) -> None:
    points = [
        (cell.case, found) for cell in cells for found in (cell.find(arm),) if found is not None
    ]
    rates = [case.nbytes / found.completion.median for case, found in points]
    # The slower quartile of time is the lower one of throughput.
    below = [
        rate - case.nbytes / found.completion.high
        for rate, (case, found) in zip(rates, points, strict=True)
    ]
    above = [
        case.nbytes / found.completion.low - rate
        for rate, (case, found) in zip(rates, points, strict=True)
    ]
    sizes = [case.block_bytes for case, _ in points]
    style = _STYLES.get(arm.partition(":")[0], {})
    if ":" in arm:
        style = {**style, "linestyle": "-."}
    panel.errorbar(sizes, rates, (below, above), label=arm, markersize=4, **style)


def draw_ratio(result: Result, over: str, under: str) -> Any:
    """Draw the ratio of two arms' times for every block size and number of blocks.

    Parameters
    ----------
    result : Result
        What was measured.
    over, under : str
        The arms. Below 1, the first is the faster one.

    Returns
    -------
    matplotlib figure
        A map for each direction, with green bars where the two are equally fast. A question mark
        stands where the verdict is INCONCLUSIVE or the cell's control is not SAME.

    Raises
    ------
    BadArgumentError
        If no cell has both arms.
    """
    pairs = {id(cell): pair for cell in result.cells if (pair := _find_pair(cell, over, under))}
    if not pairs:
        raise BadArgumentError(f"no case was measured with both {over} and {under}")
    summaries = summarise(result)
    both = [s for s, c in zip(summaries, result.cells, strict=True) if id(c) in pairs]
    directions = _directions(both)
    figure, panels = _panels(result, len(directions), f"Time of {over} over time of {under}")
    image = None
    for panel, direction in zip(panels, directions, strict=True):
        grid = _Grid([cell for cell in result.cells if cell.case.direction == direction])
        values = [[math.nan] * len(grid.sizes) for _ in grid.counts]
        for cell, summary in zip(result.cells, summaries, strict=True):
            if cell.case.direction != direction or id(cell) not in pairs:
                continue
            effect = effect_between(cell, *pairs[id(cell)], "completion", result.seed)
            assert effect is not None  # completion is always measured
            x, y = grid.place(cell)
            values[y][x] = math.log2(effect.ratio)
            doubtful = effect.verdict is Verdict.INCONCLUSIVE or not summary.stable
            text = f"{effect.ratio:.2g}" if effect.ratio < 100 else f"{effect.ratio:.0f}"
            ink = "white" if abs(values[y][x]) > _DARK else "black"
            style = {"ha": "center", "va": "center", "fontsize": 7, "color": ink, "zorder": 3}
            panel.text(x, y, text + "?" * doubtful, **style)
        image = panel.imshow(values, cmap="RdBu_r", vmin=-4, vmax=4, origin="lower", aspect="auto")
        points = [
            (grid.position(size), y)
            for y, count in enumerate(grid.counts)
            for size in crossovers_between(summaries, over, under, direction, count)
        ]
        # A bar in each row: one line through all would join crossings that have nothing in common.
        for at, row in points:
            ends = [at, at], [row - 0.5, row + 0.5]
            panel.plot(*ends, color="#2a9d3a", linewidth=2.5, alpha=0.6)
        grid.label(panel, direction)
    bar = figure.colorbar(image, ax=list(panels), shrink=0.9)
    bar.set_ticks([-4, -2, 0, 2, 4], labels=["1/16 or less", "1/4", "1", "4", "16 or more"])
    return figure


def draw_fastest(result: Result) -> Any:
    """Draw which of the three modes is the fastest for every block size and number of blocks.

    Returns
    -------
    matplotlib figure
        A map for each direction; the number is the second best mode's time over the best one's.

    Raises
    ------
    BadArgumentError
        If no cell has two of the modes.
    """
    from matplotlib.colors import to_rgba

    summaries = [s for s in summarise(result) if sum(s.find(m) is not None for m in _FORCED) > 1]
    if not summaries:
        raise BadArgumentError("no case was measured in two of the modes")
    directions = _directions(summaries)
    figure, panels = _panels(result, len(directions), "The fastest mode, and its lead")
    for panel, direction in zip(panels, directions, strict=True):
        grid = _Grid([cell for cell in result.cells if cell.case.direction == direction])
        image = [[(1.0, 1.0, 1.0, 1.0)] * len(grid.sizes) for _ in grid.counts]
        for summary in summaries:
            if summary.case.direction != direction:
                continue
            (best, first), (_, second) = _ranking(summary)[:2]
            x, y = grid.place(summary)
            image[y][x] = (*to_rgba(_STYLES.get(best, _OTHER)["color"])[:3], 0.55)
            lead = second / first
            text = f"{best}\n{lead:.2f}x" if lead < 10 else f"{best}\n{lead:.0f}x"
            panel.text(x, y, text, ha="center", va="center", fontsize=7)
        panel.imshow(image, origin="lower", aspect="auto")
        grid.label(panel, direction)
    return figure


class _Grid:
    """Sizes along x and counts along y, evenly spaced."""

    def __init__(self, cells: Sequence[CellResult]) -> None:
        self.sizes = sorted({cell.case.block_bytes for cell in cells})
        self.counts = sorted({cell.case.count for cell in cells})

    def place(self, cell: CellResult | CellSummary) -> tuple[int, int]:
        return self.sizes.index(cell.case.block_bytes), self.counts.index(cell.case.count)

    def position(self, size: float) -> float:
        """Where a size between two of those measured stands, on the logarithmic scale."""
        after = next(i for i, known in enumerate(self.sizes) if known >= size)
        if self.sizes[after] == size:
            return after
        low, high = math.log(self.sizes[after - 1]), math.log(self.sizes[after])
        return after - 1 + (math.log(size) - low) / (high - low)

    def label(self, panel: Any, direction: str) -> None:
        names = [format_bytes(size) for size in self.sizes]
        panel.set_xticks(range(len(names)), names, rotation=45, fontsize=8)
        panel.set_yticks(range(len(self.counts)), self.counts, fontsize=8)
        panel.set_title(str(DIRECTIONS[direction]).capitalize(), fontsize=10)
        panel.set_xlabel("block size")
        panel.set_ylabel("blocks")


def _panels(result: Result, count: int, title: str) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadArgumentError(
            "pictures need matplotlib: pip install matplotlib, or the extra [notebooks]"
        ) from None
    figure = Figure(figsize=(1.5 + 4.4 * count, 4.4), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    note = f"\n{SIMULATED_NOTE.upper()}" if result.simulated else ""
    figure.suptitle(f"{title}\n{describe_origin(result)}{note}", fontsize=9)
    return figure, panels


def _directions(summaries: Sequence[CellSummary]) -> list[str]:
    measured = {summary.case.direction for summary in summaries}
    if not measured:
        raise BadArgumentError("the result holds no cell to draw")
    return [direction for direction in DIRECTIONS if direction in measured]


def _widest_count(summaries: Sequence[CellSummary]) -> int:
    counts = [summary.case.count for summary in summaries]
    return max(counts, key=lambda count: (counts.count(count), count))


def _ranking(summary: CellSummary) -> list[tuple[str, float]]:
    times = [
        (mode, found.completion.median)
        for mode in _FORCED
        for found in (summary.find(mode),)
        if found is not None
    ]
    return sorted(times, key=lambda pair: pair[1])


def _changes_of_the_fastest(cells: Sequence[CellSummary]) -> list[float]:
    """Return the sizes at which the fastest of the three modes gives way to another."""
    ranked = [(cell, _ranking(cell)) for cell in cells]
    ranked = [(cell, ranking) for cell, ranking in ranked if ranking]
    changes = []
    for (cell, ranking), (next_cell, next_ranking) in itertools.pairwise(ranked):
        one, other = ranking[0][0], next_ranking[0][0]
        if one != other:
            case = cell.case
            changes += crossovers_between([cell, next_cell], one, other, case.direction, case.count)
    return changes


def _find_pair(cell: CellResult, over: str, under: str) -> tuple[ArmResult, ArmResult] | None:
    arms = {arm.arm: arm for arm in cell.arms if not arm.control}
    return (arms[under], arms[over]) if over in arms and under in arms else None
