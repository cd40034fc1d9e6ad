"""Launches that are made again: of which runs, and where."""

import threading

import numpy as np
import pytest
from machines import capture, random_bytes

import numba_swap as ns
from numba_swap.driver.simulated import Fault

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


# -- loops over boxes ------------------------------------------------------------------------------


class Field:
    """Tiles of a field into the slots of a pool, planned, and the stream that they run in."""

    def __init__(self, gpu, rng):
        self.gpu = gpu
        self.field = gpu.pinned_array((12, 12, 12), np.float32)
        self.field[:] = rng.random(self.field.shape)
        self.pool = gpu.device_array((4, 3, 4, 5), np.float32)
        self.corners = np.array([[0, 1, 2], [5, 0, 3], [8, 8, 7], [3, 6, 1]])
        slots = np.column_stack([np.arange(4)[::-1], np.zeros((4, 3), int)])
        self.plan = ns.plan_boxes(self.field, self.pool, self.corners, slots, (3, 4, 5))
        self.stream = gpu.stream()

    def run(self, **options):
        self.pool.copy_to_device(np.zeros(self.pool.shape, np.float32))
        return self.plan.run(self.stream, "loop", **options)

    def right(self):
        """Return which of the boxes have arrived."""
        pool = self.pool.copy_to_host()
        return [
            bool((pool[3 - i] == self.field[z : z + 3, y : y + 4, x : x + 5]).all())
            for i, (z, y, x) in enumerate(self.corners)
        ]


@pytest.fixture
def tiles(gpu, rng):
    tiles = Field(gpu, rng)
    for _ in range(2):  # now it is prepared, and an event is there to be taken
        tiles.run().wait()
    return tiles


def calls_of(tiles, run):
    before = tiles.gpu.library.calls.copy()
    run()
    return tiles.gpu.library.calls - before


def test_a_loop_that_is_run_again_asks_and_copies_in_one_go(tiles):
    assert tiles.plan.last is not None
    tiles.field[:] = tiles.field[::-1].copy()
    calls = calls_of(tiles, lambda: tiles.plan.run(tiles.stream, "loop"))
    assert calls["cuMemcpy3DAsync"] == 4
    assert calls["cuEventRecord"] == calls["cuStreamIsCapturing"] == calls["cuStreamGetCtx"] == 1
    assert calls["cuPointerGetAttributes"] == calls["cuEventCreate"] == 0
    tiles.gpu.synchronize()
    assert all(tiles.right())


@pytest.mark.parametrize("failing", [0, 2, 3])
def test_a_box_that_is_refused_in_a_prepared_loop_is_told(tiles, failing):
    tiles.pool.copy_to_device(np.zeros(tiles.pool.shape, np.float32))
    tiles.gpu.library.faults.add(Fault("cuMemcpy3DAsync", 1, call=failing + 1))
    with pytest.raises(ns.DriverCallError) as caught:
        tiles.plan.run(tiles.stream, "loop")
    error = caught.value
    assert (error.function, error.failing_index) == ("cuMemcpy3DAsync", failing)
    assert error.copy.startswith(f"box {failing} ")
    assert list(error.submitted_rows) == list(range(failing + 1))
    tiles.gpu.synchronize()
    assert tiles.right() == [i < failing for i in range(4)]
    tiles.run().wait()
    assert all(tiles.right())


def test_an_event_that_fails_behind_a_prepared_loop(tiles):
    tiles.pool.copy_to_device(np.zeros(tiles.pool.shape, np.float32))
    tiles.gpu.library.faults.add(Fault("cuEventRecord", 1))
    with pytest.raises(ns.DriverCallError) as caught:
        tiles.plan.run(tiles.stream, "loop")
    assert caught.value.function == "cuEventRecord"
    tiles.gpu.synchronize()
    assert all(tiles.right())


def test_a_prepared_loop_in_a_capture_goes_into_the_graph(tiles):
    tiles.pool.copy_to_device(np.zeros(tiles.pool.shape, np.float32))
    replay = capture(tiles.gpu, tiles.stream, lambda: tiles.plan.run(tiles.stream, "loop"))
    assert not any(tiles.right())
    replay()
    tiles.gpu.synchronize()
    assert all(tiles.right())


def test_a_prepared_loop_in_a_thread_without_a_context(tiles):
    tiles.pool.copy_to_device(np.zeros(tiles.pool.shape, np.float32))
    found = []

    def work():
        tiles.plan.run(tiles.stream, "loop").wait()
        found.append(tiles.gpu.driver.probe(0)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]  # it has none afterwards, either
    assert all(tiles.right())


def test_another_mode_is_no_prepared_loop(tiles):
    for mode in ("batch", "kernel", "loop", "batch"):
        tiles.pool.copy_to_device(np.zeros(tiles.pool.shape, np.float32))
        transfer = tiles.plan.run(tiles.stream, mode)
        transfer.wait()
        assert transfer.decision.mode == mode
        assert all(tiles.right())
