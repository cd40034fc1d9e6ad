"""Bad input: a clear error that says what, where and which value, before any byte moves."""

import numpy as np
import pytest

import numba_swap as ns


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


@pytest.fixture
def pools(gpu):
    return gpu.pinned_array((8, 100), np.uint8), gpu.device_array((6, 100), np.uint8)


@pytest.mark.parametrize(
    ("mapping", "message", "index"),
    [
        ([[0, 0], [8, 1]], r"block_mapping\[1\]: src block 8 is not one of its 8 blocks", 1),
        ([[0, 0], [1, 6]], r"block_mapping\[1\]: dst block 6 is not one of its 6 blocks", 1),
        ([[-1, 0]], r"src block -1", 0),
        ([[0, -1]], r"dst block -1", 0),
        ([[0, 3], [1, 2], [4, 3]], r"block_mapping\[2\]: destination block 3 is written twice", 2),
        (
            [0, 1],
            r"rows \[source block, destination block\], shape \(n, 2\), not the shape \(2,\)",
            None,
        ),
        ([[0, 1, 2]], r"two columns.*\(1, 3\)", None),
        ([[0, 1], [2]], r"block_mapping is no array of integers", None),
        ([[0, 2**70]], r"integers below 2\*\*63", None),
        (5, r"not a int", None),
        ([[0.0, 1.0]], r"must hold integers below 2\*\*63, not float64 .0.0 for", None),
        ([[True, False]], r"must hold integers.*not bool", None),
        ([["a", "b"]], r"must hold integers", None),
        (np.array([[2**63, 0]], dtype=np.uint64), r"beyond 2\*\*63", 0),
    ],
)
def test_mappings(pools, mapping, message, index):
    with pytest.raises(ns.BadPlanError, match=message) as error:
        ns.plan_blocks(*pools, mapping)
    assert error.value.index == index


def test_mapping_may_be_any_integers(pools):
    for dtype in (np.int8, np.uint8, np.int32, np.uint64, np.int64):
        assert len(ns.plan_blocks(*pools, np.array([[1, 5], [7, 0]], dtype))) == 2
    assert len(ns.plan_blocks(*pools, [(1, 5), (7, 0)])) == 2


def test_mapping_on_a_device_is_refused(gpu, pools):
    with pytest.raises(ns.UnsupportedArrayError, match="host memory"):
        ns.plan_blocks(*pools, gpu.device_array((2, 2), np.int64))


def test_arrays(gpu, pools):
    host, device = pools
    cases = [
        ((host, gpu.device_array((6, 99), np.uint8)), ns.BadPlanError, "100 bytes.*99"),
        ((np.float64(3), device), ns.UnsupportedArrayError, "src is a float64"),
        ((None, device), ns.UnsupportedArrayError, "src is a NoneType"),
        ((np.zeros((8, 100), object), device), ns.UnsupportedArrayError, "Python objects"),
        ((np.zeros((), np.uint8), device), ns.BadPlanError, "0 axes"),
        (([host], [device, device]), ns.BadPlanError, "1 and 2"),
        (([host], device), ns.BadPlanError, "1 and one"),
        ((host, np.broadcast_to(np.uint8(1), (6, 100))), ns.BadPlanError, "read-only"),
    ]
    for arrays, error, message in cases:
        with pytest.raises(error, match=message):
            ns.plan_blocks(*arrays, [[0, 0]])
    with pytest.raises(ns.BadPlanError, match="no block axis 2"):
        ns.plan_blocks(host, device, [[0, 0]], block_axis=2)
    for axis in (None, 1.0, [0], True, "0"):
        with pytest.raises(ns.BadArgumentError, match=r"block_axis=.* is no integer"):
            ns.plan_blocks(host, device, [[0, 0]], block_axis=axis)
    for most in (0, -1, 2.5, True, "2"):
        with pytest.raises(ns.BadArgumentError, match=r"max_blocks=.* is no positive integer"):
            ns.swap_blocks(host, device, [[0, 0]], max_blocks=most)


def test_destination_that_shares_memory_with_itself(gpu):
    base = gpu.pinned_array(1000, np.uint8)
    src = gpu.device_array((4, 10), np.uint8)
    sliding = np.lib.stride_tricks.as_strided(base, (4, 10), (5, 1))
    with pytest.raises(ns.BadPlanError, match="writes what"):
        ns.plan_blocks(src, sliding, [[0, 0], [1, 1]])
    assert len(ns.plan_blocks(src, sliding, [[0, 0], [3, 2]])) == 2  # these two do not meet
    broadcast = np.lib.stride_tricks.as_strided(base, (4, 10), (100, 0))
    with pytest.raises(ns.BadPlanError, match="share memory"):
        ns.plan_blocks(src, broadcast, [[0, 0]])


