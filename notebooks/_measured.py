# ruff: noqa: S603 -- it runs Python without a shell
"""What notebooks 3 and 4 read out of the results of `numba-swap ab` that are kept here.

Times are from call to completion. All that is said of them is computed from the raw values.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from numba_swap import ab

MODES = ("kernel", "batch", "loop")
DIRECTIONS = ("h2d", "d2h", "d2d")
KIB = 1024
_DATA = Path(__file__).with_name("data")
# The calibration that is shipped with the package.
_SHIPPED = Path(__file__).parents[1] / "numba_swap" / "dispatch" / "data" / "reference_costs.json"


def command(*arguments: str) -> str:
    """Run the command ``numba-swap`` and return what it prints."""
    line = [sys.executable, "-m", "numba_swap", *arguments]
    result = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    if result.returncode:
        raise RuntimeError(f"numba-swap {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


class Key(NamedTuple):
    """What was copied.

    Attributes
    ----------
    direction : {"h2d", "d2h", "d2d"}
        Between which sides.
    block_bytes, count : int
        Size of a block, and how many.
    """

    direction: str
    block_bytes: int
    count: int


#: Microseconds of each mode, and of auto where it was measured, for each thing copied.
Times = Mapping[Key, Mapping[str, float]]
#: Which mode to take for blocks of a size and number.
Rule = Callable[[int, int], str]


# -- what was measured --------------------------------------------------------------------------


def load(name: str) -> ab.Result:
    """Read a result from the folder of data."""
    return ab.load_result(_DATA / name)


def origin(result: ab.Result) -> str:
    """Say where a result was measured, for the last line of a table."""
    if result.simulated:
        return "Simulated driver, no GPU: the times say nothing."
    machine = result.machine
    device = machine["devices"][0]["name"]
    date = machine["date"][:10]
    return f"Measured on a GPU: {device}, driver {machine['driver_release']}, {date}."


def narrow(result: ab.Result, directions: Sequence[str], arms: Sequence[str]) -> ab.Result:
    """Return a result with only some directions and arms; the control stays."""
    cells = [
        dataclasses.replace(cell, arms=[arm for arm in cell.arms if arm.control or arm.arm in arms])
        for cell in result.cells
        if cell.case.direction in directions
    ]
    return dataclasses.replace(result, cells=cells)


def key_of(cell: ab.CellResult) -> Key:
    """Return what a cell copied."""
    return Key(cell.case.direction, cell.case.block_bytes, cell.case.count)


def times_of(result: ab.Result) -> Times:
    """Return the median time of every mode, and of auto."""
    return {
        key_of(cell): {
            arm.arm: statistics.median(arm.completion_ns) / 1e3
            for arm in cell.arms
            if not arm.control and arm.arm in ("auto", *MODES)
        }
        for cell in result.cells
    }


def times_of_calibration(least: int) -> Times:
    """Return what the calibration that is shipped with the package measured.

    Parameters
    ----------
    least : int
        Only what has so many blocks at least, and was measured in all three modes.
    """
    found: dict[Key, dict[str, float]] = {}
    for row in _shipped_calibration()["measured"]:
        if row["route"] in DIRECTIONS and row["copies"] >= least:
            key = Key(row["route"], row["nbytes"] // row["copies"], row["copies"])
            found.setdefault(key, {})[row["mode"]] = row["median_us"]
    return {key: times for key, times in found.items() if len(times) == len(MODES)}


def origin_of_calibration() -> str:
    """Say where the calibration that is shipped was measured."""
    document = _shipped_calibration()
    return f"{document['key']['device']}, {document['key']['driver']}, {document['date']}"


@functools.cache
def _shipped_calibration() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_SHIPPED.read_text())
    return document


# -- what follows -------------------------------------------------------------------------------


def compare(result: ab.Result, key: Key, over: str, under: str) -> ab.Effect:
    """Return the ratio of two arms' times in one cell, from the rounds that they ran in turn."""
    cell = next(cell for cell in result.cells if key_of(cell) == key)
    arm = ab.summarise_cell(cell, result.seed, baseline=under).find(over)
    effect = None if arm is None else arm.effect
    assert effect is not None  # it was measured, and is not the baseline
    return effect


