"""The arms that are modes of this package."""

from __future__ import annotations

from typing import Any

from numba_swap.swap.running.transfer import Transfer
from numba_swap.swap.verbs import plan_blocks, swap_blocks
from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.spec.arms import Arm


class PlanRun:
    """One plan, made before the clock starts, run again and again."""

    def __init__(self, setup: Setup, arm: Arm) -> None:
        self.stream = setup.gpu.stream
        self.mapping = setup.mapping
        self._plan = plan_blocks(setup.source, setup.destination, setup.mapping)
        self._mode = arm.name
        self._options = arm.values("run")
        decision = self._plan.explain(self.stream, self._mode, **self._options)
        self.mode, self.reason = str(decision.mode), decision.reason
        self._transfer: Transfer | None = None

    def enqueue(self) -> None:
        """Run the plan."""
        self._transfer = self._plan.run(self.stream, self._mode, **self._options)

    def wait(self) -> None:
        """Wait for the transfer."""
        if self._transfer is not None:
            self._transfer.wait()


class FreshSwap(PlanRun):
    """`swap_blocks` as a whole: the checks of the arguments are timed, too.

    The mapping is the same in each run. Nothing in the package remembers mappings, but the
    processor's caches do.
    """

    def __init__(self, setup: Setup, arm: Arm) -> None:
        super().__init__(setup, arm)
        del self._plan  # what it holds is free for the swaps
        self._arrays: tuple[Any, Any] = setup.source, setup.destination
        self._keywords = {"stream": self.stream, "mode": arm.name, **self._options}

    def enqueue(self) -> None:
        """Plan and run."""
        self._transfer = swap_blocks(*self._arrays, self.mapping, **self._keywords)
