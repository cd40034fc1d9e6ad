"""From what is copied, and under which circumstances, to a decision: of facts alone.

No driver is asked, and nothing is loaded. What `override` or the environment force is in force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.conditions import Conditions
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision, Estimate, format_us, join_decisions
from numba_swap.dispatch.ranking import choose, may_split, rank, split_by_share, split_by_size
from numba_swap.dispatch.settings import Mode, mode_in_force
from numba_swap.dispatch.workload import Workload, pinned_route, share_workload, split_workload

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
    share : float or None
        Where equally long copies go to both at once: the share of the batch.
    """

    decision: Decision
    edge: int | None = None
    share: float | None = None


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
    if forced is None and direction in (Direction.H2D, Direction.D2H) and may_split(conditions):
        if workload.alike:
            return _by_share(workload, costs, conditions, whole, why_not)
        if len(workload.terms) > 1 and workload.route in ("h2d", "d2h"):
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
    if split is None or any(map(why_not, _ENGINES)):
        return Choice(whole)
    edge, predicted_us = split
    words = "short copies in the kernel and long ones in the batch"
    parts = split_workload(workload, edge)
    return Choice(_at_once(whole, parts, costs, conditions, words, predicted_us), edge)


def _by_share(
    workload: Workload,
    costs: CostModel,
    conditions: Conditions,
    whole: Decision,
    why_not: WhyNot,
) -> Choice:
    """Let the kernel and the copy engines share equally long copies, if that pays."""
    single_us = whole.predicted_us
    split = None if single_us is None else split_by_share(costs, workload, conditions, single_us)
    if split is None or any(map(why_not, _ENGINES)):
        return Choice(whole)
    share, predicted_us = split
    words = f"{share:.0%} of the copies in the batch and the others in the kernel"
    parts = share_workload(workload, share)
    decision = _at_once(whole, parts, costs, conditions, words, predicted_us)
    return Choice(decision, share=share)


def _at_once(
    whole: Decision,
    workloads: Iterable[Workload],
    costs: CostModel,
    conditions: Conditions,
    words: str,
    predicted_us: float,
) -> Decision:
    """Return the decision for a part in the kernel and one in the batch, at once."""
    parts = [
        whole._replace(
            mode=mode,
            copies=part.copies,
            nbytes=part.nbytes,
            ranked=rank(costs, part, conditions),
            rejected={},
        )
        for part, mode in zip(workloads, _ENGINES, strict=True)
    ]
    note = (
        f"predicted: {words}, at once, {format_us(predicted_us)}, all in the {whole.mode} "
        f"{format_us(whole.predicted_us or 0)}"
    )
    return join_decisions(whole, parts, note)


_ENGINES = Mode.KERNEL, Mode.BATCH


def estimate(
    workload: Workload, costs: CostModel, conditions: Conditions, why_not: WhyNot
) -> tuple[Estimate, ...]:
    """Say of every mode what there is to say, the best first."""
    return tuple(
        Estimate(mode, predicted_us, why_not(mode))
        for predicted_us, mode in rank(costs, workload, conditions)
    )


def advise_pinning(
    workload: Workload,
    costs: CostModel,
    conditions: Conditions,
    decision: Decision,
    why_not_pinned: WhyNot,
) -> str:
    """Say what it would gain to pin pageable memory; nothing where none takes part.

    Parameters
    ----------
    workload, costs, conditions
        As for `decide`.
    decision : Decision
        What it decided.
    why_not_pinned : callable
        Why a mode could not run the copies if the memory were pinned; None if it could.
    """
    route, now_us = pinned_route(workload.route), decision.predicted_us
    if route is None or now_us is None:
        return ""
    ranked = rank(costs, workload._replace(route=route), conditions)
    then_us = next((us for us, mode in ranked if why_not_pinned(mode) is None), now_us)
    if then_us >= now_us:
        return ""
    return (
        f"The host memory is pageable. Pinned, it is predicted to take {format_us(then_us)} "
        f"instead of {format_us(now_us)}, {now_us / then_us:.1f} times less: if it is used again "
        "and again, pin it (numba.cuda.pinned_array, for example)."
    )
