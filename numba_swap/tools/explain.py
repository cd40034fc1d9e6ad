"""Which mode a copy would get that nobody has planned, on a driver that may not be here."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from numba_swap.copies.ends import Direction, Ends
from numba_swap.device.devices import devices_of
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.peers import Link
from numba_swap.dispatch.calibration import costs_between, find_costs
from numba_swap.dispatch.choice import advise_pinning, decide, estimate
from numba_swap.dispatch.conditions import Conditions, driver_capabilities
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision
from numba_swap.dispatch.ranking import block_limit
from numba_swap.dispatch.settings import (
    Mode,
    Policy,
    check_positive,
    current_settings,
    parse_policy,
)
from numba_swap.dispatch.workload import Workload, class_of, route_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import current_driver
from numba_swap.driver.simulated import SimulatedLibrary
from numba_swap.driver.version import DriverVersion, DriverVersionLike
from numba_swap.errors import BadArgumentError, DriverUnavailableError
from numba_swap.modes import MODES
from numba_swap.tools.units import MOST_BYTES

_NEWEST = DriverVersion(13, 0)
DIRECTIONS = {
    "h2d": Direction.H2D,
    "d2h": Direction.D2H,
    "d2d": Direction.D2D,
    "p2p": Direction.P2P,
}
_MOST_COPIES = (1 << 63) - 1
_HOST_MEMORY = (MemoryKind.PINNED, MemoryKind.PAGEABLE, MemoryKind.MANAGED)


def explain_copy(
    direction: Direction | str,
    sizes: int | Sequence[int],
    count: int,
    *,
    driver_version: DriverVersionLike | None = None,
    host_memory: str = "pinned",
    capturing: bool = False,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
) -> Decision:
    """Say which mode copies would run in, and why, without arrays, a GPU or a driver.

    Nothing is copied. The same on the command line is ``numba-swap explain``.

    Parameters
    ----------
    direction : {"h2d", "d2h", "d2d", "p2p"} or Direction
        Host to device, device to host, within the device, or from the first GPU to the second: if
        there are no two, as if there were, joined by NVLink; whether they would be staged in host
        memory, where there is no peer access, is not said.
    sizes : int or sequence of int
        Lengths in bytes.
    count : int
        How many copies there are in all. The lengths are shared out evenly among them.
    driver_version : tuple of int, str or DriverVersion, optional
        The driver to answer for, 11.3 or later, with the GPU that the shipped costs were measured
        on. By default the driver of this machine, with its calibration; where there is none, 13.0.
    host_memory : {"pinned", "pageable", "managed"}
        What the host side is. Managed memory counts as device memory. Ignored for "d2d" and
        "p2p".
    capturing : bool
        Whether the stream is being captured into a CUDA graph.
    mode : {"auto", "batch", "loop", "kernel", "staged"} or Mode, optional
        Force this mode; ``"auto"`` chooses, whatever `override` or the environment force. By
        default what these force, else ``"auto"``.
    policy : {"throughput", "overlap", "latency"} or Policy, optional
        What the choice is to be good for; by default what `override` or the environment says,
        else ``"throughput"``.
    max_blocks : int, optional
        At most so many thread blocks for the kernel mode.

    Returns
    -------
    Decision
        ``decision.mode`` is the choice and ``decision.reason`` says why; ``decision.estimates``
        holds for every mode the predicted time, or the obstacle. ``decision.table()`` is all of
        that as text.

    Raises
    ------
    BadArgumentError
        An argument is none of those listed, or a number is not positive.
    ModeUnavailableError
        A forced mode cannot run these copies.
    DriverUnavailableError
        `driver_version` is older than 11.3.

    Examples
    --------
    A thousand tiles of 16 KiB, on a driver that has the batch copy and on one that has not:

    >>> import numba_swap as ns
    >>> ns.explain_copy("h2d", 16384, 1000, driver_version="13.0").mode
    <Mode.KERNEL: 'kernel'>
    >>> decision = ns.explain_copy("h2d", 16384, 1000, driver_version="12.4")
    >>> [str(estimate.mode) for estimate in decision.estimates if estimate.obstacle]
    ['batch']
    """
    direction, memory = _read_direction(direction), _read_host_memory(host_memory)
    lengths = _read_sizes(sizes)
    check_positive(count, "count")
    if count > _MOST_COPIES:
        raise BadArgumentError(f"count={count} is more than {_MOST_COPIES}")
    if max_blocks is not None:
        check_positive(max_blocks, "max_blocks")
    driver = _driver(driver_version)
    settings = current_settings()
    policy = settings.policy if policy is None else parse_policy(policy)
    costs, link = find_costs(devices_of(driver)[0]), None
    ends = _ends(direction, memory)
    capabilities = driver_capabilities(driver, settings)
    if direction is Direction.P2P:
        costs, link = _between_first_two(driver)
        peers = frozenset() if link is Link.NONE else frozenset({0})
        capabilities = driver_capabilities(driver, settings, 1, peers=peers)
    conditions = Conditions(
        capabilities,
        capturing,
        policy,
        block_limit(costs.tuning, policy, ends.direction, max_blocks),
        threads=settings.threads,
    )
    workload = _workload(route_of(ends), lengths, count)

    def why_not(candidate: Mode) -> str | None:
        return MODES[candidate].why_not(ends, conditions)

    decision = decide(workload, ends.direction, costs, conditions, mode, why_not).decision
    pinned = ends.if_pinned()
    return decision._replace(
        estimates=estimate(workload, costs, conditions, why_not),
        advice=advise_pinning(
            workload,
            costs,
            conditions,
            decision,
            lambda candidate: MODES[candidate].why_not(pinned, conditions),
        ),
        where=f"0 to 1, {link}" if link else "",
    )


def _between_first_two(driver: Driver) -> tuple[CostModel, Link]:
    """Return what copies from the first GPU to the second cost, and how the two are linked."""
    devices = devices_of(driver)
    if driver.device_count() < 2:
        return find_costs(devices[0]), Link.NVLINK
    return costs_between(devices[1], devices[0]), devices.link(1, 0)


def _workload(route: str, lengths: Sequence[int], count: int) -> Workload:
    """Return the workload of so many copies, however many; each length has an equal share."""
    share, left = divmod(count, len(lengths))
    terms: dict[int, tuple[int, int]] = {}
    for place, length in enumerate(lengths):
        number = share + (place < left)
        copies, nbytes = terms.get(class_of(length), (0, 0))
        terms[class_of(length)] = copies + number, nbytes + number * length
    rows = tuple((i, *terms[i]) for i in sorted(terms) if terms[i][0])
    # As if between aligned addresses.
    bits = functools.reduce(operator.or_, lengths)
    return Workload(route, rows, count, sum(nbytes for _, _, nbytes in rows), bits)


def _read_direction(direction: Direction | str) -> Direction:
    name = direction.strip().lower() if isinstance(direction, str) else direction
    for short, known in DIRECTIONS.items():
        if name in (short, known):
            return known
    raise BadArgumentError(f"direction={direction!r} is none of {_listed(DIRECTIONS)}")


def _read_host_memory(host_memory: str) -> MemoryKind:
    name = host_memory.strip().lower() if isinstance(host_memory, str) else host_memory
    if name not in _HOST_MEMORY:
        raise BadArgumentError(f"host_memory={host_memory!r} is none of {_listed(_HOST_MEMORY)}")
    return MemoryKind(name)


def _read_sizes(sizes: int | Sequence[int]) -> list[int]:
    try:
        lengths: list[int] = np.atleast_1d(sizes).tolist()
    except ValueError:
        raise BadArgumentError(f"sizes={sizes!r} is no length, and no list of lengths") from None
    if not lengths:
        raise BadArgumentError("sizes is empty: give one length at least")
    for length in lengths:
        check_positive(length, "sizes")
        if length > MOST_BYTES:
            raise BadArgumentError(f"sizes={length} is more than 1024GiB")
    return lengths


def _listed(words: Iterable[str]) -> str:
    return ", ".join(repr(str(word)) for word in words)


def _driver(driver_version: DriverVersionLike | None) -> Driver:
    if driver_version is not None:
        return Driver(SimulatedLibrary(DriverVersion.parse(driver_version)))
    try:
        driver = current_driver()
        driver.initialize()
    except DriverUnavailableError:
        return Driver(SimulatedLibrary(_NEWEST))
    return driver


def _ends(direction: Direction, host_memory: MemoryKind) -> Ends:
    """Return the ends of copies that stand nowhere: nobody will run them."""
    host, device = ((Allocation(0, 0, kind, 0, 0),) for kind in (host_memory, MemoryKind.DEVICE))
    sources = host if direction is Direction.H2D else device
    destinations = host if direction is Direction.D2H else device
    if direction is Direction.P2P:
        destinations = (device[0]._replace(device=1),)
    return Ends.of(sources, destinations)
