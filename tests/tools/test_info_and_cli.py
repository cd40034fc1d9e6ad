import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

import numba_swap as ns
from numba_swap.driver.search.machine import Machine
from numba_swap.testing import Fault
from numba_swap.tools.cli import main
from numba_swap.tools.demo import compute_field, cut_tiles, format_demo, run_demo
from numba_swap.tools.info.diagnosis import find_oddities
from numba_swap.tools.info.report import print_report


def run_cli(*arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", "numba_swap", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("version", "mode", "proc_address"),
    [
        ("11.4", "loop", "cuGetProcAddress"),
        ("12.4", "kernel", "cuGetProcAddress_v2"),
        ("12.8", "batch", "cuGetProcAddress_v2"),
        ("13.0", "batch", "cuGetProcAddress_v2"),
    ],
)
def test_info_of_a_simulated_driver(version, mode, proc_address):
    with ns.simulate(driver_version=version):
        info = json.loads(json.dumps(ns.driver_info()))
    assert info["available"]
    assert info["simulated"]
    assert info["driver_version"] == version
    assert info["mode"] == mode
    assert info["proc_address"] == proc_address
    assert info["devices"][0]["multiprocessors"] > 0
    batch = next(e for e in info["entry_points"] if e["name"] == "cuMemcpyBatchAsync")
    assert batch["requested_version"] == 12080
    assert batch["found"] == (mode == "batch")
    assert (batch["code"], batch["status"]) == {
        "11.4": (500, None),
        "12.4": (0, 1),
        "12.8": (0, 0),
        "13.0": (0, 0),
    }[version]


def test_info_under_a_cap_hides_what_such_a_driver_lacks():
    with ns.simulate(driver_version=(13, 0)), ns.override(driver_version=(12, 4)):
        info = ns.driver_info()
    assert (info["driver_version"], info["pretended_version"]) == ("13.0", "12.4")
    hidden = [e["name"] for e in info["entry_points"] if e["hidden"]]
    assert hidden == ["cuMemcpyBatchAsync", "cuMemcpy3DBatchAsync"]
    assert info["mode"] == "kernel"


@pytest.fixture
def no_driver(monkeypatch):
    """A process that finds no driver library, also on a machine that has one."""
    from cuda import pathfinder

    from numba_swap.driver import current, library
    from numba_swap.tools.info import driver_info

    def nothing(name):
        raise pathfinder.DynamicLibNotFoundError("not on this system")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", nothing)
    monkeypatch.setattr(library, "_loader_words", lambda: None)
    monkeypatch.setattr(library, "find_candidates", lambda **_: [])
    monkeypatch.setattr(driver_info, "find_candidates", list)
    monkeypatch.setattr(current, "_default", None)

    def machine(**facts):
        machine = Machine(**{**NO_MACHINE, **facts})
        monkeypatch.setattr(library, "look_at_machine", lambda: machine)
        monkeypatch.setattr(driver_info, "look_at_machine", lambda: machine)

    machine()
    return machine


NO_MACHINE = {
    "nvidia_gpus": 0,
    "amd_gpus": 0,
    "amd_driver": False,
    "module_release": None,
    "wsl": False,
}


def test_info_without_a_driver_says_what_was_tried(no_driver):
    info = ns.driver_info()
    assert not info["available"]
    assert info["mode"] is None
    assert info["library"] is None
    assert info["libraries"] == []
    assert info["candidates"][0]["error"] == "not on this system"
    assert info["newer_driver"] == (
        "11.3 or newer: loop; 12.0 or newer: kernel; 12.8 or newer: batch"
    )
    with pytest.raises(ns.DriverUnavailableError, match="not on this system"):
        ns.plan_blocks([], [], [])


def test_report_without_a_driver(no_driver, capsys):
    assert main(["info"]) == 1
    output = capsys.readouterr().out
    assert output.startswith("No usable NVIDIA driver: copies cannot run.\n")
    assert "There is no NVIDIA GPU on the PCI bus." in output
    assert "  - libcuda.so.1, by the system's loader\n    not on this system\n" in output
    assert main(["info", "--json"]) == 1


def test_an_amd_machine_is_named(no_driver, capsys):
    no_driver(amd_gpus=1)
    assert main(["info"]) == 1
    assert "This is an AMD machine, and numba_swap needs an NVIDIA GPU." in capsys.readouterr().out
    with pytest.raises(ns.DriverUnavailableError, match="This is an AMD machine"):
        ns.swap_blocks_batch([1], [2], [3])


