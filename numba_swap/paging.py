"""Blocks out and other blocks in, in one call: `exchange`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_swap import decide
from numba_swap.blocks import match_blocks
from numba_swap.copies import Copies, Direction
from numba_swap.decide import How
from numba_swap.dispatch import Decision, Situation, policy_blocks
from numba_swap.driver.api import Driver
from numba_swap.driver.current import current_driver
from numba_swap.driver.pools import DeviceBuffer
from numba_swap.errors import BadPlanError
from numba_swap.in_flight import InFlight
from numba_swap.integers import Integers
from numba_swap.lanes import Step, submit_steps
from numba_swap.memory import ArrayView, contiguous_strides, view_array
from numba_swap.parts import in_slices
from numba_swap.plan import plan_array_blocks, read_mapping
from numba_swap.settings import Mode, Policy
from numba_swap.transfer import Transfer

# Blocks that come in over blocks that have to go out first are staged in device memory, in pieces
# of so many bytes, of which two are under way: on an H200 64 MiB did as well as or better
# than 4 and 16, for what the host has to do for each piece.
_STAGED_BYTES = 64 << 20
_PIECES_UNDER_WAY = 2

# The batch is submitted in slices of so many bytes, not too many, for each joins its streams.
_SLICE_BYTES = 32 << 20
_MOST_SLICES = 4

# Lanes; a second part of the same runs so many further on.
_IN, _OUT, _SETTLE, _LANES = 1, 2, 3, 3


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
        One for both directions. The parts of its decision are those of the two.

    Raises
    ------
    BadPlanError
        As for `numba_swap.plan_blocks`; or the two pools share memory. Nothing was copied.
    NumbaSwapError
        As for `numba_swap.CopyPlan.run`. A failure for want of device memory comes before any
        byte moves; what a later one says of copies submitted holds for its own step.

    Notes
    -----
    A slot of `device` that is read and overwritten is no conflict: what comes in waits in device
    memory, up to 128 MiB of it, until what goes out has left. A block of `host` that is overwritten
    and read is read first. Where rows depend on each other in a way that no order of pieces
    resolves (a block goes out to where a later one comes from), all that comes in is staged at
    once, which needs as much device memory. A plan keeps the memory for its later runs.

    In a stream that is being captured, and with policy ``"latency"``, the directions run one after
    another.
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
    pools = _Pools(driver, device, host, block_axis)
    rows = read_mapping(page_out, "page_out"), read_mapping(page_in, "page_in")
    out = plan_array_blocks(driver, device, host, rows[0], block_axis)
    into = plan_array_blocks(driver, host, device, rows[1], block_axis)
    pools.check_apart(out, into)
    if not pools.views:  # of no layers nothing is copied, whatever the rows
        rows = rows[0][:0], rows[1][:0]
    return ExchangePlan(pools, (out, into), rows)


class ExchangePlan:
    """An exchange that was checked once and can be run many times; made by `plan_exchange`.

    It keeps the arrays alive; their contents are read and written when it runs.

    Attributes
    ----------
    nbytes : int
        Bytes that one run copies over the link, in both directions.
    """

    def __init__(
        self, pools: _Pools, whole: tuple[Copies, Copies], rows: tuple[Integers, Integers]
    ) -> None:
        self._pools = pools
        self._whole = whole
        self._rows = out_rows, in_rows = rows
        self.nbytes = whole[0].nbytes + whole[1].nbytes
        self._order = order = _order(out_rows, in_rows, pools)
        self._shelves: dict[int, list[_Stage]] = {}  # of each context
        # What goes out, and what comes in without being staged, of each piece.
        if order.pieces == 1 and not order.staged.any():
            self._pieces = [whole]
        else:
            self._pieces = [
                (
                    pools.plan(pools.device, pools.host, out_rows[order.out_piece == piece])
                    if order.pieces > 1
                    else whole[0],
                    pools.plan(
                        pools.host,
                        pools.device,
                        in_rows[(order.in_piece == piece) & ~order.staged],
                    ),
                )
                for piece in range(order.pieces)
            ]

    def __len__(self) -> int:
        """Return the number of copies over the link, after merging neighbours."""
        return len(self._whole[0]) + len(self._whole[1])

    def __repr__(self) -> str:
        return (
            f"<ExchangePlan: {self._whole[0].nbytes} bytes out, {self._whole[1].nbytes} bytes in>"
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
            One for both directions. The parts of its decision are those of the two.

        Raises
        ------
        NumbaSwapError
            As for `numba_swap.CopyPlan.run`.
        """
        out, into = self._whole
        gpu = out.device if into.device is None else into.device
        how = How(stream, mode, max_blocks, policy)
        return decide.in_context(
            self._pools.driver,
            gpu,
            Direction.MIXED,
            how,
            lambda situation: self._submit(situation, how),
        )

    def _submit(self, situation: Situation, how: How) -> Transfer:
        driver = self._pools.driver
        both = bool(len(self._whole[0]) and len(self._whole[1]))
        situation = situation._replace(duplex=both and situation.may_fork)
        choices = [decide.decide(driver, copies, situation, how.mode) for copies in self._whole]
        decision = _join_decisions([choice.decision for choice in choices])
        if len(self) == 0:
            return Transfer(None, decision, False)
        for copies in self._whole:
            decide.wait_for_producers(driver, copies, situation)
        pools = self._pools
        holds = (pools.device, pools.host, how.stream, self)
        work = InFlight(driver, situation.context, holds, situation.capturing)
        try:
            stage = self._stage(situation.context)
            work.hold(stage)
            submit_steps(driver, self._steps(situation, how, stage), situation, work)
        except BaseException:
            work.close_after_failure(situation.stream)
            raise
        return Transfer(work, decision, situation.capturing)

    def _stage(self, context: int) -> _Lease | None:
        """Return the memory through which incoming blocks go; None if none is staged.

        What served an earlier run that is over serves again, with all that was planned for it.
        """
        order = self._order
        if not order.staged.any():
            return None
        shelf = self._shelves.setdefault(context, [])
        try:
            return _Lease(shelf.pop(), shelf)
        except IndexError:
            rows = int(np.bincount(order.in_piece[order.staged]).max())
            pieces = min(_PIECES_UNDER_WAY, order.pieces)
            return _Lease(_Stage([self._pools.stage(context, rows) for _ in range(pieces)]), shelf)

    def _staged(self, stage: _Stage, piece: int) -> tuple[Copies, Copies]:
        """Return the copies of a piece to where it is staged, and on from there."""
        if piece not in stage.copies:
            order, pools = self._order, self._pools
            _, staging = stage.places[piece % len(stage.places)]
            coming = self._rows[1][(order.in_piece == piece) & order.staged]
            slots = np.arange(len(coming))
            stage.copies[piece] = (
                pools.plan(pools.host, staging, np.stack([coming[:, 0], slots], axis=1)),
                pools.plan(staging, pools.device, np.stack([slots, coming[:, 1]], axis=1)),
            )
        return stage.copies[piece]

    def _steps(self, situation: Situation, how: How, lease: _Lease | None) -> Iterator[Step]:
        """Yield the steps in an order in which they could also run one by one."""
        order, mode = self._order, how.mode
        # Moving what was staged to its slots goes on within the device, and is our own affair.
        inside = situation._replace(
            max_blocks=policy_blocks(situation.policy, Direction.D2D, how.max_blocks), duplex=False
        )
        numbers = itertools.count()
        settled: list[tuple[int, ...]] = []
        reads: dict[int, int] = {}  # the last step that reads `host`, in each lane

        def steps_of(
            copies: Copies,
            lane: int,
            after: tuple[int, ...] = (),
            here: Situation = situation,
            mode: Mode | str = mode,
        ) -> tuple[list[Step], tuple[int, ...]]:
            """Return the steps of some copies, several if they run in parts, and their numbers."""
            if len(copies) == 0:
                return [], ()
            steps = [
                Step(part.copies, part.decision.mode, lane + _LANES * i, after)
                for i, part in enumerate(self._parts(copies, here, mode))
            ]
            return steps, tuple(itertools.islice(numbers, len(steps)))

        stage = None if lease is None else lease.stage
        if stage is None and not order.in_first:
            yield from self._in_turns(situation, mode)
            return
        for piece, (going, direct) in enumerate(self._pieces):
            after_out: tuple[int, ...] = ()
            if not order.in_first:
                steps, after_out = steps_of(going, _OUT)
                yield from steps
            steps, after_in = steps_of(direct, _IN)
            reads.update(zip((step.lane for step in steps), after_in, strict=True))
            yield from steps
            if stage is not None:
                aside, settle = self._staged(stage, piece)
                # The memory is free again when what was in it before has settled.
                before = piece - len(stage.places)
                steps, after_aside = steps_of(aside, _IN, settled[before] if before >= 0 else ())
                reads.update(zip((step.lane for step in steps), after_aside, strict=True))
                yield from steps
                after_in += after_aside
            if order.in_first:
                # Earlier pieces may have read in more lanes than this one.
                steps, after_out = steps_of(going, _OUT, tuple(reads.values()))
                yield from steps
            if stage is not None:
                steps, after_settle = steps_of(
                    settle, _SETTLE, after_in + after_out, inside, "auto"
                )
                yield from steps
                settled.append(after_settle)

    def _in_turns(self, situation: Situation, mode: Mode | str) -> Iterator[Step]:
        """Yield steps of both directions that do not depend on each other.

        To submit many copies takes the host a part of the time that they take: slices in turn
        let the second direction begin before the first is submitted whole.
        """
        queues = []
        for lane, copies in ((_OUT, self._whole[0]), (_IN, self._whole[1])):
            if len(copies):
                for i, part in enumerate(self._parts(copies, situation, mode)):
                    slices = 1
                    if part.decision.mode is Mode.BATCH:
                        slices = min(_MOST_SLICES, max(1, part.copies.nbytes // _SLICE_BYTES))
                    queues.append(
                        [
                            Step(some, part.decision.mode, lane + _LANES * i)
                            for some in in_slices(part.copies, slices)
                        ]
                    )
        for turn in itertools.zip_longest(*queues):
            yield from filter(None, turn)

    def _parts(
        self, copies: Copies, situation: Situation, mode: Mode | str
    ) -> tuple[decide.Part, ...]:
        choice = decide.decide(self._pools.driver, copies, situation, mode)
        return choice.parts or (decide.Part(copies, choice.decision),)


class _Order(NamedTuple):
    """In which piece each row runs.

    Attributes
    ----------
    pieces : int
        How many there are.
    out_piece, in_piece : ndarray of int
        The piece of each row.
    staged : ndarray of bool
        Which incoming blocks are staged, since their slot is read too.
    in_first : bool
        Whether some outgoing block overwrites what comes in.
    """

    pieces: int
    out_piece: Integers
    in_piece: Integers
    staged: Any
    in_first: bool


def _order(out_rows: Integers, in_rows: Integers, pools: _Pools) -> _Order:
    slots, blocks = pools.device_blocks, pools.host_blocks
    staged = _marked(slots, out_rows[:, 0])[in_rows[:, 1]]
    in_first = bool(_marked(blocks, out_rows[:, 1])[in_rows[:, 0]].any())
    out_piece = np.zeros(len(out_rows), dtype=np.int64)
    in_piece = np.zeros(len(in_rows), dtype=np.int64)
    alone = _Order(1, out_piece, in_piece, staged, in_first)
    if pools.tangled:
        # Blocks may share bytes with their neighbours: nothing is written before all is read.
        return alone._replace(staged=np.ones(len(in_rows), dtype=bool), in_first=True)
    a_piece = max(1, _STAGED_BYTES // max(1, pools.block_bytes))
    count = int(np.count_nonzero(staged))
    pieces = -(-count // a_piece)
    if pieces <= 1:
        return alone
    in_piece = _spread(len(in_rows), pieces)
    in_piece[staged] = np.arange(count) // a_piece
    # What goes out of a slot leaves in the piece in which something comes into it.
    of_slot = np.full(slots, -1)
    of_slot[in_rows[staged, 1]] = in_piece[staged]
    out_piece = _spread(len(out_rows), pieces)
    out_piece = np.where(of_slot[out_rows[:, 0]] >= 0, of_slot[out_rows[:, 0]], out_piece)
    if in_first:
        # Several may read one block: the last one counts.
        of_block = np.full(blocks, -1)
        np.maximum.at(of_block, in_rows[:, 0], in_piece)
        if (of_block[out_rows[:, 1]] > out_piece).any():
            return alone
    return _Order(pieces, out_piece, in_piece, staged, in_first)


def _marked(length: int, ids: Integers) -> Any:
    marks = np.zeros(length, dtype=bool)
    marks[ids] = True
    return marks


def _spread(rows: int, pieces: int) -> Integers:
    return np.arange(rows, dtype=np.int64) * pieces // max(1, rows)


class _Stage:
    """Device memory for some pieces, as buffers and as arrays, and the copies planned for it."""

    def __init__(self, places: list[tuple[DeviceBuffer, Any]]) -> None:
        self.places = places
        self.copies: dict[int, tuple[Copies, Copies]] = {}


class _Lease:
    """A stage in use; it goes back to its shelf when this is dropped, which ends its use."""

    def __init__(self, stage: _Stage, shelf: list[_Stage]) -> None:
        self.stage = stage
        self._shelf = shelf

    def __del__(self) -> None:
        self._shelf.append(self.stage)


class _StagingArray:
    """A part of device memory as an array of blocks."""

    def __init__(self, buffer: DeviceBuffer, offset: int, shape: tuple[int, ...], itemsize: int):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": f"|V{itemsize}",
            "data": (buffer.address + offset, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }


class _Pools:
    """The two arrays, or layers of arrays, between which blocks are exchanged."""

    def __init__(self, driver: Driver, device: Any, host: Any, block_axis: int) -> None:
        self.driver = driver
        self.device = device
        self.host = host
        self.block_axis = block_axis
        many = isinstance(device, (list, tuple))
        fronts = device if many else (device,)
        backs = host if isinstance(host, (list, tuple)) else (host,)
        self._layered = many
        self.views = [view_array(array, "device") for array in fronts]
        layouts = []
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        # Unequal numbers of layers are refused, with a better message, by `plan_array_blocks`.
        for view, array in zip(self.views, backs, strict=False):
            back = view_array(array, "host")
            layout = match_blocks(view, back, block_axis, "device and host")
            layouts.append(layout)
            ends = ((view.address, layout.src_extent), (back.address, layout.dst_extent))
            front, other = ((at + low, at + high) for at, (low, high) in ends)
            self._spans.append((front, other))
            layouts.append(match_blocks(back, view, block_axis, "host and device"))
        self.tangled = any(layout.tangled for layout in layouts)
        self.device_blocks = max((layout.src_blocks for layout in layouts[::2]), default=0)
        self.host_blocks = max((layout.src_blocks for layout in layouts[1::2]), default=0)
        self.block_bytes = sum(map(_block_bytes, self.views, [block_axis] * len(self.views)))

    def check_apart(self, out: Copies, into: Copies) -> None:
        """Refuse pools that share memory: then nothing says what is to be read first.

        Raises
        ------
        BadPlanError
            If a block of one overlaps a block of the other.
        """
        if not any(
            start < other_stop and other_start < stop
            for (start, stop), _ in self._spans
            for _, (other_start, other_stop) in self._spans
        ):
            return
        fronts = _intervals([(out.src, out.sizes), (into.dst, into.sizes)])
        backs = _intervals([(out.dst, out.sizes), (into.src, into.sizes)])
        if not (len(fronts[0]) and len(backs[0])):
            return
        # Of the blocks of `device` that begin before a block of `host` ends, one may reach into it.
        order = np.argsort(fronts[0])
        begins, reach = fronts[0][order], np.maximum.accumulate(fronts[1][order])
        before = np.searchsorted(begins, backs[1], side="left")
        meets = (before > 0) & (reach[np.maximum(before, 1) - 1] > backs[0])
        if meets.any():
            where = int(backs[0][np.argmax(meets)])
            raise BadPlanError(
                f"device and host share memory, at {where:#x} for example: exchange needs two "
                "pools apart from each other; within one array, use swap_blocks"
            )

    def stage(self, context: int, rows: int) -> tuple[DeviceBuffer, Any]:
        """Return device memory for so many blocks, and that memory as arrays like `device`."""
        offsets, end = [], 0
        for view in self.views:
            offsets.append(end)
            end += -(-_block_bytes(view, self.block_axis) * rows // 256) * 256
        buffer = self.driver.pools.take_device_buffer(context, max(end, 1))
        arrays = []
        for view, offset in zip(self.views, offsets, strict=True):
            shape = list(view.shape)
            shape[self.block_axis] = rows
            arrays.append(_StagingArray(buffer, offset, tuple(shape), view.itemsize))
        return buffer, arrays if self._layered else arrays[0]

    def plan(self, src: Any, dst: Any, rows: Integers) -> Copies:
        """Return the copies of some rows."""
        return plan_array_blocks(self.driver, src, dst, rows, self.block_axis)


def _block_bytes(view: ArrayView, block_axis: int) -> int:
    inner = list(view.shape)
    del inner[block_axis]
    return contiguous_strides((1, *inner), view.itemsize)[0]


def _intervals(columns: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return where all copies begin, and where they end."""
    begins = np.concatenate([begin for begin, _ in columns])
    return begins, begins + np.concatenate([size for _, size in columns])


def _join_decisions(decisions: Sequence[Decision]) -> Decision:
    """Return one decision for both directions."""
    largest = max(decisions, key=lambda decision: decision.nbytes)
    parts = tuple(
        part for decision in decisions if decision.copies for part in decision.parts or (decision,)
    )
    if len(parts) <= 1:
        return largest
    mixed = len({part.direction for part in parts}) > 1
    return largest._replace(
        note="at once: " + "; ".join(f"{part.direction}, {part.reason}" for part in parts),
        direction=Direction.MIXED if mixed else largest.direction,
        copies=sum(decision.copies for decision in decisions),
        nbytes=sum(decision.nbytes for decision in decisions),
        rejected={},
        parts=parts,
    )
