"""Real driver libraries from 11.4 to 12.5 are asked for entry points, without a GPU.

The expected answers stand in facts.json.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from numba_swap.driver import abi
from numba_swap.driver.entry_points import LookupResult

HERE = Path(__file__).parent
pytestmark = pytest.mark.museum

# Exported under another name than it is asked for, in every driver since CUDA 3.2.
EXPORTED_AS = {
    name: f"{name}_v2" for name in ("cuMemAlloc", "cuMemFree", "cuMemGetInfo", "cuMemcpy3DAsync")
}


def run_beside(folder, *command):
    """Run a command that finds the folder's driver library before any other; return its JSON."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0, f"{command[0]} ended with {result.returncode}:\n{result.stderr}"
    return json.loads(result.stdout)


def questions(facts):
    """The rows that numba_swap can ask: those of the revision that it uses."""
    return [row for row in facts["rows"] if row[0] == facts["chosen"]["revision"]]


@pytest.fixture(scope="session")
def report(folder, facts):
    """What numba_swap makes of one driver."""
    asked = json.dumps([row[1:3] for row in questions(facts)])
    return run_beside(folder, sys.executable, str(HERE / "examine.py"), asked)


@pytest.fixture(scope="session")
def ask(tmp_path_factory, skip_or_fail):
    """Path of the compiled ask.c."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        skip_or_fail("no C compiler to build ask.c with: install gcc")
    program = tmp_path_factory.mktemp("ask") / "ask"
    command = [compiler, "-Wall", "-Werror", "-o", str(program), str(HERE / "ask.c"), "-ldl"]
    subprocess.run(command, check=True)
    return str(program)


def test_the_museum_library_is_examined(report, folder):
    assert Path(report["path"]).resolve() == (folder / "libcuda.so.1").resolve()


def test_version(report, facts):
    encoded = facts["version"]
    assert report["version"] == [encoded // 1000, encoded % 1000 // 10]


def test_exported_revisions_of_the_look_up_function(report, facts):
    assert report["revisions"] == facts["revisions"]


def test_chosen_look_up_function(report, facts):
    assert report["revision"] == facts["chosen"]["revision"]
    assert report["found_via"].endswith(f"cuGetProcAddress from {facts['chosen']['from']}")


def test_every_entry_point_at_its_requested_version(report, facts):
    others = facts["entry_points"]["others"]
    expected = {}
    for name, prototype in abi.PROTOTYPES.items():
        answer = facts["entry_points"].get(name, others)
        found = answer[1]
        # Found means the very function of that ABI: by the name it is exported under.
        expected[name] = {
            "version": prototype.version,
            "answer": answer,
            "symbol": EXPORTED_AS.get(name, name) if found else None,
        }
    assert report["entry_points"] == expected


def test_questions_through_numba_swap(report, facts):
    expected = []
    for _, _, version, code, pointer, status in questions(facts):
        symbol = None if pointer in ("untouched", "null") else pointer
        answer = [code, symbol is not None, None if status == "unwritten" else status]
        expected.append({"version": version, "answer": answer, "symbol": symbol})
    assert report["questions"] == expected


def test_questions_in_c_with_a_poisoned_pointer(folder, facts, ask):
    asked = [f"{revision}:{name}:{version}" for revision, name, version, *_ in facts["rows"]]
    assert run_beside(folder, ask, *asked) == facts["rows"]


def test_initialize_reports_the_missing_device(report, facts):
    # Not /dev/nvidiactl: cuInit itself makes that node where it may.
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("this machine has an NVIDIA driver of its own")
    code, name = facts["initialize"]
    error, message = report["initialize"]
    assert error == "DriverUnavailableError"
    assert f"[{code}] cuInit results in {name}" in message
    assert report["path"] in message


@pytest.mark.parametrize(
    ("code", "address", "status", "found"),
    [
        (0, 4096, 0, True),
        (0, 4096, None, True),
        (500, 4096, None, False),
        (1, 4096, 0, False),
        (0, 0, None, False),
        (0, 0, 0, False),
        (0, 4096, 1, False),
        (0, 4096, 2, False),
    ],
)
def test_found_takes_code_pointer_and_status_together(code, address, status, found):
    """Real answers to a cleared pointer break two of the rules at once; here each stands alone."""
    assert LookupResult("cuInit", 2000, code, address, status).found is found


def test_table_covers_the_fetched_drivers(fetch_script):
    drivers = json.loads((HERE / "facts.json").read_text())["drivers"]
    in_museum = {name for name, facts in drivers.items() if facts["museum"]}
    assert in_museum == fetch_script["DRIVERS"].keys()
