"""Threads of the host that move rows to and from staging memory, outside the GIL."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap import native

# What a thread takes at a time: little enough for all to end together.
SHARE_BYTES = 1 << 16

Words = npt.NDArray[np.int64]


class HostThreads:
    """Helpers of whoever moves rows; they are started when they are first wanted, and stay.

    They help with one job at a time. A thread that finds them busy does its job alone: it never
    waits for another one, and a signal handler may move rows in the midst of a job.

    A helper waits in compiled code, for a lock of Python's that needs no GIL, so that to wake it
    takes microseconds whatever Python threads do.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._job = np.zeros(len(native.staging.JOB), dtype=np.int64)
        self._over = _new_lock()
        self._wakes = np.zeros(0, dtype=np.int64)
        self._holds: object = None

    @property
    def count(self) -> int:
        """How many helpers there are."""
        return len(self._wakes)

    @contextlib.contextmanager
    def at_work(self, job: Words, threads: int, holds: object) -> Iterator[None]:
        """Let helpers do a job while the body runs; then the calling thread helps until it is done.

        Parameters
        ----------
        job : ndarray of int64
            Its words; see `native.staging.JOB`.
        threads : int
            How many threads are to do it, the calling one among them.
        holds : object
            What keeps the memory of the job alive: a second interrupt (Ctrl-C) may cut even the
            waiting short.

        Notes
        -----
        If the body raises, what nobody has begun of the job is left undone.
        """
        native_loops = native.staging
        shares = -(-int(job[native_loops.END] - job[native_loops.BEGIN]) // SHARE_BYTES)
        wanted = min(threads, shares) - 1
        if wanted < 1 or not self._turn.acquire(blocking=False):
            yield
            native_loops.take_shares(job.ctypes.data)
            return
        try:
            acquire, release = _lock_functions()
            helpers = min(wanted, self._start(wanted))
            mine, self._holds = self._job, (holds, job)
            mine[:] = job
            mine[native_loops.WORKING] = helpers
            at, over, wait = mine.ctypes.data, self._over, native_loops.help_and_wait
            native_loops.wake_helpers(release, self._wakes.ctypes.data, helpers)
            try:
                yield
            except BaseException:
                mine[native_loops.TAKEN] = shares  # nothing is left to take
                raise
            finally:
                wait(acquire, at, over, helpers)
                self._holds = None
        finally:
            self._turn.release()

    def _start(self, wanted: int) -> int:
        """Start helpers until there are so many; return how many there are."""
        acquire, release = _lock_functions()
        while self.count < wanted:
            wake = _new_lock()
            thread = threading.Thread(
                target=native.staging.serve,
                args=(acquire, release, self._job.ctypes.data, wake, self._over),
                name="numba_swap staging",
                daemon=True,
            )
            try:
                thread.start()
            except RuntimeError:  # the system, or an interpreter that ends, gives no more
                break
            self._wakes = np.append(self._wakes, wake)
        return self.count


@functools.cache
def _lock_functions() -> tuple[int, int]:
    """Return the addresses of the functions that take and release a lock of Python's."""
    names = "PyThread_acquire_lock", "PyThread_release_lock"
    acquire, release = (ctypes.cast(_python_function(n), ctypes.c_void_p).value or 0 for n in names)
    return acquire, release


def _python_function(name: str, result: Any = None, *arguments: Any) -> Any:
    """Return a C function of Python's, whatever prototypes others have set on it."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


def _new_lock() -> int:
    """Make a lock that is taken; it is never freed, for a helper may wait for it at the end."""
    lock: int = _python_function("PyThread_allocate_lock", ctypes.c_void_p)()
    word, flag = ctypes.c_void_p, ctypes.c_int
    _python_function("PyThread_acquire_lock", flag, word, flag)(lock, 1)
    return lock


@functools.cache
def host_threads() -> HostThreads:
    """Return the helpers of this process."""
    return HostThreads()


if hasattr(os, "register_at_fork"):
    # A forked child has none of its parent's threads.
    os.register_at_fork(after_in_child=host_threads.cache_clear)
