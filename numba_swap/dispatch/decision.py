"""What was decided, and what is to be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.driver.version import DriverVersion


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
    advice : str
        What would make it faster, for a decision that `explain` made of pageable memory; else
        empty.
    where : str
        Of copies between two GPUs, which ones, and how they are linked; of parts on several GPUs,
        which one each runs on; else empty.
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
    advice: str = ""
    where: str = ""

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
            reasons = [f"{part.route}, {part.reason}" for part in self.parts]
            return f"{'at once' if self.at_once else 'one after another'}: {'; '.join(reasons)}"
        if self.forced_by:
            return f"forced by {self.forced_by}"
        merit = describe_ranking(self.ranked, self.policy)
        if not self.rejected:
            return merit
        obstacles = "; ".join(f"no {other}: {why}" for other, why in self.rejected.items())
        return f"{merit}, but {obstacles}; so {self.mode}"

    @property
    def predicted_us(self) -> float | None:
        """The predicted time from call to completion in microseconds; None if none is known.

        Parts of one direction share the link, so their times add up; directions run side by side,
        and so do GPUs.
        """
        if self.parts:
            times: dict[str, float] = {}
            for part in self.parts:
                predicted_us = part.predicted_us
                if predicted_us is None:
                    return None
                times[part.route] = times.get(part.route, 0.0) + predicted_us
            return max(times.values()) if self.at_once else sum(times.values())
        return next((us for us, mode in self.ranked if mode is self.mode and us < math.inf), None)

    @property
    def route(self) -> str:
        """Between which sides the bytes move, and where, if there are several GPUs."""
        return f"{self.direction} ({self.where})" if self.where else str(self.direction)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Every mode that takes part, without repetition."""
        return tuple(dict.fromkeys(part.mode for part in self.parts)) or (self.mode,)

    def __reduce__(self) -> tuple[Any, ...]:
        # So that it can be pickled and deep-copied, which a read-only view of a dict cannot.
        return type(self), tuple(self._replace(rejected=dict(self.rejected)))

    def __str__(self) -> str:
        simulated = "simulated " if self.simulated else ""
        return (
            f"{' and '.join(self.modes)} for {self.copies} "
            f"{'copy' if self.copies == 1 else 'copies'}, "
            f"{self.nbytes} bytes, {self.route}, "
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
                    "-" if obstacle or predicted_us == math.inf else format_us(predicted_us),
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
                f"{part.nbytes} bytes, {part.route}"
                + (f", {format_us(part.predicted_us)}" if part.predicted_us is not None else "")
                for part in self.parts
            ]
        if self.advice:
            lines += ["", self.advice]
        if self.costs_source:
            lines += ["", f"predicted from {self.costs_source}"]
        return "\n".join(lines)

    def _known(self) -> tuple[Estimate, ...]:
        known = {mode: us for us, mode in self.ranked}
        chosen = [Estimate(mode, known.get(mode, math.inf), None) for mode in self.modes]
        return (*chosen, *(Estimate(m, math.inf, why) for m, why in self.rejected.items()))


def format_us(microseconds: float) -> str:
    """Return a time for people: three digits are more than a prediction is worth."""
    if microseconds >= 99_950:
        return f"{microseconds / 1e6:.2f} s"
    if microseconds >= 9_995:
        return f"{microseconds / 1e3:.1f} ms"
    return f"{microseconds:.0f} us"


def describe_ranking(ranked: Sequence[tuple[float, Mode]], policy: Policy) -> str:
    """Return a ranking as a clause for a reason."""
    words = ", ".join([f"{mode} {format_us(us)}" for us, mode in ranked if us < math.inf])
    if policy is Policy.THROUGHPUT:
        return f"predicted: {words}"
    return f"for {policy}, predicted: {words}"


def join_decisions(
    whole: Decision, parts: Sequence[Decision], note: str = "", *, at_once: bool = True
) -> Decision:
    """Return one decision for several that run at once, or one after another.

    Parameters
    ----------
    whole : Decision
        What holds for all of them.
    parts : sequence of Decision
        Of each part; those of no copies, and parts of parts, are sorted out here.
    note : str, optional
        The reason, if it is not that of the parts.
    at_once : bool, optional
        Whether they run at once.
    """
    joined = tuple(part for some in parts if some.copies for part in some.parts or (some,))
    if len(joined) <= 1:
        return max(parts, key=lambda part: part.nbytes)
    mixed = len({part.direction for part in joined}) > 1
    return whole._replace(
        mode=max(parts, key=lambda part: part.nbytes).mode,
        direction=Direction.MIXED if mixed else joined[0].direction,
        copies=sum(part.copies for part in parts),
        nbytes=sum(part.nbytes for part in parts),
        rejected={},
        parts=joined,
        at_once=at_once,
        note=note,
        where="",
    )
