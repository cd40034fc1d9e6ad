"""The short way of a swap between the same arrays: same results, and left when anything changed."""

import gc
import threading
import weakref

import numpy as np
import pytest
from machines import MACHINES, make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.copies import block_array
from numba_swap.copies.from_arrays import read_arrays
from numba_swap.device.devices import devices_of
from numba_swap.driver.simulated import Fault
from numba_swap.swap import verbs
from numba_swap.swap.plans.plan_cache import ByCount, PlanCache
from numba_swap.swap.plans.prepared.rows import PreparedRows


@pytest.fixture(autouse=True)
def _no_pairs_of_others():
    ns.plan_cache.clear()


@pytest.fixture
def taken(monkeypatch):
    """Counts of the short way: taken, and left to the long one."""
    counts = {"short": 0, "long": 0}
    copy, plan = PreparedRows.copy, verbs._plan

    def count_short(self, *arguments):
        transfer = copy(self, *arguments)
        counts["short"] += transfer is not None
        return transfer

    def count_long(*arguments):
        counts["long"] += 1
        return plan(*arguments)

    monkeypatch.setattr(PreparedRows, "copy", count_short)
    monkeypatch.setattr(verbs, "_plan", count_long)
    return counts


def rows_for(rng, count, blocks):
    """Rows that are no neighbours."""
    return 2 * np.stack([rng.permutation(blocks // 2)[:count] for _ in range(2)], axis=1)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("kinds", [("pinned", "device"), ("device", "pinned")])
def test_fresh_rows_arrive_every_time(machine, kinds, rng, taken):
    with machine.open() as gpu:
        content, target = random_bytes(rng, (64, 96)), random_bytes(rng, (64, 96))
        src, dst = (make_array(gpu, k, c) for k, c in zip(kinds, (content, target), strict=True))
        stream = gpu.stream()
        for count in (3, 16, 5, 32, 16, 31):
            mapping = rows_for(rng, count, 64)
            transfer = ns.swap_blocks(src, dst, mapping, stream=stream)
            transfer.wait()
            target[mapping[:, 1]] = content[mapping[:, 0]]
            assert np.array_equal(read_array(gpu, dst), target)
            assert (transfer.decision.copies, transfer.nbytes) == (count, count * 96)
            assert transfer.decision.mode == "kernel"
            assert transfer.decision.reason.startswith("predicted: kernel")
    assert taken == {"short": 5, "long": 1}


@pytest.fixture
def pair():
    with ns.simulate() as gpu:
        src, dst = gpu.pinned_array((64, 96), np.uint8), gpu.device_array((64, 96), np.uint8)
        src[:] = np.arange(64)[:, None]
        stream = gpu.stream()
        ns.swap_blocks(src, dst, np.array([[0, 8], [2, 4], [4, 0]]), stream=stream).wait()
        yield gpu, src, dst, stream


GOOD = np.array([[0, 8], [2, 4], [40, 0]])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 8], [2, 8], [4, 0]], r"block_mapping\[1\]: destination block 8 is written twice"),
        ([[0, 8], [64, 2], [4, 0]], r"block_mapping\[1\]: src block 64"),
        ([[0, 8], [2, -1], [4, 0]], r"block_mapping\[1\]: dst block -1"),
    ],
)
def test_bad_rows_get_the_same_errors(pair, taken, rows, message):
    _gpu, src, dst, stream = pair
    before = dst.copy_to_host()
    with pytest.raises(ns.BadPlanError, match=message):
        ns.swap_blocks(src, dst, np.array(rows), stream=stream)
    assert taken == {"short": 0, "long": 1}
    assert np.array_equal(dst.copy_to_host(), before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "loop"},
        {"stream": None},
        {"max_blocks": 1},
        {"block_mapping": GOOD.tolist()},
        {"block_mapping": GOOD.astype(np.int32)},
        {"block_mapping": np.asfortranarray(GOOD)},
        {"block_mapping": np.array([[0, 8], [1, 9], [40, 0]])},  # neighbours, to be merged
        {"block_mapping": np.zeros((0, 2), np.int64)},
        {"block_mapping": GOOD[:1]},  # so few that the loop is faster
        {"policy": "latency"},
    ],
)
def test_other_arguments_take_the_long_way(pair, taken, arguments):
    _gpu, src, dst, stream = pair
    call = {"block_mapping": GOOD, "stream": stream, **arguments}
    ns.swap_blocks(src, dst, **call).wait()
    assert taken == {"short": 0, "long": 1}
    got = dst.copy_to_host()
    for i, j in np.asarray(call["block_mapping"]):
        assert (got[j] == src[i]).all()


