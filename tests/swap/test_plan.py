"""What a plan keeps from run to run: its choice, its last launch, and its arrays."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from machines import make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.swap import plan as plans

ROWS = np.array([[0, 6], [2, 9], [5, 1], [7, 3], [9, 11]])


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def counts(monkeypatch):
    """How often a run took the long way, and how often a plan chose how to run."""
    counts = {"long": 0, "chosen": 0}
    execute, choose = plans.execute, plans.choose

    def count_long(*arguments):
        counts["long"] += 1
        return execute(*arguments)

    def count_choices(*arguments):
        counts["chosen"] += 1
        return choose(*arguments)

    monkeypatch.setattr(plans, "execute", count_long)
    monkeypatch.setattr(plans, "choose", count_choices)
    return counts


def pools(gpu, rng, *kinds):
    return [make_array(gpu, kind, random_bytes(rng, (12, 96))) for kind in kinds]


def check(gpu, src, dst):
    assert np.array_equal(read_array(gpu, dst)[ROWS[:, 1]], read_array(gpu, src)[ROWS[:, 0]])


@pytest.mark.parametrize(
    ("kinds", "own_stream", "short"),
    [
        (("pinned", "device"), True, True),
        (("pinned", "device"), False, True),
        (("pinned", "pinned"), True, True),
        # Of whatever context is current, which no memory of a GPU says: looked at every time.
        (("pinned", "pinned"), False, False),
    ],
)
def test_a_kernel_is_launched_again_without_looking_at_anything(
    gpu, rng, counts, kinds, own_stream, short
):
    src, dst = pools(gpu, rng, *kinds)
    plan, stream = ns.plan_blocks(src, dst, ROWS), gpu.stream() if own_stream else None
    for runs in (1, 2, 3):
        plan.run(stream, "kernel").wait()
        check(gpu, src, dst)
        assert counts["long"] == (1 if short else runs)
        if isinstance(src, np.ndarray):
            src += 1
    plan.run(stream, "loop").wait()
    assert counts["long"] == (2 if short else 4)
    # What ran last as a kernel is still known.
    plan.run(stream, "kernel").wait()
    assert counts["long"] == (2 if short else 5)


def test_what_is_pending_on_an_array_comes_before_every_run(gpu, rng, counts):
    src, dst = pools(gpu, rng, "pinned", "device")
    own, busy = gpu.stream(non_blocking=True), gpu.stream(non_blocking=True)
    interface = {**dst.__cuda_array_interface__, "stream": busy.handle}
    plan = ns.plan_blocks(src, SimpleNamespace(__cuda_array_interface__=interface), ROWS)
    for runs in (1, 2, 3):
        content = random_bytes(rng, (12, 96))
        dst.copy_to_device(make_array(gpu, "pinned", content), stream=busy)
        plan.run(own, "kernel").wait()
        content[ROWS[:, 1]] = src[ROWS[:, 0]]
        assert np.array_equal(dst.copy_to_host(), content)
        assert counts["long"] == runs


def test_a_choice_is_made_once(gpu, rng, counts):
    src, dst = pools(gpu, rng, "pinned", "device")
    plan, stream = ns.plan_blocks(src, dst, ROWS), gpu.stream()
    for _ in range(3):
        plan.run(stream, "loop").wait()
    assert counts == {"long": 3, "chosen": 1}
    plan.forget()
    assert not plan.copies.memo
    plan.run(stream, "loop").wait()
    assert counts["chosen"] == 2


def test_an_exchange_that_runs_again_keeps_its_arrays(gpu, rng):
    device, host = pools(gpu, rng, "device", "pinned")
    plan, stream = ns.plan_exchange(device, host, ROWS, ROWS[:, ::-1]), gpu.stream()
    plan.run(stream, "kernel").wait()
    gc.collect()
    alive = [weakref.ref(device), weakref.ref(host)]
    transfer = plan.run(stream, "kernel")
    del plan, device, host
    gc.collect()
    assert all(ref() is not None for ref in alive)
    transfer.wait()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
