"""Steps through a field: what NumPy computes on the whole, however the tiles are cut."""

import signal
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import examples, no_reaper
from tile_model import cases, launch_spread, numbers, spread_whole

import numba_swap as ns
from numba_swap.device import in_flight
from numba_swap.driver.simulated import Fault


def make(gpu, kind, content):
    array = gpu.pinned_array(content.shape, content.dtype) if kind == "pinned" else content.copy()
    array[...] = content
    return array


@examples(60)
@given(cases(), st.sampled_from(["pinned", "plain"]), st.sampled_from(["auto", "loop"]))
def test_updates_are_those_of_the_whole_field(case, kind, mode):
    with ns.simulate() as gpu:
        u = make(gpu, kind, numbers(case.tiling.shape))
        want = spread_whole(u, case.tiling)
        steps = ns.stream_tiles(
            updates=[u], tiling=case.tiling, depth=case.depth, order=case.order, mode=mode
        )
        for step in steps:
            launch_spread(gpu, case.tiling.halo, step)
        assert (u == want).all()  # without any further waiting
        assert sorted(steps.written) == list(range(len(case.tiling)))
        assert steps.unsure == ()


@examples(40)
@given(cases(), st.sampled_from(["pinned", "plain"]))
def test_reads_and_writes_beside_updates(case, kind):
    with ns.simulate() as gpu:
        tiling = case.tiling
        a, u = (make(gpu, kind, numbers(tiling.shape, seed)) for seed in (1, 2))
        w = make(gpu, kind, np.zeros(tiling.shape, np.int64))
        wanted, unchanged = [spread_whole(a, tiling), spread_whole(u, tiling)], a.copy()
        for step in ns.stream_tiles([a], [w], [u], tiling=tiling, depth=case.depth):
            inner, outer = tiling.boxes(step.tile)
            assert [view.shape for view in step.reads] == [outer.shape] * 2
            assert [view.shape for view in step.writes] == [inner.shape] * 2
            assert step.box == inner
            launch_spread(gpu, tiling.halo, step)
        assert (w == wanted[0]).all()
        assert (u == wanted[1]).all()
        assert (a == unchanged).all()


def test_types_and_sums_without_writes():
    with ns.simulate() as gpu:
        tiling = ns.Tiling((10, 6), (4, 6), halo=1, boundary=2)
        a, b = (gpu.pinned_array(tiling.shape, kind) for kind in (np.int8, np.complex64))
        a[...], b[...] = 1, 1j
        sums = []

        def add(a, b):
            sums.append((int(a.sum()), complex(b.sum())))

        for step in ns.stream_tiles([a, b], tiling=tiling):
            gpu.launch(add, *step.reads, stream=step.stream)
        assert len(sums) == 3  # the loop has waited for the kernels, too
        # Of 4 rows and 6 columns with a halo: 12 x 8 - 60 elements are outside, and 2 each.
        inside = [24 + 6 * (1 + (n == 1)) for n in range(3)]
        inside[2] = 12 + 6
        sizes = [6 * 8, 6 * 8, 4 * 8]
        assert [s for s, _ in sums] == [
            n + 2 * (size - n) for n, size in zip(inside, sizes, strict=True)
        ]
        assert [s.imag for _, s in sums] == inside


def test_it_comes_after_the_stream_and_default_stream():
    tiling = ns.Tiling((8,), 4)
    with ns.simulate() as gpu:
        u, w = gpu.pinned_array(8), gpu.pinned_array(8)
        device, stream = gpu.device_array(8), gpu.stream(non_blocking=True)
        device.copy_to_device(np.arange(8.0))

        def double(old, new):
            new[:] = 2 * old

        for late in (stream, None):
            u[:] = 0
            transfer = ns.copy(device, u, stream=late)  # not waited for
            for step in ns.stream_tiles([u], [w], tiling=tiling, stream=late):
                gpu.launch(double, *step.reads, *step.writes, stream=step.stream)
            assert w.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
            transfer.wait()


def test_views_are_the_same_objects_when_a_slot_serves_again():
    tiling = ns.Tiling((24,), 4)
    with ns.simulate() as gpu:
        u = gpu.pinned_array(24)
        seen = [
            (id(step.reads[0]), step.reads[0])
            for step in ns.stream_tiles([u], tiling=tiling, depth=2)
        ]
        assert len({key for key, _ in seen}) == 2


