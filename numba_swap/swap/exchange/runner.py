"""From a schedule to steps: copies piece by piece, in the streams of their strands."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np

from numba_swap.copies.copies import Copies, no_copies
from numba_swap.copies.ends import Direction
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.device.tuning import Tuning
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.ranking import block_limit
from numba_swap.dispatch.settings import Mode
from numba_swap.swap.exchange.pairing import IN, OUT, SlotTable
from numba_swap.swap.exchange.pools import ExchangePools
from numba_swap.swap.exchange.schedule import Schedule, make_schedule
from numba_swap.swap.exchange.staging import StagingBuffers
from numba_swap.swap.running.select import select, steps_of
from numba_swap.swap.running.staged import staged_through
from numba_swap.swap.running.steps import Step

Modes = tuple[Mode | None, Mode | None]


class ScheduledExchange:
    """Both directions at once; one may follow the other into the places that are free.

    Parameters
    ----------
    pools : ExchangePools
        The pools.
    copies : tuple of Copies
        What goes out and what comes in, as `ExchangePools` plans it.
    table : callable
        Returns which rows use which places; asked when that is first wanted.
    tuning : Tuning
        How large pieces are.
    """

    def __init__(
        self,
        pools: ExchangePools,
        copies: tuple[Copies, Copies],
        table: Callable[[], SlotTable],
        tuning: Tuning,
    ) -> None:
        self._pools = pools
        self._copies = copies
        self._table = table
        self._tuning = tuning
        self._done: dict[Modes, list[Step]] = {}
        self._buffers = StagingBuffers()

    @cached_property
    def schedule(self) -> Schedule:
        """When each row runs."""
        return make_schedule(
            self._table(),
            max(some.nbytes for some in self._copies),
            self._pools.block_bytes,
            self._tuning,
            may_alias=self._pools.may_alias,
        )

    @cached_property
    def merged(self) -> tuple[Copies, Copies]:
        """What goes out and what comes in, neighbours merged."""
        out, into = self._copies
        return out.coalesced(), into.coalesced()

    def steps(self, launch: LaunchContext, mode: Mode | str | None) -> Iterator[Step]:
        """Yield the steps in an order in which they could also run one by one.

        Each is planned when its turn comes, while those before it run already. They serve again,
        but for directions that run in parts, which follow from more than their mode, and for what
        is staged, whose memory may be in use.
        """
        schedule = self.schedule
        if schedule.staged is not None:
            yield from self._staged_steps(launch, mode)
        elif not launch.conditions.may_use_private_streams:
            numbered = _Numbered()
            for side in _order(schedule):
                yield from numbered.steps(self.merged[side], (side,), launch, mode)
        else:
            modes = self._mode(OUT, launch, mode), self._mode(IN, launch, mode)
            done = self._done.get(modes)
            if done is None:
                done = []
                for step in self._apart(modes, launch, mode):
                    done.append(step)
                    yield step
                if None not in modes:
                    self._done[modes] = done
            else:
                yield from done

    def _mode(self, side: int, launch: LaunchContext, mode: Mode | str | None) -> Mode | None:
        """Return the mode for all of a direction; None if it runs in parts."""
        copies = self.merged[side]
        if len(copies.ends.devices) > 1 and copies.direction is not Direction.P2P:
            return None
        decision = select(copies, launch, mode).decision
        return None if decision.parts else decision.mode

    def _apart(
        self, modes: Modes, launch: LaunchContext, mode: Mode | str | None
    ) -> Iterator[Step]:
        """Yield the steps of both directions, where nothing is staged."""
        numbered, schedule, order = _Numbered(), self.schedule, _order(self.schedule)
        # The last steps of the leader in each strand, by their streams.
        led: list[dict[object, int]] = [{} for _ in range(schedule.strands)]
        for piece, strand in itertools.product(range(schedule.pieces), range(schedule.strands)):
            for side in order:
                copies = self._cells[side](strand * schedule.pieces + piece).coalesced()
                leads = side == schedule.leader
                follows = schedule.leader is not None and not leads
                chosen = modes[side]
                # Kernels fill the link whatever the number of streams, copy engines do not.
                name = (side, strand) if chosen is Mode.BATCH else (side,)
                after = tuple(led[strand].values()) if follows else ()
                first = numbered.count
                steps = numbered.steps(
                    copies,
                    name,
                    launch,
                    mode,
                    after,
                    chosen,
                    has_waiters=leads,
                    shares_engines=True,
                )
                if leads:
                    led[strand] |= {step.strand: i for i, step in enumerate(steps, first)}
                yield from steps

    def _staged_steps(self, launch: LaunchContext, mode: Mode | str | None) -> Iterator[Step]:
        """Yield the steps of an exchange of which some comes in by way of device memory."""
        schedule, numbered = self.schedule, _Numbered()
        lease = self._buffers.lease(launch, self._largest_staged, schedule.pieces)
        # Moving what was staged to its slots goes on within the device, and is our own affair.
        conditions, tuning = launch.conditions, launch.device.tuning
        limit = block_limit(tuning, conditions.policy, Direction.D2D, conditions.max_blocks)
        inside = launch.under(max_blocks=limit, duplex=False)
        settled: list[range] = []
        reads: dict[object, int] = {}  # the last step that reads `host`, in each stream
        for piece in range(schedule.pieces):
            direct, waiting = (self._cells[IN](2 * piece + staged) for staged in (0, 1))
            going = self._cells[OUT](piece).coalesced()
            aside, settle = lease.copies(piece, partial(staged_through, waiting))
            # The memory is free again when what was in it before has settled.
            before = piece - len(lease.memory)
            free = tuple(settled[before]) if before >= 0 else ()
            begin = numbered.count
            for copies, after in ((direct.coalesced(), ()), (aside, free)):
                first = numbered.count
                coming = numbered.steps(
                    copies, (IN,), launch, mode, after, has_waiters=True, holds=lease
                )
                reads |= {step.strand: i for i, step in enumerate(coming, first)}
                yield from coming
            # Earlier pieces may have read in more streams than this one.
            yield from numbered.steps(
                going, (OUT,), launch, mode, tuple(reads.values()), has_waiters=True
            )
            end = numbered.count
            # In a mode of its own, whatever the call says, but for `override` if it says nothing.
            own = None if mode is None else "auto"
            yield from numbered.steps(
                settle, ("settle",), inside, own, tuple(range(begin, end)), has_waiters=True
            )
            settled.append(range(end, numbered.count))

    @cached_property
    def _largest_staged(self) -> int:
        """Bytes of the largest piece of what is staged."""
        schedule = self.schedule
        pieces = schedule.cells[IN][schedule.staged]
        return int(np.bincount(pieces).max()) * self._pools.block_bytes

    @cached_property
    def _cells(self) -> tuple[Callable[[int], Copies], Callable[[int], Copies]]:
        """What gives the copies of each piece; of what comes in, staged ones have odd numbers."""
        schedule = self.schedule
        count = schedule.strands * schedule.pieces
        out, into = schedule.cells
        if schedule.staged is None:
            return self._split(OUT, out, count), self._split(IN, into, count)
        return self._split(OUT, out, count), self._split(IN, 2 * into + schedule.staged, 2 * count)

    def _split(self, side: int, cells: Integers, count: int) -> Callable[[int], Copies]:
        """Return what gives the copies of the rows that are in a cell, one of so many.

        To share out many rows at once is faster than to look for those of each cell.
        """
        copies, pools, rows = self._copies[side], self._pools, len(cells)
        if count == 1:
            return lambda cell: copies
        if (cells[1:] < cells[:-1]).any():
            # Sorted by small numbers in linear time.
            small = cells.astype(np.int16 if count < 1 << 15 else np.int64)
            order = np.argsort(small, kind="stable")
            copies = copies.select(pools.copies_of(order, rows, side))
        ends = np.cumsum(np.bincount(cells, minlength=count))

        def of(cell: int) -> Copies:
            begin, end = int(ends[cell - 1]) if cell else 0, int(ends[cell])
            if begin == end:
                return no_copies()
            if pools.one_copy:
                return copies.select(slice(begin, end))
            return copies.select(pools.copies_of(np.arange(begin, end), rows, side))

        return of


def _order(schedule: Schedule) -> tuple[int, int]:
    """Return the directions in the order in which they are enqueued: the leader first."""
    return (IN, OUT) if schedule.leader == IN else (OUT, IN)


class _Numbered:
    """Steps with consecutive numbers."""

    def __init__(self) -> None:
        self.count = 0

    def steps(
        self,
        copies: Copies,
        name: tuple[object, ...],
        launch: LaunchContext,
        mode: Mode | str | None,
        after: Sequence[int] = (),
        chosen: Mode | None = None,
        *,
        has_waiters: bool = False,
        shares_engines: bool = False,
        holds: object = None,
    ) -> list[Step]:
        """Return the steps of copies: one, or several if they run in parts.

        Parameters
        ----------
        copies, launch, mode, after, has_waiters, shares_engines, holds
            What to do, under which circumstances, how the user wants it, and the rest as a `Step`
            says it.
        name : tuple
            Of the strand.
        chosen : Mode, optional
            What was decided; otherwise it is decided here.
        """
        if len(copies) == 0:
            return []
        parts: Sequence[Step] = [Step(copies, chosen)] if chosen else ()
        parts = parts or steps_of(select(copies, launch, mode))
        self.count += len(parts)
        return [
            Step(
                part.work,
                part.mode,
                (*name, i) if part.device is None else (*name, i, part.device),
                tuple(after),
                has_waiters,
                shares_engines,
                holds,
                part.device,
            )
            for i, part in enumerate(parts)
        ]
