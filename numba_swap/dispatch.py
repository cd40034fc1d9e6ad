"""Which mode runs a copy, and why: a pure function of what is known before the copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from numba_swap.copies import Direction
from numba_swap.errors import ModeUnavailableError
from numba_swap.settings import Mode
from numba_swap.versions import DriverVersion

#: What is taken, first to last, where nothing is forced.
PREFERENCE = (Mode.BATCH, Mode.KERNEL, Mode.LOOP)

_MERITS = {
    Mode.BATCH: "the driver has cuMemcpyBatchAsync, which takes all copies in one call",
    Mode.KERNEL: "the GPU can reach every address, so one kernel copies all",
    Mode.LOOP: "one driver call a copy is always possible",
}


@dataclass(frozen=True)
class Situation:
    """What a mode needs to know besides the copies.

    Attributes
    ----------
    driver_version : DriverVersion
        The version that counts: the driver's, or the lower one that is pretended.
    pretended : bool
        Whether it is pretended.
    stream : int
        Handle of the stream.
    capturing : bool
        Whether the stream is being captured into a graph.
    device : int
        The GPU that the work runs on.
    """

    driver_version: DriverVersion
    pretended: bool
    stream: int
    capturing: bool
    device: int

    @property
    def driver_words(self) -> str:
        """The driver in words, for reasons."""
        return f"driver {self.driver_version}{' (pretended)' if self.pretended else ''}"


@dataclass(frozen=True)
class Decision:
    """Which mode was chosen, and why.

    Attributes
    ----------
    mode : Mode
        The mode.
    reason : str
        One sentence.
    driver_version : DriverVersion
        The driver version that counted.
    rejected : mapping of Mode to str
        The modes that were looked at before this one, and why they cannot run this copy.
    direction : Direction
        Between which sides the bytes move.
    copies, nbytes : int
        How many copies, after merging, and how many bytes in all.
    simulated : bool
        Whether the driver is simulated.
    """

    mode: Mode
    reason: str
    driver_version: DriverVersion
    rejected: Mapping[Mode, str] = field(default_factory=dict)
    direction: Direction = Direction.MIXED
    copies: int = 0
    nbytes: int = 0
    simulated: bool = False

    def __str__(self) -> str:
        simulated = "simulated " if self.simulated else ""
        return (
            f"{self.mode} for {self.copies} copies, {self.nbytes} bytes, {self.direction}, "
            f"{simulated}driver {self.driver_version}: {self.reason}"
        )


def choose(
    forced: Mode | None, forced_by: str, why_not: Callable[[Mode], str | None]
) -> tuple[Mode, str, dict[Mode, str]]:
    """Choose a mode.

    Parameters
    ----------
    forced : Mode or None
        The only mode to consider, if there is one.
    forced_by : str
        Who forces it, for the reason.
    why_not : callable
        Why a mode cannot run this copy; None if it can. Asked in the order of preference, and
        no further than needed.

    Returns
    -------
    mode : Mode
        The mode.
    reason : str
        Why, in one sentence.
    rejected : dict
        The modes that were looked at first, and why they cannot run.

    Raises
    ------
    ModeUnavailableError
        If the forced mode cannot run.
    """
    if forced is not None:
        obstacle = why_not(forced)
        if obstacle is not None:
            raise ModeUnavailableError(forced, obstacle)
        return forced, f"forced by {forced_by}", {}
    rejected: dict[Mode, str] = {}
    for mode in PREFERENCE:
        obstacle = why_not(mode)
        if obstacle is None:
            reason = _MERITS[mode]
            if rejected:
                obstacles = "; ".join(f"no {mode}: {why}" for mode, why in rejected.items())
                reason = f"{reason} ({obstacles})"
            return mode, reason, rejected
        rejected[mode] = obstacle
    raise ModeUnavailableError("auto", "; ".join(f"{m}: {why}" for m, why in rejected.items()))
