"""The soak of caches runs, for seconds, on a simulated driver, and can fail."""

import json

import cache_soak


def test_a_short_soak(capsys):
    assert cache_soak.main(["--simulate", "--steps", "30"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 60
    assert result["misses"] > 50
    assert result["wrong_words"] == 0


def test_a_soak_that_finds_something_fails(monkeypatch, capsys):
    class Blind(cache_soak.SimulatedKernels):
        def use(self, cache, lease, stream, expected, written):
            super().use(cache, lease, stream, None if expected is None else expected + 1, written)

    monkeypatch.setattr(cache_soak, "SimulatedKernels", Blind)
    try:
        status = cache_soak.main(["--simulate", "--steps", "8"])
    except AssertionError:  # by the model itself, at the end
        status = 1
    assert status == 1
