"""What a user is told where CUDA does not start."""

import re

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.driver.simulated.faults import Fault

MEANINGS = {
    2: "no memory left.*nvidia-smi",
    34: "toolkit's stub.*LD_LIBRARY_PATH",
    46: "compute mode is exclusive.*nvidia-smi -c DEFAULT",
    100: "no GPU that this process may use.*nvidia-smi -L.*--gpus",
    101: "nvidia-smi -L",
    304: "operating system.*/dev/nvidia",
    802: "not ready.*Fabric Manager",
    803: "different releases.*reboot",
    804: "forward-compatibility package.*LD_LIBRARY_PATH",
    805: "MPS daemon cannot be reached",
    999: "nvidia_uvm",
}


@pytest.fixture(autouse=True)
def nothing_visible_is_said(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def refused(code):
    """What is said where `cuInit` answers with a code, at once and in the notes of `info`."""
    with ns.simulate() as gpu:
        gpu.library.faults.add(Fault("cuInit", code, times=None))
        with pytest.raises(ns.DriverUnavailableError) as caught:
            ns.swap_blocks(np.zeros((2, 2)), np.zeros((2, 2)), [[0, 1]])
        return str(caught.value), ns.driver_info()["notes"]


@pytest.mark.parametrize("code", MEANINGS)
def test_every_code_is_told_with_what_to_do(code):
    message, (note,) = refused(code)
    assert f"[{code}] cuInit results in " in message
    for words in (message, note):
        assert re.search(MEANINGS[code], words)
    assert "`numba-swap info`" in message
    assert "numba-swap info" not in note


def test_a_code_that_is_not_known_points_to_info_all_the_same():
    message, notes = refused(718)
    assert "[718] cuInit results in" in message
    assert ". `numba-swap info` tells" in message
    assert notes == []


@pytest.mark.parametrize("code", [100, 101])
@pytest.mark.parametrize("visible", ["-1", "", "7", "GPU-nonsense", "0" * 5000])
def test_gpus_that_the_environment_hides(monkeypatch, code, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    message, (note,) = refused(code)
    for words in (message, note):
        assert f"CUDA_VISIBLE_DEVICES='{visible[:40]}" in words
        assert "unset it" in words
        assert len(words) < 700


def test_other_codes_are_not_put_down_to_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "CUDA_VISIBLE_DEVICES='0'" not in refused(802)[0]


@pytest.mark.parametrize("code", [46, 2])
def test_a_gpu_that_gives_no_context(code):
    """An exclusive one that is taken, or a full one, is found by `cuInit` and refuses later."""
    with ns.simulate() as gpu:
        host, device = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
        gpu.library.faults.add(Fault("cuDevicePrimaryCtxRetain", code, times=None))
        with pytest.raises(ns.DriverCallError, match=f"GPU 0 gives no context: .*{MEANINGS[code]}"):
            ns.swap_blocks(host, device, [[0, 1]])
