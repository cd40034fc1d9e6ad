"""What a measurement was made on: device, driver, versions, commit."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from numba_swap.tools.info.driver_info import driver_info


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
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "devices": info["devices"],
        "driver_version": info["driver_version"],
        "driver_release": info.get("driver_release"),
        "pretended_version": info["pretended_version"],
        "versions": info["versions"],
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": os.environ.get("NUMBA_SWAP_COMMIT") or _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changes is None else bool(changes),
    }


def _git(*arguments: str) -> str | None:
    """Ask git about the checkout that this package runs from; None if it is none."""
    try:
        result = subprocess.run(  # noqa: S603
            ["git", "-C", str(Path(__file__).parent), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
