"""From checked copies and circumstances to what is done: first what is allowed, then what is best.

What is fastest follows from the costs of this machine, in one piece or in several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction
from numba_swap.device.device import Device
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.peers import Link
from numba_swap.dispatch.calibration import costs_between, find_costs
from numba_swap.dispatch.choice import Choice, advise_pinning, decide, estimate
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision, Estimate, format_us, join_decisions
from numba_swap.dispatch.partition import by_direction, by_share, by_size
from numba_swap.dispatch.ranking import rank
from numba_swap.dispatch.settings import Mode, Settings, current_settings, parse_mode
from numba_swap.dispatch.workload import pinned_route, workload_of
from numba_swap.modes import MODES, why_no_room, why_not_here
from numba_swap.swap.running.staged import pieces_of, staged_through
from numba_swap.swap.running.steps import Step


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
        steps = selection.steps
        whole = (
            isinstance(steps, tuple)
            and len(steps) == 1
            and steps[0].work is copies
            and steps[0].device is None
        )
        # Without the one step, which is of these copies: they would keep themselves alive.
        kept = key, selection._replace(steps=()) if whole else selection, whole
        copies.memo[Selection] = kept
    _, selection, whole = kept
    if whole:
        selection = Selection(selection.decision, (Step(copies, selection.decision.mode),))
    return selection


def estimate_modes(copies: Copies, launch: LaunchContext) -> tuple[Estimate, ...]:
    """Say of every mode what there is to say, for people."""
    costs = find_costs(launch.device)
    if copies.direction is Direction.P2P:
        costs = costs_between(launch.device, _other_of(copies, launch))
    return estimate(
        workload_of(copies),
        costs,
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
    if len(copies.ends.devices) > 1:
        if copies.direction is Direction.P2P:
            return _between_two(copies, launch, mode)
        if not conditions.capturing:  # a graph keeps its one stream
            apart = by_direction(copies)
            if apart[0] is not copies:
                return _on_each_gpu(apart, launch, mode)
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


def _between_two(copies: Copies, launch: LaunchContext, mode: Mode | str | None) -> Selection:
    """Choose how copies run from one GPU to another."""
    peer = _other_of(copies, launch)
    decision, *_ = _decide(copies, launch, mode, costs_between(launch.device, peer))
    target, source = copies.ends.devices
    link = launch.devices.link(launch.device.ordinal, peer.ordinal)
    decision = decision._replace(where=f"{source} to {target}, {link}")
    driver_does_it = Selection(decision, (Step(copies, decision.mode),))
    if (
        link is Link.NONE
        and not decision.forced
        and copies.boxes is None
        and launch.conditions.may_use_private_streams
        and not launch.conditions.beside
    ):
        return _by_way_of_host(copies, launch, driver_does_it)
    return driver_does_it


def _by_way_of_host(copies: Copies, launch: LaunchContext, other: Selection) -> Selection:
    """Stage copies between two GPUs in pinned memory, piece by piece, if that pays."""
    target, source = copies.ends.devices
    buffers, tuning = launch.devices.host_buffers, launch.device.tuning
    piece_bytes = max(
        min(tuning.staged_bytes, -(-copies.nbytes // tuning.pieces_a_strand)),
        tuning.smallest_piece_bytes,
        copies.largest,
    )
    if copies.largest > tuning.staged_bytes or buffers.find(piece_bytes, source) is None:
        return other  # long copies are what a driver is good at

    def steps(launch: LaunchContext) -> list[Step]:
        made: list[Step] = []
        settled: list[tuple[int, ...]] = []
        memory = [buffers.take(piece_bytes, source) for _ in range(tuning.stages)]
        for number, piece in enumerate(pieces_of(copies, piece_bytes)):
            buffer = memory[number % len(memory)]
            begin = buffer.address
            place = Allocation(begin, begin + piece_bytes, MemoryKind.PINNED, source, 0)
            # A buffer is free again when what was in it before has settled.
            after = settled[number - len(memory)] if number >= len(memory) else ()
            for gpu, some in zip((source, target), staged_through(piece, place), strict=True):
                first = len(made)
                for i, step in enumerate(steps_of(_select_on(gpu, some, launch, "auto"))):
                    made.append(
                        step._replace(
                            strand=(gpu, i), after=after, has_waiters=True, holds=buffer, device=gpu
                        )
                    )
                after = tuple(range(first, len(made)))
            settled.append(after)
        return made

    routes, workload = {source: "d2h", target: "h2d"}, workload_of(copies)
    predicted = [
        rank(
            find_costs(launch.devices[gpu]),
            workload._replace(route=route),
            launch.on(gpu).conditions,
        )[0][0]
        for gpu, route in routes.items()
    ]
    # All of the longer half, and the first or last piece of the other.
    pieces = -(-copies.nbytes // piece_bytes)
    predicted_us = max(predicted) + min(predicted) / pieces + tuning.side_by_side_us
    alone_us = other.decision.predicted_us
    if alone_us is not None and alone_us <= predicted_us:
        return other
    # As if all of it were staged at once, in memory that is nowhere yet.
    nowhere = Allocation(1 << 20, (1 << 20) + copies.nbytes, MemoryKind.PINNED, source, 0)
    halves = zip((source, target), staged_through(copies, nowhere), strict=True)
    parts = [
        _select_on(gpu, some, launch, "auto").decision._replace(where=f"device {gpu}")
        for gpu, some in halves
    ]
    note = (
        f"predicted: staged in pinned memory {format_us(predicted_us)}, by the driver "
        f"({other.decision.mode}) {format_us(alone_us or 0.0)}"
    )
    decision = join_decisions(other.decision, parts, note)._replace(
        direction=copies.direction,
        copies=len(copies),
        nbytes=copies.nbytes,
        where=other.decision.where,
    )
    return Selection(decision, steps, forked=True)


def _select_on(
    gpu: int, copies: Copies, launch: LaunchContext, mode: Mode | str | None
) -> Selection:
    """Choose how copies run on a GPU."""
    there = launch.on(gpu)
    with launch.driver.activate(there.context.handle):
        return select(copies, there, mode)


def _other_of(copies: Copies, launch: LaunchContext) -> Device:
    """Return the GPU of two where the copies are not launched."""
    target, source = copies.ends.devices
    return launch.devices[source if launch.device.ordinal == target else target]


def _on_each_gpu(
    parts: tuple[Copies, ...], launch: LaunchContext, mode: Mode | str | None
) -> Selection:
    """Let copies of several GPUs run at once, each on its own."""
    homes = [launch.device.ordinal if p.ends.device is None else p.ends.device for p in parts]
    decisions, steps = [], []
    for part, home in zip(parts, homes, strict=True):
        beside = launch.under(beside=True, duplex=homes.count(home) > 1)
        selection = _select_on(home, part, beside, mode)
        decision = selection.decision
        decisions.append(decision if decision.where else decision._replace(where=f"device {home}"))
        steps += [step._replace(device=home) for step in steps_of(selection)]
    whole = decisions[0]._replace(ranked=(), note="")
    decision = join_decisions(whole, decisions, "every GPU, and direction, in streams of its own")
    return Selection(decision, _at_once(steps), True)


def steps_of(selection: Selection) -> tuple[Step, ...]:
    """Return the steps of copies that `select` chose for."""
    assert isinstance(selection.steps, tuple)  # only exchanges make theirs anew
    return selection.steps


def _at_once(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(step._replace(strand=i) for i, step in enumerate(steps))
