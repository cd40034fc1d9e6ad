"""Driver libraries that are missing, damaged, of the wrong kind, or that answer wrongly.

Small libraries called libcuda.so.1 are compiled here, and each is examined in a child process,
both by its path (``info --driver``) and as the first that the dynamic loader finds. What needs
Windows or WSL cannot run here: of those only the path logic is tested.
"""

import ctypes.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from numba_swap.driver.search.candidates import (
    Kind,
    classify,
    find_candidates,
    find_release,
    predict,
    read_loader_cache,
)
from numba_swap.driver.search.elf import find_flaw
from numba_swap.driver.search.machine import find_toolkit, look_at_machine

linux = pytest.mark.skipif(sys.platform != "linux", reason="the rules are those of glibc's loader")
compiled = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="needs gcc and Linux"
)

ROOT = Path(__file__).parents[2]
FAKE = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifndef VERSION
#define VERSION 12040
#endif
#ifndef LOOK_UP_CODE
#define LOOK_UP_CODE 0
#endif
#ifndef INIT_CODE
#define INIT_CODE 0
#endif
#ifndef BATCH_SINCE
#define BATCH_SINCE 12080
#endif
#ifndef NULL_FOR
#define NULL_FOR ""
#endif
static int anything(void) { return 0; }
static void hang(void) { for (;;) pause(); }
static int init(unsigned flags) { return INIT_CODE; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
static int count(int *devices) { *devices = 1; return 0; }
static int name(char *text, int size, int device) { strncpy(text, "Fake [GPU]", size); return 0; }
static int attribute(int *value, int which, int device) { *value = 9; return 0; }
static int error_name(int code, const char **text) { *text = "CUDA_ERROR_FAKE"; return 0; }
static void *find(const char *symbol)
{
    if (!strcmp(symbol, NULL_FOR)) return NULL;
    if (!strcmp(symbol, "cuInit")) return init;
    if (!strcmp(symbol, "cuDriverGetVersion")) return cuDriverGetVersion;
    if (!strcmp(symbol, "cuDeviceGetCount")) return count;
    if (!strcmp(symbol, "cuDeviceGetName")) return name;
    if (!strcmp(symbol, "cuDeviceGetAttribute")) return attribute;
    if (!strcmp(symbol, "cuGetErrorName")) return error_name;
    if (strstr(symbol, "BatchAsync") && VERSION < BATCH_SINCE) return NULL;
    if (strncmp(symbol, "cuNo", 4) == 0) return NULL;
    return anything;
}
#ifndef NO_LOOK_UP
int cuGetProcAddress_v2(const char *s, void **p, int version, uint64_t flags, int *status)
{
    if (LOOK_UP_CODE) return LOOK_UP_CODE;
    if (!strcmp(s, "cuGetProcAddress") && strcmp(NULL_FOR, s)) *p = cuGetProcAddress_v2;
    else *p = find(s);
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char *s, void **p, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(s, p, version, flags, NULL);
}
#endif
__attribute__((constructor)) static void start(void)
{
#ifdef ON_LOAD
    ON_LOAD;
#endif
}
"""


def elf(machine=62, bits=2, kind=3, order=1, segment=None):
    """The bytes of an ELF file without contents; a segment is what its table says of it."""
    header = struct.pack(
        "<4sBBBBB7xHHIQQQIHHHHHH",
        *(b"\x7fELF", bits, order, 1, 0, 0, kind, machine, 1, 0, 64, 0, 0, 64, 56),
        *(1 if segment else 0, 64, 0, 0),
    )
    if segment is None:
        return header
    offset, size = segment
    return header + struct.pack("<IIQQQQQQ", 1, 5, offset, 0, 0, size, size, 4096)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """Compile a fake driver; return the folder of its libcuda.so.1. Each only once."""
    made = {}

    def compile_fake(**macros):
        key = tuple(sorted(macros.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("fake")
            (folder / "fake.c").write_text(FAKE)
            command = ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1"]
            command += [f"-D{name}={value}" for name, value in macros.items()]
            command += ["-o", str(folder / "libcuda.so.1"), str(folder / "fake.c")]
            subprocess.run(command, check=True)
            made[key] = folder
        return made[key]

    return compile_fake


def run_cli(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "numba_swap", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(params=["given", "search"])
def examine(request):
    """Examine the libcuda.so.1 of a folder, given by its path or found by the loader."""

    def run(folder):
        library = Path(folder) / "libcuda.so.1"
        if request.param == "given":
            result = run_cli("info", "--json", "--driver", str(library))
        else:
            result = run_cli("info", "--json", LD_LIBRARY_PATH=str(folder))
        assert result.returncode in (0, 1), result.stderr
        info = json.loads(result.stdout)
        assert result.returncode == (0 if info["available"] else 1)
        info["way"] = request.param
        return info

    return run


def failures(info):
    return {c["candidate"]: c["error"] for c in info["candidates"]}


# -- libraries that answer ------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize(
    ("version", "mode"), [(11030, "loop"), (12000, "kernel"), (12080, "batch"), (13000, "batch")]
)
def test_a_fake_driver_with_a_device_is_usable(build, examine, version, mode):
    info = examine(build(VERSION=version))
    assert info["available"]
    assert info["mode"] == mode
    assert info["driver_version"] == f"{version // 1000}.{version % 1000 // 10}"
    assert info["batch_copy"]["usable"] is (mode == "batch")
    assert [device["name"] for device in info["devices"]] == ["Fake [GPU]"]
    assert [row["path"] for row in info["libraries"] if row["used"]] == [info["library"]]


@compiled
def test_an_address_that_the_driver_is_too_old_for_is_not_used(build, examine):
    info = examine(build(VERSION=12040, BATCH_SINCE=0))
    assert info["mode"] == "kernel"
    assert info["batch_copy"] == {
        "usable": False,
        "reason": "driver 12.4 has no cuMemcpyBatchAsync, which is new in 12.8; asked for it, it "
        "answered: code 0, an address, status found, which is not used because this driver is "
        "only 12.4",
    }
    entries = [e for e in info["entry_points"] if not e["found"]]
    assert [e["name"] for e in entries] == ["cuMemcpyBatchAsync", "cuMemcpy3DBatchAsync"]
    assert all((e["code"], e["status"]) == (0, 0) for e in entries)


@compiled
def test_such_an_address_cannot_be_called(build):
    code = """
import sys
from numba_swap.driver.calls import Driver
from numba_swap.driver.library import NvidiaLibrary
from numba_swap.errors import EntryPointNotFoundError
driver = Driver(NvidiaLibrary(sys.argv[1]))
assert not driver.has("cuMemcpyBatchAsync")
for use in (driver.address, driver.entry_points.function):
    try:
        use("cuMemcpyBatchAsync")
    except EntryPointNotFoundError as error:
        print(error)
"""
    library = build(VERSION=12040, BATCH_SINCE=0) / "libcuda.so.1"
    result = subprocess.run(
        [sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert set(lines) == {
        f"the driver {library} gave no cuMemcpyBatchAsync at version 12080: code 0, an address, "
        "status found, which is not used because this driver is only 12.4"
    }


@compiled
def test_success_with_null_for_an_essential_function(build, examine):
    info = examine(build(NULL_FOR='"cuMemcpyAsync"'))
    assert not info["available"]
    assert info["mode"] is None
    assert info["reason"] == (
        f"the driver {info['library']} gave no cuMemcpyAsync at version 4000: code 0, no address, "
        "status found"
    )
    assert failures(info) == {info["library"]: info["reason"]}
    assert info["found_via"]


@compiled
def test_success_with_null_for_the_batch_copy(build, examine):
    info = examine(build(VERSION=12080, NULL_FOR='"cuMemcpyBatchAsync"'))
    assert info["mode"] == "kernel"
    assert info["batch_copy"]["reason"] == (
        "driver 12.8 did not give cuMemcpyBatchAsync (code 0, no address, status found)"
    )
    assert info["newer_driver"] == "12.8 or newer: batch"  # one that gives what it should


@compiled
@pytest.mark.parametrize("code", [999, 1, 3])
def test_a_look_up_function_that_fails(build, examine, code):
    folder = build(LOOK_UP_CODE=code)
    info = examine(folder)
    path = str(folder / "libcuda.so.1")
    reason = f"its cuGetProcAddress_v2 fails with code {code} when asked for cuDriverGetVersion"
    assert failures(info) == {path: reason}
    assert info["reason"] == f"{path} cannot be used: {reason}."


@compiled
def test_a_toolkit_stub(build, examine):
    folder = build(LOOK_UP_CODE=34)
    info = examine(folder)
    assert "toolkit's stub (code 34" in failures(info)[str(folder / "libcuda.so.1")]
    assert not info["available"]


@compiled
@pytest.mark.parametrize(
    "stub", [*Path("/usr/local").glob("cuda*/lib64/stubs/libcuda.so"), None][:1]
)
def test_a_real_toolkit_stub(stub, tmp_path, examine):
    if stub is None:
        pytest.skip("no CUDA toolkit with a stub of the driver library is here")
    shutil.copy(stub, tmp_path / "libcuda.so.1")
    info = examine(tmp_path)
    assert "toolkit's stub" in info["reason"]


@compiled
def test_a_driver_before_the_look_up_function(build, examine):
    folder = build(VERSION=11020, NO_LOOK_UP=1)
    info = examine(folder)
    path = str(folder / "libcuda.so.1")
    assert info["reason"] == (
        f"{path} cannot be used: it exports no cuGetProcAddress, so it is older than CUDA 11.3 (it "
        "supports 11.2): update the NVIDIA driver."
    )
    assert info["newer_driver"].startswith("11.3 or newer: loop; 12.0 or newer: kernel; 12.8")


@compiled
def test_a_library_that_is_no_driver(tmp_path, examine):
    (tmp_path / "no.c").write_text("int nothing;")
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(
        [*command, "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "no.c")], check=True
    )
    (why,) = failures(examine(tmp_path)).values()
    assert why.endswith("so it is no CUDA driver")


@compiled
def test_no_device_is_said_with_the_driver_described(build, examine):
    info = examine(build(INIT_CODE=100))
    assert (info["available"], info["mode"], info["driver_version"]) == (False, "kernel", "12.4")
    assert failures(info) == {info["library"]: "[100] cuInit results in CUDA_ERROR_FAKE"}


# -- libraries that do anything else --------------------------------------------------------------


@compiled
@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("abort()", "loading or asking it crashed the process (SIGABRT)"),
        ("*(volatile int *)0 = 1", "loading or asking it crashed the process (SIGSEGV)"),
        ("_exit(0)", "loading and asking it ended the process with status 0"),
        ("exit(7)", "loading and asking it ended the process with status 7"),
        (
            '(fprintf(stderr,"out of\\nluck\\n"),_exit(3))',
            "loading and asking it ended the process with status 3 (its last words: luck)",
        ),
        ('(puts("{}"),fflush(stdout),_exit(0))', "ended the process with status 0"),
        ("for(;;)pause()", "loading and asking it did not end within 3 seconds"),
        # A grandchild that lives on must not keep the parent waiting.
        ("if(!fork())sleep(40);else for(;;)pause()", "did not end within 3 seconds"),
    ],
)
def test_whatever_a_library_does_is_an_error_and_no_more(build, action, reason):
    library = build(ON_LOAD=action) / "libcuda.so.1"
    result = run_cli("info", "--driver", str(library), "--timeout", "3")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"numba-swap: error: {library} cannot be examined: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


@compiled
@pytest.mark.parametrize("after", ["", "atexit(abort)", "atexit(hang)"])
def test_what_a_library_prints_or_does_at_exit_is_kept_out_of_the_answer(build, after):
    action = f'puts("{{]"),fflush(stdout),{after or "0"}'
    library = build(ON_LOAD=action) / "libcuda.so.1"
    result = run_cli("info", "--json", "--driver", str(library), "--timeout", "15")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["mode"] == "kernel"


def test_a_path_without_a_file_is_an_error(tmp_path):
    result = run_cli("info", "--driver", str(tmp_path / "libcuda.so.1"))
    assert result.returncode == 2
    assert "cannot be examined: there is no such file" in result.stderr


# -- files that are no library --------------------------------------------------------------------


@pytest.fixture(scope="session")
def broken(tmp_path_factory, build):
    """Folders whose libcuda.so.1 is none that can be loaded."""
    top = tmp_path_factory.mktemp("broken")
    whole = (build() / "libcuda.so.1").read_bytes() if shutil.which("gcc") else elf()
    contents = {
        "text": b"This is not a library." * 10,
        "empty": b"",
        "header": whole[:40],
        "half": whole[: len(whole) // 3],
        "aarch64": whole[:18] + b"\xb7\x00" + whole[20:],
        "bits32": whole[:4] + b"\x01" + whole[5:],
        "program": whole[:16] + b"\x01\x00" + whole[18:],
        "far": whole[:32] + struct.pack("<Q", 2**63) + whole[40:],
    }
    for name, content in contents.items():
        (top / name).mkdir()
        (top / name / "libcuda.so.1").write_bytes(content)
    (top / "link").mkdir()
    (top / "link" / "libcuda.so.1").symlink_to("libcuda.so.999.9")
    (top / "folder" / "libcuda.so.1").mkdir(parents=True)
    (top / "pipe").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(top / "pipe" / "libcuda.so.1")
    (top / "nothing").mkdir()
    return top


FLAWS = {
    "text": "it is not a shared library (it begins with b'This is ')",
    "empty": "it is not a shared library (it is empty)",
    "header": "it is truncated: not even its header is complete",
    "half": "it is truncated: ",
    "aarch64": "it is built for aarch64, this Python runs on x86_64",
    "bits32": "it is a 32-bit library, this Python is 64-bit",
    "program": "it is an ELF file but not a shared library",
    "far": "it is truncated: its table of segments is incomplete",
    "link": "it is a link to nothing",
    "folder": "it cannot be read (Is a directory)",
    "pipe": "it is no file",
}
PASSED_OVER = ["aarch64", "bits32", "link", "nothing"]


def other_driver():
    """Whether the loader finds a driver here even without a path to one."""
    return ctypes.util.find_library("cuda") is not None


@compiled
@pytest.mark.parametrize("name", FLAWS)
def test_a_file_that_is_no_library(broken, examine, name):
    if name == "pipe" and "search" in os.environ["PYTEST_CURRENT_TEST"]:
        pytest.skip("the loader itself would wait for ever")
    info = examine(broken / name)
    path = str(broken / name / "libcuda.so.1")
    if info["way"] == "search" and name in PASSED_OVER and other_driver():
        assert info["library"] not in (None, path)
        return
    assert not info["available"]
    assert info["mode"] is None
    assert failures(info)[path].startswith(FLAWS[name])
    assert FLAWS[name][3:] in info["reason"]  # without "it "
    assert path in info["reason"]
    (row,) = [row for row in info["libraries"] if row["path"] == path]
    assert row["problem"].startswith(FLAWS[name])
    assert not row["by_default"]


@linux
def test_a_missing_library(broken):
    if other_driver():
        pytest.skip("this machine has a driver")
    result = run_cli("info", "--json", LD_LIBRARY_PATH=str(broken / "nothing"))
    info = json.loads(result.stdout)
    assert result.returncode == 1
    assert info["library"] is None
    assert info["candidates"][0]["error"] == (
        "libcuda.so.1: cannot open shared object file: No such file or directory"
    )
    assert info["libraries"] == []


@compiled
@pytest.mark.parametrize("first", [*FLAWS, "nothing", "good"])
def test_prediction_is_what_the_loader_does(broken, build, first):
    """Not a rule of ours: glibc's. It is asked in a child process, where it cannot hang or die."""
    if first in ("half", "pipe"):
        pytest.skip("the loader itself crashes or waits for ever")
    second = build(VERSION=12050)
    folder = build(VERSION=12060) if first == "good" else broken / first
    variable = f"{folder}:{second}"
    code = """
import ctypes
try:
    library = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    print("error")
else:
    version = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    print(version.value)
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": variable}
    did = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    predicted = predict(find_candidates({"LD_LIBRARY_PATH": variable}))
    expected = {str(folder): "12060" if first == "good" else "error", str(second): "12050"}
    assert expected[os.path.dirname(predicted.path)] == did
    assert (did == "12050") == (first in PASSED_OVER)


@compiled
def test_a_truncated_library_is_left_alone_if_another_is_taken(broken, build):
    """The check before loading must not refuse what works."""
    variable = f"{build(VERSION=12080)}:{broken / 'half'}"
    info = json.loads(run_cli("info", "--json", LD_LIBRARY_PATH=variable).stdout)
    assert info["mode"] == "batch"
    preloaded = run_cli(
        "info",
        "--json",
        LD_LIBRARY_PATH=str(broken / "half"),
        LD_PRELOAD=str(build(VERSION=12080) / "libcuda.so.1"),
    )
    info = json.loads(preloaded.stdout)
    assert info["mode"] == "batch"
    assert info["found_via"].startswith("was-already-loaded")


@pytest.mark.parametrize(
    ("content", "words", "fatal", "deadly"),
    [
        (elf(), None, None, None),
        (elf(segment=(0, 120)), None, None, None),
        (elf(segment=(0, 121)), "is truncated: 120 bytes of at least 121", True, True),
        (elf(segment=(4096, 1)), "is truncated: 120 bytes of at least 4097", True, True),
        (elf(segment=(0, 1))[:100], "is truncated: its table of segments", True, False),
        (elf(machine=183), "is built for aarch64, this Python runs on x86_64", False, False),
        (elf(machine=21), "is built for ppc64le, this Python", False, False),
        (elf(machine=243), "is built for machine type 243, this Python", False, False),
        (elf(machine=3, bits=1), "is a 32-bit library", False, False),
        (elf(order=2), "is built for big-endian", True, False),
        (elf(kind=2), "is an ELF file but not a shared library", True, False),
        (b"\x7fELF", "is truncated: not even its header", True, False),
    ],
)
def test_flaws_of_headers(tmp_path, content, words, fatal, deadly):
    path = tmp_path / "library"
    path.write_bytes(content)
    flaw = find_flaw(str(path), machine="x86_64")
    if words is None:
        assert flaw is None
    else:
        assert flaw.words.startswith(words)
        assert (flaw.fatal, flaw.deadly) == (fatal, deadly)


def test_an_unknown_machine_refuses_nothing(tmp_path):
    (tmp_path / "library").write_bytes(elf(machine=183))
    assert find_flaw(str(tmp_path / "library"), machine="riscv64") is None


# -- where libraries lie --------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """Make empty libraries in a folder taken for the root; return it."""

    def make(*paths):
        for path in paths:
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(elf())
        return str(tmp_path)

    return make


def listed(root, environment=None, cache="", **options):
    found = find_candidates(
        environment or {},
        root=root,
        cache=cache,
        machine="x86_64",
        **{"system": "linux", **options},
    )
    rows = [(c.path.removeprefix(root), c.origin, c.searched) for c in found]
    taken = predict(found)
    return rows, taken and taken.path.removeprefix(root)


def test_no_library_anywhere(tree):
    assert listed(tree("/etc/nothing")) == ([], None)


def test_order_is_variable_then_cache_then_system_folders(tree):
    root = tree(
        "/usr/lib/libcuda.so.1",
        "/lib/x86_64-linux-gnu/libcuda.so.1",
        "/opt/cached/libcuda.so.1",
        "/home/b/libcuda.so.1",
        "/home/a/libcuda.so.1",
        "/usr/local/cuda-12.4/compat/libcuda.so.1",
    )
    cache = f"2 libs found\n\tlibcuda.so.1 (libc6,x86-64) => {root}/opt/cached/libcuda.so.1\n"
    rows, taken = listed(root, {"LD_LIBRARY_PATH": f"{root}/home/b:{root}/home/a"}, cache)
    assert rows == [
        ("/home/b/libcuda.so.1", "LD_LIBRARY_PATH", True),
        ("/home/a/libcuda.so.1", "LD_LIBRARY_PATH", True),
        ("/opt/cached/libcuda.so.1", "loader's cache (ldconfig)", True),
        ("/lib/x86_64-linux-gnu/libcuda.so.1", "system folder", True),
        ("/usr/lib/libcuda.so.1", "system folder", True),
        ("/usr/local/cuda-12.4/compat/libcuda.so.1", "well-known folder", False),
    ]
    assert taken == "/home/b/libcuda.so.1"
    assert listed(root, {}, cache)[1] == "/opt/cached/libcuda.so.1"
    assert listed(root)[1] == "/lib/x86_64-linux-gnu/libcuda.so.1"


def test_only_well_known_folders_that_the_loader_ignores(tree):
    root = tree("/usr/lib/wsl/lib/libcuda.so.1", "/usr/local/cuda/lib64/stubs/libcuda.so")
    rows, taken = listed(root)
    assert taken is None
    assert [row[0] for row in rows] == [
        "/usr/lib/wsl/lib/libcuda.so.1",
        "/usr/local/cuda/lib64/stubs/libcuda.so",
    ]
    found = find_candidates({}, root=root, cache="", machine="x86_64", system="linux")
    assert [c.why_not for c in found] == [
        "the loader does not look there for it",
        "it is the toolkit's stub, which is for linking only",
    ]


@pytest.mark.parametrize(
    ("folder", "searched"),
    [
        ("/lib/x86_64-linux-gnu", True),
        ("/usr/lib/x86_64-linux-gnu", True),
        ("/lib64", True),
        ("/usr/lib64", True),
        ("/lib", True),
        ("/usr/lib", True),
        ("/usr/lib/wsl/lib", False),
        ("/usr/lib/x86_64-linux-gnu/nvidia/current", False),
        ("/usr/local/nvidia/lib64", False),
        ("/run/opengl-driver/lib", False),
        ("/usr/local/cuda-12.4/compat", False),
        ("/usr/local/cuda/lib64/stubs", False),
        ("/usr/lib/x86_64-linux-gnu/stubs", False),
    ],
)
def test_every_folder_where_a_library_may_lie(tree, folder, searched):
    root = tree(f"{folder}/libcuda.so.1")
    rows, taken = listed(root)
    assert [(row[0], row[2]) for row in rows] == [(f"{folder}/libcuda.so.1", searched)]
    assert (taken is not None) == searched


def test_a_flaw_comes_before_all_else_that_speaks_against_a_library(tree):
    root = tree("/usr/lib/libcuda.so.1", "/lib/libcuda.so.1")
    for folder in ("usr/lib", "lib"):
        os.truncate(f"{root}/{folder}/libcuda.so.1", 0)
    os.truncate(f"{root}/lib/libcuda.so.1", 3)
    found = find_candidates({}, root=root, cache="", machine="x86_64", system="linux")
    assert all(c.why_not.startswith("it is not a shared library (it ") for c in found)
    whole = tree("/usr/lib/libcuda.so.1")
    (_, found) = find_candidates({}, root=whole, cache="", machine="x86_64", system="linux")
    assert found.why_not is None


def test_separators_and_empty_entries_of_the_variable(tree, monkeypatch):
    root = tree("/a/libcuda.so.1", "/here/libcuda.so.1")
    monkeypatch.chdir(f"{root}/here")
    rows, _ = listed(root, {"LD_LIBRARY_PATH": f";{root}/a"})
    assert [row[0] for row in rows] == ["/here/libcuda.so.1", "/a/libcuda.so.1"]
    assert listed(root, {"LD_LIBRARY_PATH": ""}) == ([], None)


def test_the_linkers_name_is_shown_but_not_taken(tree):
    root = tree("/a/libcuda.so", "/b/libcuda.so.1")
    rows, taken = listed(root, {"LD_LIBRARY_PATH": f"{root}/a:{root}/b"})
    assert [row[2] for row in rows] == [False, True]
    assert taken == "/b/libcuda.so.1"


@linux
def test_a_file_is_listed_once_at_the_place_where_its_turn_comes(tree):
    root = tree("/real/libcuda.so.555.42", "/c/libcuda.so.1")
    for folder, name in (("a", "libcuda.so"), ("b", "libcuda.so.1"), ("d", "libcuda.so.1")):
        os.makedirs(f"{root}/{folder}")
        os.symlink(f"{root}/real/libcuda.so.555.42", f"{root}/{folder}/{name}")
    variable = ":".join(f"{root}/{folder}" for folder in "acbd")
    rows, taken = listed(root, {"LD_LIBRARY_PATH": variable})
    assert [row[0] for row in rows] == ["/c/libcuda.so.1", "/b/libcuda.so.1"]
    assert taken == "/c/libcuda.so.1"


def test_a_32_bit_library_in_the_cache_is_passed_over(tree):
    root = tree("/i386/libcuda.so.1", "/x64/libcuda.so.1")
    Path(f"{root}/i386/libcuda.so.1").write_bytes(elf(machine=3, bits=1))
    cache = (
        f"\tlibcuda.so.1 (libc6) => {root}/i386/libcuda.so.1\n"
        f"\tlibcuda.so.1 (libc6,x86-64) => {root}/x64/libcuda.so.1\n"
        f"\tlibcudart.so.13 (libc6,x86-64) => {root}/x64/libcudart.so.13\n"
    )
    rows, taken = listed(root, cache=cache)
    assert len(rows) == 2
    assert taken == "/x64/libcuda.so.1"


def test_windows_looks_in_its_own_folders_and_the_path(tree, monkeypatch):
    """Path logic only: there is no Windows here."""
    root = tree(
        "/python/python.exe", "/Windows/System32/nvcuda.dll", "/tools/nvcuda.dll", "/empty/x"
    )
    monkeypatch.chdir(f"{root}/empty")
    monkeypatch.setattr(sys, "executable", f"{root}/python/python.exe")
    environment = {"SystemRoot": f"{root}/Windows", "PATH": f"{root}/empty;;{root}/tools"}
    rows, taken = listed(root, environment, system="win32")
    assert rows == [
        ("/Windows/System32/nvcuda.dll", "System32", True),
        ("/tools/nvcuda.dll", "PATH", True),
    ]
    assert taken == "/Windows/System32/nvcuda.dll"
    Path(f"{root}/python/nvcuda.dll").write_bytes(b"")
    assert listed(root, environment, system="win32")[1] == "/python/nvcuda.dll"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", Kind.ORDINARY),
        ("/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.1", Kind.ORDINARY),
        ("/usr/local/cuda-12.4/targets/x86_64-linux/lib/stubs/libcuda.so", Kind.STUB),
        ("/usr/local/cuda/compat/libcuda.so.1", Kind.COMPAT),
        ("/usr/local/cuda/compat/lib.real/libcuda.so.1", Kind.COMPAT),
        ("/opt/conda/cuda-compat/libcuda.so.1", Kind.COMPAT),
        ("/usr/lib/wsl/lib/libcuda.so.1", Kind.WSL),
        ("/usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libcuda.so.1", Kind.WSL),
        ("/home/wsl/lib/libcuda.so.1", Kind.ORDINARY),
        ("/home/compatible/libcuda.so.1", Kind.ORDINARY),
        ("C:/Windows/System32/nvcuda.dll", Kind.ORDINARY),
    ],
)
def test_kind_by_folder(tmp_path, path, kind):
    assert classify(str(tmp_path) + "/" + path) is kind


@linux
def test_kind_and_release_follow_links(tmp_path):
    (tmp_path / "stubs").mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "stubs" / "libcuda.so").write_bytes(b"")
    (tmp_path / "lib" / "libcuda.so.580.159.04").write_bytes(b"")
    for name, target in (("a", "stubs/libcuda.so"), ("b", "lib/libcuda.so.580.159.04")):
        (tmp_path / name).symlink_to(target)
    assert classify(str(tmp_path / "a")) is Kind.STUB
    assert find_release(str(tmp_path / "a")) is None
    assert classify(str(tmp_path / "b")) is Kind.ORDINARY
    release, source = find_release(str(tmp_path / "b"))
    assert (release, source) == ("580.159.04", "file name libcuda.so.580.159.04")


def test_release_inside_a_library_without_one_in_its_name(tmp_path):
    path = tmp_path / "libcuda.so.1"
    path.write_bytes(b"x" * 9999 + b"nvidia-application-profiles-550.163.01-rc\0 570.1.1")
    assert find_release(str(path)) == ("550.163.01", "text inside the library")
    path.write_bytes(b"x")
    assert find_release(str(path)) is None
    path.write_bytes(b"")
    assert find_release(str(path)) is None
    assert find_release(str(tmp_path / "none")) is None


@linux
def test_the_loaders_cache_can_be_read():
    if not any(Path(folder, "ldconfig").exists() for folder in ("/sbin", "/usr/sbin")):
        pytest.skip("no ldconfig here")
    assert "libc.so.6 (" in read_loader_cache()


# -- paths and words in any encoding --------------------------------------------------------------

# Python would make UTF-8 of an ASCII locale by itself.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LOCALES = [ASCII, {"LC_ALL": "C.UTF-8"}]
ASK = """
import json
import numpy as np
import numba_swap as ns
info = json.loads(json.dumps(ns.driver_info()))
errors = []
for _ in range(2):
    try:
        ns.swap_blocks(np.zeros((2, 2)), np.zeros((2, 2)), [[0, 1]])
    except ns.DriverUnavailableError as error:
        errors.append(str(error))
        str(error).encode("utf-8")  # to be printed
print(json.dumps([info, errors]))
"""


@pytest.fixture
def odd(tmp_path):
    """A folder whose name is no UTF-8."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    return folder


def ask(**environment):
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@linux
@pytest.mark.parametrize("locale", LOCALES)
def test_a_damaged_library_in_a_folder_that_is_no_utf8(odd, locale):
    (odd / "libcuda.so.1").write_bytes(elf()[:40])
    info, errors = ask(LD_LIBRARY_PATH=str(odd), **locale)
    assert not info["available"]
    assert [c["candidate"] for c in info["candidates"]][1] == str(odd / "libcuda.so.1")
    assert len(errors) == 2
    for words in (*errors, info["reason"]):
        assert "it is truncated"[3:] in words
        assert r"\udcff\udce9/libcuda.so.1" in words


@compiled
@pytest.mark.parametrize("locale", LOCALES)
def test_a_driver_in_a_folder_that_is_no_utf8(odd, build, locale):
    shutil.copy(build(VERSION=12080) / "libcuda.so.1", odd)
    result = run_cli("info", "--json", LD_LIBRARY_PATH=str(odd), **locale)
    assert result.returncode == 0, result.stderr
    info = json.loads(result.stdout)
    assert info["mode"] == "batch"
    assert info["library"] == str(odd / "libcuda.so.1")
    info = json.loads(run_cli("info", "--json", "--driver", info["library"], **locale).stdout)
    assert info["mode"] == "batch"


@linux
@pytest.mark.parametrize("locale", LOCALES)
def test_programs_that_speak_in_another_encoding(tmp_path, odd, locale):
    """`nvcc` and `ldconfig`, and what they are asked for comes out right all the same."""
    (odd / "libcuda.so.1").write_bytes(elf())
    nvcc = odd / "nvcc"
    speech = b"Compilateur g\xe9n\xe9r\xe9, \xff\xfe, release 12.6, V12.6.20"
    nvcc.write_bytes(b"#!/bin/sh\necho '" + speech + b"'\n")
    nvcc.chmod(0o755)
    line = b"\tlibcuda.so.1 (libc6,x86-64) => " + os.fsencode(odd) + b"/libcuda.so.1"
    loader = tmp_path / "ldconfig"
    loader.write_bytes(b"#!/bin/sh\necho '" + b"\xe9\n" + line + b"'\n")
    loader.chmod(0o755)
    code = f"""
import json, subprocess
run = subprocess.run
def instead(command, **options):
    if command[-1] == "-p":
        command = [{str(loader)!r}, "-p"]
    return run(command, **options)
subprocess.run = instead
from numba_swap.driver.search.candidates import find_candidates
from numba_swap.driver.search.machine import find_toolkit
print(json.dumps([[c.path for c in find_candidates({{}})], find_toolkit()]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **locale, "CUDA_HOME": "", "CUDA_PATH": "", "PATH": str(odd)},
    )
    assert result.returncode == 0, result.stderr
    paths, toolkit = json.loads(result.stdout)
    assert str(odd / "libcuda.so.1") in paths
    assert toolkit == ["12.6", str(nvcc)]


@linux
def test_a_working_folder_that_somebody_has_removed(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os; os.rmdir(os.getcwd())\n" + ASK
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_LIBRARY_PATH": "/nothing:"},
    )
    assert result.returncode == 0, result.stderr


# -- what else the machine tells ------------------------------------------------------------------


def gpu_tree(root, *gpus, files=()):
    for index, (vendor, device_class) in enumerate(gpus):
        folder = root / f"sys/bus/pci/devices/0000:0{index}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(device_class + "\n")
    for path, content in dict(files).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return look_at_machine(str(root))


NVIDIA, AMD, INTEL = "0x10de", "0x1002", "0x8086"
OPEN_MODULE = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@host)
GCC version:  gcc version 13.3.0
"""
CLOSED_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17\n"


@pytest.mark.parametrize(
    ("gpus", "files", "expected", "words"),
    [
        ([], {}, (0, 0, False, None, False), "no NVIDIA GPU on the PCI bus"),
        ([(INTEL, "0x030000"), (AMD, "0x040300")], {}, (0, 0, False, None, False), "no NVIDIA GPU"),
        ([(AMD, "0x030000")], {}, (0, 1, False, None, False), "This is an AMD machine"),
        ([(AMD, "0x120000")], {"dev/kfd": ""}, (0, 1, True, None, False), "AMD machine"),
        ([], {"sys/class/kfd/kfd/dev": ""}, (0, 0, True, None, False), "AMD machine"),
        ([(AMD, "0x030000"), (NVIDIA, "0x030200")], {}, (1, 1, False, None, False), "install the"),
        (
            [(NVIDIA, "0x030200"), (NVIDIA, "0x030000"), (NVIDIA, "0x068000")],
            {"proc/driver/nvidia/version": OPEN_MODULE},
            (2, 0, False, "580.159.04", False),
            "docker run --gpus all",
        ),
        (
            [],
            {"proc/driver/nvidia/version": CLOSED_MODULE},
            (0, 0, False, "550.163.01", False),
            "kernel module 550.163.01 is running",
        ),
        ([], {"dev/dxg": ""}, (0, 0, False, None, True), "in Windows, not in Linux"),
    ],
)
def test_machine(tmp_path, gpus, files, expected, words):
    machine = gpu_tree(tmp_path, *gpus, files=files)
    assert (
        machine.nvidia_gpus,
        machine.amd_gpus,
        machine.amd_driver,
        machine.module_release,
        machine.wsl,
    ) == expected
    assert words in machine.why_no_driver
    assert machine.is_amd == ("AMD machine" in words)


@linux
def test_toolkit(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    for environment in ({"CUDA_HOME": str(tmp_path)}, {"PATH": str(nvcc.parent)}):
        assert find_toolkit(environment) == ("12.4", str(nvcc))
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    assert find_toolkit({"CUDA_PATH": str(tmp_path)}) is None


def test_the_toolkit_is_asked_for_its_version_alone(tmp_path, monkeypatch):
    script = "[ \"$*\" = --version ] && echo 'Cuda compilation tools, release 12.6, V12.6.20'"
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvcc").chmod(0o755)
    assert find_toolkit({"PATH": str(tmp_path)}) == ("12.6", str(tmp_path / "nvcc"))
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    assert find_toolkit({"PATH": str(tmp_path)}) is None


def test_a_machine_with_gpus_of_both_makers_is_not_amds():
    from numba_swap.driver.search.machine import Machine

    assert Machine(0, 1, False, None, False).is_amd
    assert Machine(0, 0, True, None, False).is_amd
    assert not Machine(1, 1, True, None, False).is_amd
    assert not Machine(0, 0, False, None, False).is_amd
