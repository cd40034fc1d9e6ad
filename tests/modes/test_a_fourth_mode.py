"""A new mode is a module of its own and a member of `Mode`: nothing else has to be touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Its own file: a copy one by one through the driver, which refuses what is pageable.
TOY = '''
"""One call a copy, through ctypes."""

from numba_swap.device.memory import MemoryKind


def why_not(ends, conditions):
    if ends.strided:
        return "toys are not for boxes"
    if any(a.kind is MemoryKind.PAGEABLE for a in ends.allocations):
        return "toys are not for pageable memory"
    return None


def load(device, ends):
    return None


def submit(copies, launch, work):
    for dst, src, nbytes in zip(copies.dst, copies.src, copies.sizes, strict=True):
        launch.driver.memcpy_async(int(dst), int(src), int(nbytes), launch.stream)
'''
USE = """
import json
import numpy as np
import numba_swap as ns
from numba_swap.tools.bench.ab.spec.arms import parse_arms
from numba_swap.tools.bench.calibrate import calibrate

said = {}
with ns.simulate() as gpu:
    src, dst = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    src[:] = np.arange(8)[:, None]
    plan = ns.plan_blocks(src, dst, [[1, 2], [3, 5]])
    transfer = plan.run(mode="toy")
    transfer.wait()
    said["copied"] = dst.copy_to_host()[[2, 5], 0].tolist()
    said["decision"] = [str(transfer.decision.mode), transfer.decision.reason]
    said["auto"] = str(plan.run().decision.mode)
    said["table"] = [line.split()[0] for line in plan.explain().table().splitlines()[3:7]]
    with ns.override(mode="toy"):
        said["override"] = str(ns.swap_blocks(src, dst, [[0, 1]]).decision.mode)
    try:
        ns.swap_blocks(np.ones((8, 64), np.uint8), dst, [[0, 1]], mode="toy")
    except ns.ModeUnavailableError as error:
        said["refused"] = error.reason
    said["exchange"] = str(ns.exchange(dst, src, [[2, 0]], [[7, 1]], mode="toy").decision.mode)
    found = calibrate(store=False)
    said["calibrated"] = sorted({route for route, modes in found.costs.routes.items()
                                 if ns.Mode.TOY in modes})
    said["predicted"] = found.costs.predict_mode(ns.Mode.TOY, found.cells[0].load) > 0
said["explained"] = [str(e.mode) for e in ns.explain_copy("h2d", 4096, 8).estimates]
said["arm"] = parse_arms(["toy"])[0].name
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a copy of the package says that has one more mode."""
    root = tmp_path_factory.mktemp("fourth")
    package = root / "numba_swap"
    shutil.copytree(
        ROOT / "numba_swap", package, ignore=shutil.ignore_patterns("__pycache__", "*.nb[ic]")
    )
    (package / "modes" / "toy.py").write_text(TOY)
    settings = package / "dispatch" / "settings.py"
    text = settings.read_text()
    assert text.count('    KERNEL = "kernel"\n') == 1
    settings.write_text(
        text.replace('    KERNEL = "kernel"\n', '    KERNEL = "kernel"\n    TOY = "toy"\n')
    )
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", USE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
        cwd=root,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_copies_and_is_told(said):
    assert said["copied"] == [1, 3]
    assert said["decision"] == ["toy", "forced by the mode argument"]
    assert said["override"] == said["exchange"] == "toy"
    assert said["refused"] == "toys are not for pageable memory"


def test_it_is_listed_wherever_modes_are(said):
    assert "toy" in said["table"]
    assert set(said["explained"]) == {"batch", "loop", "kernel", "toy"}
    assert said["arm"] == "toy"


def test_it_is_chosen_by_itself_only_once_it_was_measured(said):
    assert said["auto"] != "toy"
    assert said["calibrated"] == ["d2d", "d2h", "h2d"]  # not pageable
    assert said["predicted"]
