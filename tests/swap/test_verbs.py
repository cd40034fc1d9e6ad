"""What the verbs of copies ask, and of which GPU."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver.calls import Driver
from numba_swap.driver.current import enter_driver, leave_driver
from numba_swap.driver.simulated import SimulatedLibrary

GOOD = np.array([[0, 8], [2, 4], [40, 0]])


@pytest.fixture
def two():
    """Two simulated GPUs, and a thread that has no context."""
    driver = Driver(SimulatedLibrary(devices=2))
    enter_driver(driver)
    try:
        yield driver
    finally:
        leave_driver(driver)


@pytest.mark.parametrize("current", [None, 0, 1])
def test_the_gpu_in_use_is_warmed_up(two, current):
    devices = devices_of(two)
    two.initialize()
    if current is None:
        ns.warm_up()
    else:
        with two.activate(devices[current].primary_context):
            ns.warm_up()
    loaded = [bool(devices[device].kernels) for device in (0, 1)]
    assert loaded == [current != 1, current == 1]


def test_memory_of_no_gpu_is_judged_by_the_figures_of_none():
    with ns.simulate() as gpu:
        plan = ns.plan_blocks(np.ones((64, 96)), np.ones((64, 96)), GOOD)
        assert len(plan) == 3
        assert None not in devices_of(gpu.driver)._devices


@pytest.fixture
def pools():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        ns.plan_cache.clear()
        yield gpu, gpu.pinned_array((640, 96), np.uint8), gpu.device_array((640, 96), np.uint8)


def prepared(src, dst, rows, stream, **how):
    """What is prepared after two copies of these rows."""
    for _ in range(2):
        ns.swap_blocks(src, dst, rows, stream=stream, **how).wait()
    (known,) = ns.plan_cache._pairs.values()
    return known.prepared(stream.handle)


def test_copies_within_the_device_are_not_prepared(pools):
    gpu, _, dst = pools
    src = gpu.device_array((640, 96), np.uint8)
    assert prepared(src, dst, GOOD, gpu.stream(), mode="kernel") is None


def test_the_table_of_prepared_rows_has_room_for_them(pools):
    gpu, src, dst = pools
    known = prepared(src, dst, GOOD, gpu.stream())
    for rows in (1, 255, 256, 257, 300):
        ready = known._make_ready(rows)
        assert ready is None or ready.buffers.size >= 16 * rows
    assert known._make_ready(257).buffers.size == 8192


def test_a_mode_that_is_forced_is_prepared_for_any_number_of_rows(pools, monkeypatch):
    gpu, src, dst = pools
    stream = gpu.stream()
    known = prepared(src, dst, GOOD, stream, mode="kernel")
    assert ns.plan_blocks(src, dst, GOOD[:1]).explain(stream).mode == "loop"
    (selection,) = known._make_ready(1).selections
    expected = ns.plan_blocks(src, dst, GOOD[:1]).run(stream, "kernel").decision
    assert selection.decision.reason == expected.reason == "forced by the mode argument"
    assert (selection.decision.copies, selection.decision.nbytes) == (1, 96)
    # Nor is anything asked of the costs.
    assert known._make_ready(300).selections[0].decision.mode == "kernel"


def test_so_many_rows_that_they_would_be_grouped_are_not_prepared(pools, tune):
    gpu, src, dst = pools
    tune(group_rows=8)
    known = prepared(src, dst, GOOD, gpu.stream(), mode="kernel")
    assert known._make_ready(7) is not None
    assert known._make_ready(8) is None
    ns.plan_cache.clear()
    many = np.array([[2 * i, 2 * i] for i in range(9)])
    assert prepared(src, dst, many, gpu.stream(), mode="kernel") is None


# -- who says in which mode -----------------------------------------------------------------------


@pytest.mark.parametrize("forced", ["loop", "kernel"])
@pytest.mark.parametrize("verb", ["arrays", "pointers", "plan", "exchange", "staged exchange"])
def test_auto_in_a_call_lifts_what_override_forces(pools, verb, forced):
    """Whether the call is the first one of its kind, or one that is done again the short way."""
    _, host, device = pools
    rows = np.stack([np.arange(64)] * 2, axis=1)
    where = host.ctypes.data, device.__cuda_array_interface__["data"][0]
    columns = [[address + 192 * i for i in range(64)] for address in where]
    plan = ns.plan_blocks(host, device, 2 * rows)
    calls = {
        "arrays": lambda **how: ns.swap_blocks(host, device, 2 * rows, **how),
        "pointers": lambda **how: ns.swap_blocks_batch(*columns, [96] * 64, **how),
        "plan": plan.run,
        "exchange": lambda **how: ns.exchange(device, host, rows, rows + 64, **how),
        "staged exchange": lambda **how: ns.exchange(device, host, rows, rows[::-1], **how),
    }
    call, by_override = calls[verb], "forced by override"
    free = call(mode="auto").decision
    assert "forced" not in free.reason
    with ns.override(mode=forced):
        for mode in (None, "auto", None, "auto"):
            transfer = call() if mode is None else call(mode=mode)
            transfer.wait()
            decision = transfer.decision
            assert decision.forced == (mode is None)
            assert (by_override in decision.reason) == (mode is None)
            assert decision.modes == ((forced,) if mode is None else free.modes)
