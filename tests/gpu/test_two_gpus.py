"""Two GPUs of one machine: what belongs to one of them leaves the other alone."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.peers]

# Contexts are those of a process: a fresh one shows which of them the package makes.
SECOND_ALONE = """
import json, threading
import numpy as np
import numba_swap as ns
from cuda.bindings import driver
from numba import cuda

driver.cuInit(0)

def active():
    return [int(driver.cuDevicePrimaryCtxGetState(device)[2]) for device in (0, 1)]

told = {"at first": active(), "modes": {}, "right": []}
cuda.select_device(1)
host, back = (cuda.pinned_array((512, 4096), np.uint8) for _ in range(2))
device = cuda.device_array((512, 4096), np.uint8)
told["with memory"] = active()
host[:] = np.arange(512)[:, None] % 251
rows = np.stack([np.arange(0, 512, 2), np.arange(0, 512, 2)[::-1]], axis=1)
# Outside of the thread: Numba itself makes a context for one that slices its arrays.
part = device[10:20, 5:105]
returning = np.stack([rows[:, 1]] * 2, axis=1)
expected = host[rows[:, 0]].copy()

def copies():
    for mode in ("auto", "kernel", "batch", "loop"):
        transfer = ns.swap_blocks(host, device, rows, mode=mode)
        transfer.wait()
        back[:] = 255
        ns.swap_blocks(device, back, returning, mode=mode).wait()
        told["right"].append(bool((back[rows[:, 1]] == expected).all()))
        told["modes"][mode] = [str(transfer.decision.mode), *active()]
    ns.copy(host[10:20, 5:105], part).wait()
    ns.copy(part, back[10:20, 5:105]).wait()
    told["after copies of views"] = active()
    told["right"].append(bool((back[10:20, 5:105] == host[10:20, 5:105]).all()))
    slots, rows_out, rows_in = np.arange(30, 38), np.arange(1, 16, 2), np.arange(101, 116, 2)
    coming = host[rows_in].copy()
    ns.swap_blocks(device, back, np.stack([slots] * 2, axis=1)).wait()
    leaving = back[slots].copy()
    ns.exchange(
        device, host, np.stack([slots, rows_out], axis=1), np.stack([rows_in, slots], axis=1)
    ).wait()
    told["right"].append(bool((host[rows_out] == leaving).all()))
    ns.swap_blocks(device, back, np.stack([slots] * 2, axis=1)).wait()
    told["right"].append(bool((back[slots] == coming).all()))
    told["current"] = int(driver.cuCtxGetCurrent()[1])

thread = threading.Thread(target=copies)
thread.start()
thread.join()
told["at last"] = active()
print(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def _two_gpus():
    from numba import cuda

    if len(cuda.gpus) < 2:
        pytest.skip("this machine has one GPU")


def test_memory_of_the_second_makes_no_context_on_the_first(tmp_path):
    """In a thread that has no context, which would be given that of the first device.

    With nothing in the disk cache, for kernels are compiled for a device, too.
    """
    result = subprocess.run(
        [sys.executable, "-c", SECOND_ALONE],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["at first"] == [0, 0]
    assert told["with memory"] == [0, 1]
    assert told["modes"] == {
        "auto": ["kernel", 0, 1],
        "kernel": ["kernel", 0, 1],
        "batch": ["batch", 0, 1],
        "loop": ["loop", 0, 1],
    }
    assert told["after copies of views"] == [0, 1]
    assert told["at last"] == [0, 1]
    assert told["current"] == 0
    assert told["right"] == [True] * 7
