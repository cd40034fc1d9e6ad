"""Compiled functions are compiled anew when any source that they are made from has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from numba_swap.native import rows, salt

ROOT = Path(__file__).parents[2]
ASK = """
import numpy as np
from numba_swap import native
words = np.zeros(8, np.uint64)
one = np.array([[0, 1]])
print(native.pairing.place_pairs(one, one, (1000, 10, 4), (5000, 10, 4), 10, words)[0],
      int(words[0]))
"""


def ask(root, cache):
    environment = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(cache)}
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
        cwd=root,
    )
    return result.stdout.split()


def test_a_change_of_a_callee_in_another_file_is_seen(tmp_path):
    """Numba's cache looks at the caller's file alone."""
    package, cache = tmp_path / "numba_swap", tmp_path / "cache"
    shutil.copytree(
        ROOT / "numba_swap", package, ignore=shutil.ignore_patterns("__pycache__", "*.nb[ic]")
    )
    assert ask(tmp_path, cache) == ["0", "5010"]
    files = set(cache.rglob("*.nbi"))
    assert ask(tmp_path, cache) == ["0", "5010"]
    assert set(cache.rglob("*.nbi")) == files  # loaded, not compiled again
    # `find_slot`, in another file, and so in name only: what matters is that all are new.
    source = package / "native" / "rows.py"
    source.write_text(source.read_text().replace("_FEW_ROWS = 32", "_FEW_ROWS = 33"))
    assert ask(tmp_path, cache) == ["0", "5010"]
    changed = set(cache.rglob("*.nbi")) - files
    assert any(path.name.startswith("pairing.place_pairs") for path in changed)


def test_the_digest_is_of_all_python_files_beside_one(tmp_path):
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(name)
    digest = salt.source_digest(tmp_path)
    assert len(digest) == 12
    salt.source_digest.cache_clear()
    (tmp_path / "two.py").write_text("2")
    assert salt.source_digest(tmp_path) != digest
    assert salt.source_digest(tmp_path / "nothing") == salt.source_digest(tmp_path / "nothing")


def test_functions_are_named_by_it_once():
    digest = salt.source_digest(Path(rows.__file__).parent)
    name = rows.place_rows.py_func.__qualname__
    assert name == f"place_rows_{digest}"
    assert salt.salted(rows.place_rows.py_func, rows.__file__).__qualname__ == name
