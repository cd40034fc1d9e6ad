"""Several pieces of work at once, in private streams, as if they stood in the user's stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

from numba_swap.copies.copies import Copies
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.ranking import Situation
from numba_swap.dispatch.settings import Mode
from numba_swap.driver.calls import Driver
from numba_swap.errors import DriverCallError
from numba_swap.modes import MODES


class Step(NamedTuple):
    """One piece of work.

    Attributes
    ----------
    copies : Copies
        What is copied.
    mode : Mode
        How.
    lane : int
        In which lane, from 1 on; the steps of one lane run one after another.
    after : tuple of int
        Indices of earlier steps, in other lanes, that must be over first.
    awaited : bool
        Whether later steps may name it there.
    """

    copies: Copies
    mode: Mode
    lane: int
    after: tuple[int, ...] = ()
    awaited: bool = True


def submit_steps(
    driver: Driver, steps: Iterable[Step], situation: Situation, work: InFlight
) -> None:
    """Enqueue steps, each in its lane; the user's stream goes on when all are over.

    Where private streams are not to be used, they are enqueued there, one after another.

    Parameters
    ----------
    driver : Driver
        The driver.
    steps : iterable of Step
        Taken one by one, so that later ones may be planned while earlier ones run.
    situation : Situation
        Of the user's stream.
    work : InFlight
        Keeps the copies alive.

    Raises
    ------
    DriverCallError
        If the driver refuses; the steps before were submitted.
    """
    if not situation.may_fork:
        for number, step in enumerate(steps):
            _submit(driver, step, number, situation, work)
        return
    with _Lanes(driver, situation, work) as lanes:
        for number, step in enumerate(steps):
            inside = lanes.enter(step)
            _submit(driver, step, number, inside, work)
            if step.awaited:
                lanes.mark(number, inside.stream)
    work.close(situation.stream)


def _submit(driver: Driver, step: Step, number: int, situation: Situation, work: InFlight) -> None:
    work.hold(step.copies)
    try:
        MODES[step.mode].submit(driver, step.copies, situation, work)
    except DriverCallError as error:
        raise error.in_part(number) from None


class _Lanes:
    """The private streams that steps run in: each forks from the user's, which joins all."""

    def __init__(self, driver: Driver, situation: Situation, work: InFlight) -> None:
        self._driver = driver
        self._situation = situation
        self._work = work
        self._lanes: dict[int, Situation] = {}
        self._events: dict[int, int] = {}  # behind each awaited step, and the user's work so far

    def __enter__(self) -> _Lanes:
        self.mark(_BEFORE_ALL, self._situation.stream)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        pools, situation = self._driver.pools, self._situation
        first = contextlib.nullcontext() if kind is None else contextlib.suppress(DriverCallError)
        try:
            with first:  # the first error is the one to be told
                pools.join(
                    situation.context,
                    [inside.stream for inside in self._lanes.values()],
                    situation.stream,
                    self._work.keep_for_good,
                )
        finally:
            for event in self._events.values():  # all that waits for them has been enqueued
                pools.give_event(situation.context, event)

    def enter(self, step: Step) -> Situation:
        """Return the situation of a step, in a lane that waits for what must come first."""
        driver, situation = self._driver, self._situation
        inside = self._lanes.get(step.lane)
        if inside is None:
            stream = driver.pools.lane_stream(situation.context, step.lane)
            inside = self._lanes[step.lane] = situation._replace(stream=stream, lane=step.lane)
            driver.wait_event(stream, self._events[_BEFORE_ALL])
        for earlier in step.after:
            driver.wait_event(inside.stream, self._events[earlier])
        return inside

    def mark(self, number: int, stream: int) -> None:
        """Put an event behind what is in a stream now, by the number of its last step."""
        pools = self._driver.pools
        event = self._events[number] = pools.take_event(self._situation.context)
        self._driver.record_event(event, stream)


_BEFORE_ALL = -1
