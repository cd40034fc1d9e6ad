"""One arm in one cell: its action, its sampler, and the settings in force while it runs."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable
from typing import Any

from numba_swap.dispatch.settings import override
from numba_swap.tools.bench.ab.arms.actions import Action, Planted, Setup
from numba_swap.tools.bench.ab.arms.own import FreshSwap, PlanRun
from numba_swap.tools.bench.ab.arms.peers import make_peer
from numba_swap.tools.bench.ab.measure.sampling import Sampler
from numba_swap.tools.bench.ab.results.results import ArmResult
from numba_swap.tools.bench.ab.spec.arms import Arm


class Contender:
    """An arm made ready for a case.

    Parameters
    ----------
    arm : Arm
        What runs.
    setup : Setup
        For what.
    before_run : callable or None
        What to do before each timed run.
    stack : ExitStack
        Closes what stays open as long as the arm runs.

    Attributes
    ----------
    arm : Arm
        What runs.
    mapping : ndarray of int64, shape (n, 2)
        The blocks that it moves.

    Raises
    ------
    ArmUnavailableError, ModeUnavailableError
        If it cannot run here.
    """

    def __init__(
        self,
        arm: Arm,
        setup: Setup,
        before_run: Callable[[], None] | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self.arm = arm
        # Entered once: a new override for each run would cost time, and be another one each time.
        self._context = contextvars.copy_context()
        inner = contextlib.ExitStack()
        stack.callback(self._context.run, inner.close)
        settings = {"mode": "auto", **arm.values("override")}
        self._context.run(lambda: inner.enter_context(override(**settings)))
        self._action: Action = self._run(_make_action, arm, setup)
        self.mapping = self._action.mapping
        self._planted: Planted | None = None
        fraction = arm.values("timing").get("plant")
        if fraction is not None:
            self._action = self._planted = Planted(self._action, fraction)
        self._sampler = Sampler(self._action, setup.gpu.timer, before_run)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._context.run(function, *arguments)

    def run_once(self) -> int:
        """Run from call to completion; return how long it took, in nanoseconds."""

        def once() -> None:
            self._action.enqueue()
            self._action.wait()

        start = time.perf_counter_ns()
        self._run(once)
        return time.perf_counter_ns() - start

    def warm_up(self, sample_ns: int) -> None:
        """Run until the times have settled; then plant what is to be planted."""
        median_ns = self._run(self._sampler.warm_up, sample_ns)
        if self._planted is not None:
            self._planted.plant(median_ns)

    def take(self) -> None:
        """Take one sample of each kind."""
        self._run(self._sampler.take)

    def result(self, control: bool, rounds: int) -> ArmResult:
        """Return what was measured in the first so many rounds."""
        series = self._sampler.series
        series.keep_rounds(rounds)
        return ArmResult(
            arm=str(self.arm),
            control=control,
            mode=self._action.mode,
            reason=self._action.reason,
            planted_ns=0 if self._planted is None else self._planted.spin_ns,
            **vars(series),
        )


def _make_action(arm: Arm, setup: Setup) -> Action:
    if not arm.is_own:
        return make_peer(arm.name, setup)
    if "fresh" in arm.values("timing"):
        return FreshSwap(setup, arm)
    return PlanRun(setup, arm)
