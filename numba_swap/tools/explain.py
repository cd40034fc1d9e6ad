"""Which mode a copy would get that nobody has planned, on a driver that may not be here."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from numba_swap.copies.copies import Copies, Direction
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.dispatch.ranking import Decision, Situation, policy_blocks
from numba_swap.dispatch.settings import Mode, Policy, current_settings, parse_policy
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.version import DriverVersion, DriverVersionLike
from numba_swap.errors import BadArgumentError, DriverUnavailableError
from numba_swap.swap import select

_NEWEST = DriverVersion(13, 0)
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_LARGEST_SIZE = 1 << 40
_WRITTEN_SIZE = re.compile(r"(\d+)\s*([a-z]*)", re.IGNORECASE)
DIRECTIONS = {"h2d": Direction.H2D, "d2h": Direction.D2H, "d2d": Direction.D2D}


def parse_size(text: str) -> int:
    """Read a length in bytes: ``4096``, ``"4KiB"``, ``"1 MiB"``.

    Raises
    ------
    BadArgumentError
        If it is none.
    """
    match = _WRITTEN_SIZE.fullmatch(text.strip())
    unit = _UNITS.get(match[2].lower()) if match else None
    size = int(match[1]) * unit if match is not None and unit is not None else 0
    if not 0 < size <= _LARGEST_SIZE:
        raise BadArgumentError(
            f"{text!r} is no size up to 1024GiB: write 4096, 4KiB, 1MiB for example"
        )
    return size


def explain_copy(
    direction: Direction,
    sizes: Sequence[int],
    count: int,
    *,
    driver_version: DriverVersionLike | None = None,
    host_memory: MemoryKind = MemoryKind.PINNED,
    capturing: bool = False,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
) -> Decision:
    """Say how copies would run, without arrays.

    Parameters
    ----------
    direction : Direction
        Between which sides.
    sizes : sequence of int
        Lengths in bytes.
    count : int
        How many copies in all, as many of each length as can be.
    driver_version : tuple of int, str or DriverVersion, optional
        The driver to answer for, with the GPU that the shipped costs were measured on. By default
        the one that is here, with its calibration; where there is none, 13.0.
    host_memory : MemoryKind
        What the host side is.
    capturing : bool
        Whether the stream is being captured.
    mode, policy, max_blocks
        As for `numba_swap.swap_blocks`.

    Returns
    -------
    Decision
        With all modes in its table.

    Raises
    ------
    ModeUnavailableError
        If a forced mode cannot run these copies.
    """
    driver = _driver(driver_version)
    settings = current_settings()
    version = settings.cap(driver.version)
    copies = _copies(direction, sizes, count, host_memory)
    policy = settings.policy if policy is None else parse_policy(policy)
    situation = Situation(
        version,
        version < driver.version,
        stream=0,
        context=0,
        capturing=capturing,
        device=0,
        max_blocks=policy_blocks(policy, copies.direction, max_blocks),
        policy=policy,
    )
    return select.explain(driver, copies, situation, mode)


def _driver(driver_version: DriverVersionLike | None) -> Driver:
    if driver_version is not None:
        return Driver(SimulatedLibrary(DriverVersion.parse(driver_version)))
    try:
        driver = current_driver()
        driver.initialize()
    except DriverUnavailableError:
        return Driver(SimulatedLibrary(_NEWEST))
    return driver


def _copies(
    direction: Direction, sizes: Sequence[int], count: int, host_memory: MemoryKind
) -> Copies:
    """Return copies that stand nowhere: nobody will run them."""
    lengths = np.resize(np.array(sizes, dtype=np.uint64), count)
    # Aligned, no two neighbours, and far from address 0.
    begins = np.cumsum(-(-lengths // 16) * 16 + 16, dtype=np.uint64)
    end = int(begins[-1]) + int(lengths[-1])
    host, device, other = (1 << 40), (2 << 40), (3 << 40)
    ends = {
        Direction.H2D: (host, device),
        Direction.D2H: (device, host),
        Direction.D2D: (device, other),
    }[direction]
    (src, sources), (dst, destinations) = (
        (
            begins + np.uint64(base),
            Allocation(base, base + end, host_memory if base == host else MemoryKind.DEVICE, 0, 0),
        )
        for base in ends
    )
    uniform = int(lengths[0]) if len(set(sizes)) == 1 else lengths
    return Copies(dst, src, uniform, (sources,), (destinations,))
