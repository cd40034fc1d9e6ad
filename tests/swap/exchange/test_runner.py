"""The steps of an exchange: what limits them, and what they hold."""

import numpy as np
import pytest
from machines import make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.swap.running import execute

BLOCK = 64
# Each slot is refilled from a block that is overwritten: all is staged, in the order of the rows.
IN_A_RING = (
    np.array([[0, 1], [1, 2], [2, 3], [3, 0]]),
    np.array([[0, 0], [1, 1], [2, 2], [3, 3]]),
)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def steps_of(monkeypatch):
    """Every list of steps that is submitted."""
    lists = []
    submit = execute.submit_steps

    def noted(steps, launch, work, *, forked):
        steps = list(steps)
        lists.append([step._replace(holds=None) for step in steps])
        submit(steps, launch, work, forked=forked)

    monkeypatch.setattr(execute, "submit_steps", noted)
    return lists


def exchanged(gpu, rng, out, into, block=BLOCK, **how):
    """Exchange, and check what arrived."""
    before = [random_bytes(rng, (64, block)) for _ in range(2)]
    device, host = (
        make_array(gpu, kind, content)
        for kind, content in zip(("device", "pinned"), before, strict=True)
    )
    transfer = ns.exchange(device, host, out, into, **how)
    transfer.wait()
    after = [content.copy() for content in before]
    after[1][out[:, 1]] = before[0][out[:, 0]]
    after[0][into[:, 1]] = before[1][into[:, 0]]
    assert np.array_equal(read_array(gpu, device), after[0])
    assert np.array_equal(read_array(gpu, host), after[1])
    return transfer


@pytest.mark.parametrize(
    ("how", "most"),
    [({}, 32), ({"max_blocks": 2}, 2), ({"max_blocks": 9, "policy": "latency"}, 9)],
)
def test_what_was_staged_moves_on_in_as_many_thread_blocks_as_it_may(gpu, rng, tune, how, most):
    tune(device_blocks=64, device_blocks_beside=64)
    grids = []
    gpu.library.faults.watch("cuLaunchKernel", lambda *arguments: grids.append(arguments[1]))
    exchanged(gpu, rng, *IN_A_RING, block=1 << 16, stream=gpu.stream(), mode="batch", **how)
    # (4 copies of 64 KiB in 8 chunks of 32 threads each, 32 threads a block: 32 blocks.)
    assert grids == [most]


def test_neighbours_that_are_staged_are_one_copy(gpu, rng, steps_of):
    out, into = IN_A_RING
    exchanged(gpu, rng, out, into, mode="loop")
    settled = [step for step in steps_of[0] if step.strand[0] == "settle"]
    assert [len(step.work) for step in settled] == [1]
    # What goes out passes the end of the pool, what comes in does not.
    assert [len(step.work) for step in steps_of[0]] == [1, 2, 1]


def test_steps_are_planned_once(gpu, tune, steps_of):
    tune(smallest_piece_bytes=BLOCK)
    device, host = gpu.device_array((64, BLOCK), np.uint8), gpu.pinned_array((64, BLOCK), np.uint8)
    ids = 2 * np.arange(16)
    out, into = np.stack([ids, ids], axis=1), np.stack([ids + 32, ids + 32], axis=1)
    plan = ns.plan_exchange(device, host, out, into)
    for _ in range(2):
        plan.run(mode="loop").wait()
    first, second = steps_of
    assert len(first) == 32
    assert all(one.work is other.work for one, other in zip(first, second, strict=True))
