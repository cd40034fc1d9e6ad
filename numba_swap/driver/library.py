"""Finding the driver library that Numba speaks to, and its look-up function.

Nothing is linked, and nothing is loaded before the first copy or `driver_info`. The library is
found by ``cuda.pathfinder`` (``libcuda.so.1``, also in WSL; ``nvcuda.dll`` in Windows) and asked
through ``cuda.bindings``, which is what Numba-CUDA uses for every driver call. ``cuda.bindings``
needs the second revision of ``cuGetProcAddress`` (driver 12.0); on an older driver the first
revision is taken from the library with ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Protocol

from numba_swap.driver import abi
from numba_swap.driver.entry_points import LookupResult, ProcAddress
from numba_swap.driver.search.candidates import find_candidates, predict
from numba_swap.driver.search.elf import find_flaw
from numba_swap.driver.search.machine import look_at_machine
from numba_swap.driver.version import DriverVersion
from numba_swap.errors import DriverUnavailableError

_LIBRARY_NAME = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUresult of every function of the toolkit's stub.


class DriverLibrary(Protocol):
    """What a driver is made from: a path, its origin, and a look-up function."""

    path: str
    found_via: str
    proc_address: ProcAddress
    simulated: bool

    def raise_interrupt(self) -> None:
        """Raise what the calling thread was interrupted by inside a call, if anything."""


class NvidiaLibrary:
    """NVIDIA's driver library, loaded into this process.

    Parameters
    ----------
    path : str, optional
        The library to load, instead of the one that Numba speaks to. Only to be examined: a
        process keeps the first driver library that it loads.

    Attributes
    ----------
    path : str
        Absolute path of the library.
    found_via : str
        How it was found and where the look-up function came from.
    proc_address : ProcAddress
        Its look-up function.

    Raises
    ------
    DriverUnavailableError
        If there is no such library, it cannot be loaded, it is the toolkit's stub, it is older
        than CUDA 11.3, or its look-up function fails.
    """

    simulated = False

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            library, self.path, found_via = _load_by_search()
        else:
            library, self.path, found_via = _load_given(path)
        address, revision, source = _find_proc_address(library, by_bindings=path is None)
        if not address:
            raise _unusable(self.path, _why_no_proc_address(library))
        self.found_via = f"{found_via}, cuGetProcAddress from {source}"
        self.proc_address = ProcAddress(address, revision, f"the driver {self.path}")
        # Every driver has this one, so what comes back tells whether look-ups work at all.
        version = abi.PROTOTYPES["cuDriverGetVersion"]
        code = self.proc_address.ask(version.name, version.version).code
        if code == abi.ERROR_STUB_LIBRARY:
            raise _unusable(
                self.path,
                "it is the CUDA toolkit's stub (code 34, CUDAabi.ERROR_STUB_LIBRARY), which is for "
                "linking only: take its folder off LD_LIBRARY_PATH",
            )
        if code not in (abi.SUCCESS, abi.ERROR_NOT_FOUND):
            raise _unusable(
                self.path,
                f"its {self.proc_address.prototype.name} fails with code {code} when asked for "
                f"{version.name}",
            )

    def raise_interrupt(self) -> None:
        """Do nothing: Python handles a signal after a call in C."""


def _load_by_search() -> tuple[ctypes.CDLL, str, str]:
    """Load the library that Numba speaks to; return it, its path, and how it was found."""
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    _refuse_deadly()
    try:
        loaded = load_nvidia_dynamic_lib("cuda")
        return _open(loaded.abs_path), str(loaded.abs_path), str(loaded.found_via)
    except (DynamicLibNotFoundError, OSError, RuntimeError, UnicodeDecodeError) as error:
        reason = _loader_words() or " ".join(str(error).split())
        candidates = find_candidates()
        flaws = [f"{c.path} {c.flaw.words}" for c in candidates if c.searched and c.flaw]
        tried = [(c.path, c.why_not) for c in candidates if c.why_not]
        raise DriverUnavailableError(
            f"no CUDA driver library could be loaded ({'; '.join([reason, *flaws])}). "
            f"{look_at_machine().why_no_driver} Without a GPU, numba_swap.simulate() runs.",
            [(f"{_LIBRARY_NAME}, by the system's loader", reason), *tried],
        ) from error


def _open(name: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Load a library; `OSError` has the loader's words if it cannot be."""
    try:
        return ctypes.CDLL(name, mode)
    except UnicodeDecodeError as error:
        # What Python 3.11 makes of the loader's words if there is a path in them that is not UTF-8.
        raise OSError(os.fsdecode(error.object)) from error


