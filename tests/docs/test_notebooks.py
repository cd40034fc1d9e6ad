"""The notebooks run from a clean kernel, and their committed outputs are what a run gives.

What notebooks 3 and 4 say of the data beside them is held to the data here, with room for another
run on the same kind of machine.
"""

import difflib
import importlib.util
import itertools
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from numba_swap import ab

KIB = 1024
ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOOLS = runpy.run_path(str(ROOT / "notebooks" / "_execute.py"))
# The notebooks that ask real driver libraries, and read their headers.
OF_THE_MUSEUM = {"1_one_name_two_abis", "2_two_crashes_and_a_cure"}
# What the notebooks read beside themselves.
BESIDE = [
    "tests/museum/facts.json",
    "scripts/fetch_drivers",
    "numba_swap/dispatch/data/reference_costs.json",
]
# Tag of a cell whose output depends on installed versions, or on wording that is not fixed.
VOLATILE = "volatile"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    """A notebook as it is committed."""
    return json.loads(path.read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell):
    """All that the outputs of a cell consist of, for example image/png or stdout."""
    found = set()
    for output in cell["outputs"]:
        found |= {output["output_type"], output.get("name", ""), *output.get("data", {})}
    return found


# -- as committed -------------------------------------------------------------------------------


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4


def test_cells_were_run_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_what_prints_or_draws_has_an_output(notebook):
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        unindented = [line for line in source.splitlines() if re.match(r"\w", line)]
        printed = "print(" in source
        shown = unindented[-1].startswith("museum.") or unindented[-1].isidentifier()
        drawn = "pictures.draw_" in source or "ab.draw_" in source
        assert not printed or "stdout" in kinds(cell), source
        assert not shown or "text/plain" in kinds(cell), source
        assert not drawn or "image/png" in kinds(cell), source


def test_there_are_a_table_and_a_picture(notebook):
    found = set().union(*map(kinds, code_cells(notebook)))
    assert {"text/html", "image/png"} <= found


def test_no_cell_failed_or_warned(notebook):
    for cell in code_cells(notebook):
        assert not kinds(cell) & {"error", "stderr"}, "".join(cell["source"])


def test_no_output_names_the_machine(notebook):
    assert TOOLS["machine_words"](notebook) == []


@pytest.mark.parametrize(
    "text",
    [
        "/home/someone/x",
        "/tmp/notebook-1/program.so",
        "x/site-packages/numba_swap",
        "see https://example.org/simple",
    ],
)
def test_what_names_a_machine_is_noticed(text):
    cell = {"id": "cell-00", "outputs": [{"output_type": "stream", "text": [text]}]}
    assert TOOLS["machine_words"]({"cells": [cell]})


def test_metadata_is_clean(notebook):
    assert TOOLS["clean"](json.loads(json.dumps(notebook))) == notebook


def test_every_result_says_where_it_comes_from(notebook):
    """A table's last line, a print's last line: in words that the notebook explains."""
    sources = re.compile(r"GPU|[Ss]imulated|NVIDIA's own headers|gcc|files that are installed")
    for cell in code_cells(notebook):
        texts = [TOOLS["text_of"](output).strip() for output in cell["outputs"]]
        for text in filter(None, texts):
            assert sources.search(text.splitlines()[-1]), text


# -- executed -----------------------------------------------------------------------------------


def what_is_missing(path):
    """What executing a notebook needs and this machine lacks; None if all is there."""
    modules = ("nbclient", "ipykernel", "matplotlib")
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install -e '.[notebooks]'"
    if path.stem not in OF_THE_MUSEUM:
        return None
    if not shutil.which("gcc"):
        return "no C compiler: install gcc"
    fetch = runpy.run_path(str(ROOT / "scripts" / "fetch_drivers"))
    cache = fetch["cache_folder"]()
    drivers = all((cache / release / "libcuda.so.1").is_file() for release in fetch["DRIVERS"])
    if not drivers:
        return f"not all drivers are in {cache}: run scripts/fetch_drivers"
    if not all(fetch["find_headers"](cache, series) for series in fetch["HEADERS"]):
        return f"not all headers are in {cache}: run scripts/fetch_drivers --headers"
    return None


