"""All copies in one call of the driver's ``cuMemcpyBatchAsync``."""

from __future__ import annotations

from numba_swap.copies import Copies
from numba_swap.dispatch import Situation
from numba_swap.driver import abi
from numba_swap.driver.api import Driver
from numba_swap.errors import DriverCallError
from numba_swap.in_flight import InFlight
from numba_swap.streams import is_legacy
from numba_swap.versions import DriverVersion

_FUNCTION = abi.MEMCPY_BATCH_ASYNC.name
_SINCE = DriverVersion.from_encoded(abi.MEMCPY_BATCH_ASYNC.version)


def why_not(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return why this mode cannot run the copies; None if it can."""
    if situation.driver_version < _SINCE:
        return f"{situation.driver_words} has no {_FUNCTION}, which is new in {_SINCE}"
    answer = driver.entry_points.answers[_FUNCTION]
    if not answer.found:
        return f"{situation.driver_words} did not give {_FUNCTION} ({answer.explanation})"
    if situation.capturing:
        # Code 900, and the graph silently gets no node (CUDA 13.0).
        return f"the stream is being captured into a graph, where {_FUNCTION} copies nothing"
    return None


def submit(
    driver: Driver, copies: Copies, situation: Situation, context: int, work: InFlight
) -> None:
    """Enqueue the copies in their stream.

    Raises
    ------
    DriverCallError
        If the driver refuses; copies before the failing index were submitted.
    """
    if is_legacy(situation.stream):
        # The driver refuses the legacy default stream here: a private one takes its place.
        with driver.pools.fenced_side_stream(context, situation.stream) as stream:
            _call(driver, copies, stream)
    else:
        _call(driver, copies, situation.stream)


def _call(driver: Driver, copies: Copies, stream: int) -> None:
    code, failing_index = driver.memcpy_batch_async(
        copies.dst.ctypes.data,
        copies.src.ctypes.data,
        copies.size.ctypes.data,
        len(copies),
        stream,
    )
    if code:
        note = "Which copies were done is not known."
        if failing_index is not None:
            note = (
                f"At fault is {copies.describe(failing_index)}; the {failing_index} copies before "
                "it were submitted, the rest were not."
            )
        raise DriverCallError(_FUNCTION, code, driver.error_name(code), failing_index, note)
