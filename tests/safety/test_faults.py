"""Driver functions that fail on purpose: bytes right, or a documented error and no other byte."""

import gc
import weakref
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import address_of, examples, no_reaper

import numba_swap as ns
from numba_swap import native
from numba_swap.device import in_flight
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.simulated import Fault, FaultPlan, SimulatedLibrary
from numba_swap.errors import STICKY_CODES

MODES = ["batch", "loop", "kernel"]
INVALID, MEMORY, ILLEGAL = 1, 2, 700


@pytest.fixture
def gpu():
    ns.plan_cache.clear()
    with no_reaper(), ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu
    in_flight._kept.clear()


@pytest.fixture
def faults(gpu):
    return gpu.library.faults


class Pair:
    """A swap of every second block between two pools, and what may have come of it."""

    def __init__(self, gpu, blocks=16, nbytes=64):
        self.gpu = gpu
        self.src = gpu.pinned_array((blocks, nbytes), np.uint8)
        self.dst = gpu.device_array((blocks, nbytes), np.uint8)
        self.src[:] = 1 + np.arange(blocks)[:, None]
        self.dst.copy_to_device(np.zeros((blocks, nbytes), np.uint8))
        order = np.random.default_rng(blocks).permutation(blocks // 2)
        self.rows = 2 * np.stack([order, order[::-1]], axis=1)

    def written(self):
        """The rows whose destination was written, others having been left alone."""
        got = self.dst.copy_to_host()
        done = [row for row, (i, j) in enumerate(self.rows) if (got[j] == self.src[i]).all()]
        rest = np.delete(got, self.rows[done, 1], axis=0)
        assert not rest.any()
        return done


def fail(run):
    with pytest.raises(ns.DriverCallError) as caught:
        run()
    return caught.value


# -- what an error says -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "loop"])
def test_an_error_tells_the_copy_and_what_was_submitted(gpu, faults, mode):
    pair = Pair(gpu)
    function = "cuMemcpyBatchAsync" if mode == "batch" else "cuMemcpyAsync"
    if mode == "batch":
        faults.add(Fault(function, INVALID, copies=3, fail_index=3))
    else:
        faults.add(Fault(function, INVALID, call=4))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode=mode))
    i, j = pair.rows[3]
    assert (error.function, error.code, error.name) == (function, 1, "CUDA_ERROR_INVALID_VALUE")
    assert error.failing_index == error.submitted == 3
    assert error.copy == f"block_mapping[3] (source block {i} to destination block {j})"
    assert f"At fault is {error.copy}; the 3 copies before it were submitted" in str(error)
    assert list(error.submitted_rows) == [0, 1, 2] == pair.written()
    assert not error.sticky
    assert gpu.library.calls["cuLaunchKernel"] == 0  # nothing was retried in another mode


def test_an_error_between_pointers_tells_their_addresses(gpu, faults):
    pair = Pair(gpu)
    base = pair.dst.__cuda_array_interface__["data"][0]
    src, dst = pair.src.ctypes.data + 128 * np.arange(4), base + 256 * np.arange(4)
    faults.add(Fault("cuMemcpyAsync", INVALID, call=3))
    error = fail(lambda: ns.swap_blocks_batch(src, dst, [5, 0, 7, 9], mode="loop"))
    assert error.copy == f"copy 3 (from {src[3]:#x} to {dst[3]:#x}, 9 bytes)"
    assert list(error.submitted_rows) == [0, 1, 2]  # the second is empty


def test_merged_pointers_are_told_as_such(gpu, faults):
    pair = Pair(gpu)
    base = pair.dst.__cuda_array_interface__["data"][0]
    steps = np.array([0, 10, 30, 64, 74])
    sizes = np.array([10, 20, 5, 10, 2])
    faults.add(Fault("cuMemcpyAsync", INVALID, call=2))
    src = pair.src.ctypes.data + steps
    error = fail(lambda: ns.swap_blocks_batch(src, base + steps, sizes, mode="loop"))
    assert error.copy == (f"copies 3 to 4 (merged: from {src[3]:#x} to {base + 64:#x}, 12 bytes)")
    assert list(error.submitted_rows) == [0, 1, 2]


