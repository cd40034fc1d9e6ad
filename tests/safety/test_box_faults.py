"""Driver functions that fail amidst boxes: the rows are told, and no other byte changes."""

import numpy as np
import pytest
from box_model import Layout
from machines import no_reaper

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.driver.simulated import Fault

INVALID, MEMORY = 1, 2
BOXES = 6


@pytest.fixture
def gpu():
    with no_reaper(), ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu
    in_flight._kept.clear()


@pytest.fixture
def faults(gpu):
    return gpu.library.faults


def fail(run):
    with pytest.raises(ns.DriverCallError) as caught:
        run()
    return caught.value


# How much of a box the driver's strided copies can say, by the strides of a row of the source.
SORTS = {"whole": (400, 40, 1), "planes": (397, 40, 1), "rows": (400, -40, 1)}
CALLS = {"whole": 1, "planes": 2, "rows": 6}


class Call:
    """Boxes of 2 planes of 3 rows of 8 bytes, of one sort, into every second slot of a pool."""

    def __init__(self, gpu, sort):
        shape = (BOXES, 2, 3, 8)
        self.src = gpu.pinned_array(800 * BOXES + 100, np.uint8)
        self.src[:] = 1 + np.arange(len(self.src)) % 255
        low = 80 if sort == "rows" else 0
        layout = Layout(shape, (800, *SORTS[sort]), low, 1)
        self.dst = gpu.device_array((2 * BOXES, 2, 3, 8), np.uint8)
        self.dst.copy_to_device(np.zeros(self.dst.shape))
        self.source = layout.of(self.src, "|u1")
        order = np.random.default_rng(3).permutation(BOXES)
        self.origins = [[i, 0, 0, 0] for i in order], [[2 * i, 0, 0, 0] for i in order]
        self.order = order
        self.plan = ns.plan_boxes(self.source, self.dst, *self.origins, (2, 3, 8))
        assert len(self.plan) == BOXES

    def written(self):
        """The rows that were written wholly, and those of which a part was; no others."""
        got = self.dst.copy_to_host()
        assert not got[1::2].any()
        whole, part = [], []
        for row, i in enumerate(self.order):
            right = got[2 * i] == self.source[i]
            assert (right | (got[2 * i] == 0)).all()
            if right.all():
                whole.append(row)
            elif right.any():
                part.append(row)
        return whole, part


@pytest.mark.parametrize("failing", [0, 1, 3, 5])
@pytest.mark.parametrize("sort", SORTS)
def test_a_loop_tells_the_box_and_what_was_submitted(gpu, faults, sort, failing):
    call = Call(gpu, sort)
    function = "cuMemcpyAsync" if sort == "rows" else "cuMemcpy3DAsync"
    within = CALLS[sort] - 1  # the last part of the box is refused
    faults.add(Fault(function, INVALID, call=CALLS[sort] * failing + within + 1))
    error = fail(lambda: call.plan.run(mode="loop"))
    i = call.order[failing]
    assert (error.function, error.code, error.name) == (function, 1, "CUDA_ERROR_INVALID_VALUE")
    assert error.failing_index == error.submitted == failing
    assert error.copy == f"box {failing} (from ({i}, 0, 0, 0) to ({2 * i}, 0, 0, 0))"
    assert f"At fault is {error.copy}; the {failing} copies before it were submitted" in str(error)
    assert ("some rows may have been" in str(error)) == (sort != "whole")
    assert list(error.submitted_rows) == list(range(failing + 1))
    whole, part = call.written()
    assert whole == list(range(failing))
    assert part == ([failing] if within else [])
    assert gpu.library.calls["cuLaunchKernel"] == 0  # nothing was retried in another mode


@pytest.mark.parametrize("operation", [0, 1, 4, 11])
@pytest.mark.parametrize("sort", SORTS)
def test_a_batch_tells_the_box_of_an_operation(gpu, faults, sort, operation):
    call = Call(gpu, sort)
    operation = min(operation, CALLS[sort] * BOXES - 1)
    faults.add(Fault("cuMemcpy3DBatchAsync", INVALID, copies=operation, fail_index=operation))
    error = fail(lambda: call.plan.run(mode="batch"))
    failing = operation // CALLS[sort]
    assert (error.function, error.failing_index) == ("cuMemcpy3DBatchAsync", failing)
    assert error.copy.startswith(f"box {failing} ")
    assert list(error.submitted_rows) == list(range(failing + 1))
    whole, part = call.written()
    assert whole == list(range(failing))
    assert part == ([failing] if operation % CALLS[sort] else [])


@pytest.mark.parametrize("most", [1, 4, 5, 12])
@pytest.mark.parametrize("sort", SORTS)
def test_no_call_of_the_batch_is_longer_than_allowed(gpu, faults, sort, most):
    """Not even where one box alone takes more of the driver's copies."""
    seen = []
    call = Call(gpu, sort)
    batch = gpu.driver.memcpy_boxes_batch
    gpu.driver.memcpy_boxes_batch = lambda at, count, stream: (
        seen.append(count),
        batch(at, count, stream),
    )[1]
    with ns.override(batch_descriptors=most):
        call.plan.run(mode="batch").wait()
        assert max(seen) <= most
        assert sum(seen) == CALLS[sort] * BOXES
        assert call.written() == (list(range(BOXES)), [])
        call.dst.copy_to_device(np.zeros(call.dst.shape))
        calls, seen[:] = list(seen), []
        last = len(calls) - 1
        faults.add(Fault("cuMemcpy3DBatchAsync", INVALID, call=last + 1, fail_index=0))
        error = fail(lambda: call.plan.run(mode="batch"))
    failing = sum(calls[:last]) // CALLS[sort]
    assert error.failing_index == failing
    assert list(error.submitted_rows) == list(range(failing + 1))
    whole, part = call.written()
    assert whole == list(range(failing))
    assert set(part) <= {failing}


