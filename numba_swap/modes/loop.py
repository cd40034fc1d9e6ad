"""One ``cuMemcpyAsync`` a copy, from a compiled loop."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba_swap.copies import Copies
from numba_swap.dispatch import Situation
from numba_swap.driver.api import Driver
from numba_swap.errors import DriverCallError
from numba_swap.in_flight import InFlight

_FUNCTION = "cuMemcpyAsync"


def why_not(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return why this mode cannot run the copies: it always can."""
    return None


def submit(
    driver: Driver, copies: Copies, situation: Situation, context: int, work: InFlight
) -> None:
    """Enqueue the copies in their stream.

    Raises
    ------
    DriverCallError
        If the driver refuses one; the copies before it were submitted.
    """
    loop = _compiled_loop()
    code, index = loop(
        driver.address(_FUNCTION), copies.dst, copies.src, copies.size, situation.stream
    )
    if code:
        raise DriverCallError(
            _FUNCTION,
            code,
            driver.error_name(code),
            index,
            f"At fault is {copies.describe(index)}; the {index} copies before it were submitted, "
            "the rest were not.",
        )


@cache
def _compiled_loop() -> Any:
    """Compile the loop with Numba's CPU compiler; calls through it release the GIL.

    The first process on a machine takes about a second for it, later ones load it from Numba's
    cache on disk.
    """
    from numba_swap.modes.loop_source import submit_loop

    return submit_loop
