"""Names of compiled functions that change with any of the sources that they are made from."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any


def salted(function: Any, file: str) -> Any:
    """Add a digest of all Python files beside one to the name by which a function is cached.

    Numba's cache on disk looks at the function's own bytecode and file alone. What the function
    calls may stand in other files, and be compiled into it.
    """
    digest = source_digest(Path(file).parent)
    if digest and not function.__qualname__.endswith(digest):
        function.__qualname__ += f"_{digest}"
    return function


@functools.cache
def source_digest(folder: Path) -> str:
    """Return a digest of the Python files of a folder; empty where they cannot be read."""
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    except OSError:  # a packed installation cannot change
        return ""
    return digest.hexdigest()[:12]
