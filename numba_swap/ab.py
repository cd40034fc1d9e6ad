"""What ``numba-swap ab run --json FILE`` measured: read it, judge it, draw it.

A `Result` holds raw times, a cell for each case and in it an arm for each way of copying.
`summarise` computes medians, ratios with their intervals, and verdicts from them; `control_of`
says whether these can be trusted. The ``draw_`` functions need Matplotlib.

In a checkout of the repository, with the file that its notebook 3 is about:

>>> from numba_swap import ab
>>> result = ab.load_result("notebooks/data/ab_planted_h200.json")
>>> summaries = ab.summarise(result)
>>> print(ab.control_of(summaries, result.seed).verdict)
SAME
>>> print(summaries[0].case, summaries[0].find("auto:plant=5%").effect.verdict)
h2d, 8192 x 8 KiB, pinned SLOWER
"""

from numba_swap.tools.bench.ab.analysis.crossover import find_crossovers
from numba_swap.tools.bench.ab.analysis.effects import TOLERANCE, Effect, Spread, Verdict
from numba_swap.tools.bench.ab.analysis.report import (
    ArmSummary,
    CellSummary,
    control_of,
    summarise,
    summarise_cell,
)
from numba_swap.tools.bench.ab.results.results import ArmResult, CellResult, Result, load_result
from numba_swap.tools.bench.ab.show.plots import draw_fastest, draw_ratio, draw_throughput
from numba_swap.tools.bench.ab.spec.units import format_bytes, format_ns

__all__ = [
    "TOLERANCE",
    "ArmResult",
    "ArmSummary",
    "CellResult",
    "CellSummary",
    "Effect",
    "Result",
    "Spread",
    "Verdict",
    "control_of",
    "draw_fastest",
    "draw_ratio",
    "draw_throughput",
    "find_crossovers",
    "format_bytes",
    "format_ns",
    "load_result",
    "summarise",
    "summarise_cell",
]
