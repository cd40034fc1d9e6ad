"""Which mode is chosen, and the sentence that says why."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.conditions import Capabilities, Conditions
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.ranking import choose
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import Workload


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
                if decision.mode != "kernel":  # in the simulation it would take seconds
                    transfer = plan.run()
                    transfer.wait()
                    assert transfer.decision == decision._replace(estimates=())
            modes.append(str(decision.mode))
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
    from numba_swap.modes.kernel.compilers import simulator

    def fail(library, name):
        raise OSError("no nvrtc here")

    monkeypatch.setattr(simulator, "register", fail)
    with ns.simulate(driver_version=(12, 4)) as gpu:
        decision = plan_between(gpu, "pinned", "device").explain()
    assert decision.mode is Mode.LOOP
    assert "no nvrtc here" in decision.rejected[Mode.KERNEL]


def test_kernel_refuses_another_devices_memory():
    from numba_swap.copies.ends import Ends
    from numba_swap.device.memory import Allocation, MemoryKind
    from numba_swap.modes.kernel.launch import why_not

    here = Allocation(1, 9, MemoryKind.DEVICE, 0, 0)
    for allocation, word in (
        (Allocation(1, 9, MemoryKind.DEVICE, 1, 0), "device 1"),
        (Allocation(1, 9, MemoryKind.PINNED, 0, 4096), "another address"),
        (Allocation(1, 9, MemoryKind.PINNED, 0, None), "another address"),
    ):
        assert word in why_not(Ends.of((here, allocation), (here,)), conditions())
        assert word in why_not(Ends.of((here,), (here, allocation)), conditions())
    assert why_not(Ends.of((here,), (here,)), conditions()) is None


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


@pytest.mark.parametrize(("version", "loaded"), [("11.8", 0), ("12.4", 3)])
def test_warm_up_loads_the_kernels_where_there_can_be_any(version, loaded):
    with ns.simulate(driver_version=version) as gpu:
        ns.warm_up()
        assert len(devices_of(gpu.driver)[0].kernels) == loaded
        with ns.override(driver_version=(11, 4)):
            ns.warm_up()


def test_warm_up_says_what_is_wrong_with_the_compiler(monkeypatch):
    from numba_swap.modes.kernel.compilers import simulator

    def fail(library, name):
        raise OSError("no nvrtc here")

    monkeypatch.setattr(simulator, "register", fail)
    with ns.simulate(), pytest.raises(ns.ModeUnavailableError, match="no nvrtc here"):
        ns.warm_up()


# -- pure functions of `dispatch`, with costs that are easy to reckon -----------------------------

INF = float("inf")


def cost(start=0.0, copy=(0.0,) * 4, megabyte=(0.0,) * 4, fork=0.0, full_blocks=0.0):
    return ModeCost(start, fork, copy, megabyte, full_blocks)


def costs(loop=None, batch=None, kernel=None):
    modes = {Mode.LOOP: loop, Mode.BATCH: batch, Mode.KERNEL: kernel}
    known = {mode: cost for mode, cost in modes.items() if cost is not None}
    return CostModel({"h2d": known}, "a made machine")


def load(*terms):
    return Workload("h2d", terms, sum(n for _, n, _ in terms), sum(n for _, _, n in terms))


def capabilities(**changes):
    return Capabilities(
        **{"version": ns.DriverVersion(13, 0), "pretended": False, "lookups": {}} | changes
    )


def conditions(**changes):
    return Conditions(capabilities(), **changes)


def test_conditions_say_what_they_are():
    assert capabilities().driver_words == "driver 13.0"
    assert capabilities(pretended=True).driver_words == "driver 13.0 (pretended)"
    assert conditions().may_use_private_streams
    assert conditions(policy=ns.Policy.OVERLAP).may_use_private_streams
    assert not conditions(policy=ns.Policy.LATENCY).may_use_private_streams
    assert not conditions(capturing=True).may_use_private_streams
    assert (conditions().beside, conditions().duplex) == (False, False)
    assert not conditions().shares_engines


@pytest.mark.parametrize(
    ("policy", "direction", "asked", "blocks"),
    [
        ("throughput", "host to device", None, None),
        ("latency", "device to device", 9, 9),
        ("overlap", "host to device", None, 4),
        ("overlap", "device to host", 9, 4),
        ("overlap", "device to host", 3, 3),
        ("overlap", "device to device", None, 16),
        ("overlap", "device to device", 9, 9),
    ],
)
def test_thread_blocks_that_a_policy_allows(policy, direction, asked, blocks):
    from numba_swap.dispatch.ranking import block_limit

    assert block_limit(DEFAULT_TUNING, ns.Policy(policy), ns.Direction(direction), asked) == blocks


def test_rank_is_by_predicted_time():
    from numba_swap.dispatch.ranking import rank

    flat = costs(cost(3.0), cost(2.0, fork=2.0), cost(1.0, megabyte=(1e6,) * 4, full_blocks=8.0))
    little = load((0, 10, 1))
    assert rank(flat, little, conditions()) == (
        (2.0, Mode.BATCH),
        (2.0, Mode.KERNEL),
        (3.0, Mode.LOOP),
    )
    assert rank(flat, little, conditions(max_blocks=2))[2] == (5.0, Mode.KERNEL)
    much = load((3, 64, 1 << 20))  # spread over private streams, where those may be used
    assert (4.0, Mode.BATCH) in rank(flat, much, conditions())
    assert (2.0, Mode.BATCH) in rank(flat, much, conditions(policy=ns.Policy.LATENCY))
    assert (2.0, Mode.BATCH) in rank(flat, much, conditions(capturing=True))


def test_rank_keeps_the_mode_that_uses_least_first_where_times_are_equal():
    from numba_swap.dispatch.ranking import rank

    order = [mode for _, mode in rank(costs(cost(2), cost(2), cost(2)), load(), conditions())]
    assert order == [Mode.LOOP, Mode.BATCH, Mode.KERNEL]


def test_rank_where_both_directions_of_a_link_are_busy():
    from numba_swap.dispatch.ranking import rank

    ranked = rank(
        costs(cost(1.0), cost(100.0), cost(10.0)), load((0, 10, 1)), conditions(duplex=True)
    )
    assert ranked == ((12.0, Mode.LOOP), (14.0, Mode.KERNEL), (100.0, Mode.BATCH))


@pytest.mark.parametrize(
    ("kernel_us", "first"), [(7.9, Mode.KERNEL), (8.1, Mode.BATCH), (9.9, Mode.BATCH)]
)
def test_overlap_is_patient_with_copy_engines(kernel_us, first):
    from numba_swap.dispatch.ranking import rank

    prices = costs(cost(20.0), cost(10.0), cost(kernel_us))
    ranked = rank(prices, load((0, 1, 1)), conditions(policy=ns.Policy.OVERLAP))
    assert ranked[0][1] is first
    assert (kernel_us, Mode.KERNEL) in ranked  # what is said is the predicted time itself
    assert rank(prices, load((0, 1, 1)), conditions())[0][1] is Mode.KERNEL


def test_split_gives_each_length_to_what_is_better_at_it():
    from numba_swap.dispatch.ranking import split_by_size

    # By hand, in us a copy: the kernel is good below class 2, the batch from there on.
    prices = costs(
        cost(5000.0), cost(copy=(10.0, 10.0, 1.0, 1.0)), cost(copy=(1.0, 1.0, 10.0, 10.0))
    )
    mixed = load((0, 100, 1), (1, 100, 1), (2, 100, 1), (3, 100, 1))
    assert split_by_size(prices, mixed, conditions()) == (2, 400.0)
    assert split_by_size(prices, load((0, 100, 1), (3, 100, 1)), conditions()) == (1, 200.0)
    assert split_by_size(prices, load((2, 100, 1)), conditions()) is None
    # One mode that is good at everything is not worth beating by less than a hundredth.
    for loop_us, split in ((405.0, (2, 400.0)), (403.0, None)):
        assert (
            split_by_size(
                prices._replace(routes={"h2d": {**prices.routes["h2d"], Mode.LOOP: cost(loop_us)}}),
                mixed,
                conditions(),
            )
            == split
        )
    # The best of all begins in the highest class.
    late = costs(cost(5000.0), cost(copy=(10.0, 10.0, 10.0, 1.0)), cost(copy=(1.0, 1.0, 1.0, 10.0)))
    assert split_by_size(late, mixed, conditions()) == (3, 400.0)


def test_split_knows_of_a_limit_of_thread_blocks():
    from numba_swap.dispatch.ranking import split_by_size

    kernel = cost(megabyte=(1e6,) * 4, full_blocks=8.0)
    prices = costs(cost(INF), cost(copy=(10.0, 10.0, 10.0, 1.0)), kernel)
    mixed = load((0, 10, 10), (3, 10, 100))
    assert split_by_size(prices, mixed, conditions()) == (1, 20.0)
    assert split_by_size(prices, mixed, conditions(max_blocks=4)) == (1, 30.0)
    # Two blocks make the kernel slow enough for the batch alone to win.
    assert split_by_size(prices, mixed, conditions(max_blocks=1)) == (1, 90.0)
    assert (
        split_by_size(costs(cost(INF), cost(80.0), kernel), mixed, conditions(max_blocks=1)) is None
    )
    assert (
        split_by_size(costs(cost(115.0), cost(90.0), kernel), mixed, conditions(max_blocks=8))
        is None
    )
    # What the kernel would do without the limit is no reason against a split.
    quick = kernel._replace(megabyte_us=(1e6, 1e6, 1e6, 1e5))
    prices = costs(cost(INF), cost(copy=(10.0, 10.0, 10.0, 1.0)), quick)
    assert split_by_size(prices, mixed, conditions(max_blocks=1)) == (1, 90.0)
    assert split_by_size(prices, mixed, conditions()) is None


def test_split_has_to_save_more_than_a_hundredth():
    from numba_swap.dispatch.ranking import split_by_size

    rest = cost(copy=(1000.0,) * 3 + (50.0,)), cost(copy=(49.0,) + (1000.0,) * 3)
    pair = load((0, 1, 1), (3, 1, 1))
    assert split_by_size(costs(cost(100.0), *rest), pair, conditions()) is None
    assert split_by_size(costs(cost(100.1), *rest), pair, conditions()) == (1, 99.0)


def test_a_choice_that_fails_tells_why():
    ranked = [(1.0, Mode.BATCH), (2.0, Mode.KERNEL)]
    assert choose(None, ranked, lambda mode: None) == (Mode.BATCH, {})
    with pytest.raises(ns.ModeUnavailableError, match="batch: no; kernel: no") as error:
        choose(None, ranked, lambda mode: "no")
    assert error.value.mode == "auto"
    with pytest.raises(ns.ModeUnavailableError, match="no") as error:
        choose(Mode.LOOP, ranked, lambda mode: "no")
    assert error.value.mode == "loop"
