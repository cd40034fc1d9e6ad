"""One ``cuMemcpyAsync`` a copy, from a compiled loop."""

from __future__ import annotations

from numba_swap.copies.copies import Copies, Ends
from numba_swap.device.device import Device
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import Conditions, LaunchContext

_FUNCTION = "cuMemcpyAsync"


def why_not(ends: Ends, conditions: Conditions) -> str | None:
    """Return why this mode cannot run the copies: it always can."""
    return None


def load(device: Device) -> str | None:
    """Return nothing: there is nothing to load."""
    return None


def submit(copies: Copies, launch: LaunchContext, work: InFlight) -> None:
    """Enqueue the copies in their stream.

    Raises
    ------
    DriverCallError
        If the driver refuses one; the copies before it were submitted.
    """
    driver, uniform = launch.driver, copies.uniform
    code, index = driver.memcpy_loop(
        copies.dst, copies.src, copies.dst if uniform else copies.sizes, uniform, launch.stream
    )
    if code:
        raise copies.driver_error(_FUNCTION, code, driver.error_name(code), index, index)
