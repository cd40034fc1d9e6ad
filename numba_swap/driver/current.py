"""Which driver is used where none is given: a simulated one that was put in place, or NVIDIA's."""

from __future__ import annotations

import os
import threading
from typing import Any

from numba_swap.driver.calls import Driver
from numba_swap.errors import forked_error

_lock = threading.Lock()
_simulated: list[Driver] = []
_default: Driver | None = None


def default_driver() -> Driver:
    """NVIDIA's driver on this machine, loaded and resolved once for all threads.

    Raises
    ------
    DriverUnavailableError
        If there is none; the next call looks again.
    """
    global _default  # noqa: PLW0603 -- the one cached default; every function takes a driver
    if _default is None:
        with _lock:
            if _default is None:
                from numba_swap.driver.library import NvidiaLibrary

                _default = Driver(NvidiaLibrary())
    return _default


def current_driver() -> Driver:
    """Return the driver of the simulation entered last, else NVIDIA's of this machine.

    Raises
    ------
    DriverUnavailableError
        If no simulation is active and there is no driver.
    """
    return _simulated[-1] if _simulated else default_driver()


def enter_driver(driver: Driver) -> None:
    """Put a simulated driver in place, for all threads."""
    with _lock:
        _simulated.append(driver)


def leave_driver(driver: Driver) -> None:
    """Take a simulated driver away again."""
    with _lock:
        _simulated.remove(driver)


class _ForkedDriver(Driver):
    """A driver of the parent process: whatever is asked of it in the child raises."""

    def __getattribute__(self, name: str) -> Any:
        raise forked_error()


def _after_fork() -> None:
    """Refuse from now on the drivers that the parent has used; a new simulation may be entered."""
    global _lock  # noqa: PLW0603 -- another thread of the parent may have held it
    _lock = threading.Lock()
    for driver in [*_simulated, _default]:
        if driver is not None and driver.initialized:
            driver.__class__ = _ForkedDriver


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
