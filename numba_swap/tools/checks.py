"""What a command checks before it begins: room in memory, and the files that it will write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from numba_swap.errors import BadArgumentError
from numba_swap.tools.units import GIB

# Of control groups, in their second and first version.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_memory(nbytes: int, what: str, device_bytes: int | None = None) -> None:
    """Refuse what needs more memory than there is.

    Parameters
    ----------
    nbytes : int
        How much it needs.
    what : str
        What needs it, for the message.
    device_bytes : int, optional
        How much there is of device memory, if that is meant; else it is the host's.

    Raises
    ------
    BadArgumentError
        Naming what needs so much.
    """
    present = memory_bytes() if device_bytes is None else device_bytes
    if present is not None and nbytes > present:
        where = "host" if device_bytes is None else "device"
        raise BadArgumentError(
            f"{what} would take some {-(-nbytes // GIB)} GiB of {where} memory, and there are "
            f"{present // GIB} GiB"
        )


def memory_bytes() -> int | None:
    """Return how much memory the host, or this container, has; None if it does not say."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in _LIMITS:
        with contextlib.suppress(ValueError, OSError):  # there is none, or it is "max"
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Raises
    ------
    BadArgumentError
        Naming the file and the reason.
    """
    there = os.path.exists(path)
    if there and not (os.path.isfile(path) or os.path.isdir(path)):
        return  # a pipe or a device: to open it is to begin
    try:
        with path.open("ab"):
            pass
        if not there:
            os.unlink(os.path.realpath(path))  # not a link to it
    except FileNotFoundError:
        raise BadArgumentError(f"{path}: there is no such folder") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadArgumentError(f"{path} cannot be written: {reason}") from None