def test_hazards_within_one_pool(gpu):
    pool = gpu.device_array((8, 100), np.uint8)
    with pytest.raises(ns.BadPlanError, match=r"block_mapping\[1\].*reads what block_mapping\[0\]"):
        ns.plan_blocks(pool, pool, [[0, 1], [1, 5]])
    with pytest.raises(ns.BadPlanError, match=r"\[1\].*reads what .*\[0\] .*writes") as error:
        ns.plan_blocks(pool, pool, [[0, 1], [1, 2]])  # neighbours, which would be merged
    assert error.value.index == 1
    assert len(ns.plan_blocks(pool, pool, [[0, 1], [3, 2]])) == 2
    assert len(ns.plan_blocks(pool, pool, [[4, 4], [0, 1]])) == 1  # onto itself: nothing to move
    with pytest.raises(ns.BadPlanError, match=r"of layer 1.* writes what .*of layer 0"):
        ns.plan_blocks([gpu.pinned_array((8, 100), np.uint8)] * 2, [pool, pool], [[0, 1]])


@pytest.mark.parametrize(
    ("rows", "message", "index"),
    [
        (([1, 2], [1], [1, 2]), "equally long, not 2, 1 and 2", None),
        (([[1]], [1], [1]), "sequence of integers, not the shape", None),
        (([1.0], [1], [1]), "integers", None),
        (([0, 0], [1, 1], [0, 4]), r"src_ptrs\[1\] = 0 is not a valid address", 1),
        (([1, 1], [1, -5], [0, 4]), r"dst_ptrs\[1\] = -5 is not a valid address", 1),
        (([1], [1], [-3]), r"sizes\[0\] = -3 is negative", 0),
    ],
)
def test_pointers(gpu, rows, message, index):
    with pytest.raises(ns.BadPlanError, match=message) as error:
        ns.swap_blocks_batch(*rows)
    assert error.value.index == index


def test_pointers_must_stay_inside_their_allocations(gpu):
    host, device = gpu.pinned_array(4096, np.uint8), gpu.device_array(4096, np.uint8)
    src, dst = host.ctypes.data, device.__cuda_array_interface__["data"][0]
    with pytest.raises(ns.BadPlanError, match=r"dst_ptrs\[1\].*runs past its device allocation"):
        ns.swap_blocks_batch([src, src], [dst, dst + 4000], [16, 97])
    with pytest.raises(ns.BadPlanError, match=r"src_ptrs\[0\] = 0xdead0000 is no CUDA memory"):
        ns.swap_blocks_batch([0xDEAD0000], [dst], [16])
    frozen = np.frombuffer(b"constant", np.uint8)  # readable, so it may be a source
    ns.swap_blocks_batch([frozen.ctypes.data], [dst], [8]).wait()
    assert bytes(device.copy_to_host()[:8]) == b"constant"


def test_pointers_of_neighbouring_allocations_do_not_merge(gpu):
    """Two copies that continue each other, but into another allocation."""
    from numba_swap.copies import merge

    dst = np.array([1000, 1100, 1200], np.uint64)
    src = np.array([5000, 5100, 5200], np.uint64)
    size = np.full(3, 100, np.uint64)
    (_, _, merged), first = merge(dst, src, size, np.array([1000, 5000], np.uint64))
    assert merged.tolist() == [300]
    (_, _, merged), first = merge(dst, src, size, np.array([1000, 5200], np.uint64))
    assert merged.tolist() == [200, 100]
    assert first.tolist() == [0, 2]


@pytest.mark.parametrize("stream", ["s", 1.5, True, -1, object()])
def test_streams(pools, stream):
    with pytest.raises(ns.UnsupportedArrayError, match="is no stream"):
        ns.swap_blocks(*pools, [[0, 0]], stream=stream)


def test_streams_in_every_form(gpu, pools):
    stream = gpu.stream()
    for given in (None, 0, 1, 2, stream, stream.handle, np.int64(stream.handle)):
        transfer = ns.swap_blocks(*pools, [[0, 0]], stream=given)
        transfer.wait()
        assert transfer.done()


def test_describe_names_the_row_after_merging_and_layers(gpu):
    src = [gpu.pinned_array((8, 16), np.uint8) for _ in range(2)]
    dst = [gpu.device_array((8, 16), np.uint8) for _ in range(2)]
    plan = ns.plan_blocks(src, dst, [[0, 2], [1, 3], [5, 0]])
    described = [plan._copies.describe(i) for i in range(len(plan))]
    assert described == [
        "block_mapping[0] (source block 0 to destination block 2 of layer 0, merged with the rows "
        "up to block_mapping[1])",
        "block_mapping[2] (source block 5 to destination block 0 of layer 0)",
        "block_mapping[0] (source block 0 to destination block 2 of layer 1, merged with the rows "
        "up to block_mapping[1])",
        "block_mapping[2] (source block 5 to destination block 0 of layer 1)",
    ]


