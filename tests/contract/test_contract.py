"""The same promises, over every mode, on simulated drivers and on a real GPU (`-m gpu`)."""

import gc
import itertools

import numpy as np
import pytest
from machines import MEMORY_KINDS, address_of, make_array, random_bytes, read_array

import numba_swap as ns

KIND_PAIRS = [
    pair
    for pair in itertools.product(MEMORY_KINDS, MEMORY_KINDS)
    if pair != ("pageable", "pageable")
]


def expected(src, dst, mapping, axis=0):
    result = dst.copy()
    out, source = np.moveaxis(result, axis, 0), np.moveaxis(src, axis, 0)
    for i, j in mapping:
        out[j] = source[i]
    return result


@pytest.mark.parametrize(("src_kind", "dst_kind"), KIND_PAIRS)
def test_every_kind_of_memory(gpu, mode, rng, src_kind, dst_kind):
    content, target = random_bytes(rng, (40, 3, 37)), random_bytes(rng, (33, 3, 37))
    mapping = np.stack([rng.permutation(40)[:29], rng.permutation(33)[:29]], axis=1)
    src, dst = make_array(gpu, src_kind, content), make_array(gpu, dst_kind, target)
    if mode == "kernel" and "pageable" in (src_kind, dst_kind):
        with pytest.raises(ns.ModeUnavailableError, match="cannot reach pageable memory"):
            ns.swap_blocks(src, dst, mapping, mode=mode)
        assert np.array_equal(read_array(gpu, dst), target)
        return
    transfer = ns.swap_blocks(src, dst, mapping, mode=mode)
    transfer.wait()
    assert transfer.done()
    assert transfer.nbytes == 29 * 3 * 37
    assert np.array_equal(read_array(gpu, dst), expected(content, target, mapping))
    assert np.array_equal(read_array(gpu, src), content)
    if mode != "auto":
        assert transfer.decision.mode == mode


@pytest.mark.parametrize(
    "kinds", [("pinned", "device"), ("device", "pinned"), ("device", "device")]
)
def test_every_small_size_and_alignment(gpu, mode, rng, kinds):
    """Sizes from 1 byte, at every remainder of both addresses modulo 16, nothing else touched."""
    sizes = [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 255, 260]
    cells = [(s, d, n) for s in range(16) for d in range(0, 16, 3) for n in sizes[(s + d) % 5 :: 5]]
    content = random_bytes(rng, len(cells) * 320)
    target = random_bytes(rng, len(cells) * 320)
    src, dst = (make_array(gpu, k, c) for k, c in zip(kinds, (content, target), strict=True))
    src_base, dst_base = (address_of(a) for a in (src, dst))
    order = rng.permutation(len(cells))
    offsets = [(i * 320 + s, i * 320 + d, n) for i, (s, d, n) in enumerate(cells)]
    src_at, dst_at, lengths = np.array([offsets[i] for i in order]).T
    ns.swap_blocks_batch(src_base + src_at, dst_base + dst_at, lengths, mode=mode).wait()
    want = target.copy()
    for s, d, n in offsets:
        want[d : d + n] = content[s : s + n]
    assert np.array_equal(read_array(gpu, dst), want)


def test_one_large_block_among_small_ones(gpu, mode, rng):
    sizes = np.array([700_001, 1, 16, 40_000, 4096, 3])
    starts = np.concatenate(([0], np.cumsum(sizes + 5)[:-1]))
    content = random_bytes(rng, int(sizes.sum()) + 100)
    target = random_bytes(rng, len(content))
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    src_at, dst_at = (address_of(a) + starts for a in (src, dst))
    transfer = ns.swap_blocks_batch(src_at, dst_at, sizes, mode=mode)
    transfer.wait()
    assert transfer.nbytes == sizes.sum()
    want = target.copy()
    for start, size in zip(starts, sizes, strict=True):
        want[start : start + size] = content[start : start + size]
    assert np.array_equal(read_array(gpu, dst), want)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_block_axis(gpu, mode, rng, axis):
    content, target = random_bytes(rng, (6, 7, 8), np.float32), random_bytes(rng, (6, 7, 8), "f4")
    mapping = [[0, 5], [3, 1], [5, 2]]
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    ns.swap_blocks(src, dst, mapping, block_axis=axis, mode=mode).wait()
    want = expected(content, target, mapping, axis)
    assert read_array(gpu, dst).tobytes() == want.tobytes()


