"""What the README says of the choice of modes is what the code does."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.dispatch.calibration import reference_costs
from numba_swap.dispatch.workload import route_key, uniform_workload

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KIB, MIB = 1 << 10, 1 << 20


SIZES = {"512 B": 512, "8 KiB": 8 * KIB, "64 KiB": 64 * KIB, "256 KiB": 256 * KIB, "1 MiB": MIB}
COUNTS = (1, 16, 256, 4096)


def table_of_modes():
    """The README's table, from the costs shipped with the package."""
    counts = " | ".join(f"{count} copies" if count > 1 else "1 copy" for count in COUNTS)
    yield f"| copies of | {counts} |"
    yield "|---" * (1 + len(COUNTS)) + "|"
    for direction in (ns.Direction.H2D, ns.Direction.D2H, ns.Direction.D2D):
        for words, size in SIZES.items():
            cells = []
            for count in COUNTS:
                ranked = reference_costs().predict(
                    uniform_workload(route_key(direction), count, size)
                )
                cells.append(str(min(ranked)[1]))
            yield f"| {words}, {direction} | {' | '.join(cells)} |"


def test_table_of_modes():
    assert "\n".join(table_of_modes()) in README


def test_the_first_mode_of_the_examples(capsys):
    assert "# kernel for 3 copies" in README
    assert "# loop for 3 copies, ... no kernel: driver 11.8" in README
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4096, 2048)), gpu.device_array((512, 2048))
        plan = ns.plan_blocks(host, device, [[17, 0], [3000, 1], [5, 2]])
        assert str(plan.explain()).startswith("kernel for 3 copies")
        with ns.override(driver_version=(11, 8)):
            text = str(plan.explain())
    assert text.startswith("loop for 3 copies")
    assert "no kernel: driver 11.8" in text


def test_examples_without_a_gpu_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    simulated = [block for block in blocks if "simulate" in block]
    assert len(simulated) == 2
    for code in simulated:
        exec(code, {"ns": ns, "np": np, "mapping": [[17, 0], [3000, 1], [5, 2]]})
    assert "device to another device (0 to 1, NVLink)" in capsys.readouterr().out


def test_the_example_of_boxes_runs():
    section = README[README.index("## Boxes") :]
    code = section[section.index("```python") + len("```python") :]
    code = code[: code.index("```")]
    with ns.simulate() as gpu, ns.override(mode="loop"):
        cuda, stream = gpu, gpu.stream()
        u = gpu.pinned_array((4, 5, 6))
        left, right, d_face = (gpu.device_array((5, 6)) for _ in range(3))
        tile, host_face = gpu.device_array((64, 64, 64), np.float32), gpu.pinned_array((5, 6))
        names = {"ns": ns, "np": np, "cuda": cuda, "stream": stream, "u": u, "left": left}
        names |= {"right": right, "d_face": d_face, "tile": tile, "host_face": host_face}
        exec(code, names)
        stream.synchronize()
        field, pool = names["field"], names["pool"].copy_to_host()
        # The first corner lies beyond the field along the first axis, where it wraps round.
        assert (pool[0, 0] == field[-1, 63:129, 127:193]).all()
        assert (pool[3, 1] == field[192, 63:129, 127:193]).all()
        assert (tile.copy_to_host() == field[10:74, 20:84, 30:94]).all()


@pytest.mark.parametrize("path", re.findall(r"\]\((notebooks/[^)]+)\)", README))
def test_pictures_are_there(path):
    assert (Path(__file__).parents[2] / path).exists()


def floors():
    """The README's column of floors, from the contracts that hold the imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    inside = {
        contract["containers"][0]: contract["layers"]
        for contract in contracts
        if contract["type"] == "layers"
    }
    inside |= {
        modules[0].rpartition(".")[0]: [" | ".join(name.rpartition(".")[2] for name in modules)]
        for modules in (
            contract["modules"] for contract in contracts if contract["type"] == "independence"
        )
    }
    for floor in inside["numba_swap"]:
        names = floor.replace(" | ", ", ")
        rooms = "; ".join(inside.get(f"numba_swap.{floor}", ())).replace(" | ", ", ")
        yield f"    {names:<10} {rooms}".rstrip()


def test_the_tree_is_that_of_the_contracts():
    column = re.search(r"\n((?:    [^\n]*\n)+)\n- `tools` is what a person runs", README)
    assert column[1].splitlines() == list(floors())
    shown = set(re.findall(r"\w+", column[1]))
    for path in (ROOT / "numba_swap").iterdir():  # nothing is left out
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert path.stem in shown | {"__init__"}
