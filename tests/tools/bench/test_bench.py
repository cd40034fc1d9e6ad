"""The bench room without a GPU: its arithmetic, its picture, and the figures that README quotes."""

import itertools
import json
import re
import statistics
import subprocess
from pathlib import Path

import pytest

import numba_swap as ns
from numba_swap.tools.bench import machine
from numba_swap.tools.bench.gpu import gpu_of, open_gpu
from numba_swap.tools.bench.machine import describe_machine
from numba_swap.tools.bench.speed import peers, suite
from numba_swap.tools.bench.speed.latency import bare_launch
from numba_swap.tools.bench.speed.peers import measure_peers
from numba_swap.tools.bench.speed.plot import draw_speed
from numba_swap.tools.bench.speed.plot import main as plot
from numba_swap.tools.bench.speed.regret import regret, vllm_mode
from numba_swap.tools.bench.speed.rows import Row
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.speed.suite import measure_sections
from numba_swap.tools.bench.speed.throughput import THROUGHPUT_TARGETS
from numba_swap.tools.bench.timing import Samples, measure, measure_in_turn

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "notebooks" / "data" / "speed_h200.json"


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULT.read_text(encoding="utf-8"))


def test_measure_counts_warm_ups_apart_and_runs_what_comes_before():
    events = []
    samples = measure(
        lambda: events.append("timed"),
        repeats=3,
        warmups=2,
        before=lambda: events.append("before"),
    )
    assert events == ["before", "timed"] * 5
    assert (len(samples.warmups_ns), len(samples.raw_ns)) == (2, 3)
    assert all(value > 0 for value in samples.raw_ns)


def test_actions_in_turn_are_timed_round_by_round():
    order = []
    actions = {name: lambda name=name: order.append(name) for name in ("one", "other")}
    samples = measure_in_turn(actions, repeats=3, warmups=1)
    assert order == ["one", "other"] * 4
    assert list(samples) == ["one", "other"]
    assert all((len(s.warmups_ns), len(s.raw_ns)) == (1, 3) for s in samples.values())


def test_every_other_round_goes_the_other_way():
    order, prepared = [], []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = measure_in_turn(
        actions, repeats=2, warmups=1, runs=(1, 2), there_and_back=True, before=prepared.append
    )
    assert "".join(order) == "".join(prepared) == "aaabbbbbbaaaaaabbb"
    assert all((len(s.warmups_ns), len(s.raw_ns)) == (3 + 2, 2 * 2) for s in samples.values())


def test_few_rounds_are_enough_when_time_is_over():
    samples = measure_in_turn({"a": lambda: None}, repeats=9, warmups=0, enough=(3, 0.0))
    assert len(samples["a"].raw_ns) == 3
    samples = measure_in_turn({"a": lambda: None}, repeats=9, warmups=0, enough=(3, 60.0))
    assert len(samples["a"].raw_ns) == 9


def test_the_suite_runs_where_it_measures_nothing():
    """Sections that need no GPU, over little memory; the loop, for simulated kernels are slow."""
    sections = (
        *("throughput", "planning", "duplex", "numba-loop", "choosing", "exchange", "pageable"),
        *("cache", "streaming"),
    )
    lines = []
    with open_gpu("13.0") as gpu, ns.override(mode="loop"):
        run = SpeedRun(gpu, 1, lines.append, unit_bytes=1 << 20)
        measure_sections(run, sections)
    written = json.loads(json.dumps(run.as_json()))
    assert written["schema"] == "numba_swap speed targets 1"
    assert len(lines) == len(written["rows"]) == len(run.rows)
    names = [row["name"] for row in written["rows"]]
    assert sum(name.startswith("contiguous 1 MiB, ") for name in names) == 2 * 3
    assert sum(name.startswith("exchange, ") for name in names) == 3 * 3 * 2
    assert sum(name.startswith("cache: ") for name in names) == 2 + 3 * 3 + 3 + 2
    assert sum(name.startswith("streaming: ") for name in names) == 13
    for row in run.rows:
        if "ceiling_ns" in row.details:
            ceiling = Samples(raw_ns=row.details["ceiling_ns"]).rate(1 << 20)
            assert row.value == pytest.approx(row.samples.rate(row.details["bytes"]) / ceiling)


def test_median_and_rate():
    samples = Samples(warmups_ns=[10**12], raw_ns=[3_000_000_000, 1_000_000_000, 2_000_000_000])
    assert samples.median_s == 2.0
    assert samples.rate(4096) == 2048.0