@pytest.mark.parametrize("index", [None, 2**64 - 1, 99])
def test_an_index_that_is_none_is_never_used(gpu, faults, index):
    call = Call(gpu, "planes")
    faults.add(Fault("cuMemcpy3DBatchAsync", INVALID, copies=3, fail_index=index))
    error = fail(lambda: call.plan.run(mode="batch"))
    assert error.failing_index is error.submitted is error.copy is None
    assert list(error.submitted_rows) == list(range(BOXES))
    assert call.written() == ([0], [1])


def test_a_kernel_that_was_not_launched_copied_nothing(gpu, faults):
    call = Call(gpu, "whole")
    faults.add(Fault("cuLaunchKernel", MEMORY))
    error = fail(lambda: call.plan.run(mode="kernel"))
    assert (error.function, error.submitted, error.submitted_rows) == ("cuLaunchKernel", 0, ())
    assert call.written() == ([], [])


@pytest.mark.parametrize(
    ("function", "error"),
    [("cuMemHostAlloc", ns.ModeUnavailableError), ("cuMemAlloc", ns.DriverCallError)],
)
def test_memory_for_descriptors_runs_out(gpu, faults, function, error):
    src, dst = (gpu.device_array((9, 9), np.uint8) for _ in range(2))
    dst.copy_to_device(np.zeros((9, 9)))
    plan = ns.plan_copy(src[1:4, 1:4], dst[2:5, 3:6])
    faults.add(Fault(function, MEMORY))
    with pytest.raises(error):
        plan.run(mode="kernel")
    assert not dst.copy_to_host().any()


def test_pairs_are_told_by_their_numbers(gpu, faults):
    field, outs = gpu.pinned_array((9, 9), np.uint8), gpu.device_array((4, 3, 3), np.uint8)
    field[:] = 7
    outs.copy_to_device(np.zeros(outs.shape))
    empty = field[:0], gpu.device_array((0, 9), np.uint8)
    tiles = [(field[2 * i : 2 * i + 3, i : i + 3], outs[i]) for i in range(4)]
    faults.add(Fault("cuMemcpy3DAsync", INVALID, call=3))
    error = fail(lambda: ns.copy_many([empty, *tiles[:2], empty, *tiles[2:]], mode="loop"))
    assert error.copy == "pair 4"
    assert set(error.submitted_rows) <= set(range(5))
    assert {1, 2, 4} <= set(error.submitted_rows)
    assert outs.copy_to_host().any(axis=(1, 2)).tolist() == [True, True, False, False]


def test_rows_that_are_cut_are_told_by_their_own_numbers(gpu, faults):
    field, pool = gpu.pinned_array((8, 8), np.uint8), gpu.device_array((5, 4, 4), np.uint8)
    field[:] = 7
    pool.copy_to_device(np.zeros(pool.shape))
    corners = [[0, 0], [9, 9], [-2, 3], [2, 2], [6, 6]]
    slots = [[i, 0, 0] for i in range(5)]
    plan = ns.plan_boxes(field, pool, corners, slots, (4, 4), edge="clip")
    faults.add(Fault("cuMemcpy3DAsync", INVALID, call=3))
    error = fail(lambda: plan.run(mode="loop"))
    assert error.copy == "box 3 (from (2, 2) to (3, 0, 0))"
    assert error.failing_index == 2
    assert list(error.submitted_rows) == [0, 1, 2, 3]
    assert pool.copy_to_host().any(axis=(1, 2)).tolist() == [True, False, True, False, False]


def test_rows_left_out_as_they_stay_where_they_are_are_counted(gpu, faults):
    field = gpu.device_array((8, 8), np.uint8)
    faults.add(Fault("cuMemcpy3DAsync", INVALID, call=2))
    call = [[0, 0], [0, 2], [2, 0]], [[0, 0], [4, 4], [6, 6]]
    error = fail(lambda: ns.copy_boxes(field, field, *call, (2, 2), mode="loop"))
    assert (error.failing_index, error.copy) == (1, "box 2 (from (2, 0) to (6, 6))")


@pytest.mark.parametrize("function", ["cuMemcpy3DAsync", "cuMemcpy3DBatchAsync"])
def test_a_driver_that_gives_no_strided_copies(function):
    """The batch is optional, and refused with a reason; it is not fallen back from when forced."""
    from numba_swap.driver.calls import Driver
    from numba_swap.driver.simulated import FaultPlan, SimulatedLibrary

    library = SimulatedLibrary(faults=FaultPlan(Fault("cuGetProcAddress", 500, name=function)))
    if function == "cuMemcpy3DAsync":
        with pytest.raises(ns.EntryPointNotFoundError, match="gave no cuMemcpy3DAsync"):
            Driver(library)
        return
    assert not Driver(library).has(function)
    with ns.simulate(driver_version=(12, 7)) as gpu:
        plan = Call(gpu, "whole").plan
        with pytest.raises(
            ns.ModeUnavailableError, match=f"has no {function}, which is new in 12.8"
        ):
            plan.run(mode="batch")
        assert plan.run().decision.mode in ("kernel", "loop")
