"""An exchange in which each direction overwrites what the other one reads: by way of the device.

What comes in is staged in device memory until what goes out has left. (Pairs of rows that swap
places need none of this, where a kernel can make them: see `pairing`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies, Direction
from numba_swap.copies.mapping import Integers
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.device.resources import DeviceBuffer
from numba_swap.dispatch.partition import PartOrigin, merged
from numba_swap.dispatch.ranking import Situation, policy_blocks
from numba_swap.swap.exchange.schedule import (
    IN,
    LANES,
    OUT,
    Numbered,
    Planned,
    SideBySide,
    marked,
    spread,
)
from numba_swap.swap.select import How
from numba_swap.swap.steps import Step, submit_steps

# What is staged goes in pieces of so many bytes, of which two are under way: on an H200 64 MiB did
# as well as or better than 4 and 16, for what the host has to do for each piece.
_STAGED_BYTES = 64 << 20
_PIECES_UNDER_WAY = 2

_SETTLE_LANE = 3


def conflicts(planned: Planned) -> tuple[bool, bool]:
    """Whether what comes in overwrites what goes out, and the other way round."""
    pools, (out_rows, in_rows) = planned.pools, planned.rows
    if not (len(out_rows) and len(in_rows)):
        return False, False
    if pools.tangled:  # blocks may share bytes with others
        return True, True
    slots, blocks = pools.blocks
    over_slots = marked(slots, out_rows[:, 0])[in_rows[:, 1]].any()
    over_blocks = marked(blocks, in_rows[:, 0])[out_rows[:, 1]].any()
    return bool(over_slots), bool(over_blocks)


def side_by_side(planned: Planned, over: tuple[bool, bool]) -> SideBySide | Staged:
    """Find the simplest way that is right, by what overwrites what."""
    if all(over):
        return Staged(planned)
    over_slots, over_blocks = over
    return SideBySide(planned, OUT if over_slots else IN if over_blocks else None)


class Staged:
    """What goes out and what comes in, the latter by way of memory on the device.

    Parameters
    ----------
    planned : Planned
        What is exchanged.
    """

    def __init__(self, planned: Planned) -> None:
        self._planned = planned
        self._order = order = order_rows(planned)
        self._shelves: dict[int, list[_Stage]] = {}  # of each context
        # What goes out, and what comes in without being staged, of each piece.
        self._pieces = [
            (
                planned.chosen(OUT, order.out_piece == piece),
                planned.chosen(IN, (order.in_piece == piece) & ~order.staged),
            )
            for piece in range(order.pieces)
        ]

    def submit(self, situation: Situation, how: How, work: InFlight) -> None:
        """Enqueue all; an error says how many steps before were submitted."""
        lease = self._lease(situation)
        work.hold(lease)
        steps = self._steps(lease.stage, situation, how)
        submit_steps(self._planned.pools.driver, steps, situation, work)

    def _steps(self, stage: _Stage, situation: Situation, how: How) -> Iterator[Step]:
        """Yield the steps in an order in which they could also run one by one."""
        # Moving what was staged to its slots goes on within the device, and is our own affair.
        inside = situation._replace(
            max_blocks=policy_blocks(situation.policy, Direction.D2D, how.max_blocks), duplex=False
        )
        numbered = Numbered(self._planned.pools.driver)
        settled: list[tuple[int, ...]] = []
        reads: dict[int, int] = {}  # the last step that reads `host`, in each lane
        for piece, (going, direct) in enumerate(self._pieces):
            aside, settle = self._staged(stage, piece)
            # The memory is free again when what was in it before has settled.
            before = piece - len(stage.memory)
            free = settled[before] if before >= 0 else ()
            coming = numbered.steps(direct, LANES[IN], situation, how.mode)
            coming |= numbered.steps(aside, LANES[IN], situation, how.mode, free)
            yield from coming.values()
            reads |= {step.lane: number for number, step in coming.items()}
            # Earlier pieces may have read in more lanes than this one.
            leaving = numbered.steps(going, LANES[OUT], situation, how.mode, tuple(reads.values()))
            yield from leaving.values()
            steps = numbered.steps(settle, _SETTLE_LANE, inside, "auto", (*coming, *leaving))
            yield from steps.values()
            settled.append(tuple(steps))

    def _lease(self, situation: Situation) -> _Lease:
        """Return memory through which incoming blocks go.

        What served an earlier run that is over serves again, with all that was planned for it.
        """
        order, pools = self._order, self._planned.pools
        shelf = self._shelves.setdefault(situation.context, [])
        try:
            return _Lease(shelf.pop(), shelf)
        except IndexError:
            nbytes = int(np.bincount(order.in_piece[order.staged]).max()) * pools.block_bytes
            buffers = [
                pools.driver.pools.take_device_buffer(situation.context, max(nbytes, 1))
                for _ in range(min(_PIECES_UNDER_WAY, order.pieces))
            ]
            return _Lease(_Stage(buffers, nbytes, situation.device), shelf)

    def _staged(self, stage: _Stage, piece: int) -> tuple[Copies, Copies]:
        """Return the copies of a piece to where it is staged, and on from there."""
        if piece not in stage.copies:
            order, into = self._order, self._planned.copies[IN]
            runs = self._planned.runs(IN, (order.in_piece == piece) & order.staged)
            sizes = into.sizes[runs]
            memory = stage.memory[piece % len(stage.memory)]
            places: Addresses = np.uint64(memory.start) + np.cumsum(sizes) - sizes
            aside, settle = (
                merged(
                    Copies(
                        dst,
                        src,
                        into.uniform or sizes,
                        sources,
                        destinations,
                        # Device memory begins at a multiple of 256, lengths are among the bits.
                        alignment_bits=into.alignment_bits,
                        mergeable=into.mergeable,
                        origin=PartOrigin(into.origin, runs),
                    )
                )
                for dst, src, sources, destinations in (
                    (places, into.src[runs], into.sources, (memory,)),
                    (into.dst[runs], places, (memory,), into.destinations),
                )
            )
            stage.copies[piece] = aside, settle
        return stage.copies[piece]


class Order(NamedTuple):
    """In which piece each row runs.

    Attributes
    ----------
    pieces : int
        How many there are.
    out_piece, in_piece : ndarray of int
        The piece of each row.
    staged : ndarray of bool
        Which incoming blocks are staged, since their slot is read too.
    """

    pieces: int
    out_piece: Integers
    in_piece: Integers
    staged: Any


def order_rows(planned: Planned) -> Order:
    """Put the rows of an exchange into pieces that may run one after another."""
    pools, (out_rows, in_rows) = planned.pools, planned.rows
    slots, blocks = pools.blocks
    staged = marked(slots, out_rows[:, 0])[in_rows[:, 1]]
    out_piece = np.zeros(len(out_rows), dtype=np.int64)
    in_piece = np.zeros(len(in_rows), dtype=np.int64)
    if pools.tangled:
        # Blocks may share bytes with their neighbours: nothing is written before all is read.
        return Order(1, out_piece, in_piece, np.ones(len(in_rows), dtype=bool))
    alone = Order(1, out_piece, in_piece, staged)
    a_piece = max(1, _STAGED_BYTES // max(1, pools.block_bytes))
    count = int(np.count_nonzero(staged))
    pieces = -(-count // a_piece)
    if pieces <= 1:
        return alone
    in_piece = spread(len(in_rows), pieces)
    in_piece[staged] = np.arange(count) // a_piece
    # What goes out of a slot leaves in the piece in which something comes into it.
    of_slot = np.full(slots, -1)
    of_slot[in_rows[staged, 1]] = in_piece[staged]
    out_piece = spread(len(out_rows), pieces)
    out_piece = np.where(of_slot[out_rows[:, 0]] >= 0, of_slot[out_rows[:, 0]], out_piece)
    # Several may read one block: the last one counts.
    of_block = np.full(blocks, -1)
    np.maximum.at(of_block, in_rows[:, 0], in_piece)
    if (of_block[out_rows[:, 1]] > out_piece).any():
        return alone
    return Order(pieces, out_piece, in_piece, staged)


class _Stage:
    """Device memory for some pieces, and the copies planned for it."""

    def __init__(self, buffers: list[DeviceBuffer], nbytes: int, device: int) -> None:
        self._buffers = buffers
        self.memory = [
            Allocation(b.address, b.address + nbytes, MemoryKind.DEVICE, device, 0) for b in buffers
        ]
        self.copies: dict[int, tuple[Copies, Copies]] = {}


class _Lease:
    """A stage in use; it goes back to its shelf when this is dropped, which ends its use."""

    def __init__(self, stage: _Stage, shelf: list[_Stage]) -> None:
        self.stage = stage
        self._shelf = shelf

    def __del__(self) -> None:
        self._shelf.append(self.stage)