@pytest.mark.parametrize(
    ("value", "target", "at_least", "met"),
    [
        (0.92, 0.92, True, True),
        (0.9199, 0.92, True, False),
        (1.15, 1.15, False, True),
        (1.1501, 1.15, False, False),
        (0.1, None, True, True),
    ],
)
def test_a_target_is_met_or_not(value, target, at_least, met):
    row = Row("x", value, "ratio", target, at_least, {}, Samples())
    assert row.met == met
    assert ("MISSED" in str(row)) == (not met)


def test_machine_is_described():
    with ns.simulate(driver_version=(12, 4)):
        machine = describe_machine()
    assert machine["driver_version"] == "12.4"
    assert machine["devices"][0]["name"] == "Simulated GPU"
    assert machine["versions"]["numba"]
    json.dumps(machine)


def test_a_commit_is_that_of_this_package(tmp_path, monkeypatch):
    """Not that of a checkout within which it is merely installed."""

    def git(*arguments):
        author = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.delenv("NUMBA_SWAP_COMMIT", raising=False)
    monkeypatch.setattr(machine, "driver_info", lambda: dict.fromkeys(KEYS))
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    (tmp_path / "machine.py").touch()
    commits = [machine.describe_machine()["commit"]]
    git("init")
    git("commit", "--allow-empty", "-m", "of something else")
    commits.append(machine.describe_machine()["commit"])
    assert commits == [None, None]
    assert machine.describe_machine()["uncommitted_changes"] is None
    git("add", "machine.py")
    git("commit", "-m", "of this")
    assert re.fullmatch("[0-9a-f]{40}", machine.describe_machine()["commit"])
    assert machine.describe_machine()["uncommitted_changes"] is False
    (tmp_path / "machine.py").write_text("changed")
    assert machine.describe_machine()["uncommitted_changes"] is True


