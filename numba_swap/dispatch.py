"""Which mode runs a copy, and why: a pure function of what is known before the copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from numba_swap.copies import Direction
from numba_swap.errors import ModeUnavailableError
from numba_swap.settings import Mode
from numba_swap.versions import DriverVersion

# Measured on an H200 (driver 580, PCIe 5): see `preference`.
_FEW_COPIES = 2
_LONG_BYTES = {Direction.H2D: 64 << 10, Direction.D2H: 256 << 10, Direction.H2H: 256 << 10}
_MUCH_BYTES = 32 << 20


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
    """

    driver_version: DriverVersion
    pretended: bool
    stream: int
    context: int
    capturing: bool
    device: int
    max_blocks: int | None = None

    @property
    def driver_words(self) -> str:
        """The driver in words, for reasons."""
        return f"driver {self.driver_version}{' (pretended)' if self.pretended else ''}"


class Decision(NamedTuple):
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
    forced : bool
        Whether the mode was asked for, by the argument, `override` or the environment.
    """

    mode: Mode
    reason: str
    driver_version: DriverVersion
    rejected: Mapping[Mode, str] = MappingProxyType({})
    direction: Direction = Direction.MIXED
    copies: int = 0
    nbytes: int = 0
    simulated: bool = False
    forced: bool = False

    def __str__(self) -> str:
        simulated = "simulated " if self.simulated else ""
        return (
            f"{self.mode} for {self.copies} {'copy' if self.copies == 1 else 'copies'}, "
            f"{self.nbytes} bytes, {self.direction}, "
            f"{simulated}driver {self.driver_version}: {self.reason}"
        )


def preference(direction: Direction, copies: int, nbytes: int) -> tuple[tuple[Mode, ...], str]:
    """Order the modes by speed.

    Parameters
    ----------
    direction : Direction
        Between which sides the bytes move.
    copies, nbytes : int
        How many copies, and how many bytes in all.

    Returns
    -------
    modes : tuple of Mode
        From the fastest to the slowest.
    why : str
        Why the first is the fastest.

    Notes
    -----
    The thresholds were measured on one machine, an H200 with driver 580 on PCIe 5. A driver call
    costs about a microsecond a copy, a kernel launch some 10 microseconds in all, and copy engines
    reach a few per cent more of a host link than a kernel does.
    """
    if copies == 0:
        return (Mode.LOOP, Mode.KERNEL, Mode.BATCH), "there is nothing to copy"
    if copies <= _FEW_COPIES:
        return (Mode.LOOP, Mode.KERNEL, Mode.BATCH), "so few copies are one driver call each"
    mean = nbytes // copies
    if mean >= _LONG_BYTES.get(direction, math.inf) and nbytes >= _MUCH_BYTES:
        return (
            (Mode.BATCH, Mode.KERNEL, Mode.LOOP),
            f"many copies of {mean} bytes on average are fastest with the copy engines",
        )
    return (
        (Mode.KERNEL, Mode.BATCH, Mode.LOOP),
        f"for copies of {mean} bytes on average, {nbytes} in all, one kernel is fastest",
    )


def choose(
    forced: Mode | None,
    forced_by: str,
    modes: Sequence[Mode],
    merit: str,
    why_not: Callable[[Mode], str | None],
) -> tuple[Mode, str, dict[Mode, str]]:
    """Choose a mode.

    Parameters
    ----------
    forced : Mode or None
        The only mode to consider, if there is one.
    forced_by : str
        Who forces it, for the reason.
    modes : sequence of Mode
        What to try, the best first, where nothing is forced.
    merit : str
        Why the first of them is the best.
    why_not : callable
        Why a mode cannot run this copy; None if it can. Asked in order, and no further than
        needed.

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
        If the forced mode cannot run, or none can.
    """
    if forced is not None:
        obstacle = why_not(forced)
        if obstacle is not None:
            raise ModeUnavailableError(forced, obstacle)
        return forced, f"forced by {forced_by}", {}
    rejected: dict[Mode, str] = {}
    for mode in modes:
        obstacle = why_not(mode)
        if obstacle is None:
            if not rejected:
                return mode, merit, rejected
            obstacles = "; ".join(f"no {other}: {why}" for other, why in rejected.items())
            return mode, f"{merit}, but {obstacles}; so {mode}", rejected
        rejected[mode] = obstacle
    raise ModeUnavailableError("auto", "; ".join(f"{m}: {why}" for m, why in rejected.items()))
