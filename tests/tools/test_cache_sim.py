"""The command `cache-sim`."""

import json

import numpy as np
import pytest

from numba_swap.tools.cli import main


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["cache-sim", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def loop(tmp_path):
    path = tmp_path / "trace.npy"
    np.save(path, np.arange(40) % 4)
    return str(path)


def test_hit_rates_of_all_policies(loop, capsys):
    assert main(["cache-sim", loop, "--slots", "2,4"]) == 0
    header, two, four = capsys.readouterr().out.splitlines()
    assert header.split() == ["slots", "lru", "clock", "lfu", "belady"]
    assert two.split()[:2] == ["2", "0.0000"]  # a loop longer than the cache
    assert two.split()[4] == "0.3000"
    assert four.split() == ["4", *["0.9000"] * 4]


def test_requests_of_several_blocks_and_json(tmp_path, loop, capsys):
    assert main(["cache-sim", loop, "--slots", "4", "--request", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["policy"]: row["fetched"] for row in rows} == dict.fromkeys(
        ["lru", "clock", "lfu", "belady"], 4
    )
    rows = tmp_path / "rows.npy"
    np.save(rows, np.array([[0, 1, -1], [2, -1, -1], [0, 1, 2]]))
    assert main(["cache-sim", str(rows), "--slots", "3", "--json"]) == 0
    assert {row["wanted"] for row in json.loads(capsys.readouterr().out)} == {6}


def test_picture(loop, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["cache-sim", loop, "--slots", "2,3,4", "--plot", str(tmp_path / "a.svg")]) == 0
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slots", "3", "--request", "4"], "the smallest cache that works"),
        (["--slots", "x"], "no list of integers"),
        (["--slots", "0"], "no positive integer"),
        (["--slots", "4", "--request", "0"], "no positive integer"),
    ],
)
def test_what_means_nothing_is_refused(loop, capsys, arguments, words):
    assert words in refused([loop, *arguments], capsys)


def test_files_that_are_no_traces(tmp_path, capsys):
    for content, words in (
        (np.zeros(3), "no array of integers"),
        (np.array([-1, 2]), "negative"),
    ):
        np.save(tmp_path / "bad.npy", content)
        assert words in refused([str(tmp_path / "bad.npy"), "--slots", "4"], capsys)
    assert "no file of numpy" in refused([str(tmp_path / "none.npy"), "--slots", "4"], capsys)