def test_strided_and_fortran_source(gpu, mode, rng):
    pool = gpu.pinned_array((10, 6, 16), np.int32)
    pool[...] = random_bytes(rng, pool.shape, np.int32)
    view = pool[::2, 1:5, :12]
    target = random_bytes(rng, (5, 4, 12), np.int32)
    dst = make_array(gpu, "device", target)
    mapping = [[0, 4], [1, 0], [4, 2]]
    plan = ns.plan_blocks(view, dst, mapping)
    assert len(plan) == 3  # a box each, of four rows of twelve elements
    plan.run(mode=mode).wait()
    assert np.array_equal(read_array(gpu, dst), expected(np.array(view), target, mapping))

    fortran = gpu.pinned_array((12, 4, 5), np.int32).T
    fortran[...] = random_bytes(rng, (5, 4, 12), np.int32)
    ns.swap_blocks(fortran, dst, mapping, mode=mode).wait()
    assert np.array_equal(read_array(gpu, dst), expected(np.array(fortran), target, mapping))


def test_other_dtype_and_shape_of_the_same_bytes(gpu, mode, rng):
    content = random_bytes(rng, (4, 6, 16), np.uint8)
    target = random_bytes(rng, (3, 24), np.float32)
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    ns.swap_blocks(src, dst, [[3, 0], [1, 2]], mode=mode).wait()
    want = target.view(np.uint8).reshape(3, 96).copy()
    want[0], want[2] = content[3].ravel(), content[1].ravel()
    assert read_array(gpu, dst).tobytes() == want.tobytes()


def test_layers_share_a_mapping(gpu, mode, rng):
    contents = [random_bytes(rng, (9, 50 + i)) for i in range(3)]
    targets = [random_bytes(rng, (7, 50 + i)) for i in range(3)]
    src = [make_array(gpu, "pinned", c) for c in contents]
    dst = [make_array(gpu, "device", t) for t in targets]
    mapping = [[8, 0], [0, 6], [4, 3]]
    transfer = ns.swap_blocks(src, dst, mapping, mode=mode)
    transfer.wait()
    assert transfer.nbytes == 3 * (50 + 51 + 52)
    for array, content, target in zip(dst, contents, targets, strict=True):
        assert np.array_equal(read_array(gpu, array), expected(content, target, mapping))


def test_neighbours_merge_into_one_copy(gpu, mode, rng):
    content, target = random_bytes(rng, (20, 64)), random_bytes(rng, (20, 64))
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    mapping = [[i, i + 3] for i in range(10)] + [[15, 0]]
    plan = ns.plan_blocks(src, dst, mapping)
    assert len(plan) == 2
    assert plan.nbytes == 11 * 64
    plan.run(mode=mode).wait()
    assert np.array_equal(read_array(gpu, dst), expected(content, target, mapping))


def test_plan_runs_again_with_new_contents(gpu, mode, rng):
    target = random_bytes(rng, (8, 100))
    src = gpu.pinned_array((8, 100), np.uint8)
    dst = make_array(gpu, "device", target)
    plan = ns.plan_blocks(src, dst, [[1, 7], [6, 2]])
    stream = gpu.stream()
    for _ in range(3):
        src[...] = random_bytes(rng, src.shape)
        plan.run(stream=stream, mode=mode).wait()
        target = expected(np.array(src), target, [[1, 7], [6, 2]])
        assert np.array_equal(read_array(gpu, dst), target)


def test_explain_says_what_run_does(gpu, mode, rng):
    src, dst = gpu.pinned_array((8, 100), np.uint8), gpu.device_array((8, 100), np.uint8)
    plan = ns.plan_blocks(src, dst, [[1, 7], [6, 2]])
    decision = plan.explain(mode=mode)
    transfer = plan.run(mode=mode)
    transfer.wait()
    assert transfer.decision == decision._replace(estimates=())
    # What is staged is pageable memory; of other memory it is told where it is what is forced.
    told = {estimate.mode for estimate in decision.estimates}
    assert told - {ns.Mode.STAGED} == set(ns.Mode) - {ns.Mode.STAGED}
    assert str(decision.mode) in str(decision)
    assert decision.reason in str(decision)
    assert decision.direction == ns.Direction.H2D


