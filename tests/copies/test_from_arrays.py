"""Bad input: a clear error that says what, where and which value, before any byte moves."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from machines import make_copies

import numba_swap as ns
from numba_swap.device.tuning import DEFAULT_TUNING


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
        ([[0, 1], [2]], r"^block_mapping is no array of integers", None),
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
        ((host, [device]), ns.BadPlanError, "one and 1"),
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


def _as(base, shape, strides):
    return np.lib.stride_tricks.as_strided(base, shape, strides)


VERBS = {
    "swap": (ns.swap_blocks, "block_mapping", "dst"),
    "out": (lambda src, dst, rows: ns.exchange(src, dst, rows, []), "page_out", "host"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("strides", [(0, 0), (16, 0), (0, 1), (16, 1), (-16, 1)])
def test_an_array_of_no_blocks_is_no_bad_destination(gpu, verb, strides):
    """Whatever its strides are: nothing in it can be written."""
    call, name, dst = VERBS[verb]
    device = gpu.device_array((4, 16), np.uint8)
    none = _as(gpu.pinned_array(1000, np.uint8), (0, 16), strides)
    for _ in range(2):
        assert call(device, none, []).nbytes == 0
        for row in (0, 3, -1):
            message = rf"^{name}\[0\]: {dst} block {row} is not one of its 0 blocks \(it has none"
            with pytest.raises(ns.BadPlanError, match=message):
                call(device, none, [[1, row]])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("address", ["null", "freed", "good"])
def test_a_device_pool_of_no_blocks_is_told_as_such(gpu, verb, address):
    """It may have no memory, and needs none."""
    call, name, dst = VERBS[verb]
    device, other = (gpu.device_array((4, 16), np.uint8) for _ in range(2))
    values = {**other.__cuda_array_interface__, "shape": (0, 16)}
    if address == "null":
        values["data"] = (0, False)
    if address == "freed":
        gpu.driver.library.free(values["data"][0])
    none = SimpleNamespace(__cuda_array_interface__=values)
    assert call(device, none, []).nbytes == 0
    with pytest.raises(ns.BadPlanError, match=rf"^{name}\[0\]: {dst} block 0 .*it has none"):
        call(device, none, [[0, 0]])


@pytest.mark.parametrize("verb", VERBS)
def test_broadcast_blocks_are_refused_by_the_rows_that_write_them(gpu, verb):
    """All blocks lie at one address, so it does not tell which is meant."""
    call, name, _ = VERBS[verb]
    device, base = gpu.device_array((6, 16), np.uint8), gpu.pinned_array(1000, np.uint8)
    target = _as(base, (4, 16), (0, 1))
    with pytest.raises(ns.BadPlanError) as caught:
        call(device, target, [[0, 1], [5, 3]])
    assert str(caught.value).startswith(
        f"{name}[1] (source block 5 to destination block 3) writes what {name}[0] (source block 0 "
        "to destination block 1) writes too"
    )
    assert caught.value.index == 1
    source = _as(gpu.pinned_array(1000, np.uint8), (9, 16), (0, 1))
    if verb == "swap":
        plan = ns.plan_blocks(source, device, [[7, 1], [8, 3]])
        assert "source block 8 to destination block 3" in plan.copies.origin.describe(1)
    assert call(device, target, [[5, 3]]).nbytes == 16


@pytest.mark.parametrize("strides", [(16, 0), (0, 0), (16, 1)])
def test_what_no_row_writes_need_not_be_writable(gpu, strides):
    """Broadcast within a block, or read-only: it may be read, and nothing may be copied to it."""
    device = gpu.device_array((6, 16), np.uint8)
    base = gpu.pinned_array(1000, np.uint8)
    base[:] = 5
    host = _as(base, (4, 16), strides)
    if strides == (16, 1):
        host.flags.writeable = False
    assert ns.swap_blocks(device, host, []).nbytes == 0
    device.copy_to_device(np.zeros((6, 16), np.uint8))
    ns.exchange(device, host, [], [[3, 4]]).wait()
    assert (device.copy_to_host()[4] == 5).all()
    for call in (
        lambda: ns.swap_blocks(device, host, [[0, 1]]),
        lambda: ns.exchange(device, host, [[0, 1]], [[3, 4]]),
    ):
        with pytest.raises(ns.BadPlanError, match=r"cannot be a destination"):
            call()
    assert (base == 5).all()


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
        (([1], [1], [-3]), r"^sizes\[0\] = -3 is negative", 0),
        (([1], [1], [-1]), r"^sizes\[0\] = -1 is negative", 0),
        (([0], [1], [1]), r"^src_ptrs\[0\] = 0 is not a valid address", 0),
        (([1, 1], [1, 0], [0, 1]), r"^dst_ptrs\[1\] = 0 is not a valid address", 1),
        (([[1]], [1], [1]), "^src_ptrs", None),
        (([1], [[1]], [1]), "^dst_ptrs", None),
        (([1], [1], [1.0]), "^sizes", None),
    ],
)
def test_pointers(gpu, rows, message, index):
    with pytest.raises(ns.BadPlanError, match=message) as error:
        ns.swap_blocks_batch(*rows)
    assert error.value.index == index


def test_pointers_must_stay_inside_their_allocations(gpu):
    host, device = gpu.pinned_array(4096, np.uint8), gpu.device_array(4096, np.uint8)
    src, dst = host.ctypes.data, device.__cuda_array_interface__["data"][0]
    with pytest.raises(ns.BadPlanError, match=r"^dst_ptrs\[1\].*runs past its device allocation"):
        ns.swap_blocks_batch([src, src], [dst, dst + 4000], [16, 97])
    with pytest.raises(ns.BadPlanError, match=r"src_ptrs\[0\] = 0xdead0000 is no CUDA memory"):
        ns.swap_blocks_batch([0xDEAD0000], [dst], [16])
    frozen = np.frombuffer(b"constant", np.uint8)  # readable, so it may be a source
    ns.swap_blocks_batch([frozen.ctypes.data], [dst], [8]).wait()
    assert bytes(device.copy_to_host()[:8]) == b"constant"


def test_pointers_of_neighbouring_allocations_do_not_merge(gpu):
    """Two copies that continue each other, but into another allocation."""
    from numba_swap.copies.copies import merge

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
    described = [plan.copies.origin.describe(i) for i in range(len(plan))]
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
    from numba_swap.native import rows as compiled

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


def test_grouped_rows_are_still_described_by_their_own_row(gpu, rng, monkeypatch, tune):
    from numba_swap.copies import from_arrays

    tune(group_rows=1, group_pool_bytes=1)
    monkeypatch.setattr(from_arrays, "native", SimpleNamespace(rows=Reversing))
    host, device = gpu.pinned_array((64, 16), np.uint8), gpu.device_array((64, 16), np.uint8)
    mapping = 2 * np.stack([rng.permutation(32), rng.permutation(32)], axis=1)
    plan = ns.plan_blocks(host, device, mapping)
    for index in range(32):
        row = 31 - index
        assert plan.copies.origin.describe(index) == (
            f"block_mapping[{row}] (source block {mapping[row, 0]} to destination block "
            f"{mapping[row, 1]})"
        )


def test_merged_rows_of_a_large_pool_are_described_by_their_own_row(gpu, tune):
    tune(group_rows=1, group_pool_bytes=1)
    host, device = gpu.pinned_array((64, 16), np.uint8), gpu.device_array((64, 16), np.uint8)
    origin = ns.plan_blocks(host, device, [[0, 2], [1, 3], [5, 0]]).copies.origin
    assert "block_mapping[0] (source block 0 to destination block 2, merged" in origin.describe(0)
    assert origin.describe(1).startswith("block_mapping[2]")
    gaps = gpu.pinned_array((64, 2, 16), np.uint8)[:, :, :8]  # two runs a block
    plan = ns.plan_blocks(gaps, gpu.device_array((64, 2, 8), np.uint8), [[9, 2], [3, 6], [5, 0]])
    assert len(plan) == 3  # a box each
    assert [plan.copies.origin.describe(i)[:16] for i in range(3)] == [
        f"block_mapping[{row}]" for row in range(3)
    ]


class Reversing:
    """The compiled functions, but grouping turns the order round."""

    NEIGHBOURS = 8

    @staticmethod
    def place_rows(mapping, *arguments):
        from numba_swap.native import rows as compiled

        *ends, grouped_by, dst, src = arguments
        assert grouped_by == 0
        return compiled.place_rows(mapping[::-1].copy(), *ends, -1, dst, src)


@pytest.mark.parametrize("rows", [2, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("blocks_a_row", [1, 9, 1000])
def test_duplicates_are_found_whatever_the_sizes(rng, rows, blocks_a_row):
    """The three ways of looking: all pairs, marks, hashing."""
    from numba_swap.native import rows as compiled

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
    with pytest.raises(ns.UnsupportedArrayError, match=r"^src lies at 0x0, which is no memory"):
        ns.plan_blocks(Null(), device, [[0, 0]])
    gpu.driver.library.free(device.__cuda_array_interface__["data"][0])
    with pytest.raises(ns.UnsupportedArrayError, match=r"^dst lies at .*was it freed"):
        ns.plan_blocks(gpu.pinned_array((8, 16), np.uint8), device, [[0, 0]])


def test_blocks_over_two_registrations_are_refused(gpu):
    memory = np.frombuffer(bytearray(4 * 4096), np.uint8)
    start = -memory.ctypes.data % 4096
    host = memory[start : start + 3 * 4096]
    gpu.driver.library.register_host(host[:4096])
    gpu.driver.library.register_host(host[4096:])
    device = gpu.device_array((2, 6144), np.uint8)
    words = r"^block_mapping\[1\] .*, where one registration .* ends and another begins"
    with pytest.raises(ns.BadPlanError, match=words) as error:
        ns.plan_blocks(host.reshape(2, 6144), device, [[1, 1], [0, 0]])
    assert error.value.index == 1
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


# -- what the parts of a plan decide ------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "meet"),
    [
        ([((0, 10), (10, 20))], False),
        ([((10, 20), (0, 10))], False),
        ([((0, 10), (9, 20))], True),
        ([((0, 10), (0, 10), True)], False),  # one pool: its ids tell
        ([((0, 10), (20, 30)), ((10, 20), (30, 40))], False),
        ([((0, 10), (20, 30)), ((0, 10), (30, 40))], False),  # both read it
        ([((0, 10), (20, 30)), ((40, 50), (29, 35))], True),  # both write it
        ([((0, 10), (50, 60)), ((100, 110), (5, 15))], True),
        ([((0, 100), (50, 60)), ((10, 20), (200, 210))], True),  # behind a shorter read
        ([((50, 60), (0, 100)), ((200, 210), (300, 310))], True),
        ([((0, 10), (0, 10), True), ((20, 30), (20, 30), True)], False),
        ([((0, 10), (0, 10), True), ((0, 10), (0, 10), True)], True),
        ([((0, 10), (0, 10), True), ((5, 6), (20, 30))], True),
        ([((0, 10), (20, 30)), ((5, 5), (25, 25))], False),  # the second has no bytes
    ],
)
def test_arrays_that_share_addresses(layers, meet):
    from numba_swap.copies.from_arrays import _arrays_overlap

    made = [
        SimpleNamespace(
            src=SimpleNamespace(span=src), dst=SimpleNamespace(span=dst), same_blocks=bool(one_pool)
        )
        for src, dst, *one_pool in layers
    ]
    assert _arrays_overlap(made) is meet


def test_one_pool_among_other_layers_is_looked_at_by_its_ids(gpu):
    pool, target = (gpu.device_array((8, 100), np.uint8) for _ in range(2))
    host = gpu.pinned_array((8, 100), np.uint8)
    with pytest.raises(ns.BadPlanError, match="reads what"):
        ns.plan_blocks([pool, host], [pool, target], [[0, 1], [1, 5]])
    assert len(ns.plan_blocks([pool, host], [pool, target], [[4, 4], [0, 2]])) == 3


def test_a_pool_of_more_source_blocks_is_looked_at_beside_other_layers(gpu):
    pool, host = gpu.device_array((8, 100), np.uint8), gpu.pinned_array((8, 100), np.uint8)
    with pytest.raises(ns.BadPlanError, match="reads what"):
        ns.plan_blocks([pool, host], [pool[:4], pool[4:]], [[5, 0], [4, 1]])
    assert len(ns.plan_blocks([pool, host], [pool[:4], pool[4:]], [[7, 0], [6, 1]])) == 4


def test_the_first_row_may_be_the_one_that_reads(gpu):
    pool = gpu.device_array((8, 100), np.uint8)
    with pytest.raises(ns.BadPlanError) as error:
        ns.plan_blocks(pool, pool, [[1, 2], [0, 1]])
    assert error.value.index == 0
    assert str(error.value).startswith(
        "block_mapping[0] (source block 1 to destination block 2) reads what block_mapping[1] "
        "(source block 0 to destination block 1) writes"
    )


def test_one_pool_seen_with_its_axes_exchanged_is_no_block_onto_itself(gpu):
    pool = gpu.pinned_array((4, 8, 8), np.uint8)
    with pytest.raises(ns.BadPlanError, match="reads what"):
        ns.plan_blocks(pool, pool.transpose(0, 2, 1), [[0, 0]])


def test_a_sliding_pool_onto_itself(gpu):
    base = gpu.pinned_array(1000, np.uint8)
    sliding = np.lib.stride_tricks.as_strided(base, (6, 10), (5, 1))
    assert len(ns.plan_blocks(sliding, sliding, [[2, 2], [0, 4]])) == 1
    with pytest.raises(ns.BadPlanError, match="reads what"):
        ns.plan_blocks(sliding, sliding, [[0, 1]])


def test_reversed_views_that_meet(gpu):
    rows = gpu.pinned_array((8, 16), np.uint8)
    back, forth = rows[7:3:-1], rows[2:6]
    for src, dst, mapping in ((back, forth, [[2, 0], [0, 3]]), (forth, back, [[3, 0], [0, 2]])):
        with pytest.raises(ns.BadPlanError, match="reads what"):
            ns.plan_blocks(src, dst, mapping)
    assert len(ns.plan_blocks(rows[7:3:-1], rows[3::-1], [[0, 0], [1, 3]])) == 2


def test_blocks_of_no_bytes(gpu):
    pool = gpu.device_array((4, 0), np.uint8)
    empty = np.zeros((4, 0), np.uint8)
    assert len(ns.plan_blocks(pool, pool, [[0, 1], [1, 2]])) == 0  # nothing is read or written
    assert len(ns.plan_blocks(empty, pool, [[0, 1], [1, 2]])) == 0
    host, device = gpu.pinned_array((4, 8), np.uint8), gpu.device_array((4, 8), np.uint8)
    assert len(ns.plan_blocks([empty, host], [pool, device], [[0, 1], [2, 0]])) == 2
    one = gpu.pinned_array((4, 1), np.uint8), gpu.device_array((4, 1), np.uint8)
    assert len(ns.plan_blocks(*one, [[0, 1], [2, 0]])) == 2
    with pytest.raises(ns.BadPlanError, match="dst block 4"):
        ns.plan_blocks(empty, pool, [[0, 4]])

    class Null:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (4, 0),
            "typestr": "|u1",
            "data": (0, False),
            "version": 3,
        }

    assert len(ns.plan_blocks(Null(), pool, [[0, 1]])) == 0


def test_an_empty_mapping_asks_the_driver_nothing(gpu, pools):
    before = gpu.driver.library.calls["cuPointerGetAttributes"]
    assert len(ns.plan_blocks(*pools, [])) == 0
    assert gpu.driver.library.calls["cuPointerGetAttributes"] == before


def test_the_columns_hold_all_rows(gpu):
    """Just beyond what half a pinned buffer of the smallest sizes holds."""
    host, device = gpu.pinned_array((600, 8), np.uint8), gpu.device_array((600, 8), np.uint8)
    for rows in (256, 257, 260):
        mapping = 2 * np.stack([np.arange(rows), np.arange(rows)[::-1]], axis=1)
        copies = ns.plan_blocks(host, device, mapping).copies
        start = host.ctypes.data
        assert np.array_equal(copies.src, start + 8 * mapping[:, 0].astype(np.uint64))
        assert len(copies.dst) == rows


def rows_of(src, dst, mapping=None, tuning=DEFAULT_TUNING, in_order=False, **layout):
    """The rows of one layer, between made-up arrays."""
    from numba_swap.copies.from_arrays import _Rows

    pair = SimpleNamespace(
        src=SimpleNamespace(name="src", **src),
        dst=SimpleNamespace(name="dst", **dst),
        layout=SimpleNamespace(**{"run_bytes": 2048, "dst_step": 2048} | layout),
    )
    mapping = np.zeros((4096, 2), np.int64) if mapping is None else mapping
    return _Rows(None, pair, mapping, "block_mapping", tuning, in_order)


def test_which_rows_are_grouped():
    from numba_swap.device.memory import Allocation, MemoryKind

    assert DEFAULT_TUNING.may_be_grouped(4096, 2048)
    assert not DEFAULT_TUNING.may_be_grouped(4095, 2048)
    assert not DEFAULT_TUNING.may_be_grouped(4096, 2049)
    large = 3 << 28
    pinned = (Allocation(0, 1 << 40, MemoryKind.PINNED, 0, 0),)
    device = (Allocation(0, 1 << 40, MemoryKind.DEVICE, 0, 0),)
    wide, narrow = (1 << 30, (1 << 30) + large + 1), (1 << 30, (1 << 30) + large)

    def column_to_group(sources, src_span, destinations, dst_span, **others):
        src, dst = (
            {"allocations": allocations, "span": span}
            for allocations, span in ((sources, src_span), (destinations, dst_span))
        )
        return rows_of(src, dst, **others)._column_to_group()

    assert column_to_group(pinned, wide, device, wide) == 0
    assert column_to_group(device, wide, pinned, wide) == 1
    assert column_to_group(pinned, narrow, pinned, wide) == 1
    assert column_to_group(pinned, narrow, device, wide) == -1
    assert column_to_group(pinned + device, wide, device, wide) == 0
    few = {"mapping": np.zeros((4095, 2), np.int64)}
    for reason in (few, {"run_bytes": 2049}, {"in_order": True}, {"dst_step": 0}):
        assert column_to_group(pinned, wide, device, wide, **reason) == -1
    known = DEFAULT_TUNING._replace(group_rows=4095, group_bytes=2049, group_pool_bytes=large - 1)
    for figures in (few, {"run_bytes": 2049}):
        assert column_to_group(pinned, narrow, device, wide, tuning=known, **figures) == 0


def test_copies_over_a_bound_are_named_with_their_address():
    from numba_swap.copies.hazards import check_within

    def check(starts, sizes, *bounds):
        starts, sizes = np.array(starts, np.uint64), np.array(sizes, np.uint64)
        bounds = np.array(bounds, np.uint64)
        check_within(starts, starts + sizes, bounds, lambda index: (f"copy {index}", index))

    check([100, 300], [100, 100], 100, 200, 250, 300, 400)
    for bound in (301, 350, 399):
        with pytest.raises(ns.BadPlanError, match=f"^copy 1, at 0x12c, runs over {bound:#x}"):
            check([100, 300], [100, 100], 5, bound)
    with pytest.raises(ns.BadPlanError, match=r"^copy 1, at 0x12c, runs over"):
        check([100, 300], [100, 150], 449)


def test_a_row_at_fault_among_many(pools, rng):
    from numba_swap.copies.from_arrays import read_mapping

    def bad_row(mapping):
        return rows_of({}, {}, mapping, src_blocks=1, dst_blocks=1000)._bad_row()

    with pytest.raises(ns.BadPlanError, match=r"its 8 blocks \(0 to 7\)"):
        ns.plan_blocks(*pools, [[8, 0]])
    targets = rng.permutation(1000)[:200]
    targets[197] = targets[150] = targets[3]
    mapping = read_mapping(np.stack([targets * 0, targets], axis=1))
    error = bad_row(mapping)
    assert error.index == 150
    assert "(first by row 3)" in str(error)
    # Another thread has mended it since it was refused.
    assert "was changed while it was read" in str(bad_row(mapping[:10]))


def test_what_raw_pointers_become(gpu):
    from numba_swap.copies.from_pointers import plan_pointers

    gpu.driver.initialize()
    host, pageable = gpu.pinned_array(64, np.uint8), np.zeros(64, np.uint8)
    device = gpu.device_array(64, np.uint8)
    src, loose = host.ctypes.data, pageable.ctypes.data
    dst = device.__cuda_array_interface__["data"][0]
    neighbours = [dst, dst + 8], [8, 8]
    assert len(plan_pointers(gpu.driver, [src, src + 8], *neighbours)) == 1
    # Part of pageable memory may be registered: nothing is merged there.
    assert len(plan_pointers(gpu.driver, [loose, loose + 8], *neighbours)) == 2
    unchecked = plan_pointers(gpu.driver, [0, src, src + 8], [0, *neighbours[0]], [0, 8, 8], "none")
    assert unchecked.origin.describe(1).startswith("copy 2 (from")
    assert len(plan_pointers(gpu.driver, [src], [dst], [0], "none")) == 0


def test_read_only_memory_may_be_a_source_only(gpu):
    import mmap

    pages = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
    frozen = np.frombuffer(pages, np.uint8)
    device = gpu.device_array(64, np.uint8)
    dst = device.__cuda_array_interface__["data"][0]
    ns.swap_blocks_batch([frozen.ctypes.data], [dst], [8]).wait()
    with pytest.raises(ns.BadPlanError, match="no writable memory of this process"):
        ns.swap_blocks_batch([dst], [frozen.ctypes.data], [8])
    with pytest.raises(ns.BadPlanError, match="no readable memory of this process"):
        ns.swap_blocks_batch([0xDEAD0000], [dst], [8])
    with pytest.raises(ns.BadPlanError, match=r"src_ptrs\[1\].*runs past its pageable"):
        ns.swap_blocks_batch([dst, frozen.ctypes.data], [dst + 32, dst], [8, 1 << 45])


def test_allocation_assumed_without_checks(gpu):
    from numba_swap.device.addresses import assumed_allocation
    from numba_swap.device.memory import MemoryKind

    gpu.driver.initialize()
    host, device = gpu.pinned_array(64, np.uint8), gpu.device_array(64, np.uint8)
    addresses = [host.ctypes.data, device.__cuda_array_interface__["data"][0]]
    for some, kind in (
        (addresses, MemoryKind.PINNED),
        (addresses[::-1], MemoryKind.DEVICE),
        (addresses[:1], MemoryKind.PINNED),
    ):
        assert assumed_allocation(gpu.driver, np.array(some, np.uint64)).kind is kind
    unknown = assumed_allocation(gpu.driver, np.array([5000, 9000, 7000], np.uint64))
    assert unknown[:3] == (5000, 9001, MemoryKind.PAGEABLE)


def test_a_driver_that_does_not_tell_the_allocation():
    from numba_swap.device.addresses import allocations_of_addresses
    from numba_swap.native import driver_calls

    driver = SimpleNamespace(find_allocations=lambda *ask: (driver_calls.UNCLEAR, 1, 0))
    columns = np.array([5000, 9000], np.uint64), np.array([8, 8], np.uint64)
    with pytest.raises(ns.BadPlanError, match=r"which allocation holds p\[7\] = 0x2328") as error:
        allocations_of_addresses(driver, *columns, np.array([3, 7]), "p", writable=False)
    assert error.value.index == 7


# -- columns of copies --------------------------------------------------------------------------


def allocation(kind, device=0):
    from numba_swap.device.memory import Allocation, MemoryKind

    return Allocation(0, 1 << 40, MemoryKind[kind], device, None)


@pytest.mark.parametrize(
    ("sources", "destinations", "direction", "device"),
    [
        ("PINNED:0", "DEVICE:1", "H2D", 1),
        ("MANAGED:1", "PAGEABLE:0", "D2H", 1),
        ("PINNED:2", "PAGEABLE:0", "H2H", None),
        ("DEVICE:1", "DEVICE:1", "D2D", 1),
        ("DEVICE:1", "DEVICE:2", "P2P", 2),  # the one that is written
        ("DEVICE:1 DEVICE:2", "DEVICE:1 DEVICE:2", "MIXED", 1),
        ("DEVICE:1 DEVICE:2", "DEVICE:2", "MIXED", 1),
        ("PINNED:0", "DEVICE:2 DEVICE:1", "H2D", 2),
        ("MANAGED:1", "DEVICE:2", "D2D", 2),  # device memory decides, wherever it stands
        ("DEVICE:1 MANAGED:2", "MANAGED:3 DEVICE:4", "P2P", 4),
        ("MANAGED:3 MANAGED:4", "PINNED:0", "D2H", 3),
        ("PINNED:0 DEVICE:1", "DEVICE:1", "MIXED", 1),
        ("DEVICE:1 PINNED:0", "PINNED:1", "MIXED", 1),
        ("DEVICE:1 PINNED:0 PINNED:0", "PINNED:1", "MIXED", 1),
        ("PINNED:0", "DEVICE:1 PAGEABLE:0", "MIXED", 1),
    ],
)
def test_direction_and_device(sources, destinations, direction, device):
    from numba_swap.copies.ends import Ends

    sides = (
        tuple(allocation(*item.split(":")) for item in side.split())
        for side in (sources, destinations)
    )
    ends = Ends.of(*sides)
    assert ends.direction is ns.Direction[direction]
    assert (ends.device and int(ends.device)) == device


def columns(rows):
    return (np.array(column, np.uint64) for column in zip(*rows, strict=True))


def test_what_copies_know_of_themselves():
    from numba_swap.copies.copies import no_copies

    dst, src, sizes = columns([(1000, 8, 4), (2000, 16, 4)])
    same = make_copies(dst, src, sizes)
    assert (same.uniform, same.largest, same.nbytes) == (4, 4, 8)
    assert same.alignment_bits == 1000 | 2000 | 8 | 16 | 4
    other = make_copies(dst, src, np.array([4, 6], np.uint64))
    assert (other.uniform, other.largest, other.nbytes) == (0, 6, 10)
    assert make_copies(dst, src, np.array([4, 0], np.uint64)).uniform == 0
    assert make_copies(dst, src, 4, alignment_bits=12).alignment_bits == 12
    nothing = no_copies()
    assert (len(nothing), nothing.nbytes, nothing.uniform, nothing.largest) == (0, 0, 0, 0)
    assert nothing.dst.dtype == np.uint64
    empty = make_copies(nothing.dst, nothing.src, nothing.dst)
    assert (empty.nbytes, empty.largest) == (0, 0)


def test_refused_copies_say_what_was_submitted():
    copies = make_copies(*columns([(1000, 8, 4), (2000, 16, 4)]))
    for most, words in ((1, "known: none from copy 1 on."), (2, "is not known.")):
        assert words in str(copies.driver_error("cuX", 1, "NAME", None, most))
    error = copies.driver_error("cuX", 1, "NAME", 1, 2)
    assert "At fault is copy 1; the 1 copies before it were submitted" in str(error)


def test_merging_stops_at_bounds_on_either_side():
    from numba_swap.copies.copies import merge

    rows = [(1000, 5000), (1100, 5100), (1200, 5200), (9000, 9500), (9100, 7000)]
    dst, src = columns(rows)
    none = np.zeros(0, np.uint64)
    for bounds, sizes in (
        (none, [300, 100, 100]),
        (np.array([1100], np.uint64), [100, 200, 100, 100]),
        (np.array([5200], np.uint64), [200, 100, 100, 100]),
    ):
        (_, _, merged), first = merge(dst, src, 100, bounds)
        assert merged.tolist() == sizes
        assert first.tolist() == [0, *np.cumsum(np.array(sizes[:-1]) // 100)]
    (_, _, kept), first = merge(dst, src, 100, np.array([1100, 5200], np.uint64))
    assert (kept, first) == (100, None)
    (_, _, kept), first = merge(dst, src, 50, none)
    assert (kept, first) == (50, None)


def test_layers_are_joined():
    from numba_swap.copies.copies import _common_size, concatenate

    assert len(concatenate([])) == 0
    pinned, device = allocation("PINNED"), allocation("DEVICE")
    one, two = (
        make_copies(
            *columns([(1000 * i, 8 * i)]),
            size,
            (pinned,),
            (device,),
            owners=(owner,),
            producer_streams=(7, stream),
        )
        for i, size, owner, stream in ((1, 4, "a", 7), (2, 4, "b", 9))
    )
    assert concatenate([one]) is one
    both = concatenate([one, two])
    assert (both.uniform, both.nbytes) == (4, 8)
    assert both.dst.tolist() == [1000, 2000]
    assert (both.ends.sources, both.ends.destinations) == ((pinned,), (device,))
    assert both.ends.owners == ("a", "b")
    assert both.ends.producer_streams == (7, 9)
    assert _common_size([one, two]) == 4
    longer = make_copies(*columns([(1000, 8)]), 1)
    assert _common_size([one, longer]).tolist() == [4, 1]
    mixed = make_copies(*columns([(1000, 8, 4), (2000, 16, 5)]))
    assert _common_size([mixed, mixed]).tolist() == [4, 5, 4, 5]
    assert _common_size([longer, longer]) == 1


def test_copies_onto_themselves_are_left_out():
    dst, src, sizes = columns([(1000, 8, 4), (2000, 2000, 5), (3000, 24, 6)])
    all_of_them = make_copies(dst, src, sizes, owners=("a",), producer_streams=(7,))
    left = all_of_them.without_identities()
    assert (left.dst.tolist(), left.src.tolist()) == ([1000, 3000], [8, 24])
    assert left.sizes.tolist() == [4, 6]
    assert (left.ends.owners, left.ends.producer_streams) == (("a",), (7,))
    assert left.origin.describe(1) == "copy 2"
    assert left.without_identities() is left
    assert make_copies(dst, src, 4).without_identities().uniform == 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1000, 8, 4), (1004, 16, 4)], None),
        ([(1000, 8, 4), (1003, 16, 4)], "copy 1 writes what copy 0 writes too; "),
        ([(500, 8, 4), (1003, 8, 4), (1000, 16, 4)], "copy 1 writes what copy 2 writes too; "),
        # Of several the first by address is told.
        (
            [(3000, 8, 9), (3008, 8, 9), (1000, 8, 9), (1008, 8, 9), (2000, 8, 9)],
            "copy 3 writes what copy 2 writes too; ",
        ),
        ([(1000, 996, 4), (1004, 8, 4)], None),
        ([(1000, 1004, 4), (3000, 8, 4)], None),
        ([(1000, 997, 4)], "copy 0 reads what it writes; .*way of another array"),
        ([(1000, 8, 4), (2000, 1003, 4)], "copy 1 reads what copy 0 writes; .*two calls"),
        (
            [(1000, 8, 4), (4000, 8, 4), (2000, 1003, 4), (3000, 4000, 4)],
            "copy 2 reads what copy 0 writes; .*two calls",
        ),
    ],
)
def test_hazards_by_address(rows, words):
    from numba_swap.copies.hazards import check_hazards

    copies = make_copies(*columns(rows))
    if words is None:
        check_hazards(copies)
        return
    with pytest.raises(ns.BadPlanError, match=f"^{words}") as error:
        check_hazards(copies)
    advice = ("two calls", "another array")
    assert str(error.value).endswith(advice) == ("reads" in words)


def test_of_two_equal_destinations_the_second_row_is_told(rng):
    from numba_swap.copies.hazards import check_hazards

    dst = 1000 + 8 * rng.permutation(200).astype(np.uint64)
    dst[150] = dst[3]
    copies = make_copies(dst, np.arange(200, dtype=np.uint64), 8)
    with pytest.raises(ns.BadPlanError, match=r"^copy 150 writes what copy 3 writes too"):
        check_hazards(copies)


# -- allocations of raw addresses ---------------------------------------------------------------


def test_one_allocation_of_each_sort():
    from numba_swap.device.addresses import _one_of_each

    rows = [  # memory type, managed, device, address for kernels, start, bytes
        (1, 0, 0, 1000, 1000, 10),
        (1, 0, 0, 2000, 2000, 10),
        (1, 0, 0, 3500, 3000, 10),
        (1, 0, 0, 0, 4000, 10),
        (2, 0, 0, 5000, 5000, 10),
        (2, 0, 1, 6000, 6000, 10),
        (1, 0, 0, 7000, 7000, 10),
        (0, 0, 0, 0, 8000, 10),
        (2, 1, 0, 9000, 9000, 10),
        (1, 0, 1, 9107, 9100, 10),
        (1, 0, 0, 0, 9200, 10),
    ]
    starts = [1000, 3000, 4000, 5000, 6000, 8000, 9000, 9100]
    found = _one_of_each(np.array(rows, np.int64))
    assert [a.start for a in found] == starts
    assert [a.stop for a in found] == [start + 10 for start in starts]


@pytest.mark.parametrize(("most", "listed"), [(1024, 3), (3, 3), (2, 2)])
def test_allocations_of_several_sorts_are_listed_if_few(gpu, monkeypatch, most, listed):
    from numba_swap.device import addresses

    monkeypatch.setattr(addresses, "_MOST_LISTED", most)
    gpu.driver.initialize()
    arrays = [gpu.pinned_array(64, np.uint8) for _ in range(2)]
    device = gpu.device_array(64, np.uint8)
    starts = [a.ctypes.data for a in arrays] + [device.__cuda_array_interface__["data"][0]]

    def find(*which):
        return addresses.allocations_of_addresses(
            gpu.driver,
            np.array([starts[i] for i in which], np.uint64),
            np.full(len(which), 8, np.uint64),
            np.arange(len(which)),
            "p",
            writable=False,
        )

    allocations, found = find(0, 1, 2)
    assert len(allocations) == listed
    assert found.tolist() == starts
    assert len(find(0, 1)[0]) == 1
    assert [a.start for a in find(2, 0)[0]] == [starts[2], starts[0]]


def test_faults_at_both_ends_of_many_allocations(gpu, rng):
    arrays = [gpu.pinned_array(64, np.uint8) for _ in range(40)]
    lowest, *between, highest = sorted(a.ctypes.data for a in arrays)
    src = np.array([*rng.permutation(between), highest, lowest])  # looked at after sorting
    device = gpu.device_array(64 * 40, np.uint8)
    dst = device.__cuda_array_interface__["data"][0] + 64 * np.arange(40)
    for row in (int(src.argmin()), int(src.argmax())):
        sizes = np.full(40, 64)
        sizes[row] = 65
        words = rf"^src_ptrs\[{row}\] = {src[row]:#x} with 65 bytes runs past its pinned"
        with pytest.raises(ns.BadPlanError, match=f"{words}.* ends at {src[row] + 64:#x}$"):
            ns.swap_blocks_batch(src, dst, sizes)
    sizes = [64, 64, 65]  # back in the first of two
    with pytest.raises(ns.BadPlanError, match=f" ends at {src[0] + 64:#x}$"):
        ns.swap_blocks_batch(src[[0, 1, 0]], dst[:3], sizes)
    again = rng.permutation(np.tile(src, 10))
    before = gpu.library.calls["cuPointerGetAttributes"]
    ns.swap_blocks_batch(again, dst[0] + 6 * np.arange(400), np.full(400, 6)).wait()
    asked = gpu.library.calls["cuPointerGetAttributes"] - before
    # Until they are too many, then once each, the device, and one of each for want of a context.
    assert asked <= 32 + 40 + 1 + 2


def test_pageable_ranges_count_as_allocations(gpu):
    import mmap

    from numba_swap.device.addresses import _mapped_ranges, _range_around, allocations_of_addresses

    gpu.driver.initialize()
    pages = mmap.mmap(-1, 4096)
    at = np.frombuffer(pages, np.uint8).ctypes.data
    where = _range_around(_mapped_ranges(writable=True), at)
    assert where[0] <= at < where[1]
    found, starts = allocations_of_addresses(
        gpu.driver, *columns([(at, 8), (at + 8, 8)]), np.arange(2), "p", writable=True
    )
    assert starts.tolist() == [where[0]]
    assert [(a.start, a.stop, a.kind.name) for a in found] == [(*where, "PAGEABLE")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_mapped_files_may_have_any_name(tmp_path):
    import mmap

    from numba_swap.device.addresses import _mapped_ranges

    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    with open(name, "wb") as file:
        file.write(bytes(4096))
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        frozen = np.frombuffer(pages, np.uint8)
        at = frozen.ctypes.data
        assert any(start <= at < stop for start, stop in _mapped_ranges(writable=False))
        del frozen


def test_ranges_around_an_address(monkeypatch):
    from numba_swap.device import addresses

    mapped = [(10, 20), (30, 40)]
    inside = {10: (10, 20), 19: (10, 20), 30: (30, 40), 39: (30, 40)}
    for at in (5, 9, 10, 19, 20, 29, 30, 39, 40, 99):
        assert addresses._range_around(mapped, at) == inside.get(at, (at, at))
    assert addresses._range_around([], 5) == (5, 5)
    lines = [
        "1000-2000 rw-s 00000000 00:05 8 /dev/shm/one two\n",
        "2000-3000 rw-s 00000000 00:05 9 /dev/shm/one three\n",
        "3000-4000 rw-s 00001000 00:05 9 /dev/shm/one three\n",
        "5000-6000 rw-p 00000000 00:00 0\n",
        "6000-7000 rw-p 00000000 00:00 0\n",
    ]
    ranges = [(0x1000, 0x2000), (0x2000, 0x4000), (0x5000, 0x7000)]
    assert addresses._read_ranges(lines, writable=True) == ranges
    monkeypatch.setattr(sys, "platform", "win32")
    assert addresses._mapped_ranges(writable=False) == []
