"""What a calibration found, and how good the choices are by it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import BOX_ROUTES, CLASS_EDGES, ROW_EDGES, Workload
from numba_swap.tools.bench.costs.fit import TimedSwap
from numba_swap.tools.units import KIB, MIB


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes
    ----------
    costs : CostModel
        The fitted costs.
    cells : tuple of TimedSwap
        What was measured.
    before : CostModel
        The costs by which was chosen before.
    path : Path or None
        The file; None if none was written.
    seconds : float
        How long it took.
    simulated : bool
        Whether a simulated driver was measured, which says nothing about a GPU.
    what : str
        Which GPU, or pair of GPUs.
    others : tuple of Calibration
        What was found of GPUs of other names, and of pairs.
    """

    costs: CostModel
    cells: tuple[TimedSwap, ...]
    before: CostModel
    path: Path | None
    seconds: float
    simulated: bool
    what: str = ""
    others: tuple[Calibration, ...] = ()

    def errors(self) -> dict[tuple[str, Mode], tuple[float, float]]:
        """Return, for every route and mode, predicted over measured: median and worst."""
        ratios: dict[tuple[str, Mode], list[float]] = {}
        for mode, load, measured_us in self.cells:
            predicted = {m: us for us, m in self.costs.predict(load)}[mode]
            ratios.setdefault((load.route, mode), []).append(predicted / measured_us)
        return {
            key: (statistics.median(values), max(values, key=lambda r: abs(math.log(r))))
            for key, values in ratios.items()
        }

    def regret(self, costs: CostModel) -> tuple[float, float]:
        """Return the time of the mode that costs would choose over that of the best mode.

        Returns
        -------
        mean, worst : float
            Geometric mean, and the largest, over all swaps that were measured in several modes.
        """
        swaps: dict[Workload, dict[Mode, float]] = {}
        for mode, load, measured_us in self.cells:
            swaps.setdefault(load, {})[mode] = measured_us
        regrets = [1.0]
        for load, times in swaps.items():
            known = [(us, mode) for us, mode in costs.predict(load) if mode in times]
            chosen = min(known, key=lambda item: item[0])[1]  # of equal ones the first, as `rank`
            regrets.append(times[chosen] / min(times.values()))
        return statistics.geometric_mean(regrets), max(regrets)

    @property
    def gain(self) -> float:
        """How many times faster the modes chosen now are than those before, geometric mean."""
        return self.regret(self.before)[0] / self.regret(self.costs)[0]


# Lengths in bytes, each with its class.
_LENGTHS_SHOWN = (0, 2 * KIB), (2, 64 * KIB), (3, MIB)
_ROWS_SHOWN = (0, 128), (2, 512), (3, 2 * KIB)
# Where each class begins, of copies and of the rows of boxes.
_LENGTHS = (0, *CLASS_EDGES), (0, *ROW_EDGES)


def format_calibration(found: Calibration) -> str:
    """Return measured against fitted, and what was gained, as a table in plain text."""
    lines = [
        *([f"{found.what}:"] if found.others else []),
        f"{len(found.cells)} swaps measured in {found.seconds:.1f} s",
        "",
        f"{'route':<16}{'mode':<8}{'start':>8}{'fork':>8}  "
        "GB/s at 2 KiB  at 64 KiB  at 1 MiB  predicted/measured: median  worst",
        f"{'':<42}(of boxes, rows of 128 B, 512 B, 2 KiB)",
    ]
    for (route, mode), (median, worst) in found.errors().items():
        cost = found.costs.routes[route][mode]
        lengths = _ROWS_SHOWN if route in BOX_ROUTES else _LENGTHS_SHOWN
        rates = [_rate(cost, i, size) for i, size in lengths]
        lines.append(
            f"{route:<16}{mode:<8}{cost.start_us:>5.0f} us{cost.fork_us:>5.0f} us  "
            f"{rates[0]:>13.2f}{rates[1]:>11.2f}{rates[2]:>10.2f}  "
            f"{median:>26.2f}{worst:>7.2f}"
        )
    for (route, number), shared in found.costs.shared.items():
        what = "rows" if route in BOX_ROUTES else "copies"
        least = _LENGTHS[route in BOX_ROUTES][number]
        rate = 1e3 / shared.megabyte_us if shared.megabyte_us else math.inf
        lines.append(
            f"{route:<16}both engines at once, {shared.share:.0%} in the batch, {what} of {least} "
            f"B and more: {rate:.2f} GB/s"
        )
    (before, worst_before), (now, worst_now) = (
        found.regret(found.before),
        found.regret(found.costs),
    )
    lines += [
        "",
        f"The modes chosen took {before:.3f} times as long as the best before (worst "
        f"{worst_before:.2f}), {now:.3f} now (worst {worst_now:.2f}): the choice got "
        f"{found.gain:.3f} times faster.",
    ]
    if found.path is not None:
        lines.append(f"Stored in {found.path}.")
    if found.simulated:
        lines.append(
            "The driver is simulated: this measures nothing about a GPU, and is not stored."
        )
    for other in found.others:
        lines += ["", f"{other.what}:", format_calibration(other)]
    return "\n".join(lines)


def _rate(cost: ModeCost, length_class: int, size: int) -> float:
    """Return GB/s of many copies; infinite where a fit found no cost but the start-up."""
    copy_us = cost.copy_us[length_class] + size * 1e-6 * cost.megabyte_us[length_class]
    return size / copy_us / 1e3 if copy_us else math.inf
