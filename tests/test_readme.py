"""What the README says of the choice of modes is what the code does."""

import re
from pathlib import Path

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.dispatch import preference

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
KIB, MIB = 1 << 10, 1 << 20


def table_row(beginning):
    """The three modes of a row of the table, by how the row begins."""
    line = next(line for line in README.splitlines() if line.startswith(f"| {beginning}"))
    return [cell.strip() for cell in line.split("|")[2:5]]


def test_table_of_modes():
    h2d, d2h, d2d = ns.Direction.H2D, ns.Direction.D2H, ns.Direction.D2D
    rows = {
        "one or two blocks": [(h2d, 1, 4 * KIB), (d2h, 2, 64 * MIB), (d2d, 2, 8 * KIB)],
        "host to device, 64 KiB": [(h2d, 512, 32 * MIB), (h2d, 16, 32 * MIB)],
        "device to host, 256 KiB": [(d2h, 128, 32 * MIB), (d2h, 16, 32 * MIB)],
        "all others": [
            (h2d, 513, 32 * MIB),
            (h2d, 512, 32 * MIB - 1),
            (d2h, 129, 32 * MIB),
            (d2d, 128, 1024 * MIB),
            (h2d, 3, 3 * 512),
        ],
    }
    for beginning, cases in rows.items():
        for case in cases:
            modes, _ = preference(*case)
            assert [str(mode) for mode in modes] == table_row(beginning), case


def test_the_first_mode_of_the_examples(capsys):
    assert "# kernel for 3 copies" in README
    assert "# loop for 3 copies, ... no batch: driver 11.8" in README
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4096, 2048)), gpu.device_array((512, 2048))
        plan = ns.plan_blocks(host, device, [[17, 0], [3000, 1], [5, 2]])
        assert str(plan.explain()).startswith("kernel for 3 copies")
        with ns.override(driver_version=(11, 8)):
            text = str(plan.explain())
    assert text.startswith("loop for 3 copies")
    assert "no batch: driver 11.8" in text


def test_example_without_a_gpu_runs():
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "simulate" in block
    )
    exec(code, {"ns": ns, "np": np, "mapping": [[17, 0], [3000, 1], [5, 2]]})


@pytest.mark.parametrize("path", re.findall(r"\]\((notebooks/[^)]+)\)", README))
def test_pictures_are_there(path):
    assert (Path(__file__).parent.parent / path).exists()
