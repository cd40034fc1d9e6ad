"""From what is copied, and under which circumstances, to a decision: of facts alone.

No driver is asked, and nothing is loaded. What `override` or the environment force is in force.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.conditions import Conditions
from numba_swap.dispatch.cost_model import CostModel, Workload, split_workload
from numba_swap.dispatch.decision import Decision, Estimate, format_us, join_decisions
from numba_swap.dispatch.ranking import choose, rank, split_by_size
from numba_swap.dispatch.settings import Mode, Policy, mode_in_force

WhyNot = Callable[[Mode], str | None]


class Choice(NamedTuple):
    """What was decided.

    Attributes
    ----------
    decision : Decision
        For the user.
    edge : int or None
        Where short copies go to the kernel and long ones to the batch, at once: the class of
        lengths with which the long ones begin.
    """

    decision: Decision
    edge: int | None = None


def decide(
    workload: Workload,
    direction: Direction,
    costs: CostModel,
    conditions: Conditions,
    mode: Mode | str | None,
    why_not: WhyNot,
) -> Choice:
    """Choose how copies run: first what is allowed, then what is fastest.

    Parameters
    ----------
    workload : Workload
        What is copied.
    direction : Direction
        Between which sides.
    costs : CostModel
        What to predict with.
    conditions : Conditions
        Under which circumstances.
    mode : Mode, str or None
        What the user said; None if nothing.
    why_not : callable
        Why a mode cannot run the copies; None if it can. Asked no further than needed.

    Raises
    ------
    ModeUnavailableError
        If a forced mode cannot run them.
    """
    capabilities = conditions.capabilities
    forced, forced_by = mode_in_force(mode)
    ranked = rank(costs, workload, conditions)
    chosen, rejected = choose(forced, ranked, why_not)
    whole = Decision(
        chosen,
        capabilities.version,
        direction,
        workload.copies,
        workload.nbytes,
        ranked,
        rejected,
        forced_by,
        conditions.policy,
        capabilities.simulated,
        costs.source_of(workload.route),
    )
    if (
        forced is None
        and len(workload.terms) > 1
        and workload.route in ("h2d", "d2h")
        and direction is not Direction.MIXED
        and conditions.may_use_private_streams
        and not conditions.duplex
        and conditions.policy is Policy.THROUGHPUT
    ):
        return _by_size(workload, costs, conditions, whole, why_not)
    return Choice(whole)


def _by_size(
    workload: Workload,
    costs: CostModel,
    conditions: Conditions,
    whole: Decision,
    why_not: WhyNot,
) -> Choice:
    """Let the kernel copy what is short and the copy engines what is long, if that pays."""
    split = split_by_size(costs, workload, conditions)
    modes = Mode.KERNEL, Mode.BATCH
    if split is None or any(map(why_not, modes)):
        return Choice(whole)
    edge, predicted_us = split
    parts = [
        whole._replace(
            mode=mode,
            copies=part.copies,
            nbytes=part.nbytes,
            ranked=rank(costs, part, conditions),
            rejected={},
        )
        for part, mode in zip(split_workload(workload, edge), modes, strict=True)
    ]
    note = (
        "predicted: short copies in the kernel and long ones in the batch, at once, "
        f"{format_us(predicted_us)}, all in the {whole.mode} {format_us(whole.predicted_us or 0)}"
    )
    return Choice(join_decisions(whole, parts, note), edge)


def estimate(
    workload: Workload, costs: CostModel, conditions: Conditions, why_not: WhyNot
) -> tuple[Estimate, ...]:
    """Say of every mode what there is to say, the best first."""
    return tuple(
        Estimate(mode, predicted_us, why_not(mode))
        for predicted_us, mode in rank(costs, workload, conditions)
    )
