"""What users may hand over and do: refused in time, or safe. `SAFETY.md` lists all of it."""

import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import wild_pointers
from machines import Case, address_of, random_bytes

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.device.addresses import _read_ranges
from numba_swap.device.devices import devices_of
from numba_swap.driver.simulated import Fault

HELPERS = Path(__file__).parents[1] / "helpers"
ROOT = Path(__file__).parents[2]
MODES = ["batch", "loop", "kernel"]
REAL = pytest.param(Case("real", "auto"), marks=pytest.mark.gpu, id="real")
MACHINES = [pytest.param(Case("13.0", "auto"), id="simulated"), REAL]


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


def address(array):
    return address_of(array)


# -- raw pointers -------------------------------------------------------------------------------

REFUSALS = {
    # Freed simulated memory stays mapped, so there it is the driver that refuses.
    "simulated": {"BadPlanError", "UnsupportedArrayError", "DriverCallError"},
    "real": {"BadPlanError", "UnsupportedArrayError"},
}


@pytest.mark.parametrize("mode", MODES)
def test_pointers_that_cannot_be_right(gpu, mode):
    answers = wild_pointers.try_all(gpu, mode)
    assert len(answers) == 26
    refusals = REFUSALS["simulated"] | {"ModeUnavailableError"}
    assert set(answers.values()) <= refusals, answers


