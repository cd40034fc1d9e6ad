"""From measured times to the costs of a mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_swap.device.tuning import DEFAULT_TUNING, Tuning
from numba_swap.dispatch.calibration import fill_peer_routes, reference_costs
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import CLASSES, OWN_ROUTES, PEER_ROUTES, ROUTES, Workload

# What a measured median may be off by: a few microseconds whatever it is, and a share of it. Both
# were seen from run to run on an H200.
_NOISE_US = 2.0
_NOISE_SHARE = 0.02
# So many times the noise the model itself is off by: what is further off is an outlier.
_FAR = 10.0
_ROUNDS = 3


class TimedSwap(NamedTuple):
    """The measured time of one swap in one mode.

    Attributes
    ----------
    mode : Mode
        The mode.
    load : Workload
        What was copied.
    measured_us : float
        The median time.
    """

    mode: Mode
    load: Workload
    measured_us: float


def fit_cost(
    cells: Sequence[TimedSwap], full_blocks: float = 0.0, tuning: Tuning = DEFAULT_TUNING
) -> ModeCost:
    """Fit the costs of a mode on a route: non-negative least squares of relative errors.

    Errors far beyond noise count less (Huber's weights): a swap that something else held up for
    ten times as long, as happens on shared hosts, says nothing about the others.

    Parameters
    ----------
    cells : sequence of TimedSwap
        Measurements of one mode on one route.
    full_blocks : float
        As many thread blocks as a kernel needs; 0 for other modes.
    tuning : Tuning
        The other figures of the machine: from when on a batch was spread over streams.

    Returns
    -------
    ModeCost
        A class of lengths that was not measured gets the costs of its neighbour.
    """
    from scipy.optimize import nnls

    times = np.array([cell.measured_us for cell in cells])
    rows = np.array([_features(cell, tuning) for cell in cells])
    weights = 1.0 / (_NOISE_US + _NOISE_SHARE * times)
    solution, _ = nnls(rows * weights[:, None], times * weights)
    for _ in range(_ROUNDS):
        off = np.abs(rows @ solution - times) * weights
        if off.max() <= _FAR:
            break
        softened = weights * np.sqrt(_FAR / np.maximum(off, _FAR))
        solution, _ = nnls(rows * softened[:, None], times * softened)
    start_us, fork_us = float(solution[0]), float(solution[1])
    copy_us, megabyte_us = solution[3 : 3 + CLASSES], solution[3 + CLASSES :]
    seen = rows[:, 3 : 3 + CLASSES].any(axis=0)
    nearest = [int(min(np.flatnonzero(seen), key=lambda j: abs(j - i))) for i in range(CLASSES)]
    return ModeCost(
        round(start_us, 3),
        round(fork_us, 3),
        tuple(round(float(copy_us[i]), 5) for i in nearest),
        tuple(round(float(megabyte_us[i]), 4) for i in nearest),
        full_blocks,
        round(float(solution[2]), 5),
    )


def fit_costs(
    cells: Sequence[TimedSwap],
    blocks: dict[str, float],
    source: str,
    tuning: Tuning = DEFAULT_TUNING,
) -> CostModel:
    """Fit the costs of every mode on every route.

    Parameters
    ----------
    cells : sequence of TimedSwap
        What was measured. A route of which nothing was gets the costs that are shipped.
    blocks : dict of str to float
        As many thread blocks as a kernel needs, by route.
    source : str
        What to say of where the costs come from.
    tuning : Tuning
        The other figures of the machine, which are not measured.
    """
    routes: dict[str, dict[Mode, ModeCost]] = {}
    measured = {cell.load.route for cell in cells}
    for route in (*OWN_ROUTES, *(route for route in PEER_ROUTES if route in measured)):
        routes[route] = {}
        for mode in dict.fromkeys((*reference_costs().routes[route], *Mode)):
            mine = [cell for cell in cells if (cell.load.route, cell.mode) == (route, mode)]
            if mine:
                full_blocks = blocks.get(route, 0.0) if mode is Mode.KERNEL else 0.0
                routes[route][mode] = fit_cost(mine, full_blocks, tuning)
        routes[route] = routes[route] or dict(reference_costs().routes[route])
    fill_peer_routes(routes)
    peers_source = reference_costs().peers_source
    routes = {route: routes[route] for route in ROUTES}
    return CostModel(routes, source, tuning, peers_source=peers_source)


def _features(cell: TimedSwap, tuning: Tuning) -> list[float]:
    load = cell.load
    forked = cell.mode is Mode.BATCH and tuning.spread_over(load.copies, load.nbytes) > 1
    counts, megabytes = [0.0] * CLASSES, [0.0] * CLASSES
    for i, count, nbytes in load.terms:
        counts[i], megabytes[i] = float(count), nbytes / 1e6
    calls = 0.0 if cell.mode is Mode.KERNEL else float(load.calls)
    return [1.0, float(forked), calls, *counts, *megabytes]
