"""Several pieces of work at once, in private streams, as if they stood in the user's stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

from numba_swap.copies import Copies
from numba_swap.dispatch import Situation
from numba_swap.driver.api import Driver
from numba_swap.errors import DriverCallError
from numba_swap.in_flight import InFlight
from numba_swap.modes import MODES
from numba_swap.settings import Mode


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
    """

    copies: Copies
    mode: Mode
    lane: int
    after: tuple[int, ...] = ()


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
            lanes.mark(inside.stream)
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
        self._streams: dict[int, int] = {}
        self._events: list[int] = []  # behind the user's work so far, and behind each step

    def __enter__(self) -> _Lanes:
        self.mark(self._situation.stream)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        pools, situation = self._driver.pools, self._situation
        first = contextlib.nullcontext() if kind is None else contextlib.suppress(DriverCallError)
        try:
            with first:  # the first error is the one to be told
                pools.join(
                    situation.context,
                    self._streams.values(),
                    situation.stream,
                    self._work.keep_for_good,
                )
        finally:
            for event in self._events:  # all that waits for them has been enqueued
                pools.give_event(situation.context, event)

    def enter(self, step: Step) -> Situation:
        """Return the situation of a step, in a lane that waits for what must come first."""
        driver, situation = self._driver, self._situation
        stream = self._streams.get(step.lane)
        if stream is None:
            stream = driver.pools.lane_stream(situation.context, step.lane)
            self._streams[step.lane] = stream
            driver.wait_event(stream, self._events[0])
        for earlier in step.after:
            driver.wait_event(stream, self._events[1 + earlier])
        return situation._replace(stream=stream, lane=step.lane)

    def mark(self, stream: int) -> None:
        """Put an event behind what is in a stream now."""
        pools = self._driver.pools
        event = pools.take_event(self._situation.context)
        self._events.append(event)
        self._driver.record_event(event, stream)