@pytest.mark.parametrize("side", [0, 1])
def test_rows_are_grouped_by_region_of_host_memory(rng, side):
    """Every row arrives once, and regions follow one another; within one, order is kept."""
    from numba_swap import compiled

    rows, blocks, step = 5000, 1 << 22, 512  # 2 GiB: eight regions
    mapping = np.stack([rng.permutation(blocks)[:rows] for _ in range(2)], axis=1)
    dst, src = np.zeros(rows, np.uint64), np.zeros(rows, np.uint64)
    ends = (1 << 40, step, blocks, 1 << 41, step, blocks)
    assert compiled.place_rows(mapping, *ends, step, side, dst, src) == 0
    ids = np.stack([(src - np.uint64(1 << 40)), (dst - np.uint64(1 << 41))], axis=1) // step
    regions = ids[:, side] * step // compiled.REGION_BYTES
    assert (np.diff(regions.astype(np.int64)) >= 0).all()
    assert len(np.unique(regions)) == 8
    order = np.argsort(mapping[:, side] * step // compiled.REGION_BYTES, kind="stable")
    assert np.array_equal(ids.astype(np.int64), mapping[order])


def test_grouped_rows_are_still_described_by_their_own_row(gpu, rng, monkeypatch):
    from numba_swap import plan as plan_module

    monkeypatch.setattr(plan_module, "MANY_ROWS", 1)
    monkeypatch.setattr(plan_module, "_LARGE_POOL_BYTES", 1)
    monkeypatch.setattr(plan_module, "compiled", lambda: Reversing)
    host, device = gpu.pinned_array((64, 16), np.uint8), gpu.device_array((64, 16), np.uint8)
    mapping = 2 * np.stack([rng.permutation(32), rng.permutation(32)], axis=1)
    plan = ns.plan_blocks(host, device, mapping)
    for index in range(32):
        row = 31 - index
        assert plan._copies.describe(index) == (
            f"block_mapping[{row}] (source block {mapping[row, 0]} to destination block "
            f"{mapping[row, 1]})"
        )


class Reversing:
    """The compiled functions, but grouping turns the order round."""

    NEIGHBOURS = 8

    @staticmethod
    def place_rows(mapping, *arguments):
        from numba_swap import compiled

        *ends, grouped_by, dst, src = arguments
        assert grouped_by == 0
        return compiled.place_rows(mapping[::-1].copy(), *ends, -1, dst, src)


@pytest.mark.parametrize("rows", [2, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("blocks_a_row", [1, 9, 1000])
def test_duplicates_are_found_whatever_the_sizes(rng, rows, blocks_a_row):
    """The three ways of looking: all pairs, marks, hashing."""
    from numba_swap import compiled

    blocks = rows * blocks_a_row
    targets = rng.permutation(blocks)[:rows]
    mapping = np.stack([np.zeros(rows, np.int64), targets], axis=1)
    assert not compiled._has_duplicates(mapping, blocks)
    mapping[rows - 1, 1] = mapping[0, 1]
    assert compiled._has_duplicates(mapping, blocks)


def test_cuda_arrays_without_memory_are_refused(gpu):
    """A null or freed pointer would be taken for host memory, and crash."""

    class Null:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (8, 16),
            "typestr": "|u1",
            "data": (0, False),
            "version": 3,
        }

    device = gpu.device_array((8, 16), np.uint8)
    with pytest.raises(ns.UnsupportedArrayError, match="src lies at 0x0, which is no memory"):
        ns.plan_blocks(Null(), device, [[0, 0]])
    gpu.driver.library.free(device.__cuda_array_interface__["data"][0])
    with pytest.raises(ns.UnsupportedArrayError, match=r"dst lies at .*was it freed"):
        ns.plan_blocks(gpu.pinned_array((8, 16), np.uint8), device, [[0, 0]])


def test_blocks_over_two_registrations_are_refused(gpu):
    memory = np.frombuffer(bytearray(4 * 4096), np.uint8)
    start = -memory.ctypes.data % 4096
    host = memory[start : start + 3 * 4096]
    gpu.driver.library.register_host(host[:4096])
    gpu.driver.library.register_host(host[4096:])
    device = gpu.device_array((2, 6144), np.uint8)
    with pytest.raises(ns.BadPlanError, match=r"one registration .* ends and another begins"):
        ns.plan_blocks(host.reshape(2, 6144), device, [[0, 1]])
    assert len(ns.plan_blocks(host.reshape(2, 6144), device, [[1, 1]])) == 1
    for part in (host[:4096], host[4096:]):
        gpu.driver.library.unregister_host(part)


@pytest.mark.parametrize("shape", [(5, 0), (0, 3), (0, 2, 2)])
def test_empty_mappings_of_the_wrong_shape(pools, shape):
    with pytest.raises(ns.BadPlanError, match="shape"):
        ns.plan_blocks(*pools, np.zeros(shape, np.int64))


def test_empty_mapping_is_finished_whatever_mode_is_asked_for():
    with ns.simulate(driver_version=(12, 4)) as gpu:
        arrays = gpu.pinned_array((4, 8)), gpu.device_array((4, 8))
        transfer = ns.swap_blocks(*arrays, [], mode="batch")
        assert transfer.done()
        assert transfer.decision.reason == "nothing to copy"
