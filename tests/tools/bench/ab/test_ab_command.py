"""``numba-swap ab``: what it prints, what it returns, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_results import MACHINE, link_times, make_cell, make_grid_result, make_result

from numba_swap.tools.bench.ab import command, verbs
from numba_swap.tools.bench.ab.analysis.crossover import crossovers_between, find_crossovers
from numba_swap.tools.bench.ab.analysis.report import summarise
from numba_swap.tools.bench.ab.measure.sampling import Sampler
from numba_swap.tools.bench.ab.results.results import load_result, write_result
from numba_swap.tools.bench.ab.show import progress
from numba_swap.tools.bench.ab.show.compare import compare_results, find_differences
from numba_swap.tools.bench.ab.show.tables import SIMULATED_NOTE, format_result
from numba_swap.tools.bench.ab.spec.cases import Case
from numba_swap.tools.bench.ab.spec.errors import DifferentMachinesError
from numba_swap.tools.cli import main

ROOT = Path(__file__).parents[4]
CASE = Case("h2d", 8192, 1024)
QUICK = ["--simulate", "--block", "512", "--count", "4", "--span", "16KiB", "--rounds", "20"]
QUICK += ["--sample-ms", "0.01"]


def cell(loop_ratio=2.0, case=CASE, **data):
    return make_cell(case, {"batch": 1e6, "loop": loop_ratio * 1e6}, **data)


@pytest.fixture
def write(tmp_path):
    """Write a result and return the path as text."""

    def write(result, name="result.json"):
        write_result(result, tmp_path / name)
        return str(tmp_path / name)

    return write


def fail(arguments, capsys):
    """The one line of an error."""
    with pytest.raises(SystemExit) as caught:
        main(["ab", *arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


# -- run ----------------------------------------------------------------------------------------


def test_run_prints_and_writes_what_it_measured(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main(["ab", "run", "batch", "loop", *QUICK, "--json", str(path)]) == 0
    printed, told = capsys.readouterr()
    result = load_result(path)
    assert printed.rstrip("\n") == format_result(result)
    assert "arms=batch loop" in result.arguments
    assert "simulate=13.0" in result.arguments
    assert str(tmp_path) not in path.read_text()
    for line in (*printed.splitlines(), *told.splitlines()):
        assert not line.strip() or SIMULATED_NOTE in line
    for word in ("enqueue", "completion", "GB/s", "baseline", "batch again (control)", "20 rounds"):
        assert word in printed
    assert main(["ab", "show", str(path)]) == 0
    assert capsys.readouterr().out == printed


def test_a_grid_brings_its_own_arms(tmp_path, capsys, monkeypatch):
    from numba_swap.tools.bench.ab.spec import grids

    small = grids.Grid(
        *(("h2d",), (512, 1024), (2, 4), ("loop", "contiguous"), ("cuda.core", "numba-loop")),
        *((512,), (4,), 2048, 21, 0.01, 3.0),
    )
    monkeypatch.setitem(grids.GRIDS, "small", small)
    path = tmp_path / "grid.json"
    assert main(["ab", "run", "--grid", "small", "--simulate", "--json", str(path)]) == 0
    result = load_result(path)
    assert [len(cell.orders) for cell in result.cells] == [21] * 3
    assert [len(cell.arms) for cell in result.cells] == [3, 4, 3]
    assert [skip["arm"] for skip in result.cells[1].skipped] == ["cuda.core"]
    assert [skip["case"].nbytes for skip in result.skipped] == [4096]
    printed = capsys.readouterr().out
    assert "cuda.core: not measured: cuda.core needs a GPU" in printed
    assert "4096 bytes in all are more than the limit of 2048" in printed


def test_a_mapping_file_is_kept_by_name_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("4 0\n0 2\n")
    path = tmp_path / "result.json"
    arguments = ["run", "loop", *QUICK, "--mapping", str(tmp_path / "mine.txt")]
    assert main(["ab", *arguments, "--json", str(path)]) == 0
    result = load_result(path)
    assert result.cells[0].case.mapping_name == "mine.txt"
    assert "mapping=mine.txt" in result.arguments
    assert str(tmp_path) not in path.read_text()


def test_ctrl_c_is_130_and_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    taken = [0]
    take = Sampler.take

    def interrupted(self):
        taken[0] += 1
        if taken[0] > 50:
            raise KeyboardInterrupt
        take(self)

    monkeypatch.setattr(Sampler, "take", interrupted)
    path = tmp_path / "part.json"
    assert main(["ab", "run", "loop", "batch", *QUICK, "--json", str(path)]) == 130
    assert not load_result(path).complete
    printed = capsys.readouterr().out
    assert "INTERRUPTED" in printed
    assert "8 rounds" in printed
    (summary,) = summarise(load_result(path))
    assert {summary.control.verdict, summary.arms[1].effect.verdict} == {"INCONCLUSIVE"}


def test_ctrl_c_before_anything(capsys, monkeypatch):
    monkeypatch.setattr(Sampler, "take", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["ab", "run", "loop", *QUICK]) == 130
    assert "interrupted before anything was measured" in capsys.readouterr().err


def test_an_error_midway_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    from numba_swap.tools.bench.ab.gpu.memory import CheckedMemory
    from numba_swap.tools.bench.ab.spec.errors import WrongBytesError

    prepare = CheckedMemory.prepare

    def fails(self, case):
        if case.direction == "d2h":
            raise WrongBytesError("wrong on purpose")
        prepare(self, case)

    monkeypatch.setattr(CheckedMemory, "prepare", fails)
    path = tmp_path / "part.json"
    arguments = ["run", "loop", *QUICK, "--direction", "h2d", "d2h", "--json", str(path)]
    assert "wrong on purpose" in fail(arguments, capsys)
    assert len(load_result(path).cells) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "name the arms to measure"),
        (["run", "warp"], "'warp' is no arm"),
        (["run", "loop", "--rounds", "5"], "rounds=5 is too few"),
        (["run", "loop", "--block", "8kB"], "'8kB' is no size"),
        (["run", "loop", "--count", "many"], "'many' is no positive number"),
        (["run", "loop", "--direction", "up"], "'up' is none of h2d, d2h, d2d"),
        (["run", "loop", "--sample-ms", "nan"], "a time limit is not positive"),
        (["run", "loop", "--json", "no/such/x.json"], "there is no such folder"),
        (["run", "loop", "--json", "/"], "/ cannot be written: Is a directory"),
        (["run", "--grid", "tiny", "--json", "/"], "/ cannot be written: Is a directory"),
        (["run", "loop", "--block", "1024GiB"], "h2d, 1024 x 1024 GiB, pinned would take some"),
        (["run", "loop", "--span", "1024GiB"], "of host memory, and there are"),
        (["run", "loop", "--count", "9" * 18], "of host memory, and there are"),
        (["run", "loop", "--count", "9" * 19], "is no positive number below 10**18"),
        (["run", "loop", "--count", "9" * 5000], "is no positive number below 10**18"),
        (["run", "loop", "--block", "9" * 5000], "is no size"),
        (["run", "loop", "--rounds", "9" * 12], "rounds=999999999999 is more than 1000000"),
        (["run", "loop", "--seed", "9" * 20], "seed=99999999999999999999 is more than"),
        (["run", "loop", "--sample-ms", "1e308", "--rounds", "5"], "rounds=5 is too few"),
        (["run", "loop", "--grid", "tiny"], "--grid has its own arms"),
        (["run", "--grid", "tiny", "--count", "7"], "--grid has its own count"),
        (["run", "--grid", "huge"], "'huge' is no grid"),
        (["run", "loop", "--mapping", "none.npy"], "none.npy"),
        (["run", "cupy-loop", *QUICK], "cupy-loop needs a GPU"),
        (["run", "loop", "--simulate", "580"], "'580' is not a driver version"),
        (["show", "none.json"], "none.json"),
        (["compare", "none.json", "none.json"], "none.json"),
        (["plot", "none.json", "x.png"], "none.json"),
        (["plot", "none.json", "no/such/x.png"], "there is no such folder"),
        (["plot", "none.json", "/"], "/ cannot be written: Is a directory"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(Sampler, "take", lambda self: pytest.fail("measured"))
    line = fail(arguments, capsys)
    assert line.startswith("numba-swap: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n9999999999 1\n", "of host memory, and there are"),
        ("0 0\n1 99999999999999\n", "of host memory, and there are"),
        ("0 0\n1 999999999999999999\n", "mine.txt: 999999999999999999 is no block"),
        ("0 0\n1 99999999999999999999\n", "mine.txt: a number is too large"),
        ("0 0\n1 -1\n", "mine.txt: -1 is no block"),
        ("[" * 100_000, "mine.txt: invalid literal"),
    ],
)
def test_huge_blocks_of_a_mapping_are_refused(tmp_path, capsys, monkeypatch, text, message):
    monkeypatch.setattr(Sampler, "take", lambda self: pytest.fail("measured"))
    (tmp_path / "mine.txt").write_text(text)
    line = fail(["run", "loop", *QUICK, "--mapping", str(tmp_path / "mine.txt")], capsys)
    assert message in line
    assert len(line) < 700


def test_a_result_that_cannot_be_written_is_shown_all_the_same(tmp_path, capsys, monkeypatch):
    """A disk may have become full."""
    monkeypatch.setattr(verbs, "check_writable", lambda path: None)
    with pytest.raises(SystemExit, match="2"):
        main(["ab", "run", "loop", *QUICK, "--json", str(tmp_path)])
    output = capsys.readouterr()
    assert "20 rounds" in output.out
    assert output.err.endswith(f"error: {tmp_path.name} cannot be written: Is a directory\n")


def test_an_unknown_commit_is_told_in_words(write, capsys, monkeypatch):
    """As it is of a package that was installed from a wheel."""
    for commit, words in (
        (None, ", of an unknown commit, 2026-01-02"),
        ("release candidate 7", ", release candidate 7, 2026-01-02"),
        ("0123456789abcdef" * 4, ", 0123456789ab, 2026-01-02"),
        ("line\n\ud800", r", line\n\ud800, 2026-01-02"),
    ):
        result = make_result([cell()], machine={**MACHINE, "commit": commit})
        result.machine["uncommitted_changes"] = None
        assert main(["ab", "show", write(result)]) == 0
        assert words in capsys.readouterr().out


def test_help_says_what_the_exit_status_means(capsys):
    for arguments in (["ab", "--help"], ["ab", "run", "--help"], ["ab", "compare", "-h"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
        text = capsys.readouterr().out
        for status in (
            "  0    done",
            "  1    --fail-on-slower",
            "  2    error",
            "  130  Ctrl-C",
            "  141  ",
        ):
            assert status in text


def test_the_script_is_the_command(tmp_path):
    path = tmp_path / "result.json"
    result = subprocess.run(
        [ROOT / "scripts" / "ab_timing", "run", "loop", *QUICK, "--json", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NUMBA_SWAP_PYTHON": sys.executable},
    )
    assert result.returncode == 0, result.stderr
    assert load_result(path).simulated


def test_progress_lines_tell_the_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress._Lines(4, "")
    for now[0], done in [(0.0, 0), (3.0, 0.5), (10.0, 1), (15.0, 1.5), (30.0, 3)]:
        lines(done, "what")
    assert capsys.readouterr().err.splitlines() == [
        "[1/4, 0 s] what",
        "[2/4, 10 s, about 30 s left] what",
        "[4/4, 30 s, about 10 s left] what",
    ]


def test_the_bar_runs_no_thread_within_samples(monkeypatch):
    """A thread that draws would take processor time from what is measured."""
    import threading

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.show_progress(3, simulated=True) as report:
        report(0.5, "h2d")
        assert threading.active_count() == 1 or not any(
            "refresh" in type(thread).__name__.lower() for thread in threading.enumerate()
        )


# -- show ---------------------------------------------------------------------------------------


def test_show_compares_with_any_arm_and_any_time(write, capsys):
    path = write(make_result([cell()]))
    assert main(["ab", "show", path, "--baseline", "loop", "--metric", "gpu"]) == 0
    printed = capsys.readouterr().out
    assert "ratios of gpu time" in printed
    assert re.search(r"^ batch .* 0\.\d+ \[0\.\d+, 0\.\d+\] .* FASTER", printed, re.M)
    assert re.search(r"^ loop .* baseline", printed, re.M)
    assert SIMULATED_NOTE not in printed
    assert "Made-up GPU, driver 580.1 (CUDA 13.0), 0123456789ab, 2026-01-02" in printed


def test_show_selects_cases(write, capsys):
    path = write(make_grid_result())
    arguments = ["ab", "show", path, "--direction", "h2d", "--block", "8KiB", "--count", "16"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("24 rounds") == 1
    assert "no such case" in fail(["show", path, "--block", "3"], capsys)
    assert "numba-loop was not measured" in fail(["show", path, "--baseline", "numba-loop"], capsys)


def test_many_cells_are_one_line_each(write, capsys):
    result = make_grid_result()
    result.cells[3].skipped.append({"arm": "cupy-loop", "reason": "too slow"})
    result.cells[4].arms[3].settled = False
    assert main(["ab", "show", write(result)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("x 512 B, pinned" in line for line in lines) >= 6
    row = next(line for line in lines if "h2d, 4096 x 512 B" in line)
    assert [word for word in row.split() if word in "FS=?"] == ["=", "S", "S", "F", "="]
    assert any("cupy-loop: not measured in 1 of its cases" in line for line in lines)
    assert any("batch, h2d, 256 x 2 KiB, pinned: the warm-up did not settle" in x for x in lines)
    assert any(f"over {len(result.cells)} cases; by itself not SAME in 0" in x for x in lines)


def test_an_unstable_control_is_told_loudly(write, capsys):
    main(["ab", "show", write(make_result([cell(noise=0.3)]))])
    printed = capsys.readouterr().out
    assert "UNSTABLE: the control is not SAME" in printed
    assert "UNSTABLE REPORT" in printed


def test_a_planted_slowdown_is_told(write, capsys):
    result = make_result([cell()])
    result.cells[0].arms[2].planted_ns = 5000
    main(["ab", "show", write(result)])
    assert "loop: made slower on purpose by 5 us a run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cells", "status"),
    [
        ([], 3),
        ([cell(1.0)], 0),
        ([cell(0.5)], 0),
        ([cell(1.05)], 1),
        ([cell(1.0), cell(1.5, Case("d2h", 512, 4))], 1),
        ([cell(2.0, noise=0.3)], 3),
        ([cell(1.0), cell(1.0, Case("d2h", 512, 4), noise=0.3)], 3),
    ],
)
def test_fail_on_slower(write, cells, status):
    path = write(make_result(cells))
    assert main(["ab", "show", path]) == 0
    assert main(["ab", "show", path, "--fail-on-slower"]) == status


# -- compare ------------------------------------------------------------------------------------


def test_compare_matches_cases_and_arms(write, capsys):
    other = Case("h2d", 512, 1024)
    first = make_result([cell(2.0), cell(1.0, other)])
    second = make_result([cell(2.2, seed=9), cell(1.0, Case("d2d", 512, 64, "device"))])
    second.machine = {**MACHINE, "commit": "f" * 40}
    paths = write(first), write(second, "second.json")
    assert main(["ab", "compare", *paths]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(" h2d, 1024 x 8 KiB")]
    assert [row.split()[-2:] for row in rows] == [["SAME", "SAME"], ["SLOWER", "SAME"]]
    assert "only in the first: h2d, 1024 x 512 B, pinned, loop" in printed
    assert "only in the second: d2d, 64 x 512 B, device, batch" in printed
    assert "ffffffffffff" in printed
    assert "not measured in turn" in printed
    assert main(["ab", "compare", *paths, "--fail-on-slower"]) == 1
    assert main(["ab", "compare", paths[0], paths[0], "--fail-on-slower"]) == 0


def test_compare_with_an_unstable_control_cannot_tell(write):
    first, second = make_result([cell(2.0)]), make_result([cell(2.0, noise=0.3)])
    paths = write(first), write(second, "second.json")
    assert main(["ab", "compare", *paths, "--fail-on-slower"]) == 3


def test_compare_with_nothing_in_common_cannot_tell(write, capsys):
    first, second = make_result([cell()]), make_result([cell(case=Case("d2h", 512, 4))])
    paths = write(first), write(second, "second.json")
    assert main(["ab", "compare", *paths, "--fail-on-slower"]) == 3
    assert "nothing in common has completion times" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": [{"name": "Other GPU"}]}, "devices: ['Made-up GPU'] and ['Other GPU']"),
        ({"driver_version": "12.8"}, "driver version: 13.0 and 12.8"),
        ({"driver_release": "570.1"}, "driver release: 580.1 and 570.1"),
        ({"pretended_version": "12.4"}, "pretended version: None and 12.4"),
    ],
)
def test_other_machines_are_refused(write, capsys, change, message):
    first, second = make_result([cell()]), make_result([cell()], machine={**MACHINE, **change})
    paths = write(first), write(second, "second.json")
    assert message in fail(["compare", *paths], capsys)
    assert main(["ab", "compare", *paths, "--despite-differences"]) == 0
    assert f"DIFFERENT MACHINES: {message}" in capsys.readouterr().out


def test_a_simulation_is_no_gpu():
    first, second = make_result([cell()]), make_result([cell()], simulated=True)
    assert find_differences(first, second) == ["simulated: False and True"]
    with pytest.raises(DifferentMachinesError):
        compare_results(first, second)


def test_other_commits_are_the_point():
    first = make_result([cell()])
    second = make_result([cell()], machine={**MACHINE, "commit": "f" * 40, "cores": 99})
    assert find_differences(first, second) == []


# -- crossovers and pictures --------------------------------------------------------------------


def test_crossovers_are_interpolated_on_logarithmic_axes():
    sizes = [1, 4, 16]
    assert find_crossovers(sizes, [1, 2, 8], [2, 4, 2]) == [pytest.approx(4 * 4 ** (1 / 3))]
    assert find_crossovers(sizes, [1, 2, 3], [2, 4, 6]) == []
    assert find_crossovers(sizes, [1, 2, 3], [2, 2, 1]) == [pytest.approx(4)]
    assert find_crossovers([], [], []) == []
    # Within 2 % nobody leads.
    assert find_crossovers(sizes, [100, 101, 100], [101, 100, 101]) == []
    assert find_crossovers(sizes, [100, 101, 200], [101, 100, 101]) == []
    assert find_crossovers(sizes, [90, 101, 200], [100, 100, 100]) == [pytest.approx(3.5, rel=0.1)]


def test_the_crossover_of_the_model_is_found():
    """In the model the batch overtakes the kernel where its cost for each copy falls, at 28 KiB."""
    summaries = summarise(make_grid_result())
    (size,) = crossovers_between(summaries, "batch", "kernel", "h2d", 4096)
    assert 8192 < size < 32768
    assert crossovers_between(summaries, "loop", "contiguous", "h2d", 16) == []


@pytest.fixture(scope="module")
def grid():
    pytest.importorskip("matplotlib")
    return make_grid_result()


def test_throughput_shows_every_arm_at_its_rate(grid):
    from numba_swap.tools.bench.ab.show.plots import draw_throughput

    panels = draw_throughput(grid, count=256).axes
    assert [panel.get_title() for panel in panels] == [
        "Host to device, 256 blocks",
        "Device to host, 256 blocks",
    ]
    for panel in panels:
        curves = {c.get_label(): c.lines[0].get_ydata() for c in panel.containers}
        assert set(curves) == {"auto", "kernel", "batch", "loop", "contiguous"}
        wanted = [
            size * 256 / link_times(size, 256)["batch"]
            for size in (512, 2048, 8192, 32768, 262144, 1 << 20)
        ]
        assert curves["batch"] == pytest.approx(wanted, rel=0.01)
        upright = [x for x in (line.get_xdata() for line in panel.get_lines()) if len(x) == 2]
        ((size, _),) = upright
        assert 8192 < size < 32768


def test_the_map_of_ratios(grid):
    from numba_swap.tools.bench.ab.show.plots import draw_ratio

    grid.cells[0].arms[1].completion_ns = [2 * ns for ns in grid.cells[0].arms[1].completion_ns]
    figure = draw_ratio(grid, "batch", "kernel")
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["Host to device", "Device to host"]
    texts = {t.get_position(): t.get_text() for t in panels[0].texts}
    assert len(texts) == 18
    times = link_times(512, 16)
    assert texts[0, 0] == f"{times['batch'] / times['kernel']:.2g}?"  # its control is off
    assert not texts[0, 1].endswith("?")
    assert panels[0].get_lines()  # where the two are equally fast


def test_the_map_of_the_fastest(grid):
    from numba_swap.tools.bench.ab.show.plots import draw_fastest

    (panel, _) = draw_fastest(grid).axes
    texts = {t.get_position(): t.get_text().splitlines()[0] for t in panel.texts}
    assert texts[0, 2] == "kernel"
    assert texts[3, 2] == "batch"


@pytest.mark.parametrize("kind", ["throughput", "ratio", "fastest"])
def test_plot_writes_a_picture(write, tmp_path, kind, monkeypatch):
    pytest.importorskip("matplotlib")
    result = make_grid_result(sizes=(512, 8192), counts=(16,))
    result.simulated = True
    drawn = []
    from matplotlib.figure import Figure

    savefig = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *a, **k: drawn.append(self._suptitle.get_text()) or savefig(self, *a, **k),
    )
    picture = tmp_path / "picture.png"
    assert main(["ab", "plot", write(result), str(picture), "--kind", kind]) == 0
    assert picture.stat().st_size > 5000
    assert SIMULATED_NOTE.upper() in drawn[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "3"], "nothing was measured with 3 blocks"),
        (["--kind", "ratio", "--over", "numba-loop"], "no case was measured with both numba-loop"),
    ],
)
def test_what_cannot_be_drawn(write, tmp_path, capsys, arguments, message):
    pytest.importorskip("matplotlib")
    path = write(make_grid_result(sizes=(512,), counts=(16,)))
    assert message in fail(["plot", path, str(tmp_path / "x.png"), *arguments], capsys)


def test_a_result_without_cells_cannot_be_drawn(write, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = write(make_result([]))
    for kind in ("throughput", "ratio", "fastest"):
        line = fail(["plot", path, str(tmp_path / "x.png"), "--kind", kind], capsys)
        assert re.search("no cell|no case", line)


# -- the schema is what the command writes --------------------------------------------------------


def test_recorded_arguments_are_arguments_of_run():
    import argparse

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["ab", "run", "loop"])
    assert set(verbs._RECORDED) <= set(vars(parsed))
    assert not {"json"} & set(verbs._RECORDED)
    json.dumps(verbs._arguments(parsed))