def _refuse_deadly() -> None:
    """Raise if the loader would take a damaged library that kills the process (SIGBUS)."""
    if sys.platform != "linux":
        return
    # The loader's cache is costly to read, so it is read only if there is something to fear.
    if not any(c.flaw and c.flaw.deadly for c in find_candidates(cache="")):
        return
    with contextlib.suppress(OSError):
        _open(_LIBRARY_NAME, os.RTLD_NOLOAD)
        return  # some library is loaded already, so the loader does not search
    taken = predict(find_candidates())
    if taken is not None and taken.flaw is not None and taken.flaw.deadly:
        raise _unusable(taken.path, f"it {taken.flaw.words}")


def _loader_words() -> str | None:
    """Return what the system's loader says to the name that it was asked for."""
    try:
        _open(_LIBRARY_NAME)
    except OSError as error:
        return str(error)
    return None


def _load_given(path: str) -> tuple[ctypes.CDLL, str, str]:
    path = os.path.abspath(path)
    flaw = find_flaw(path) if sys.platform == "linux" else None
    if flaw is not None:
        raise _unusable(path, f"it {flaw.words}")
    try:
        return _open(path), path, "the path given"
    except OSError as error:
        raise _unusable(path, f"the loader refuses it: {error}") from error


def _find_proc_address(library: ctypes.CDLL, *, by_bindings: bool) -> tuple[int, int, str]:
    """Return address, revision and source of the look-up function; address 0 if there is none."""
    v2 = abi.GET_PROC_ADDRESS_V2
    if by_bindings:
        from cuda.bindings import driver

        try:
            code, address, status = driver.cuGetProcAddress(
                abi.GET_PROC_ADDRESS_V1.name.encode(), v2.version, abi.PROC_ADDRESS_DEFAULT
            )
            answer = LookupResult(v2.name, v2.version, int(code), int(address), int(status))
            if answer.found:
                return answer.address, 2, "cuda.bindings"
        except RuntimeError:
            pass  # "Failed to get cuGetProcAddress_v2": a driver before 12.0
    for prototype, revision in ((v2, 2), (abi.GET_PROC_ADDRESS_V1, 1)):
        function = getattr(library, prototype.name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0, revision, "ctypes"
    return 0, 0, "nowhere"


def _why_no_proc_address(library: ctypes.CDLL) -> str:
    """Return why a library without a look-up function is of no use."""
    function = getattr(library, "cuDriverGetVersion", None)
    if function is None:
        return "it exports no cuGetProcAddress and no cuDriverGetVersion, so it is no CUDA driver"
    encoded = ctypes.c_int()
    code = function(ctypes.byref(encoded))
    if code == abi.ERROR_STUB_LIBRARY:
        return "it is the CUDA toolkit's stub, which is for linking only"
    version = f" (it supports {DriverVersion.from_encoded(encoded.value)})" if not code else ""
    return (
        f"it exports no cuGetProcAddress, so it is older than CUDA 11.3{version}: update the "
        "NVIDIA driver"
    )


def _unusable(path: str, reason: str) -> DriverUnavailableError:
    return DriverUnavailableError(f"{path} cannot be used: {reason}.", [(path, reason)])