def test_an_error_in_a_later_chunk_of_several_streams(gpu, faults):
    """Copies of all chunks before it were submitted, to whichever stream."""
    pair = Pair(gpu, blocks=64, nbytes=1 << 16)
    faults.add(Fault("cuMemcpyBatchAsync", INVALID, call=6, copies=1, fail_index=1))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="batch"))
    assert error.submitted == 5 * 4 + 1
    assert list(error.submitted_rows) == list(range(21)) == pair.written()


@pytest.mark.parametrize("index", [None, abi.SIZE_MAX, 4, 1 << 40])
def test_an_index_that_is_none_is_never_used(gpu, faults, index):
    """Unwritten, SIZE_MAX, or beyond the call: only the chunk is known."""
    pair = Pair(gpu, blocks=64, nbytes=1 << 16)
    faults.add(Fault("cuMemcpyBatchAsync", INVALID, call=3, copies=2, fail_index=index))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="batch"))
    assert error.failing_index is error.submitted is error.copy is None
    assert "not known: none from copy 12 on" in str(error)
    assert list(error.submitted_rows) == list(range(12))
    assert set(pair.written()) == set(range(2 * 4 + 2))


def test_rows_in_another_order_are_told_by_their_own_numbers(gpu, faults, monkeypatch, tune):
    """Grouping by regions of host memory, here by blocks of 4096 bytes, reorders the rows."""
    tune(group_rows=1, group_pool_bytes=1)
    monkeypatch.setattr(native.rows, "place_rows", sorting(native.rows.place_rows))
    pair = Pair(gpu)
    order = np.argsort(pair.rows[:, 0])
    faults.add(Fault("cuMemcpyAsync", INVALID, call=4))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="loop"))
    assert sorted(order[:3]) == list(error.submitted_rows) == pair.written()
    assert error.copy.startswith(f"block_mapping[{order[3]}] (source block 6 to")
    copies = ns.plan_blocks(pair.src, pair.dst, pair.rows).copies
    pair.rows[2] = 8  # once it is another mapping, its rows say nothing
    assert copies.origin.rows(3) is None
    assert copies.origin.describe(3).startswith("a row of block_mapping (source block 6 to")


def sorting(place_rows):
    """Return the compiled function, but grouping sorts the rows by source."""

    def place_sorted(mapping, *arguments):
        *ends, grouped_by, dst, src = arguments
        assert grouped_by == 0
        order = np.argsort(mapping[:, 0])
        return place_rows(mapping[order].copy(), *ends, -1, dst, src)

    return place_sorted


def test_a_mapping_changed_after_planning_is_not_misquoted(gpu, faults):
    pair = Pair(gpu)
    plan = ns.plan_blocks(pair.src, pair.dst, pair.rows)
    i, j = pair.rows[2]
    pair.rows[:] = 0
    faults.add(Fault("cuMemcpyAsync", INVALID, call=3))
    error = fail(lambda: plan.run(mode="loop"))
    assert error.copy == f"block_mapping[2] (source block {i} to destination block {j})"


def test_layers_are_told_apart(gpu, faults):
    pairs = [Pair(gpu), Pair(gpu)]
    src, dst = [pair.src for pair in pairs], [pair.dst for pair in pairs]
    faults.add(Fault("cuMemcpyAsync", INVALID, call=11))
    error = fail(lambda: ns.swap_blocks(src, dst, pairs[0].rows, mode="loop"))
    assert error.copy.startswith("block_mapping[2] ")
    assert error.copy.endswith("of layer 1)")
    assert list(error.submitted_rows) == list(range(8))  # in layer 0
    assert [pair.written() for pair in pairs] == [list(range(8)), [0, 1]]


def test_runs_of_a_block_belong_to_its_row(gpu, faults):
    src = gpu.pinned_array((8, 4, 16), np.uint8)
    dst = gpu.device_array((8, 4, 8), np.uint8)
    faults.add(Fault("cuMemcpy3DAsync", INVALID, call=2))
    call = [[0, 5], [3, 1], [6, 2]]
    error = fail(lambda: ns.swap_blocks(src[:, :, :8], dst, call, mode="loop"))
    assert error.copy == "block_mapping[1] (source block 3 to destination block 1)"
    assert list(error.submitted_rows) == [0, 1]


