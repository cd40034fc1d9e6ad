"""What keeps memory alive until the GPU is done with it."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time

from numba_swap.device.context import Context
from numba_swap.device.streams import probe_stream
from numba_swap.driver import abi
from numba_swap.errors import (
    CapturedTransferError,
    DriverCallError,
    NumbaSwapError,
    forked_error,
)

# How long the reaper lets a driver be that cannot say whether work is over.
_RETRY_SECONDS = 0.05


class InFlight:
    """Enqueued work: an event behind it, and everything that must outlive it.

    Parameters
    ----------
    context : Context
        Context of the stream; the calling thread's, unless an event is given.
    holds : tuple of object
        Arrays and descriptors to keep alive.
    captured : bool
        Whether the stream is being captured into a graph.
    event : int, optional
        An event of the context; one is taken if none is given.

    Attributes
    ----------
    event : int
        To be recorded behind the work; 0 if it is captured, or over.
    """

    __slots__ = ("__weakref__", "_context", "_driver", "_error", "_holds", "_unmarked", "event")

    def __init__(
        self,
        context: Context,
        holds: tuple[object, ...],
        captured: bool,
        event: int = 0,
    ) -> None:
        self._context = context
        self._driver = context.driver
        self._holds = holds
        self._error: NumbaSwapError | None = None
        # Streams with a part of the work, of which nothing tells yet when they are through.
        self._unmarked: tuple[tuple[int, Context], ...] = ()
        if captured:
            self.event = 0
            # A graph may replay the work at any time: never release anything.
            _kept.append(self)
        else:
            self.event = event or context.take_event()
            _unfinished[id(self)] = self

    def hold(self, *more: object) -> None:
        """Keep more objects alive until the work is over."""
        self._holds += more

    def close(self, stream: int) -> None:
        """Mark the end of the work in its stream, for work that was not submitted with `event`."""
        if self.event:
            self._driver.record_event(self.event, stream)

    def lose(self, *streams: int, of: Context | None = None) -> None:
        """Note private streams that nothing joins: the work is over when they are through, too.

        Parameters
        ----------
        *streams : int
            The streams.
        of : Context, optional
            Theirs, if it is another than that of the work.
        """
        self._unmarked += tuple((stream, of or self._context) for stream in streams)

    def close_after_failure(self, stream: int) -> None:
        """Track what may have been submitted before an error to its end, and release it then.

        Where the driver refuses even that, it is asked again until it does not: to free what may
        be in use is worse than to keep it for longer. Private streams that could not be joined are
        waited for here, if the driver lets that be.
        """
        if not self.event:
            return  # captured
        if self._unmarked:
            # Nothing orders these before what the user enqueues next: it could be overwritten.
            with contextlib.suppress(DriverCallError):
                self._wait_for_unmarked()
        lost = self._unmarked
        # A thread's own default stream is known to that thread alone; the legacy one waits for it.
        default = self._driver.is_default_stream(stream)
        self.lose(abi.STREAM_LEGACY if default else stream)
        try:
            self.close(stream)
            self._unmarked = lost
        except DriverCallError:
            pass  # the reaper asks again
        finally:
            self.abandon()

    def keep_for_good(self) -> None:
        """Never release anything: nothing will tell when the work is over."""
        if _unfinished.pop(id(self), None) is not None:
            self.event = 0
            _kept.append(self)

    def cancel(self) -> None:
        """Forget it: nothing was submitted."""
        if self.event:
            self._release()
        else:  # captured
            _kept.remove(self)
            self._holds = ()

    @property
    def over(self) -> bool:
        """Whether it is known to be over; never for captured work."""
        return self.event == 0 and not self._holds

    def poll(self) -> bool:
        """Look whether it is over, and release what it held if so."""
        if self._error is not None:
            raise self._error
        if self._unmarked:
            return False
        if self.event:
            try:
                if not self._driver.event_done(self.event):
                    return False
            except DriverCallError as error:
                self._fail(error)
                raise
            self._release()
        return True

    def wait(self) -> None:
        """Block until it is over, and release what it held."""
        if self._error is not None:
            raise self._error
        if self.event:
            try:
                self._driver.synchronize_event(self.event)
                if self._unmarked:
                    self._wait_for_unmarked()
            except DriverCallError as error:
                self._fail(error)
                raise
            self._release()

    def make_wait(self, stream: int) -> None:
        """Let later work in a stream come after this; the host does not wait.

        Raises
        ------
        CapturedTransferError
            If the stream is being captured: a graph cannot wait for what is outside of it.
        """
        if self._error is not None:
            raise self._error
        event = self.event
        if not event:
            return
        driver = self._driver
        if driver.is_default_stream(stream):
            # It belongs to whatever context is current.
            owner = driver.probe(0)[0] or self._context.handle
        else:
            owner = driver.probe(stream)[1]
        with driver.activate(owner):
            if probe_stream(driver, stream, "the stream that is to wait")[2]:
                raise CapturedTransferError(
                    f"stream {stream:#x} is being captured into a CUDA graph, which cannot wait "
                    "for a transfer outside of it: let the stream wait before the capture begins, "
                    "or the one in which the graph is launched"
                )
            # (Should another thread give the event back now, the stream waits for what it is
            # recorded behind next: longer, but not in vain.)
            driver.wait_event(stream, event)

    def poll_in_own_context(self) -> bool:
        """Do what `poll` does, in a thread that may have another context, or none."""
        with self._driver.activate(self._context.handle):
            return self.poll()

    def _wait_for_unmarked(self) -> None:
        """Wait for streams one by one: the event serves again as soon as it is over."""
        with _reaper.turn:
            while self._unmarked:
                stream, context = self._unmarked[0]
                if context is self._context:
                    self._wait_for_stream(stream, self.event)
                else:
                    with self._driver.activate(context.handle):
                        event = context.take_event()
                        try:
                            self._wait_for_stream(stream, event)
                        finally:
                            context.give_event(event)
                self._unmarked = self._unmarked[1:]

    def _wait_for_stream(self, stream: int, event: int) -> None:
        driver = self._driver
        if driver.probe(stream)[2]:  # an event of ours has no place in a user's graph
            code = abi.ERROR_STREAM_CAPTURE_UNSUPPORTED
            raise DriverCallError("cuEventRecord", code, driver.error_name(code))
        driver.record_event(event, stream)
        driver.synchronize_event(event)

    def abandon(self) -> None:
        """Leave it to the reaper: nobody will wait for it."""
        if self.event:
            _reaper.adopt(self)

    def wait_in_own_context(self) -> None:
        """Wait in a thread that may have another context, or none."""
        with self._driver.activate(self._context.handle):
            self.wait()

    def _fail(self, error: DriverCallError) -> None:
        if not error.sticky:
            return  # the question failed, not the work: it may still be running
        # Work that failed has broken its context for good: its event is not used again, and
        # nothing runs there any more that could touch what is released now.
        self._error = error
        if _unfinished.pop(id(self), None) is not None:
            self.event = 0
            self._holds = ()

    def _release(self) -> None:
        # Popping is atomic: of several threads that waited, one releases.
        if _unfinished.pop(id(self), None) is not None:
            self._context.give_event(self.event)
            self.event = 0
            self._holds = ()


class _Reaper:
    """A thread that waits for transfers nobody waits for, so that their memory is released.

    Attributes
    ----------
    turn : Lock
        For the one thread that waits for streams whose ends are not marked.
    """

    def __init__(self) -> None:
        self.turn = threading.Lock()
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
        unsure: list[InFlight] = []  # the driver could not say whether it is over
        due = 0.0
        while True:
            patience = max(0.0, due - time.monotonic()) if unsure else None
            with contextlib.suppress(queue.Empty):
                unsure += _not_over([self._queue.get(timeout=patience)])
            if unsure and time.monotonic() >= due:
                unsure = _not_over(unsure)
                due = time.monotonic() + _RETRY_SECONDS


def _not_over(works: list[InFlight]) -> list[InFlight]:
    """Wait for each; return those of which the driver did not say that they are over."""
    for work in works:
        # The error stays with the work; the user dropped the only way to see it.
        with contextlib.suppress(NumbaSwapError):
            work.wait_in_own_context()
    return [work for work in works if work.event]


def _forget_all() -> None:
    """In a forked child nothing is in flight and no thread waits: CUDA does not survive a fork."""
    global _reaper  # noqa: PLW0603
    for work in list(_unfinished.values()):
        # Its memory is not released: the libraries that own it would call a driver that is gone.
        work.keep_for_good()
        work._error = forked_error()
    _reaper = _Reaper()


_reaper = _Reaper()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
_unfinished: dict[int, InFlight] = {}
# Work captured into graphs, whose descriptors and arrays are needed as long as any graph lives;
# and work of which nothing tells when it is over.
_kept: list[InFlight] = []


def pending() -> tuple[list[InFlight], list[InFlight]]:
    """Return all work that is not known to be over, and all that is never released."""
    return list(_unfinished.values()), list(_kept)


@atexit.register
def _wait_for_all() -> None:
    """Let no copy run into memory that the end of the interpreter frees."""
    for work in list(_unfinished.values()):
        with contextlib.suppress(DriverCallError):
            work.wait_in_own_context()
