"""From measured times to the costs of a mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_swap.dispatch.cost_model import CLASSES, Cost, Load, batch_streams
from numba_swap.dispatch.settings import Mode

# What a measured median may be off by: a few microseconds whatever it is, and a share of it. Both
# were seen from run to run on an H200.
_NOISE_US = 2.0
_NOISE_SHARE = 0.02


class Cell(NamedTuple):
    """The measured time of one swap in one mode.

    Attributes
    ----------
    mode : Mode
        The mode.
    load : Load
        What was copied.
    measured_us : float
        The median time.
    """

    mode: Mode
    load: Load
    measured_us: float


def fit_cost(cells: Sequence[Cell], full_blocks: float = 0.0) -> Cost:
    """Fit the costs of a mode on a route: non-negative least squares of relative errors.

    Parameters
    ----------
    cells : sequence of Cell
        Measurements of one mode on one route.
    full_blocks : float
        As many thread blocks as a kernel needs; 0 for other modes.

    Returns
    -------
    Cost
        A class of lengths that was not measured gets the costs of its neighbour.
    """
    from scipy.optimize import nnls

    times = np.array([cell.measured_us for cell in cells])
    rows = np.array([_features(cell) for cell in cells])
    weights = 1.0 / (_NOISE_US + _NOISE_SHARE * times)
    solution, _ = nnls(rows * weights[:, None], times * weights)
    start_us, fork_us = float(solution[0]), float(solution[1])
    copy_us, megabyte_us = solution[2 : 2 + CLASSES], solution[2 + CLASSES :]
    seen = rows[:, 2 : 2 + CLASSES].any(axis=0)
    nearest = [int(min(np.flatnonzero(seen), key=lambda j: abs(j - i))) for i in range(CLASSES)]
    return Cost(
        round(start_us, 3),
        round(fork_us, 3),
        tuple(round(float(copy_us[i]), 5) for i in nearest),
        tuple(round(float(megabyte_us[i]), 4) for i in nearest),
        full_blocks,
    )


def _features(cell: Cell) -> list[float]:
    load = cell.load
    forked = cell.mode is Mode.BATCH and batch_streams(load.copies, load.nbytes) > 1
    counts, megabytes = [0.0] * CLASSES, [0.0] * CLASSES
    for i, count, nbytes in load.terms:
        counts[i], megabytes[i] = float(count), nbytes / 1e6
    return [1.0, float(forked), *counts, *megabytes]
