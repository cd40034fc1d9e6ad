"""Many steps, several a visit: bit for bit those of the plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import examples
from tile_model import cases, launch_spread, numbers, spread_whole

import numba_swap as ns
from numba_swap.paging.tiles.visits import _visits
from numba_swap.testing import Fault


def make(gpu, kind, content):
    array = gpu.pinned_array(content.shape, content.dtype) if kind == "pinned" else content.copy()
    array[...] = content
    return array


@examples(60)
@given(
    cases(most_halo=1),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from(["pinned", "plain"]),
)
def test_steps_are_those_of_numpy(case, steps, most, fields, kind):
    tiling = case.tiling
    if tiling.boundary == "periodic":
        longest = max(n for n in (*tiling.halo, 1))
        most = max(1, min(most, min(tiling.shape) // longest))
    with ns.simulate() as gpu:
        arrays = [make(gpu, kind, numbers(tiling.shape, seed)) for seed in range(fields)]
        wanted = [array.copy() for array in arrays]
        for _ in range(steps):
            wanted = [spread_whole(field, tiling) for field in wanted]
        ns.run_steps(
            arrays,
            tiling,
            lambda step: launch_spread(gpu, tiling.halo, step),
            steps,
            most,
            depth=case.depth,
            order=case.order,
        )
        for array, want in zip(arrays, wanted, strict=True):
            assert (array == want).all()


@pytest.mark.parametrize("most", [1, 2, 3])
def test_floats_are_those_of_the_plain_loop_bit_for_bit(most):
    rng = np.random.default_rng(3)
    with ns.simulate() as gpu:
        u, old, new = (gpu.pinned_array((17, 11)) for _ in range(3))
        c = gpu.pinned_array((17, 11))
        u[...], c[...] = rng.random((2, 17, 11))
        old[...] = u
        tiling = ns.Tiling(u.shape, 4, halo=1, boundary=0.3)

        def diffuse(u, c, new):
            mid, k = u[1:-1, 1:-1], c[1:-1, 1:-1]
            around = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
            new[...] = mid + k * (around - 4 * mid) + c[2:, 1:-1]

        def kernel(step):
            gpu.launch(diffuse, *step.reads, *step.writes, stream=step.stream)

        for _ in range(6):
            for step in ns.stream_tiles([old, c], [new], tiling=tiling):
                kernel(step)
            old, new = new, old
        ns.run_steps([u], tiling, kernel, 6, most, constants=[c])
        assert (u.view(np.int64) == old.view(np.int64)).all()


@given(st.integers(1, 200), st.integers(1, 20))
def test_visits_are_even_where_they_can_be(steps, most):
    visits = _visits(steps, most)
    assert sum(visits) == steps
    assert 1 <= min(visits) <= max(visits) <= min(most, steps)
    assert len(visits) % 2 == 0 or len(visits) == steps


def test_a_visit_moves_less_than_its_steps():
    with ns.simulate() as gpu:
        u = gpu.pinned_array((64,))
        u[:] = 1
        tiling, calls = ns.Tiling(u.shape, 16, halo=1), gpu.library.calls

        def copies(most):
            before = calls["cuMemcpyAsync"]
            kernel = lambda step: launch_spread(gpu, (1,), step)  # noqa: E731
            with ns.override(mode="loop"):
                ns.run_steps([u], tiling, kernel, 8, most)
            return calls["cuMemcpyAsync"] - before

        assert copies(1) == 8 * 4 * 2
        assert copies(4) == 2 * 4 * 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 5, 16, 23, 24, 40])
def test_after_an_error_the_fields_hold_whole_steps(error, at):
    tiling = ns.Tiling((8, 4), (2, 4), halo=(1, 0), boundary="periodic")
    with ns.simulate() as gpu:
        u = gpu.pinned_array(tiling.shape, np.int64)
        u[...] = states = numbers(tiling.shape)
        states = [states]
        for _ in range(12):
            states.append(spread_whole(states[-1], tiling))
        seen = []

        def kernel(step):
            if len(seen) == at:
                raise error("mine")
            seen.append(step.tile)
            launch_spread(gpu, tiling.halo, step)

        with pytest.raises(error) as caught:
            ns.run_steps([u], tiling, kernel, 12, 2)
        done = at // 8 * 2
        assert caught.value.__notes__ == [f"The fields hold the state after {done} of 12 steps."]
        gpu.synchronize()
        assert (u == states[done]).all()


def test_after_a_fault_too():
    tiling = ns.Tiling((8, 4), (2, 4), halo=(1, 0))
    states = [numbers(tiling.shape)]
    for _ in range(6):
        states.append(spread_whole(states[-1], tiling))
    with ns.simulate() as gpu, ns.override(mode="loop"):
        u = gpu.pinned_array(tiling.shape, np.int64)

        def run():
            u[...] = states[0]
            ns.run_steps([u], tiling, lambda step: launch_spread(gpu, tiling.halo, step), 6, 2)

        run()
        for function in ("cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize"):
            before = gpu.library.calls[function]
            run()
            for call in range(1, gpu.library.calls[function] - before, 3):
                gpu.library.faults.add(Fault(function, 2, call=call))
                try:
                    run()
                except ns.DriverCallError as error:
                    (done,) = (int(n.split("after ")[1].split()[0]) for n in error.__notes__)
                else:
                    done = 6
                gpu.library.faults.clear()
                gpu.synchronize()
                assert (u == states[done]).all()


def test_what_is_refused():
    tiling = ns.Tiling((8,), 4, halo=2, boundary="periodic")
    with ns.simulate() as gpu:
        u = gpu.pinned_array(8)
        u[:] = 1
        for arguments, words in [
            (([u], tiling, print, 0), "steps=0"),
            (([u], tiling, print, 2, "many"), "steps_per_visit='many'"),
            (([u], tiling, None, 2), "kernel=None"),
            (([], tiling, print, 2), "fields is empty"),
            (([u, u], tiling, print, 2), "share memory"),
            (([u], tiling, print, 20, 5), "with 5 steps a visit, .*longer than the field"),
        ]:
            with pytest.raises(ns.BadArgumentError, match=words):
                ns.run_steps(*arguments)
        gpu.library.memory.device_limit = 100
        with pytest.raises(ns.BadArgumentError, match="100 are free"):
            ns.run_steps([u], tiling, print, 2)
        assert (u == 1).all()
        assert gpu.library.live()["device"] == 0
