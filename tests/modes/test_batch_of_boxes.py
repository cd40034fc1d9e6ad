"""What one call of the driver's batch of boxes is given."""

import numpy as np
import pytest

import numba_swap as ns
from numba_swap.modes import batch


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        yield gpu


def test_chunks_hold_no_more_than_they_may(rng):
    for _ in range(300):
        calls = rng.choice([1, 1, 2, 5, 40], size=rng.integers(1, 60))
        most = int(rng.integers(1, 50))
        chunks = list(batch._chunks(np.cumsum(calls), most))
        assert [start for start, _, _ in chunks] == [0, *(stop for _, stop, _ in chunks[:-1])]
        assert chunks[-1][1] == len(calls)
        for start, stop, before in chunks:
            assert before == calls[:start].sum()
            assert stop == start + 1 or calls[start:stop].sum() <= most
            assert stop == len(calls) or calls[start : stop + 1].sum() > most  # none is too short


def test_a_heavy_box_does_not_make_calls_of_all_others(gpu, rng):
    field = gpu.pinned_array((300, 40, 40), np.float32)
    field[:] = rng.random(field.shape)
    small = gpu.device_array((200, 2, 2, 2), np.float32)
    large = gpu.device_array((1, 30, 30), np.float32)
    pairs = [(field[i : i + 2, :2, :2], small[i]) for i in range(200)]
    pairs.insert(100, (field[299:, 29::-1, 30:0:-1], large))  # a copy for each of 900 elements
    before = gpu.library.calls["cuMemcpy3DBatchAsync"]
    with ns.override(batch_descriptors=400):
        ns.copy_many(pairs, mode="batch").wait()
    assert gpu.library.calls["cuMemcpy3DBatchAsync"] - before <= 5
    assert (large.copy_to_host() == field[299:, 29::-1, 30:0:-1]).all()
    assert all((small.copy_to_host()[i] == field[i : i + 2, :2, :2]).all() for i in range(200))


@pytest.mark.parametrize("mode", ["loop", "batch", "kernel"])
def test_rows_that_run_backwards_take_a_copy_a_plane(gpu, rng, mode):
    field = gpu.pinned_array((20, 6, 64), np.float32)
    field[:] = rng.random(field.shape)
    tile = gpu.device_array(field.shape, np.float32)
    before = gpu.library.calls["cuMemcpy3DAsync"], gpu.library.calls["cuMemcpyAsync"]
    ns.copy(field[:, ::-1], tile, mode=mode).wait()
    assert (tile.copy_to_host() == field[:, ::-1]).all()
    after = gpu.library.calls["cuMemcpy3DAsync"], gpu.library.calls["cuMemcpyAsync"]
    if mode == "loop":
        assert (after[0] - before[0], after[1] - before[1]) == (6, 0)