def test_a_later_pass_finds_all_its_copies_known():
    tiling = ns.Tiling((12, 12, 12), 4, halo=1)
    with ns.simulate() as gpu, ns.override(mode="loop"):
        u, w = (gpu.pinned_array(tiling.shape, np.int64) for _ in range(2))
        ns.plan_cache.clear()
        counts = []
        for _ in range(4):  # views are prepared at their second use
            before = ns.plan_cache.info()
            for step in ns.stream_tiles([u], [w], tiling=tiling):
                launch_spread(gpu, tiling.halo, step)
            after = ns.plan_cache.info()
            counts.append((after.hits - before.hits, after.misses - before.misses))
        assert counts[2] == counts[3] == (2 * 27, 0)


def test_the_host_waits_only_for_the_slot_that_is_due():
    tiling = ns.Tiling((32,), 4)
    with ns.simulate() as gpu:
        u, w, ran = gpu.pinned_array(32), gpu.pinned_array(32), []
        for step in ns.stream_tiles([u], [w], tiling=tiling, depth=3):
            # Tiles up to three ago are waited for, and no kernel of a later one has run.
            assert ran == list(range(max(0, step.tile - 2)))
            gpu.launch(lambda *_, i=step.tile: ran.append(i), stream=step.stream)
        assert sorted(ran) == list(range(8))


# -- memory --------------------------------------------------------------------------------------


def test_memory_is_what_was_announced_and_all_of_it_comes_back():
    tiling = ns.Tiling((32, 32), (8, 8), halo=1, boundary=0.0)
    with ns.simulate() as gpu:
        u, v = gpu.pinned_array(tiling.shape), gpu.pinned_array(tiling.shape, np.float32)
        steps = ns.stream_tiles([v], updates=[u], tiling=tiling)
        used = sum(
            a.nbytes
            for a in gpu.library.memory._allocations
            if a.alive and a.kind.value == "device"
        )
        assert used == steps.nbytes
        gpu.library.memory.device_limit = used
        with pytest.raises(ns.BadArgumentError, match=f"needs {used} bytes of device.*0 are free"):
            ns.stream_tiles([v], updates=[u], tiling=tiling)
        del steps
        assert gpu.library.live()["device"] == 0
        gpu.library.memory.device_limit = None
        for step in ns.stream_tiles([v], updates=[u], tiling=tiling, mode="loop"):
            gpu.launch(lambda *a: None, *step.reads, stream=step.stream)
        step = None
        assert gpu.library.live()["device"] == 0


def test_advice_when_it_does_not_fit():
    with ns.simulate() as gpu:
        gpu.library.memory.device_limit = 6_000
        u = gpu.pinned_array((32, 32))
        cubes = ns.Tiling((32, 32), 8, halo=1)
        with pytest.raises(
            ns.BadArgumentError, match=r"8 tiles must be kept.*slabs.*writes.*Slabs of 2 pl"
        ):
            ns.stream_tiles(updates=[u], tiling=cubes)
        with pytest.raises(
            ns.BadArgumentError, match=r"\(depth\)\. Slabs of 8 planes would fit: tile=\(8, 32\)$"
        ):
            ns.stream_tiles([u], tiling=ns.Tiling((32, 32), (16, 32)))
        small = ns.Tiling((32, 32), (2, 32), halo=(1, 0))
        assert ns.stream_tiles(updates=[u], tiling=small).nbytes <= 6_000
        gpu.library.memory.device_limit = 100
        with pytest.raises(ns.BadArgumentError, match=r"\(depth\)$"):
            ns.stream_tiles([u], tiling=cubes)


def test_short_rows_are_warned_of(caplog):
    with ns.simulate() as gpu:
        u = gpu.pinned_array((8, 64), np.float32)
        ns.stream_tiles([u], tiling=ns.Tiling(u.shape, (8, 16)))
        ns.stream_tiles([u[:, :2]], tiling=ns.Tiling((8, 2), 8))
        assert not caplog.records
        ns.stream_tiles([u], tiling=ns.Tiling(u.shape, (8, 15)))
        assert "rows of tiles have 60 bytes" in caplog.text


# -- what is refused -----------------------------------------------------------------------------


