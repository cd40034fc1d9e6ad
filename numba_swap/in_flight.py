"""What keeps memory alive until the GPU is done with it."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from typing import Any

from numba_swap.driver.api import Driver
from numba_swap.driver.pools import PinnedBuffer
from numba_swap.errors import DriverCallError


class InFlight:
    """Enqueued work: an event behind it, and everything that must outlive it.

    Parameters
    ----------
    driver : Driver
        The driver it runs on.
    context : int
        Context of the stream, the calling thread's at this moment.
    holds : tuple of object
        Arrays and descriptors to keep alive.
    """

    def __init__(self, driver: Driver, context: int, holds: tuple[object, ...]) -> None:
        self._driver = driver
        self._context = context
        self._holds = holds
        self._buffers: list[PinnedBuffer] = []
        self._event: int | None = None
        self._error: DriverCallError | None = None
        self._lock = threading.Lock()

    def take_buffer(self, nbytes: int) -> PinnedBuffer:
        """Take a pinned buffer that goes back to the pool when the work is over."""
        buffer = self._driver.pools.take_buffer(nbytes)
        self._buffers.append(buffer)
        return buffer

    def close(self, stream: int) -> None:
        """Mark the end of the work in its stream; from now on it can be waited for."""
        event = self._driver.pools.take_event(self._context)
        self._driver.record_event(event, stream)
        self._event = event
        _unfinished[id(self)] = self

    def keep_forever(self) -> None:
        """Never release anything: a graph may replay the work at any time."""
        _captured.append((self._holds, self._buffers))

    @property
    def over(self) -> bool:
        """Whether it is known to be over."""
        return self._event is None

    def poll(self) -> bool:
        """Look whether it is over, and release what it held if so."""
        self._raise_error()
        event = self._event
        if event is None:
            return True
        with self._failure_recorded():
            if not self._driver.event_done(event):
                return False
        self._release()
        return True

    def wait(self) -> None:
        """Block until it is over, and release what it held."""
        self._raise_error()
        event = self._event
        if event is None:
            return
        with self._failure_recorded():
            self._driver.synchronize_event(event)
        self._release()

    def abandon(self) -> None:
        """Leave it to the reaper: nobody will wait for it."""
        if self._event is not None:
            _reaper.adopt(self)

    def wait_in_own_context(self) -> None:
        """Wait in a thread that may have another context, or none."""
        with self._driver.activate(self._context):
            self.wait()

    @contextlib.contextmanager
    def _failure_recorded(self) -> Any:
        try:
            yield
        except DriverCallError as error:
            # Work that failed has broken its context for good; nothing runs there any more.
            self._error = error
            self._release(event_usable=False)
            raise

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _release(self, *, event_usable: bool = True) -> None:
        with self._lock:
            event, self._event = self._event, None
            holds, self._holds = self._holds, ()
            buffers, self._buffers = self._buffers, []
        if event is None:
            return
        _unfinished.pop(id(self), None)
        if event_usable:
            self._driver.pools.give_event(self._context, event)
            for buffer in buffers:
                self._driver.pools.give_buffer(buffer)
        del holds  # outside the lock: the last reference to an array may run its destructor


class _Reaper:
    """A thread that waits for transfers nobody waits for, so that their memory is released."""

    def __init__(self) -> None:
        # SimpleQueue.put is safe in a destructor, which may interrupt any code, this included.
        self._queue: queue.SimpleQueue[InFlight] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def adopt(self, work: InFlight) -> None:
        self._queue.put(work)
        if self._thread is None and self._lock.acquire(blocking=False):
            try:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="numba_swap reaper", daemon=True
                    )
                    self._thread.start()
            except RuntimeError:
                self._thread = None  # the interpreter is shutting down; _wait_for_all does it
            finally:
                self._lock.release()

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            # The error stays with the work; the user dropped the only way to see it.
            with contextlib.suppress(DriverCallError):
                work.wait_in_own_context()
            del work  # not held while the next one is waited for


_reaper = _Reaper()
_unfinished: dict[int, InFlight] = {}
# Work captured into graphs. Its descriptors and arrays are needed as long as any graph lives.
_captured: list[tuple[tuple[object, ...], list[PinnedBuffer]]] = []


@atexit.register
def _wait_for_all() -> None:
    """Let no copy run into memory that the end of the interpreter frees."""
    for work in list(_unfinished.values()):
        with contextlib.suppress(DriverCallError):
            work.wait_in_own_context()
