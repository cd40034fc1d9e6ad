"""What was checked once and can be run many times."""

from __future__ import annotations

import logging
from typing import Any

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.device.devices import Devices
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.swap.context import RunOptions, launching
from numba_swap.swap.execute import execute
from numba_swap.swap.prepared.runs import PreparedRun, prepared_from
from numba_swap.swap.select import Selection, advise, choose, decision_key, estimate_modes
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")


class Plan:
    """Copies that were checked once and can be run many times.

    A plan keeps the arrays alive; their contents are read and written when it runs. It may be run
    from several threads, and again before an earlier run is over if the streams order the two.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies.
    last : PreparedRun or None
        How it ran last, if that was one kernel launch, or one loop over boxes: most plans run in
        one way only.
    """

    def __init__(
        self, devices: Devices, ends: tuple[Ends, ...], direction: Direction, nbytes: int
    ) -> None:
        self.nbytes = nbytes
        self._devices = devices
        self._ends = ends
        self._direction = direction
        gpus = tuple(dict.fromkeys(device for some in ends for device in some.devices))
        self._device, self._others = (gpus[0] if gpus else None), gpus[1:]
        self.last: PreparedRun | None = None
        self._selected: tuple[tuple[object, ...], Selection] | None = None

    def run(
        self,
        stream: Any = None,
        mode: Mode | str | None = None,
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Transfer:
        """Enqueue the copies and return at once.

        Parameters
        ----------
        stream : Numba stream, object with ``__cuda_stream__``, int or None
            Where the copies are enqueued, after the work already there and before what follows.
            None is Numba's default stream, of every GPU whose memory takes part.
        mode : {"auto", "batch", "loop", "kernel", "staged"} or Mode, optional
            How to copy, as for `numba_swap.swap_blocks`.
        policy : {"throughput", "overlap", "latency"} or Policy, optional
            What the choice is to be good for (see `Policy`); by default what `override` or
            the environment says, else ``"throughput"``.
        max_blocks : int, optional
            The most thread blocks that a kernel may have, to leave room for other kernels.

        Returns
        -------
        Transfer
            What to wait on.

        Raises
        ------
        ModeUnavailableError
            If a forced mode cannot run these copies.
        DriverCallError
            If the driver refuses; it names the copy at fault and says what was submitted. Where
            the copies run in several steps, it says how many were submitted, and what else it
            says holds for its own step.
        """
        last = self.last
        if last is not None and last.holds(stream_handle(stream), mode, max_blocks, policy):
            transfer = last.again(self._held(), stream)
            if transfer is not None:
                return transfer
        options = RunOptions(stream, mode, max_blocks, policy)
        with self._launching(options) as launch:
            selection = self.select(launch, mode)
            transfer = execute(selection, launch, self._ends, (self._held(), stream))
            # Without memory of a GPU, a default stream is that of whatever context is current.
            fixed = self._device is not None or not launch.driver.is_default_stream(launch.stream)
            fixed = fixed and not launch.others
            if fixed and not any(some.producer_streams for some in self._ends):
                self.last = prepared_from(options, launch, selection) or self.last
        return transfer

    def explain(
        self,
        stream: Any = None,
        mode: Mode | str | None = None,
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Decision:
        """Say which mode `run` would use with these arguments, and why; nothing is copied.

        Parameters
        ----------
        stream, mode, policy, max_blocks
            As for `run`.

        Returns
        -------
        Decision
            The mode and the reason; its parts, where several steps run. Its `Decision.table`
            shows every mode: whether it is allowed, and if not why, its predicted time, and which
            is chosen.

        Raises
        ------
        ModeUnavailableError
            If a forced mode cannot run these copies.
        """
        options = RunOptions(stream, mode, max_blocks, policy)
        with self._launching(options) as launch:
            return self._explain(launch, mode)

    def _launching(self, options: RunOptions) -> launching:
        return launching(self._devices, self._device, self._direction, options, self._others)

    def _held(self) -> object:
        """Return what must outlive a run."""
        return self

    def select(self, launch: LaunchContext, mode: Mode | str | None) -> Selection:
        """Choose how the copies run, and remember it: for `run`, and for measurements."""
        costs = find_costs(launch.device)
        key = decision_key(costs, launch, mode)
        kept = self._selected
        if kept is None or kept[0] != key:
            kept = self._selected = key, self._choose(launch, mode, costs)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", kept[1].decision)
        return kept[1]

    def forget(self) -> None:
        """Choose anew at the next run, for measurements."""
        self._selected = None

    def _choose(
        self, launch: LaunchContext, mode: Mode | str | None, costs: CostModel
    ) -> Selection:
        raise NotImplementedError

    def _explain(self, launch: LaunchContext, mode: Mode | str | None) -> Decision:
        return self.select(launch, mode).decision


class CopyPlan(Plan):
    """Copies of blocks that were checked once; made by `numba_swap.plan_blocks`.

    It keeps the arrays alive; their contents are read and written when it runs. It may be run
    from several threads, and again before an earlier run is over if the streams order the two.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies.
    copies : Copies
        The copies themselves, for tests and measurements; not for users.
    """

    def __init__(self, devices: Devices, copies: Copies) -> None:
        super().__init__(devices, (copies.ends,), copies.direction, copies.nbytes)
        self.copies = copies

    def __len__(self) -> int:
        """Return the number of copies after merging neighbours."""
        return len(self.copies)

    def __repr__(self) -> str:
        return f"<CopyPlan: {len(self)} copies, {self.nbytes} bytes, {self.copies.direction}>"

    def _held(self) -> object:
        return self.copies

    def forget(self) -> None:
        """Choose anew at the next run, for measurements."""
        super().forget()
        self.copies.memo.clear()

    def _choose(
        self, launch: LaunchContext, mode: Mode | str | None, costs: CostModel
    ) -> Selection:
        return choose(self.copies, launch, mode, costs)

    def _explain(self, launch: LaunchContext, mode: Mode | str | None) -> Decision:
        decision = self.select(launch, mode).decision
        if len(self.copies) == 0 or (self._others and self._direction is not Direction.P2P):
            return decision  # of each GPU's part, its own decision tells
        return decision._replace(
            estimates=estimate_modes(self.copies, launch),
            advice=advise(self.copies, launch, decision),
        )