def test_rows_that_were_left_out_are_counted(gpu, faults):
    """Within one pool, a block onto itself is no copy, but its row is one."""
    pool = gpu.device_array((16, 64), np.uint8)
    faults.add(Fault("cuMemcpyAsync", INVALID, call=2))
    rows = [[3, 3], [0, 8], [5, 5], [2, 10], [4, 12]]
    error = fail(lambda: ns.swap_blocks(pool, pool, rows, mode="loop"))
    assert error.failing_index == 1
    assert error.copy == "block_mapping[3] (source block 2 to destination block 10)"
    assert 1 in error.submitted_rows
    assert not {3, 4} & set(error.submitted_rows)


def test_a_kernel_that_was_not_launched_copied_nothing(gpu, faults):
    pair = Pair(gpu)
    faults.add(Fault("cuLaunchKernel", MEMORY))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="kernel"))
    assert (error.function, error.submitted, error.submitted_rows) == ("cuLaunchKernel", 0, ())
    assert "Nothing was copied" in str(error)
    assert pair.written() == []


def test_a_sticky_error_says_so(gpu, faults):
    pair = Pair(gpu)
    transfer = ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="loop")
    faults.add(Fault("cuEventSynchronize", ILLEGAL, sticky=True))
    for _ in range(2):
        error = fail(transfer.wait)
        assert error.sticky
        assert "Only a new process can use the GPU again" in str(error)
    assert fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows)).sticky


# -- what was enqueued is tracked to its end ----------------------------------------------------


class Holder:
    """An array-like whose death can be watched."""

    def __init__(self, array):
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array


def unfinished_of(gpu):
    """What is under way on this machine; tests before may have left theirs broken."""
    return [work for work in in_flight._unfinished.values() if work._driver is gpu.driver]


@pytest.mark.parametrize("call", range(1, 18))
@pytest.mark.parametrize("function", ["cuEventRecord", "cuStreamWaitEvent", "cuEventCreate"])
def test_fences_that_fail_release_nothing_too_early(gpu, faults, function, call):
    """A batch over eight private streams: no memory goes before all of them are over."""
    pair = Pair(gpu, blocks=64, nbytes=1 << 16)
    device = Holder(pair.dst)
    alive = weakref.ref(device)
    faults.add(Fault(function, MEMORY, call=call))
    with suppress(ns.DriverCallError):
        ns.swap_blocks(pair.src, device, pair.rows, mode="batch")
    del device
    for work in unfinished_of(gpu):
        work.wait_in_own_context()
    gc.collect()
    released, now = alive() is None, np.array(pair.dst._memory)
    gpu.library.synchronize()
    if released:  # then nothing was still to be written
        assert np.array_equal(now, pair.dst._memory)
    assert pair.written() in ([], list(range(32)))


def exchange_of(pair):
    """One copy in each direction, in lanes of their own: two waits to fork, and two to join."""
    return lambda: ns.exchange(pair.dst, pair.src, [[1, 1]], [[0, 0]], mode="loop")


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_lanes_that_cannot_be_forked_or_joined(gpu, faults, call):
    faults.add(Fault("cuStreamWaitEvent", MEMORY, call=call))
    error = fail(exchange_of(Pair(gpu)))
    assert error.function == "cuStreamWaitEvent"


def test_of_an_error_and_another_on_the_way_out_the_first_is_told(gpu, faults):
    faults.add(Fault("cuMemcpyAsync", INVALID, call=2))
    faults.add(Fault("cuStreamWaitEvent", MEMORY, call=3, times=None))
    error = fail(exchange_of(Pair(gpu)))
    assert error.function == "cuMemcpyAsync"
    assert [fault.function for fault in faults.struck] == ["cuMemcpyAsync", "cuStreamWaitEvent"]


def test_an_event_that_cannot_be_made_stops_the_swap_before_it_begins(gpu, faults):
    pair = Pair(gpu)
    faults.add(Fault("cuEventCreate", MEMORY))
    error = fail(lambda: ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="loop"))
    assert error.function == "cuEventCreate"
    gpu.library.synchronize()
    assert pair.written() == []
    ns.swap_blocks(pair.src, pair.dst, pair.rows, mode="loop").wait()
    assert pair.written() == list(range(8))


