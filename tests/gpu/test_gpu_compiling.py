"""The real compiler: a kernel that it cannot make, and what it keeps on disk."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

SWAP = """
import json, sys, time
import numpy as np
import numba_swap as ns
from numba import cuda
host, device = cuda.pinned_array((64, 4096), np.uint8), cuda.device_array((64, 4096), np.uint8)
host[:] = np.arange(64)[:, None]
told = []
for shift in range(5):
    rows = np.stack([np.arange(64), (np.arange(64) * 5 + shift) % 64], axis=1)
    start = time.perf_counter()
    transfer = ns.swap_blocks(host, device, rows, mode=sys.argv[1])
    transfer.wait()
    told.append((str(transfer.decision.mode), time.perf_counter() - start))
    assert (device.copy_to_host()[rows[:, 1]] == host[rows[:, 0]]).all()
try:
    ns.warm_up()
    warm = None
except ns.ModeUnavailableError as error:
    warm = str(error)
info = ns.driver_info()
print(json.dumps([told, transfer.decision.reason, warm, info["kernel"]]))
"""


def run(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )
    assert result.returncode in (0, 1), result.stderr
    return result


@pytest.mark.parametrize("capability", ["12.1", "6.1"])
def test_a_kernel_that_cannot_be_loaded_costs_once(tmp_path, capability):
    """Numba is told to compile for another GPU."""
    environment = {"NUMBA_FORCE_CUDA_CC": capability, "NUMBA_CACHE_DIR": str(tmp_path)}
    result = run("-c", SWAP, "auto", **environment)
    told, reason, warm, kernel = json.loads(result.stdout)
    assert all(mode != "kernel" for mode, _ in told)
    assert max(seconds for _, seconds in told[1:]) < 0.1, told
    for words in (reason, warm, kernel["reason"]):
        assert "Numba could not compile or load the kernel" in words
    assert kernel["usable"] is False
    assert result.stderr.count("the kernel mode is not used") == 1
    report = run("-m", "numba_swap", "info", "--try-kernel", **environment).stdout
    assert "Numba could not compile or load the kernel" in report


@pytest.mark.parametrize("damage", ["cut short", "empty", "hole"])
def test_damaged_files_of_compiled_kernels_are_replaced(tmp_path, damage):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
    run("-c", SWAP, "kernel", **environment)
    kernels = [path for path in tmp_path.rglob("*.nb[ic]") if "_source." in path.name]
    assert len(kernels) == 6  # two files each
    for path in kernels:
        data = path.read_bytes()
        half = len(data) // 2
        broken = {"cut short": data[:half], "empty": b""}
        other = bytes(byte ^ 0xFF for byte in data[half : half + 32])
        broken["hole"] = data[:half] + other + data[half + 32 :]
        path.write_bytes(broken[damage])
    for warnings in (1, 0):
        result = run("-c", SWAP, "kernel", **environment)
        told, _, warm, kernel = json.loads(result.stdout)
        assert {mode for mode, _ in told} == {"kernel"}
        assert warm is None
        assert kernel == {"usable": True, "reason": None}
        assert result.stderr.count("Numba's cache on disk") == warnings


def test_no_room_for_compiled_kernels(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n" + SWAP
    result = run("-c", code, "kernel", NUMBA_CACHE_DIR=str(tmp_path))
    assert {mode for mode, _ in json.loads(result.stdout)[0]} == {"kernel"}
    assert "nothing can be written to" in result.stderr
