"""A run: every cell built, verified, warmed up and measured, and what came of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from numba_swap.errors import BadArgumentError, ModeUnavailableError
from numba_swap.tools.bench.ab.arms.actions import Setup
from numba_swap.tools.bench.ab.gpu.memory import CheckedMemory
from numba_swap.tools.bench.ab.measure.contenders import Contender
from numba_swap.tools.bench.ab.measure.interrupt import deferred_interrupts
from numba_swap.tools.bench.ab.measure.order import round_orders
from numba_swap.tools.bench.ab.measure.sampling import TOGETHER_NS, Method, run_rounds
from numba_swap.tools.bench.ab.results.results import CellResult, Result
from numba_swap.tools.bench.ab.spec.arms import Arm
from numba_swap.tools.bench.ab.spec.cases import Case, random_mapping
from numba_swap.tools.bench.ab.spec.errors import ArmUnavailableError
from numba_swap.tools.bench.ab.spec.grids import Cell
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.machine import describe_machine, read_clocks
from numba_swap.tools.bench.memory import Mapping

_PACKAGES = ("scipy", "cuda-core", "torch", "cupy-cuda12x", "cupy-cuda13x")
_CLOCKS_EVERY_S = 20.0
_CLOCKS_WITHIN = 0.02
_CLOCK_WARM_UP_S = 0.5
_MOST_CLOCK_WARM_UP_S = 5.0

Report = Callable[[float, str], None]


class Bench:
    """Measures cells one after the other on one GPU.

    Parameters
    ----------
    gpu : BenchGPU
        Where.
    cells : sequence of Cell
        What, in an order in which counts rise, so that slow arms are found at small counts.
    method : Method
        How.
    mapping : ndarray of int64, shape (n, 2), optional
        The blocks, instead of random ones.
    skip : bool
        Record an arm that cannot run a case, or would take too long, as skipped, instead of
        raising. The first arm that is not skipped is then the baseline of its cell.
    most_s : float, optional
        Cells that would start later than this are recorded as skipped.
    report : callable, optional
        Called with the cells done, a fraction included, and a line about what is done now.

    Attributes
    ----------
    result : Result or None
        What was measured so far, also after an error.
    """

    def __init__(
        self,
        gpu: BenchGPU,
        cells: Sequence[Cell],
        method: Method,
        *,
        mapping: Mapping | None = None,
        skip: bool = False,
        most_s: float | None = None,
        report: Report = lambda done, what: None,
    ) -> None:
        if not cells:
            raise BadArgumentError("no case is left to measure")
        self._gpu = gpu
        self._cells = cells
        self._method = method
        self._mapping = mapping
        self._skip = skip
        self._most_s = most_s
        self._report = report
        self.result: Result | None = None
        self._start = time.monotonic()
        # What was too slow, but for the count, and with how few blocks.
        self._too_slow: dict[tuple[Any, ...], int] = {}
        self._clocks: list[dict[str, Any]] = []
        self._clocks_due_s = 0.0
        self._clocks_settled = gpu.simulated

    def run(self, arguments: Sequence[str] = ()) -> Result:
        """Measure everything; Ctrl-C ends it early and keeps what there is.

        Parameters
        ----------
        arguments : sequence of str
            To be kept in the result.

        Returns
        -------
        Result
            With `complete` false after Ctrl-C.

        Raises
        ------
        WrongBytesError
            If a mode of this package copies wrongly.
        ArmUnavailableError, ModeUnavailableError
            If an arm cannot run a case, and such are not to be skipped; a peer that fails or
            copies wrongly counts as one that cannot.
        KeyboardInterrupt
            If Ctrl-C came before one round was whole.
        """
        machine = describe_machine()
        machine["versions"] = {**machine["versions"], **_more_versions()}
        memory = CheckedMemory(self._gpu, [cell.case for cell in self._cells])
        self.result = result = Result(
            simulated=self._gpu.simulated,
            complete=False,
            arguments=list(arguments),
            machine=machine,
            clocks=self._clocks,
            method={**asdict(self._method), "flush_bytes": memory.flush_bytes},
            cells=[],
        )
        try:
            with deferred_interrupts() as self._check_interrupt:
                for done, cell in enumerate(self._cells):
                    if self._most_s is not None and time.monotonic() - self._start > self._most_s:
                        reason = f"the {self._most_s:g} s of the run were over"
                        result.skipped.append({"case": cell.case, "reason": reason})
                        continue
                    self._measure(memory, cell, done, result)
            result.complete = True
        except KeyboardInterrupt:
            if not result.cells:
                raise
        self._note_clocks()
        return result

    def _measure(self, memory: CheckedMemory, cell: Cell, done: int, result: Result) -> None:
        case = cell.case
        self._report(done, f"{case}: checking bytes")
        memory.prepare(case)
        skipped: list[dict[str, str]] = []
        with contextlib.ExitStack() as stack:
            contenders = self._verified_contenders(memory, cell, skipped, stack)
            if not contenders:
                reasons = "; ".join(f"{skip['arm']}: {skip['reason']}" for skip in skipped)
                result.skipped.append({"case": case, "reason": reasons})
                return
            self._settle_clocks(contenders[0])
            for contender in contenders:
                self._check_interrupt()
                self._report(done, f"{case}: warming up {contender.arm}")
                contender.warm_up(self._method.sample_ns)
            if time.monotonic() - self._start >= self._clocks_due_s:
                self._note_clocks()
            orders = round_orders(len(contenders), self._method.rounds, self._method.seed)
            whole = 0
            try:
                takers = [contender.take for contender in contenders]
                for whole in run_rounds(takers, orders, self._check_interrupt):
                    self._report(done + whole / (len(orders) + 1), f"{case}: round {whole}")
            finally:  # Ctrl-C keeps the rounds that are whole
                if whole:
                    arms = [c.result(number == 1, whole) for number, c in enumerate(contenders)]
                    result.cells.append(CellResult(case, arms, orders[:whole], skipped))

    def _verified_contenders(
        self,
        memory: CheckedMemory,
        cell: Cell,
        skipped: list[dict[str, str]],
        stack: contextlib.ExitStack,
    ) -> list[Contender]:
        """Make the arms of a cell, each verified; the first that can run is there twice."""
        mapping = random_mapping(cell.case) if self._mapping is None else self._mapping
        contenders: list[Contender] = []
        for arm in cell.arms:
            try:
                # The baseline and its control come both or not at all.
                contenders += [
                    self._verified(memory, cell.case, arm, mapping, stack)
                    for _ in range(1 if contenders else 2)
                ]
            except (ArmUnavailableError, ModeUnavailableError) as error:
                if not self._skip:
                    raise
                skipped.append({"arm": str(arm), "reason": str(error)})
        return contenders

    def _verified(
        self,
        memory: CheckedMemory,
        case: Case,
        arm: Arm,
        mapping: Mapping,
        stack: contextlib.ExitStack,
    ) -> Contender:
        self._check_interrupt()
        key = arm, case.direction, case.block_bytes, case.memory, case.cache
        too_many = self._too_slow.get(key)
        if too_many is not None and case.count >= too_many:
            raise ArmUnavailableError(f"it was too slow already with {too_many} blocks")
        try:
            setup = Setup(self._gpu, case, *memory.arrays(), mapping)
            contender = Contender(arm, setup, memory.flush if case.cache == "cold" else None, stack)
            memory.clear()
            contender.run_once()  # this run may compile, so it says nothing about speed
            memory.check(contender.mapping, str(arm))
            run_ns = contender.run_once()
        except Exception as error:
            if arm.is_own or isinstance(error, ArmUnavailableError):
                raise
            raise ArmUnavailableError(f"{arm} failed: {type(error).__name__}: {error}") from error
        runs = 2 * self._method.rounds
        if self._gpu.timer is not None and run_ns < TOGETHER_NS:
            runs *= 2
        if runs * run_ns > self._method.most_arm_ns:
            self._too_slow[key] = case.count
            raise ArmUnavailableError(
                f"{arm}: one run takes {run_ns / 1e6:.0f} ms, {runs} of them more than the "
                f"{self._method.most_arm_ns / 1e9:g} s that an arm may take in one case"
            )
        return contender

    def _settle_clocks(self, contender: Contender) -> None:
        """Keep the GPU busy, once in a run, until its clocks stay where they are."""
        if self._clocks_settled:
            return
        self._clocks_settled = True
        start = time.monotonic()
        former = self._note_clocks()
        while time.monotonic() - start < _MOST_CLOCK_WARM_UP_S:
            until = time.monotonic() + _CLOCK_WARM_UP_S
            while time.monotonic() < until:
                contender.run_once()
            now = self._note_clocks()
            if former is None or now is None or abs(now - former) <= _CLOCKS_WITHIN * former:
                return
            former = now

    def _note_clocks(self) -> float | None:
        """Record the clocks if they can be read; return that of the multiprocessors in MHz."""
        if self._gpu.simulated:
            return None
        elapsed_s = time.monotonic() - self._start
        self._clocks_due_s = elapsed_s + _CLOCKS_EVERY_S
        clocks = read_clocks()
        if clocks is None:
            return None
        self._clocks.append({"at_s": round(elapsed_s, 1), **clocks})
        return clocks["sm_mhz"]


def _more_versions() -> dict[str, str]:
    """Versions of what the peers and the statistics need, where it is installed."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
