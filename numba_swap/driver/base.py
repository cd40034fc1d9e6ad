"""A driver library and its entry points, found once: what all calls stand on."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int
from typing import TYPE_CHECKING, Any

from numba_swap.driver import abi
from numba_swap.driver.entry_points import EntryPoints
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverCallError

if TYPE_CHECKING:
    from numba_swap.driver.library import DriverLibrary


class DriverBase:
    """A driver library, its entry points, and what is asked of them.

    Parameters
    ----------
    library : DriverLibrary
        NVIDIA's, or a simulated one: the same code runs over both.

    Attributes
    ----------
    version : DriverVersion
        The CUDA version that the driver supports.
    entry_points : EntryPoints
        Every function asked for, with the driver's answer.
    initialized : bool
        Whether the driver was initialised through this object.
    """

    def __init__(self, library: DriverLibrary) -> None:
        self.library = library
        self.entry_points = EntryPoints(library.proc_address)
        self._addresses: dict[str, int] = {}
        for name, answer in self.entry_points.answers.items():
            if answer.found:
                self._addresses[name] = answer.address
                setattr(self, f"_{name}", self.entry_points.function(name))
        version = c_int()
        self._check(self._cuDriverGetVersion(byref(version)), "cuDriverGetVersion")
        self.version = DriverVersion.from_encoded(version.value)
        self.initialized = False

    def __getattr__(self, name: str) -> Any:
        # Only reached for an entry point that the driver does not have.
        if name.startswith("_cu"):
            return self.entry_points.function(name[1:])
        raise AttributeError(name)

    @property
    def simulated(self) -> bool:
        """Whether this is a simulation over host memory."""
        return self.library.simulated

    def has(self, name: str) -> bool:
        """Whether the entry point was found."""
        return self.entry_points.answers[name].found

    def address(self, name: str) -> int:
        """Address of an entry point, for compiled callers."""
        try:
            return self._addresses[name]
        except KeyError:
            self.entry_points.function(name)  # says why there is none
            raise

    def error_name(self, code: int) -> str:
        """Return the driver's name of a return code that is not 0.

        Whoever got such a code comes here: so this is where an interrupt inside a call is raised.
        """
        self.library.raise_interrupt()
        name = ctypes.c_char_p()
        if self._cuGetErrorName(code, byref(name)) == abi.SUCCESS and name.value:
            return name.value.decode(errors="replace")
        return f"unknown error {code}"

    def _check(self, code: int, function: str, note: str = "") -> None:
        if code:
            raise DriverCallError(function, code, self.error_name(code), note=note)
