"""Wall-clock samples, raw, of one thing or of several in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_NS = 1_000_000_000
Action = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


@dataclass
class Samples:
    """Repeated measurements of one thing.

    Attributes
    ----------
    warmups_ns, raw_ns : list of int
        Every measurement in nanoseconds, in order; the first are not counted.
    """

    warmups_ns: list[int] = field(default_factory=list)
    raw_ns: list[int] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median of the counted ones, in seconds."""
        return statistics.median(self.raw_ns) / _NS

    def rate(self, nbytes: int) -> float:
        """Bytes a second at the median."""
        return nbytes / self.median_s


def measure(
    action: Action,
    *,
    repeats: int,
    warmups: int = 2,
    before: Action | None = None,
    into: Samples | None = None,
) -> Samples:
    """Time an action several times.

    Parameters
    ----------
    action : callable
        What is timed, from call to return.
    repeats, warmups : int
        How often it is counted, and how often it runs before that.
    before : callable, optional
        Runs before each, not timed.
    into : Samples, optional
        Where to add the values, instead of new ones.
    """
    samples = Samples() if into is None else into
    for i in range(warmups + repeats):
        if before is not None:
            before()
        start = time.perf_counter_ns()
        action()
        elapsed = time.perf_counter_ns() - start
        (samples.warmups_ns if i < warmups else samples.raw_ns).append(elapsed)
    return samples


def take_in_turn(
    take: Mapping[Name, Action],
    orders: Iterable[Iterable[Name]],
    check: Callable[[], object] = lambda: None,
) -> Iterator[int]:
    """Let several things take their samples round by round; yield how many rounds are whole.

    What drifts meanwhile, a clock or a temperature, drifts for all of them.

    Parameters
    ----------
    take : mapping of callable
        Takes a sample of each thing.
    orders : iterable of iterable
        For each round, the keys of `take` in the order of the samples.
    check : callable, optional
        Called before each sample; may raise to end it all.
    """
    for done, order in enumerate(orders, 1):
        for name in order:
            check()
            take[name]()
        yield done


def measure_in_turn(
    actions: Mapping[Name, Action],
    *,
    repeats: int,
    warmups: int = 2,
    runs: tuple[int, int] = (0, 1),
    there_and_back: bool = False,
    before: Callable[[Name], object] | None = None,
    enough: tuple[int, float] | None = None,
) -> dict[Name, Samples]:
    """Time several actions round by round.

    Parameters
    ----------
    actions : mapping of callable
        What is timed, by its name.
    repeats, warmups : int
        How many rounds count, and how many come before them.
    runs : tuple of int
        How often an action runs in its turn uncounted, to be warm again, and counted.
    there_and_back : bool
        Whether every other round goes the other way, so that none always follows the same other.
    before : callable, optional
        Gets a name before each run of that action, not timed.
    enough : tuple of int and float, optional
        So many rounds are enough once so many seconds are over.
    """
    samples = {name: Samples() for name in actions}

    def turn(name: Name, warm: int, counted: int) -> Action:
        prepare = None if before is None else lambda: before(name)
        return lambda: measure(
            actions[name], repeats=counted, warmups=warm, before=prepare, into=samples[name]
        )

    names = list(actions)
    orders = [names[::-1] if there_and_back and i % 2 else names for i in range(warmups + repeats)]
    for _ in take_in_turn({name: turn(name, sum(runs), 0) for name in names}, orders[:warmups]):
        pass
    start = time.perf_counter()
    for done in take_in_turn({name: turn(name, *runs) for name in names}, orders[warmups:]):
        if enough is not None and done >= enough[0] and time.perf_counter() - start > enough[1]:
            break
    return samples
