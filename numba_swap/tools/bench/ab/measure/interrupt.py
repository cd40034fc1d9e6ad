"""Ctrl-C at moments when nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Put off Ctrl-C until it is asked about; the second one comes through at once.

    An exception in the midst of a driver call, or of a simulated one, would leave work behind
    that nobody waits for.

    Yields
    ------
    callable
        Raises KeyboardInterrupt if Ctrl-C came since. Outside the main thread, which alone can
        be interrupted, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, former)
