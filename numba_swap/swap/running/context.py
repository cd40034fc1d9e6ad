"""From what the user says to where work is submitted."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, NamedTuple

from numba_swap.copies.ends import Direction, Ends
from numba_swap.device.context import Context
from numba_swap.device.devices import Devices
from numba_swap.device.streams import is_legacy, probe_stream, same_stream, stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.conditions import Conditions, LaunchContext, capabilities_of
from numba_swap.dispatch.ranking import block_limit
from numba_swap.dispatch.settings import (
    Mode,
    Policy,
    check_positive,
    current_settings,
    parse_mode,
    parse_policy,
)
from numba_swap.errors import CapturedTransferError


class RunOptions(NamedTuple):
    """How the user wants copies to run: the arguments that all verbs share.

    Attributes
    ----------
    stream, mode, max_blocks, policy
        As for `numba_swap.swap_blocks`.
    """

    stream: Any = None
    mode: Mode | str | None = None
    max_blocks: int | None = None
    policy: Policy | str | None = None


class launching:  # noqa: N801 -- it is used as a function
    """Find out what holds for a stream; the stream's context is current inside.

    Parameters
    ----------
    devices : Devices
        The GPUs.
    device : int or None
        The GPU whose memory takes part, if one does; of several the first.
    direction : Direction
        Between which sides the bytes move.
    options : RunOptions
        What the user said.
    others : tuple of int, optional
        The other GPUs whose memory takes part.

    Notes
    -----
    Work runs on a GPU whose memory takes part, whatever is current. In a stream of yet another GPU
    it only stands in that stream's order: it runs in a private stream, between two events. A
    default stream is that of every GPU whose memory takes part.
    """

    __slots__ = ("_device", "_devices", "_direction", "_options", "_others", "_switched")

    def __init__(
        self,
        devices: Devices,
        device: int | None,
        direction: Direction,
        options: RunOptions,
        others: tuple[int, ...] = (),
    ) -> None:
        self._devices = devices
        self._device = device
        self._others = others
        self._direction = direction
        self._options = options
        self._switched: Any = None

    def __enter__(self) -> LaunchContext:
        options, devices = self._options, self._devices
        driver = devices.driver
        if options.max_blocks is not None:
            check_positive(options.max_blocks, "max_blocks")
        if options.mode is not None:
            parse_mode(options.mode)  # an array, for example, could not even be compared
        settings = current_settings()
        policy = settings.policy if options.policy is None else parse_policy(options.policy)
        stream = stream_handle(options.stream)
        default = driver.is_default_stream(stream)
        current, handle, capturing = driver.probe(0 if default else stream)
        if default:
            # It belongs to whatever context is current: that of the data's device is meant.
            if self._device is not None:
                handle = devices[self._device].primary_context
            elif not current:
                handle = devices[0].primary_context
        if handle != current:
            self._switched = driver.activate(handle)
            self._switched.__enter__()
        try:
            if default:
                capturing = probe_stream(driver, stream, "the copy's stream")[2]
            context = devices.context(handle)
            others: tuple[tuple[int, Context], ...] = ()
            if default:
                if self._others:
                    others = self._default_streams(stream, capturing)
            elif self._is_elsewhere(context.device.ordinal):
                others = ((stream, context),)
                stream, context = self._stream_behind(stream, context.device.ordinal, capturing)
            tuning = find_costs(context.device).tuning
            limit = block_limit(tuning, policy, self._direction, options.max_blocks)
            capabilities = capabilities_of(context.device, settings)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        conditions = Conditions(capabilities, capturing, policy, limit, threads=settings.threads)
        return LaunchContext(stream, context, conditions, others=others)

    def _is_elsewhere(self, ordinal: int) -> bool:
        """Whether none of the memory is that of a GPU."""
        here = self._device
        return ordinal != here and here is not None and ordinal not in self._others

    def _stream_behind(self, stream: int, ordinal: int, capturing: bool) -> tuple[int, Context]:
        """Return the stream in which work of another GPU's stream runs; its context is current."""
        assert self._device is not None  # memory of a GPU takes part
        if capturing:
            raise _captured_elsewhere(stream, ordinal, self._device)
        context = self._devices.primary(self._device)
        if self._switched is not None:
            self._switched.__exit__(None, None, None)
            self._switched = None
        switched = self._devices.driver.activate(context.handle)
        switched.__enter__()
        self._switched = switched
        return context.private_streams(1, ("for", stream))[0], context

    def _default_streams(self, stream: int, capturing: bool) -> tuple[tuple[int, Context], ...]:
        """Return the default streams of the other GPUs whose memory takes part."""
        devices, found = self._devices, []
        for other in self._others:
            if capturing:
                raise _captured_elsewhere(stream, self._device, other)
            context = devices.primary(other)
            with devices.driver.activate(context.handle):
                if probe_stream(devices.driver, stream, f"the default stream of device {other}")[2]:
                    raise _captured_elsewhere(stream, other, self._device)
            found.append((stream, context))
        return tuple(found)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._switched is not None:
            self._switched.__exit__(kind, error, traceback)


def _captured_elsewhere(
    stream: int, device: int | None, other: int | None
) -> CapturedTransferError:
    return CapturedTransferError(
        f"stream {stream:#x} of device {device} is being captured into a CUDA graph, and memory of "
        f"device {other} takes part, where work would have to wait for it: capture a stream of "
        f"device {other}, given as stream=, or wait for the end of the capture"
    )


def wait_for_producers(ends: Ends, launch: LaunchContext) -> None:
    """Let the stream wait for what is pending on the arrays, in the streams that they name.

    Raises
    ------
    CapturedTransferError
        If such a stream is being captured, and the copy's is not: waiting would draw the copy
        into the graph. Or if it is the legacy default stream, while another is being captured.
    """
    driver, devices = launch.driver, launch.devices
    for producer in ends.producer_streams:
        if same_stream(producer, launch.stream):
            continue
        if launch.conditions.capturing and is_legacy(producer):  # which is never captured
            continue
        _wait_for_producer(producer, launch)
        if len(ends.devices) > 1 and driver.is_default_stream(producer):
            # It may be that of any of them.
            for other in ends.devices:
                if other != launch.device.ordinal:
                    _wait_for_producer(producer, launch, devices.primary(other))


def _wait_for_producer(producer: int, launch: LaunchContext, of: Context | None = None) -> None:
    """Let the stream wait for another one; a default stream is that of one context."""
    driver, owner = launch.driver, of or launch.context
    with _NO_OTHER if of is None else driver.activate(owner.handle):
        _, handle, capturing = probe_stream(driver, producer, "an array's own stream")
    if capturing and not launch.conditions.capturing:
        raise CapturedTransferError(
            f"an array's own stream {producer:#x} is being captured into a CUDA graph: swap in "
            "that stream"
        )
    if capturing == launch.conditions.capturing:
        if handle != owner.handle:
            with driver.activate(handle):
                owner = launch.devices.context(handle)
        launch.context.wait_for(producer, launch.stream, owner)


_NO_OTHER = contextlib.nullcontext()
