"""The notebooks run from a clean kernel, and their committed outputs are what a run gives."""

import difflib
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOOLS = runpy.run_path(str(ROOT / "notebooks" / "_execute.py"))
# What the notebooks read beside themselves.
BESIDE = ["tests/museum/facts.json", "scripts/fetch_drivers"]
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
    assert len(NOTEBOOKS) == 2


def test_cells_were_run_in_order(notebook):
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_what_prints_or_draws_has_an_output(notebook):
    for cell in code_cells(notebook):
        source = "".join(cell["source"])
        unindented = [line for line in source.splitlines() if re.match(r"\w", line)]
        printed = "print(" in source
        shown = unindented[-1].startswith("museum.") or unindented[-1].isidentifier()
        drawn = "pictures.draw_" in source
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


def what_is_missing():
    """What executing needs and this machine lacks; None if all is there."""
    modules = ("nbclient", "ipykernel", "matplotlib")
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install -e '.[notebooks]'"
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
    if reason := what_is_missing():
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


@pytest.mark.museum
def test_runs_and_says_what_is_committed(executed, notebook):
    committed, now = stable_lines(notebook), stable_lines(executed)
    assert len(committed) > 20
    difference = "\n".join(difflib.unified_diff(committed, now, "committed", "now", lineterm=""))
    assert not difference, f"{difference}\nIf this is meant: scripts/run_notebooks"
    # Of the others, only that there is something, and of the same kind.
    cells = zip(code_cells(notebook), code_cells(executed), strict=True)
    assert all(kinds(before) == kinds(after) for before, after in cells)
