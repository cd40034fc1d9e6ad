"""A thread that looks after transfers whose end somebody wants to be told of.

It asks the driver, for the driver's own callbacks may call nothing of CUDA, and wait for each other
in an order that nobody chooses.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

from numba_swap.device.in_flight import InFlight
from numba_swap.errors import DriverCallError, NumbaSwapError

_log = logging.getLogger("numba_swap")
# How long it lets the transfers be between two looks: at first, and at most.
_SHORTEST_S, _LONGEST_S = 20e-6, 1e-3

Watched = tuple[InFlight, Callable[[], object]]


class Watcher:
    """Calls functions when work is over, in a thread of its own that is started on demand."""

    def __init__(self) -> None:
        # SimpleQueue.put is safe in whatever code a signal or a destructor interrupts.
        self._queue: queue.SimpleQueue[Watched] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, work: InFlight, tell: Callable[[], object]) -> None:
        """Call a function without arguments once when work is over, or has failed."""
        self._queue.put((work, tell))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="numba_swap watcher", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        watched: list[Watched] = []
        pause = _SHORTEST_S
        while True:
            try:
                watched.append(self._queue.get(timeout=pause if watched else None))
                pause = _SHORTEST_S
            except queue.Empty:
                pause = min(2 * pause, _LONGEST_S)
            over = [some for some in watched if _is_over(some[0])]
            watched = [some for some in watched if some not in over]
            for _, tell in over:
                call(tell)
            del over


def _is_over(work: InFlight) -> bool:
    try:
        return work.poll_in_own_context()
    except DriverCallError as error:
        return error.sticky  # else the question failed, not the work
    except NumbaSwapError:
        return True


def call(tell: Callable[[], object]) -> None:
    """Call a user's function; what it raises goes to the log, for nobody could catch it."""
    try:
        tell()
    except Exception:
        _log.exception("a callback of a transfer failed")


watcher = Watcher()


def _forget_all() -> None:
    """In a forked child no thread runs."""
    global watcher  # noqa: PLW0603
    watcher = Watcher()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
