"""What is prepared for a repeated exchange, and for how many rows."""

import numpy as np
import pytest
from machines import make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.copies import block_array
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import ROUTES

ROWS = np.array([[0, 8], [2, 4], [40, 50]]), np.array([[8, 0], [54, 2], [52, 62]])


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        ns.plan_cache.clear()
        yield gpu


@pytest.fixture
def pools(gpu):
    return gpu.device_array((640, 96), np.uint8), gpu.pinned_array((640, 96), np.uint8)


def prepared(pools, stream, **how):
    for _ in range(2):
        ns.exchange(*pools, *ROWS, stream=stream, **how).wait()
    (known,) = ns.plan_cache._pairs.values()
    return known.prepared(stream.handle)


KINDS = ("device", "pinned", "pageable", "managed")


@pytest.mark.parametrize("how", ["at once", "planned", "layers"])
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_pools_in_the_order_of_swap_blocks_are_refused(gpu, rng, first, second, how):
    """The kinds of memory tell, unless both are of one side, or managed."""
    contents = [random_bytes(rng, (8, 64)) for _ in range(2)]
    pools = [make_array(gpu, k, c) for k, c in zip((first, second), contents, strict=True)]
    given = [[pool] for pool in pools] if how == "layers" else pools

    def call():
        if how == "planned":
            ns.plan_exchange(*given, [[0, 1]], [[2, 3]]).run().wait()
        else:
            ns.exchange(*given, [[0, 1]], [[2, 3]]).wait()

    for _ in range(2):
        if first in ("pinned", "pageable") and second == "device":
            message = f"first pool lies in {first} host memory.*exchange.device, host, page_out"
            with pytest.raises(ns.BadPlanError, match=message):
                call()
        else:
            call()
            contents[1][1], contents[0][3] = contents[0][0].copy(), contents[1][2].copy()
        for pool, content in zip(pools, contents, strict=True):
            assert np.array_equal(read_array(gpu, pool), content)


def test_layers_that_go_both_ways_have_no_wrong_order(gpu, rng):
    """Only where all of them stand the wrong way round, that is what was meant."""
    device, host = gpu.device_array((8, 64), np.uint8), gpu.pinned_array((8, 64), np.uint8)
    others = gpu.device_array((8, 64), np.uint8), gpu.pinned_array((8, 64), np.uint8)
    ns.exchange([device, others[1]], [host, others[0]], [[0, 1]], [[2, 3]]).wait()
    with pytest.raises(ns.BadPlanError, match="the wrong way round"):
        ns.exchange([host, others[1]], [device, others[0]], [[0, 1]], [[2, 3]])


def test_of_no_rows_the_order_is_not_asked(gpu, pools):
    assert ns.exchange(*pools[::-1], [], []).nbytes == 0


def test_the_table_of_prepared_pairs_has_room_for_them(gpu, pools):
    known = prepared(pools, gpu.stream())
    for rows in (1, 127, 128, 129, 300):
        ready = known._make_ready(rows)
        assert ready is None or ready.buffers.size >= 32 * rows
    assert known._make_ready(129).buffers.size == 8192


@pytest.mark.parametrize("forced", [False, True])
def test_where_another_way_is_faster_it_is_taken(gpu, pools, forced):
    """Few rows in pairs; many go side by side through the copy engines."""
    costs = {
        Mode.LOOP: ModeCost(1e6, 0.0, (0.0,) * 4, (0.0,) * 4),
        Mode.BATCH: ModeCost(100.0, 0.0, (0.0,) * 4, (0.0,) * 4),
        Mode.KERNEL: ModeCost(0.0, 0.0, (10.0,) * 4, (0.0,) * 4),
    }
    device = devices_of(gpu.driver)[0]
    tuning = find_costs(device).tuning._replace(pairs_factor=1.0, staged_factor=3.0)
    use_costs(device, CostModel(dict.fromkeys(ROUTES, costs), "made up", tuning))
    how = {"mode": "kernel"} if forced else {}
    known, stream = prepared(pools, gpu.stream(), **how), gpu.stream()
    for count in (3, 13, 14, 15, 33, 200):
        out = np.stack([2 * np.arange(count)] * 2, axis=1)
        said = ns.plan_exchange(*pools, out, out + 1).explain(stream, **how)
        ready = known._make_ready(count)
        if "pair by pair" in said.reason:
            assert ready.selections[0].decision == said
        else:
            assert ready is None
    # 100 us of the batch and 40 us for two directions, or 10 us a pair.
    assert (known._make_ready(14) is not None, known._make_ready(15) is not None) == (True, forced)


def test_pools_are_read_once(gpu, pools, monkeypatch):
    read = []
    view = block_array.view_array
    monkeypatch.setattr(
        block_array, "view_array", lambda array, name: read.append(name) or view(array, name)
    )
    for mode in ("kernel", "kernel", "loop", "batch"):
        ns.exchange(*pools, *ROWS, mode=mode).wait()
    assert read == ["device", "host"]


def test_nothing_is_prepared_where_nothing_may_be_remembered(gpu, pools):
    size = ns.plan_cache.info().maxsize
    ns.plan_cache.resize(0)
    try:
        for _ in range(3):
            assert "pair by pair" in ns.exchange(*pools, *ROWS, mode="kernel").decision.reason
        assert ns.plan_cache.info().currsize == 0
    finally:
        ns.plan_cache.resize(size)