@pytest.mark.parametrize("own_stream", [False, True])
def test_ordered_after_and_before_work_in_its_stream(gpu, mode, rng, own_stream):
    """Source written and destination read by work in the same stream, without waiting."""
    stream = gpu.stream() if own_stream else None
    keyword = {} if stream is None else {"stream": stream}
    content = random_bytes(rng, (64, 4096))
    mapping = np.stack([rng.permutation(64), rng.permutation(64)], axis=1)
    first, second = gpu.device_array(content.shape, "u1"), gpu.device_array(content.shape, "u1")
    staged = gpu.pinned_array(content.shape, np.uint8)
    staged[...] = content
    first.copy_to_device(staged, **keyword)
    ns.swap_blocks(first, second, mapping, stream=stream, mode=mode)
    back = gpu.pinned_array(content.shape, np.uint8)
    ns.swap_blocks(second, back, mapping[:, ::-1], stream=stream, mode=mode).wait()
    assert np.array_equal(back, content)


def test_dropping_everything_is_safe(gpu, mode, rng):
    """The library keeps the source alive until the copy is over, though nobody else does."""
    dst = make_array(gpu, "device", np.zeros((16, 5000), np.uint8))
    contents = [random_bytes(rng, (4, 5000)) for _ in range(4)]
    for i, content in enumerate(contents):
        src = make_array(gpu, "pinned", content)
        ns.swap_blocks(src, dst, [[k, 4 * i + k] for k in (3, 1, 0, 2)], mode=mode)
        del src
        gc.collect()
    gpu.synchronize()
    assert np.array_equal(read_array(gpu, dst), np.concatenate(contents))


def test_empty_mapping_is_a_finished_transfer(gpu, mode):
    src, dst = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
    for mapping in ([], np.zeros((0, 2), np.int32)):
        transfer = ns.swap_blocks(src, dst, mapping, mode=mode)
        assert transfer.done()
        assert transfer.nbytes == 0
        transfer.wait()
    assert ns.swap_blocks_batch([], [], [], mode=mode).done()


def test_zero_sizes_are_dropped(gpu, mode, rng):
    content, target = random_bytes(rng, 64), random_bytes(rng, 64)
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    s, d = (address_of(a) for a in (src, dst))
    transfer = ns.swap_blocks_batch([s, 0, s + 8], [d, d, d + 32], [4, 0, 5], mode=mode)
    transfer.wait()
    assert transfer.nbytes == 9
    want = target.copy()
    want[:4], want[32:37] = content[:4], content[8:13]
    assert np.array_equal(read_array(gpu, dst), want)


def test_bad_input_moves_no_byte(gpu, mode, rng):
    content, target = random_bytes(rng, (8, 100)), random_bytes(rng, (8, 100))
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    with pytest.raises(ns.BadPlanError, match="block_mapping\\[1\\]"):
        ns.swap_blocks(src, dst, [[0, 0], [1, 8]], mode=mode)
    d = address_of(dst)
    s = src.ctypes.data
    with pytest.raises(ns.BadPlanError, match="runs past"):
        ns.swap_blocks_batch([s, s + 700], [d, d + 100], [100, 200], mode=mode)
    assert np.array_equal(read_array(gpu, dst), target)


def test_many_transfers_reuse_what_they_need(gpu, mode, rng):
    """Events and descriptors are used again, only when the transfer before is over."""
    content = random_bytes(rng, (32, 256))
    src = make_array(gpu, "pinned", content)
    dst = make_array(gpu, "device", np.zeros((32, 256), np.uint8))
    back = gpu.pinned_array((32, 256), np.uint8)
    transfers = []
    for i in range(20):
        order = rng.permutation(32)
        pairs = np.stack([np.arange(32), order], axis=1)
        ns.swap_blocks(src, dst, pairs, mode=mode)
        transfers.append(ns.swap_blocks(dst, back, pairs[:, ::-1], mode=mode))
        if i % 3 == 0:
            transfers[i].wait()
            assert np.array_equal(back, content)
            back[...] = 0
    for transfer in transfers:
        transfer.wait()
    assert np.array_equal(back, content)
