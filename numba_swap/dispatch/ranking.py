"""Which mode runs a copy, and why: pure functions of what is known before the copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from numba_swap.copies.copies import Direction
from numba_swap.dispatch.cost_model import CLASSES, Costs, Load, split_load
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import ModeUnavailableError

# Policy "overlap": thread blocks that a kernel may have, and how much slower copy engines may be.
# On an H200 four blocks of 512 threads move 8 KiB blocks at 0.76 of a host link beside a matrix
# product, and slow it by less than 3 %; within the device more are needed to get anywhere.
_OVERLAP_BLOCKS = 4
_OVERLAP_BLOCKS_WITHIN_DEVICE = 16
_OVERLAP_PATIENCE = 1.25

# With both directions of a host link busy, kernels take longer over their bytes than copy engines
# do (66 GB/s in sum instead of 90), and the host has to submit the copies of both.
_DUPLEX_KERNEL_FACTOR = 1.4
_DUPLEX_HOST_US_A_COPY = 1.2
# A kernel that makes the copies of both directions pair by pair moves 80 GB/s in sum, of any length
# from 2 KiB on: its requests, of 128 bytes each, fill the link.
_PAIRS_FACTOR = 1.2
# What it takes to let two directions run side by side, in streams of their own; and how much longer
# it takes if what comes in has to be staged.
_SIDE_BY_SIDE_US = 40.0
_STAGED_FACTOR = 1.2

# A split has to save so much of the predicted time, for it costs host time and streams.
_SPLIT_GAIN = 0.99


class Situation(NamedTuple):
    """What a mode needs to know besides the copies.

    Attributes
    ----------
    driver_version : DriverVersion
        The version that counts: the driver's, or the lower one that is pretended.
    pretended : bool
        Whether it is pretended.
    stream : int
        Handle of the stream.
    context : int
        The stream's context, the calling thread's current one.
    capturing : bool
        Whether the stream is being captured into a graph.
    device : int
        The GPU that the work runs on.
    max_blocks : int or None
        The most thread blocks that a kernel may have.
    policy : Policy
        What the choice is to be good for.
    lane : int
        0 for a swap of its own; else which of several parts that run side by side.
    duplex : bool
        Whether the other direction of the host link is busy meanwhile.
    strand : bool
        Whether this is one of several streams that share what the copy engines get: a batch is
        then not spread any further.
    """

    driver_version: DriverVersion
    pretended: bool
    stream: int
    context: int
    capturing: bool
    device: int
    max_blocks: int | None = None
    policy: Policy = Policy.THROUGHPUT
    lane: int = 0
    duplex: bool = False
    strand: bool = False

    @property
    def driver_words(self) -> str:
        """The driver in words, for reasons."""
        return f"driver {self.driver_version}{' (pretended)' if self.pretended else ''}"

    @property
    def may_fork(self) -> bool:
        """Whether private streams may be used: a graph keeps its one stream, and so does haste."""
        return not self.capturing and self.policy is not Policy.LATENCY


class Estimate(NamedTuple):
    """What is to be said of one mode for a copy.

    Attributes
    ----------
    mode : Mode
        The mode.
    predicted_us : float
        Predicted time from call to completion; infinite if nothing is known.
    obstacle : str or None
        Why it cannot run; None if it can.
    """

    mode: Mode
    predicted_us: float
    obstacle: str | None


class Decision(NamedTuple):
    """Which mode was chosen, and why.

    Attributes
    ----------
    mode : Mode
        The mode; of several parts, that of the one with the most bytes.
    driver_version : DriverVersion
        The driver version that counted.
    direction : Direction
        Between which sides the bytes move.
    copies, nbytes : int
        How many copies, after merging, and how many bytes in all.
    ranked : tuple of (float, Mode)
        Predicted microseconds from call to completion and mode, in the order of merit.
    rejected : mapping of Mode to str
        The modes that were looked at before this one, and why they cannot run this copy.
    forced_by : str
        Who asked for the mode: the argument, `override` or the environment; empty if nobody.
    policy : Policy
        What the choice was to be good for.
    simulated : bool
        Whether the driver is simulated.
    costs_source : str
        What the predictions rest on.
    parts : tuple of Decision
        Where the swap runs as several parts, the decision of each; else empty.
    at_once : bool
        Whether these run at once, not one after another.
    note : str
        The reason, where it is none of the usual ones.
    estimates : tuple of Estimate
        All modes, for a decision that `explain` made; else empty.
    """

    mode: Mode
    driver_version: DriverVersion
    direction: Direction
    copies: int
    nbytes: int
    ranked: tuple[tuple[float, Mode], ...] = ()
    rejected: Mapping[Mode, str] = MappingProxyType({})
    forced_by: str = ""
    policy: Policy = Policy.THROUGHPUT
    simulated: bool = False
    costs_source: str = ""
    parts: tuple[Decision, ...] = ()
    at_once: bool = True
    note: str = ""
    estimates: tuple[Estimate, ...] = ()

    @property
    def forced(self) -> bool:
        """Whether the mode was asked for."""
        return bool(self.forced_by)

    @property
    def reason(self) -> str:
        """Why, in one sentence; of several parts that run for reasons of their own, why each."""
        if self.note:
            return self.note
        if self.parts:
            reasons = [f"{part.direction}, {part.reason}" for part in self.parts]
            return f"{'at once' if self.at_once else 'one after another'}: {'; '.join(reasons)}"
        if self.forced_by:
            return f"forced by {self.forced_by}"
        merit = merit_of(self.ranked, self.policy)
        if not self.rejected:
            return merit
        obstacles = "; ".join(f"no {other}: {why}" for other, why in self.rejected.items())
        return f"{merit}, but {obstacles}; so {self.mode}"

    @property
    def predicted_us(self) -> float | None:
        """The predicted time from call to completion in microseconds; None if none is known.

        Parts of one direction share the link, so their times add up; directions run side by side.
        """
        if self.parts:
            times: dict[Direction, float] = {}
            for part in self.parts:
                predicted_us = part.predicted_us
                if predicted_us is None:
                    return None
                times[part.direction] = times.get(part.direction, 0.0) + predicted_us
            return max(times.values()) if self.at_once else sum(times.values())
        return next((us for us, mode in self.ranked if mode is self.mode and us < math.inf), None)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Every mode that takes part, without repetition."""
        return tuple(dict.fromkeys(part.mode for part in self.parts)) or (self.mode,)

    def __str__(self) -> str:
        simulated = "simulated " if self.simulated else ""
        return (
            f"{' and '.join(self.modes)} for {self.copies} "
            f"{'copy' if self.copies == 1 else 'copies'}, "
            f"{self.nbytes} bytes, {self.direction}, "
            f"{simulated}driver {self.driver_version}: {self.reason}"
        )

    def table(self) -> str:
        """Return a table of all modes: allowed or not, predicted time, chosen.

        A decision that `explain` did not make knows only the modes that were looked at.
        """
        lines = [str(self), ""]
        rows = [("mode", "predicted", "chosen", "why not")]
        for mode, predicted_us, obstacle in self.estimates or self._known():
            rows.append(
                (
                    str(mode),
                    "-" if obstacle or predicted_us == math.inf else in_words(predicted_us),
                    "yes" if mode in self.modes else "",
                    obstacle or "",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines += [
            "  ".join(
                [*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]
            ).rstrip()
            for row in rows
        ]
        if self.parts:
            lines += ["", "at once:" if self.at_once else "one after another:"]
            lines += [
                f"  {part.mode}, {part.copies} {'copy' if part.copies == 1 else 'copies'}, "
                f"{part.nbytes} bytes, {part.direction}"
                + (f", {in_words(part.predicted_us)}" if part.predicted_us is not None else "")
                for part in self.parts
            ]
        if self.costs_source:
            lines += ["", f"predicted from {self.costs_source}"]
        return "\n".join(lines)

    def _known(self) -> tuple[Estimate, ...]:
        known = {mode: us for us, mode in self.ranked}
        chosen = [Estimate(mode, known.get(mode, math.inf), None) for mode in self.modes]
        return (*chosen, *(Estimate(m, math.inf, why) for m, why in self.rejected.items()))


def in_words(microseconds: float) -> str:
    """Return a time for people: three digits are more than a prediction is worth."""
    if microseconds >= 99_950:
        return f"{microseconds / 1e6:.2f} s"
    if microseconds >= 9_995:
        return f"{microseconds / 1e3:.1f} ms"
    return f"{microseconds:.0f} us"


def policy_blocks(policy: Policy, direction: Direction, max_blocks: int | None) -> int | None:
    """Return the most thread blocks that a kernel may have; None for no limit."""
    if policy is not Policy.OVERLAP:
        return max_blocks
    within = direction is Direction.D2D
    blocks = _OVERLAP_BLOCKS_WITHIN_DEVICE if within else _OVERLAP_BLOCKS
    return blocks if max_blocks is None else min(blocks, max_blocks)


def rank(costs: Costs, load: Load, situation: Situation) -> tuple[tuple[float, Mode], ...]:
    """Order the modes by merit.

    Parameters
    ----------
    costs : Costs
        What to predict with.
    load : Load
        What is copied.
    situation : Situation
        Under which circumstances.

    Returns
    -------
    tuple of (float, Mode)
        Predicted microseconds and mode, the best first.
    """
    predicted = costs.predict(load, max_blocks=situation.max_blocks, spread=situation.may_fork)
    if situation.duplex:
        host_us = load.copies * _DUPLEX_HOST_US_A_COPY
        predicted = [
            (us * _DUPLEX_KERNEL_FACTOR if mode is Mode.KERNEL else max(us, host_us), mode)
            for us, mode in predicted
        ]
    if situation.policy is Policy.OVERLAP:
        predicted.sort(key=_with_patience)
    else:
        predicted.sort(key=_first)
    return tuple(predicted)


def _with_patience(item: tuple[float, Mode]) -> float:
    return item[0] * _OVERLAP_PATIENCE if item[1] is Mode.KERNEL else item[0]


def _first(item: tuple[float, Mode]) -> float:
    return item[0]


def merit_of(ranked: Sequence[tuple[float, Mode]], policy: Policy) -> str:
    """Return a ranking as a clause for a reason."""
    words = ", ".join([f"{mode} {in_words(us)}" for us, mode in ranked if us < math.inf])
    if policy is Policy.THROUGHPUT:
        return f"predicted: {words}"
    return f"for {policy}, predicted: {words}"


def best_split(costs: Costs, load: Load, situation: Situation) -> tuple[int, float] | None:
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
    single = min(costs.predict(load, max_blocks=situation.max_blocks))[0]
    for edge in range(1, CLASSES):
        short, long = split_load(load, edge)
        if not (short.copies and long.copies):
            continue
        predicted = _of(Mode.KERNEL, costs.predict(short, max_blocks=situation.max_blocks))
        predicted += _of(Mode.BATCH, costs.predict(long))
        if predicted < _SPLIT_GAIN * single and (best is None or predicted < best[1]):
            best = edge, predicted
    return best


def predict_pairs(costs: Costs, loads: Iterable[Load], situation: Situation) -> float:
    """Return the predicted time in microseconds of copies that one kernel makes pair by pair.

    Policy "overlap" would rather wait a little than take the multiprocessors.
    """
    alone = max(
        _of(Mode.KERNEL, costs.predict(load, max_blocks=situation.max_blocks)) for load in loads
    )
    patience = _OVERLAP_PATIENCE if situation.policy is Policy.OVERLAP else 1.0
    return _PAIRS_FACTOR * patience * alone


def predict_apart(directions_us: float, situation: Situation, *, staged: bool) -> float:
    """Return the predicted time of two directions side by side, from that of the copies alone."""
    if not situation.may_fork:
        return directions_us
    return (_STAGED_FACTOR if staged else 1.0) * directions_us + _SIDE_BY_SIDE_US


def _of(mode: Mode, predicted: Sequence[tuple[float, Mode]]) -> float:
    return next(us for us, other in predicted if other is mode)


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
