"""Blocks out and other blocks in, in one call: `exchange`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from numba_swap.copies.copies import Copies, Direction
from numba_swap.copies.from_arrays import read_mapping
from numba_swap.copies.pairs import Pairs
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch import partition
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.cost_model import load_of
from numba_swap.dispatch.partition import Rows
from numba_swap.dispatch.ranking import Decision, Situation, in_words, predict_apart, predict_pairs
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.driver.current import current_driver
from numba_swap.errors import DriverCallError
from numba_swap.modes.kernel import exchange as paired
from numba_swap.swap import select
from numba_swap.swap.exchange.pairing import pair_rows, paired_as_they_stand
from numba_swap.swap.exchange.pools import PoolPair
from numba_swap.swap.exchange.schedule import Planned, SideBySide
from numba_swap.swap.exchange.staging import Staged, conflicts, side_by_side
from numba_swap.swap.select import How
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")
_T = TypeVar("_T")


def exchange(
    device: Any,
    host: Any,
    page_out: Any,
    page_in: Any,
    *,
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
) -> Transfer:
    """Copy blocks out and other blocks in, in both directions of the link at once.

    ``host[j] = device[i]`` for every row ``[i, j]`` of `page_out`, and ``device[j] = host[i]`` for
    every row ``[i, j]`` of `page_in`, as if every block were read before any is written.

    Parameters
    ----------
    device, host : array, or sequence of arrays
        The two pools of blocks, as for `numba_swap.plan_blocks`; they share no memory. Either may
        lie anywhere, but what this is for is a pool on the device and a larger one in pinned
        memory.
    page_out : array_like of int, shape (n, 2)
        Source block in `device` and destination block in `host` of each row.
    page_in : array_like of int, shape (m, 2)
        Source block in `host` and destination block in `device` of each row.
    block_axis, stream, mode, policy, max_blocks
        As for `numba_swap.swap_blocks`.

    Returns
    -------
    Transfer
        One for both directions.

    Raises
    ------
    BadPlanError
        As for `numba_swap.plan_blocks`; or the two pools share memory. Nothing was copied.
    NumbaSwapError
        As for `numba_swap.CopyPlan.run`. An error that comes after some steps says how many were
        submitted; what else it says of copies submitted holds for its own step.

    Notes
    -----
    A slot of `device` that is read and overwritten is no conflict, nor is a block of `host`.

    Where a kernel can reach both pools, and no row meets more than one row of the other direction
    (what comes into a slot may replace what goes out of it, and come from where that goes to), one
    kernel can make the copies pair by pair: every thread reads what goes out and what comes in
    before it writes either. This needs no memory and no other streams, and uses both directions of
    the link all the time. Rows without a counterpart follow in the same stream. It is done where it
    is predicted to be faster, which is so for blocks of up to about 64 KiB, and always in mode
    ``"kernel"``.

    Otherwise both directions run side by side, in private streams. If one of them overwrites what
    the other one reads, the other goes ahead, piece by piece. If each overwrites what the other
    reads, what comes into a slot that is still to be read is staged in device memory until what is
    in the slot has left: in two pieces of 64 MiB, or of one block if that is longer. Where rows
    depend on each other in a way that no order of pieces resolves (a block goes out to where a
    later one comes from), all that comes in is staged at once, which needs as much device memory,
    rounded up to a power of two. A plan keeps the memory for its later runs. In a stream that is
    being captured, and with policy ``"latency"``, the directions then run one after another.
    """
    plan = plan_exchange(device, host, page_out, page_in, block_axis=block_axis)
    return plan.run(stream, mode, policy=policy, max_blocks=max_blocks)


def plan_exchange(
    device: Any, host: Any, page_out: Any, page_in: Any, *, block_axis: int = 0
) -> ExchangePlan:
    """Check an exchange once, to run it many times.

    Parameters
    ----------
    device, host, page_out, page_in, block_axis
        As for `exchange`.

    Returns
    -------
    ExchangePlan
        Checked copies.

    Raises
    ------
    NumbaSwapError
        As for `exchange`.
    """
    driver = current_driver()
    driver.current_context()
    pools = PoolPair(driver, device, host, block_axis)
    # Copied, for they are read again when it is decided how to run.
    rows = read_mapping(page_out, "page_out").copy(), read_mapping(page_in, "page_in").copy()
    # In the order of the rows, so that what goes out and what comes in can be paired.
    out, into = pools.plan_out(rows[0]), pools.plan_in(rows[1])
    pools.check_apart(out, into)
    pools.check_layers(out, into)
    if not pools.layers:  # of no layers nothing is copied, whatever the rows
        rows = rows[0][:0], rows[1][:0]
    return ExchangePlan(Planned(pools, (out, into), rows))


class ExchangePlan:
    """An exchange that was checked once and can be run many times; made by `plan_exchange`.

    It keeps the arrays alive; their contents are read and written when it runs.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies over the link, in both directions.
    """

    def __init__(self, planned: Planned) -> None:
        self._planned = planned
        self._driver = planned.pools.driver
        self._copies = out, into = planned.copies
        self.nbytes = out.nbytes + into.nbytes
        self._decided: tuple[tuple[object, ...], tuple[Decision, _InPairs | None]] | None = None

    def __len__(self) -> int:
        """Return the number of contiguous runs that are copied over the link."""
        return len(self._copies[0]) + len(self._copies[1])

    def __repr__(self) -> str:
        return (
            f"<ExchangePlan: {self._copies[0].nbytes} bytes out, {self._copies[1].nbytes} bytes in>"
        )

    def run(
        self,
        stream: Any = None,
        mode: Mode | str = "auto",
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Transfer:
        """Enqueue the exchange and return at once.

        Parameters
        ----------
        stream, mode, policy, max_blocks
            As for `numba_swap.CopyPlan.run`.

        Returns
        -------
        Transfer
            One for both directions.

        Raises
        ------
        NumbaSwapError
            As for `numba_swap.CopyPlan.run`.
        """
        return self._in_context(How(stream, mode, max_blocks, policy), self._submit)

    def explain(
        self,
        stream: Any = None,
        mode: Mode | str = "auto",
        *,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> Decision:
        """Say how `run` would make the exchange with these arguments, and why; nothing is copied.

        Parameters
        ----------
        stream, mode, policy, max_blocks
            As for `run`.

        Returns
        -------
        Decision
            The mode and the reason; its parts, if directions run side by side or rows are left
            over.

        Raises
        ------
        ModeUnavailableError
            If a forced mode cannot run these copies.
        """
        return self._in_context(
            How(stream, mode, max_blocks, policy),
            lambda situation, how: self._decide(situation, how)[0],
        )

    def _in_context(self, how: How, action: Callable[[Situation, How], _T]) -> _T:
        out, into = self._copies
        gpu = out.device if into.device is None else into.device
        driver = self._driver
        return select.in_context(driver, gpu, Direction.MIXED, how, lambda here: action(here, how))

    def _submit(self, situation: Situation, how: How) -> Transfer:
        driver, pools = self._driver, self._planned.pools
        decision, in_pairs = self._decide(situation, how)
        if len(self) == 0:
            return Transfer(None, decision, False)
        for copies in self._copies:
            select.wait_for_producers(driver, copies, situation)

        def enqueue(work: InFlight) -> None:
            if in_pairs is None:
                duplex = all(map(len, self._copies)) and situation.may_fork
                self._side_by_side.submit(situation._replace(duplex=duplex), how, work)
                return
            paired.submit(driver, in_pairs.pairs, situation, work)
            for copies in in_pairs.alone:
                choice = select.decide(driver, copies, situation, how.mode)
                work.hold(copies)
                try:
                    select.submit(driver, copies, situation, choice, work)
                except DriverCallError as error:
                    raise error.in_part(1) from None  # the pairs were submitted

        holds = (pools.device, pools.host, how.stream, self)
        return select.track(driver, situation, decision, holds, enqueue)

    def _decide(self, situation: Situation, how: How) -> tuple[Decision, _InPairs | None]:
        """Choose between pairs in one kernel and both directions side by side; remember it."""
        _, grounds = select.grounds_of(self._driver, situation, how.mode)
        kept = self._decided
        if kept is None or kept[0] != grounds:
            kept = self._decided = grounds, self._choose(situation, how)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", kept[1][0])
        return kept[1]

    def _choose(self, situation: Situation, how: How) -> tuple[Decision, _InPairs | None]:
        driver, (out, into) = self._driver, self._copies
        both = bool(len(out) and len(into))
        beside = situation._replace(duplex=both and situation.may_fork)
        merged = self._planned.merged
        choices = [select.decide(driver, copies, beside, how.mode) for copies in merged]
        apart = _join_decisions([choice.decision for choice in choices], at_once=situation.may_fork)
        if not both or (apart.forced and apart.mode is not Mode.KERNEL):
            return apart, None
        apart_us = predict_apart(_time(apart), situation, staged=all(self._conflicts))
        costs = find_costs(driver, situation.device)
        pairs_us = predict_pairs(costs, map(load_of, self._copies), situation)
        if not (apart.forced or pairs_us <= apart_us):
            return apart, None  # without looking for pairs
        in_pairs = self._in_pairs
        if in_pairs is None or paired.why_not(driver, in_pairs.pairs, situation) is not None:
            return apart, None
        decision = self._decide_pairs(in_pairs, apart, apart_us, situation, how)
        if apart.forced or _time(decision) <= apart_us:
            return decision, in_pairs
        return apart, None

    def _decide_pairs(
        self,
        in_pairs: _InPairs,
        apart: Decision,
        apart_us: float,
        situation: Situation,
        how: How,
    ) -> Decision:
        """Return the decision for pairs, and what is left of the rows after them."""
        driver, pairs = self._driver, in_pairs.pairs
        loads = load_of(pairs.out), load_of(pairs.into)
        predicted_us = predict_pairs(find_costs(driver, situation.device), loads, situation)
        words = f"pair by pair in one kernel {in_words(predicted_us)}"
        if apart.forced:
            note = f"forced by {apart.forced_by}; {words}"
        else:
            modes = " and ".join(apart.modes)
            note = f"predicted: {words}, side by side ({modes}) {in_words(apart_us)}"
        decision = apart._replace(
            mode=Mode.KERNEL,
            direction=Direction.MIXED,
            copies=2 * len(pairs),
            nbytes=pairs.nbytes,
            ranked=((predicted_us, Mode.KERNEL),),
            rejected={},
            parts=(),
            note=note,
        )
        rest = [select.decide(driver, some, situation, how.mode) for some in in_pairs.alone]
        decisions = [decision, *(choice.decision for choice in rest)]
        return _join_decisions(decisions, at_once=False)

    @cached_property
    def _in_pairs(self) -> _InPairs | None:
        """The rows in pairs, and those that are left over; None if they cannot be paired."""
        pools, (out_rows, in_rows) = self._planned.pools, self._planned.rows
        if pools.tangled or not pools.same_runs:
            return None
        arguments = out_rows, in_rows, *pools.blocks
        if pools.same_order and paired_as_they_stand(*arguments):
            return _InPairs(Pairs(*self._copies), ())
        pairing = pair_rows(*arguments)
        if pairing is None:
            return None
        out, into = self._copies

        def take(copies: Copies, chosen: Rows, count: int) -> Copies:
            return partition.take(copies, pools.runs_of(chosen, count))

        alone: tuple[Copies, ...] = ()
        going = np.flatnonzero(pairing.partner >= 0)
        if len(going) < len(out_rows):
            left = np.flatnonzero(pairing.partner < 0)
            alone = (take(out, left, len(out_rows)),)
            out = take(out, going, len(out_rows))
        elif len(pairing.alone):
            alone = (take(into, pairing.alone, len(in_rows)),)
        coming = pools.runs_of(pairing.partner[going], len(in_rows), as_out=True)
        into = partition.take(into, coming)
        return _InPairs(Pairs(out, into), alone)

    @cached_property
    def _side_by_side(self) -> SideBySide | Staged:
        return side_by_side(self._planned, self._conflicts)

    @cached_property
    def _conflicts(self) -> tuple[bool, bool]:
        return conflicts(self._planned)


class _InPairs(NamedTuple):
    """An exchange as pairs, and what goes out or comes in without a partner."""

    pairs: Pairs
    alone: tuple[Copies, ...]


def _time(decision: Decision) -> float:
    predicted_us = decision.predicted_us
    return math.inf if predicted_us is None else predicted_us


def _join_decisions(decisions: Sequence[Decision], *, at_once: bool) -> Decision:
    """Return one decision for several things that run at once, or one after another."""
    largest = max(decisions, key=lambda decision: decision.nbytes)
    joined = tuple(
        part for decision in decisions if decision.copies for part in decision.parts or (decision,)
    )
    if len(joined) <= 1:
        return largest
    mixed = len({part.direction for part in joined}) > 1
    return largest._replace(
        note="",
        direction=Direction.MIXED if mixed else largest.direction,
        copies=sum(decision.copies for decision in decisions),
        nbytes=sum(decision.nbytes for decision in decisions),
        rejected={},
        parts=joined,
        at_once=at_once,
    )