def test_settings_and_capture_are_seen(pair, taken):
    gpu, src, dst, stream = pair
    with ns.override(driver_version=(11, 8)):
        transfer = ns.swap_blocks(src, dst, GOOD, stream=stream)
    assert transfer.decision.mode == "loop"
    transfer.wait()  # or the library's thread would, sooner or later
    library = gpu.driver.library
    library.begin_capture(stream.handle)
    transfer = ns.swap_blocks(src, dst, GOOD, stream=stream)
    assert len(library.end_capture(stream.handle).nodes) == 1
    with pytest.raises(ns.CapturedTransferError):
        transfer.wait()
    assert taken == {"short": 0, "long": 2}
    for _ in range(2):  # the graph keeps the descriptors, so the first of these may make new ones
        ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
    assert taken["short"] >= 1


def test_memory_that_is_no_longer_pinned_is_seen(taken):
    with ns.simulate() as gpu:
        src = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
        dst, stream = gpu.device_array((64, 96), np.uint8), gpu.stream()
        gpu.driver.library.register_host(src)
        modes = []
        for step in range(4):
            if step == 2:
                gpu.driver.library.unregister_host(src)
            transfer = ns.swap_blocks(src, dst, GOOD, stream=stream)
            transfer.wait()
            modes.append(str(transfer.decision.mode))
            assert np.array_equal(dst.copy_to_host()[GOOD[:, 1]], src[GOOD[:, 0]])
    assert modes == ["kernel", "kernel", "loop", "loop"]
    assert taken["short"] == 1


@pytest.mark.parametrize("pinned_anew", [False, True])
def test_memory_that_changes_before_its_short_way_is_made_is_seen(taken, pinned_anew):
    """It is no longer pinned, or it is, but the GPU has it at another address."""
    with ns.simulate() as gpu:
        src = np.arange(64 * 96, dtype=np.uint8).reshape(64, 96)
        dst, stream = gpu.device_array((64, 96), np.uint8), gpu.stream()
        gpu.library.register_host(src)
        modes = []
        for _ in range(3):
            transfer = ns.swap_blocks(src, dst, GOOD, stream=stream)
            transfer.wait()
            modes.append(str(transfer.decision.mode))
            if len(modes) == 1:
                gpu.library.unregister_host(src)
                if pinned_anew:
                    gpu.library.register_host(src, device_offset=1 << 20)
            assert np.array_equal(dst.copy_to_host()[GOOD[:, 1]], src[GOOD[:, 0]])
            src += 1
    assert modes == ["kernel", "loop", "loop"]
    assert taken["short"] == 0


def test_an_array_that_was_changed_in_place_is_seen(pair, taken):
    _gpu, src, dst, stream = pair
    src.flags.writeable = False
    ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
    assert taken == {"short": 0, "long": 1}
    ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
    assert taken == {"short": 1, "long": 1}


def test_another_array_of_the_same_id_is_seen(pair, taken):
    gpu, _src, dst, stream = pair
    (key,) = ns.plan_cache._pairs
    known = ns.plan_cache._pairs[key]
    other = gpu.pinned_array((64, 96), np.uint8)
    other[:] = 77
    # As if `src` had died and left its id.
    ns.plan_cache._pairs["swap", id(other), id(dst), 0] = known
    ns.swap_blocks(other, dst, GOOD, stream=stream).wait()
    assert taken == {"short": 0, "long": 1}
    assert (dst.copy_to_host()[GOOD[:, 1]] == 77).all()


def test_the_cache_keeps_no_array_alive(taken):
    with ns.simulate() as gpu:
        src, dst = gpu.pinned_array((64, 96), np.uint8), gpu.device_array((64, 96), np.uint8)
        stream = gpu.stream()
        for _ in range(3):
            ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert taken["short"] == 2
        alive = weakref.ref(src), weakref.ref(dst)
        del src, dst
        gc.collect()
        assert [ref() for ref in alive] == [None, None]


