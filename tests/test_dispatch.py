"""Which mode is chosen, and the sentence that says why."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.dispatch import choose
from numba_swap.settings import Mode


def plan_between(gpu, src, dst, nbytes=64, rows=16):
    """Copies of blocks that are no neighbours."""
    make = {
        "pinned": gpu.pinned_array,
        "device": gpu.device_array,
        "managed": gpu.managed_array,
        "pageable": np.zeros,
    }
    arrays = [make[kind]((2 * rows, nbytes), np.uint8) for kind in (src, dst)]
    return ns.plan_blocks(*arrays, [[2 * i, 2 * (rows - 1 - i)] for i in range(rows)])


LONG = 1 << 20
MANY = 64  # of these are worth copy engines, by the costs shipped with the package


@pytest.mark.parametrize(
    ("version", "kinds", "nbytes", "rows", "mode"),
    [
        ("11.4", ("pinned", "device"), 64, 16, "loop"),
        ("11.4", ("pinned", "device"), LONG, MANY, "loop"),
        ("12.0", ("pinned", "device"), 64, 16, "kernel"),
        ("12.4", ("pinned", "device"), LONG, MANY, "kernel"),
        ("12.4", ("managed", "device"), 64, 16, "kernel"),
        ("12.4", ("pageable", "device"), 64, 16, "loop"),
        ("12.7", ("device", "device"), 64, 16, "kernel"),
        ("12.8", ("pinned", "device"), LONG, MANY, "batch"),
        ("12.8", ("pinned", "device"), 64, 16, "kernel"),
        ("13.0", ("device", "pinned"), 64, 16, "kernel"),
        ("13.0", ("device", "pinned"), 1 << 13, 128, "kernel"),
        ("13.0", ("device", "pageable"), 1 << 13, 16, "loop"),
        ("13.0", ("device", "device"), LONG, MANY, "kernel"),
    ],
)
def test_mode_follows_driver_memory_and_sizes(version, kinds, nbytes, rows, mode):
    with ns.simulate(driver_version=version) as gpu:
        decision = plan_between(gpu, *kinds, nbytes, rows).explain()
    assert decision.mode == mode
    assert str(decision.driver_version) == version
    assert decision.simulated


def test_turning_the_driver_down_walks_through_all_modes():
    with ns.simulate(driver_version=(13, 0)) as gpu:
        plan = plan_between(gpu, "pinned", "device", LONG, MANY)
        modes = []
        for version in ((14, 0), (13, 0), (12, 8), (12, 7), (12, 0), (11, 8)):
            with ns.override(driver_version=version):
                decision = plan.explain()
                transfer = plan.run()
                transfer.wait()
            modes.append(str(decision.mode))
            assert transfer.decision == decision._replace(estimates=())
            assert ("pretended" in decision.reason) == (version < (12, 8))
            assert decision.driver_version == min(version, (13, 0))
    assert modes == ["batch", "batch", "batch", "kernel", "kernel", "loop"]


def test_reasons_name_what_stood_in_the_way():
    with ns.simulate(driver_version=(12, 4)) as gpu:
        kernel = plan_between(gpu, "pinned", "device", LONG, MANY).explain()
        loop = plan_between(gpu, "pageable", "device").explain()
    assert set(kernel.rejected) == {Mode.BATCH}
    assert "12.4 has no cuMemcpyBatchAsync" in kernel.reason
    obstacles = {estimate.mode: estimate.obstacle for estimate in loop.estimates}
    assert "the GPU cannot reach pageable memory" in obstacles[Mode.KERNEL]
    assert "12.4 has no cuMemcpyBatchAsync" in obstacles[Mode.BATCH]
    assert obstacles[loop.mode] is None


def test_forced_mode_runs_or_raises_and_is_never_replaced():
    with ns.simulate(driver_version=(12, 4)) as gpu:
        plan = plan_between(gpu, "pinned", "device")
        assert plan.run(mode=ns.Mode.LOOP).decision.mode is Mode.LOOP
        with pytest.raises(ns.ModeUnavailableError, match=r"new in 12.8") as error:
            plan.run(mode="batch")
        assert error.value.mode == "batch"
        assert gpu.driver.library.calls["cuMemcpyBatchAsync"] == 0
        with ns.override(mode="loop"):
            assert plan.run().decision.mode is Mode.LOOP
            assert plan.run(mode="kernel").decision.mode is Mode.KERNEL  # the argument is stronger
        with ns.override(mode="batch"), pytest.raises(ns.ModeUnavailableError):
            plan.run()
        with pytest.raises(ValueError, match=r"'auto' or one of 'batch', 'loop', 'kernel'"):
            plan.run(mode="fastest")


def test_kernel_refuses_pageable_memory():
    with ns.simulate() as gpu:
        plan = plan_between(gpu, "pageable", "device")
        with pytest.raises(ns.ModeUnavailableError, match="pageable"):
            plan.run(mode="kernel")


def test_kernel_that_cannot_be_compiled_is_a_reason(monkeypatch):
    from numba_swap.modes import kernel

    def fail(library):
        raise OSError("no nvrtc here")

    monkeypatch.setattr(kernel, "_register", fail)
    with ns.simulate(driver_version=(12, 4)) as gpu:
        decision = plan_between(gpu, "pinned", "device").explain()
    assert decision.mode is Mode.LOOP
    assert "no nvrtc here" in decision.rejected[Mode.KERNEL]


def test_kernel_refuses_another_devices_memory():
    from numba_swap.memory import Allocation, MemoryKind
    from numba_swap.modes.kernel import _unreachable

    with ns.simulate() as gpu:
        for allocation, word in (
            (Allocation(1, 9, MemoryKind.DEVICE, 1, 0), "device 1"),
            (Allocation(1, 9, MemoryKind.PINNED, 0, 4096), "another address"),
            (Allocation(1, 9, MemoryKind.PINNED, 0, None), "another address"),
        ):
            assert word in _unreachable(gpu.driver, allocation, 0)
        assert _unreachable(gpu.driver, Allocation(1, 9, MemoryKind.DEVICE, 0, 0), 0) is None


def test_captured_stream_never_gets_a_batch():
    with ns.simulate() as gpu:
        plan = plan_between(gpu, "pinned", "device", LONG, MANY)
        stream = gpu.stream()
        library = gpu.driver.library
        library.begin_capture(stream.handle)
        decision = plan.explain(stream=stream)
        transfer = plan.run(stream=stream)
        with pytest.raises(ns.ModeUnavailableError, match="captured"):
            plan.run(stream=stream, mode="batch")
        library.end_capture(stream.handle)
    assert decision.mode is Mode.KERNEL
    assert "captured" in decision.rejected[Mode.BATCH]
    with pytest.raises(ns.CapturedTransferError):
        transfer.done()


def test_choice_asks_no_further_than_needed():
    asked = []
    ranked = [(1.0, Mode.BATCH), (2.0, Mode.KERNEL), (3.0, Mode.LOOP)]

    def why_not(mode):
        asked.append(mode)
        return None if mode is Mode.KERNEL else "no"

    assert choose(None, ranked, why_not) == (Mode.KERNEL, {Mode.BATCH: "no"})
    assert asked == [Mode.BATCH, Mode.KERNEL]
    with pytest.raises(ns.ModeUnavailableError):
        choose(None, ranked, lambda mode: "nothing goes")
    assert choose(Mode.LOOP, ranked, lambda mode: None) == (Mode.LOOP, {})


@pytest.mark.parametrize(("version", "loaded"), [("11.8", 0), ("12.4", 1)])
def test_warm_up_loads_the_kernel_where_there_can_be_one(version, loaded):
    with ns.simulate(driver_version=version) as gpu:
        ns.warm_up()
        assert len(gpu.driver.kernels) == loaded
        with ns.override(driver_version=(11, 4)):
            ns.warm_up()


def test_warm_up_says_what_is_wrong_with_the_compiler(monkeypatch):
    from numba_swap.modes import kernel

    def fail(library):
        raise OSError("no nvrtc here")

    monkeypatch.setattr(kernel, "_register", fail)
    with ns.simulate(), pytest.raises(ns.ModeUnavailableError, match="no nvrtc here"):
        ns.warm_up()
