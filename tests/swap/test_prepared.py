"""Launches that are made again: of which runs, and where."""

import numpy as np
import pytest
from machines import capture, random_bytes

import numba_swap as ns

ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


def test_a_run_in_a_capture_is_not_the_one_to_be_launched_again(gpu, rng):
    """What a graph may not have, a batch, a later run in the same stream may."""
    src, dst = (make((96, 1 << 20), np.uint8) for make in (gpu.pinned_array, gpu.device_array))
    rows = [[i, i] for i in range(0, 96, 2)]
    stream = gpu.stream()
    for _ in range(2):  # so that events are there that a run may take
        ns.swap_blocks(src, dst, rows[:2], stream=stream, mode="kernel").wait()
    plan, seen = ns.plan_blocks(src, dst, rows), []
    capture(gpu, stream, lambda: seen.append(plan.run(stream)))
    assert seen[0].decision.mode == "kernel"
    assert plan.last is None
    transfer = plan.run(stream)
    assert transfer.decision.mode == "batch"
    transfer.wait()


def test_another_stream_is_another_launch(gpu, rng):
    src, dst = gpu.pinned_array((12, 96), np.uint8), gpu.device_array((12, 96), np.uint8)
    src[:] = random_bytes(rng, (12, 96))
    plan, filled = ns.plan_blocks(src, dst, ROWS), gpu.pinned_array((12, 96), np.uint8)
    for stream in [gpu.stream(non_blocking=True) for _ in range(3)]:
        for _ in range(2):
            filled += 1
            dst.copy_to_device(filled, stream=stream)  # must come before
            plan.run(stream, "kernel").wait()
            gpu.synchronize()
            assert np.array_equal(dst.copy_to_host()[ROWS[:, 1]], src[ROWS[:, 0]])
            assert plan.last.stream == stream.handle