def test_many_pairs_do_not_grow_the_memory_for_ever():
    with ns.simulate() as gpu:
        dst, stream = gpu.device_array((64, 96), np.uint8), gpu.stream()
        maxsize = ns.plan_cache.info().maxsize
        sources = [gpu.pinned_array((64, 96), np.uint8) for _ in range(maxsize + 10)]
        for src in sources:
            ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert ns.plan_cache.info().currsize == maxsize
        del src, sources
        gc.collect()
        assert ns.plan_cache.info().currsize == 0  # nor do arrays that are gone


def test_a_failing_launch_is_raised_and_nothing_is_retried(pair, taken):
    gpu, src, dst, stream = pair
    gpu.driver.library.faults.add(Fault("cuLaunchKernel", 2))
    before = gpu.driver.library.calls["cuLaunchKernel"]
    with pytest.raises(ns.DriverCallError, match="cuLaunchKernel results in CUDA_ERROR_OUT_OF_MEM"):
        ns.swap_blocks(src, dst, GOOD, stream=stream)
    assert gpu.driver.library.calls["cuLaunchKernel"] == before + 1


def test_overlapping_destination_blocks_are_never_for_the_short_way(taken):
    with ns.simulate() as gpu:
        src, base = gpu.device_array((8, 64), np.uint8), gpu.pinned_array(1000, np.uint8)
        sliding = np.lib.stride_tricks.as_strided(base, (8, 64), (32, 1))
        good, bad = np.array([[0, 0], [2, 2], [4, 4]]), np.array([[0, 0], [2, 1], [4, 4]])
        stream = gpu.stream()
        for _ in range(2):
            ns.swap_blocks(src, sliding, good, stream=stream).wait()
            with pytest.raises(ns.BadPlanError, match="writes what"):
                ns.swap_blocks(src, sliding, bad, stream=stream)
    assert taken["short"] == 0


def test_an_object_for_the_current_stream_is_asked_every_time(pair):
    gpu, src, dst, _ = pair

    class Current:
        stream = gpu.stream(non_blocking=True)

        def __cuda_stream__(self):
            return self.stream.__cuda_stream__()

    current = Current()
    plan = ns.plan_blocks(src, dst, GOOD)
    for _ in range(2):
        plan.run(current).wait()
        ns.swap_blocks(src, dst, GOOD, stream=current).wait()
    current.stream = gpu.stream(non_blocking=True)
    filled = gpu.pinned_array((64, 96), np.uint8)
    for value, run in (
        (7, plan.run),
        (8, lambda stream: ns.swap_blocks(src, dst, GOOD, stream=stream)),
    ):
        filled[:] = value
        dst.copy_to_device(filled, stream=current.stream)  # must come before the swap
        run(stream=current).wait()
        gpu.synchronize()  # or what is pending would come after the look
        assert (dst.copy_to_host()[GOOD[:, 1]] == src[GOOD[:, 0]]).all()


def test_a_thread_without_a_context_may_swap_while_all_is_in_use(pair):
    """The short ways only take what is there; the long one knows how to make more."""
    _gpu, src, dst, stream = pair
    plan = ns.plan_blocks(src, dst, GOOD)
    plan.run(stream).wait()
    held = [ns.swap_blocks(src, dst, GOOD, stream=stream) for _ in range(4)]
    errors = []

    def work():
        try:
            held.append(ns.swap_blocks(src, dst, GOOD, stream=stream))
            held.append(plan.run(stream))
            held.append(plan.run(2))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
    for transfer in held:
        transfer.wait()


def test_read_only_rows_are_read(pair):
    _gpu, src, dst, stream = pair
    rows = np.frombuffer(GOOD.tobytes(), np.int64).reshape(-1, 2)
    assert not rows.flags.writeable
    for _ in range(2):
        ns.swap_blocks(src, dst, rows, stream=stream).wait()
    assert np.array_equal(dst.copy_to_host()[GOOD[:, 1]], src[GOOD[:, 0]])


def test_more_pairs_in_turn_than_fit_still_find_most(taken):
    """A random pair makes room: no cliff where a loop uses one pair more than fits."""
    ns.plan_cache.resize(16)
    try:
        with ns.simulate() as gpu:
            stream = gpu.stream()
            pairs = [
                (gpu.pinned_array((64, 96), np.uint8), gpu.device_array((64, 96), np.uint8))
                for _ in range(18)
            ]
            for src, dst in pairs * 20:
                ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
            info = ns.plan_cache.info()
        assert (info.maxsize, info.currsize) == (16, 16)
        assert info.hits + info.misses == 18 * 20
        assert info.hits > 0.6 * 18 * 20
        assert taken["short"] > 0.4 * 18 * 20
    finally:
        ns.plan_cache.resize(256)


