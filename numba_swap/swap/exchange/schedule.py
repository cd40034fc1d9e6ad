"""Both directions of an exchange at once, each in streams of its own.

For what `pairing` cannot do, or copy engines do better. Where rows of one direction overwrite what
the other one reads, each piece of the first waits for the piece of the other that frees its places.
(If each direction overwrites what the other reads, see `staging`.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies, no_copies
from numba_swap.copies.mapping import Integers
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.partition import merged, take
from numba_swap.dispatch.ranking import Situation
from numba_swap.dispatch.settings import Mode
from numba_swap.driver.calls import Driver
from numba_swap.swap import select
from numba_swap.swap.exchange.pools import PoolPair
from numba_swap.swap.select import How
from numba_swap.swap.steps import Step, submit_steps

# The two directions; their lanes; a second part of the same runs so many lanes further on.
OUT, IN = 0, 1
LANES = (2, 1)
LANES_A_PART = 3

# The copy engines get each direction in four strands, streams that nothing joins before the end,
# and each strand in eight pieces, none of them too small for what it takes to submit it. On an H200
# this reached 1.00 of what the link does in both directions (256 KiB blocks), and 0.95 where
# one direction follows the other into the same slots. Streams that are joined after every piece
# reached 0.86 and 0.77 beside it.
_STRANDS = 4
_PIECES_A_STRAND = 8
_SMALLEST_PIECE_BYTES = 2 << 20


class Planned:
    """An exchange as it was checked.

    Attributes
    ----------
    pools : PoolPair
        The pools.
    copies : tuple of Copies
        What goes out and what comes in, as `PoolPair` plans it.
    rows : tuple of ndarray of int64, shape (n, 2)
        What they came from.
    """

    def __init__(
        self, pools: PoolPair, copies: tuple[Copies, Copies], rows: tuple[Integers, Integers]
    ) -> None:
        self.pools = pools
        self.copies = copies
        self.rows = rows

    @cached_property
    def merged(self) -> tuple[Copies, Copies]:
        """What goes out and what comes in, neighbours merged."""
        out, into = self.copies
        return merged(out), merged(into)

    def runs(self, side: int, rows: Any) -> npt.NDArray[np.intp]:
        """Return which copies are those of the rows that are marked."""
        return self.pools.runs_of(np.flatnonzero(rows), len(self.rows[side]))

    def chosen(self, side: int, rows: Any) -> Copies:
        """Return the copies of the rows that are marked, neighbours merged."""
        if rows.all():
            return self.merged[side]
        return merged(take(self.copies[side], self.runs(side, rows))) if rows.any() else no_copies()

    def in_cells(
        self, side: int, cells: npt.NDArray[np.int64], count: int
    ) -> Callable[[int], Copies]:
        """Return what gives the copies of the rows that are in a cell, one of so many.

        To share out many rows at once is faster than to look for those of each cell.
        """
        copies = self.copies[side]
        if (cells[1:] < cells[:-1]).any():
            # Sorted by so small numbers in linear time.
            rows = np.argsort(cells.astype(np.int16), kind="stable")
            copies = take(copies, self.pools.runs_of(rows, len(cells)))
        ends = np.cumsum(np.bincount(cells, minlength=count))

        def of(cell: int) -> Copies:
            begin, end = int(ends[cell - 1]) if cell else 0, int(ends[cell])
            if self.pools.one_run:
                some = take(copies, slice(begin, end))
            else:
                some = take(copies, self.pools.runs_of(np.arange(begin, end), len(cells)))
            return merged(some)

        return of


class Numbered:
    """Steps of copies in a lane, or several if they run in parts, with consecutive numbers."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._numbers = itertools.count()

    def steps(
        self,
        copies: Copies,
        lane: int,
        situation: Situation,
        how: Mode | str,
        after: Sequence[int] = (),
        mode: Mode | None = None,
        *,
        awaited: bool = True,
    ) -> dict[int, Step]:
        """Return the steps by their numbers, each after those earlier ones.

        Parameters
        ----------
        copies, lane, situation, how, after
            What to do, where, under which circumstances, how the user wants it, after what.
        mode : Mode, optional
            What was decided; otherwise it is decided here.
        awaited : bool, optional
            Whether later steps wait for these.
        """
        if len(copies) == 0:
            return {}
        if mode is not None:
            return {next(self._numbers): Step(copies, mode, lane, tuple(after), awaited)}
        choice = select.decide(self._driver, copies, situation, how)
        parts = choice.parts or (select.Part(copies, choice.decision),)
        return {
            next(self._numbers): Step(
                part.copies, part.decision.mode, lane + LANES_A_PART * i, tuple(after), awaited
            )
            for i, part in enumerate(parts)
        }


