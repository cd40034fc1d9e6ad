import json
import subprocess
import sys

import pytest

import numba_swap as ns
from numba_swap.cli import main
from numba_swap.demo import compute_field, cut_tiles, format_demo, run_demo


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
    assert hidden == ["cuMemcpyBatchAsync"]
    assert info["mode"] == "kernel"


def test_info_without_a_driver_says_what_was_tried(monkeypatch):
    from cuda import pathfinder

    from numba_swap.driver import api

    def nothing(name):
        raise pathfinder.DynamicLibNotFoundError("not on this system")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", nothing)
    monkeypatch.setattr(api, "_default", None)
    info = ns.driver_info()
    assert not info["available"]
    assert info["mode"] is None
    assert info["candidates"][0]["error"] == "not on this system"
    with pytest.raises(ns.DriverUnavailableError, match="not on this system"):
        ns.plan_blocks([], [], [])


def test_cli_info_prints_and_exits_by_availability(capsys):
    with ns.simulate(driver_version=(12, 4)):
        assert main(["info"]) == 0
        assert "mode: kernel" in capsys.readouterr().out
        assert main(["info", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["mode"] == "kernel"


def test_demo_walks_through_the_modes_and_checks_every_byte():
    rows = run_demo(256, force_simulation=True)
    assert [str(row.decision.mode) for row in rows] == ["loop", "kernel", "batch", "batch"]
    assert all(row.correct for row in rows)
    table = format_demo(rows)
    assert table.count("no measure") == 4
    assert table.count("right") == 4


def test_demo_tells_a_wrong_byte(monkeypatch, capsys):
    from numba_swap.modes import loop

    monkeypatch.setattr(loop, "submit", lambda *arguments: None)
    assert main(["demo", "--size", "128", "--simulate"]) == 1
    output = capsys.readouterr()
    assert output.out.count("WRONG") == 1
    assert "1 of 4 swaps came back wrong" in output.err


def test_demo_field_is_whole_in_its_tiles():
    field = compute_field(256)
    assert abs(field.std() - 1) < 1e-3
    tiles = cut_tiles(field)
    assert tiles.shape == (16, 64, 64)
    assert (tiles[5] == field[64:128, 64:128]).all()


def test_module_runs_as_a_command():
    result = run_cli("demo", "--size", "128", "--simulate")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right") == 4
    assert run_cli("demo", "--size", "100").returncode == 2
    assert run_cli("--version").stdout == f"numba-swap {ns.__version__}\n"


def test_unreadable_environment_is_an_error_that_names_it():
    result = run_cli("info", NUMBA_SWAP_DRIVER_VERSION="new")
    assert result.returncode == 2
    assert result.stderr.startswith("numba-swap: error: NUMBA_SWAP_DRIVER_VERSION: 'new' is not")