KEYS = ("devices", "driver_version", "driver_release", "pretended_version", "versions")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/"], "speed_targets: error: / cannot be written: Is a directory"),
        (["--repeats", "0"], "--repeats=0 is no positive integer"),
        (["--only", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_the_suite_checks_before_it_measures(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(suite, "open_gpu", lambda version: pytest.fail("measured"))
    with pytest.raises(SystemExit, match="2"):
        suite.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 5000, "nested more than 32 deep"),
        ("[]", "is no result of a speed suite"),
        ('{"rows": [{"details": 1}]}', "is no result of a speed suite"),
        ('{"rows": []}', "is no result of a speed suite|max"),
    ],
)
def test_a_picture_of_no_result_is_refused(capsys, tmp_path, text, message):
    pytest.importorskip("matplotlib")
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        plot([str(tmp_path / "x.json"), str(tmp_path / "x.png")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "x.png").exists()


def test_committed_result_says_on_what_it_was_measured(result):
    machine = result["machine"]
    assert machine["devices"][0]["name"] == "NVIDIA H200"
    assert machine["driver_release"]
    assert re.fullmatch("[0-9a-f]{40}", machine["commit"])
    assert machine["versions"]["numba-cuda"]


def test_committed_values_follow_from_the_raw_ones(result):
    for row in result["rows"]:
        samples = Samples(**row["samples"])
        details = row["details"]
        if row["unit"] == "s":
            assert row["value"] == pytest.approx(samples.median_s)
        elif "cells" in details or "regret" in row["name"]:
            pass  # held by the test below
        elif "slots" in details:
            ceiling = Samples(raw_ns=details["ceiling_ns"]).rate(1 << 30)
            assert row["value"] == pytest.approx(samples.rate(details["bytes"]) / ceiling)
        elif "alone_ns" in details:
            alone = Samples(raw_ns=details["alone_ns"]).median_s
            assert row["value"] == pytest.approx(samples.median_s / alone)
        elif "ceiling_ns" in details:
            ceiling = Samples(raw_ns=details["ceiling_ns"]).rate(1 << 30)
            assert row["value"] == pytest.approx(samples.rate(details["bytes"]) / ceiling)
        elif details.get("plot"):
            nbytes = details["count"] * details["block"]
            assert row["value"] == pytest.approx(samples.rate(nbytes))
        if row["target"] is not None:
            better = (
                row["value"] >= row["target"] if row["at_least"] else row["value"] <= row["target"]
            )
            assert row["met"] == better


@pytest.mark.parametrize("arm", ["auto, calibrated", "auto, shipped", "vLLM's rule"])
def test_committed_regrets_follow_from_the_raw_ones(result, arm):
    (cells,) = [row["details"]["cells"] for row in result["rows"] if "cells" in row["details"]]
    regrets = [regret(cell, arm) for cell in cells]
    assert len(cells) == 216
    words = {"auto, calibrated": "calibrated", "auto, shipped": "shipped figures"}.get(arm, arm)
    rows = {
        kind: row["value"]
        for row in result["rows"]
        for kind in ("geometric mean", "worst")
        if row["name"].startswith(f"regret, {words}, {kind}")
    }
    assert rows["geometric mean"] == pytest.approx(statistics.geometric_mean(regrets))
    assert rows["worst"] == pytest.approx(max(regrets))


@pytest.mark.parametrize("mode", ["loop", "batch"])
def test_two_gpus_are_measured_where_there_are_two(mode):
    lines = []
    with ns.simulate(devices=2) as simulation, ns.override(mode=mode):
        simulation.driver.current_context()
        run = SpeedRun(gpu_of(simulation.driver), 1, lines.append, unit_bytes=1 << 20)
        measure_peers(run)
        assert simulation.driver.current_device() == 0
    names = [row.name for row in run.rows]
    assert all(name.startswith("peers: ") for name in names)
    targets = sorted(row.target for row in run.rows if row.target is not None)
    assert targets == sorted([0.85, 0.88, 0.90, 0.90, 0.90, 0.85, 0.85, 0.98, 0.90] + [0.97] * 3)
    assert "latency skipped" in lines[-1]
    with ns.simulate() as simulation:
        alone = SpeedRun(gpu_of(simulation.driver), 1, lines.append, unit_bytes=1 << 20)
        measure_peers(alone)
    assert alone.rows == []
    assert lines[-1] == "peers: not measured, for this machine has one GPU"


def test_the_latency_between_two_gpus_is_that_of_a_launch():
    lines = []
    with ns.simulate(devices=2) as simulation:
        simulation.driver.current_context()
        run = SpeedRun(gpu_of(simulation.driver), 1, lines.append, unit_bytes=1 << 18)
        side = peers._Side(run, 0, 1)
        plan = side.plan(4096, 4 * 4096)
        bare_launch(side.gpu, plan)()
        assert plan.explain(side.gpu.stream).mode is ns.Mode.KERNEL


def test_the_other_rule_of_the_regrets():
    h2d, d2h = "host to device", "device to host"
    assert vllm_mode(h2d, 16, 16 * 28 * 1024 - 1) == "kernel"
    assert vllm_mode(h2d, 15, 15 * 512) == "batch"
    assert vllm_mode(h2d, 16, 16 * 28 * 1024) == "batch"
    assert vllm_mode(d2h, 1000, 1000 * 512) == "batch"
    cell = {"direction": d2h, "copies": 4, "bytes": 4, "raw_ns": {"batch": [9, 6], "kernel": [3]}}
    assert regret(cell, "vLLM's rule") == 2.0


def test_readme_quotes_the_exchanges(result):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for how, words in (("planned", "planned before"), ("fresh", "planned in the call")):
        for slots, where in (
            ("other slots", "into other slots"),
            ("same slots", "into the slots that are paged out"),
            ("in place", "slots and blocks change places"),
        ):
            cells = [
                f"{row['value']:.3f}"
                for row in result["rows"]
                if row["details"].get("slots") == slots and row["details"]["how"] == how
            ]
            assert f"| {where}, {words} | {' | '.join(cells)} |" in readme


def test_readme_quotes_the_committed_result(result):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = {
        ns.Direction.H2D: "| host to device, 512 MiB in all |",
        ns.Direction.D2H: "| device to host, 512 MiB in all |",
        ns.Direction.D2D: "| within the device, 1 GiB in all |",
    }
    for direction, beginning in quoted.items():
        line = next(line for line in readme.splitlines() if line.startswith(beginning))
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        values = [
            f"{row['value']:.3f}"
            for size, row in itertools.product(THROUGHPUT_TARGETS[direction], result["rows"])
            if row["target"] is not None
            and row["details"].get("direction") == direction
            and row["details"].get("block") == size
            and "in all" in row["name"]
        ]
        assert [cell for cell in cells if cell] == values


def test_picture_shows_every_mode_in_both_directions(result, tmp_path):
    pytest.importorskip("matplotlib")
    panels = draw_speed(result).axes
    assert [panel.get_title() for panel in panels] == ["Host to device", "Device to host"]
    for panel in panels:
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert set(lines) == {"auto", "kernel", "batch", "loop", "one contiguous copy"}
        assert all(
            len(lines[mode].get_xdata()) == 12 for mode in ("auto", "kernel", "batch", "loop")
        )
    assert plot([str(RESULT), str(tmp_path / "picture.png")]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
