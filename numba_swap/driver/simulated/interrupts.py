"""Ctrl-C while a simulated driver works: heard when the work is done, as it is with a real one.

No exception passes through C, and Python runs the handlers of signals wherever it pleases, also
before the first line of a function that C has called. So the handler itself looks where it is.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class _Thread(threading.local):
    """What has interrupted a thread's calls."""

    interrupt: BaseException | None = None


_thread = _Thread()


def callback(call: Callable[..., int], code: int) -> Callable[..., int]:
    """Make what C may call: of whatever interrupts `call`, it gets the code alone.

    Until that is raised, every call in this thread does its work and returns the code.
    """

    def entry(*arguments: object) -> int:
        answer = code
        try:
            answer = call(*arguments)
        except BaseException as error:  # noqa: BLE001, RUF100 -- ctypes would print it
            _thread.interrupt = error
        # (No call, after which Python would look for signals once more.)
        return answer if _thread.interrupt is None else code

    return entry


def run_to_the_end(action: Callable[[], None]) -> None:
    """Run something that can be neither left half done nor done again."""
    action()


def raise_interrupt() -> None:
    """Raise what has interrupted this thread's calls, Ctrl-C most likely, if anything has."""
    interrupt = _thread.interrupt
    if interrupt is not None:
        _thread.interrupt = None
        raise interrupt


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Let Ctrl-C wait until a call, or what runs to the end, is over; it is for the main thread."""
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            former(number, frame)
        except BaseException as error:
            while frame is not None and frame.f_code.co_filename != __file__:
                frame = frame.f_back
            if frame is None:
                raise
            _thread.interrupt = error

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        _thread.interrupt = None  # after another exception than this
        if signal.getsignal(signal.SIGINT) is handler:
            signal.signal(signal.SIGINT, former)
