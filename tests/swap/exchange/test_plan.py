"""What a plan of an exchange decides on, and what it does not look at."""

import numpy as np
import pytest
from machines import make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.modes.kernel import exchange as pair_mode


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


def pools(gpu, rng, block=64):
    contents = random_bytes(rng, (64, block)), random_bytes(rng, (64, block))
    device, host = (
        make_array(gpu, kind, content)
        for kind, content in zip(("device", "pinned"), contents, strict=True)
    )
    return device, host, *contents


def rows(shift, slots, blocks):
    """Rows, one more in than out, that share slots, or blocks, or neither."""
    ids = 2 * np.arange(8)
    out = np.stack([ids, ids], axis=1)
    into = np.stack([ids if blocks else ids + 32, ids if slots else ids + 32], axis=1)
    extra = np.array([[60, 62]])
    return out, np.roll(np.concatenate([into, extra]), shift, axis=0)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("slots", "blocks"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_what_is_staged_is_predicted_as_staged(gpu, rng, slots, blocks, shift):
    device, host, *_ = pools(gpu, rng)
    plan = ns.plan_exchange(device, host, *rows(shift, slots, blocks))
    assert plan.staged == bool(slots and blocks)
    ns.exchange(device, host, *rows(shift, slots, blocks), mode="loop").wait()


def test_blocks_that_share_bytes_are_predicted_as_staged(gpu):
    device, base = gpu.device_array((8, 64), np.uint8), gpu.pinned_array(1000, np.uint8)
    sliding = np.lib.stride_tricks.as_strided(base, (8, 64), (32, 1))
    assert ns.plan_exchange(device, sliding, [[0, 0]], [[4, 4]]).staged


@pytest.mark.parametrize(("slots", "blocks"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_rows_that_go_together_as_they_stand_need_no_look_for_pairs(gpu, rng, slots, blocks):
    device, host, *_ = pools(gpu, rng)
    out, into = rows(0, slots, blocks)
    plan = ns.plan_exchange(device, host, out, into[:8])
    assert plan._paired == (bool(slots), bool(blocks))
    assert plan.staged == bool(slots and blocks)
    assert plan._pairs.pairs.out is plan.copies[0]
    assert plan._pairs.pairs.into is plan.copies[1]
    assert not plan._pairs.rest
    plan = ns.plan_exchange(device, host, out, into)
    assert plan._paired is None
    assert len(plan._pairs.rest) == 1


@pytest.mark.parametrize("mode", ["auto", "kernel"])
def test_pairs_that_cannot_be_loaded_go_side_by_side(gpu, rng, monkeypatch, mode):
    device, host, before, other = pools(gpu, rng)
    out, into = rows(0, 1, 0)
    plan = ns.plan_exchange(device, host, out, into)
    assert "pair by pair" in plan.explain(mode=mode).reason
    monkeypatch.setattr(pair_mode, "load", lambda _: "no compiler")
    plan = ns.plan_exchange(device, host, out, into)
    transfer = plan.run(gpu.stream(), mode)
    transfer.wait()
    assert "pair by pair" not in transfer.decision.reason
    assert np.array_equal(read_array(gpu, host)[out[:, 1]], before[out[:, 0]])
    assert np.array_equal(read_array(gpu, device)[into[:, 1]], other[into[:, 0]])


@pytest.mark.parametrize("policy", ["throughput", "latency"])
def test_rows_without_a_partner_follow_in_the_same_stream(gpu, rng, policy):
    device, host, before, other = pools(gpu, rng)
    out, into = rows(0, 1, 1)
    stream, streams = gpu.stream(), []
    gpu.library.faults.watch("cuLaunchKernel", lambda *arguments: streams.append(arguments[8]))
    ns.exchange(device, host, out, into, mode="kernel", policy=policy, stream=stream).wait()
    assert streams == [stream.handle] * 2
    assert gpu.library.calls["cuStreamCreate"] == 0
    assert np.array_equal(read_array(gpu, host)[out[:, 1]], before[out[:, 0]])
    assert np.array_equal(read_array(gpu, device)[into[:, 1]], other[into[:, 0]])


@pytest.mark.parametrize(("going", "coming"), [(2, 8), (8, 2), (8, 0), (0, 8)])
def test_of_two_directions_the_longer_one_speaks_for_both(gpu, rng, going, coming):
    device, host, *_ = pools(gpu, rng)
    out, into = rows(0, 0, 0)
    decision = ns.plan_exchange(device, host, out[:going], into[:coming]).explain(mode="loop")
    longest = max(decision.parts or (decision,), key=lambda part: part.nbytes)
    assert longest.copies == 8
    assert decision.ranked == longest.ranked
    assert decision.mode is longest.mode
