"""Samples of one arm, its warm-up, and the rounds of a cell.

A sample is the median of enough runs to fill about `Method.sample_ns`; a slow arm, and any arm
with cold caches, has one run a sample. Three times are taken:

enqueue
    Host clock, from the call until it returns.
completion
    Host clock, from the same call until the arm's wait returns.
gpu
    Between two events in the arm's stream, one before its first call and one after its last. The
    GPU is idle before, so where the host submits more slowly than the GPU copies, this includes
    waiting for the host. Runs between events are runs of their own, just before those by the host's
    clock, so that recording events disturbs no host time; an arm that takes `TOGETHER_NS` and more
    is timed both ways at once, where two records of about a microsecond each do not matter.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from numba_swap.errors import BadArgumentError
from numba_swap.tools.bench.ab.analysis.effects import LEAST_ROUNDS
from numba_swap.tools.bench.ab.arms.actions import Action
from numba_swap.tools.bench.ab.results.results import Series
from numba_swap.tools.bench.ab.spec import defaults
from numba_swap.tools.bench.gpu import Timer
from numba_swap.tools.bench.timing import take_in_turn

TOGETHER_NS = 5_000_000
_MOST_RUNS = 200
_MOST_ROUNDS = 1_000_000
_SINGLE_RUNS = 3
_WINDOW = 3
_MOST_WARM_UPS = 24
_SETTLED_WITHIN = 0.02


@dataclass(frozen=True)
class Method:
    """How a cell is measured.

    Attributes
    ----------
    rounds : int
        Rounds, in each of which every arm gives two samples; at least 20.
    seed : int
        Of the order of the arms, and later of the bootstrap.
    sample_ns : int
        What a sample should last.
    most_arm_ns : int
        An arm whose rounds would take longer in one cell is not measured there.
    """

    rounds: int = defaults.ROUNDS
    seed: int = 0
    sample_ns: int = round(defaults.SAMPLE_MS * 1e6)
    most_arm_ns: int = round(defaults.MOST_ARM_S * 1e9)

    def __post_init__(self) -> None:
        if self.rounds < LEAST_ROUNDS:
            raise BadArgumentError(
                f"rounds={self.rounds} is too few: an interval needs at least {LEAST_ROUNDS}"
            )
        if self.rounds > _MOST_ROUNDS:
            raise BadArgumentError(f"rounds={self.rounds} is more than {_MOST_ROUNDS}")
        if self.seed < 0:
            raise BadArgumentError(f"seed={self.seed} is negative")
        if self.sample_ns < 1 or self.most_arm_ns < 1:
            raise BadArgumentError("a time limit is not positive")


class Sampler:
    """Takes samples of one action.

    Parameters
    ----------
    action : Action
        What to run.
    timer : Timer or None
        For GPU times.
    before_run : callable or None
        What to do before each run; not timed. With it, a sample is one run.
    """

    def __init__(
        self, action: Action, timer: Timer | None, before_run: Callable[[], None] | None = None
    ) -> None:
        self._action = action
        self._timer = timer
        self._before_run = before_run
        self.series = Series(gpu_ns=None if timer is None else [])

    def warm_up(self, sample_ns: int) -> int:
        """Run until the times have settled; return the median of the last, in nanoseconds."""
        series = self.series
        for _ in range(_SINGLE_RUNS):
            series.warmups_ns.append(self._run()[1])
        self._choose_runs(min(series.warmups_ns), sample_ns)
        while not series.settled and len(series.warmups_ns) < _MOST_WARM_UPS:
            series.warmups_ns.append(self._host_sample()[1])
            series.settled = settled(series.warmups_ns[_SINGLE_RUNS:])
        median = statistics.median_low(series.warmups_ns[-_WINDOW:])
        self._choose_runs(median, sample_ns)
        return median

    def _choose_runs(self, run_ns: int, sample_ns: int) -> None:
        if self._before_run is None:
            self.series.runs_a_sample = max(1, min(_MOST_RUNS, round(sample_ns / max(run_ns, 1))))

    def take(self) -> None:
        """Take one sample of each kind."""
        series = self.series
        if self._timer is not None and series.gpu_ns is not None:
            if statistics.median_low(series.warmups_ns[-_WINDOW:]) >= TOGETHER_NS:
                enqueue, completion, gpu = self._run_between_events(self._timer)
                series.gpu_ns.append(gpu)
                series.enqueue_ns.append(enqueue)
                series.completion_ns.append(completion)
                return
            series.gpu_ns.append(
                statistics.median_low(
                    self._run_between_events(self._timer)[2] for _ in range(series.runs_a_sample)
                )
            )
        enqueue, completion = self._host_sample()
        series.enqueue_ns.append(enqueue)
        series.completion_ns.append(completion)

    def _host_sample(self) -> tuple[int, int]:
        runs = [self._run() for _ in range(self.series.runs_a_sample)]
        enqueue, completion = (statistics.median_low(column) for column in zip(*runs, strict=True))
        return enqueue, completion

    def _run(self) -> tuple[int, int]:
        action, now = self._action, time.perf_counter_ns
        if self._before_run is not None:
            self._before_run()
        start = now()
        action.enqueue()
        enqueued = now()
        action.wait()
        return enqueued - start, now() - start

    def _run_between_events(self, timer: Timer) -> tuple[int, int, int]:
        action, now = self._action, time.perf_counter_ns
        if self._before_run is not None:
            self._before_run()
        timer.start(action.stream)
        start = now()
        action.enqueue()
        enqueued = now()
        timer.stop(action.stream)
        action.wait()
        done = now()
        return enqueued - start, done - start, timer.elapsed_ns()


def settled(samples: Sequence[int]) -> bool:
    """Whether the medians of the last two windows of three samples agree within 2 %."""
    if len(samples) < 2 * _WINDOW:
        return False
    former = statistics.median(samples[-2 * _WINDOW : -_WINDOW])
    latter = statistics.median(samples[-_WINDOW:])
    return abs(latter - former) <= _SETTLED_WITHIN * former


def run_rounds(
    take: Sequence[Callable[[], None]],
    orders: Sequence[Sequence[int]],
    check: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Run rounds, each of them forwards and backwards; yield how many are whole.

    Parameters
    ----------
    take : sequence of callable
        Takes a sample of each arm.
    orders : sequence of sequence of int
        For each round, the arms of its first half.
    check : callable, optional
        Called before each sample; may raise to end it all.
    """
    with _no_collection():
        whole = ((*order, *reversed(order)) for order in orders)
        yield from take_in_turn(dict(enumerate(take)), whole, check)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python's garbage collector out of the samples."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
