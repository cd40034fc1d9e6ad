"""What still works when nothing more can be pinned: all but the kernel, which says so."""

import logging

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device import resources
from numba_swap.driver.simulated import Fault

ROWS = np.array([[0, 6], [2, 3], [5, 1]])
NONE = "no pinned host memory is left for the 48 bytes of its table of addresses"


@pytest.fixture(autouse=True)
def _fresh_cache():
    ns.plan_cache.clear()


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


def pools(gpu, host="pinned"):
    pool = gpu.pinned_array((8, 64), np.uint8) if host == "pinned" else np.empty((8, 64), np.uint8)
    device = gpu.device_array((8, 64), np.uint8)
    pool[:] = 1 + np.arange(8)[:, None]
    device.copy_to_device(0)
    return pool, device


def exhaust(gpu):
    gpu.library.memory.pinned_limit = 0


def verbs(pool, device):
    src = pool.ctypes.data + 64 * ROWS[:, 0]
    dst = device.__cuda_array_interface__["data"][0] + 64 * ROWS[:, 1]
    return {
        "swap_blocks": lambda **how: ns.swap_blocks(pool, device, ROWS, **how),
        "swap_blocks_batch": lambda **how: ns.swap_blocks_batch(src, dst, [64] * 3, **how),
        "plan_blocks": lambda **how: ns.plan_blocks(pool, device, ROWS).run(**how),
        "exchange": lambda **how: ns.exchange(device, pool, [[2, 7]], ROWS, **how),
        "plan_exchange": lambda **how: ns.plan_exchange(device, pool, [[2, 7]], ROWS).run(**how),
    }


VERBS = ["swap_blocks", "swap_blocks_batch", "plan_blocks", "exchange", "plan_exchange"]


@pytest.mark.parametrize("host", ["pinned", "pageable"])
@pytest.mark.parametrize("mode", ["auto", "batch", "loop"])
@pytest.mark.parametrize("verb", VERBS)
def test_modes_that_need_none_go_on(gpu, verb, mode, host):
    pool, device = pools(gpu, host)
    exhaust(gpu)
    for _ in range(3):
        device.copy_to_device(0)
        transfer = verbs(pool, device)[verb](mode=mode)
        transfer.wait()
        assert device.copy_to_host()[[6, 3, 1], 7].tolist() == [1, 3, 6]
        assert ns.Mode.KERNEL not in transfer.decision.modes


@pytest.mark.parametrize("verb", VERBS)
def test_the_kernel_is_refused_with_the_reason_before_anything_moves(gpu, verb):
    pool, device = pools(gpu)
    exhaust(gpu)
    words = NONE.replace("48", r"\d+") if "exchange" in verb else NONE
    with pytest.raises(ns.ModeUnavailableError, match=words):
        verbs(pool, device)[verb](mode="kernel")
    gpu.synchronize()
    assert not device._memory.any()


def test_where_it_would_have_been_chosen_the_reason_says_so(gpu):
    pool, device = pools(gpu)
    assert ns.swap_blocks(pool, device, ROWS).decision.mode is ns.Mode.KERNEL
    ns.plan_cache.clear()
    plan = ns.plan_blocks(pool, device, ROWS)
    exhaust(gpu)
    kept = [ns.plan_blocks(pool, device, ROWS) for _ in range(3)]  # all that there was to spare
    decision = ns.plan_blocks(pool, device, ROWS).explain()
    assert f"but no kernel: {NONE}; so " in decision.reason
    assert NONE in decision.table()
    assert plan.run().decision.mode is ns.Mode.KERNEL  # it has its table
    assert kept


def test_rows_of_many_lengths(gpu):
    pool, device = pools(gpu)
    exhaust(gpu)
    src, dst = pool.ctypes.data, device.__cuda_array_interface__["data"][0]
    with pytest.raises(ns.ModeUnavailableError, match="left for the 48 bytes of its table"):
        ns.swap_blocks_batch([src, src + 100], [dst, dst + 100], [8, 9], mode="kernel")
    ns.swap_blocks_batch([src, src + 100], [dst, dst + 100], [8, 9]).wait()