def ask_a_child(mode, kind):
    """Hand wild pointers to a real driver in a process of its own; return the answers."""
    result = subprocess.run(
        [sys.executable, str(HELPERS / "wild_pointers.py"), mode, kind],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_pointers_that_cannot_be_right_leave_the_process_alive(mode):
    answers = ask_a_child(mode, "wild")
    assert len(answers) == 23
    assert set(answers.values()) <= REFUSALS["real"], answers


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_freed_memory_is_refused(mode):
    answers = ask_a_child(mode, "freed")
    assert len(answers) == 3
    assert set(answers.values()) <= REFUSALS["real"], answers


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("validate", ["bounds", "full", "none"])
def test_good_pointers_pass_at_every_level(machine, validate, rng):
    content = random_bytes(rng, 5000)
    with machine.open() as gpu:
        src, dst = gpu.pinned_array(5000, np.uint8), gpu.device_array(5000, np.uint8)
        src[:] = content
        dst.copy_to_device(np.zeros(5000, np.uint8))
        # Odd addresses and lengths, one of no bytes, and one onto another address of no bytes.
        sizes = np.array([1, 777, 0, 3, 1999, 0])
        starts = np.array([3, 100, 4999, 1001, 2501, 0])
        call = (address(src) + starts, address(dst) + starts[::1] + 1, sizes)
        for mode in ("auto", *MODES):
            transfer = ns.swap_blocks_batch(*call, mode=mode, validate=validate)
            transfer.wait()
            assert transfer.nbytes == sizes.sum()
        want = np.zeros(5001, np.uint8)
        for start, size in zip(starts, sizes, strict=True):
            want[start + 1 : start + 1 + size] = content[start : start + size]
        assert np.array_equal(dst.copy_to_host(), want[:5000])
        assert ns.swap_blocks_batch([0], [0], [0], validate=validate).done()


@pytest.mark.parametrize(
    "value", ["all", "Full", "", None, True, 1, ["full"], np.zeros(2)], ids=repr
)
def test_levels_of_validation_are_three(gpu, value):
    with pytest.raises(ns.BadArgumentError, match="give 'bounds', 'full' or 'none'"):
        ns.swap_blocks_batch([], [], [], validate=value)


OVERLAPS = [
    # Offsets of source and destination in one pool, sizes, index of the row at fault, words.
    ([(0, 100), (10, 103)], [4, 4], 1, r"copy 1 .* writes what copy 0 .* writes too"),
    ([(0, 100), (50, 0)], [4, 4], 0, r"copy 0 .* reads what copy 1 .* writes"),
    ([(0, 100), (103, 200)], [4, 4], 1, r"copy 1 .* reads what copy 0 .* writes"),
    ([(0, 2)], [4], 0, r"copy 0 .* reads what it writes"),
    ([(0, 4), (4, 8)], [4, 4], 1, r"copy 1 .* reads what copy 0 .* writes"),  # merged
    ([(0, 90), (4, 94), (60, 97)], [4, 4, 1], 2, r"copy 2 .* writes what copy 1 .* writes too"),
]


@pytest.mark.parametrize(("pairs", "sizes", "row", "words"), OVERLAPS)
def test_full_validation_finds_overlaps(gpu, pairs, sizes, row, words):
    pool = gpu.device_array(256, np.uint8)
    pool.copy_to_device(np.arange(256, dtype=np.uint8))
    src, dst = address(pool) + np.array(pairs).T
    with pytest.raises(ns.BadPlanError, match=words) as error:
        ns.swap_blocks_batch(src, dst, sizes, validate="full")
    assert error.value.index == row
    assert np.array_equal(pool.copy_to_host(), np.arange(256, dtype=np.uint8))
    ns.swap_blocks_batch(src, dst, sizes).wait()  # "bounds" does not look


def test_full_validation_allows_what_does_not_meet(gpu):
    pool = gpu.device_array(256, np.uint8)
    pool.copy_to_device(np.arange(256, dtype=np.uint8))
    at = address(pool)
    # One source read twice, neighbours that touch, and a copy onto itself: nothing to move.
    src, dst = at + np.array([[0, 100], [0, 104], [108, 112], [50, 50]]).T
    transfer = ns.swap_blocks_batch(src, dst, [4, 4, 4, 9], validate="full")
    transfer.wait()
    assert transfer.nbytes == 12
    want = np.arange(256, dtype=np.uint8)
    want[100:104], want[104:108], want[112:116] = want[:4], want[:4], want[108:112]
    assert np.array_equal(pool.copy_to_host(), want)


def test_without_validation_the_driver_is_asked_twice(gpu):
    """The first address of each side stands for all."""
    host = [gpu.pinned_array(64, np.uint8) for _ in range(10)]
    device = [gpu.device_array(64, np.uint8) for _ in range(10)]
    src, dst = ([address(array) for array in arrays] for arrays in (host, device))
    calls = gpu.library.calls
    for validate, count in (("bounds", 20), ("full", 20), ("none", 2)):
        before = calls["cuPointerGetAttributes"]
        ns.swap_blocks_batch(src, dst, [64] * 10, validate=validate).wait()
        assert calls["cuPointerGetAttributes"] - before == count


def test_the_driver_is_asked_once_an_allocation(gpu):
    src, dst = gpu.pinned_array(1 << 16, np.uint8), gpu.device_array(1 << 16, np.uint8)
    starts = np.arange(0, 1 << 16, 16)
    before = gpu.library.calls["cuPointerGetAttributes"]
    ns.swap_blocks_batch(address(src) + starts, address(dst) + starts, starts * 0 + 7).wait()
    assert gpu.library.calls["cuPointerGetAttributes"] - before == 2


def test_many_allocations_of_many_sorts(gpu, rng):
    """Each with its own end, and neighbours that must not be merged over an end."""
    count = 200
    makers = {"pinned": gpu.pinned_array, "device": gpu.device_array, "managed": gpu.managed_array}
    kinds = list(makers)
    arrays = [makers[kinds[i % 3]](100 + i, np.uint8) for i in range(count)]
    target = gpu.device_array(100 * count, np.uint8)
    order = rng.permutation(count)
    src = np.array([address(array) for array in arrays])[order]
    dst = address(target) + 100 * np.arange(count)
    for array, value in zip(arrays, range(count), strict=True):
        content = np.full(100 + value, value, np.uint8)
        if hasattr(array, "copy_to_device"):
            array.copy_to_device(content)
        else:
            array[:] = content
    ns.swap_blocks_batch(src, dst, np.full(count, 100), mode="loop").wait()
    assert np.array_equal(target.copy_to_host(), np.repeat(order.astype(np.uint8), 100))
    sizes = np.full(count, 100)
    sizes[77] = 101 + order[77]
    with pytest.raises(ns.BadPlanError, match=r"src_ptrs\[77\] .* runs past") as error:
        ns.swap_blocks_batch(src, dst, sizes)
    assert error.value.index == 77


def test_rows_are_counted_with_those_of_no_bytes(gpu):
    """An error names the index in what the user gave, empty copies included."""
    src, dst = gpu.pinned_array(64, np.uint8), gpu.device_array(64, np.uint8)
    with pytest.raises(ns.BadPlanError, match=r"src_ptrs\[2\]") as error:
        ns.swap_blocks_batch([0, address(src), 0xDEAD0000], [0, *[address(dst)] * 2], [0, 4, 4])
    assert error.value.index == 2


def test_ranges_of_mapped_memory():
    """What the kernel lists: rights, neighbours, and memory that belongs to drivers."""
    lines = """\
00001000-00002000 r--p 00000000 08:01 42 /usr/lib/libx.so
00002000-00003000 rw-p 00001000 08:01 42 /usr/lib/libx.so
00003000-00004000 rw-p 00000000 00:00 0
00005000-00006000 rw-s 00000000 00:05 7 /dev/nvidiactl
00006000-00007000 rw-s 00000000 00:05 8 /dev/shm/one two
00007000-00008000 rw-s 00000000 00:05 9 /dev/shm/other
00008000-00009000 ---p 00000000 00:00 0
00009000-0000a000 r--p 00000000 00:00 0 [vvar]
0000a000-0000b000 rw-p 00000000 00:00 0 [stack]
""".splitlines(keepends=True)
    writable = [(0x2000, 0x4000), (0x6000, 0x7000), (0x7000, 0x8000), (0xA000, 0xB000)]
    assert _read_ranges(lines, writable=True) == writable
    assert _read_ranges(lines, writable=False) == [(0x1000, 0x4000), *writable[1:]]


# -- hazards of block ids -----------------------------------------------------------------------


def test_hazards_of_block_ids_name_their_rows_without_sorting(gpu, monkeypatch):
    """Within one pool ids tell all, in linear time: nothing is sorted."""
    from numba_swap.copies import from_arrays as plan

    pool = gpu.device_array((1000, 16), np.uint8)
    other = [gpu.device_array((1000, 16), np.uint8) for _ in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(plan, "check_hazards", None)
        patch.setattr(np, "argsort", None)
        for src, dst in ((pool, pool), (other, other)):
            rows = np.stack([np.arange(0, 500), np.arange(500, 1000)], axis=1)[::-1].copy()
            rows[20, 1] = rows[20, 0]  # onto itself
            ns.plan_blocks(src, dst, rows[:, ::-1].copy())
            assert ns.plan_blocks(src, dst, rows).nbytes == 499 * 16 * (1 if src is pool else 3)
            rows[333, 0] = rows[400, 1]
            with pytest.raises(ns.BadPlanError, match=r"\[333\] .* reads what .*\[400\]") as error:
                ns.plan_blocks(src, dst, rows)
            assert error.value.index == 333
    with pytest.raises(ns.BadPlanError, match=r"writes what"):
        ns.plan_blocks([pool, pool], [other[0], other[0]], [[0, 1]])


def test_views_of_one_pool_that_start_elsewhere_are_looked_at_by_address(gpu):
    pool = gpu.device_array((10, 16), np.uint8)
    ns.plan_blocks(pool[:5], pool[4:], [[0, 1], [1, 5]])
    with pytest.raises(ns.BadPlanError, match=r"\[1\] .* reads what .*\[0\]") as error:
        ns.plan_blocks(pool[:5], pool[4:], [[0, 0], [4, 3]])
    assert error.value.index == 1


def test_tangled_arrays_that_meet_are_looked_at_once(gpu, monkeypatch):
    from numba_swap.copies import from_arrays as plan

    seen = []
    check = plan.check_hazards
    monkeypatch.setattr(plan, "check_hazards", lambda copies: seen.append(check(copies)))
    base = gpu.pinned_array(1000, np.uint8)
    sliding = np.lib.stride_tricks.as_strided(base, (4, 10), (5, 1))
    ns.plan_blocks(base[500:].reshape(50, 10), sliding, [[0, 0], [1, 2]])
    assert len(seen) == 1
    ns.plan_blocks(base.reshape(100, 10), sliding, [[90, 0], [91, 2]])
    assert len(seen) == 2


def test_a_mapping_that_another_thread_changes_cannot_lead_astray(gpu):
    """It is told, or one of its states is copied; no byte outside the destination changes."""
    src, base = gpu.pinned_array((4000, 16), np.uint8), gpu.pinned_array((12000, 16), np.uint8)
    src[:], base[:] = 1, 0
    dst = base[4000:8000]
    good = np.stack([np.arange(4000), np.random.default_rng(0).permutation(4000)], axis=1)
    mapping, stop = good.copy(), threading.Event()

    def change():
        while not stop.is_set():
            mapping[::7] = 1 << 40
            mapping[::5] = -(1 << 40)
            mapping[:] = good

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            with suppress(ns.BadPlanError):
                ns.swap_blocks(src, dst, mapping, mode="batch").wait()
    finally:
        stop.set()
        thread.join()
    assert not base[:4000].any()
    assert not base[8000:].any()


# -- lifetimes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["batch", "loop"])
def test_numpy_refuses_to_resize_what_is_in_flight(gpu, mode):
    src, dst = np.ones((64, 64), np.uint8), gpu.device_array((64, 64), np.uint8)
    transfer = ns.swap_blocks(src, dst, [[0, 5], [3, 1]], mode=mode)
    with pytest.raises(ValueError, match="cannot resize"):
        src.resize((1 << 20, 64))
    transfer.wait()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [0, 1])
def test_memory_freed_under_a_transfer_is_an_error_of_the_wait(mode, side):
    """Arrays are kept alive; who frees their memory all the same gets an error, not a crash."""
    with ns.simulate() as gpu:
        arrays = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
        transfer = ns.swap_blocks(*arrays, [[0, 1], [2, 4], [5, 7]], mode=mode)
        gpu.library.free(address(arrays[side]))
        with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS") as caught:
            transfer.wait()
        assert caught.value.sticky


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_destroyed_under_a_transfer(gpu, mode):
    """What is in it is still done; the handle is refused from then on."""
    src, dst = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    src[:] = 5
    rows = np.array([[0, 1], [2, 4], [5, 7]])
    stream = gpu.stream()
    plan = ns.plan_blocks(src, dst, rows)
    runs = [plan.run(stream.handle, mode), ns.swap_blocks(src, dst, rows, stream=stream.handle)]
    gpu.library.destroy_stream(stream.handle)
    for transfer in runs:
        transfer.wait()
    assert (dst.copy_to_host()[rows[:, 1]] == 5).all()
    for again_in_it in (
        lambda: plan.run(stream.handle, mode),
        lambda: ns.swap_blocks(src, dst, rows, stream=stream.handle),
        lambda: ns.swap_blocks_batch([address(src)], [address(dst)], [9], stream=stream.handle),
    ):
        with pytest.raises(ns.DriverCallError, match="INVALID_HANDLE"):
            again_in_it()
    plan.run(mode=mode).wait()


@pytest.mark.parametrize("access", [True, False])
@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("devices", [(0, 1, 0), (1, 1, 0), (0, 1, 1), (1, 1, 1), (0, 0, 1)])
def test_arrays_and_streams_of_another_device(mode, devices, access):
    """Copied right wherever the stream is; the kernel says what it does not reach."""
    src_device, dst_device, stream_device = devices
    content = np.random.default_rng(3).integers(0, 256, (8, 64), dtype=np.uint8)
    with ns.simulate(devices=2, peer_access=access) as two:
        src, dst = (two.device_array((8, 64), np.uint8, device=k) for k in (src_device, dst_device))
        src.copy_to_device(content)
        dst.copy_to_device(np.zeros((8, 64), np.uint8))
        rows, stream = np.array([[0, 1], [2, 4], [5, 7]]), two.stream(device=stream_device)
        current = two.driver.current_context()
        if mode == "kernel" and src_device != dst_device and not access:
            with pytest.raises(
                ns.ModeUnavailableError, match=r"belongs to device \d, which device"
            ):
                ns.swap_blocks(src, dst, rows, stream=stream, mode=mode)
            assert not dst.copy_to_host().any()
            return
        ns.swap_blocks(src, dst, rows, stream=stream, mode=mode).wait()
        assert np.array_equal(dst.copy_to_host()[rows[:, 1]], content[rows[:, 0]])
        ns.swap_blocks(src, dst, rows, mode=mode).wait()
        assert two.driver.probe(0)[0] == current == two.driver.primary_context(0)  # as it was


@pytest.mark.parametrize("mode", MODES)
def test_two_streams_joined_by_an_event(gpu, mode):
    """The user's own kernel fills the source in one stream and reads the result in another."""
    pools, driver = [gpu.device_array((8, 64), np.uint8) for _ in range(3)], gpu.driver
    for pool in pools:
        pool.copy_to_device(np.zeros((8, 64), np.uint8))
    first, second, third = (gpu.stream(non_blocking=True) for _ in range(3))
    context = devices_of(driver).context(driver.current_context())

    def work(stream, source, target):
        gpu.library.enqueue(stream.handle, lambda: np.copyto(target._memory, source))

    def join(before, after):
        context.wait_for(before.handle, after.handle)

    work(first, np.uint8(7), pools[0])
    join(first, second)
    ns.swap_blocks(*pools[:2], [[0, 3], [2, 5], [4, 7]], stream=second, mode=mode)
    join(second, third)
    work(third, pools[1]._memory, pools[2])
    third.synchronize()
    assert pools[2]._memory[[3, 5, 7]].all(axis=1).all()
    assert not pools[2]._memory[[0, 1, 2, 4, 6]].any()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_two_real_streams_joined_by_an_event(mode):
    from numba import cuda

    @cuda.jit
    def fill(array, value, spin):
        i = cuda.grid(1)
        x = 0.0
        for k in range(spin):
            x += (k * 0.5) % 3.0
        if i < array.size:
            array[i] = value if x >= 0.0 else 0.0

    n, blocks = 1 << 16, 64
    first, second = cuda.stream(), cuda.stream()
    src, dst = cuda.device_array(n), cuda.device_array(n)
    back = cuda.pinned_array(n)
    pairs = np.stack([np.arange(blocks), np.arange(blocks)[::-1]], axis=1)
    for value in (1.0, 2.0, 3.0):
        fill[n // 256, 256, first](src, value, 50000)
        filled = cuda.event(timing=False)
        filled.record(first)
        filled.wait(second)
        ns.swap_blocks(
            src.reshape(blocks, -1), dst.reshape(blocks, -1), pairs, stream=second, mode=mode
        )
        swapped = cuda.event(timing=False)
        swapped.record(second)
        swapped.wait(first)
        dst.copy_to_host(back, stream=first)
        first.synchronize()
        assert (back == value).all()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_a_real_stream_dropped_under_a_transfer(mode):
    """Numba destroys a stream when its last reference goes."""
    from numba import cuda

    src, dst = cuda.pinned_array((512, 1 << 16), np.uint8), cuda.device_array((512, 1 << 16), "u1")
    src[:] = 5
    rows = np.stack([np.arange(512), np.random.default_rng(0).permutation(512)], axis=1)
    stream = cuda.stream()
    transfer = ns.swap_blocks(src, dst, rows, stream=stream, mode=mode)
    del stream
    gc.collect()
    transfer.wait()
    assert (dst.copy_to_host() == 5).all()


# -- memory -------------------------------------------------------------------------------------


def test_the_cache_keeps_nothing_of_an_ended_simulation():
    with ns.simulate() as gpu:
        src, dst = gpu.pinned_array((64, 96), np.uint8), gpu.device_array((64, 96), np.uint8)
        for _ in range(3):
            ns.swap_blocks(src, dst, np.array([[0, 8], [2, 4], [40, 0]])).wait()
        library = weakref.ref(gpu.library)
    assert ns.plan_cache.info().currsize
    del gpu, src, dst
    gc.collect()
    assert library() is None


def test_short_way_leaves_a_line_in_the_log(gpu, caplog):
    src, dst = gpu.pinned_array((64, 96), np.uint8), gpu.device_array((64, 96), np.uint8)
    rows, stream = np.array([[0, 8], [2, 4], [40, 0]]), gpu.stream()
    with caplog.at_level("DEBUG", logger="numba_swap"):
        for count in (1, 2, 3):
            ns.swap_blocks(src, dst, rows, stream=stream).wait()
            assert len(caplog.records) == count
    assert len({record.getMessage() for record in caplog.records}) == 1


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.parametrize(("mode", "swaps"), [("batch", 2500), ("loop", 10_000), ("kernel", 300)])
def test_repeated_swaps_keep_memory_flat(gpu, mode, swaps):
    src, dst = gpu.pinned_array((16, 32), np.uint8), gpu.device_array((16, 32), np.uint8)
    rng, stream = np.random.default_rng(0), gpu.stream()
    calls = gpu.library.calls
    made = ("cuMemHostAlloc", "cuMemAlloc", "cuEventCreate", "cuStreamCreate")
    for step in range(swaps):
        rows = np.stack([rng.permutation(16)[:4], rng.permutation(16)[:4]], axis=1)
        ns.swap_blocks(src, dst, rows, stream=stream, mode=mode).wait()
        if step == swaps // 5:
            first, before = resident_bytes(), [calls[name] for name in made]
    assert [calls[name] for name in made] == before
    assert resident_bytes() - first < 4 << 20
    assert not in_flight._unfinished


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
def test_ten_thousand_real_swaps_keep_memory_flat(mode):
    from numba import cuda

    src, dst = cuda.pinned_array((256, 2048), np.uint8), cuda.device_array((256, 2048), np.uint8)
    rng, stream = np.random.default_rng(0), cuda.stream()
    for step in range(10_000):
        rows = np.stack([rng.permutation(256)[:64], rng.permutation(256)[:64]], axis=1)
        ns.swap_blocks(src, dst, rows, stream=stream, mode=mode).wait()
        if step == 2000:
            host, (device, _) = resident_bytes(), cuda.current_context().get_memory_info()
    assert resident_bytes() - host < 8 << 20
    assert device - cuda.current_context().get_memory_info()[0] <= 0


def test_a_million_descriptors(gpu, rng):
    count, size = 1_000_000, 3
    src, dst = gpu.pinned_array(4 * count, np.uint8), gpu.device_array(4 * count, np.uint8)
    src[:] = random_bytes(rng, 4 * count)
    dst.copy_to_device(np.zeros(4 * count, np.uint8))
    order = rng.permutation(count)
    call = (address(src) + 4 * np.arange(count), address(dst) + 4 * order, np.full(count, size))
    transfer = ns.swap_blocks_batch(*call, mode="batch", validate="full")
    transfer.wait()
    assert transfer.decision.copies == count
    got = dst.copy_to_host().reshape(-1, 4)
    assert np.array_equal(got[order, :size], np.array(src).reshape(-1, 4)[:, :size])
    assert not got[:, size:].any()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to_device", [True, False])
def test_a_million_real_descriptors(mode, to_device, rng):
    from numba import cuda

    count, size = 1_000_000, 61
    content = rng.integers(1, 256, (count, 64), dtype=np.uint8)
    host = cuda.pinned_array((count, 64), np.uint8)
    host[:] = content if to_device else 0
    device = cuda.to_device(np.zeros_like(content) if to_device else content)
    src, dst = (host, device) if to_device else (device, host)
    order = rng.permutation(count)
    call = (address(src) + 64 * np.arange(count), address(dst) + 64 * order, np.full(count, size))
    ns.swap_blocks_batch(*call, mode=mode, validate="full").wait()
    got = device.copy_to_host() if to_device else host
    assert np.array_equal(got[order, :size], content[:, :size])
    assert not got[:, size:].any()


def test_an_error_of_a_query_is_told_and_nothing_moves(gpu):
    src, dst = gpu.pinned_array((8, 64), np.uint8), gpu.device_array((8, 64), np.uint8)
    dst.copy_to_device(np.zeros((8, 64), np.uint8))
    src[:] = 1
    for call in (
        lambda: ns.swap_blocks(src, dst, [[0, 1]]),
        lambda: ns.swap_blocks_batch([address(src)], [address(dst)], [8]),
    ):
        gpu.library.faults.add(Fault("cuPointerGetAttributes", 999))
        with pytest.raises(ns.DriverCallError, match="Call to cuPointerGetAttributes"):
            call()
        gpu.library.faults.clear()
    assert not dst.copy_to_host().any()
