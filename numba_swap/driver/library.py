"""Finding the driver library that Numba speaks to, and its look-up function.

Nothing is linked, and nothing is loaded before the first copy or `driver_info`. The library is
found by ``cuda.pathfinder`` and asked through ``cuda.bindings``, which is what Numba-CUDA uses
for every driver call. ``cuda.bindings`` needs the second revision of ``cuGetProcAddress``
(driver 12.0); on an older driver the first revision is taken from the library with ctypes.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

from numba_swap.driver import abi
from numba_swap.driver.entry_points import Answer, ProcAddress
from numba_swap.errors import DriverUnavailableError


class DriverLibrary(Protocol):
    """What a driver is made from: a path, its origin, and a look-up function."""

    path: str
    found_via: str
    proc_address: ProcAddress
    simulated: bool


class NvidiaLibrary:
    """NVIDIA's driver library, loaded into this process.

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
        If there is no such library, it cannot be loaded, or it is older than CUDA 11.3.
    """

    simulated = False

    def __init__(self) -> None:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

        try:
            loaded = load_nvidia_dynamic_lib("cuda")
            library = ctypes.CDLL(loaded.abs_path)
        except (DynamicLibNotFoundError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DriverUnavailableError(
                f"no CUDA driver library could be loaded ({reason}). Install the NVIDIA driver, "
                "or use numba_swap.simulate() to run without a GPU.",
                [("system search for the CUDA driver library", reason)],
            ) from error
        self.path = str(loaded.abs_path)
        address, revision, source = _find_proc_address(library)
        if not address:
            reason = "it exports no cuGetProcAddress, so it is older than CUDA 11.3 or no driver"
            raise DriverUnavailableError(
                f"{self.path} cannot be used: {reason}. Update the NVIDIA driver.",
                [(self.path, reason)],
            )
        self.found_via = f"{loaded.found_via}, cuGetProcAddress from {source}"
        self.proc_address = ProcAddress(address, revision)


def _find_proc_address(library: ctypes.CDLL) -> tuple[int, int, str]:
    """Return address, revision and source of the look-up function; address 0 if there is none."""
    from cuda.bindings import driver

    v2 = abi.GET_PROC_ADDRESS_V2
    try:
        code, address, status = driver.cuGetProcAddress(
            abi.GET_PROC_ADDRESS_V1.name.encode(), v2.version, abi.PROC_ADDRESS_DEFAULT
        )
        answer = Answer(v2.name, v2.version, int(code), int(address), int(status))
        if answer.found:
            return answer.address, 2, "cuda.bindings"
    except RuntimeError:
        pass  # "Failed to get cuGetProcAddress_v2": a driver before 12.0
    for prototype, revision in ((v2, 2), (abi.GET_PROC_ADDRESS_V1, 1)):
        function = getattr(library, prototype.name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0, revision, "ctypes"
    return 0, 0, "nowhere"
