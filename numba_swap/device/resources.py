"""Events, pinned buffers and private streams that are used again instead of made anew."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.errors import DriverCallError

if TYPE_CHECKING:
    from numba_swap.driver.calls import Driver

_SMALLEST_BUFFER_BYTES = 1 << 12

Words: TypeAlias = npt.NDArray[np.uint64]


class PinnedBuffer:
    """Pinned host memory for descriptors, as 64-bit words; goes back to its pool when dropped.

    So whoever reads it, on the GPU too, must hold it until then.

    Attributes
    ----------
    address : int
        The same for host and device.
    words : ndarray of uint64
        The memory; its length is a power of two. Not to be kept longer than the buffer.
    """

    __slots__ = ("_shelf", "address", "words")

    def __init__(self, address: int, words: Words, shelf: list[tuple[int, Words]]) -> None:
        self.address = address
        self.words = words
        self._shelf = shelf

    def __del__(self) -> None:
        self._shelf.append((self.address, self.words))


def _buffer_size(nbytes: int) -> int:
    return max(_SMALLEST_BUFFER_BYTES, 1 << (nbytes - 1).bit_length())


class DeviceBuffer:
    """Device memory for descriptors; goes back to its pool when dropped, as `PinnedBuffer` does.

    Attributes
    ----------
    address : int
        Where it lies on the device.
    """

    __slots__ = ("_shelf", "address")

    def __init__(self, address: int, shelf: list[int]) -> None:
        self.address = address
        self._shelf = shelf

    def __del__(self) -> None:
        self._shelf.append(self.address)


class Pools:
    """What one driver keeps for later use. Safe to use from several threads.

    Nothing here is ever given back to the driver: the amount is that of the busiest moment.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        # No locks: single operations of lists and dictionaries are atomic, with a GIL or without.
        self._events: dict[int, list[int]] = {}
        self._shelves: dict[int, list[tuple[int, Words]]] = {}
        self._device_shelves: dict[tuple[int, int], list[int]] = {}
        self._streams: dict[tuple[int, int], list[int]] = {}

    def take_event(self, context: int) -> int:
        """Take an event of the given context, which must be the calling thread's."""
        return self.spare_event(context) or self._driver.create_event()

    def spare_event(self, context: int) -> int:
        """Take an event if there is one to spare, whatever context is current; else 0."""
        try:
            return self._events[context].pop()
        except (KeyError, IndexError):
            return 0

    def give_event(self, context: int, event: int) -> None:
        """Take an event back: all that waits on it has been enqueued or is over."""
        self._events.setdefault(context, []).append(event)

    def take_buffer(self, nbytes: int) -> PinnedBuffer:
        """Take a pinned buffer of at least `nbytes`, which must not be 0."""
        size = _buffer_size(nbytes)
        shelf = self._shelves.setdefault(size, [])
        try:
            address, words = shelf.pop()
        except IndexError:
            address = self._driver.host_alloc(size)
            memory = (ctypes.c_uint64 * (size // 8)).from_address(address)
            words = np.ctypeslib.as_array(memory)
        return PinnedBuffer(address, words, shelf)

    def spare_buffer(self, nbytes: int) -> PinnedBuffer | None:
        """Take a pinned buffer if there is one to spare, whatever context is current."""
        shelf = self._shelves.setdefault(_buffer_size(nbytes), [])
        try:
            return PinnedBuffer(*shelf.pop(), shelf)
        except IndexError:
            return None

    def take_device_buffer(self, context: int, nbytes: int) -> DeviceBuffer:
        """Take device memory of at least `nbytes` in a context, the calling thread's."""
        size = _buffer_size(nbytes)
        shelf = self._device_shelves.setdefault((context, size), [])
        try:
            address = shelf.pop()
        except IndexError:
            address = self._driver.device_alloc(size)
        return DeviceBuffer(address, shelf)

    def side_streams(self, context: int, count: int, lane: int = 0) -> list[int]:
        """Return private streams of a context, which must be the calling thread's.

        Each lane has its own, so that what runs side by side does not queue up in one stream.
        """
        streams = self._streams.setdefault((context, lane), [])
        while len(streams) < count:  # threads that get here together may make a few too many
            streams.append(self._driver.create_stream())
        return streams[:count]

    def lane_stream(self, context: int, lane: int) -> int:
        """Return the stream of a lane itself, beside which `side_streams` has more."""
        return self.side_streams(context, 1, -lane)[0]

    def order(
        self, context: int, before: int, after: int, context_before: int | None = None
    ) -> None:
        """Let later work in stream `after` wait for what stream `before` holds now.

        Parameters
        ----------
        context : int
            Context of `after`, the calling thread's.
        before, after : int
            The streams.
        context_before : int, optional
            Context of `before`, if it may be another.
        """
        owner = context if context_before is None else context_before
        other = contextlib.nullcontext() if owner == context else self._driver.activate(owner)
        with other:
            event = self.take_event(owner)
            try:
                self._driver.record_event(event, before)
            except DriverCallError:
                self.give_event(owner, event)
                raise
        try:
            self._driver.wait_event(after, event)
        finally:
            # A wait keeps the event's state of this moment: it may be recorded again at once.
            self.give_event(owner, event)

    @contextlib.contextmanager
    def fenced(
        self, context: int, stream: int, sides: list[int], on_lost: Callable[[], None]
    ) -> Iterator[None]:
        """Run the work inside on private streams, as if it stood in `stream`.

        Parameters
        ----------
        context, stream : int
            The stream, and its context, the calling thread's.
        sides : list of int
            The private streams.
        on_lost : callable
            Called if the stream could not be made to wait for all of them: nothing that is
            recorded in it then tells when the work inside is over.
        """
        event = self.take_event(context)
        try:
            self._driver.record_event(event, stream)
            for side in sides:
                self._driver.wait_event(side, event)
        finally:
            self.give_event(context, event)
        try:
            yield
        except BaseException:
            with contextlib.suppress(DriverCallError):  # the first error is the one to be told
                self.join(context, sides, stream, on_lost)
            raise
        self.join(context, sides, stream, on_lost)

    def join(
        self, context: int, sides: Iterable[int], stream: int, on_lost: Callable[[], None]
    ) -> None:
        """Let a stream wait for what private streams hold now; `on_lost` as for `fenced`."""
        try:
            for side in sides:
                self.order(context, before=side, after=stream)
        except BaseException:
            on_lost()
            raise
