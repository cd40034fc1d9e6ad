"""One piece of work that was submitted, to submit again as it was."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from numba_swap.copies.copies import Copies
from numba_swap.copies.forms import plain_forms
from numba_swap.device.in_flight import InFlight
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.dispatch.settings import Mode, Policy, current_settings
from numba_swap.errors import DriverCallError
from numba_swap.modes import loop
from numba_swap.modes.kernel import exchange, launch
from numba_swap.modes.kernel.table import Launch
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.select import Selection
from numba_swap.swap.running.transfer import Transfer

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

    def refused(self, code: int, index: int) -> DriverCallError:
        """Make the error of a launch that the driver refused."""
        return self._driver.launch_refused(code)

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
        The boxes, or one copy without a form.

    Attributes
    ----------
    boxes : Boxes
        Their forms.
    """

    __slots__ = ("_copies", "boxes")

    def __init__(
        self, options: RunOptions, launched: LaunchContext, selection: Selection, copies: Copies
    ) -> None:
        super().__init__(options, launched, selection)
        self._copies = copies
        self.boxes = copies.boxes or plain_forms(copies.uniform)

    def without_work(self) -> PreparedLoop:
        """Return the same without arrays: it keeps no memory in use."""
        bare = copy.copy(self)
        bare.options = self.options._replace(stream=None)  # its handle is compared
        bare.selection = Selection(self.selection.decision)
        bare._copies = copy.copy(self._copies)
        bare._copies.ends = self._copies.ends._replace(owners=())
        bare._copies.memo = {}
        return bare

    def refused(self, code: int, index: int) -> DriverCallError:
        """Make the error of one copy that the driver refused."""
        return loop.refused(self._driver, self._copies, code, index)

    def again(self, *holds: object) -> Transfer | None:
        """Make the same loop once more; None, with nothing done, if this needs the long way."""
        return self.track((self.selection,), holds, self._submit)

    def _submit(self, event: int) -> int:
        copies, boxes = self._copies, self.boxes
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
            raise self.refused(code, index)
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
    if step.mode is Mode.LOOP and isinstance(step.work, Copies):
        if step.work.boxes is None and len(step.work) > 1:
            return None
        return PreparedLoop(options, launched, selection, step.work)
    if step.mode is not Mode.KERNEL:
        return None
    find = launch.find_launch if isinstance(step.work, Copies) else exchange.find_launch
    kernel = find(step.work, launched.device, conditions.max_blocks)  # type: ignore[arg-type]
    return PreparedLaunch(options, launched, selection, kernel)
