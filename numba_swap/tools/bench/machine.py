"""What a measurement was made on: device, driver, versions, commit, clocks."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from numba_swap.tools.info.driver_info import driver_info

_CLOCK_FIELDS = {
    "clocks.sm": "sm_mhz",
    "clocks.mem": "memory_mhz",
    "temperature.gpu": "temperature_c",
    "power.draw": "power_w",
}


def describe_machine() -> dict[str, Any]:
    """Return what must stand beside every figure, ready for JSON.

    Returns
    -------
    dict
        ``device``, ``driver_version``, ``driver_release`` and more of `driver_info`; ``python``
        and package versions; ``system``, ``cores``; ``commit`` and whether the tree had changes
        that are not in it (None where git cannot tell); ``date`` (UTC).
    """
    info = driver_info()
    commit = _git("rev-parse", "HEAD")
    changes = commit and _git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": info["devices"],
        "driver_version": info["driver_version"],
        "driver_release": info.get("driver_release"),
        "pretended_version": info["pretended_version"],
        "versions": info["versions"],
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": os.environ.get("NUMBA_SWAP_COMMIT") or commit,
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    """Ask git about the checkout that this package runs from; None if it is none.

    A package that is merely installed within the checkout of something else is not that.
    """
    git = "git", "-C", str(Path(__file__).parent)
    if _ask(*git, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _ask(*git, *arguments)


def _ask(*command: str) -> str | None:
    """Return what a program answers; None if it is not there, fails or hangs."""
    try:
        result = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def read_clocks() -> dict[str, float | None] | None:
    """Ask ``nvidia-smi`` for clocks, temperature and power of GPU 0; None if it cannot tell.

    Returns
    -------
    dict or None
        ``sm_mhz``, ``memory_mhz``, ``temperature_c``, ``power_w``, each None if not supported.
    """
    answer = _ask(
        "nvidia-smi",
        f"--query-gpu={','.join(_CLOCK_FIELDS)}",
        "--format=csv,noheader,nounits",
        "--id=0",
    )
    return None if answer is None else parse_clocks(answer)


def parse_clocks(text: str) -> dict[str, float | None] | None:
    """Read the first line of what ``nvidia-smi`` answers; None if it is something else."""
    words = [word.strip() for word in text.strip().partition("\n")[0].split(",")]
    if len(words) != len(_CLOCK_FIELDS):
        return None
    clocks: dict[str, float | None] = {}
    for name, word in zip(_CLOCK_FIELDS.values(), words, strict=True):
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        clocks[name] = value if value >= 0 and value != float("inf") else None
    return clocks
