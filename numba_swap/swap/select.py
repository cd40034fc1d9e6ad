"""From checked copies and circumstances to what is done: first what is allowed, then what is best.

What is fastest follows from the costs of this machine, in one piece or in several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.choice import Choice, advise_pinning, decide, estimate
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.dispatch.cost_model import CostModel, pinned_route, workload_of
from numba_swap.dispatch.decision import Decision, Estimate, join_decisions
from numba_swap.dispatch.partition import by_direction, by_share, by_size
from numba_swap.dispatch.settings import Mode, Settings, current_settings, parse_mode
from numba_swap.modes import MODES, why_no_room, why_not_here
from numba_swap.swap.steps import Step


class Selection(NamedTuple):
    """What was chosen.

    Attributes
    ----------
    decision : Decision
        For the user.
    steps : tuple of Step, or callable
        What is done; or what returns the steps of a run, given where they are submitted: all of
        them at once, or one by one if they need no memory besides that of the copies.
    forked : bool
        Whether they run at once, in private streams; else one after another in the user's.
    """

    decision: Decision
    steps: tuple[Step, ...] | Callable[[LaunchContext], Iterable[Step]] = ()
    forked: bool = False


def decision_key(
    costs: CostModel, launch: LaunchContext, mode: Mode | str | None
) -> tuple[object, ...]:
    """Return all that a choice follows from but the copies and the stream.

    A plain tuple, for it is made and compared at every run.
    """
    return costs, mode, current_settings(), launch.conditions


def select(copies: Copies, launch: LaunchContext, mode: Mode | str | None) -> Selection:
    """Choose how copies run; the same again for what was chosen before.

    Raises
    ------
    ModeUnavailableError
        If a forced mode cannot run them.
    """
    costs = find_costs(launch.device)
    key = decision_key(costs, launch, mode)
    kept = copies.memo.get(Selection)
    if kept is None or kept[0] != key:
        selection = choose(copies, launch, mode, costs)
        whole = len(steps_of(selection)) == 1
        # Without the one step, which is of these copies: they would keep themselves alive.
        kept = key, selection._replace(steps=()) if whole else selection, whole
        copies.memo[Selection] = kept
    _, selection, whole = kept
    if whole:
        selection = Selection(selection.decision, (Step(copies, selection.decision.mode),))
    return selection


def estimate_modes(copies: Copies, launch: LaunchContext) -> tuple[Estimate, ...]:
    """Say of every mode what there is to say, for people."""
    return estimate(
        workload_of(copies),
        find_costs(launch.device),
        launch.conditions,
        lambda mode: why_not_here(mode, copies, launch),
    )


def advise(copies: Copies, launch: LaunchContext, decision: Decision) -> str:
    """Say what would make copies faster; nothing if nothing is known that would."""
    workload = workload_of(copies)
    if pinned_route(workload.route) is None:
        return ""
    ends, conditions = copies.ends.if_pinned(), launch.conditions
    return advise_pinning(
        workload,
        find_costs(launch.device),
        conditions,
        decision,
        lambda mode: MODES[mode].why_not(ends, conditions),
    )


def choose(
    copies: Copies, launch: LaunchContext, mode: Mode | str | None, costs: CostModel
) -> Selection:
    """Choose how copies run, as `select` does, but anew."""
    conditions = launch.conditions
    if len(copies) == 0:
        return Selection(_nothing(copies.direction, conditions, mode))
    decision, edge, share = _decide(copies, launch, mode, costs)
    if edge is not None or share is not None:
        cut = by_share(copies, share) if share is not None else by_size(copies, edge or 0)
        parts = zip(cut, decision.parts, strict=True)
        return Selection(decision, _at_once(Step(some, part.mode) for some, part in parts), True)
    selection = Selection(decision, (Step(copies, decision.mode),))
    if copies.direction is Direction.MIXED and conditions.may_use_private_streams:
        return _by_direction(copies, launch, mode, selection)
    return selection


def _decide(
    copies: Copies, launch: LaunchContext, mode: Mode | str | None, costs: CostModel
) -> Choice:
    """Decide how copies run; what was decided for copies like them is decided again."""
    workload, ends, settings = workload_of(copies), copies.ends, current_settings()
    sides = [
        tuple(dict.fromkeys([(a.kind, a.device, a.device_offset) for a in side]))
        for side in (ends.sources, ends.destinations)
    ]
    said = mode if mode is None or isinstance(mode, str) else repr(mode)
    # Of the addresses nothing counts but how they are aligned.
    like = workload._replace(alignment_bits=workload.alignment_bits & 15)
    key = like, copies.direction, launch.conditions, said, *sides
    device = launch.device
    kept = cast("tuple[CostModel, Settings, Choice] | None", device.choices.get(key))
    if (
        kept is not None
        and kept[0] is costs
        and kept[1] is settings
        and all(why_no_room(used, copies, device) is None for used in kept[2].decision.modes)
    ):
        return kept[2]
    choice = decide(
        workload,
        copies.direction,
        costs,
        launch.conditions,
        mode,
        lambda candidate: why_not_here(candidate, copies, launch),
    )
    if not choice.decision.rejected:  # why a mode cannot run names these very copies
        if len(device.choices) >= _MOST_CHOICES:
            device.choices.clear()
        device.choices[key] = costs, settings, choice
    return choice


_MOST_CHOICES = 4096


def _nothing(direction: Direction, conditions: Conditions, mode: Mode | str | None) -> Decision:
    return Decision(
        (None if mode is None else parse_mode(mode)) or Mode.LOOP,
        conditions.capabilities.version,
        direction,
        0,
        0,
        policy=conditions.policy,
        simulated=conditions.capabilities.simulated,
        note="nothing to copy",
    )


def _by_direction(
    copies: Copies, launch: LaunchContext, mode: Mode | str | None, whole: Selection
) -> Selection:
    """Let the directions run side by side, if it is worth a fork."""
    directions = by_direction(copies)
    fewest = launch.device.tuning.fewest_bytes_of_a_direction
    if len(directions) == 1 or sorted(part.nbytes for part in directions)[-2] < fewest:
        return whole
    parts = [select(part, launch.under(duplex=True), mode) for part in directions]
    decision = join_decisions(
        whole.decision,
        [part.decision for part in parts],
        "every direction in streams of its own",
    )
    return Selection(decision, _at_once(step for part in parts for step in steps_of(part)), True)


def steps_of(selection: Selection) -> tuple[Step, ...]:
    """Return the steps of copies that `select` chose for."""
    assert isinstance(selection.steps, tuple)  # only exchanges make theirs anew
    return selection.steps


def _at_once(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(step._replace(strand=i) for i, step in enumerate(steps))
