"""Memory that the driver knows in pieces: partly registered, elsewhere on the GPU, in chunks."""

from types import SimpleNamespace

import numpy as np
import pytest
from machines import make_array

import numba_swap as ns
from numba_swap.driver.simulated.memory import Allocation, Kind

MODES = ["batch", "loop", "kernel"]
BLOCK = 1000
PARTS = {
    "beginning": slice(0, 8500),
    "middle": slice(4500, 8500),
    "two in the middle": [slice(2000, 3500), slice(9500, 11000)],
    "end": slice(8500, None),
    "within a block at its end": slice(4990, 5000),
    "within a block at its beginning": slice(5000, 5010),
}


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


def partly_registered(gpu, parts):
    pool = np.random.default_rng(1).integers(1, 200, (16, BLOCK)).astype(np.uint8)
    for part in parts if isinstance(parts, list) else [parts]:
        gpu.library.register_host(pool.reshape(-1)[part])
    return pool


def zeros_like(gpu, pool):
    device = gpu.device_array(pool.shape, np.uint8)
    device.copy_to_device(np.zeros(pool.shape, np.uint8))
    return device


def address(array):
    return array.__cuda_array_interface__["data"][0]


def swaps(pool, device, rows):
    """The same rows, out of the pool and into it, by every verb that takes host memory."""
    rows = np.array(rows)
    back = rows[:, ::-1]
    host_at = pool.ctypes.data + BLOCK * rows[:, 0]
    device_at = address(device) + BLOCK * rows[:, 1]
    sizes = np.full(len(rows), BLOCK)
    none = rows[:0]
    return {
        "swap_blocks, in": lambda **how: ns.swap_blocks(pool, device, rows, **how),
        "swap_blocks, out": lambda **how: ns.swap_blocks(device, pool, back, **how),
        "layers": lambda **how: ns.swap_blocks([pool], [device], rows, **how),
        "pointers, in": lambda **how: ns.swap_blocks_batch(host_at, device_at, sizes, **how),
        "pointers, out": lambda **how: ns.swap_blocks_batch(device_at, host_at, sizes, **how),
        "exchange": lambda **how: ns.exchange(device, pool, none, rows, **how),
    }


VERBS = ["swap_blocks, in", "swap_blocks, out", "layers"]
VERBS += ["pointers, in", "pointers, out", "exchange"]


# -- partly registered --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "batch", "loop"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("part", PARTS)
def test_a_block_over_the_border_of_a_registered_part_is_refused(gpu, part, verb, mode):
    pool = partly_registered(gpu, PARTS[part])
    device, before = zeros_like(gpu, pool), pool.copy()
    rows = [[i, 15 - i] for i in range(16)]
    with pytest.raises(ns.BadPlanError, match=r"regist|pin") as caught:
        swaps(pool, device, rows)[verb](mode=mode)
    gpu.synchronize()
    assert not device._memory.any()
    assert np.array_equal(pool, before)
    if part != "beginning" or "pointers" in verb:
        border = {"beginning": 8, "middle": 4, "two in the middle": 3, "end": 8}
        assert caught.value.index == border.get(part, 4 if "end" in part else 5)


