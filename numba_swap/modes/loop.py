"""One ``cuMemcpyAsync`` a copy, from a compiled loop."""

from __future__ import annotations

from numba_swap.copies.copies import Copies
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.ranking import Situation
from numba_swap.driver.calls import Driver

_FUNCTION = "cuMemcpyAsync"


def why_not(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return why this mode cannot run the copies: it always can."""
    return None


def submit(driver: Driver, copies: Copies, situation: Situation, work: InFlight) -> None:
    """Enqueue the copies in their stream.

    Raises
    ------
    DriverCallError
        If the driver refuses one; the copies before it were submitted.
    """
    uniform = copies.uniform
    code, index = driver.memcpy_loop(
        copies.dst, copies.src, copies.dst if uniform else copies.sizes, uniform, situation.stream
    )
    if code:
        raise copies.refused(_FUNCTION, code, driver.error_name(code), index, index)
    work.close(situation.stream)