def test_cli_info_prints_and_exits_by_availability(capsys):
    with ns.simulate(driver_version=(12, 4)):
        assert main(["info"]) == 0
        output = capsys.readouterr().out
        assert output.startswith(
            "A simulated driver with a device: copies can run, many long ones in mode k"
        )
        assert re.search(r"^ +mode  kernel  \(for many long blocks", output, re.M)
        assert re.search(r"^ +newer driver  12.8 or newer: batch$", output, re.M)
        assert re.search(
            r"^ +batch copy  no  \(driver 12.4 has no cuMemcpyBatchAsync", output, re.M
        )
        for name in ("cuMemcpyBatchAsync", "cuMemcpy3DBatchAsync"):
            assert f"{name} (code 0, no address, status symbol not found)" in output
        assert main(["info", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["mode"] == "kernel"


def test_a_driver_without_a_device_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(ns.driver_info.__globals__["Driver"], "device_count", lambda self: 0)
    with ns.simulate(driver_version=(12, 8)):
        assert main(["info"]) == 1
    assert capsys.readouterr().out.startswith("A driver, but no device that it can use")


def test_report_says_nothing_in_markup(capsys):
    """Names in brackets are what rich takes for markup; long lines are not folded in a pipe."""
    info = ns.driver_info()
    name = "GPU [bold]" + 50 * "long "
    device = {"ordinal": 0, "name": name, "compute_capability": "9.0", "multiprocessors": 1}
    device["pageable_access"] = False
    print_report({**info, "devices": [device]})
    assert f"device 0  {name}" in capsys.readouterr().out


def test_report_on_a_narrow_terminal_loses_nothing():
    path = "/a/very/long/path/" + "folder/" * 20 + "libcuda.so.1"
    row = dict.fromkeys(("file", "path"), path) | dict.fromkeys(("searched", "by_default"), True)
    row |= {"origin": "LD_LIBRARY_PATH", "kind": "toolkit stub", "release": None, "used": True}
    row |= {"problem": "it is the toolkit's stub, which is for linking only"}
    console = Console(width=60, file=io.StringIO())
    with ns.simulate(driver_version=(12, 4)):
        print_report({**ns.driver_info(), "libraries": [row]}, console)
    output = console.file.getvalue()
    assert max(map(len, output.splitlines())) <= 60
    assert "…" not in output
    assert re.sub(r"\s", "", output).count("cuMemcpyBatchAsync") >= 3


@pytest.mark.parametrize(
    ("version", "settings", "expected"),
    [
        ("11.4", {}, "12.0 or newer: kernel; 12.8 or newer: batch"),
        ("12.4", {}, "12.8 or newer: batch"),
        ("12.8", {}, "nothing: batch is the first choice already"),
        ("13.0", {}, "nothing: batch is the first choice already"),
        ("12.4", {"mode": "loop"}, "nothing, as long as mode loop is forced"),
        ("12.4", {"mode": "batch"}, "12.8 or newer: batch"),
        ("11.4", {"mode": "kernel"}, "12.0 or newer: kernel"),
        ("13.0", {"driver_version": "12.4"}, "nothing, as long as driver 12.4 is pretended"),
        ("11.4", {"driver_version": "12.4"}, "12.0 or newer: kernel"),
    ],
)
def test_what_a_newer_driver_brings(version, settings, expected):
    with ns.simulate(driver_version=version), ns.override(**settings):
        info = ns.driver_info()
        assert info["newer_driver"] == expected
    # Held to the drivers themselves, not to another list of rules.
    for step in expected.split("; ") if expected[0].isdigit() else []:
        newer, mode = step.split(" or newer: ")
        older = {"12.0": "11.8", "12.8": "12.7"}[newer]
        with ns.override(**settings):
            with ns.simulate(driver_version=newer):
                assert ns.driver_info()["mode"] == mode
            with ns.simulate(driver_version=older):
                assert ns.driver_info()["mode"] != mode


@pytest.mark.parametrize(
    ("version", "modes"),
    [
        ("11.4", ["loop", "loop", "loop", "loop"]),
        ("12.4", ["loop", "kernel", "kernel", "kernel"]),
        ("13.0", ["loop", "kernel", "batch", "kernel"]),
    ],
)
def test_typical_swaps_are_decided_as_swaps_are(version, modes):
    """Held to real plans of the same sizes, smaller in number."""
    with ns.simulate(driver_version=version) as gpu:
        info = ns.driver_info()
        assert [row["mode"] for row in info["typical"]] == modes
        decided = []
        for device, count, nbytes in (
            (0, 1, 4096),
            (0, 32, 4096),
            (0, 64, 1 << 20),
            (1, 32, 65536),
        ):
            make = gpu.device_array if device else gpu.pinned_array
            src, dst = make((2 * count, nbytes), "u1"), gpu.device_array((2 * count, nbytes), "u1")
            mapping = [[2 * i, 2 * i] for i in range(count)]
            decided.append(str(ns.plan_blocks(src, dst, mapping).explain().mode))
        assert decided == modes


def test_documented_keys_are_those_returned():
    documented = set()
    for names in re.findall(r"^ +((?:``\w+``, )*``\w+``) : ", ns.driver_info.__doc__, re.M):
        documented |= set(re.findall(r"\w+", names))
    assert documented == ns.driver_info().keys()


def oddities(**facts):
    info = {
        "simulated": False,
        "available": True,
        "library": "/lib/libcuda.so.1",
        "library_kind": "ordinary",
        "driver_release": "580.159.04",
        "driver_version": "13.0",
        "machine": {**NO_MACHINE, "module_release": "580.159.04", "is_amd": False},
        "libraries": [{"used": True, "by_default": True, "origin": "LD_LIBRARY_PATH"}],
        "versions": {"nvidia-cuda-nvrtc": "13.5.37"},
    }
    return find_oddities({**info, **facts})


def test_nothing_odd():
    assert oddities() == []
    assert oddities(driver_version="12.4", versions={"nvidia-cuda-nvrtc-cu12": "12.9.1"}) == []
    assert oddities(driver_release=None) == []
    assert oddities(driver_version="12.4", simulated=True) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"driver_release": "570.1"}, "after an update of the driver, reboot"),
        (
            {"driver_release": "590.1", "library_kind": "forward-compatibility package"},
            "The library (590.1) is a forward-compatibility package over the kernel module 580.15",
        ),
        (
            {
                "driver_release": "470.1",
                "libraries": [{"used": True, "by_default": False, "origin": "given"}],
            },
            "This library (470.1) is not that of the kernel module running here",
        ),
        (
            {"libraries": [{"used": True, "by_default": False, "origin": "system folder"}]},
            "The loader by itself would take another library",
        ),
        (
            {"driver_version": "12.4"},
            "nvidia-cuda-nvrtc 13.5.37 are of a newer CUDA than this driver supports (12.4)",
        ),
    ],
)
def test_what_is_odd(facts, words):
    (note,) = oddities(**facts)
    assert words in note


