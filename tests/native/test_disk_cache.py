"""A cache on disk that is damaged, or cannot be written, costs compiling and nothing else."""

import importlib.util
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from numba import njit
from numba.core import config

from numba_swap.native import disk_cache

ROOT = Path(__file__).parents[2]
SOURCE = "def one(a, b):\n    return a + b\n\n\ndef two(a, b):\n    return a * b\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder for the cache, and for the sources of what is compiled."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(disk_cache, "_told", set())
    monkeypatch.setitem(sys.modules, "functions", None)  # as it was, afterwards
    (tmp_path / "functions.py").write_text(SOURCE)
    return tmp_path


def compile_anew(folder, name="one", signature="int64(int64, int64)"):
    """Compile a function as another process would; return it and whether it was on disk."""
    specification = importlib.util.spec_from_file_location("functions", folder / "functions.py")
    module = importlib.util.module_from_spec(specification)
    # Numba may look for it by its name, when it takes a function from the disk.
    sys.modules["functions"] = module
    specification.loader.exec_module(module)
    function = njit(getattr(module, name))
    disk_cache.cache_on_disk(function)
    function.compile(signature)
    return function, sum(function.stats.cache_hits.values()) == 1


def files(folder, pattern):
    found = sorted((folder / "cache").rglob(pattern))
    assert found
    return found


def replace_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def overwrite(path, at, content):
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:1]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "text": lambda path: path.write_text("not a pickle at all"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "hole": lambda path: overwrite(path, path.stat().st_size // 2, bytes(64)),
    "begins otherwise": lambda path: overwrite(path, 0, b"\xff" * 8),
    "number": lambda path: path.write_bytes(pickle.dumps(7)),
    "tuple": lambda path: path.write_bytes(pickle.dumps((1, 2, 3, b"4"))),
    "unknown class": lambda path: path.write_bytes(b"cnumba.nothing\nNothing\n."),
    "frame of an exabyte": lambda path: path.write_bytes(b"\x80\x04\x95" + b"\x0f" * 8),
}


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(folder, damage, kind):
    assert not compile_anew(folder)[1]
    assert compile_anew(folder)[1]
    (path,) = files(folder, f"*.{kind}")
    DAMAGES[damage](path)
    function, found = compile_anew(folder)
    assert not found
    assert function(20, 22) == 42
    function, found = compile_anew(folder)
    assert found
    assert function(20, 22) == 42


@pytest.mark.parametrize("contents", [[1, 2], {"key": 5}, 7])
def test_an_index_of_something_else_is_replaced(folder, contents):
    """It is of the right version, and of these sources."""
    compile_anew(folder)
    (path,) = files(folder, "*.nbi")
    with open(path, "rb") as file:
        version, (stamp, _) = pickle.load(file), pickle.load(file)
    path.write_bytes(pickle.dumps(version) + pickle.dumps((stamp, contents)))
    assert compile_anew(folder)[0](20, 22) == 42
    assert compile_anew(folder)[1]


def test_every_byte_of_the_machine_code_is_looked_at(folder):
    """A bit that tipped over in it would otherwise be run."""
    compile_anew(folder)
    (path,) = files(folder, "*.nbc")
    data = path.read_bytes()
    code = data.index(b"\x7fELF")
    for at in range(code, len(data), len(data) // 8):
        path.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        function, found = compile_anew(folder)
        assert not found
        assert function(20, 22) == 42


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_folder_in_place_of_a_file(folder, kind, caplog):
    compile_anew(folder)
    (path,) = files(folder, f"*.{kind}")
    replace_by_folder(path)
    assert compile_anew(folder)[0](20, 22) == 42
    assert "nothing can be written to" in caplog.text


def test_data_of_another_function_is_not_taken(folder):
    """Both have one signature, so nothing but the seal tells them apart."""
    compile_anew(folder, "one")
    compile_anew(folder, "two")
    one, two = files(folder, "*.nbc")
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert compile_anew(folder, "one")[0](20, 22) == 42
    assert compile_anew(folder, "two")[0](20, 22) == 440


def test_data_of_former_sources_is_not_taken(folder):
    """As after a crash, or in another process, between the two files that Numba writes."""
    compile_anew(folder)
    (path,) = files(folder, "*.nbc")
    former = path.read_bytes()
    (folder / "functions.py").write_text(SOURCE.replace("a + b", "a - b"))
    assert compile_anew(folder)[0](20, 22) == -2
    path.write_bytes(former)
    assert compile_anew(folder)[0](20, 22) == -2


def test_other_signatures_survive_a_damaged_data_file(folder, caplog):
    compile_anew(folder)
    compile_anew(folder, signature="float64(float64, float64)")
    damaged, _ = files(folder, "*.nbc")
    damaged.write_bytes(b"")
    found = []
    for name in ("int64", "float64"):
        disk_cache._told.clear()
        found.append(compile_anew(folder, signature=f"{name}({name}, {name})")[1])
    assert found == [False, True], caplog.text


def test_a_warning_comes_once_and_says_where_and_why(folder, caplog):
    for name in ("one", "two"):
        compile_anew(folder, name)
    for path in files(folder, "*.nbc"):
        path.write_bytes(b"")
    for name in ("one", "two"):
        compile_anew(folder, name)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder / "cache") in record.getMessage()
    assert "EOFError" in record.getMessage()


def test_no_folder_at_all(folder, monkeypatch, caplog):
    (folder / "file").touch()
    monkeypatch.setattr(config, "CACHE_DIR", str(folder / "file"))
    monkeypatch.setattr(config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    function, found = compile_anew(folder)
    assert not found
    assert function(20, 22) == 42
    assert "no folder can be used (RuntimeError: " in caplog.text


# -- the whole package, in processes of its own ---------------------------------------------------

SWAP = """
import resource, sys
room = int(sys.argv[1])
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
import numpy as np
import numba_swap as ns
with ns.simulate() as gpu:
    host, device = gpu.pinned_array((8, 8), np.uint8), gpu.device_array((8, 8), np.uint8)
    host[:] = np.arange(8)[:, None]
    ns.swap_blocks(host, device, [[2, 0], [5, 1]], mode="loop").wait()
    ns.exchange(device, host, [[0, 7]], [[1, 2]], mode="loop").wait()
    print(*device.copy_to_host()[:3, 0], host[7, 0])
"""


def swap(cache, *, room=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", SWAP, str(room)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end_of(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output == "2 5 1 2\n"
    return errors


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_and_then_every_file_cut_short(tmp_path):
    cache = tmp_path / "cache"
    assert "nothing can be written to" in end_of(swap(cache, room=2048))
    assert not list(cache.rglob("*.nbc"))
    assert not end_of(swap(cache))  # there is room again
    whole = {path: path.read_bytes() for path in cache.rglob("*.nb[ic]")}
    assert len(whole) > 20
    for path, content in whole.items():
        path.write_bytes(content[:-20])
    # Several at once mend what each other writes.
    for process in [swap(cache) for _ in range(2)]:
        end_of(process)
    assert not end_of(swap(cache))


def test_a_cache_folder_that_is_a_file_or_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        end_of(swap(cache))