class SideBySide:
    """Both directions at once; one may follow the other into the places that are free.

    Parameters
    ----------
    planned : Planned
        What is exchanged.
    leader : {OUT, IN} or None
        The direction that reads what the other one overwrites, if one does; it must not overwrite
        what that one reads.
    """

    def __init__(self, planned: Planned, leader: int | None) -> None:
        self._planned = planned
        self._leader = leader
        self._first = OUT if leader is None else leader
        follower = OUT if self._first == IN else IN
        self._order = self._first, follower
        rows = planned.rows
        read = marked(planned.pools.blocks[self._first], rows[self._first][:, 0])
        strands, pieces = _shape(max(copies.nbytes for copies in planned.copies))
        if leader is not None and np.count_nonzero(read) < len(rows[leader]):
            strands = 1  # a place that is read twice is free when both have, in whatever strands
        self._grid = strands, pieces
        cells = [spread(len(rows[side]), strands * pieces) for side in (OUT, IN)]
        if leader is not None:
            # A place is free when its last reader has it: of equal indices the last one counts.
            free_after = np.full(len(read), -1)
            free_after[rows[leader][:, 0]] = cells[leader]
            waits_for = free_after[rows[follower][:, 1]]
            cells[follower] = np.where(waits_for >= 0, waits_for, cells[follower])
        self._pieces = [planned.in_cells(side, cells[side], strands * pieces) for side in (OUT, IN)]
        self._steps: dict[tuple[Mode | None, ...], list[Step]] = {}

    def submit(self, situation: Situation, how: How, work: InFlight) -> None:
        """Enqueue all; an error says how many steps before were submitted."""
        driver = self._planned.pools.driver
        if not situation.may_fork:
            submit_steps(driver, self._in_turn(situation, how), situation, work)
            return
        modes = self._mode(OUT, situation, how), self._mode(IN, situation, how)
        steps: Iterable[Step] | None = self._steps.get(modes)
        if steps is None:
            steps = self._first_time(modes, situation, how)
        submit_steps(driver, steps, situation._replace(strand=True), work)

    def _in_turn(self, situation: Situation, how: How) -> Iterator[Step]:
        """Yield steps for one stream, one direction after the other."""
        numbered = Numbered(self._planned.pools.driver)
        for side in self._order:
            copies = self._planned.merged[side]
            yield from numbered.steps(copies, LANES[side], situation, how.mode).values()

    def _first_time(
        self, modes: tuple[Mode | None, Mode | None], situation: Situation, how: How
    ) -> Iterator[Step]:
        """Yield the steps in an order in which they could also run one by one.

        Each is planned when its turn comes, while those before it run already. They serve again,
        but for directions that run in parts, which follow from more than their mode.
        """
        numbered = Numbered(self._planned.pools.driver)
        strands, pieces = self._grid
        led: list[dict[int, int]] = [{} for _ in range(strands)]  # the last steps, by their lanes
        done: list[Step] = []
        for piece, strand in itertools.product(range(pieces), range(strands)):
            for side in self._order:
                copies = self._pieces[side](strand * pieces + piece)
                lane, mode = LANES[side], modes[side]
                if mode is Mode.BATCH:
                    lane += LANES_A_PART * strand
                leads = side == self._leader
                follows = self._leader is not None and not leads
                after = tuple(led[strand].values()) if follows else ()
                steps = numbered.steps(
                    copies, lane, situation, how.mode, after, mode, awaited=leads
                )
                done += steps.values()
                yield from steps.values()
                if leads:
                    led[strand] |= {step.lane: number for number, step in steps.items()}
        if None not in modes:
            self._steps[modes] = done

    def _mode(self, side: int, situation: Situation, how: How) -> Mode | None:
        """Return the mode for all of a direction; None if it runs in parts."""
        planned = self._planned
        choice = select.decide(planned.pools.driver, planned.merged[side], situation, how.mode)
        return None if choice.parts else choice.decision.mode


def _shape(nbytes: int) -> tuple[int, int]:
    """Return in how many strands, of how many pieces each, so many bytes go in a direction."""
    steps = max(1, nbytes // _SMALLEST_PIECE_BYTES)
    strands = min(_STRANDS, steps)
    return strands, min(_PIECES_A_STRAND, steps // strands)


def spread(rows: int, cells: int) -> npt.NDArray[np.int64]:
    """Return the cell of each row: equally many successive rows have the same one."""
    return np.arange(rows, dtype=np.int64) * cells // max(1, rows)


def marked(length: int, ids: Integers) -> Any:
    """Return a mark for each of so many ids: whether it is among these."""
    marks = np.zeros(length, dtype=bool)
    marks[ids] = True
    return marks