@pytest.fixture
def executed(path, tmp_path):
    """The notebook after a run in a private copy, from a clean kernel."""
    if reason := what_is_missing(path):
        if os.environ.get("CI", "") not in ("", "0", "false"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    copy, out = tmp_path / "copy", tmp_path / "out"
    shutil.copytree(ROOT / "notebooks", copy / "notebooks", ignore=shutil.ignore_patterns("__*"))
    for name in BESIDE:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    out.mkdir()
    search = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    # A process of its own: whatever the tools of Jupyter warn of is not ours.
    result = subprocess.run(
        [sys.executable, "notebooks/_execute.py", "--into", str(out), f"notebooks/{path.name}"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads((out / path.name).read_text())


def stable_lines(notebook):
    """The text of all outputs that every run must give, with the cell that gave it."""
    lines = []
    for cell in code_cells(notebook):
        if VOLATILE in cell["metadata"].get("tags", []):
            continue
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                lines.append(f"{cell['id']}: a picture")
                continue
            text = "".join(data.get("text/plain", output.get("text", "")))
            lines += [f"{cell['id']}: {line.rstrip()}" for line in text.splitlines()]
    return lines


def _param(path):
    marks = [pytest.mark.museum] if path.stem in OF_THE_MUSEUM else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [_param(path) for path in NOTEBOOKS], indirect=True)
def test_runs_and_says_what_is_committed(executed, notebook):
    committed, now = stable_lines(notebook), stable_lines(executed)
    assert len(committed) > 20
    difference = "\n".join(difflib.unified_diff(committed, now, "committed", "now", lineterm=""))
    assert not difference, f"{difference}\nIf this is meant: scripts/run_notebooks"
    # Of the others, only that there is something, and of the same kind.
    cells = zip(code_cells(notebook), code_cells(executed), strict=True)
    assert all(kinds(before) == kinds(after) for before, after in cells)


# -- what notebooks 3 and 4 say of the data -----------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """The module beside the notebooks that reads the data."""
    path = ROOT / "notebooks" / "_measured.py"
    spec = importlib.util.spec_from_file_location("_measured", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def grid(measured):
    return measured.load("ab_h200.json")


@pytest.fixture(scope="module")
def times(measured, grid):
    return measured.times_of(grid)


def test_the_grid_is_whole_and_measured(grid):
    assert grid.complete
    assert not grid.simulated
    assert {cell.case.direction for cell in grid.cells} == {"h2d", "d2h", "d2d"}


def test_the_control_of_the_grid_is_same(grid):
    summaries = ab.summarise(grid)
    assert ab.control_of(summaries, grid.seed).verdict is ab.Verdict.SAME
    assert sum(summary.stable for summary in summaries) > 0.8 * len(summaries)


def test_a_planted_slowdown_is_found_and_a_small_one_is_not_called(measured):
    planted = measured.load("ab_planted_h200.json")
    summaries = ab.summarise(planted)
    assert {summary.case.direction for summary in summaries} == {"h2d", "d2h"}
    for summary in summaries:
        verdicts = {arm.arm: arm.effect.verdict for arm in summary.arms if arm.effect}
        assert summary.stable
        assert verdicts["auto:plant=5%"] is ab.Verdict.SLOWER
        assert verdicts["auto:plant=0.5%"] not in (ab.Verdict.SLOWER, ab.Verdict.FASTER)


def gains(measured, grid, times, direction, block_bytes, least=0):
    return [
        measured.gain_of_batch(grid, key)
        for key in times
        if (key.direction, key.block_bytes) == (direction, block_bytes) and key.count >= least
    ]


def test_the_batch_gains_3_to_7_times_over_the_loop_in_some_cases_only(measured, grid, times):
    to_device = [gains(measured, grid, times, "h2d", size * KIB) for size in (8, 16, 32)]
    from_device = [gains(measured, grid, times, "d2h", size * KIB) for size in (8, 16, 32)]
    for of_direction in (to_device, from_device):
        flat = list(itertools.chain(*of_direction))
        assert 0 < sum(3 <= gain <= 7 for gain in flat) < len(flat) / 2
        assert min(flat) < 1
        assert max(flat) < 8
    # The step of the driver's batch to the device lies between 16 and 32 KiB.
    assert max(to_device[0] + to_device[1]) < 2
    assert statistics.median(gains(measured, grid, times, "h2d", 32 * KIB, least=256)) > 3


def test_the_best_mode_gains_over_batch_and_loop(measured, grid, times):
    of_8_kib = [key for key in times if key.block_bytes == 8 * KIB and key.direction != "d2d"]
    gained = {key: measured.gain_of_best(grid, key, times) for key in of_8_kib}
    assert min(gained.values()) > 1.5
    assert max(gain for key, gain in gained.items() if key.direction == "h2d") > 8
    assert {measured.best_of(times[key]) for key in of_8_kib} == {"kernel"}


def test_kernel_and_batch_cross_to_the_device_only(measured, times):
    """Where many long blocks go to the device, the batch is ahead."""
    found = {
        direction: [
            measured.crossovers(times, "kernel", "batch", direction, n) for n in (256, 1024)
        ]
        for direction in ("h2d", "d2h")
    }
    assert all(32 * KIB < size < 1024 * KIB for sizes in found["h2d"] for size in sizes)
    assert any(found["h2d"])
    assert not any(found["d2h"])


@pytest.mark.parametrize("direction", ["h2d", "d2h"])
def test_a_rule_from_elsewhere_costs_more_than_the_prediction(measured, times, direction):
    rule = measured.threshold_rule(28 * KIB, 16)
    for known in (times, measured.times_of_calibration(least=16)):
        price = measured.price_of(known, direction, rule)
        assert price.worst > 1.5
        assert price.mean < measured.price_of(known, direction, "batch").mean
    assert measured.price_of(times, direction, "auto").mean < 1.03
    assert measured.price_of(times, direction, "auto").worst < 1.15


def test_the_tiles_of_notebook_4_are_best_moved_by_the_kernel(measured, times):
    of_tiles = [key for key in times if key.block_bytes == 16 * KIB and key.direction != "d2d"]
    assert {measured.best_of(times[key]) for key in of_tiles} == {"kernel"}


def test_the_live_run_goes_through_the_motions(measured):
    """Its cells need a GPU; what they do with its result does not."""
    method = ["--sample-ms", "0.001", "--most-arm-s", "1000", "--span", "4KiB"]
    for version, modes in (("13.0", measured.MODES), ("11.4", ("loop",))):
        result = measured.measure_here(
            ["h2d", "d2h"], [64], [4], 60.0, *method, "--simulate", version
        )
        found = measured.times_of(result)
        assert len(found) == 2
        assert all(set(of) == {"auto", *modes} for of in found.values())
        assert all(measured.best_of(of) in modes for of in found.values())
        assert "Simulated" in measured.origin(result)
        words = measured.crossovers_in_words(found, "loop", "batch", "h2d", 4)
        assert (words is None) == (version == "11.4")
    assert measured.crossovers_in_words(found, "loop", "batch", "h2d", 5) is None


def test_the_price_of_a_rule(measured):
    times = {
        measured.Key("h2d", 1024, 16): {"kernel": 2.0, "batch": 8.0, "loop": 4.0},
        measured.Key("h2d", 4096, 16): {"kernel": 6.0, "batch": 3.0, "loop": 9.0},
    }
    assert measured.price_of(times, "h2d", "kernel").worst == 2
    assert measured.price_of(times, "h2d", "batch").mean == pytest.approx(2)
    assert str(measured.price_of(times, "h2d", "loop")) == "2.45, at worst 3.00"
    assert measured.best_threshold(times, "h2d") == 4096
    few = measured.threshold_rule(4096, fewest=17)
    assert measured.price_of(times, "h2d", few).where == measured.Key("h2d", 1024, 16)
