"""Wall-clock samples, raw."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_NS = 1_000_000_000


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
    action: Callable[[], object],
    *,
    repeats: int,
    warmups: int = 2,
    before: Callable[[], object] | None = None,
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
    """
    samples = Samples()
    for i in range(warmups + repeats):
        if before is not None:
            before()
        start = time.perf_counter_ns()
        action()
        elapsed = time.perf_counter_ns() - start
        (samples.warmups_ns if i < warmups else samples.raw_ns).append(elapsed)
    return samples


def measure_in_turn(
    actions: Mapping[str, Callable[[], object]], *, repeats: int, warmups: int = 2
) -> dict[str, Samples]:
    """Time several actions round by round, so that what drifts drifts for all of them.

    Parameters
    ----------
    actions : mapping of str to callable
        What is timed, by its name.
    repeats, warmups : int
        How many rounds count, and how many come before them.
    """
    rounds = [
        {name: measure(action, repeats=1, warmups=0).raw_ns[0] for name, action in actions.items()}
        for _ in range(warmups + repeats)
    ]
    return {
        name: Samples(
            [taken[name] for taken in rounds[:warmups]], [taken[name] for taken in rounds[warmups:]]
        )
        for name in actions
    }
