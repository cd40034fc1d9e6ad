"""All copies in one call, or few, of ``cuMemcpyBatchAsync``; boxes, ``cuMemcpy3DBatchAsync``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from numba_swap import native
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.device.device import Device
from numba_swap.device.in_flight import InFlight
from numba_swap.device.streams import is_legacy
from numba_swap.dispatch.conditions import Conditions, LaunchContext
from numba_swap.dispatch.settings import current_settings
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.version import DriverVersion

_FUNCTION = abi.MEMCPY_BATCH_ASYNC.name
_STRIDED_FUNCTION = abi.MEMCPY_3D_BATCH_ASYNC.name
_SINCE = DriverVersion.from_encoded(abi.MEMCPY_BATCH_ASYNC.version)


def why_not(ends: Ends, conditions: Conditions) -> str | None:
    """Return why this mode cannot run the copies; None if it can."""
    capabilities = conditions.capabilities
    function = _STRIDED_FUNCTION if ends.strided else _FUNCTION
    lookup = capabilities.lookups[function]
    if capabilities.version < _SINCE:
        reason = f"{capabilities.driver_words} has no {function}, which is new in {_SINCE}"
        if lookup.too_new_for is not None:
            reason += f"; asked for it, it answered: {lookup.explanation}"
        return reason
    if not lookup.found:
        return f"{capabilities.driver_words} did not give {function} ({lookup.explanation})"
    if conditions.capturing:
        # Code 900, and the graph silently gets no node (CUDA 13.0).
        return f"the stream is being captured into a graph, where {function} copies nothing"
    for allocation in ends.allocations:
        # It does not translate addresses, as cuMemcpyAsync does: these end in a sticky error.
        if allocation.device_offset:
            return (
                f"{allocation.kind} memory at {allocation.start:#x} has another address on the "
                f"GPU, which {function} does not look up"
            )
    return None


def load(device: Device, ends: Ends) -> str | None:
    """Return nothing: the function was looked up with all others."""
    return None


def submit(copies: Copies, launch: LaunchContext, work: InFlight) -> None:
    """Enqueue the copies in their stream, or in private streams that fork from it and join it.

    Raises
    ------
    DriverCallError
        If the driver refuses; copies before the failing index were submitted.
    """
    conditions, context, streams = launch.conditions, launch.context, 1
    call = _call_in_chunks if copies.boxes is None else _copy_boxes_in_chunks
    if conditions.may_use_private_streams and not conditions.shares_engines:
        streams = launch.device.tuning.spread_over(
            len(copies), copies.nbytes, beside=conditions.beside
        )
    if streams == 1 and not is_legacy(launch.stream):
        call(launch.driver, copies, [launch.stream])
        return
    # The driver refuses the legacy default stream here: a private one takes its place.
    sides = context.private_streams(streams, ("batch", launch.key))
    with context.fork_join(launch.stream, sides, functools.partial(work.lose, *sides)):
        call(launch.driver, copies, sides)


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
            raise copies.driver_error(_FUNCTION, code, driver.error_name(code), index, stop)


def _chunks(ends: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int, int]]:
    """Divide boxes, whose operations end there, into chunks of so many operations or one box.

    Yields the first box, the one after the last, and the operations before them.
    """
    start = before = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield start, stop, before
        start, before = stop, int(ends[stop - 1])


def _copy_boxes_in_chunks(driver: Driver, copies: Copies, streams: list[int]) -> None:
    """Do what `_call_in_chunks` does, for boxes."""
    boxes, count = copies.boxes, len(copies)
    assert boxes is not None  # the caller asked
    ends, most = np.cumsum(boxes.driver_copies(count)), current_settings().batch_descriptors
    chunk = min(most, -(-int(ends[-1]) // len(streams)))
    for (start, stop, before), stream in zip(
        _chunks(ends, chunk), itertools.cycle(streams), strict=False
    ):
        operations = np.empty(
            (int(ends[stop - 1]) - before) * native.boxes.OPERATION_WORDS, dtype=np.uint64
        )
        number = native.boxes.fill_operations(
            copies.dst, copies.src, boxes.forms, boxes.which, start, stop, operations
        )
        for first in range(0, number, most):  # a box alone may be too many for one call
            at = operations.ctypes.data + 8 * native.boxes.OPERATION_WORDS * first
            code, failing = driver.memcpy_boxes_batch(at, min(most, number - first), stream)
            if code:
                index = None
                if failing is not None:
                    index = int(np.searchsorted(ends, before + first + failing, side="right"))
                name = driver.error_name(code)
                # What driver 580 submits of this call depends on the fault; no document tells.
                raise copies.driver_error(_STRIDED_FUNCTION, code, name, index, stop, least=start)