def test_it_is_told_once_and_the_driver_is_not_asked_every_time(gpu, caplog):
    pool, device = pools(gpu)
    exhaust(gpu)
    before = gpu.library.calls["cuMemHostAlloc"]
    with caplog.at_level(logging.WARNING, logger="numba_swap"):
        for _ in range(5):
            ns.swap_blocks(pool, device, ROWS).wait()
    assert [record.message for record in caplog.records] == [
        "no pinned memory is left for the kernel's tables: [2] Call to cuMemHostAlloc results in "
        "CUDA_ERROR_OUT_OF_MEMORY. 4096 bytes of pinned host memory were asked for."
    ]
    assert gpu.library.calls["cuMemHostAlloc"] == before + 1


def test_the_kernel_comes_back_when_there_is_memory_again(gpu, monkeypatch):
    pool, device = pools(gpu)
    exhaust(gpu)
    assert ns.swap_blocks(pool, device, ROWS).decision.mode is not ns.Mode.KERNEL
    gpu.library.memory.pinned_limit = None
    monkeypatch.setattr(resources.time, "monotonic", lambda now=resources.time.monotonic: now() + 2)
    assert ns.swap_blocks(pool, device, ROWS).decision.mode is ns.Mode.KERNEL


def test_smaller_tables_may_still_find_some(gpu):
    pool, device = gpu.pinned_array((4096, 16), np.uint8), gpu.device_array((4096, 16), np.uint8)
    many = np.stack([np.arange(0, 4096, 2)] * 2, axis=1)
    gpu.library.memory.pinned_limit = pool.nbytes + 4096
    assert ns.swap_blocks(pool, device, many).decision.mode is not ns.Mode.KERNEL
    assert ns.swap_blocks(pool, device, ROWS, mode="kernel").decision.mode is ns.Mode.KERNEL
    with pytest.raises(ns.ModeUnavailableError, match="left for the 32768 bytes"):
        ns.swap_blocks(pool, device, many, mode="kernel")


def test_larger_buffers_serve_when_they_are_free(gpu):
    pool, device = gpu.pinned_array((4096, 16), np.uint8), gpu.device_array((4096, 16), np.uint8)
    many = np.stack([np.arange(0, 4096, 2)] * 2, axis=1)
    large = ns.plan_blocks(pool, device, many)
    exhaust(gpu)
    with pytest.raises(ns.ModeUnavailableError, match="no pinned host memory is left"):
        ns.swap_blocks(pool, device, ROWS, mode="kernel")
    del large
    for rows in (ROWS, many, ROWS):
        ns.swap_blocks(pool, device, rows, mode="kernel").wait()
    assert (device.copy_to_host()[many[:, 1]] == pool[many[:, 0]]).all()


@pytest.mark.parametrize("code", [1, 201, 999])
def test_any_other_failure_is_an_error(gpu, code):
    pool, device = pools(gpu)
    gpu.library.faults.add(Fault("cuMemHostAlloc", code))
    with pytest.raises(ns.DriverCallError, match="4096 bytes of pinned host memory") as caught:
        ns.swap_blocks(pool, device, ROWS, mode="loop")
    assert (caught.value.function, caught.value.code) == ("cuMemHostAlloc", code)
    gpu.synchronize()
    assert not device._memory.any()


def test_a_calibration_does_with_less(gpu, caplog):
    gpu.library.memory.pinned_limit = 512 << 10  # just enough for the arrays alone
    with caplog.at_level(logging.WARNING, logger="numba_swap"):
        found = ns.calibrate(store=False)
    assert "no memory for swaps of more than 131072 bytes: not measured" in caplog.text
    assert max(cell.load.nbytes for cell in found.cells) == 131072
    # With the kernel, whose tables come first.
    modes = {cell.mode for cell in found.cells if cell.load.route == "h2d"}
    assert modes == set(ns.Mode) - {ns.Mode.STAGED}


def test_a_calibration_without_any_memory_says_which(gpu):
    gpu.library.memory.pinned_limit = 1 << 16
    words = r"^there is too little memory to measure with: .* 262144 bytes of pinned memory"
    with pytest.raises(ns.CalibrationError, match=words):
        ns.calibrate(store=False)