def test_the_cache_can_be_resized_and_switched_off(pair, taken):
    _gpu, src, dst, stream = pair
    ns.plan_cache.resize(0)
    try:
        assert ns.plan_cache.info().currsize == 0
        for _ in range(3):
            ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert taken == {"short": 0, "long": 3}
        assert ns.plan_cache.info().currsize == 0
    finally:
        ns.plan_cache.resize(256)
    for bad in (-1, 1.5, 0.0, "8", True, False, None):
        with pytest.raises(ns.BadArgumentError, match="maxsize"):
            ns.plan_cache.resize(bad)


@pytest.mark.parametrize("axis", [0.0, False, "0", None, [0]])
def test_an_axis_that_is_none_is_refused_between_known_arrays_too(pair, taken, axis):
    _gpu, src, dst, stream = pair
    for _ in range(2):
        ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
    with pytest.raises(ns.BadArgumentError, match="block_axis"):
        ns.swap_blocks(src, dst, GOOD, stream=stream, block_axis=axis)
    with pytest.raises(ns.BadArgumentError, match="block_axis"):
        ns.exchange(src, dst, GOOD, GOOD[:0], stream=stream, block_axis=axis)


def test_no_more_pairs_are_kept_than_fit():
    with ns.simulate() as gpu:
        cache = PlanCache(2)
        assert cache.info() == (0, 0, 2, 0)
        devices, dst = devices_of(gpu.driver), gpu.device_array((64, 96), np.uint8)
        sources = [gpu.pinned_array((64, 96), np.uint8) for _ in range(4)]
        for src, kept in zip(sources, (1, 2, 2, 2), strict=True):
            assert cache.find(devices, src, dst, 0) is None
            layers = read_arrays(gpu.driver, src, dst, 0)
            known = cache.remember(devices, src, dst, 0, layers)
            assert cache.find(devices, src, dst, 0) is known
            assert cache.info().currsize == kept
        assert cache.info() == (4, 4, 2, 2)
        cache.resize(1)
        assert cache.info() == (4, 4, 1, 1)
        cache.clear()
        assert cache.info() == (0, 0, 1, 0)


def test_arrays_of_another_driver_are_not_those_that_are_known():
    src, dst = np.ones((64, 96), np.uint8), np.zeros((64, 96), np.uint8)
    for _ in range(2):
        with ns.simulate():
            for _ in range(2):
                ns.swap_blocks(src, dst, GOOD).wait()
    info = ns.plan_cache.info()
    assert (info.hits, info.misses) == (2, 2)


def test_what_cannot_be_asked_for_its_state_is_read_every_time(rng):
    class OnlyDLPack:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **how):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    with ns.simulate() as gpu:
        holder = OnlyDLPack(np.zeros((64, 96), np.uint8))
        for _ in range(2):
            holder.array, dst = random_bytes(rng, (64, 96)), gpu.device_array((64, 96), np.uint8)
            ns.swap_blocks(holder, dst, GOOD).wait()
            assert np.array_equal(dst.copy_to_host()[GOOD[:, 1]], holder.array[GOOD[:, 0]])
            assert ns.plan_cache.info()[::3] == (0, 0)


def test_layers_that_are_no_longer_pinned_are_seen(rng):
    with ns.simulate() as gpu:
        src = [random_bytes(rng, (64, 96)) for _ in range(2)]
        dst, stream = [gpu.device_array((64, 96), np.uint8) for _ in range(2)], gpu.stream()
        modes = []
        for step in range(4):
            for layer in src:
                if step == 0:
                    gpu.driver.library.register_host(layer)
                elif step == 2:
                    gpu.driver.library.unregister_host(layer)
            transfer = ns.swap_blocks(src, dst, GOOD, stream=stream)
            transfer.wait()
            modes.append(str(transfer.decision.mode))
            for layer, there in zip(src, dst, strict=True):
                assert np.array_equal(there.copy_to_host()[GOOD[:, 1]], layer[GOOD[:, 0]])
                layer += 1
        assert modes == ["kernel", "kernel", "loop", "loop"]
        assert ns.plan_cache.info()[:2] == (3, 1)


