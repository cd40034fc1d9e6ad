"""Which driver is used where none is given: a simulated one that was put in place, or NVIDIA's."""

from __future__ import annotations

import threading

from numba_swap.driver.api import Driver

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
