"""Examining any driver library in a process of its own.

Run as ``python -m numba_swap.tools.info.examine PATH``.

Loading a library runs its code. Whatever that does (crash, hang, print, exit) happens to a child
process; this one reads its answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

from numba_swap.dispatch.settings import current_settings
from numba_swap.errors import DriverUnavailableError
from numba_swap.tools.info.driver_info import library_info

_TIMEOUT_SECONDS = 60.0


def examine(path: str, timeout: float = _TIMEOUT_SECONDS) -> dict[str, Any]:
    """Describe one driver library without loading it into this process.

    Parameters
    ----------
    path : str
        The library.
    timeout : float
        Seconds after which the examination is given up.

    Returns
    -------
    dict
        As `numba_swap.driver_info` returns it. A file that is no usable driver is described too,
        with the reason.

    Raises
    ------
    DriverUnavailableError
        If there is no such file, or loading or asking it crashes, hangs or ends the process.
    ValueError
        If ``NUMBA_SWAP_MODE`` or ``NUMBA_SWAP_DRIVER_VERSION`` cannot be read.
    """
    current_settings()  # an error in the environment is one of this process
    if not os.path.lexists(path):
        raise _failure(path, "there is no such file")
    # Away from the working folder, whose files must not shadow modules, unless the package is
    # imported from there.
    safe = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
    command = [sys.executable, *safe, "-m", "numba_swap.tools.info.examine", os.path.abspath(path)]
    # Files, not pipes: a grandchild that lives on would keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            status = subprocess.run(  # noqa: S603 -- this Python, this package
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise _failure(
                path, f"loading and asking it did not end within {timeout:g} seconds"
            ) from None
        output.seek(0)
        errors.seek(0)
        answer, words = output.read(), errors.read().decode(errors="replace").split("\n")
    try:
        info: dict[str, Any] = json.loads(answer)
    except ValueError:
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        says = f" (its last words: {last[:200]})" if last else ""
        raise _failure(path, f"{_describe_end(status)}{says}") from None
    return info


def _describe_end(status: int) -> str:
    if status >= 0:
        return f"loading and asking it ended the process with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"loading or asking it crashed the process ({name})"


def _failure(path: str, reason: str) -> DriverUnavailableError:
    return DriverUnavailableError(f"{path} cannot be examined: {reason}", [(path, reason)])


def main() -> None:
    """Be the child process: print the description of the library named on the command line."""
    # The library may print as well. Only the answer goes where the parent reads it.
    answer = os.dup(1)
    os.dup2(2, 1)
    info = library_info(sys.argv[1])
    with os.fdopen(answer, "w") as stream:
        json.dump(info, stream)
    # Not by way of the library's own cleanup, which might crash or hang.
    os._exit(0)


if __name__ == "__main__":
    main()
