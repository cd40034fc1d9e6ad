"""The examples run, tiny, on whatever is here, and give what NumPy gives."""

import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[3] / "notebooks" / "examples"


def test_heat():
    before, after, warmest = runpy.run_path(str(EXAMPLES / "heat.py"))["main"](12, 7)
    u = np.zeros((12, 12, 12))
    u[6, 6, 6] = 1000
    for _ in range(7):
        around = sum(np.roll(u, shift, axis) for shift in (1, -1) for axis in range(3))
        u = u + 0.1 * (around - 6 * u)
    assert before == 1000
    assert after == pytest.approx(1000)
    assert warmest == pytest.approx(u.max())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert 30 <= len(lines) <= 65
