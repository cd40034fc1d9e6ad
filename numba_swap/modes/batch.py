"""All copies in one call, or few, of the driver's ``cuMemcpyBatchAsync``."""

from __future__ import annotations

import itertools

from numba_swap.copies.copies import Copies
from numba_swap.device.in_flight import InFlight
from numba_swap.device.streams import is_legacy
from numba_swap.dispatch.cost_model import batch_streams
from numba_swap.dispatch.ranking import Situation
from numba_swap.dispatch.settings import current_settings
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.version import DriverVersion

_FUNCTION = abi.MEMCPY_BATCH_ASYNC.name
_SINCE = DriverVersion.from_encoded(abi.MEMCPY_BATCH_ASYNC.version)


def why_not(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return why this mode cannot run the copies; None if it can."""
    answer = driver.entry_points.answers[_FUNCTION]
    if situation.driver_version < _SINCE:
        reason = f"{situation.driver_words} has no {_FUNCTION}, which is new in {_SINCE}"
        if answer.too_new_for is not None:
            reason += f"; asked for it, it answered: {answer.explanation}"
        return reason
    if not answer.found:
        return f"{situation.driver_words} did not give {_FUNCTION} ({answer.explanation})"
    if situation.capturing:
        # Code 900, and the graph silently gets no node (CUDA 13.0).
        return f"the stream is being captured into a graph, where {_FUNCTION} copies nothing"
    return None


def submit(driver: Driver, copies: Copies, situation: Situation, work: InFlight) -> None:
    """Enqueue the copies in their stream, or in private streams that fork from it and join it.

    Raises
    ------
    DriverCallError
        If the driver refuses; copies before the failing index were submitted.
    """
    lane, streams = situation.lane, 1
    if situation.may_fork and not situation.strand:
        streams = batch_streams(len(copies), copies.nbytes, lane)
    if streams == 1 and not is_legacy(situation.stream):
        _call_in_chunks(driver, copies, [situation.stream])
    else:
        # The driver refuses the legacy default stream here: a private one takes its place.
        sides = driver.pools.side_streams(situation.context, streams, lane)
        with driver.pools.fenced(situation.context, situation.stream, sides, work.keep_for_good):
            _call_in_chunks(driver, copies, sides)
    work.close(situation.stream)


def _call_in_chunks(driver: Driver, copies: Copies, streams: list[int]) -> None:
    """Submit the copies in their order, chunk by chunk, to one stream after another."""
    count = len(copies)
    chunk = min(current_settings().batch_descriptors, -(-count // len(streams)))
    lengths = copies.sizes  # held here: another thread may make, and keep, another array of them
    dst, src, sizes = (column.ctypes.data for column in (copies.dst, copies.src, lengths))
    for start, stream in zip(range(0, count, chunk), itertools.cycle(streams), strict=False):
        stop = min(start + chunk, count)
        code, failing = driver.memcpy_batch_async(
            dst + 8 * start, src + 8 * start, sizes + 8 * start, stop - start, stream
        )
        if code:
            index = None if failing is None else start + failing
            raise copies.refused(_FUNCTION, code, driver.error_name(code), index, stop)
