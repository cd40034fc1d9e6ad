"""An exchange that was checked once: pairs in one kernel, or both directions side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, cached_property, partial
from typing import NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies, Pairs
from numba_swap.copies.ends import Direction
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.device.devices import Devices
from numba_swap.device.tuning import Tuning
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.cost_model import CostModel
from numba_swap.dispatch.decision import Decision, format_us, join_decisions
from numba_swap.dispatch.ranking import predict_duplex, predict_pairs
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import Workload, workload_of
from numba_swap.modes.kernel import exchange as pair_mode
from numba_swap.swap.exchange.pairing import IN, OUT, SlotTable
from numba_swap.swap.exchange.pools import ExchangePools
from numba_swap.swap.exchange.runner import ScheduledExchange
from numba_swap.swap.plans.plan import Plan
from numba_swap.swap.running.select import Selection, select, steps_of
from numba_swap.swap.running.steps import Step


class ExchangePlan(Plan):
    """An exchange that was checked once and can be run many times; made by `plan_exchange`.

    It keeps the arrays alive; their contents are read and written when it runs.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies over the link, in both directions.
    copies : tuple of Copies
        What goes out and what comes in, for tests and measurements; not for users.
    """

    def __init__(
        self,
        devices: Devices,
        pools: ExchangePools,
        rows: tuple[Integers, Integers],
        tuning: Tuning,
    ) -> None:
        planned = pools.plan(*rows, tuning)
        self.copies = out, into = planned.out, planned.into
        super().__init__(devices, (into.ends, out.ends), Direction.MIXED, out.nbytes + into.nbytes)
        self._pools = pools
        self._rows = rows
        self._paired = planned.shared
        self._tuning = tuning
        # Made when it is first wanted: rows that go together as they stand need none.
        self._table: Callable[[], SlotTable] = cache(partial(SlotTable, *rows, *pools.blocks))

    def __len__(self) -> int:
        """Return the number of contiguous runs, or of boxes, that are copied over the link."""
        return sum(map(len, self.copies))

    def __repr__(self) -> str:
        out, into = self.copies
        return f"<ExchangePlan: {out.nbytes} bytes out, {into.nbytes} bytes in>"

    def _choose(
        self, launch: LaunchContext, mode: Mode | str | None, costs: CostModel
    ) -> Selection:
        both, several = all(map(len, self.copies)), len(self._others) > 0
        if several:
            launch = _with_streams(launch)
        conditions = launch.conditions
        beside = launch.under(duplex=both and conditions.may_use_private_streams)
        decisions = [select(copies, beside, mode).decision for copies in self._scheduled.merged]
        apart = join_decisions(
            max(decisions, key=lambda decision: decision.nbytes),
            decisions,
            at_once=conditions.may_use_private_streams,
        )
        duplex, scheduled = beside.conditions.duplex, self._scheduled
        kernels = Mode.KERNEL in apart.modes

        def steps(launch: LaunchContext) -> Iterable[Step]:
            # (Not a method of this plan, which would keep itself alive.)
            launch = _with_streams(launch) if several else launch
            made = scheduled.steps(launch.under(duplex=duplex), mode)
            # Copy engines need no memory, and work already while later pieces are planned.
            return list(made) if kernels or scheduled.schedule.staged is not None else made

        side_by_side = Selection(apart, steps, forked=conditions.may_use_private_streams)
        engines = apart.forced and apart.mode is not Mode.KERNEL
        if not both or engines or not self._pools.same_runs:  # nor are boxes made in pairs
            return side_by_side
        workloads = workload_of(self.copies[0]), workload_of(self.copies[1])
        apart_us = predict_duplex(costs.tuning, _time(apart), conditions, staged=self.staged)
        if not (apart.forced or predict_pairs(costs, workloads, conditions) <= apart_us):
            return side_by_side  # without looking for pairs
        pairs = self._pairs
        if pairs is None or pair_mode.why_not(pairs.pairs, conditions):
            return side_by_side
        obstacle = pair_mode.load(launch.device)
        obstacle = obstacle or pair_mode.room(pairs.pairs, launch.device)
        if obstacle is not None:
            reason = f"{apart.reason}; not in pairs: {obstacle}"
            return side_by_side._replace(decision=apart._replace(note=reason))
        selection = _select_pairs(pairs, apart, apart_us, launch, mode)
        if apart.forced or _time(selection.decision) <= apart_us:
            return selection
        return side_by_side

    @property
    def staged(self) -> bool:
        """Whether each direction overwrites what the other reads."""
        if self._pools.may_alias:
            return True
        if self._paired is not None:
            return all(self._paired)
        table: SlotTable = self._table()
        return table.over_slots and table.over_blocks

    @cached_property
    def _scheduled(self) -> ScheduledExchange:
        return ScheduledExchange(self._pools, self.copies, self._table, self._tuning)

    @cached_property
    def _pairs(self) -> PairedRows | None:
        """The rows in pairs, and those that are left over; None if they cannot be paired."""
        pools, (out, into) = self._pools, self.copies
        if self._paired is not None:
            return PairedRows(Pairs(out, into))
        if pools.may_alias or not pools.same_runs:
            return None
        pairing = self._table().pairing
        if pairing is None:
            return None
        out_count, in_count = map(len, self._rows)
        going = np.flatnonzero(pairing.partner >= 0)
        left = np.flatnonzero(pairing.partner < 0)
        rest: tuple[Copies, ...] = ()
        if len(left):
            rest = (out.select(pools.copies_of(left, out_count, OUT)),)
        elif len(pairing.unpaired):
            rest = (into.select(pools.copies_of(pairing.unpaired, in_count, IN)),)
        partners = pools.copies_of(pairing.partner[going], in_count, IN, as_out=True)
        if len(left):
            out = out.select(pools.copies_of(going, out_count, OUT))
        if not pools.same_order or not np.array_equal(partners, np.arange(len(into))):
            into = into.select(partners)
        return PairedRows(Pairs(out, into), rest)


def _with_streams(launch: LaunchContext) -> LaunchContext:
    """Let parts run in private streams: those of several GPUs do not stand in one."""
    haste = launch.conditions.policy is Policy.LATENCY
    return launch.under(
        beside=True, policy=Policy.THROUGHPUT if haste else launch.conditions.policy
    )


class PairedRows(NamedTuple):
    """An exchange as pairs, and what goes out or comes in without a partner."""

    pairs: Pairs
    rest: tuple[Copies, ...] = ()


def _select_pairs(
    paired: PairedRows,
    apart: Decision,
    apart_us: float,
    launch: LaunchContext,
    mode: Mode | str | None,
) -> Selection:
    """Return the choice of pairs, and of what is left of the rows after them."""
    pairs = paired.pairs
    workloads = workload_of(pairs.out), workload_of(pairs.into)
    decision = decide_pairs(workloads, apart, apart_us, launch)
    rest = [select(copies, launch, mode) for copies in paired.rest]
    return Selection(
        join_decisions(decision, [decision, *(some.decision for some in rest)], at_once=False),
        (Step(pairs, Mode.KERNEL), *(step for some in rest for step in steps_of(some))),
    )


def decide_pairs(
    workloads: tuple[Workload, Workload], apart: Decision, apart_us: float, launch: LaunchContext
) -> Decision:
    """Return the decision for pairs of copies in one kernel, instead of both side by side."""
    predicted_us = predict_pairs(find_costs(launch.device), workloads, launch.conditions)
    words = f"pair by pair in one kernel {format_us(predicted_us)}"
    if apart.forced:
        note = f"forced by {apart.forced_by}; {words}"
    else:
        modes = " and ".join(apart.modes)
        note = f"predicted: {words}, side by side ({modes}) {format_us(apart_us)}"
    return apart._replace(
        mode=Mode.KERNEL,
        direction=Direction.MIXED,
        copies=sum(workload.copies for workload in workloads),
        nbytes=sum(workload.nbytes for workload in workloads),
        ranked=((predicted_us, Mode.KERNEL),),
        rejected={},
        parts=(),
        note=note,
    )


def _time(decision: Decision) -> float:
    predicted_us = decision.predicted_us
    return math.inf if predicted_us is None else predicted_us