def test_oddities_without_a_kernel_module():
    machine = {**NO_MACHINE, "is_amd": False}
    (note,) = oddities(available=False, machine=machine)
    assert note == "NVIDIA's kernel module is not loaded: there is no /proc/driver/nvidia."
    assert oddities(available=False, machine={**machine, "wsl": True}) == []
    _, note = oddities(available=False, machine={**machine, "is_amd": True})
    assert "AMD machine" in note


def test_help_documents_the_exit_status(capsys):
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    output = capsys.readouterr().out
    for status in ("0  there is a driver with a device", "1  there is no usable", "2  error"):
        assert f"  {status}" in output


def test_demo_walks_through_the_modes_and_checks_every_byte():
    rows = run_demo(force_simulation=True)
    assert [str(row.decision.mode) for row in rows] == [
        "loop",
        "kernel",
        "kernel",
        "kernel",
        "batch",
        "loop",
        "kernel",
    ]
    assert all(row.correct for row in rows)
    table = format_demo(rows)
    assert table.count("no measure") == 7
    assert table.count("right") == 7


def fail(arguments, capsys):
    """The last line of an error."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("99999744", "a field of 99999744 x 99999744 points would take some 37252712"),
        ("9" * 10, "is not a multiple of 256 from 1024 up"),
        ("256" * 2000, "is not a multiple of 256 from 1024 up"),
    ],
)
def test_a_field_that_there_is_no_memory_for_is_refused(capsys, size, message):
    for more in ([], ["--simulate"]):
        assert message in fail(["demo", "--size", size, *more], capsys)


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "0", "-1", "soon"])
def test_a_timeout_is_a_time(capsys, seconds):
    line = fail(["info", "--driver", "x", "--timeout", seconds], capsys)
    assert line.endswith(f"{seconds!r} is no time up to 86400 seconds")


def test_demo_tells_a_wrong_byte(monkeypatch, capsys):
    from numba_swap.modes import loop

    monkeypatch.setattr(loop, "submit", lambda *arguments: None)
    assert main(["demo", "--size", "1024", "--simulate"]) == 1
    output = capsys.readouterr()
    assert output.out.count("WRONG") == 2
    assert "2 of 7 swaps came back wrong" in output.err


def test_demo_field_is_whole_in_its_tiles():
    field = compute_field(1024)
    assert abs(field.std() - 1) < 1e-3
    tiles = cut_tiles(field)
    assert tiles.shape == (16, 256, 256)
    assert (tiles[5] == field[256:512, 256:512]).all()


def test_module_runs_as_a_command():
    result = run_cli("demo", "--size", "1024", "--simulate")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right") == 7
    assert run_cli("demo", "--size", "100").returncode == 2
    assert run_cli("--version").stdout == f"numba-swap {ns.__version__}\n"


def test_unreadable_environment_is_an_error_that_names_it():
    result = run_cli("info", NUMBA_SWAP_DRIVER_VERSION="new")
    assert result.returncode == 2
    assert result.stderr.startswith("numba-swap: error: NUMBA_SWAP_DRIVER_VERSION: 'new' is not")


# -- the kernel -----------------------------------------------------------------------------------

NO_KERNEL = "Numba could not compile or load the kernel for device 0 (DriverCallError: [801]"


@pytest.fixture
def no_kernel():
    """A GPU on which no kernel can be loaded."""
    with ns.simulate(driver_version=(12, 4)) as gpu:
        gpu.library.faults.add(Fault("cuModuleLoadData", 801, times=None))
        yield gpu


def test_info_of_a_kernel_that_was_not_loaded(no_kernel):
    info = ns.driver_info()
    assert info["kernel"]["usable"] is None
    assert "not loaded in this process so far" in info["kernel"]["reason"]
    assert info["mode"] == "kernel"  # what the driver allows
    assert no_kernel.library.calls["cuModuleLoadData"] == 0


@pytest.mark.parametrize("tried", ["by warm_up", "by info"])
def test_info_of_a_kernel_that_could_not_be_loaded(no_kernel, tried):
    if tried == "by warm_up":
        with pytest.raises(ns.ModeUnavailableError):
            ns.warm_up()
    for try_kernel in (tried == "by info", False, True):
        info = ns.driver_info(try_kernel=try_kernel)
        assert info["kernel"]["usable"] is False
        assert info["kernel"]["reason"].startswith(NO_KERNEL)
        assert info["mode"] == "loop"
        assert NO_KERNEL in info["reason"]
        assert {swap["mode"] for swap in info["typical"]} == {"loop"}
        assert info["newer_driver"] == "12.8 or newer: batch"
    assert no_kernel.library.calls["cuModuleLoadData"] == 1


def test_info_of_a_kernel_that_was_loaded():
    with ns.simulate() as gpu:
        assert ns.driver_info(try_kernel=True)["kernel"] == {"usable": True, "reason": None}
        assert gpu.library.calls["cuModuleLoadData"] == 1
        assert gpu.driver.probe(0)[0] == 0  # it leaves no context behind


def test_info_of_a_kernel_that_the_driver_is_too_old_for():
    with ns.simulate(driver_version=(11, 8)):
        kernel = ns.driver_info(try_kernel=True)["kernel"]
    assert kernel["usable"] is False
    assert kernel["reason"].startswith("driver 11.8 is older than 12.0")


def test_info_of_a_kernel_on_a_gpu_without_room_for_a_context():
    with ns.simulate() as gpu:
        gpu.library.faults.add(Fault("cuDevicePrimaryCtxRetain", 2, times=None))
        info = ns.driver_info(try_kernel=True)
    assert info["available"]
    assert info["kernel"]["usable"] is None
    assert "CUDA_ERROR_OUT_OF_MEMORY" in info["kernel"]["reason"]


def test_the_report_says_what_is_wrong_with_the_kernel(no_kernel, capsys):
    assert main(["info"]) == 0
    assert re.search(r"^ +kernel  not known  \(not loaded", capsys.readouterr().out, re.M)
    assert main(["info", "--try-kernel"]) == 0
    assert f"kernel  no  ({NO_KERNEL}" in capsys.readouterr().out


def test_the_kernel_is_not_tried_with_a_driver_of_another_process(capsys):
    with pytest.raises(SystemExit) as end:
        main(["info", "--try-kernel", "--driver", "libcuda.so.1"])
    assert end.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("access", ["NVLink", "PCIe", False])
def test_which_gpus_reach_each_other_is_told(access, capsys):
    matrix = [[False, access], ["NVLink", False]]
    with ns.simulate(devices=2, peer_access=matrix) as gpu:
        info = ns.driver_info()
        print_report(info)
        assert gpu.library.active_devices == set()
    link = access or "no peer access"
    assert info["peers"] == [
        {"device": 0, "peer": 1, "access": bool(access), "link": link},
        {"device": 1, "peer": 0, "access": True, "link": "NVLink"},
    ]
    report = capsys.readouterr().out
    assert f"device 0 to 1  {link}" in report
    assert "device 1 to 0  NVLink" in report
    with ns.simulate():
        assert ns.driver_info()["peers"] == []


def test_the_command_explains_copies_between_two_gpus(capsys):
    arguments = ["explain", "--sizes", "8KiB", "--direction", "p2p", "--driver-version", "13.0"]
    assert main(arguments) == 0
    assert "device to another device (0 to 1, NVLink)" in capsys.readouterr().out
