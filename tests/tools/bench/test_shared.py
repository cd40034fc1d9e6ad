"""Both engines at once: what is measured, and that what is shared arrives."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.dispatch.cost_model import SharedCost
from numba_swap.dispatch.settings import Mode
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.tools.bench.costs import shared
from numba_swap.tools.bench.costs.measure import CostGrid, GridBoxes, GridSwap, SwapTimer
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.timing import Samples

KIB = 1 << 10
GRID = CostGrid(
    (32 * KIB,), (1,), 512 * KIB, 0, (), (), shared_sizes=(32 * KIB,), shared_shapes=((2, 2, 32),)
)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


def always(share):
    """Costs by which copies of 28 KiB and more, and boxes of short rows, are shared."""
    keys = [("h2d", 2), ("d2h", 2), ("h2d boxes", 0), ("d2h boxes", 0), ("h2d odd boxes", 0)]
    return dict.fromkeys(keys, SharedCost(share, 0.0, 0.0))


@pytest.fixture
def sharing(gpu):
    device = devices_of(gpu.driver)[0]
    before = find_costs(device)
    use_costs(device, before._replace(shared=always(0.3)))
    yield
    use_costs(device, before)


@pytest.mark.parametrize("back", [False, True])
def test_what_is_shared_arrives(gpu, sharing, rng, back):
    content = rng.integers(0, 256, (40, 32 * KIB), dtype=np.uint8)
    kinds = (gpu.device_array, gpu.pinned_array) if back else (gpu.pinned_array, gpu.device_array)
    src, dst = (make(content.shape, np.uint8) for make in kinds)
    src.copy_to_device(content) if back else np.copyto(src, content)
    rows = np.stack([rng.permutation(20) * 2, rng.permutation(20) * 2], axis=1)
    transfer = ns.swap_blocks(src, dst, rows, stream=gpu.stream())
    transfer.wait()
    found = np.asarray(dst) if back else dst.copy_to_host()
    assert np.array_equal(found[rows[:, 1]], content[rows[:, 0]])
    assert [(p.mode, p.copies) for p in transfer.decision.parts] == [
        (Mode.KERNEL, 14),
        (Mode.BATCH, 6),
    ]


def test_boxes_that_are_shared_arrive(gpu, sharing, rng):
    field = gpu.pinned_array((12, 12, 40), np.float32)
    field[:] = rng.random(field.shape)
    pool = gpu.device_array((10, 4, 4, 9), np.float32)
    corners = rng.integers(0, 8, (10, 3))
    slots = np.zeros((10, 4), np.int64)
    slots[:, 0] = rng.permutation(10)
    transfer = ns.copy_boxes(field, pool, corners, slots, (4, 4, 9))
    transfer.wait()
    assert [p.copies for p in transfer.decision.parts] == [7, 3]
    tiles = pool.copy_to_host()
    for (z, y, x), (slot, *_) in zip(corners, slots, strict=True):
        assert np.array_equal(tiles[slot], field[z : z + 4, y : y + 4, x : x + 9])


@pytest.mark.parametrize("swap", list(GRID.shared_swaps()), ids=str)
@pytest.mark.parametrize("pays", [True, False])
def test_the_best_share_is_kept_if_it_pays(gpu, monkeypatch, swap, pays):
    """The times are made up: that of 0.3 is the least of the shares."""
    device = devices_of(gpu.driver)[0]
    former = find_costs(device)
    seen = []

    def measure_in_turn(arms, **arguments):
        for run in arms.values():
            run()
        mine = find_costs(device)
        seen.append(mine)
        plenty = len(seen) != 2  # all of them, then fewer, then all in the best way once more
        us = dict.fromkeys(arms, 1000.0) | {0.3: 900.0 if pays else 995.0}
        assert 0.3 in arms
        assert len(arms) == 2 or len(seen) < 3
        return {
            share: Samples([], [int((value if plenty else value / 2) * 1000)])
            for share, value in us.items()
        }

    monkeypatch.setattr(shared, "measure_in_turn", measure_in_turn)
    timer = SwapTimer(BenchGPU(gpu.driver, gpu), GRID)
    found = shared.measure_shared(timer, device, former, swap)
    assert find_costs(device) is former
    assert len(seen) == 3
    assert all(costs.shared for costs in seen)  # the last arm had a share
    if not pays:
        assert found == {}
        return
    ((key, cost),) = found.items()
    route = {ns.Direction.H2D: "h2d", ns.Direction.D2H: "d2h"}[swap.direction]
    if isinstance(swap, GridSwap):
        assert key == (route, 2)
    else:
        assert isinstance(swap, GridBoxes)
        assert key == (f"{route} {'boxes' if swap.aligned else 'odd boxes'}", 0)
    assert cost.share == 0.3
    copies = timer.plan(swap).copies
    whole, part = copies.nbytes, copies.select(slice(0, len(copies) // 4)).nbytes
    assert cost.megabyte_us == pytest.approx(450.0 / (whole - part) * 1e6, rel=1e-4)
    assert cost.start_us + whole * cost.megabyte_us * 1e-6 == pytest.approx(900.0, rel=1e-3)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_few_copies_are_no_measurement(gpu, number):
    """As where there is little memory: what cannot be shared out is not measured."""
    device = devices_of(gpu.driver)[0]
    timer = SwapTimer(BenchGPU(gpu.driver, gpu), GRID)
    swap = GridSwap(ns.Direction.H2D, False, 32 * KIB, number)
    assert shared.measure_shared(timer, device, find_costs(device), swap) == {}


def test_what_is_forced_elsewhere_does_not_reach_the_measurement(gpu, monkeypatch):
    device, modes = devices_of(gpu.driver)[0], []
    run = CopyPlan.run

    def note(self, *arguments, **options):
        transfer = run(self, *arguments, **options)
        modes.append(tuple(map(str, transfer.decision.modes)))
        return transfer

    monkeypatch.setattr(CopyPlan, "run", note)
    timer = SwapTimer(BenchGPU(gpu.driver, gpu), GRID)
    swap = GridSwap(ns.Direction.H2D, False, 32 * KIB, 8)
    with ns.override(mode="loop", policy="latency"):
        shared.measure_shared(timer, device, find_costs(device), swap)
    assert {"kernel", "batch"} <= {mode for some in modes for mode in some}
    assert ("kernel", "batch") in modes