@pytest.mark.parametrize("function", ["cuMemHostAlloc", "cuMemAlloc"])
def test_memory_for_descriptors_runs_out(gpu, faults, function):
    """Pinned memory for the table: see test_no_pinned_memory; device memory for its copy."""
    first, second = (gpu.device_array((16, 64), np.uint8) for _ in range(2))
    first.copy_to_device(np.ones((16, 64), np.uint8))
    second.copy_to_device(np.zeros((16, 64), np.uint8))
    faults.add(Fault(function, MEMORY))

    def swap():
        ns.swap_blocks(first, second, [[0, 3], [2, 1], [4, 9]], mode="kernel")

    if function == "cuMemAlloc":
        error = fail(swap)
        assert (error.function, error.name) == (function, "CUDA_ERROR_OUT_OF_MEMORY")
        assert "4096 bytes of device memory were asked for" in str(error)
    else:
        with pytest.raises(ns.ModeUnavailableError, match="no pinned host memory is left"):
            swap()
    gpu.library.synchronize()
    assert not second.copy_to_host().any()


# -- look-ups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {"code": 500},
        {"code": 500, "address": 0xDEAD},
        {"code": 1},
        {"code": 0, "address": 0, "status": 1},
        {"code": 0, "address": 0, "status": 2},
        {"code": 0, "address": 0xDEAD, "status": 1},
        {"code": 0},
    ],
)
def test_answers_of_look_ups_that_give_no_batch(answer):
    """Code, pointer and status must all say so; a pointer that was left untouched is none."""
    fault = Fault("cuGetProcAddress", name="cuMemcpyBatchAsync", **answer)
    driver = Driver(SimulatedLibrary(faults=FaultPlan(fault)))
    assert not driver.has("cuMemcpyBatchAsync")
    with pytest.raises(ns.EntryPointNotFoundError, match="gave no cuMemcpyBatchAsync"):
        driver.memcpy_batch_async(0, 0, 0, 1, 2)


@pytest.mark.parametrize("name", sorted(abi.PROTOTYPES))
def test_any_look_up_may_fail(name):
    plan = FaultPlan(Fault("cuGetProcAddress", 500, name=name))
    library = SimulatedLibrary(faults=plan)
    if abi.PROTOTYPES[name].essential:
        with pytest.raises(ns.EntryPointNotFoundError, match=f"gave no {name} at version"):
            Driver(library)
    else:
        assert not Driver(library).has(name)
    assert len(plan.struck) == 1


# -- at random ----------------------------------------------------------------------------------

FUNCTIONS = [
    "cuInit",
    "cuDevicePrimaryCtxRetain",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxGetDevice",
    "cuPointerGetAttributes",
    "cuGetErrorName",
    "cuMemAlloc",
    "cuMemHostAlloc",
    "cuMemcpyAsync",
    "cuMemcpyBatchAsync",
    "cuStreamCreate",
    "cuStreamGetCtx",
    "cuStreamWaitEvent",
    "cuStreamIsCapturing",
    "cuThreadExchangeStreamCaptureMode",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuLaunchKernel",
]


@st.composite
def fault_of_any_kind(draw):
    function = draw(st.sampled_from(FUNCTIONS))
    code = draw(st.sampled_from([INVALID, MEMORY, 201, 400, 800, ILLEGAL, 719]))
    options = {}
    if function == "cuMemcpyBatchAsync" and draw(st.booleans()):
        options["copies"] = copies = draw(st.integers(0, 2))
        options["fail_index"] = draw(st.sampled_from([None, abi.SIZE_MAX, copies]))
    return Fault(
        function,
        code,
        call=draw(st.integers(1, 12)),
        times=draw(st.sampled_from([1, 1, 2, None])),
        sticky=code in STICKY_CODES,
        **options,
    )


KINDS = [("pinned", "device"), ("pageable", "device"), ("device", "pinned"), ("device", "device")]
CALLS = ["arrays", "plan", "pointers", "layers"]


@st.composite
def swaps(draw):
    """A few swaps, all in one stream, of which each writes other blocks or the same again."""
    return [
        (
            draw(st.sampled_from(range(len(KINDS)))),
            draw(st.sampled_from(CALLS)),
            draw(st.sampled_from(["auto", *MODES])),
            draw(st.permutations(range(BLOCKS))),
            draw(st.integers(1, BLOCKS)),
            draw(st.sampled_from(["wait", "poll", "drop"])),
        )
        for _ in range(draw(st.integers(1, 4)))
    ]


BLOCKS = 9


def make(gpu, kind, content):
    if kind == "device":
        array = gpu.device_array(content.shape, np.uint8)
        array.copy_to_device(content)
        return array
    array = content.copy() if kind == "pageable" else gpu.pinned_array(content.shape, np.uint8)
    array[...] = content
    return array


