"""What was checked once and can be run many times."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.copies.from_arrays import read_mapping
from numba_swap.device.devices import Devices
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.errors import BadPlanError
from numba_swap.swap.plans.blueprint import Blueprint
from numba_swap.swap.plans.captured import rewrite_captured
from numba_swap.swap.plans.prepared.runs import PreparedRun, prepared_from
from numba_swap.swap.running.context import RunOptions, launching
from numba_swap.swap.running.execute import execute
from numba_swap.swap.running.select import Selection, advise, choose, decision_key, estimate_modes
from numba_swap.swap.running.transfer import After, Transfer, transfers_of, wait_early

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
        after: After = None,
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
        after : Transfer or iterable of Transfer, optional
            What the copies are to come after, in whatever streams that is: `stream` waits for it,
            the host does not.

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
        if after is not None:
            after = wait_early(after, stream_handle(stream))
        last = self.last
        if (
            last is not None
            and not after
            and last.holds(stream_handle(stream), mode, max_blocks, policy)
        ):
            transfer = last.again(self._held(), stream)
            if transfer is not None:
                return transfer
        options = RunOptions(stream, mode, max_blocks, policy)
        with self._launching(options) as launch:
            for transfer in transfers_of(after):
                transfer.wait_on(launch.stream)
            selection = self.select(launch, mode)
            transfer = execute(selection, launch, self._ends, (self._held(), stream))
            if launch.conditions.capturing:
                self._note_capture(selection)
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

    def _note_capture(self, selection: Selection) -> None:
        """Remember what was captured into a graph."""

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

    def __init__(
        self, devices: Devices, copies: Copies, made_from: Blueprint | None = None
    ) -> None:
        super().__init__(devices, (copies.ends,), copies.direction, copies.nbytes)
        self.copies = copies
        self._made_from = made_from
        self._captured: list[Selection] = []

    def __len__(self) -> int:
        """Return the number of copies after merging neighbours."""
        return len(self.copies)

    def __repr__(self) -> str:
        return f"<CopyPlan: {len(self)} copies, {self.nbytes} bytes, {self.copies.direction}>"

    def rebind(self, src: Any, dst: Any) -> CopyPlan:
        """Plan the same rows for other arrays of the same shapes.

        Parameters
        ----------
        src, dst : array, or sequence of arrays
            As for `numba_swap.plan_blocks`; their strides may differ from those of the plan.

        Returns
        -------
        CopyPlan
            A new plan; this one stays as it is.

        Raises
        ------
        BadPlanError
            Other shapes or element sizes; a plan that was not made by `plan_blocks`; and as for
            that.
        UnsupportedArrayError
            An argument that is no array.

        Examples
        --------
        >>> import numba_swap as ns
        >>> with ns.simulate() as gpu:
        ...     host, device = gpu.pinned_array((8, 64)), gpu.device_array((4, 64))
        ...     plan = ns.plan_blocks(host, device, [[3, 0], [5, 1]])
        ...     plan.rebind(gpu.pinned_array((8, 64)), device).run().wait()
        ...     plan.reversed().run().wait()
        """
        made = self._blueprint("rebind")
        axis = made.layers[0].src.axis if made.layers else 0
        return self._remade(made.rebound(src, dst, axis))

    def reversed(self) -> CopyPlan:
        """Plan the way back: from `dst` to `src`, block for block.

        Returns
        -------
        CopyPlan
            A new plan; this one stays as it is.

        Raises
        ------
        BadPlanError
            A source block that several rows read, which would be written several times; a source
            that is read-only; a plan that was not made by `plan_blocks`.
        """
        return self._remade(self._blueprint("reversed").reversed(), back=True)

    def _remade(self, made: Blueprint, *, back: bool = False) -> CopyPlan:
        assert self._made_from is not None
        rows = self._made_from.rows_of(self.copies)
        made, copies = made.plan(np.ascontiguousarray(rows[:, ::-1]) if back else rows)
        return CopyPlan(self._devices, copies, made)

    def update(self, block_mapping: Any, *, stream: Any = None) -> None:
        """Let the plan copy other blocks, at its next runs and in graphs that captured it.

        Parameters
        ----------
        block_mapping : array_like of int, shape (n, 2)
            As for `numba_swap.plan_blocks`, of at most as many rows as the plan was made for.
        stream : stream, int or None, optional
            In which the change takes its turn, for captured graphs: replays that were launched
            there before copy the former blocks, those launched later the new ones. A graph must be
            replayed in this stream, or what orders it with this stream is up to you. Runs of the
            plan that are in flight keep their blocks in any case.

        Raises
        ------
        BadPlanError
            More rows than planned, and as for `plan_blocks`; or a graph captured a run of the plan
            in a form that is fixed: in another mode than the kernel, whose table of addresses is
            read at every replay, with neighbours merged (plan with ``updatable=True``), or there
            are no rows left. Nothing was changed.
        CapturedTransferError
            The stream is being captured.
        DriverCallError
            If the driver refuses to copy the table of a graph; the plan itself is as it was.
        """
        made = self._blueprint("update")
        mapping = read_mapping(block_mapping)
        if len(mapping) > made.rows:
            raise BadPlanError(
                f"block_mapping has {len(mapping)} rows, and the plan was made for {made.rows}: "
                "make another plan"
            )
        renewed, copies = made.plan(mapping)
        if self._captured:
            options = RunOptions(stream)
            with launching(self._devices, self._device, self._direction, options) as launch:
                rewrite_captured(self._captured, copies, launch)
        self._made_from = renewed._replace(rows=made.rows)
        self.copies, self.nbytes, self._ends = copies, copies.nbytes, (copies.ends,)
        self.last = self._selected = None

    def _blueprint(self, what: str) -> Blueprint:
        if self._made_from is None:
            raise BadPlanError(f"{what} is for plans that plan_blocks made: make another plan")
        return self._made_from

    def _note_capture(self, selection: Selection) -> None:
        if self._made_from is not None:
            self._captured.append(selection)

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
