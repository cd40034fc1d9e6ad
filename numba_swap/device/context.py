"""A CUDA context: its events, private streams and memory, used again instead of made anew."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from numba_swap.device.device import Device
from numba_swap.device.resources import DeviceBuffer, buffer_size
from numba_swap.device.streams import is_legacy
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.errors import DriverCallError

_NO_LOCK = contextlib.nullcontext()


class Context:
    """A CUDA context, and what is kept for later use in it. Safe to use from several threads.

    Nothing here is ever given back to the driver: the amount is that of the busiest moment.
    Whatever may make something new needs the context to be the calling thread's.

    Attributes
    ----------
    handle : int
        The driver's handle of it.
    device : Device
        The GPU that it belongs to.
    driver : Driver
        The driver.
    """

    def __init__(self, driver: Driver, device: Device, handle: int) -> None:
        self.driver = driver
        self.device = device
        self.handle = handle
        # No locks: see `HostBuffers`.
        self._events: list[int] = []
        self._buffers: dict[int, list[int]] = {}
        self._streams: dict[Hashable, list[int]] = {}
        # Of the streams that calls go into just now: kept alive by those who may hold them.
        self._stream_locks: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self._making_locks = threading.RLock()

    def stream_lock(self, stream: int) -> contextlib.AbstractContextManager[Any]:
        """Return what keeps calls of several threads into one stream apart; always the same.

        It is held while the pieces of one call are enqueued, and never while memory is taken. The
        GPU is waited for meanwhile only where the call itself reads or writes pageable memory: what
        it does then waits for no other call. A signal handler may take it again in the thread that
        holds it.
        """
        if stream == abi.STREAM_PER_THREAD:
            return _NO_LOCK  # no other thread has this one
        key = 0 if is_legacy(stream) else stream
        lock = self._stream_locks.get(key)
        if lock is None:
            with self._making_locks:
                lock = self._stream_locks.setdefault(key, threading.RLock())
        return lock  # type: ignore[no-any-return]

    def take_event(self) -> int:
        """Take an event, a spare one or a new one."""
        return self.take_spare_event() or self.driver.create_event()

    def take_spare_event(self) -> int:
        """Take an event if there is one to spare, whatever context is current; else 0."""
        try:
            return self._events.pop()
        except IndexError:
            return 0

    def give_event(self, event: int) -> None:
        """Take an event back: all that waits on it has been enqueued or is over."""
        self._events.append(event)

    def take_buffer(self, nbytes: int) -> DeviceBuffer:
        """Take device memory of at least `nbytes`."""
        size = buffer_size(nbytes)
        free_list = self._buffers.setdefault(size, [])
        try:
            address = free_list.pop()
        except IndexError:
            address = self.driver.device_alloc(size)
        return DeviceBuffer(address, free_list)

    def private_streams(self, count: int, key: Hashable = ()) -> list[int]:
        """Return private streams; those of different keys do not queue up in each other's."""
        streams = self._streams.setdefault(key, [])
        while len(streams) < count:  # threads that get here together may make a few too many
            streams.append(self.driver.create_stream())
        return streams[:count]

    def wait_for(self, before: int, after: int, owner: Context | None = None) -> None:
        """Let later work in stream `after` wait for what stream `before` holds now.

        Parameters
        ----------
        before, after : int
            The streams; `after` is of this context.
        owner : Context, optional
            That of `before`, if it may be another.
        """
        owner = owner or self
        other = contextlib.nullcontext() if owner is self else self.driver.activate(owner.handle)
        with other:
            event = owner.take_event()
            try:
                self.driver.record_event(event, before)
            except BaseException:
                owner.give_event(event)
                raise
        try:
            self.driver.wait_event(after, event)
        finally:
            # A wait keeps the event's state of this moment: it may be recorded again at once.
            owner.give_event(event)

    @contextlib.contextmanager
    def fork_join(
        self, stream: int, sides: list[int], on_lost: Callable[[], None]
    ) -> Iterator[None]:
        """Run the work inside on private streams, as if it stood in `stream`.

        Parameters
        ----------
        stream : int
            The stream.
        sides : list of int
            The private streams.
        on_lost : callable
            Called if the stream could not be made to wait for all of them: nothing that is
            recorded in it then tells when the work inside is over.
        """
        event = self.take_event()
        try:
            self.driver.record_event(event, stream)
            for side in sides:
                self.driver.wait_event(side, event)
        finally:
            self.give_event(event)
        try:
            yield
        except BaseException:
            with contextlib.suppress(DriverCallError):  # the first error is the one to be told
                self.join(sides, stream, on_lost)
            raise
        self.join(sides, stream, on_lost)

    def join(
        self,
        sides: Iterable[int],
        stream: int,
        on_lost: Callable[[], None],
        owners: Iterable[Context] | None = None,
    ) -> None:
        """Let a stream wait for what private streams hold now; `on_lost` as for `fork_join`.

        `owners` are the contexts of the private streams, if they are not all of this one.
        """
        try:
            for side, owner in zip(sides, owners or itertools.repeat(self), strict=False):
                self.wait_for(side, stream, owner)
        except BaseException:
            on_lost()
            raise
