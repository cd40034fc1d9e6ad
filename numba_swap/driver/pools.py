"""Events, pinned buffers and private streams that are used again instead of made anew."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from numba_swap.driver.api import Driver

_SMALLEST_BUFFER_BYTES = 1 << 12


class PinnedBuffer:
    """Pinned host memory for descriptors, as 64-bit words.

    Attributes
    ----------
    address : int
        The same for host and device.
    words : ndarray of uint64
        The memory; its length is a power of two.
    """

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.address = driver.host_alloc(nbytes)
        memory = (ctypes.c_uint64 * (nbytes // 8)).from_address(self.address)
        self.words: npt.NDArray[np.uint64] = np.ctypeslib.as_array(memory)


class Pools:
    """What one driver keeps for later use. Safe to use from several threads.

    Nothing here is ever given back to the driver: the amount is that of the busiest moment.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._events: defaultdict[int, list[int]] = defaultdict(list)
        self._buffers: defaultdict[int, list[PinnedBuffer]] = defaultdict(list)
        self._streams: dict[int, int] = {}

    def take_event(self, context: int) -> int:
        """Take an event of the given context, which must be the calling thread's."""
        try:
            return self._events[context].pop()
        except IndexError:
            return self._driver.create_event()

    def give_event(self, context: int, event: int) -> None:
        """Take an event back: all that waits on it has been enqueued or is over."""
        self._events[context].append(event)

    def take_buffer(self, nbytes: int) -> PinnedBuffer:
        """Take a pinned buffer of at least `nbytes`; give it back when the GPU has read it."""
        size = max(_SMALLEST_BUFFER_BYTES, 1 << (nbytes - 1).bit_length())
        try:
            return self._buffers[size].pop()
        except IndexError:
            return PinnedBuffer(self._driver, size)

    def give_buffer(self, buffer: PinnedBuffer) -> None:
        """Take a buffer back: nothing on the GPU reads it any more."""
        self._buffers[buffer.words.nbytes].append(buffer)

    def side_stream(self, context: int) -> int:
        """Return the private stream of a context, which must be the calling thread's."""
        with self._lock:
            if context not in self._streams:
                self._streams[context] = self._driver.create_stream()
            return self._streams[context]

    def order(self, context: int, before: int, after: int) -> None:
        """Let later work in stream `after` wait for what stream `before` holds now."""
        event = self.take_event(context)
        self._driver.record_event(event, before)
        self._driver.wait_event(after, event)
        # A wait keeps the event's state of this moment: it may be recorded again at once.
        self.give_event(context, event)

    @contextlib.contextmanager
    def fenced_side_stream(self, context: int, stream: int) -> Iterator[int]:
        """Run the work inside on the private stream, as if it stood in `stream`."""
        side = self.side_stream(context)
        self.order(context, before=stream, after=side)
        try:
            yield side
        finally:
            self.order(context, before=side, after=stream)
