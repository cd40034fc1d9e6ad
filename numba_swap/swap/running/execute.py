"""From a selection to work in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from numba_swap.copies.ends import Ends
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.errors import DriverCallError
from numba_swap.swap.running.context import wait_for_producers
from numba_swap.swap.running.select import Selection
from numba_swap.swap.running.steps import reserve, submit_step, submit_steps
from numba_swap.swap.running.transfer import Transfer


def execute(
    selection: Selection, launch: LaunchContext, ends: Iterable[Ends], holds: tuple[object, ...]
) -> Transfer:
    """Enqueue what was selected, and track all that was submitted, whether or not that succeeds.

    Parameters
    ----------
    selection : Selection
        What to do.
    launch : LaunchContext
        Where.
    ends : iterable of Ends
        Of all copies: what is pending on their arrays comes first.
    holds : tuple of object
        What must outlive the work, besides what the steps hold.

    Raises
    ------
    DriverCallError
        If the driver refuses; it says what was submitted.
    """
    decision, steps, capturing = selection.decision, selection.steps, launch.conditions.capturing
    if decision.copies == 0:
        return Transfer(None, decision, False)
    forked, made = selection.forked, steps(launch) if callable(steps) else steps
    known = made if isinstance(made, Sequence) else ()
    reserved = [reserve(step, launch, forked=forked) for step in known]
    with launch.context.stream_lock(launch.stream):
        del reserved  # for the steps to take
        for stream, owner in launch.others:
            launch.context.wait_for(stream, launch.stream, owner)
        for some in ends:
            if some.producer_streams:
                wait_for_producers(some, launch)
        work = InFlight(launch.context, holds, capturing)
        try:
            if isinstance(made, tuple) and len(made) == 1:
                submit_step(made[0], launch, work)
            else:
                submit_steps(made, launch, work, forked=forked)
            work.close(launch.stream)
            _let_others_follow(launch)
        except BaseException as error:
            if capturing and getattr(error, "submitted", None) == 0:
                work.cancel()
            else:
                # A part may have been submitted: its memory must last until that part is over.
                work.close_after_failure(launch.stream)
                with contextlib.suppress(DriverCallError):  # the first error is the one to be told
                    _let_others_follow(launch)
            raise
    return Transfer(work, decision, capturing)


def _let_others_follow(launch: LaunchContext) -> None:
    """Let the streams of other GPUs, in whose order the work stands, too, wait for it."""
    for stream, owner in launch.others:
        with launch.driver.activate(owner.handle):
            owner.wait_for(launch.stream, stream, launch.context)