def test_what_is_refused_before_any_byte_moves():
    tiling = ns.Tiling((8, 8), 4, halo=1, boundary=0.5)
    with ns.simulate() as gpu:
        u, v = gpu.pinned_array((8, 8)), gpu.pinned_array((8, 8), np.int32)
        locked = u.copy()
        locked.flags.writeable = False
        cases = [
            ({"reads": [u], "tiling": (8, 8)}, "give a numba_swap.Tiling"),
            ({"tiling": tiling}, "at least one array"),
            ({"reads": u, "tiling": tiling}, "reads is a ndarray: give a list"),
            ({"reads": [u[:4]], "tiling": tiling}, r"reads\[0\] has the shape \(4, 8\)"),
            ({"writes": [locked], "tiling": tiling}, r"writes\[0\] is read-only"),
            ({"reads": [v], "tiling": tiling}, "int32, which cannot hold the boundary 0.5"),
            ({"reads": [u], "writes": [u], "tiling": tiling}, "share memory"),
            ({"writes": [u], "updates": [u.T], "tiling": tiling}, "share memory"),
            ({"reads": [u], "tiling": tiling, "depth": 0}, "depth=0"),
            ({"reads": [u], "tiling": tiling, "order": "z"}, "order='z'"),
            ({"reads": [u], "tiling": tiling, "mode": "fast"}, "mode='fast'"),
            ({"reads": [u], "tiling": tiling, "policy": "fast"}, "policy='fast'"),
        ]
        for arguments, words in cases:
            with pytest.raises(ns.BadArgumentError, match=words):
                ns.stream_tiles(**arguments)
        with pytest.raises(ns.UnsupportedArrayError, match=r"reads\[0\] is a list"):
            ns.stream_tiles([[[1]]], tiling=tiling)
        with pytest.raises(ns.UnsupportedArrayError, match="Python objects"):
            ns.stream_tiles([np.empty((8, 8), object)], tiling=tiling)
        with pytest.raises(ns.UnsupportedArrayError, match="no stream"):
            ns.stream_tiles([u], tiling=tiling, stream="s")
        ns.stream_tiles([u, u], [v], tiling=tiling)  # may be read twice, and v has no halo
        stream = gpu.stream()
        gpu.library.begin_capture(stream.handle)
        with pytest.raises(ns.CapturedTransferError, match="being captured"):
            ns.stream_tiles([u], tiling=tiling, stream=stream)
        gpu.library.end_capture(stream.handle)


def test_views_that_interleave_do_not_share():
    with ns.simulate() as gpu:
        both = gpu.pinned_array((8, 2))
        tiling = ns.Tiling((8,), 4)
        both[...] = np.arange(16).reshape(8, 2)

        def copy(old, new):
            new[:] = old

        for step in ns.stream_tiles([both[:, 0]], [both[:, 1]], tiling=tiling):
            gpu.launch(copy, *step.reads, *step.writes, stream=step.stream)
        assert (both[:, 1] == both[:, 0]).all()


# -- leaving early -------------------------------------------------------------------------------


@pytest.fixture
def gpu():
    ns.plan_cache.clear()
    with no_reaper(), ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu
    in_flight._kept.clear()


class Field:
    """A field in nine tiles, written in place, beside one that is written only."""

    def __init__(self, gpu, updates=True, writes=True):
        self.gpu = gpu
        self.tiling = ns.Tiling((9, 6), (3, 2), halo=1, boundary="periodic")
        self.u, self.w = (gpu.pinned_array((9, 6), np.int64) for _ in range(2))
        self.u[...], self.w[...] = numbers((9, 6)), -1
        self.old = {"u": self.u.copy(), "w": self.w.copy()}
        self.new = spread_whole(self.u, self.tiling)
        self.names = [name for name, used in (("u", updates), ("w", writes)) if used]
        self.arguments = {"updates": [self.u] if updates else []}
        if writes:
            self.arguments["writes"] = [self.w]
        if not updates:
            self.arguments["reads"] = [self.u]

    def steps(self, **options):
        return ns.stream_tiles(**self.arguments, tiling=self.tiling, depth=2, **options)

    def go(self, steps, at=None, do=None):
        """Launch every step; at one tile do something else afterwards."""
        for step in steps:
            self.launch(step)
            if step.tile == at:
                do(step)

    def launch(self, step):
        def kernel(old, *new):
            from tile_model import spread

            for one in new:
                one[...] = spread(old, step.inner, (1, 1))

        self.gpu.launch(kernel, step.reads[0], *step.writes, stream=step.stream)

    def check(self, written, unsure):
        """Tiles that are written are new, and those of which nothing is said are old."""
        assert not set(written) & set(unsure)
        for name in self.names:
            array = getattr(self, name)
            for i in set(range(9)) - set(unsure):
                box = self.tiling.boxes(i).inner.slices
                want = self.new if i in written else self.old[name]
                assert (array[box] == want[box]).all(), (name, i)


LEAVE = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize(("updates", "writes"), LEAVE)
@pytest.mark.parametrize("at", range(9))
def test_break_writes_the_steps_that_were_over(gpu, at, updates, writes):
    field = Field(gpu, updates, writes)
    for step in field.steps():
        field.launch(step)
        if step.tile == at:
            break
    field.check(range(at), ())
    before = field.u.copy(), field.w.copy()
    gpu.synchronize()
    assert (before[0] == field.u).all()
    assert (before[1] == field.w).all()
    step = None
    assert gpu.library.live()["device"] == 0


