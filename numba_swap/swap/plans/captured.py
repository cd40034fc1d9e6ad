"""Changing the tables of addresses that captured graphs read at every replay."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.settings import Mode
from numba_swap.errors import BadPlanError, CapturedTransferError
from numba_swap.swap.running.select import Selection


def rewrite_captured(captured: Iterable[Selection], copies: Copies, launch: LaunchContext) -> None:
    """Let captured runs make other copies, from a stream's next work on.

    Parameters
    ----------
    captured : iterable of Selection
        What was captured.
    copies : Copies
        What is to be copied, as blocks of the same length.
    launch : LaunchContext
        The stream in which the change takes its turn.

    Raises
    ------
    BadPlanError
        If one of them cannot be changed. None was.
    CapturedTransferError
        If the stream is being captured.
    """
    if launch.conditions.capturing:
        raise CapturedTransferError(
            "the stream is being captured into a CUDA graph: update the plan in another one, or "
            "after the capture"
        )
    former = [_rewritable(selection) for selection in captured]
    for old in former:
        if not len(copies) or not copies.uniform or copies.uniform != old.uniform:
            raise BadPlanError(
                "a graph captured this plan, and goes through copies of one block each: plan with "
                "updatable=True, and give at least one row that moves something"
            )
    devices = launch.devices
    for old in former:
        assert old.table is not None
        rows, count = len(old), len(copies)
        buffer = devices.host_buffers.take(16 * rows, launch.device.ordinal)
        # A row more than is wanted makes a copy once more, which changes nothing.
        chosen = np.minimum(np.arange(rows), count - 1)
        buffer.words[:rows], buffer.words[rows : 2 * rows] = copies.dst[chosen], copies.src[chosen]
        work = InFlight(launch.context, (buffer, old, copies), False)
        try:
            launch.driver.memcpy_async(old.table.address, buffer.address, 16 * rows, launch.stream)
            work.close(launch.stream)
        except BaseException:
            work.close_after_failure(launch.stream)
            raise
        work.abandon()


def _rewritable(selection: Selection) -> Copies:
    """Return the copies of a captured run whose table can be changed.

    Raises
    ------
    BadPlanError
        If it cannot.
    """
    steps = selection.steps
    step = steps[0] if isinstance(steps, tuple) and len(steps) == 1 else None
    if step is None or step.mode is not Mode.KERNEL:
        raise BadPlanError(
            f"a graph captured this plan as {selection.decision.mode}, which has its addresses in "
            "the graph: capture it with mode='kernel', or capture anew"
        )
    copies = step.work
    if not isinstance(copies, Copies) or copies.table is None or not copies.uniform:
        raise BadPlanError(
            "a graph captured this plan with neighbouring blocks merged into one copy: plan with "
            "updatable=True, and capture anew"
        )
    return copies
