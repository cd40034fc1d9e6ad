"""Doing again what was done before: how copies ran, and what that followed from.

Most programs copy between the same arrays over and over. Everything is then as it was, or all but
the block ids is, and one compiled call checks that it is and launches the kernel, or submits the
loop over boxes. Whatever is not as it was is left to the long way, which looks at everything anew
and explains it.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.copies import Copies
from numba_swap.copies.layers import LayerPair
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import describe_allocation
from numba_swap.device.resources import BufferList
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.settings import Mode, Policy, current_settings
from numba_swap.modes import loop
from numba_swap.modes.kernel import exchange, launch
from numba_swap.modes.kernel.table import Launch
from numba_swap.swap.context import RunOptions
from numba_swap.swap.plan_cache import ByCount
from numba_swap.swap.select import Selection
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")


class PreparedRun(ABC):
    """What was submitted as one piece, with all that it followed from.

    Parameters
    ----------
    options : RunOptions
        What the user said.
    launched : LaunchContext
        Where it was submitted.
    selection : Selection
        What was submitted.

    Attributes
    ----------
    context : Context
        Of the stream.
    stream : int
        The stream's handle.
    """

    __slots__ = (
        "_costs",
        "_driver",
        "_lock",
        "_settings",
        "context",
        "launched",
        "options",
        "selection",
        "stream",
    )

    def __init__(self, options: RunOptions, launched: LaunchContext, selection: Selection) -> None:
        self.options = options
        self.launched = launched
        self.selection = selection
        self.context = launched.context
        self.stream = launched.stream
        self._driver = launched.driver
        self._lock = launched.context.stream_lock(launched.stream)
        self._settings = current_settings()
        self._costs = find_costs(launched.device)

    def holds(
        self,
        stream: int,
        mode: Mode | str | None,
        max_blocks: int | None,
        policy: Policy | str | None,
    ) -> bool:
        """Whether the same would follow from these arguments here and now.

        Parameters
        ----------
        stream : int
            Its handle, asked for anew: an object may stand for "the current stream".
        mode, max_blocks, policy
            What the user said.
        """
        options = self.options
        return (
            stream == self.stream
            and (mode is options.mode or _is_same(mode, options.mode))
            and (max_blocks is options.max_blocks or _is_same(max_blocks, options.max_blocks))
            and (policy is options.policy or _is_same(policy, options.policy))
            and current_settings() is self._settings
            and self.context.device.costs is self._costs  # not calibrated anew since
        )

    @abstractmethod
    def again(self, *holds: object) -> Transfer | None:
        """Do the same once more; None, with nothing done, if this needs the long way.

        Parameters
        ----------
        *holds : object
            What must outlive the work.
        """

    def track(
        self,
        selections: tuple[Selection, ...],
        holds: tuple[object, ...],
        submit: Callable[..., int],
        *arguments: object,
    ) -> Transfer | None:
        """Submit work that marks its own end; None, with nothing done, if that is not possible.

        Parameters
        ----------
        selections : tuple of Selection
            What may be told of it.
        holds : tuple of object
            What must outlive the work.
        submit : callable
            Gets the arguments, and an event to record; returns 0 if nothing was submitted, else
            the number of what is told, from 1 on.
        """
        # Only what is there already: to make more, the context would have to be current.
        event = self.context.take_spare_event()
        if not event:
            return None
        work = InFlight(self.context, holds, False, event)
        try:
            with self._lock:
                submitted = submit(*arguments, event)
        except BaseException:
            work.close_after_failure(self.stream)
            raise
        if not submitted:
            work.cancel()
            return None
        decision = selections[submitted - 1].decision
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug("%s", decision)
        return Transfer(work, decision, False)


class PreparedLaunch(PreparedRun):
    """One kernel launch that was made, with all that it followed from.

    Parameters
    ----------
    options, launched, selection
        As for `PreparedRun`.
    kernel : Launch
        The launch.
    """

    __slots__ = ("kernel",)

    def __init__(
        self,
        options: RunOptions,
        launched: LaunchContext,
        selection: Selection,
        kernel: Launch,
    ) -> None:
        super().__init__(options, launched, selection)
        self.kernel = kernel

    def without_work(self) -> PreparedLaunch:
        """Return the same without the copies and their table: it keeps no memory in use."""
        bare = copy.copy(self)
        bare.options = self.options._replace(stream=None)  # its handle is compared
        bare.selection = Selection(self.selection.decision)
        kernel = self.kernel
        bare.kernel = Launch(
            kernel.function,
            kernel.blocks,
            kernel.threads,
            kernel.arguments,
            None,
            kernel.most_blocks,
        )
        return bare

    def again(self, *holds: object) -> Transfer | None:
        """Launch the same once more; None, with nothing done, if this needs the long way."""
        kernel = self.kernel
        arguments, uploaded = kernel.arguments, kernel.uploaded
        if uploaded is not None:
            if not uploaded.first.over:
                return None
            arguments = uploaded.arguments
            holds = (*holds, uploaded)
        return self.track(
            (self.selection,),
            holds,
            self._driver.launch_kernel,
            kernel.function,
            kernel.blocks,
            kernel.threads,
            self.stream,
            arguments,
            self.context.handle,
        )


class PreparedLoop(PreparedRun):
    """A loop over boxes that was made, with all that it followed from.

    Parameters
    ----------
    options, launched, selection
        As for `PreparedRun`.
    copies : Copies
        The boxes.
    """

    __slots__ = ("_copies",)

    def __init__(
        self, options: RunOptions, launched: LaunchContext, selection: Selection, copies: Copies
    ) -> None:
        super().__init__(options, launched, selection)
        self._copies = copies

    def again(self, *holds: object) -> Transfer | None:
        """Make the same loop once more; None, with nothing done, if this needs the long way."""
        return self.track((self.selection,), holds, self._submit)

    def _submit(self, event: int) -> int:
        copies, boxes = self._copies, self._copies.boxes
        assert boxes is not None  # whoever prepared it asked
        done, code, index = self._driver.boxes_and_record(
            self.context.handle,
            copies.dst,
            copies.src,
            boxes.forms,
            boxes.which,
            self.stream,
            event,
        )
        if code:
            raise loop.refused(self._driver, copies, code, index)
        return int(done)


def _is_same(value: Any, former: Any) -> bool:
    """Whether a value equals one that was accepted: arrays of one element equal it, too."""
    return type(value) is type(former) and bool(value == former)


def prepared_from(
    options: RunOptions, launched: LaunchContext, selection: Selection
) -> PreparedRun | None:
    """Return how to do again what was just done; None if it was no launch and no loop of boxes."""
    steps, conditions = selection.steps, launched.conditions
    if not (isinstance(steps, tuple) and len(steps) == 1) or conditions.capturing:
        return None
    step = steps[0]
    if step.mode is Mode.LOOP and isinstance(step.work, Copies) and step.work.boxes is not None:
        return PreparedLoop(options, launched, selection, step.work)
    if step.mode is not Mode.KERNEL:
        return None
    find = launch.find_launch if isinstance(step.work, Copies) else exchange.find_launch
    kernel = find(step.work, launched.device, conditions.max_blocks)  # type: ignore[arg-type]
    return PreparedLaunch(options, launched, selection, kernel)


class Ready(NamedTuple):
    """What follows from a number of rows.

    Attributes
    ----------
    selections : tuple of Selection
        What a call with so many may select.
    blocks : int
        Thread blocks of the launch.
    buffers : BufferList
        Pinned memory for the table.
    """

    selections: tuple[Selection, ...]
    blocks: int
    buffers: BufferList


class PreparedRows:
    """Copies of other rows between two arrays that were copied between before.

    Parameters
    ----------
    run : PreparedLaunch
        How copies between them ran, without these: uniform, in order, over a host link.
    pair : LayerPair
        The arrays, as they were read for it, not kept alive.
    bytes_a_row : int
        Of the table of addresses.
    select : callable
        Gets a number of rows; returns what a call with so many may select, nothing if that is
        not this kernel.

    Attributes
    ----------
    run : PreparedLaunch
        As given.
    """

    def __init__(
        self,
        run: PreparedLaunch,
        pair: LayerPair,
        bytes_a_row: int,
        select: Callable[[int], tuple[Selection, ...]],
    ) -> None:
        self.run = run
        self._select = select
        self._ready = ByCount(self._make_ready)
        self._buffers = run.launched.devices.host_buffers
        self._driver = run.launched.driver
        kernel, layout = run.kernel, pair.layout
        self._threads, self._most_blocks = kernel.threads, kernel.most_blocks
        _, _, size, chunks, chunk_bytes, tile, access = kernel.arguments
        self._threads_a_row = chunks * tile
        self._bytes_a_row = bytes_a_row
        self._memory = pair.src.allocations, pair.dst.allocations
        words = dict(
            zip(
                native.prepared.LAUNCH,
                self._driver.launch_functions,
                strict=True,
            )
        )
        words |= zip(("query", "codes"), self._driver.query_functions, strict=True)
        words |= {
            "context": run.context.handle,
            "stream": run.stream,
            "kernel": kernel.function,
            "threads": kernel.threads,
            "size": size,
            "chunks": chunks,
            "chunk_bytes": chunk_bytes,
            "tile": tile,
            "access": access,
            "src_step": layout.src_step,
            "src_blocks": layout.src_blocks,
            "dst_step": layout.dst_step,
            "dst_blocks": layout.dst_blocks,
        }
        with self._driver.activate(run.context.handle):
            for side, array in (("src", pair.src), ("dst", pair.dst)):
                asked = array.span[0]
                answers = self._driver.pointer_info(asked)
                if (describe_allocation(answers, asked),) != array.allocations:
                    raise LookupError("the memory is not what it was")
                words |= {f"{side}_at": array.address, f"{side}_asked": asked}
                words |= {f"{side}_answer{i}": value for i, value in enumerate(answers)}
        self._words = native.prepared.pack(**words)

    def copy(self, mapping: Any, options: RunOptions, holds: tuple[object, ...]) -> Transfer | None:
        """Copy other blocks; None, with nothing done, if this needs the long way.

        Parameters
        ----------
        mapping : object
            Source and destination block of each row.
        options : RunOptions
            What the user said, with the handle of the stream.
        holds : tuple of object
            What must outlive the work.
        """
        return self._submit(self._driver.copy_rows, (mapping,), options, holds)

    def exchange(
        self, out_rows: Any, in_rows: Any, options: RunOptions, holds: tuple[object, ...]
    ) -> Transfer | None:
        """Exchange other blocks, as `copy` copies them."""
        return self._submit(self._driver.exchange_rows, (out_rows, in_rows), options, holds)

    def _submit(
        self,
        submit: Callable[..., int],
        tables: tuple[Any, ...],
        options: RunOptions,
        holds: tuple[object, ...],
    ) -> Transfer | None:
        """Submit tables of equally many rows; None, with nothing done, if that cannot be."""
        if not (all(map(_is_plain, tables)) and self.run.holds(*options)):
            return None
        rows = len(tables[0])
        ready = self._ready(rows) if rows == len(tables[-1]) else None
        if ready is None:
            return None
        selections, blocks, buffers = ready
        buffer = buffers.take_spare()
        if buffer is None:
            return None
        return self.run.track(
            selections,
            (buffer, *holds),
            submit,
            self._words,
            *tables,
            buffer.words,
            buffer.address,
            blocks,
        )

    def stays_right(self, options: RunOptions, pair: LayerPair) -> bool:
        """Whether the same would be prepared again: it was the rows that took the long way.

        Parameters
        ----------
        options : RunOptions
            What the user said, with the handle of the stream.
        pair : LayerPair
            The arrays, as they were read just now.
        """
        return self.run.holds(*options) and self._memory == (
            pair.src.allocations,
            pair.dst.allocations,
        )

    def _make_ready(self, rows: int) -> Ready | None:
        """Return all that follows from a number of rows; None if it is not this kernel."""
        selections = self._select(rows)
        if not selections:
            return None
        blocks = min(self._most_blocks, -(-rows * self._threads_a_row // self._threads))
        return Ready(selections, blocks, self._buffers.of_size(self._bytes_a_row * rows))


_INT64 = np.dtype(np.int64)


def _is_plain(mapping: Any) -> bool:
    """Whether compiled code can read rows of block ids as they are."""
    return (
        type(mapping) is np.ndarray
        and mapping.dtype is _INT64
        and mapping.ndim == 2
        and mapping.shape[1] == 2
        and len(mapping) > 0
        and mapping.flags.carray
    )
