"""The soak and the measurement of validation run, for seconds, on a simulated driver."""

import json

import numpy as np
import pytest
import soak
import validation_cost

OPTIONS = ["--simulate", "--rounds", "6", "--threads", "2", "--pool-bytes", "65536"]


def test_a_short_soak(tmp_path, capsys):
    written = tmp_path / "soak.json"
    assert soak.main([*OPTIONS, "--json", str(written)]) == 0
    result = json.loads(written.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result["blocks"] > 1000
    assert result["bytes"] > 100_000
    assert {name.split()[0] for name in result["swaps_by_verb_and_mode"]} == {
        *soak.VERBS,
        "exchange",
    }


def forget_a_byte(dst, src, dst_at, src_at, sizes):
    soak_apply(dst, src, dst_at, src_at, sizes)
    dst[dst_at[-1]] ^= np.uint8(sizes[-1] > 0)


soak_apply = soak.apply


def fail(*arguments):
    raise ValueError("a call that fails")


@pytest.mark.parametrize(("replaced", "sign"), [(forget_a_byte, "wrong_bytes"), (fail, "errors")])
def test_a_soak_that_finds_something_fails(monkeypatch, capsys, replaced, sign):
    monkeypatch.setattr(soak, "apply", replaced)
    assert soak.main([*OPTIONS, "--seed", "3"]) == 1
    assert json.loads(capsys.readouterr().out)[sign]


def test_growth_fails_a_soak():
    good = {"wrong_bytes": 0, "errors": [], "host_growth_bytes": 0, "device_growth_bytes": 0}
    assert soak.is_good(good)
    for side in ("host", "device"):
        assert not soak.is_good({**good, f"{side}_growth_bytes": soak.ALLOWED_GROWTH_BYTES + 1})


def test_the_cost_of_validation_is_measured(capsys):
    options = ["--simulate", "--counts", "50", "--allocations", "20", "--rounds", "1"]
    validation_cost.main([*options, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["level"] for row in rows] == ["none", "bounds", "full"] * 3
    assert all(row["ms"] > 0 for row in rows)
    validation_cost.main(options)
    assert "20 copies, each to an allocation of its own" in capsys.readouterr().out