def fail_with(error):
    def fail(step):
        raise error

    return fail


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_loop_does_the_same(gpu, error):
    field = Field(gpu)
    steps = field.steps()
    with pytest.raises(error), steps:
        field.go(steps, 4, fail_with(error))
    assert sorted(steps.written) == [0, 1, 2, 3]
    field.check(steps.written, ())


def test_an_exception_ends_it_also_without_a_name(gpu):
    field = Field(gpu)

    def run():
        for step in field.steps():
            field.launch(step)
            if step.tile == 4:
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run()
    field.check(range(4), ())


def test_an_interrupt_while_the_gpu_works(gpu):
    for at in range(9):
        field = Field(gpu)
        steps = field.steps()
        with pytest.raises(KeyboardInterrupt), steps:
            field.go(
                steps,
                at,
                lambda step: gpu.launch(
                    lambda: signal.raise_signal(signal.SIGINT), stream=step.stream
                ),
            )
        gpu.synchronize()
        field.check(steps.written, steps.unsure)
        assert len(steps.written) + len(steps.unsure) >= min(at, 8)


def test_it_is_over_when_it_is_over(gpu):
    field = Field(gpu)
    steps = field.steps()
    for step in steps:
        field.launch(step)
    assert next(steps, None) is None
    steps.close()
    field.check(range(9), ())


# -- faults --------------------------------------------------------------------------------------

FUNCTIONS = [
    *("cuMemcpyAsync", "cuMemcpy3DAsync", "cuEventRecord", "cuEventSynchronize", "cuEventCreate"),
    *("cuStreamWaitEvent", "cuLaunchKernel", "cuMemcpyBatchAsync", "cuMemHostAlloc"),
    *("cuPointerGetAttributes", "cuStreamIsCapturing", "cuCtxGetCurrent", "cuStreamGetCtx"),
]


def run_with_faults(gpu, field, faults, mode):
    """Run to the end or to an error; what is said of the tiles must be so, now and later."""
    for fault in faults:
        gpu.library.faults.add(fault)
    steps = None
    try:
        steps = field.steps(mode=mode)
        with steps:
            for step in steps:
                field.launch(step)
    except ns.DriverCallError as error:
        raised = error
    else:
        raised = None
    gpu.library.faults.clear()
    written, unsure = (steps.written, steps.unsure) if steps is not None else ((), ())
    field.check(written, unsure)
    with suppress(ns.DriverCallError):
        gpu.synchronize()
    field.check(written, unsure)
    return raised, written, unsure


@pytest.mark.parametrize("mode", ["loop", "auto"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_fault_at_every_call_leaves_the_field_as_documented(gpu, function, mode):
    calls = gpu.library.calls
    before = calls[function]
    run_with_faults(gpu, Field(gpu), [], mode)
    # (What was remembered makes the second run different from the first.)
    most = max(calls[function] - before, 1)
    stride = max(1, most // 40)
    struck = gpu.library.faults.struck
    for call in range(1, most + 1, stride):
        for times in (1, None):
            struck.clear()
            fault = Fault(function, 2, call=call, times=times)
            raised, written, unsure = run_with_faults(gpu, Field(gpu), [fault], mode)
            if raised is None:
                assert sorted(written) == list(range(9))
            elif written or unsure:
                assert "Of 9 tiles" in "".join(getattr(raised, "__notes__", ["Of 9 tiles"]))
            if times == 1 and function not in ("cuMemcpyBatchAsync", "cuLaunchKernel"):
                assert len(unsure) <= 2  # one call concerns one tile, or two in one slot


def test_the_note_names_the_tiles(gpu):
    field = Field(gpu, updates=False)
    run_with_faults(gpu, Field(gpu), [], "loop")
    field = Field(gpu, updates=False)
    faults = gpu.library.faults
    steps = field.steps(mode="loop")
    with pytest.raises(ns.DriverCallError) as caught:  # the next copy is that of tile 3 to the host
        field.go(steps, 3, lambda step: faults.add(Fault("cuMemcpy3DAsync", 2)))
    (note,) = caught.value.__notes__
    assert note == (
        "Of 9 tiles 3 are written: [0, 1, 2], 1 perhaps in part: [3]; all others are as they were."
    )
    field.check((0, 1, 2), (3,))


def test_a_kernel_that_fails_breaks_the_context():
    def run():
        with no_reaper(), ns.simulate() as gpu:
            field = Field(gpu)
            steps = field.steps()
            with pytest.raises(ns.DriverCallError) as caught:
                field.go(steps, 3, lambda step: gpu.launch(lambda: 1 / 0, stream=step.stream))
            assert caught.value.sticky
            field.check(steps.written, steps.unsure)
            assert steps.unsure

    with pytest.raises(RuntimeError, match="launched on it") as caught:
        run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