def test_many_streams_do_not_grow_the_memory_for_ever(pair, taken):
    gpu, src, dst, _ = pair
    (known,) = ns.plan_cache._pairs.values()
    for _ in range(20):
        stream = gpu.stream()
        before = taken["short"]
        for _ in range(3):
            ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert taken["short"] > before
        assert len(known._prepared) + len(known._makers) <= 16


def test_many_numbers_of_rows_do_not_grow_the_memory_for_ever():
    made = []
    by_count = ByCount(lambda rows: made.append(rows) or -rows)
    for _ in range(2):
        assert [by_count(rows) for rows in (1, 2, 1)] == [-1, -2, -1]
    assert made == [1, 2]
    for rows in range(3000):
        assert by_count(rows) == -rows
        assert len(by_count._made) <= 1024


def test_lists_of_layers_are_read_once(rng, monkeypatch):
    read = []
    view = block_array.view_array
    monkeypatch.setattr(
        block_array, "view_array", lambda array, name: read.append(name) or view(array, name)
    )
    with ns.simulate() as gpu:
        layers = [
            [make(gpu.pinned_array, rng), gpu.device_array((64, 96), np.uint8)] for _ in range(3)
        ]
        src, dst = ([pair[side] for pair in layers] for side in (0, 1))
        stream = gpu.stream()
        for count in (3, 5):
            mapping = rows_for(rng, count, 64)
            ns.swap_blocks(src, dst, mapping, stream=stream).wait()
            for one, other in zip(src, dst, strict=True):
                assert np.array_equal(other.copy_to_host()[mapping[:, 1]], one[mapping[:, 0]])
        assert len(read) == 6
        assert ns.plan_cache.info()[:2] == (1, 1)
        # Another list of the same arrays is the same; one array more or another order is not.
        ns.swap_blocks(list(src), tuple(dst), mapping, stream=stream).wait()
        assert len(read) == 6
        ns.swap_blocks(src[::-1], dst[::-1], mapping, stream=stream).wait()
        assert len(read) == 12


def make(array, rng):
    made = array((64, 96), np.uint8)
    made[:] = random_bytes(rng, (64, 96))
    return made


def test_an_interface_that_is_one_dict_changed_in_place_is_seen(rng):
    """Values are compared, never the object that the array gives away."""

    class Shared:
        def __init__(self, array):
            self.array = array
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    with ns.simulate() as gpu:
        src = make(gpu.pinned_array, rng)
        first, second = (gpu.device_array((64, 96), np.uint8) for _ in range(2))
        shared, stream = Shared(first), gpu.stream()
        for _ in range(3):
            ns.swap_blocks(src, shared, GOOD, stream=stream).wait()
        shared.__cuda_array_interface__["data"] = second.__cuda_array_interface__["data"]
        before = first.copy_to_host()
        src += 1
        ns.swap_blocks(src, shared, GOOD, stream=stream).wait()
        assert np.array_equal(second.copy_to_host()[GOOD[:, 1]], src[GOOD[:, 0]])
        assert np.array_equal(first.copy_to_host(), before)
        shared.__cuda_array_interface__["shape"] = (8, 96)
        with pytest.raises(ns.BadPlanError, match=r"block_mapping\[0\]: dst block 8"):
            ns.swap_blocks(src, shared, GOOD, stream=stream)
        shared.__cuda_array_interface__["shape"] = (64, 96)
        shared.__cuda_array_interface__["data"] = (shared.__cuda_array_interface__["data"][0], True)
        with pytest.raises(ns.BadPlanError, match="read-only"):
            ns.swap_blocks(src, shared, GOOD, stream=stream)


def test_an_array_whose_memory_moves_in_place_is_seen(rng, taken):
    with ns.simulate() as gpu:
        dst, stream = gpu.device_array((64, 96), np.uint8), gpu.stream()
        src = random_bytes(rng, (64, 96))
        gpu.driver.library.register_host(src)
        for _ in range(2):
            ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert taken["short"] == 1
        other = random_bytes(rng, (64, 96))
        src.__setstate__(other.__reduce__()[2])  # as `resize` may: another place, the same object
        ns.swap_blocks(src, dst, GOOD, stream=stream).wait()
        assert taken == {"short": 1, "long": 2}
        assert np.array_equal(dst.copy_to_host()[GOOD[:, 1]], other[GOOD[:, 0]])