@pytest.mark.parametrize("mode", ["auto", "batch", "loop"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("part", ["middle", "two in the middle", "end"])
def test_blocks_beside_and_inside_a_registered_part_are_copied(gpu, part, verb, mode):
    pool = partly_registered(gpu, PARTS[part])
    device, content = zeros_like(gpu, pool), pool.copy()
    inside = {"middle": [5, 6, 7], "two in the middle": [2, 10], "end": [9, 12, 15]}[part]
    hosts = [0, 1, *inside]
    rows = [[i, 15 - i] for i in hosts]
    swaps(pool, device, rows)[verb](mode=mode).wait()
    expected = np.zeros_like(content)
    if "out" in verb:
        content[hosts] = 0
    else:
        expected[[15 - i for i in hosts]] = content[hosts]
    assert np.array_equal(device.copy_to_host(), expected)
    assert np.array_equal(pool, content)


@pytest.mark.parametrize("verb", ["swap_blocks, in", "exchange", "pointers, in"])
def test_neighbours_are_not_merged_over_the_border(gpu, verb):
    pool = partly_registered(gpu, slice(4000, 8000))
    device = zeros_like(gpu, pool)
    rows = [[i, i] for i in range(16)]
    swaps(pool, device, rows)[verb](mode="loop").wait()
    assert np.array_equal(device.copy_to_host(), pool)


@pytest.mark.parametrize("part", ["middle", "end"])
def test_rows_exchanged_in_pairs_are_looked_at_too(gpu, part):
    pool = partly_registered(gpu, PARTS[part])
    device, before = zeros_like(gpu, pool), pool.copy()
    rows = np.array([[i, 15 - i] for i in range(16)])
    with pytest.raises(ns.BadPlanError, match="begins in ordinary memory"):
        ns.exchange(device, pool, rows[:, ::-1], rows)
    gpu.synchronize()
    assert np.array_equal(pool, before)
    some = rows[[0, 1, 9, 12]]
    ns.exchange(device, pool, some[:, ::-1], some).wait()
    assert np.array_equal(device.copy_to_host()[some[:, 1]], before[some[:, 0]])
    assert not pool[some[:, 0]].any()


def test_the_row_at_fault_is_described(gpu):
    pool = partly_registered(gpu, PARTS["middle"])
    device = zeros_like(gpu, pool)
    start = pool.ctypes.data + 4000
    with pytest.raises(ns.BadPlanError) as caught:
        ns.swap_blocks(pool, device, [[0, 1], [4, 3]])
    assert str(caught.value) == (
        f"block_mapping[1] (source block 4 to destination block 3), src = {start:#x} with 1000 "
        "bytes begins in ordinary memory and ends in memory that is registered (pinned) with "
        "CUDA, and no copy may do both: register all or none"
    )
    with pytest.raises(ns.BadPlanError, match=r"block 8 .* runs past its pinned allocation"):
        ns.swap_blocks(pool, device, [[8, 3]])
    with pytest.raises(ns.BadPlanError, match=r"^dst_ptrs\[1\] = .* begins in ordinary memory"):
        ns.swap_blocks_batch([address(device)] * 2, [start - 4000, start], [8, BLOCK])


def test_runs_of_blocks_are_looked_at_one_by_one(gpu):
    """A block with a hole over a registered part does not touch it."""
    memory = np.random.default_rng(1).integers(1, 200, (8, 2, 100)).astype(np.uint8)
    gpu.library.register_host(memory[3, 0, 60:])
    device = zeros_like(gpu, memory[:, :, :50])
    rows = [[i, i] for i in range(8)]
    ns.swap_blocks(memory[:, :, :50], device, rows).wait()
    assert np.array_equal(device.copy_to_host(), memory[:, :, :50])
    with pytest.raises(ns.BadPlanError, match="begins in ordinary memory") as caught:
        ns.plan_blocks(memory[:, :, 20:70], device, rows)
    assert caught.value.index == 3


def test_more_registered_parts_than_are_scanned(gpu):
    pool = np.random.default_rng(1).integers(1, 200, (200, 64)).astype(np.uint8)
    for block in range(1, 200, 2):
        gpu.library.register_host(pool[block])
    device = zeros_like(gpu, pool)
    rows = np.stack([np.random.default_rng(2).permutation(200), np.arange(200)], axis=1)
    ns.swap_blocks(pool, device, rows, mode="batch").wait()
    assert np.array_equal(device.copy_to_host(), pool[rows[:, 0]])
    at = pool.ctypes.data + 64 * rows[:, 0]
    device.copy_to_device(0)
    to = address(device) + 64 * rows[:, 1]
    ns.swap_blocks_batch(at, to, np.full(200, 64), mode="batch").wait()
    assert np.array_equal(device.copy_to_host(), pool[rows[:, 0]])
    ends = np.full(200, 64)
    ends[77] = 65
    with pytest.raises(ns.BadPlanError) as caught:
        ns.swap_blocks_batch(at, to, ends)
    assert caught.value.index == 77


# -- another address on the GPU -----------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("part", [slice(None), slice(4000, 8000)], ids=["whole", "part"])
def test_memory_with_another_address_on_the_gpu_is_for_the_loop(gpu, verb, part):
    pool = np.random.default_rng(1).integers(1, 200, (16, BLOCK)).astype(np.uint8)
    gpu.library.register_host(pool.reshape(-1)[part], device_offset=1 << 30)
    device, content = zeros_like(gpu, pool), pool.copy()
    rows = [[i, 15 - i] for i in range(16)]
    run = swaps(pool, device, rows)[verb]
    for mode in ("batch", "kernel"):
        with pytest.raises(ns.ModeUnavailableError) as caught:
            run(mode=mode)
        words = "has another address on the GPU"
        assert words in caught.value.reason or (mode, part.start) == ("kernel", 4000)
    transfer = run()
    transfer.wait()
    assert transfer.decision.modes == ("loop",)
    expected = np.zeros_like(content)
    if "out" in verb:
        content[:] = 0
    else:
        expected[:] = content[::-1]
    assert np.array_equal(device.copy_to_host(), expected)
    assert np.array_equal(pool, content)


def test_a_later_layer_with_another_address_on_the_gpu(gpu):
    pools = [np.ones((4, 64), np.uint8) for _ in range(3)]
    devices = [gpu.device_array((4, 64), np.uint8) for _ in pools]
    gpu.library.register_host(pools[0])
    gpu.library.register_host(pools[1])
    gpu.library.register_host(pools[2], device_offset=1 << 30)
    with pytest.raises(ns.ModeUnavailableError, match="another address on the GPU, which cuMem"):
        ns.swap_blocks(pools, devices, [[0, 1]], mode="batch")
    ns.swap_blocks(pools[:2], devices[:2], [[0, 1]], mode="batch").wait()


# -- device memory in chunks --------------------------------------------------------------------

CHUNK = 4096


def chunks(gpu, blocks=48):
    return gpu.device_array((blocks, BLOCK), np.uint8, chunk_bytes=CHUNK)


@pytest.mark.parametrize("mode", ["auto", *MODES])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("host", ["pinned", "pageable"])
def test_blocks_over_the_border_of_chunks_are_copied(gpu, host, verb, mode):
    if (host, mode) == ("pageable", "kernel"):
        mode = "loop"
    device = chunks(gpu)
    pool = np.random.default_rng(1).integers(1, 200, (48, BLOCK)).astype(np.uint8)
    pool = make_array(gpu, host, pool)
    device.copy_to_device(7)
    content = pool.copy()
    rows = [[i, 47 - i] for i in range(0, 48, 3)]
    swaps(pool, device, rows)[verb](mode=mode).wait()
    expected = np.full_like(content, 7)
    hosts = [i for i, _ in rows]
    if "out" in verb:
        content[hosts] = 7
    else:
        expected[[47 - i for i in hosts]] = content[hosts]
    assert np.array_equal(device.copy_to_host(), expected)
    assert np.array_equal(pool, content)


def test_neighbours_in_chunks_are_one_copy(gpu):
    device, pool = chunks(gpu), gpu.pinned_array((48, BLOCK), np.uint8)
    plan = ns.plan_blocks(pool, device, [[i, i] for i in range(48)])
    assert len(plan) == 1


def test_a_block_longer_than_chunks(gpu):
    device = gpu.device_array((3, 10_000), np.uint8, chunk_bytes=512)
    pool = gpu.pinned_array((3, 10_000), np.uint8)
    pool[:] = np.arange(3)[:, None] + 1
    for mode in ("batch", "loop"):
        device.copy_to_device(0)
        ns.swap_blocks(pool, device, [[0, 2], [1, 0]], mode=mode).wait()
        assert device.copy_to_host()[:, [0, 5000, 9999]].tolist() == [[2] * 3, [0] * 3, [1] * 3]


def test_exchange_within_chunks_both_ways(gpu):
    device, pool = chunks(gpu, 12), gpu.pinned_array((12, BLOCK), np.uint8)
    pool[:] = 1 + np.arange(12)[:, None]
    device.copy_to_device(np.repeat(101 + np.arange(12)[:, None], BLOCK, axis=1))
    out = np.stack([np.arange(12), np.arange(12)[::-1]], axis=1)
    ns.exchange(device, pool, out, out[:, ::-1]).wait()
    assert (device.copy_to_host() == 12 - np.arange(12)[:, None]).all()
    assert (pool == 112 - np.arange(12)[:, None]).all()


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_driver_is_asked_once_a_chunk(gpu, repeats):
    """Of what is copied, and not once a row."""
    count = 400
    device = gpu.device_array((8 * count, 512), np.uint8, chunk_bytes=CHUNK)
    pool = gpu.pinned_array((8 * count, 512), np.uint8)
    gpu.driver.current_context()
    for rows, asked in ((np.arange(16), 16), (np.arange(0, 8 * count, 2), count)):
        rows = np.random.default_rng(1).permutation(rows)
        mapping = np.stack([rows, rows], axis=1)
        for _ in range(repeats):
            before = gpu.library.calls.copy()
            plan = ns.plan_blocks(pool, device, mapping)
            calls = gpu.library.calls - before
            # Until they are too many to look through, then once each; and the arrays themselves.
            assert calls["cuPointerGetAttributes"] <= asked + 32 + 4
            assert calls["cuMemRetainAllocationHandle"] == calls["cuMemRelease"] == 2
        assert plan.nbytes == 512 * len(rows)


def test_a_gap_between_chunks_is_refused(gpu):
    device, pool = chunks(gpu), gpu.pinned_array((48, BLOCK), np.uint8)
    gpu.library.free(address(device) + 2 * CHUNK)  # blocks 8 to 12
    whole = [[i, i] for i in (0, 4, 7, 13, 47)]
    ns.swap_blocks(pool, device, whole, mode="batch").wait()
    for block, words in ((8, "runs past its device allocation"), (9, "is no CUDA memory")):
        with pytest.raises(ns.BadPlanError, match=words) as caught:
            ns.swap_blocks(pool, device, [[0, 0], [block, block]])
        assert caught.value.index == 1
    src, dst = [pool.ctypes.data] * 2, [address(device), address(device) + 8000]
    with pytest.raises(ns.BadPlanError, match=r"dst_ptrs\[1\] = .* runs past its device"):
        ns.swap_blocks_batch(src, dst, [8, BLOCK])


def beside(gpu, *, whole, device=0):  # `whole`: of each, that it is no chunk
    """Two allocations side by side, as an array; by hand, for none can be had so on purpose."""
    memory = np.zeros(2 * CHUNK, np.uint8)
    gpu.driver.initialize()
    for i, ordinal in enumerate((0, device)):
        part = memory[i * CHUNK : (i + 1) * CHUNK]
        gpu.library.memory._insert(
            Allocation(part.ctypes.data, CHUNK, Kind.DEVICE, ordinal, part, whole=whole[i])
        )

    data, shape = (memory.ctypes.data, False), (8, 1024)
    interface = {"shape": shape, "typestr": "|u1", "data": data, "version": 3}
    return SimpleNamespace(__cuda_array_interface__=interface)


@pytest.mark.parametrize(
    ("whole", "device"),
    [((True, True), 0), ((False, True), 0), ((True, False), 0), ((False, False), 1)],
)
def test_allocations_side_by_side_are_no_chunks(gpu, whole, device):
    """Nor are chunks of two GPUs one memory."""
    array, pool = beside(gpu, whole=whole, device=device), gpu.pinned_array((8, 1024), np.uint8)
    with pytest.raises(ns.BadPlanError, match=r"dst spans .* is longer than its memory$"):
        ns.plan_blocks(pool, array, [[0, 0]])
    at = address(array) + CHUNK - 8
    with pytest.raises(ns.BadPlanError, match="runs past its device allocation"):
        ns.swap_blocks_batch([pool.ctypes.data], [at], [16])
    assert ns.plan_blocks(pool, beside(gpu, whole=(False, False)), [[0, 0]])


def test_an_array_beyond_its_last_chunk_is_refused(gpu):
    device, pool = chunks(gpu, 8), gpu.pinned_array((9, BLOCK), np.uint8)
    longer = SimpleNamespace(
        __cuda_array_interface__={**device.__cuda_array_interface__, "shape": (9, BLOCK)}
    )
    with pytest.raises(ns.BadPlanError, match=r"dst spans .* is longer than its memory$"):
        ns.plan_blocks(pool, longer, [[0, 0]])
