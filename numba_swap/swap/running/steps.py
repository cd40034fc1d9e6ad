"""Pieces of work, in the user's stream or in private ones, as if they stood in the user's."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from numba_swap.copies.copies import Copies, Pairs
from numba_swap.device.context import Context
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.settings import Mode
from numba_swap.errors import DriverCallError
from numba_swap.modes import MODES
from numba_swap.modes.kernel import exchange


class Step(NamedTuple):
    """One piece of work.

    Attributes
    ----------
    work : Copies or Pairs
        What is copied.
    mode : Mode
        How; pairs are made by the kernel.
    strand : hashable
        Steps of one strand run one after another, those of different strands at once.
    after : tuple of int
        Indices of earlier steps, in other strands, that must be over first.
    has_waiters : bool
        Whether later steps may name it there.
    shares_engines : bool
        Whether other strands share with it what the copy engines get.
    holds : object
        What must outlive it, besides the copies.
    device : int or None
        The GPU that it runs on, in a strand of its own; None for that of the user's stream.
    """

    work: Copies | Pairs
    mode: Mode
    strand: Hashable = ()
    after: tuple[int, ...] = ()
    has_waiters: bool = False
    shares_engines: bool = False
    holds: object = None
    device: int | None = None


def reserve(step: Step, launch: LaunchContext, *, forked: bool) -> object:
    """Take the memory that a step will need; return what holds it until it is submitted."""
    with _context_of(step, launch):
        if forked:
            launch = _beside(step, launch)
        if isinstance(step.work, Pairs):
            exchange.reserve(step.work, launch)
            return None
        module: Any = MODES[step.mode]
        return module.reserve(step.work, launch) if hasattr(module, "reserve") else None


def submit_steps(
    steps: Iterable[Step], launch: LaunchContext, work: InFlight, *, forked: bool
) -> None:
    """Enqueue steps.

    Parameters
    ----------
    steps : iterable of Step
        Taken one by one, so that later ones may be planned while earlier ones run.
    launch : LaunchContext
        The user's stream.
    work : InFlight
        Keeps the copies alive.
    forked : bool
        Each step in its strand, and the user's stream goes on when all are over; otherwise all in
        the user's stream, one after another.

    Raises
    ------
    DriverCallError
        If the driver refuses; the steps before were submitted.
    """
    if not forked:
        for number, step in enumerate(steps):
            _submit(step, number, launch, work)
        return
    with _ForkedStreams(launch, work) as streams:
        streams.mark(_BEFORE_ALL, launch)
        for number, step in enumerate(steps):
            with _context_of(step, launch):
                inside = streams.enter(step)
                _submit(step, number, inside, work)
                if step.has_waiters:
                    streams.mark(number, inside)
                elif inside.context is launch.context:
                    # An event behind every piece, though nobody asks: without, where one direction
                    # follows the other piece by piece, the copy engines reached 0.84 of the link
                    # instead of 0.98 (256 KiB blocks, H100, driver 580).
                    work.close(inside.stream)


def submit_step(step: Step, launch: LaunchContext, work: InFlight) -> None:
    """Enqueue one step in its stream, as the only one of a call."""
    if isinstance(step.work, Pairs):
        exchange.submit(step.work, launch, work)
    else:
        MODES[step.mode].submit(step.work, launch, work)


def _submit(step: Step, number: int, launch: LaunchContext, work: InFlight) -> None:
    work.hold(step.work, step.holds)
    try:
        submit_step(step, launch, work)
    except DriverCallError as error:
        raise error.in_part(number) from None


class _ForkedStreams:
    """The private streams that steps run in: each forks from the user's, which joins all."""

    def __init__(self, launch: LaunchContext, work: InFlight) -> None:
        self._launch = launch
        self._work = work
        self._strands: dict[Hashable, LaunchContext] = {}
        # Behind each step that has waiters, and behind the user's work so far.
        self._events: dict[int, tuple[int, Context]] = {}

    def __enter__(self) -> _ForkedStreams:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        context = self._launch.context
        strands = self._strands.values()
        sides, owners = [i.stream for i in strands], [i.context for i in strands]
        first = contextlib.nullcontext() if kind is None else contextlib.suppress(DriverCallError)
        try:
            with first:  # the first error is the one to be told
                context.join(sides, self._launch.stream, self._lose_all, owners)
        finally:
            for event, owner in self._events.values():  # all that waits for them has been enqueued
                owner.give_event(event)

    def _lose_all(self) -> None:
        for inside in self._strands.values():
            self._work.lose(inside.stream, of=inside.context)

    def enter(self, step: Step) -> LaunchContext:
        """Return where a step is submitted, in a stream that waits for what must come first.

        Its context is the calling thread's.
        """
        launch = self._launch
        inside = self._strands.get(step.strand)
        if inside is None:
            inside = _beside(step, launch)
            (stream,) = inside.context.private_streams(1, ("step", step.strand))
            inside = inside._replace(stream=stream, key=step.strand)
            self._strands[step.strand] = inside
            launch.driver.wait_event(stream, self._events[_BEFORE_ALL][0])
        for earlier in step.after:
            launch.driver.wait_event(inside.stream, self._events[earlier][0])
        return inside

    def mark(self, number: int, inside: LaunchContext) -> None:
        """Put an event behind what is in a stream now, by the number of its last step."""
        event = inside.context.take_event()
        self._events[number] = event, inside.context
        inside.driver.record_event(event, inside.stream)


_BEFORE_ALL = -1
_NO_OTHER = contextlib.nullcontext()


def _context_of(step: Step, launch: LaunchContext) -> contextlib.AbstractContextManager[None]:
    """Let the context of the GPU that a step runs on be the calling thread's."""
    if step.device is None or step.device == launch.device.ordinal:
        return _NO_OTHER
    return launch.driver.activate(launch.devices.primary(step.device).handle)


def _beside(step: Step, launch: LaunchContext) -> LaunchContext:
    """Return where, and under which conditions, a step runs in a strand of its own."""
    if step.device is not None:
        launch = launch.on(step.device)
    return launch.under(beside=True, shares_engines=step.shares_engines)
