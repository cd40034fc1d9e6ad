"""One ``cuMemcpyAsync`` a copy, one ``cuMemcpy3DAsync`` a box, from a compiled loop."""

from __future__ import annotations

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.device.device import Device
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.driver.calls import Driver
from numba_swap.errors import DriverCallError

_FUNCTION = "cuMemcpyAsync"
_STRIDED_FUNCTION = "cuMemcpy3DAsync"


def why_not(ends: Ends, conditions: Conditions) -> str | None:
    """Return why this mode cannot run the copies: it always can."""
    return None


def load(device: Device, ends: Ends) -> str | None:
    """Return nothing: there is nothing to load."""
    return None


def submit(copies: Copies, launch: LaunchContext, work: InFlight) -> None:
    """Enqueue the copies in their stream.

    Raises
    ------
    DriverCallError
        If the driver refuses one; the copies before it were submitted.
    """
    driver, uniform, boxes = launch.driver, copies.uniform, copies.boxes
    if boxes is not None:
        code, index = driver.memcpy_boxes_loop(
            copies.dst, copies.src, boxes.forms, boxes.which, launch.stream
        )
    else:
        code, index = driver.memcpy_loop(
            copies.dst, copies.src, copies.dst if uniform else copies.sizes, uniform, launch.stream
        )
    if code:
        raise refused(driver, copies, code, index)


def refused(driver: Driver, copies: Copies, code: int, index: int) -> DriverCallError:
    """Make the error of one copy that the driver refused."""
    boxes = copies.boxes
    by_rows = boxes is None or boxes.of_each("driver_axes", len(copies))[index] == 0
    function = _FUNCTION if by_rows else _STRIDED_FUNCTION
    return copies.driver_error(function, code, driver.error_name(code), index, index)
