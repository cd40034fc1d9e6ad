"""What a plan keeps from run to run: its choice, its last launch, and its arrays."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from machines import make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.swap.plans import plan as plans

ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def counts(monkeypatch):
    """How often a run took the long way, and how often a plan chose how to run."""
    counts = {"long": 0, "chosen": 0}
    execute, choose = plans.execute, plans.choose

    def count_long(*arguments):
        counts["long"] += 1
        return execute(*arguments)

    def count_choices(*arguments):
        counts["chosen"] += 1
        return choose(*arguments)

    monkeypatch.setattr(plans, "execute", count_long)
    monkeypatch.setattr(plans, "choose", count_choices)
    return counts


def pools(gpu, rng, *kinds):
    return [make_array(gpu, kind, random_bytes(rng, (12, 96))) for kind in kinds]


def check(gpu, src, dst):
    assert np.array_equal(read_array(gpu, dst)[ROWS[:, 1]], read_array(gpu, src)[ROWS[:, 0]])


@pytest.mark.parametrize(
    ("kinds", "own_stream", "short"),
    [
        (("pinned", "device"), True, True),
        (("pinned", "device"), False, True),
        (("pinned", "pinned"), True, True),
        # Of whatever context is current, which no memory of a GPU says: looked at every time.
        (("pinned", "pinned"), False, False),
    ],
)
def test_a_kernel_is_launched_again_without_looking_at_anything(
    gpu, rng, counts, kinds, own_stream, short
):
    src, dst = pools(gpu, rng, *kinds)
    plan, stream = ns.plan_blocks(src, dst, ROWS), gpu.stream() if own_stream else None
    for runs in (1, 2, 3):
        plan.run(stream, "kernel").wait()
        check(gpu, src, dst)
        assert counts["long"] == (1 if short else runs)
        if isinstance(src, np.ndarray):
            src += 1
    plan.run(stream, "loop").wait()
    assert counts["long"] == (2 if short else 4)
    # What ran last as a kernel is still known.
    plan.run(stream, "kernel").wait()
    assert counts["long"] == (2 if short else 5)


def test_what_is_pending_on_an_array_comes_before_every_run(gpu, rng, counts):
    src, dst = pools(gpu, rng, "pinned", "device")
    own, busy = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    interface = {**dst.__cuda_array_interface__, "stream": busy.handle}
    plan = ns.plan_blocks(src, SimpleNamespace(__cuda_array_interface__=interface), ROWS)
    for runs in (1, 2, 3):
        content = random_bytes(rng, (12, 96))
        dst.copy_to_device(make_array(gpu, "pinned", content), stream=busy)
        plan.run(own, "kernel").wait()
        content[ROWS[:, 1]] = src[ROWS[:, 0]]
        assert np.array_equal(dst.copy_to_host(), content)
        assert counts["long"] == runs


def test_a_choice_is_made_once(gpu, rng, counts):
    src, dst = pools(gpu, rng, "pinned", "device")
    plan, stream = ns.plan_blocks(src, dst, ROWS), gpu.stream()
    for _ in range(3):
        plan.run(stream, "loop").wait()
    assert counts == {"long": 3, "chosen": 1}
    plan.forget()
    assert not plan.copies.memo
    plan.run(stream, "loop").wait()
    assert counts["chosen"] == 2


def test_an_exchange_that_runs_again_keeps_its_arrays(gpu, rng):
    device, host = pools(gpu, rng, "device", "pinned")
    plan, stream = ns.plan_exchange(device, host, ROWS, ROWS[:, ::-1]), gpu.stream()
    plan.run(stream, "kernel").wait()
    gc.collect()
    alive = [weakref.ref(device), weakref.ref(host)]
    transfer = plan.run(stream, "kernel")
    del plan, device, host
    gc.collect()
    assert all(ref() is not None for ref in alive)
    transfer.wait()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


# -- plans from plans ---------------------------------------------------------------------------


def numbers(gpu, kind, blocks, first=0):
    content = np.repeat(np.arange(first, first + blocks, dtype=np.int64)[:, None], 8, axis=1)
    array = (gpu.device_array if kind == "device" else gpu.pinned_array)((blocks, 8), np.int64)
    if kind == "device":
        array.copy_to_device(content)
    else:
        array[:] = content
    return array


@pytest.mark.parametrize("mapping", [[[3, 0], [4, 1], [9, 5]], [[7, 2]], []])
def test_the_same_rows_for_other_arrays_and_back(mapping):
    with ns.simulate() as gpu:
        src, dst = numbers(gpu, "pinned", 12), numbers(gpu, "device", 6, 50)
        plan = ns.plan_blocks(src, dst, mapping)
        other, into = numbers(gpu, "pinned", 12, 100), numbers(gpu, "device", 6, 50)
        plan.rebind(other, into).run().wait()
        rows = np.array(mapping, int).reshape(-1, 2)
        expected = np.arange(50, 56)
        expected[rows[:, 1]] = 100 + rows[:, 0]
        assert into.copy_to_host()[:, 0].tolist() == expected.tolist()
        assert dst.copy_to_host()[:, 0].tolist() == list(range(50, 56))
        back = plan.reversed()
        back.run().wait()
        assert src[rows[:, 0], 0].tolist() == (50 + rows[:, 1]).tolist()
        assert back.reversed().nbytes == plan.nbytes


def test_rows_within_one_array_and_in_boxes_are_remembered():
    with ns.simulate() as gpu:
        pool = numbers(gpu, "device", 6)
        plan = ns.plan_blocks(pool, pool, [[2, 2], [3, 1]])
        src, dst = numbers(gpu, "device", 6, 100), numbers(gpu, "device", 6)
        plan.rebind(src, dst).run().wait()
        assert dst.copy_to_host()[:, 0].tolist() == [0, 103, 102, 3, 4, 5]
        wide, tall = gpu.pinned_array((4, 6)), gpu.device_array((4, 6))
        wide[:] = np.arange(6)
        ns.plan_blocks(wide, tall, [[5, 0], [1, 2]], block_axis=1).rebind(wide, tall).run().wait()
        assert tall.copy_to_host()[1, [0, 2]].tolist() == [5, 1]


def test_plans_from_plans_are_refused_with_the_reason():
    with ns.simulate() as gpu:
        src, dst = numbers(gpu, "pinned", 12), numbers(gpu, "device", 6)
        plan = ns.plan_blocks(src, dst, [[3, 0], [3, 1]])
        with pytest.raises(ns.BadPlanError, match="written twice"):
            plan.reversed()
        with pytest.raises(ns.BadPlanError, match=r"src has the shape \(6, 8\)"):
            plan.rebind(dst, dst)
        with pytest.raises(ns.BadPlanError, match="3 rows, and the plan was made for 2"):
            plan.update([[0, 0], [1, 1], [2, 2]])
        with pytest.raises(ns.BadPlanError, match="that plan_blocks made"):
            ns.plan_copy(src[:6], dst).reversed()


@pytest.mark.parametrize("mode", ["loop", "kernel", "batch"])
def test_update_changes_what_later_runs_copy(mode):
    with ns.simulate() as gpu:
        src, dst = numbers(gpu, "pinned", 12, 100), numbers(gpu, "device", 6)
        stream = gpu.stream()
        plan = ns.plan_blocks(src, dst, [[3, 0], [9, 1]])
        plan.run(stream, mode)  # in flight: it keeps its blocks
        plan.update([[5, 4], [6, 5]])
        assert plan.nbytes == 2 * 64
        plan.run(stream, mode).wait()
        assert dst.copy_to_host()[:, 0].tolist() == [103, 109, 2, 3, 105, 106]
        plan.update([[1, 0]])
        plan.run(stream, mode).wait()
        plan.update([[1, 1], [2, 2]])  # as many as at first
        plan.run(stream, mode).wait()
        assert dst.copy_to_host()[:, 0].tolist() == [101, 101, 102, 3, 105, 106]


@pytest.mark.parametrize("updatable", [False, True])
def test_update_changes_what_a_captured_graph_copies_in_stream_order(updatable):
    with ns.simulate() as gpu:
        src, dst = numbers(gpu, "pinned", 12, 100), numbers(gpu, "device", 6)
        stream = gpu.stream(non_blocking=True)
        plan = ns.plan_blocks(src, dst, [[3, 0], [4, 1], [9, 2]], updatable=updatable)
        gpu.library.begin_capture(stream.handle)
        plan.run(stream, "kernel")
        with pytest.raises(ns.CapturedTransferError):
            plan.update([[1, 3]], stream=stream)
        graph = gpu.library.end_capture(stream.handle)
        if not updatable:  # 3 and 4 are neighbours
            with pytest.raises(ns.BadPlanError, match="updatable=True"):
                plan.update([[1, 3]], stream=stream)
            return
        gpu.library.launch(graph, stream.handle)
        plan.update([[1, 3], [7, 4]], stream=stream)
        gpu.library.launch(graph, stream.handle)
        plan.update([[8, 5]], stream=stream)
        gpu.library.launch(graph, stream.handle)
        stream.synchronize()
        assert dst.copy_to_host()[:, 0].tolist() == [103, 104, 109, 101, 107, 108]
        with pytest.raises(ns.BadPlanError, match="at least one row"):
            plan.update([], stream=stream)


def test_update_is_refused_for_graphs_that_have_the_addresses():
    with ns.simulate() as gpu:
        src, dst = numbers(gpu, "pinned", 12, 100), numbers(gpu, "device", 6)
        stream = gpu.stream(non_blocking=True)
        plan = ns.plan_blocks(src, dst, [[3, 0], [9, 1]], updatable=True)
        gpu.library.begin_capture(stream.handle)
        plan.run(stream, "loop")
        gpu.library.end_capture(stream.handle)
        with pytest.raises(ns.BadPlanError, match="captured this plan as loop"):
            plan.update([[1, 3]], stream=stream)
        plan.run(stream).wait()
        assert dst.copy_to_host()[:2, 0].tolist() == [103, 109]