def best_of(times: Mapping[str, float], modes: Sequence[str] = MODES) -> str:
    """Return the mode of the least time, of those that were measured."""
    return min((mode for mode in modes if mode in times), key=lambda mode: times[mode])


def gain_of_batch(result: ab.Result, key: Key) -> float:
    """Return the loop's time over the batch's."""
    return compare(result, key, "loop", "batch").ratio


def gain_of_best(result: ab.Result, key: Key, times: Times) -> float:
    """Return the time of the better one of batch and loop over that of the best mode."""
    best, known = best_of(times[key]), best_of(times[key], ("batch", "loop"))
    return 1.0 if best == known else compare(result, key, known, best).ratio


def crossovers(times: Times, one: str, other: str, direction: str, count: int) -> list[float]:
    """Return the block sizes at which two modes are equally fast."""
    here = sorted(_cells_with(times, one, other, direction, count))
    return ab.find_crossovers(
        [key.block_bytes for key in here],
        [times[key][one] for key in here],
        [times[key][other] for key in here],
    )


def crossovers_in_words(
    times: Times, one: str, other: str, direction: str, count: int
) -> str | None:
    """Return them in KiB for a table; if there is none, which mode leads."""
    here = [times[key] for key in _cells_with(times, one, other, direction, count)]
    if not here:
        return None
    found = crossovers(times, one, other, direction, count)
    if found:
        return ", ".join(f"{size / KIB:.3g}" for size in found)
    lead = statistics.geometric_mean(t[other] / t[one] for t in here)
    return f"none ({one if lead > 1 else other})"


def _cells_with(times: Times, one: str, other: str, direction: str, count: int) -> list[Key]:
    """Return the cells of a direction and number of blocks in which both modes were measured."""
    return [
        key
        for key, of in times.items()
        if (key.direction, key.count) == (direction, count) and one in of and other in of
    ]


def threshold_rule(edge: float, fewest: int = 0) -> Rule:
    """Return the rule: kernel for blocks below a size, if there are enough, else batch."""
    return lambda size, count: "kernel" if size < edge and count >= fewest else "batch"


class Price(NamedTuple):
    """What a rule costs.

    Attributes
    ----------
    mean, worst : float
        Time by the rule over that of the best mode: geometric mean over all cells, and the worst.
    where : Key
        The cell of the worst.
    """

    mean: float
    worst: float
    where: Key

    def __str__(self) -> str:
        mean, worst = (f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in (self.mean, self.worst))
        return f"{mean}, at worst {worst}"


def price_of(times: Times, direction: str, rule: Rule | str) -> Price:
    """Return what a rule, or always the same mode, costs in one direction."""
    paid = {}
    for key, of_modes in times.items():
        if key.direction == direction:
            mode = rule if isinstance(rule, str) else rule(key.block_bytes, key.count)
            paid[key] = of_modes[mode] / of_modes[best_of(of_modes)]
    where = max(paid, key=lambda key: paid[key])
    return Price(statistics.geometric_mean(paid.values()), paid[where], where)


def best_threshold(times: Times, direction: str) -> float:
    """Return the size below which to take the kernel, so that it costs least; maybe infinite."""
    sizes = sorted({key.block_bytes for key in times if key.direction == direction})
    return min(
        [*map(float, sizes), math.inf],
        key=lambda edge: price_of(times, direction, threshold_rule(edge)).mean,
    )


# -- live ---------------------------------------------------------------------------------------


def measure_here(
    directions: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    most_s: float,
    *more: str,
) -> ab.Result:
    """Measure auto and the three modes on the GPU of this machine, by ``numba-swap ab``.

    Parameters
    ----------
    directions, sizes, counts : sequence
        All combinations are measured.
    most_s : float
        Start no case later than this.
    *more
        Further arguments of the command, for example to run on a simulated driver.

    Returns
    -------
    Result
        Without the modes that this machine does not have.
    """
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        path = Path(folder) / "result.json"
        cases = ["--direction", *directions, "--block", *map(str, sizes)]
        cases += ["--count", *map(str, counts)]
        method = ["--rounds", "20", "--sample-ms", "1", "--most-arm-s", "3", "--skip"]
        method += ["--most-s", str(most_s), *more]
        command("ab", "run", "auto", *MODES, *cases, *method, "--json", str(path))
        return ab.load_result(path)
