"""``numba-swap info`` of real old driver libraries, each in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from numba_swap.tools.cli import main

pytestmark = pytest.mark.museum

MODES = {"470": "loop", "525": "kernel", "535": "kernel", "550": "kernel", "555": "kernel"}
NEWER = {"loop": "12.0 or newer: kernel; 12.8 or newer: batch", "kernel": "12.8 or newer: batch"}


def run_info(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "numba_swap", "info", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.stderr == ""
    return result.returncode, result.stdout


@pytest.fixture(scope="module")
def library(folder):
    return folder / "libcuda.so.1"


@pytest.fixture(scope="module")
def info(library):
    """What is said of a library given by its path."""
    status, output = run_info("--driver", str(library), "--json")
    info = json.loads(output)
    assert status == (0 if info["available"] else 1)
    return info


def test_mode_and_what_a_newer_driver_brings(info, release):
    assert info["mode"] == MODES[release]
    assert info["newer_driver"] == NEWER[info["mode"]]


def test_versions_that_people_confuse(info, facts, folder):
    encoded = facts["version"]
    assert info["driver_version"] == f"{encoded // 1000}.{encoded % 1000 // 10}"
    fetched = json.loads((folder / "INFO.json").read_text())["library"]
    assert info["driver_release"] == fetched.removeprefix("libcuda.so.")
    assert info["driver_release_source"] == "text inside the library"


def test_release_is_read_from_the_name_behind_the_link(library, release, tmp_path):
    (tmp_path / f"libcuda.so.{release}.99.01").symlink_to(library)
    shutil.copy(library, tmp_path / f"libcuda.so.{release}.77.02")
    (tmp_path / "libcuda.so.1").symlink_to(f"libcuda.so.{release}.77.02")
    _, output = run_info("--driver", str(tmp_path / "libcuda.so.1"), "--json")
    info = json.loads(output)
    assert info["driver_release"] == f"{release}.77.02"
    assert info["driver_release_source"] == f"file name libcuda.so.{release}.77.02"


def test_batch_copy_is_missing_and_why(info):
    reason = f"driver {info['driver_version']} has no cuMemcpyBatchAsync, which is new in 12.8"
    assert info["batch_copy"] == {"usable": False, "reason": reason}


def test_entry_points_are_those_of_the_table(info, facts):
    others = facts["entry_points"]["others"]
    for entry in info["entry_points"]:
        expected = facts["entry_points"].get(entry["name"], others)
        assert [entry["code"], entry["found"], entry["status"]] == expected


def test_the_main_process_does_not_load_it(library, capsys):
    main(["info", "--driver", str(library), "--json"])
    assert json.loads(capsys.readouterr().out)["library"] == str(library)
    assert os.path.realpath(library) not in Path("/proc/self/maps").read_text()


def test_report_for_people(library, info):
    status, output = run_info("--driver", str(library))
    assert status == (0 if info["available"] else 1)
    lines = {}
    for line in output.splitlines():
        label, _, value = line.strip().partition("  ")
        lines.setdefault(label, value)
    assert lines["mode"].split()[0] == info["mode"]
    assert lines["because"] == info["reason"]
    assert lines["newer driver"] == info["newer_driver"]
    assert lines["supports CUDA up to"].startswith(f"{info['driver_version']}  (nvidia-smi's CUDA")
    assert lines["release"].startswith(f"{info['driver_release']}  (nvidia-smi's Driver Version")
    assert lines["batch copy"].startswith("no  (driver")
    assert f"used {library}" in output


def test_the_first_of_several_on_the_path_is_used_and_marked(library, info, tmp_path):
    for name in ("first", "cuda/compat", "cuda/lib64/stubs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cuda" / "compat" / "libcuda.so.1").symlink_to(library)
    shutil.copy(library, tmp_path / "cuda" / "lib64" / "stubs" / "libcuda.so")
    shutil.copy(library, tmp_path / "first" / "libcuda.so.1")
    folders = [tmp_path / name for name in ("cuda/lib64/stubs", "first", "cuda/compat")]
    variable = ":".join(map(str, folders))
    _, output = run_info("--json", LD_LIBRARY_PATH=variable)
    found = json.loads(output)
    rows = [row for row in found["libraries"] if row["origin"] == "LD_LIBRARY_PATH"]
    names = [os.path.relpath(row["path"], tmp_path) for row in rows]
    assert names == [
        "cuda/lib64/stubs/libcuda.so",
        "first/libcuda.so.1",
        "cuda/compat/libcuda.so.1",
    ]
    assert [row["used"] for row in rows] == [False, True, False]
    assert [row["by_default"] for row in rows] == [False, True, False]
    assert [row["kind"] for row in rows] == ["toolkit stub", "ordinary", "ordinary"]
    assert rows[2]["file"] == os.path.realpath(library)
    assert {row["release"] for row in rows} == {info["driver_release"]}
    # The same library says the same, whichever way it is reached.
    for key in ("mode", "reason", "driver_version", "entry_points", "batch_copy", "newer_driver"):
        assert found[key] == info[key]
    _, report = run_info(LD_LIBRARY_PATH=variable)
    assert re.findall(r"^ *used (.*)$", report, re.M) == [rows[1]["path"]]
    assert all(row["path"] in report for row in rows)


def test_a_forward_compatibility_package(library, tmp_path):
    (tmp_path / "compat").mkdir()
    shutil.copy(library, tmp_path / "compat" / "libcuda.so.1")
    _, output = run_info("--json", LD_LIBRARY_PATH=str(tmp_path / "compat"))
    assert json.loads(output)["library_kind"] == "forward-compatibility package"


def test_forced_and_pretended_settings_count(library, info):
    _, output = run_info("--driver", str(library), "--json", NUMBA_SWAP_MODE="batch")
    forced = json.loads(output)
    assert forced["mode"] is None
    assert "cannot run this copy: driver" in forced["reason"]
    assert forced["newer_driver"] == "12.8 or newer: batch"
    _, output = run_info("--driver", str(library), "--json", NUMBA_SWAP_DRIVER_VERSION="11.3")
    pretended = json.loads(output)
    assert (pretended["mode"], pretended["pretended_version"]) == ("loop", "11.3")
