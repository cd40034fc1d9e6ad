"""Result files: round trips, and what is said of broken ones."""

import json
import os
import re

import pytest
from made_results import make_cell, make_result

from numba_swap.tools.bench.ab.results.results import load_result, select_cells, write_result
from numba_swap.tools.bench.ab.results.schema import SCHEMA_NAME
from numba_swap.tools.bench.ab.show.tables import format_result
from numba_swap.tools.bench.ab.spec.cases import Case
from numba_swap.tools.bench.ab.spec.errors import ResultFileError


@pytest.fixture
def result():
    cells = [
        make_cell(Case("h2d", 8192, 64), {"batch": 1e5, "loop": 2e5}),
        make_cell(Case("d2d", 512, 16, "device", "cold"), {"auto:fresh": 1e5, "contiguous": 5e4}),
    ]
    cells[1].arms[2].gpu_ns = None
    cells[0].skipped.append({"arm": "cuda.core", "reason": "not installed"})
    skipped = [{"case": Case("h2d", 1 << 20, 16384), "reason": "too large"}]
    return make_result(cells, skipped=skipped)


@pytest.fixture
def path(result, tmp_path):
    path = tmp_path / "result.json"
    write_result(result, path)
    return path


def test_round_trip(result, path, tmp_path):
    again = load_result(path)
    assert again == result
    write_result(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_one_line_a_cell(path):
    lines = path.read_text().splitlines()
    assert sum(line.startswith('{"case"') for line in lines) == 3
    assert json.loads(path.read_text())["schema"] == SCHEMA_NAME


def test_a_result_without_cells(tmp_path):
    write_result(make_result([]), tmp_path / "none.json")
    assert load_result(tmp_path / "none.json").cells == []


def replace(value, path, new):
    """Put something else at a place, ``cells.0.case``."""
    *outer, last = path.split(".")
    for step in outer:
        value = value[int(step) if step.isdecimal() else step]
    if new is KeyError:
        del value[last]
    else:
        value[int(last) if last.isdecimal() else last] = new


ARMS = "cells.0.arms"


@pytest.mark.parametrize(
    ("place", "new", "message"),
    [
        ("schema", "numba-swap ab 2", "schema: 'numba-swap ab 2' is not 'numba-swap ab 1'"),
        ("schema", KeyError, "schema: None is not"),
        ("simulated", 1, "simulated: 1 is neither true nor false"),
        ("method.rounds", KeyError, "method.rounds: is missing"),
        ("method.extra", 1, "method.extra: is not known to this schema"),
        ("method.seed", -1, "method.seed: -1 is no integer from 0 up"),
        ("machine.versions.python", 3.12, "machine.versions.python: 3.12 is no text"),
        ("machine", [], "machine: is no object"),
        ("cells", {}, "cells: is no list"),
        ("clocks.0.sm_mhz", "fast", "clocks[0].sm_mhz: 'fast' is no number"),
        ("cells.0.case.direction", "up", "cells[0].case.direction: 'up' is none of h2d"),
        ("cells.1.case.count", 0, "cells[1].case.count: 0 is no positive integer"),
        ("cells.1.case.count", True, "cells[1].case.count: True is no positive integer"),
        (f"{ARMS}.2.arm", "warp", "cells[0].arms[2].arm: 'warp' is no arm"),
        (f"{ARMS}.2.arm", "batch", "cells[0].arms: name one arm twice"),
        (f"{ARMS}.2.completion_ns.7", -5, "arms[2].completion_ns[7]: -5 is no positive"),
        (f"{ARMS}.2.completion_ns.7", 1.5, "arms[2].completion_ns[7]: 1.5 is no positive"),
        (f"{ARMS}.2.completion_ns.7", None, "arms[2].completion_ns[7]: None is no positive"),
        (f"{ARMS}.1.gpu_ns", [1], "arms[1].gpu_ns: holds 1 samples for 24 rounds"),
        (f"{ARMS}.1.control", False, "cells[0].arms: do not start with the baseline and its"),
        (f"{ARMS}.1.arm", "kernel", "cells[0].arms: do not start with the baseline and its"),
        (f"{ARMS}.0.mode", "warp", "cells[0].arms[0].mode: 'warp' is none of batch"),
        ("cells.0.orders.3", [0, 1, 1], "cells[0].orders[3]: [0, 1, 1] is no order of 3 arms"),
        ("cells.0.orders", [], "cells[0].orders: holds no round"),
        ("cells.0.skipped.0.reason", "", "cells[0].skipped[0].reason: '' is no text"),
        ("skipped.0.case.cache", "hot", "skipped[0].case.cache: 'hot' is none of warm, cold"),
    ],
)
def test_what_is_wrong_is_named(path, place, new, message):
    value = json.loads(path.read_text())
    replace(value, place, new)
    path.write_text(json.dumps(value))
    with pytest.raises(ResultFileError, match=re.escape(message)) as caught:
        load_result(path)
    assert str(caught.value).startswith("result.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(path, constant):
    path.write_text(path.read_text().replace('"at_s":0.5', f'"at_s":{constant}'))
    with pytest.raises(ResultFileError, match=f"{constant} is no number"):
        load_result(path)


def test_nan_is_not_written(result, tmp_path):
    result.clocks[0]["at_s"] = float("nan")
    with pytest.raises(ValueError, match="Out of range float"):
        write_result(result, tmp_path / "nan.json")


@pytest.mark.parametrize("text", ["", "[]", "3", '{"schema":', "null"])
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ResultFileError, match=r"x\.json: "):
        load_result(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("place", "text", "message"),
    [
        ("cells.0.arms.0.completion_ns.0", "[" * 5000, "nested more than 32 deep"),
        ("cells.0.arms.0.completion_ns.0", "1e999", "completion_ns[0]: inf is no positive"),
        ("cells.0.arms.0.completion_ns.0", "7" * 31, "a number has more than 30 digits"),
        ("cells.0.arms.0.completion_ns.0", "7" * 10_000, "a number has more than 30 digits"),
        ("cells.0.arms.0.completion_ns.0", "true", "completion_ns[0]: True is no positive"),
        ("method.seed", "false", "method.seed: False is no integer from 0 up"),
        ("schema", json.dumps("x" * 10_000), "schema: 'xxx"),
        ("machine.date", json.dumps({"a\n": 1}), "machine.date: is no text"),
        ("clocks.0", json.dumps({"a\n\x1b": 1}), "clocks[0].a\\n\\x1b: is not known"),
    ],
)
def test_hostile_values_are_named_in_one_line(path, place, text, message):
    value = json.loads(path.read_text())
    replace(value, place, "here")
    path.write_text(json.dumps(value).replace('"here"', text))
    with pytest.raises(ResultFileError) as caught:
        load_result(path)
    assert str(caught.value).startswith("result.json: ")
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_what_is_no_file_is_refused(tmp_path):
    """More of the kind stand in dispatch/test_schema.py: they are read by one function."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(ResultFileError, match=f"^{name}: it is no file"):
            load_result(tmp_path / name)
    with pytest.raises(ResultFileError, match=f"^{tmp_path.name}: Is a directory"):
        load_result(tmp_path)
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", 1 << 40)
    with pytest.raises(ResultFileError, match="it is larger than 64 MiB"):
        load_result(tmp_path / "large")


def test_the_longest_numbers_can_be_judged(path):
    text = path.read_text()
    value = json.loads(text)
    replace(value, "cells.0.arms.0.completion_ns", [10**29] * 48)
    path.write_text(json.dumps(value))
    assert "GB/s" in format_result(load_result(path))


def test_what_cannot_be_written_is_told(result, tmp_path):
    with pytest.raises(ResultFileError, match=f"^{tmp_path.name} cannot be written: Is a dir"):
        write_result(result, tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultFileError, match=r"none\.json"):
        load_result(tmp_path / "none.json")


def test_a_file_that_breaks_its_own_schema_is_kept(result, tmp_path):
    """It took minutes to measure."""
    result.cells[0].arms[0].completion_ns.pop()
    with pytest.raises(ResultFileError, match="completion_ns: holds 47 samples"):
        write_result(result, tmp_path / "broken.json")
    assert json.loads((tmp_path / "broken.json").read_text())["cells"]


def test_selecting_cells(result):
    assert select_cells(result.cells) == result.cells
    assert select_cells(result.cells, direction=["d2d"]) == result.cells[1:]
    assert select_cells(result.cells, block_bytes=[8192], count=[64]) == result.cells[:1]
    assert select_cells(result.cells, block_bytes=[8192], count=[16]) == []
