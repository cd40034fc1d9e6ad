"""Which mode runs copies: pure functions of what is known before the copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from numba_swap.copies.ends import Direction
from numba_swap.device.tuning import Tuning
from numba_swap.dispatch.conditions import Conditions
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import CLASSES, Workload, share_out, split_workload
from numba_swap.errors import ModeUnavailableError

Ranking = tuple[tuple[float, Mode], ...]


def block_limit(
    tuning: Tuning, policy: Policy, direction: Direction, max_blocks: int | None
) -> int | None:
    """Return the most thread blocks that a kernel may have; None for no limit."""
    if policy is not Policy.OVERLAP:
        return max_blocks
    within = direction in (Direction.D2D, Direction.P2P)
    blocks = tuning.overlap_blocks_within_device if within else tuning.overlap_blocks
    return blocks if max_blocks is None else min(blocks, max_blocks)


def rank(costs: CostModel, workload: Workload, conditions: Conditions) -> Ranking:
    """Order the modes by merit.

    Parameters
    ----------
    costs : CostModel
        What to predict with.
    workload : Workload
        What is copied.
    conditions : Conditions
        Under which circumstances.

    Returns
    -------
    tuple of (float, Mode)
        Predicted microseconds and mode, the best first.
    """
    tuning = costs.tuning
    predicted = costs.predict(
        workload,
        max_blocks=conditions.max_blocks,
        spread=conditions.may_use_private_streams,
        threads=conditions.threads,
    )
    if conditions.duplex:
        host_us = workload.copies * tuning.duplex_host_us_a_copy
        predicted = [
            (us * tuning.duplex_kernel_factor if mode is Mode.KERNEL else max(us, host_us), mode)
            for us, mode in predicted
        ]
    if conditions.policy is Policy.OVERLAP:
        patience = tuning.overlap_patience
        predicted.sort(key=lambda item: item[0] * patience if item[1] is Mode.KERNEL else item[0])
    else:
        predicted.sort(key=_first)
    return tuple(predicted)


def _first(item: tuple[float, Mode]) -> float:
    return item[0]


def split_by_size(
    costs: CostModel, workload: Workload, conditions: Conditions
) -> tuple[int, float] | None:
    """Return how to share copies between the kernel and the copy engines, if that pays.

    The short copies go to the kernel, the long ones to the batch, at the same time. Both are
    limited by the same link, so their times add up; what is gained is that each does what it is
    better at.

    Returns
    -------
    edge : int
        The class of lengths with which the long copies begin.
    predicted_us : float
        The predicted time.
    """
    best: tuple[int, float] | None = None
    max_blocks = conditions.max_blocks
    single = min(costs.predict(workload, max_blocks=max_blocks))[0]
    for edge in range(1, CLASSES):
        short, long = split_workload(workload, edge)
        if not (short.copies and long.copies):
            continue
        predicted = costs.predict_mode(Mode.KERNEL, short, max_blocks=max_blocks)
        predicted += costs.predict_mode(Mode.BATCH, long)
        if predicted < costs.tuning.split_gain * single and (best is None or predicted < best[1]):
            best = edge, predicted
    return best


def split_by_share(
    costs: CostModel, workload: Workload, conditions: Conditions, single_us: float
) -> tuple[float, float] | None:
    """Return what share of equally long copies to give to the copy engines, if that pays.

    Parameters
    ----------
    costs, workload, conditions
        As for `rank`.
    single_us : float
        The predicted time in the best single mode.

    Returns
    -------
    share, predicted_us : float
        The share of the batch, and the predicted time.
    """
    shared = costs.predict_shared(workload)
    if (
        shared is None
        or shared[1] >= costs.tuning.split_gain * single_us
        or conditions.max_blocks is not None
        or not may_split(conditions)
        or 0 in share_out(workload.copies, shared[0])
    ):
        return None
    return shared


def may_split(conditions: Conditions) -> bool:
    """Whether copies of one direction may run in parts at once, if that pays."""
    return (
        conditions.may_use_private_streams
        and not conditions.duplex
        and conditions.policy is Policy.THROUGHPUT
    )


def predict_pairs(costs: CostModel, workloads: Iterable[Workload], conditions: Conditions) -> float:
    """Return the predicted time in microseconds of copies that one kernel makes pair by pair.

    Policy "overlap" would rather wait a little than take the multiprocessors.
    """
    tuning = costs.tuning
    alone = max(
        costs.predict_mode(Mode.KERNEL, workload, max_blocks=conditions.max_blocks)
        for workload in workloads
    )
    patience = tuning.overlap_patience if conditions.policy is Policy.OVERLAP else 1.0
    return tuning.pairs_factor * patience * alone


def predict_duplex(
    tuning: Tuning, directions_us: float, conditions: Conditions, *, staged: bool
) -> float:
    """Return the predicted time of two directions side by side, from that of the copies alone."""
    if not conditions.may_use_private_streams:
        return directions_us
    return (tuning.staged_factor if staged else 1.0) * directions_us + tuning.side_by_side_us


def choose(
    forced: Mode | None,
    ranked: Sequence[tuple[float, Mode]],
    why_not: Callable[[Mode], str | None],
) -> tuple[Mode, Mapping[Mode, str]]:
    """Choose a mode.

    Parameters
    ----------
    forced : Mode or None
        The only mode to consider, if there is one.
    ranked : sequence of (float, Mode)
        What to try, the best first, where nothing is forced.
    why_not : callable
        Why a mode cannot run this copy; None if it can. Asked in order, and no further than
        needed.

    Returns
    -------
    mode : Mode
        The mode.
    rejected : mapping of Mode to str
        The modes that were looked at first, and why they cannot run.

    Raises
    ------
    ModeUnavailableError
        If the forced mode cannot run, or none can.
    """
    if forced is not None:
        obstacle = why_not(forced)
        if obstacle is not None:
            raise ModeUnavailableError(forced, obstacle)
        return forced, _NOTHING
    obstacle = why_not(ranked[0][1])
    if obstacle is None:
        return ranked[0][1], _NOTHING
    rejected = {ranked[0][1]: obstacle}
    for _, mode in ranked[1:]:
        obstacle = why_not(mode)
        if obstacle is None:
            return mode, rejected
        rejected[mode] = obstacle
    raise ModeUnavailableError("auto", "; ".join(f"{m}: {why}" for m, why in rejected.items()))


_NOTHING: Mapping[Mode, str] = MappingProxyType({})