def address(array):
    return address_of(array)


def run(call, src, dst, rows, nbytes, **options):
    if call == "arrays":
        return ns.swap_blocks(src, dst, rows, **options)
    if call == "layers":
        halves = slice(0, nbytes // 2), slice(nbytes // 2, None)
        layers = [[side[:, half] for half in halves] for side in (src, dst)]
        return ns.swap_blocks(*layers, rows, **options)
    if call == "plan":
        plan = ns.plan_blocks(src, dst, rows)
        plan.run(**options)
        return plan.run(**options)
    begins = (address(side) + nbytes * rows[:, i] for i, side in enumerate((src, dst)))
    return ns.swap_blocks_batch(*begins, np.full(len(rows), nbytes), **options)


def rows_in_doubt(error, count):
    """The rows that an error says may have been written."""
    if not isinstance(error, ns.DriverCallError):
        return range(0)
    if error.submitted_rows is None:
        return range(count)
    return list(error.submitted_rows)


@pytest.mark.parametrize("kinds", range(len(KINDS)))
@pytest.mark.parametrize("own_stream", [False, True])
def test_what_could_not_be_joined_does_not_overwrite_what_comes_later(kinds, own_stream):
    """A batch in a private stream that the user's stream could not be made to wait for."""
    first = (kinds, "arrays", "batch", list(range(BLOCKS)), BLOCKS, "wait")
    second = (kinds, "arrays", "auto", [1, 0, *range(2, BLOCKS)], BLOCKS, "wait")
    check = test_bytes_are_right_or_an_error_tells_what_may_be_wrong.hypothesis.inner_test
    check([Fault("cuEventRecord", 1, call=2)], [first, second], own_stream, 64)


@examples(600)
@given(
    st.lists(fault_of_any_kind(), min_size=1, max_size=3),
    swaps(),
    st.booleans(),
    st.sampled_from([64, 64, 1 << 17]),
)
def test_bytes_are_right_or_an_error_tells_what_may_be_wrong(plan, calls, own_stream, nbytes):
    ns.plan_cache.clear()
    rng = np.random.default_rng(1)
    with no_reaper(), ns.simulate() as gpu:
        sides = []
        for src_kind, dst_kind in KINDS:
            content = rng.integers(1, 256, (BLOCKS, nbytes), dtype=np.uint8)
            target = rng.integers(1, 256, (BLOCKS, nbytes), dtype=np.uint8)
            src, dst = make(gpu, src_kind, content), make(gpu, dst_kind, target)
            sides.append((src, dst, content, target, np.ones(BLOCKS, bool)))
        stream = gpu.stream() if own_stream else None
        for fault in plan:
            gpu.library.faults.add(fault)
        pending = []
        for kinds, call, mode, order, count, end in calls:
            src, dst, content, target, known = sides[kinds]
            rows = np.stack([np.arange(BLOCKS)[::-1], order], axis=1)[:count].copy()
            if nbytes > 64 and mode in ("auto", "kernel"):
                mode = "batch"  # over several streams; Numba's simulator would take long
            doubt = []
            try:
                transfer = run(call, src, dst, rows, nbytes, stream=stream, mode=mode)
                try:
                    if end == "wait":
                        transfer.wait()
                    elif end == "poll":
                        transfer.done()
                except ns.DriverCallError:
                    doubt = range(count)
                pending.append((known, rows))
                del transfer
            except ns.NumbaSwapError as error:
                doubt = rows_in_doubt(error, count)
                if call == "plan":
                    doubt = range(count)  # the first of two runs may have been the one
            else:
                target[rows[:, 1]] = content[rows[:, 0]]
                known[rows[:, 1]] = True
            known[rows[list(doubt), 1]] = False
        struck = list(gpu.library.faults.struck)
        gpu.library.faults.clear()
        if any(fault.sticky for fault in struck):
            for known, rows in pending:  # nothing runs after that, whatever was enqueued
                known[rows[:, 1]] = False
            gpu.library._timeline.sticky = 0
        else:
            gpu.library.synchronize()
            for work in unfinished_of(gpu):
                work.wait_in_own_context()
        for _, dst, _, target, known in sides:
            got = dst.copy_to_host() if hasattr(dst, "copy_to_host") else dst
            assert np.array_equal(got[known], target[known])
        assert gpu.library.internal_error is None
    assert not unfinished_of(gpu)
    in_flight._kept.clear()
