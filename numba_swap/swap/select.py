"""From checked copies and a situation to a choice, and from there to the driver.

First what is allowed (each mode says why it cannot), then what is fastest (`dispatch`, by the costs
of this machine), in one piece or in several at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from numba_swap.copies.copies import Copies, Direction
from numba_swap.device.in_flight import InFlight
from numba_swap.device.streams import same_stream, stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.cost_model import Costs, load_of
from numba_swap.dispatch.partition import by_direction, by_length
from numba_swap.dispatch.ranking import (
    Decision,
    Estimate,
    Situation,
    best_split,
    choose,
    in_words,
    policy_blocks,
    rank,
)
from numba_swap.dispatch.settings import (
    Mode,
    Policy,
    check_positive,
    current_settings,
    mode_source,
    parse_mode,
    parse_policy,
)
from numba_swap.driver.calls import Driver
from numba_swap.errors import CapturedTransferError
from numba_swap.modes import MODES
from numba_swap.swap.steps import Step, submit_steps
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")
_T = TypeVar("_T")

# Directions run side by side if the second has so many bytes: a fork costs some 20 microseconds.
_FEWEST_BYTES_OF_A_DIRECTION = 1 << 20


class How(NamedTuple):
    """How the user wants copies to run: the arguments that all verbs share.

    Attributes
    ----------
    stream, mode, max_blocks, policy
        As for `numba_swap.swap_blocks`.
    """

    stream: Any = None
    mode: Mode | str = "auto"
    max_blocks: int | None = None
    policy: Policy | str | None = None


class Part(NamedTuple):
    """Copies that run in one mode."""

    copies: Copies
    decision: Decision


class Choice(NamedTuple):
    """What was decided.

    Attributes
    ----------
    decision : Decision
        For the user.
    parts : tuple of Part
        What runs at once, if it is more than one thing.
    """

    decision: Decision
    parts: tuple[Part, ...] = ()


def grounds_of(
    driver: Driver, situation: Situation, mode: Mode | str
) -> tuple[Costs, tuple[object, ...]]:
    """Return the costs, and all that a choice follows from but the copies and the stream.

    A plain tuple, for it is made and compared at every run.
    """
    costs = find_costs(driver, situation.device)
    return costs, (
        costs,
        mode,
        current_settings(),
        situation.driver_version,
        situation.capturing,
        situation.device,
        situation.max_blocks,
        situation.policy,
        situation.duplex,
    )


def in_context(
    driver: Driver,
    device: int | None,
    direction: Direction,
    how: How,
    action: Callable[[Situation], _T],
) -> _T:
    """Find out what holds for a stream, and act with the stream's context current.

    Parameters
    ----------
    driver : Driver
        The driver.
    device : int or None
        The GPU whose memory takes part, if one does.
    direction : Direction
        Between which sides the bytes move.
    how : How
        What the user said.
    action : callable
        Gets the situation.
    """
    if how.max_blocks is not None:
        check_positive(how.max_blocks, "max_blocks")
    settings = current_settings()
    policy = settings.policy if how.policy is None else parse_policy(how.policy)
    handle = stream_handle(how.stream)
    default = driver.is_default_stream(handle)
    current, context, capturing = driver.probe(0 if default else handle)
    if default:
        # It belongs to whatever context is current: that of the data's device is meant.
        if device is not None:
            context = driver.primary_context(device)
        elif not current:
            context = driver.primary_context(0)
    with contextlib.nullcontext() if context == current else driver.activate(context):
        if default:
            capturing = driver.probe(handle)[2]
        version = settings.cap(driver.version)
        return action(
            Situation(
                version,
                version < driver.version,
                handle,
                context,
                capturing,
                driver.context_device(context),
                policy_blocks(policy, direction, how.max_blocks),
                policy,
            )
        )


def decide(driver: Driver, copies: Copies, situation: Situation, mode: Mode | str) -> Choice:
    """Choose how copies run.

    Raises
    ------
    ModeUnavailableError
        If a forced mode cannot run them.
    """
    costs, grounds = grounds_of(driver, situation, mode)
    kept = copies.prepared.get(decide)
    if kept is not None and kept[0] == grounds:
        choice: Choice = kept[1]
    else:
        choice = _choose(driver, copies, situation, mode, costs)
        copies.prepared[decide] = grounds, choice
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("%s", choice.decision)
    return choice


def explain(driver: Driver, copies: Copies, situation: Situation, mode: Mode | str) -> Decision:
    """Choose as `decide` does, and say of every mode what there is to say."""
    decision = decide(driver, copies, situation, mode).decision
    if len(copies) == 0:
        return decision
    costs = find_costs(driver, situation.device)
    estimates = tuple(
        Estimate(candidate, predicted_us, _why_not(driver, copies, situation, candidate))
        for predicted_us, candidate in rank(costs, load_of(copies), situation)
    )
    return decision._replace(estimates=estimates)


def submit(
    driver: Driver, copies: Copies, situation: Situation, choice: Choice, work: InFlight
) -> None:
    """Enqueue what was chosen.

    Raises
    ------
    DriverCallError
        If the driver refuses; it says what was submitted.
    """
    if choice.parts:
        steps = [
            Step(part.copies, part.decision.mode, lane) for lane, part in enumerate(choice.parts, 1)
        ]
        submit_steps(driver, steps, situation, work)
    else:
        MODES[choice.decision.mode].submit(driver, copies, situation, work)


def track(
    driver: Driver,
    situation: Situation,
    decision: Decision,
    holds: tuple[object, ...],
    enqueue: Callable[[InFlight], None],
) -> Transfer:
    """Enqueue work, and track all that was submitted to its end, whether or not that succeeds.

    Parameters
    ----------
    driver : Driver
        The driver.
    situation : Situation
        Of the stream.
    decision : Decision
        For the transfer.
    holds : tuple of object
        What must outlive the work.
    enqueue : callable
        Submits the work; may hold more.
    """
    work = InFlight(driver, situation.context, holds, situation.capturing)
    try:
        enqueue(work)
    except BaseException:
        # A part may have been submitted: its memory must last until that part is over.
        work.close_after_failure(situation.stream)
        raise
    return Transfer(work, decision, situation.capturing)


def wait_for_producers(driver: Driver, copies: Copies, situation: Situation) -> None:
    """Let the stream wait for what is pending on the arrays, in the streams that they name.

    Raises
    ------
    CapturedTransferError
        If such a stream is being captured, and the copy's is not: waiting would draw the copy
        into the graph.
    """
    for producer in copies.producer_streams:
        if same_stream(producer, situation.stream):
            continue
        _, context, capturing = driver.probe(producer)
        if capturing and not situation.capturing:
            raise CapturedTransferError(
                f"an array's own stream {producer:#x} is being captured into a CUDA graph: swap in "
                "that stream"
            )
        if capturing == situation.capturing:
            driver.pools.order(situation.context, producer, situation.stream, context)


def _why_not(driver: Driver, copies: Copies, situation: Situation, mode: Mode) -> str | None:
    obstacle: str | None = MODES[mode].why_not(driver, copies, situation)
    return obstacle


def _choose(
    driver: Driver, copies: Copies, situation: Situation, mode: Mode | str, costs: Costs
) -> Choice:
    if len(copies) == 0:
        nothing = Decision(
            parse_mode(mode) or Mode.LOOP,
            situation.driver_version,
            copies.direction,
            0,
            0,
            policy=situation.policy,
            simulated=driver.simulated,
            note="nothing to copy",
        )
        return Choice(nothing)
    forced, forced_by = parse_mode(mode), "the mode argument"
    if forced is None:
        forced = current_settings().mode
        forced_by = "" if forced is None else mode_source()
    load = load_of(copies)
    ranked = rank(costs, load, situation)
    chosen, rejected = choose(
        forced, ranked, lambda candidate: _why_not(driver, copies, situation, candidate)
    )
    whole = Decision(
        chosen,
        situation.driver_version,
        copies.direction,
        len(copies),
        copies.nbytes,
        ranked,
        rejected,
        forced_by,
        situation.policy,
        driver.simulated,
        costs.source,
    )
    if not situation.may_fork:
        return Choice(whole)
    if copies.direction is Direction.MIXED:
        return _by_direction(driver, copies, situation, mode, whole)
    if (
        forced is None
        and not (copies.uniform or situation.duplex)
        and (situation.policy is Policy.THROUGHPUT)
    ):
        return _by_length(driver, copies, situation, costs, whole)
    return Choice(whole)


def _by_direction(
    driver: Driver, copies: Copies, situation: Situation, mode: Mode | str, whole: Decision
) -> Choice:
    """Let the directions run side by side, if it is worth a fork."""
    directions = by_direction(copies)
    if len(directions) == 1 or sorted(part.nbytes for part in directions)[-2] < (
        _FEWEST_BYTES_OF_A_DIRECTION
    ):
        return Choice(whole)
    parts: list[Part] = []
    beside = situation._replace(duplex=True)
    for some in directions:
        choice = decide(driver, some, beside, mode)
        parts += choice.parts or (Part(some, choice.decision),)
    return _of_parts(parts, whole, "every direction in streams of its own")


def _by_length(
    driver: Driver, copies: Copies, situation: Situation, costs: Costs, whole: Decision
) -> Choice:
    """Let the kernel copy what is short and the copy engines what is long, if that pays."""
    load = load_of(copies)
    if load.route not in ("h2d", "d2h"):
        return Choice(whole)
    split = best_split(costs, load, situation)
    modes = Mode.KERNEL, Mode.BATCH
    if split is None or any(_why_not(driver, copies, situation, mode) for mode in modes):
        return Choice(whole)
    edge, predicted_us = split
    parts = []
    for some, mode in zip(by_length(copies, edge), modes, strict=True):
        decision = whole._replace(
            mode=mode,
            copies=len(some),
            nbytes=some.nbytes,
            ranked=rank(costs, load_of(some), situation),
            rejected={},
        )
        parts.append(Part(some, decision))
    return _of_parts(
        parts,
        whole,
        "predicted: short copies in the kernel and long ones in the batch, at once, "
        f"{in_words(predicted_us)}, all in the {whole.mode} {in_words(whole.predicted_us or 0)}",
    )


def _of_parts(parts: list[Part], whole: Decision, note: str) -> Choice:
    largest = max(parts, key=lambda part: part.copies.nbytes)
    decisions = tuple(part.decision for part in parts)
    decision = whole._replace(mode=largest.decision.mode, parts=decisions, note=note, rejected={})
    return Choice(decision, tuple(parts))
