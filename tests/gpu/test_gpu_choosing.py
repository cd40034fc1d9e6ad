"""Choosing on a real GPU: bytes right in parts, in pieces, in graphs, under every policy."""

import numpy as np
import pytest
from machines import RealGPU, address_of, capture, make_array, random_bytes, read_array, real_modes

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.dispatch.cost_model import ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import ROUTES
from numba_swap.driver.current import default_driver

pytestmark = pytest.mark.gpu
BLOCK = 8192
KINDS = [("pinned", "device"), ("device", "pinned"), ("device", "device")]
MODES = ["auto", *real_modes()]


@pytest.fixture
def gpu():
    return RealGPU()


def address(array):
    return address_of(array)


def rows_for(rng, count, sources, destinations):
    return np.stack(
        [rng.permutation(sources)[:count], rng.permutation(destinations)[:count]], axis=1
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("a_piece", [16, 100, 1 << 20])
@pytest.mark.parametrize("what", ["refilled", "in place", "rotation", "random"])
def test_exchange_with_conflicts(gpu, rng, tune, mode, a_piece, what):
    tune(staged_bytes=a_piece * BLOCK, smallest_piece_bytes=a_piece * BLOCK)
    slots, blocks = 500, 1200
    before = random_bytes(rng, (slots, BLOCK)), random_bytes(rng, (blocks, BLOCK))
    device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
    page_out = rows_for(rng, slots, slots, blocks)
    page_in = rows_for(rng, slots, blocks, slots)
    if what == "refilled":
        page_in[:, 0] = rng.permutation(np.setdiff1d(np.arange(blocks), page_out[:, 1]))[:slots]
    elif what == "in place":
        page_in = page_out[:, ::-1].copy()
    elif what == "rotation":
        page_in = np.stack([np.roll(page_out[:, 1], 7), page_out[:, 0]], axis=1)
    plan = ns.plan_exchange(device, host, page_out, page_in)
    state = before
    for stream in (gpu.stream(), None):
        plan.run(stream, mode).wait()
        front, back = state[0].copy(), state[1].copy()
        back[page_out[:, 1]] = state[0][page_out[:, 0]]
        front[page_in[:, 1]] = state[1][page_in[:, 0]]
        state = front, back
        assert np.array_equal(read_array(gpu, device), front)
        assert np.array_equal(read_array(gpu, host), back)


@pytest.fixture
def made_costs():
    """Costs by which every call with short and long copies is split, until the test is over."""
    driver = default_driver()
    driver.current_context()  # made, if the thread has none yet
    device = devices_of(driver)[driver.current_device()]
    before = find_costs(device)
    short, long = (1.0, 1.0, 1e3, 1e3), (1e3, 1e3, 1.0, 1.0)
    nothing = (0.0,) * 4
    three = {
        Mode.LOOP: ModeCost(1e7, 0.0, nothing, nothing),
        Mode.BATCH: ModeCost(0.0, 0.0, long, nothing),
        Mode.KERNEL: ModeCost(0.0, 0.0, short, nothing),
    }
    use_costs(device, before._replace(routes=dict.fromkeys(ROUTES, three)))
    yield
    use_costs(device, before)


@pytest.mark.skipif("batch" not in MODES, reason="the driver is capped below 12.8")
@pytest.mark.parametrize("kinds", KINDS[:2])
def test_a_split_by_length(gpu, rng, made_costs, kinds):
    sizes = rng.choice([1, 100, 512, 4096, 8192, 32 << 10, 100_000, 1 << 20], 300)
    starts = np.concatenate([[0], np.cumsum(sizes + 3)[:-1]])
    content = random_bytes(rng, int(starts[-1] + sizes[-1]))
    target = random_bytes(rng, len(content))
    src, dst = (make_array(gpu, k, c) for k, c in zip(kinds, (content, target), strict=True))
    # What is read was written in the same stream just before, what is written is read just after.
    stream = gpu.stream()
    back = gpu.pinned_array(len(content), np.uint8)
    whole = {"stream": stream, "mode": "loop"}
    if kinds[0] == "device":
        src.copy_to_device(np.zeros_like(content))
        filled = make_array(gpu, "pinned", content)
        ns.swap_blocks_batch([address(filled)], [address(src)], [len(content)], **whole)
    transfer = ns.swap_blocks_batch(
        address(src) + starts, address(dst) + starts, sizes, stream=stream
    )
    assert transfer.decision.modes == ("kernel", "batch")
    ns.swap_blocks_batch([address(dst)], [address(back)], [len(content)], **whole)
    transfer.wait()
    stream.synchronize()
    for start, size in zip(starts, sizes, strict=True):
        target[start : start + size] = content[start : start + size]
    assert np.array_equal(back, target)


@pytest.mark.parametrize("mode", ["auto", "kernel", "loop"])
@pytest.mark.parametrize("kinds", KINDS[:2])
def test_a_captured_swap_replayed_a_thousand_times(gpu, rng, mode, kinds):
    content = random_bytes(rng, (64, 1024))
    src, dst = (make_array(gpu, k, np.zeros_like(content)) for k in kinds)
    rows = rows_for(rng, 32, 64, 64)
    stream, plan = gpu.stream(), ns.plan_blocks(src, dst, rows)
    plan.run(stream, mode).wait()
    replay = capture(gpu, stream, lambda: plan.run(stream, mode))
    expected = np.zeros_like(content)
    for step in range(1000):
        content = np.roll(content, 1 + step % 5, axis=0) + np.uint8(step % 256)
        if kinds[0] == "pinned":
            src[...] = content
        else:
            src.copy_to_device(content)
        replay()
        expected[rows[:, 1]] = content[rows[:, 0]]
        assert np.array_equal(dst if kinds[1] == "pinned" else dst.copy_to_host(), expected), step


@pytest.mark.parametrize("policy", list(ns.Policy))
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("nbytes", "count"), [(100, 3), (8192, 700), (1 << 18, 40)])
def test_policies(gpu, rng, policy, kinds, nbytes, count):
    content, target = (random_bytes(rng, (2 * count, nbytes)) for _ in range(2))
    src, dst = (make_array(gpu, k, c) for k, c in zip(kinds, (content, target), strict=True))
    for stream in (gpu.stream(), None):
        for _ in range(2):  # anew, and the short way
            rows = rows_for(rng, count, 2 * count, 2 * count)
            ns.swap_blocks(src, dst, rows, stream=stream, policy=policy).wait()
            target[rows[:, 1]] = content[rows[:, 0]]
            assert np.array_equal(read_array(gpu, dst), target)


@pytest.mark.parametrize("policy", list(ns.Policy))
def test_both_directions_in_one_call(gpu, rng, policy):
    """More than a mebibyte each way: under the first two policies in streams of their own."""
    contents = [random_bytes(rng, (800, BLOCK)) for _ in range(2)]
    arrays = [make_array(gpu, k, c) for k, c in zip(KINDS[0], contents, strict=True)]
    ends = [address(array) for array in arrays]
    lower, upper = (rng.permutation(400) + shift for shift in (0, 400))
    src = np.concatenate([ends[0] + lower * BLOCK, ends[1] + lower * BLOCK])
    dst = np.concatenate([ends[1] + upper * BLOCK, ends[0] + upper * BLOCK])
    transfer = ns.swap_blocks_batch(src, dst, [BLOCK] * 800, stream=gpu.stream(), policy=policy)
    transfer.wait()
    for here, there in ((0, 1), (1, 0)):
        expected = contents[there].copy()
        expected[upper] = contents[here][lower]
        assert np.array_equal(read_array(gpu, arrays[there]), expected)
    assert bool(transfer.decision.parts) == (policy is not ns.Policy.LATENCY)
