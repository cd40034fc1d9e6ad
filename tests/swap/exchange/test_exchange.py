"""`exchange`: blocks out and other blocks in, as if all were read before any is written."""

from types import SimpleNamespace

import numpy as np
import pytest
from machines import CASES, make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.calibration import use_costs
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.settings import Mode
from numba_swap.dispatch.workload import ROUTES
from numba_swap.swap.exchange.pairing import IN, OUT, SlotTable
from numba_swap.swap.exchange.schedule import make_schedule
from numba_swap.swap.running import execute
from numba_swap.testing import Fault

BLOCK = 96


@pytest.fixture(params=CASES)
def case(request):
    return request.param


def rows(rng, sources, destinations, count):
    """Random rows; a source may occur twice, a destination may not."""
    count = min(count, destinations)
    return np.stack(
        [rng.integers(0, sources, count), rng.permutation(destinations)[:count]], axis=1
    )


def model(device, host, page_out, page_in):
    """What must be in the two pools afterwards."""
    after_device, after_host = device.copy(), host.copy()
    after_host[page_out[:, 1]] = device[page_out[:, 0]]
    after_device[page_in[:, 1]] = host[page_in[:, 0]]
    return after_device, after_host


@pytest.mark.parametrize("a_piece", [1, 3, 1000])
def test_as_if_all_were_read_first(case, rng, tune, a_piece):
    with case.open() as gpu:
        tune(staged_bytes=a_piece * BLOCK, smallest_piece_bytes=a_piece * BLOCK // 2)
        stream = gpu.stream()
        for _ in range(6):
            before = random_bytes(rng, (20, BLOCK)), random_bytes(rng, (30, BLOCK))
            device, host = (
                make_array(gpu, kind, content)
                for kind, content in zip(("device", "pinned"), before, strict=True)
            )
            page_out, page_in = rows(rng, 20, 30, 14), rows(rng, 30, 20, 11)
            transfer = ns.exchange(device, host, page_out, page_in, stream=stream, mode=case.mode)
            transfer.wait()
            after_device, after_host = model(*before, page_out, page_in)
            assert np.array_equal(read_array(gpu, device), after_device)
            assert np.array_equal(read_array(gpu, host), after_host)


@pytest.mark.parametrize("what", ["apart", "refilled slots", "in place", "rotation"])
def test_kinds_of_exchanges(case, rng, tune, what):
    n = 16
    slots, blocks = np.arange(n), np.arange(n)
    page_out = np.stack([slots, blocks], axis=1)
    page_in = {
        "apart": np.stack([blocks + n, slots + n], axis=1),
        "refilled slots": np.stack([blocks + n, slots], axis=1),
        "in place": np.stack([blocks, slots], axis=1),
        "rotation": np.stack([np.roll(blocks, 5), slots], axis=1),
    }[what]
    before = random_bytes(rng, (2 * n, BLOCK)), random_bytes(rng, (2 * n, BLOCK))
    with case.open() as gpu:
        tune(staged_bytes=4 * BLOCK, smallest_piece_bytes=BLOCK)
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        plan = ns.plan_exchange(device, host, page_out, page_in)
        assert plan.nbytes == 2 * n * BLOCK
        state = before
        for _ in range(3):  # a plan serves again
            plan.run(gpu.stream(), case.mode).wait()
            state = model(*state, page_out, page_in)
            assert np.array_equal(read_array(gpu, device), state[0])
            assert np.array_equal(read_array(gpu, host), state[1])


def test_layers_and_block_axis(rng):
    with ns.simulate() as gpu:
        contents = [random_bytes(rng, (5, 9, 7), np.int32), random_bytes(rng, (2, 9), np.uint8)]
        hosts = [random_bytes(rng, (5, 12, 7), np.int32), random_bytes(rng, (2, 12), np.uint8)]
        device = [make_array(gpu, "device", content) for content in contents]
        host = [make_array(gpu, "pinned", content) for content in hosts]
        page_out, page_in = [[3, 11], [0, 2], [8, 4]], [[4, 3], [7, 0], [2, 5]]
        ns.exchange(device, host, page_out, page_in, block_axis=1).wait()
        for layer in range(2):
            front, back = contents[layer].copy(), hosts[layer].copy()
            for i, j in page_out:
                back[:, j] = contents[layer][:, i]
            for i, j in page_in:
                front[:, j] = hosts[layer][:, i]
            assert np.array_equal(read_array(gpu, device[layer]), front)
            assert np.array_equal(read_array(gpu, host[layer]), back)


KINDS = {
    "apart": lambda slots, blocks: np.stack([blocks + 8, slots + 8], axis=1),
    "refilled slots": lambda slots, blocks: np.stack([blocks + 8, slots], axis=1),
    "refilled blocks": lambda slots, blocks: np.stack([blocks, slots + 8], axis=1),
    "in place": lambda slots, blocks: np.stack([blocks, slots], axis=1),
    "rotation": lambda slots, blocks: np.stack([np.roll(blocks, 3), slots], axis=1),
}


def exchange_along(axis, front, back, page_out, page_in):
    """What an exchange means, for blocks along any axis."""
    fronts, backs = (np.moveaxis(side.copy(), axis, 0) for side in (front, back))
    leaving, coming = fronts[page_out[:, 0]].copy(), backs[page_in[:, 0]].copy()
    backs[page_out[:, 1]], fronts[page_in[:, 1]] = leaving, coming
    return np.moveaxis(fronts, 0, axis), np.moveaxis(backs, 0, axis)


@pytest.mark.parametrize("what", KINDS)
def test_blocks_that_are_boxes(case, rng, tune, what):
    """Blocks of 40 short rows: each is one copy, whatever the number of its rows."""
    slots = blocks = np.arange(8)
    page_out, page_in = np.stack([slots, blocks], axis=1), KINDS[what](slots, blocks)
    before = random_bytes(rng, (5, 8, 16, 3)), random_bytes(rng, (5, 8, 20, 3))
    with case.open() as gpu:
        tune(staged_bytes=4 * 120, smallest_piece_bytes=120)
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        plan = ns.plan_exchange(device, host, page_out, page_in, block_axis=2)
        assert len(plan) == 16
        assert all(copies.boxes is not None for copies in plan.copies)
        state = before
        for _ in range(3):
            plan.run(gpu.stream(), case.mode).wait()
            state = exchange_along(2, *state, page_out, page_in)
            assert np.array_equal(read_array(gpu, device), state[0])
            assert np.array_equal(read_array(gpu, host), state[1])


@pytest.mark.parametrize("what", KINDS)
def test_layers_of_boxes_and_of_runs(rng, tune, what):
    slots = blocks = np.arange(8)
    page_out, page_in = np.stack([slots, blocks], axis=1), KINDS[what](slots, blocks)
    shapes = [(40, 16, 3), (2, 16, 9), (7, 16, 5, 6)]
    before = [
        (random_bytes(rng, shape), random_bytes(rng, (shape[0], 20, *shape[2:])))
        for shape in shapes
    ]
    with ns.simulate() as gpu:
        tune(staged_bytes=1000, smallest_piece_bytes=500)
        device, host = (
            [make_array(gpu, kind, pair[i]) for pair in before]
            for i, kind in enumerate(("device", "pinned"))
        )
        ns.exchange(device, host, page_out, page_in, block_axis=1).wait()
        for layer, pair in enumerate(before):
            front, back = exchange_along(1, *pair, page_out, page_in)
            assert np.array_equal(read_array(gpu, device[layer]), front)
            assert np.array_equal(read_array(gpu, host[layer]), back)


@pytest.mark.parametrize(("n", "c", "m"), [(64, 6, 8), (6, 2, 4)])
def test_rows_of_the_host_that_interleave_come_in(rng, tune, n, c, m):
    """Blocks that are cut in another way going out, where nothing goes out, than coming in."""
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=1 << 10)
        flat = gpu.pinned_array(1 << 18, np.float32)
        flat[:] = np.arange(flat.size)
        host = np.lib.stride_tricks.as_strided(flat, (16, c, n, m), (16384, 2 * m, 4 * m, 4))
        device = gpu.device_array((16, c, n, m), np.float32)
        rows = np.stack([np.arange(16), np.arange(16)[::-1]], axis=1)
        ns.exchange(device, host, np.zeros((0, 2), int), rows).wait()
        assert np.array_equal(device.copy_to_host(), host[::-1])


def test_without_rows_nothing_is_asked_of_any_memory():
    class Nowhere:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (4, 40, 8),
            "strides": (8, 320, 1),
            "typestr": "|u1",
            "data": (1 << 40, False),
            "version": 3,
        }

    with ns.simulate() as gpu:
        none = np.zeros((0, 2), int)
        for host in (gpu.pinned_array((4, 40, 8), np.uint8), Nowhere()):
            assert ns.exchange(Nowhere(), host, none, none).decision.copies == 0


def test_boxed_layers_that_interleave_are_not_staged_for_that(rng):
    """As layers of one array of all: no row of one is in another."""
    with ns.simulate() as gpu:
        pool = make_array(gpu, "pinned", random_bytes(rng, (64, 2, 8, 3)))
        host = make_array(gpu, "pinned", random_bytes(rng, (2, 64, 8, 3)))
        layers = [pool[:, 0], pool[:, 1]], [host[0], host[1]]
        out, into = np.array([[0, 5], [2, 1]]), np.array([[3, 4]])
        plan = ns.plan_exchange(*layers, out, into, block_axis=1)
        assert plan.copies[0].boxes is not None
        assert not plan.staged
        before = [
            exchange_along(1, *map(np.array, pair), out, into) for pair in zip(*layers, strict=True)
        ]
        plan.run().wait()
        for pair, expected in zip(zip(*layers, strict=True), before, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(pair, expected, strict=True))


def test_boxes_of_pools_that_interleave_are_told_apart(rng):
    """Two halves of one array, interlocked: no row of the one meets a row of the other."""
    with ns.simulate() as gpu:
        content = random_bytes(rng, (40, 2, 6, 3))
        both = make_array(gpu, "pinned", content)
        front, back = both[:, 0], both[:, 1]
        rows_out, rows_in = np.array([[0, 5], [2, 1]]), np.array([[3, 4]])
        ns.exchange(front, back, rows_out, rows_in, block_axis=1).wait()
        expected = exchange_along(1, content[:, 0], content[:, 1], rows_out, rows_in)
        assert np.array_equal(np.asarray(both)[:, 0], expected[0])
        assert np.array_equal(np.asarray(both)[:, 1], expected[1])
        with pytest.raises(ns.BadPlanError, match="share memory"):
            ns.exchange(front, front, rows_out, np.array([[0, 4]]), block_axis=1)


def test_overlapping_blocks_are_all_staged(rng):
    """A window that slides over the device: neighbouring blocks share bytes."""
    with ns.simulate() as gpu:
        content, back = random_bytes(rng, (12,)), random_bytes(rng, (6, 4))
        flat, host = make_array(gpu, "device", content), make_array(gpu, "pinned", back)

        class Window:
            __cuda_array_interface__ = {  # noqa: RUF012
                **flat.__cuda_array_interface__,
                "shape": (5, 4),
                "strides": (2, 1),
            }

        ns.exchange(Window(), host, [[1, 0], [2, 1]], [[4, 0], [5, 3]]).wait()
        assert np.array_equal(read_array(gpu, host)[:2], [content[2:6], content[4:8]])
        after = content.copy()
        after[0:4], after[6:10] = back[4], back[5]
        assert np.array_equal(read_array(gpu, flat), after)


def test_nothing_and_one_direction_only(rng):
    with ns.simulate() as gpu:
        device = make_array(gpu, "device", random_bytes(rng, (4, 64)))
        host = make_array(gpu, "pinned", random_bytes(rng, (4, 64)))
        nothing = ns.exchange(device, host, [], [])
        assert nothing.done()
        assert nothing.decision.reason == "nothing to copy"
        out = ns.exchange(device, host, [[0, 3]], [])
        out.wait()
        assert out.decision.direction == ns.Direction.D2H
        assert np.array_equal(host[3], device.copy_to_host()[0])
        rows = [[0, 3], [2, 1]]
        both = ns.exchange(device, host, rows, rows, mode="kernel").decision
        assert (both.direction, both.nbytes, both.parts) == (ns.Direction.MIXED, 4 * 64, ())
        both = ns.exchange(device, host, rows, rows, mode="loop").decision
        assert both.direction == ns.Direction.MIXED
        assert {part.direction for part in both.parts} == {ns.Direction.H2D, ns.Direction.D2H}
        assert both.nbytes == 4 * 64


def test_bad_rows_are_refused_before_anything_moves(rng):
    with ns.simulate() as gpu:
        before = random_bytes(rng, (4, 64)), random_bytes(rng, (4, 64))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        for page_out, page_in in (
            ([[0, 4]], [[0, 0]]),
            ([[0, 0]], [[0, 4]]),
            ([[0, 1], [2, 1]], []),
            ([], [[0, 1], [2, 1]]),
            ([[0, 1, 2]], []),
        ):
            with pytest.raises(ns.BadPlanError):
                ns.exchange(device, host, page_out, page_in)
        with pytest.raises(ns.BadPlanError, match="page_in must have"):
            ns.exchange(device, host, [], [0, 1])
        with pytest.raises(ns.BadPlanError, match="share memory"):
            ns.exchange(device[:2], device, [[0, 1]], [[0, 1]])
        ns.exchange(device[:2], device[2:], [[0, 1]], [[0, 0]]).wait()  # apart, in one array
        assert np.array_equal(device.copy_to_host()[[1, 2]], before[0][[1, 2]])
        assert np.array_equal(device.copy_to_host()[[0, 3]], before[0][[2, 0]])
        assert np.array_equal(host, before[1])


def window(flat, start, count, step, nbytes=4):
    """So many blocks of so many bytes in a flat array, `step` bytes apart."""
    interface = flat.__cuda_array_interface__
    pointer, readonly = interface["data"]
    return SimpleNamespace(
        __cuda_array_interface__={
            **interface,
            "data": (pointer + start, readonly),
            "shape": (count, nbytes),
            "strides": (step, 1),
        }
    )


def overlap(ones, others, itself=True):
    return any(
        abs(one - other) < 4
        for i, one in enumerate(ones)
        for j, other in enumerate(others)
        if itself or i != j
    )


def test_pools_are_refused_if_blocks_that_are_used_share_a_byte(rng):
    refused = []
    with ns.simulate() as gpu:
        flat = gpu.device_array((96,), np.uint8)
        for _ in range(800):
            starts, steps = rng.integers(24, 48, 2), rng.choice([3, 4, 5, 8, -4, -6], 2)
            front, back = (
                window(flat, int(start), 5, int(step))
                for start, step in zip(starts, steps, strict=True)
            )
            out, into = (rows(rng, 5, 5, count) for count in rng.integers(0, 3, 2))
            left, filled = starts[0] + steps[0] * out[:, 0], starts[0] + steps[0] * into[:, 1]
            came, stored = starts[1] + steps[1] * into[:, 0], starts[1] + steps[1] * out[:, 1]
            bad = (
                overlap([*left, *filled], [*came, *stored])
                or overlap(filled, filled, itself=False)
                or overlap(stored, stored, itself=False)
            )
            if not bad:
                ns.plan_exchange(front, back, out, into)
                continue
            with pytest.raises(ns.BadPlanError) as caught:
                ns.plan_exchange(front, back, out, into)
            refused.append(str(caught.value))
    assert 200 < len(refused) < 600
    assert sum("share memory" in text for text in refused) > 25


def test_captured_exchange_runs_in_order(rng):
    with ns.simulate() as gpu:
        before = random_bytes(rng, (4, 64)), random_bytes(rng, (4, 64))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        rows = np.array([[0, 1], [2, 3]])
        stream, library = gpu.stream(), gpu.driver.library
        library.begin_capture(stream.handle)
        transfer = ns.exchange(device, host, rows, rows[:, ::-1], stream=stream)
        graph = library.end_capture(stream.handle)
        with pytest.raises(ns.CapturedTransferError):
            transfer.wait()
        state = before
        for _ in range(3):
            library.launch(graph, stream.handle)
            stream.synchronize()
            state = model(*state, rows, rows[:, ::-1])
            assert np.array_equal(device.copy_to_host(), state[0])
            assert np.array_equal(host, state[1])


# -- the order of the steps ---------------------------------------------------------------------


@pytest.fixture
def steps_of(monkeypatch):
    """Every list of steps that is submitted; each is checked for races on the way."""
    lists = []
    submit = execute.submit_steps

    def checked(steps, launch, work, *, forked):
        assert forked == launch.conditions.may_use_private_streams
        if not isinstance(steps, tuple):  # both directions at once; else pairs and what is left
            steps = list(steps)
            lists.append([step._replace(holds=None) for step in steps])  # keeps no staging memory
            if forked:
                check_order(steps)
        submit(steps, launch, work, forked=forked)

    monkeypatch.setattr(execute, "submit_steps", checked)
    return lists


def strand(side, part=0):
    """The strand of a direction's only stream, or of one of its parts."""
    return side, part


def settles(steps):
    """The steps that move what was staged to its slots."""
    return [step for step in steps if step.strand[0] == "settle"]


def check_order(steps):
    """Of two steps that touch the same bytes, one writing them, one must come after the other."""
    earlier = []  # of each step, all that is certainly over before it begins
    for i, step in enumerate(steps):
        assert all(steps[j].has_waiters for j in step.after)
        before = set(step.after) | {j for j in range(i) if steps[j].strand == step.strand}
        assert all(j < i for j in before)
        earlier.append(before.union(*(earlier[j] for j in before)))
    for i, late in enumerate(steps):
        for j in set(range(i)) - earlier[i]:
            for written, used in ((late, steps[j]), (steps[j], late)):
                assert not meet(written.work, "dst", used.work, "dst"), (i, j)
                assert not meet(written.work, "dst", used.work, "src"), (i, j)


def meet(one, one_end, other, other_end):
    """Whether two ends of copies share a byte."""
    begins = getattr(other, other_end)
    order = np.argsort(begins)
    begins, ends = begins[order], (begins + other.sizes)[order]
    first = getattr(one, one_end)
    at = np.searchsorted(begins, first + one.sizes, side="left")
    return bool(((at > 0) & (np.maximum.accumulate(ends)[np.maximum(at, 1) - 1] > first)).any())


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("mode", ["batch", "auto"])
def test_no_two_steps_race(tune, steps_of, seed, mode):
    """Random exchanges in pieces, between pools of which either may lie anywhere."""
    rng = np.random.default_rng(seed)
    kinds = ["device", "pinned"]
    with ns.simulate() as gpu:
        tune(
            staged_bytes=int(rng.integers(1, 6)) * 4 * BLOCK,
            smallest_piece_bytes=int(rng.integers(1, 4)) * BLOCK,
            fewest_bytes_of_a_direction=int(rng.integers(1, 5)) * BLOCK,
        )
        # Both ways at once; not the wrong way in all layers, which is refused.
        fronts = ["device", *map(str, rng.choice(kinds, 2))] if seed % 2 else ["device"] * 3
        backs = [kinds[kind == "device"] for kind in fronts]
        before = [[random_bytes(rng, (count, BLOCK)) for _ in range(3)] for count in (12, 16)]
        device, host = (
            [make_array(gpu, kind, layer) for kind, layer in zip(side, layers, strict=True)]
            for side, layers in zip((fronts, backs), before, strict=True)
        )
        out = rows(rng, 12, 16, 12)
        into = rows(rng, 16, 12, 12)
        if seed % 3 == 0:  # every slot refilled, from blocks of which earlier pieces need some
            out = np.stack([np.arange(12), np.arange(12)], axis=1)
            into = np.stack([np.arange(12) + 1 + seed % 4, np.arange(12)], axis=1)
        ns.exchange(device, host, out, into, mode=mode, stream=gpu.stream()).wait()
        for layer in range(3):
            after = model(before[0][layer], before[1][layer], out, into)
            assert np.array_equal(read_array(gpu, device[layer]), after[0])
            assert np.array_equal(read_array(gpu, host[layer]), after[1])
    assert sum(len(steps) for steps in steps_of) > 0


def test_a_block_read_in_another_strand_of_an_earlier_piece(rng, tune, steps_of):
    """What comes in with the first piece takes more strands than with the second.

    What goes out takes more with the second, and overwrites what the first reads.
    """
    out = np.array([[0, 8], *([1, block] for block in range(4))])
    into = np.array([[0, 2], [1, 3], [2, 4], [3, 5], [10, 6], [11, 7], [12, 0], [13, 1]])
    with ns.simulate() as gpu:
        tune(staged_bytes=2 * BLOCK, fewest_bytes_of_a_direction=3 * BLOCK)
        front, back = (
            [make_array(gpu, kind, random_bytes(rng, (14, BLOCK))) for kind in kinds]
            for kinds in (("device", "device"), ("pinned", "device"))
        )
        ns.exchange(front, back, out, into, mode="loop").wait()
    (steps,) = steps_of
    assert {strand(IN), strand(OUT), ("settle", 0), strand(IN, 1), strand(OUT, 1)} <= {
        step.strand for step in steps
    }


def test_two_pieces_of_staging_memory_at_most(rng, tune, steps_of):
    """More pieces than that go through the same memory, each after the one before has settled."""
    with ns.simulate() as gpu, ns.override(mode="loop"):  # which has no descriptors to allocate
        tune(staged_bytes=2 * BLOCK)
        before = random_bytes(rng, (12, BLOCK)), random_bytes(rng, (24, BLOCK))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        slots = np.arange(12)
        out, into = np.stack([slots, slots], axis=1), np.stack([slots, slots], axis=1)
        allocated = gpu.library.calls["cuMemAlloc"]
        for _ in range(3):
            ns.exchange(device, host, out, into).wait()
        assert gpu.library.calls["cuMemAlloc"] - allocated == 2
        after = model(*before, out, into)
        assert np.array_equal(device.copy_to_host(), after[0])
    assert len(settles(steps_of[0])) == 6


def test_latency_runs_the_directions_one_after_another(rng, steps_of):
    with ns.simulate() as gpu:
        before = random_bytes(rng, (8, BLOCK)), random_bytes(rng, (8, BLOCK))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        out, into = np.array([[0, 0], [2, 3]]), np.array([[0, 0], [5, 2]])
        transfer = ns.exchange(device, host, out, into, stream=gpu.stream(), policy="latency")
        transfer.wait()
        assert gpu.library.calls["cuStreamCreate"] == 0
        after = model(*before, out, into)
        assert np.array_equal(device.copy_to_host(), after[0])
        assert np.array_equal(host, after[1])


def test_an_error_in_the_midst_is_raised_and_all_that_was_submitted_is_tracked(rng, tune):
    """The fifth copy, of the third step, fails: the first two steps land, in the stream's order."""
    with ns.simulate() as gpu, ns.override(mode="loop"):
        tune(smallest_piece_bytes=2 * BLOCK)
        before = random_bytes(rng, (4, BLOCK)), random_bytes(rng, (8, BLOCK))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        plan = ns.plan_exchange(
            device, host, [[0, 0], [1, 2], [2, 4], [3, 6]], [[1, 0], [3, 1], [5, 2], [7, 3]]
        )
        gpu.library.faults.add(Fault("cuMemcpyAsync", 2, call=5))
        before_calls = gpu.library.calls["cuMemcpyAsync"]
        stream = gpu.stream(non_blocking=True)
        with pytest.raises(ns.DriverCallError, match=r"OUT_OF_MEMORY at copy 0.*page_out\[2\]"):
            plan.run(stream)
        assert gpu.library.calls["cuMemcpyAsync"] == before_calls + 5
        stream.synchronize()
        assert np.array_equal(host[[0, 2]], before[0][[0, 1]])
        assert np.array_equal(host[[1, 3, 4, 5, 6, 7]], before[1][[1, 3, 4, 5, 6, 7]])
        gpu.library.faults.clear()
        plan.run(stream).wait()  # and nothing is stuck


def test_no_layers_at_all():
    with ns.simulate():
        for rows_of in ([], [[0, 0]]):
            assert ns.exchange([], [], rows_of, rows_of).done()


@pytest.mark.parametrize(
    ("nbytes", "shape"),
    [(0, (1, 1)), (7, (1, 1)), (8, (2, 1)), (35, (4, 2)), (64, (4, 4)), (1 << 40, (4, 8))],
)
def test_strands_and_pieces_are_not_too_small(nbytes, shape):
    rows = np.zeros((0, 2), np.int64)
    tuning = DEFAULT_TUNING._replace(smallest_piece_bytes=4)
    schedule = make_schedule(SlotTable(rows, rows, 1, 1), nbytes, 1, tuning)
    assert (schedule.strands, schedule.pieces) == shape


@pytest.mark.parametrize(("over", "leader"), [("slots", OUT), ("blocks", IN)])
def test_the_direction_that_is_overwritten_goes_ahead(rng, tune, steps_of, over, leader):
    """No memory is taken; every piece waits for the piece that frees its places, and no other."""
    ids = np.arange(24)
    out, into = {
        "slots": (np.stack([ids, ids[::-1]], axis=1), np.stack([ids + 24, ids[::-1]], axis=1)),
        "blocks": (np.stack([ids + 24, ids], axis=1), np.stack([ids, ids[::-1]], axis=1)),
    }[over]
    with ns.simulate() as gpu:
        tune(pieces_a_strand=4, smallest_piece_bytes=BLOCK)
        before = random_bytes(rng, (48, BLOCK)), random_bytes(rng, (48, BLOCK))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        allocated = gpu.library.calls["cuMemAlloc"]
        ns.exchange(device, host, out, into, mode="loop").wait()
        assert gpu.library.calls["cuMemAlloc"] == allocated
        after = model(*before, out, into)
        assert np.array_equal(device.copy_to_host(), after[0])
        assert np.array_equal(host, after[1])
    (steps,) = steps_of
    assert {step.strand for step in steps} == {strand(OUT), strand(IN)}
    assert [step.has_waiters for step in steps] == [step.strand[0] == leader for step in steps]
    leading = [i for i, step in enumerate(steps) if step.strand[0] == leader]
    assert [len(steps[i].work) for i in leading] == ([2] * 4 + [1] * 4) * 2
    assert all(not steps[i].after for i in leading)
    assert [step.after for step in steps if step.strand[0] != leader] == [(i,) for i in leading]


def test_a_slot_that_is_read_twice_is_overwritten_after_both(rng, tune, steps_of):
    """Whatever strands the two would be in."""
    out = np.stack([[0, 1, 2, 3, 4, 5, 6, 0], np.arange(8)], axis=1)
    into = np.stack([np.arange(8, 16), [0, 8, 9, 10, 11, 12, 13, 14]], axis=1)
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=BLOCK)
        before = random_bytes(rng, (16, BLOCK)), random_bytes(rng, (16, BLOCK))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        ns.exchange(device, host, out, into, mode="batch").wait()
        after = model(*before, out, into)
        assert np.array_equal(device.copy_to_host(), after[0])
        assert np.array_equal(host, after[1])
    assert {step.strand for step in steps_of[0]} == {(OUT, 0, 0), (IN, 0, 0)}


@pytest.mark.parametrize("earlier", [0, 5, 13, 26])
def test_pieces_of_a_strand_run_in_the_order_of_the_rows(rng, tune, steps_of, earlier):
    """A slot is free when the piece of its last reader has it: so those of others come before."""
    ids = np.arange(32)
    out, into = np.stack([ids, ids], axis=1), np.stack([ids + 32, ids], axis=1)
    out[31, 0] = earlier
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=BLOCK)
        exchanged(gpu, rng, [[(64, BLOCK)]] * 2, out, into, mode="batch")
    read = [step.work.src[0] for step in steps_of[0] if step.strand[0] == OUT]
    assert len(read) == 8
    assert read == sorted(read)


def test_every_strand_of_the_batch_is_one_stream(tune, steps_of):
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=2 << 20)
        device = gpu.device_array((128, 1 << 18), np.uint8)
        host = gpu.pinned_array((256, 1 << 18), np.uint8)
        ids = np.arange(128) * 37 % 128
        out, into = np.stack([ids, ids[::-1]], axis=1), np.stack([ids + 128, ids], axis=1)
        used = []
        gpu.library.faults.watch("cuMemcpyBatchAsync", lambda *a: used.append((a[-1], a[3])))
        ns.exchange(device, host, out, into, mode="batch").wait()
    assert len(used) == 2 * 4 * 4
    assert len({stream for stream, _ in used}) == 2 * 4
    assert {count for _, count in used} == {8}
    assert {step.strand for step in steps_of[0]} == {
        (side, number, 0) for side in (OUT, IN) for number in range(4)
    }


def test_one_direction_of_overlapping_blocks_is_not_staged(rng):
    with ns.simulate() as gpu:
        content = random_bytes(rng, (96,))
        flat, host = make_array(gpu, "device", content), gpu.pinned_array((4, 16), np.uint8)

        class Window:
            __cuda_array_interface__ = {  # noqa: RUF012
                **flat.__cuda_array_interface__,
                "shape": (10, 16),
                "strides": (8, 1),
            }

        for mode in ("loop", "batch", "kernel"):
            host[:] = 0
            allocated = gpu.library.calls["cuMemAlloc"]
            ns.exchange(Window(), host, [[0, 0], [1, 2]], [], mode=mode).wait()
            assert gpu.library.calls["cuMemAlloc"] == allocated
            assert np.array_equal(host[[0, 2]], [content[:16], content[8:24]])


def test_neighbours_are_decided_on_as_they_run(rng):
    with ns.simulate() as gpu:
        before = random_bytes(rng, (8192, 512)), random_bytes(rng, (8192, 512))
        device, host = make_array(gpu, "device", before[0]), make_array(gpu, "pinned", before[1])
        ids = np.arange(4096)
        out, into = np.stack([ids, ids], axis=1), np.stack([ids + 4096, ids + 4096], axis=1)
        plan = ns.plan_exchange(device, host, out, into)
        assert len(plan) == 2 * 4096
        transfer = plan.run()
        transfer.wait()
        assert transfer.decision.copies == 2
        assert transfer.decision == plan.explain()
        after = model(*before, out, into)
        assert np.array_equal(device.copy_to_host(), after[0])
        assert np.array_equal(host, after[1])


def test_errors_of_merged_copies_tell_how_many(rng):
    with ns.simulate() as gpu:
        device, host = gpu.device_array((8, 64), np.uint8), gpu.pinned_array((8, 64), np.uint8)
        rows = [[0, 0], [1, 1], [2, 2], [5, 7]]
        plan = ns.plan_exchange(device, host, rows, [[4, 4]])
        for call, words in (
            (1, r"page_out\[0\] .*, merged with the rows up to page_out\[2\]"),
            (2, r"\[3\]"),
        ):
            gpu.library.faults.clear()
            gpu.library.faults.add(Fault("cuMemcpyAsync", 2, call=call))
            with pytest.raises(ns.DriverCallError, match=words) as error:
                plan.run(mode="loop")
            assert ("merged" in str(error.value)) == (call == 1)


def test_layers_against_one_array_are_refused_as_such(rng):
    with ns.simulate() as gpu:
        layer, stacked = gpu.device_array((4, 8), np.uint8), gpu.pinned_array((2, 4, 8), np.uint8)
        for pools in (([layer, layer], stacked), (layer, [stacked]), ([layer], [stacked] * 2)):
            with pytest.raises(ns.BadPlanError, match="device and host must be one array each or"):
                ns.exchange(*pools, [[0, 0]], [])


def test_a_read_only_pool_may_be_read(rng):
    with ns.simulate() as gpu:
        device, content = gpu.device_array((4, 64), np.uint8), random_bytes(rng, (4, 64))
        host = make_array(gpu, "pinned", content)
        host.flags.writeable = False
        ns.exchange(device, host, [], [[1, 0]]).wait()
        assert np.array_equal(device.copy_to_host()[0], content[1])
        with pytest.raises(ns.BadPlanError, match="host is read-only"):
            ns.exchange(device, host, [[0, 0]], [[1, 0]])


# -- what no pairs are made of -------------------------------------------------------------------


def exchanged(gpu, rng, shapes, out, into, axis=0, kinds=(("device", "pinned"),), **how):
    """Exchange between layers of such shapes, twice; both times all must be where it belongs."""
    before = [[random_bytes(rng, shape) for shape in side] for side in shapes]
    device, host = (
        [
            make_array(gpu, kinds[i % len(kinds)][side], layer)
            for i, layer in enumerate(before[side])
        ]
        for side in range(2)
    )
    plan = ns.plan_exchange(device, host, out, into, block_axis=axis)
    out, into = (np.reshape(np.array(some, np.int64), (-1, 2)) for some in (out, into))
    for _ in range(2):
        transfer = plan.run(gpu.stream(), **how)
        transfer.wait()
        for i, layers in enumerate(zip(*before, strict=True)):
            after = model(*(layer.swapaxes(0, axis) for layer in layers), out, into)
            before[0][i], before[1][i] = (np.ascontiguousarray(a.swapaxes(0, axis)) for a in after)
            assert np.array_equal(read_array(gpu, device[i]), before[0][i])
            assert np.array_equal(read_array(gpu, host[i]), before[1][i])
    return plan, transfer


SLOTS = np.arange(12)
APART = np.stack([SLOTS, SLOTS], axis=1), np.stack([SLOTS + 12, SLOTS + 12], axis=1)
REFILLED = APART[0], np.stack([SLOTS + 12, SLOTS], axis=1)
IN_PLACE = APART[0], APART[0]
FREED = np.stack([SLOTS, SLOTS], axis=1), np.stack([SLOTS, SLOTS + 12], axis=1)
WAYS = {"apart": APART, "refilled": REFILLED, "in place": IN_PLACE, "freed": FREED}


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
@pytest.mark.parametrize("mode", ["loop", "batch"])
@pytest.mark.parametrize("what", WAYS)
def test_layers_of_several_runs_side_by_side(rng, tune, steps_of, what, mode, order):
    out, into = WAYS[what]
    into = {"ascending": into, "descending": into[::-1], "random": rng.permutation(into)}[order]
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=64, staged_bytes=4 * 64)
        for shapes in ([(2, 24, 16), (1, 24, 32)], [(2, 24, 32)]):
            exchanged(gpu, rng, [shapes] * 2, out, into, axis=1, mode=mode)
    assert {step.mode for steps in steps_of for step in steps if step.strand[0] != "settle"} == {
        mode
    }
    assert len(steps_of[0]) > 8


@pytest.mark.parametrize("mode", ["auto", "loop", "batch"])
@pytest.mark.parametrize("policy", ["latency", "throughput"])
@pytest.mark.parametrize("what", WAYS)
def test_policy_latency_needs_no_streams(rng, tune, steps_of, what, policy, mode):
    kinds = ("device", "pinned"), ("pinned", "device")
    with ns.simulate() as gpu:
        tune(fewest_bytes_of_a_direction=64)
        shapes = [[(24, 98), (24, 66)]] * 2  # not for pairs
        _, transfer = exchanged(
            gpu, rng, shapes, *WAYS[what], kinds=kinds, policy=policy, mode=mode
        )
        assert len(transfer.decision.parts) == (2 if policy == "latency" else 4)
        assert (gpu.library.calls["cuStreamCreate"] == 0) == (policy == "latency")
    if policy == "throughput":  # both directions are in each, and run side by side
        sides = {strand(side, part) for side in (OUT, IN) for part in range(2)}
        assert sides <= {step.strand for step in steps_of[0]}


def test_rows_that_wait_for_none_beside_some_that_do(rng, tune, steps_of):
    out, into = REFILLED
    with ns.simulate() as gpu:
        for nbytes in (1 << 20, BLOCK):  # in one piece; in pieces
            tune(smallest_piece_bytes=nbytes)
            exchanged(gpu, rng, [[(24, BLOCK)]] * 2, out[:3], into, mode="loop")
            exchanged(gpu, rng, [[(24, BLOCK)]] * 2, out, into[3:], mode="loop")
    assert len(steps_of[0]) == 2


def test_fewer_rows_than_pieces(rng, tune, steps_of):
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=BLOCK // 8)
        for out, into in (APART, REFILLED, FREED):
            exchanged(gpu, rng, [[(24, BLOCK)]] * 2, out[:2], into[:3], mode="loop")
            exchanged(gpu, rng, [[(24, BLOCK)]] * 2, out[:3], into[:1], mode="batch")
    assert [len(step.work) for step in steps_of[0]] == [1] * 5


def test_neighbours_of_a_piece_are_one_copy(rng, tune, steps_of):
    with ns.simulate() as gpu:
        tune(smallest_piece_bytes=3 * BLOCK)
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, APART[0], [], mode="loop")
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, *APART, mode="loop", policy="latency")
    pieces, _, in_turn, _ = steps_of
    assert [(len(step.work), step.work.nbytes) for step in pieces] == [(1, 3 * BLOCK)] * 4
    assert [len(step.work) for step in in_turn] == [1, 1]


def test_pieces_run_in_the_mode_of_the_whole(rng, tune, steps_of):
    made_up = {
        Mode.LOOP: ModeCost(0.0, 0.0, (10.0,) * 4, (0.0,) * 4),
        Mode.BATCH: ModeCost(50.0, 0.0, (0.0,) * 4, (0.0,) * 4),
    }
    with ns.simulate() as gpu:
        use_costs(devices_of(gpu.driver)[0], CostModel(dict.fromkeys(ROUTES, made_up), "made up"))
        tune(smallest_piece_bytes=BLOCK)
        rows = [np.stack([2 * SLOTS, 2 * SLOTS + side], axis=1) for side in range(2)]
        exchanged(gpu, rng, [[(24, 66)]] * 2, rows[0], rows[1][:, ::-1])
    assert {step.mode for step in steps_of[0]} == {"batch"}


def test_directions_in_parts_are_decided_anew(rng, tune):
    kinds = ("device", "pinned"), ("pinned", "device")
    with ns.simulate() as gpu:
        tune(fewest_bytes_of_a_direction=64)
        plan, _ = exchanged(gpu, rng, [[(24, 66)] * 2] * 2, *APART, kinds=kinds, mode="loop")
        calls = gpu.library.calls["cuMemcpyAsync"]
        plan.run(mode="batch").wait()
        assert gpu.library.calls["cuMemcpyAsync"] == calls


# -- what is staged ------------------------------------------------------------------------------


@pytest.mark.parametrize(("pieces", "buffers"), [(1, 1), (2, 2), (3, 2)])
def test_no_more_memory_than_pieces_under_way(rng, tune, steps_of, pieces, buffers):
    with ns.simulate() as gpu, ns.override(mode="loop"):  # which has no descriptors to allocate
        tune(staged_bytes=12 // pieces * BLOCK)
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, *IN_PLACE)
        assert gpu.library.calls["cuMemAlloc"] == buffers
    assert len(settles(steps_of[0])) == pieces


def test_at_most_64_mib_are_staged_at_once():
    sizes = []
    with ns.simulate() as gpu, ns.override(mode="loop"):
        device, host = (
            make((65, 1 << 20), np.uint8) for make in (gpu.device_array, gpu.pinned_array)
        )
        rows = np.stack([np.arange(65)] * 2, axis=1)
        gpu.library.faults.watch("cuMemAlloc", lambda _, nbytes: sizes.append(nbytes))
        ns.exchange(device, host, rows, rows).wait()
    assert sizes == [64 << 20] * 2


def test_blocks_longer_than_what_is_staged_at_once(rng, tune, steps_of):
    with ns.simulate() as gpu:
        tune(staged_bytes=BLOCK // 2)
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, *IN_PLACE, mode="loop")
    assert len(settles(steps_of[0])) == 12


def test_slots_that_are_not_refilled_leave_too(rng, tune, steps_of):
    out = np.stack([np.arange(24), np.arange(24)], axis=1)
    with ns.simulate() as gpu:
        tune(staged_bytes=2 * BLOCK)
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, out, IN_PLACE[1], mode="loop")
        exchanged(gpu, rng, [[(24, BLOCK)]] * 2, IN_PLACE[0], out[::-1], mode="loop")
    assert len(settles(steps_of[0])) == 6


def test_runs_under_way_at_once_share_no_memory(rng):
    with ns.simulate() as gpu, ns.override(mode="loop"):
        contents = random_bytes(rng, (24, BLOCK)), random_bytes(rng, (24, BLOCK))
        device, host = (
            make_array(gpu, "device", contents[0]),
            make_array(gpu, "pinned", contents[1]),
        )
        plan = ns.plan_exchange(device, host, *IN_PLACE)
        allocated = gpu.library.calls["cuMemAlloc"]
        first = plan.run(gpu.stream())
        second = plan.run(gpu.stream())
        assert gpu.library.calls["cuMemAlloc"] == allocated + 2
        first.wait()
        second.wait()
        plan.run(gpu.stream()).wait()
        assert gpu.library.calls["cuMemAlloc"] == allocated + 2


def test_an_error_while_staging_names_the_row(rng):
    with ns.simulate() as gpu:
        device, host = gpu.device_array((24, BLOCK)), gpu.pinned_array((24, BLOCK))
        rows = np.array([[0, 3], [2, 5], [4, 7]])
        gpu.library.faults.add(Fault("cuMemcpyAsync", 2, call=2))
        with pytest.raises(ns.DriverCallError, match=r"page_in\[1\]"):
            ns.exchange(device, host, rows, rows[:, ::-1], mode="loop")


@pytest.mark.parametrize(
    ("out", "into"),
    [
        ([[1, 0]], [[0, 0]]),
        ([[0, 1]], [[1, 1]]),
        ([[3, 4]], [[0, 3]]),
        ([[0, 0], [2, 1]], [[2, 1], [3, 3]]),
    ],
)
def test_overlapping_blocks_are_read_before_any_is_written(rng, out, into):
    with ns.simulate() as gpu:
        content, back = random_bytes(rng, (24,)), random_bytes(rng, (6, 8))
        flat, host = make_array(gpu, "device", content), make_array(gpu, "pinned", back)
        ns.exchange(window(flat, 0, 5, 4, 8), host, out, into, mode="kernel").wait()
        after, stored = content.copy(), back.copy()
        for i, j in out:
            stored[j] = content[4 * i : 4 * i + 8]
        for i, j in into:
            after[4 * j : 4 * j + 8] = back[i]
        assert np.array_equal(read_array(gpu, flat), after)
        assert np.array_equal(read_array(gpu, host), stored)


# -- what is said of it --------------------------------------------------------------------------


def test_a_plan_says_how_much_it_copies(rng):
    with ns.simulate() as gpu:
        device, host = (
            gpu.device_array((2, 24, 8), np.uint8),
            gpu.pinned_array((2, 24, 8), np.uint8),
        )
        plan = ns.plan_exchange(device, host, APART[0], APART[1][:5], block_axis=1)
        assert len(plan) == 2 * (12 + 5)
        assert repr(plan) == "<ExchangePlan: 192 bytes out, 80 bytes in>"


def test_names_of_mappings_in_errors():
    with ns.simulate() as gpu:
        device, host = gpu.device_array((4, 8)), gpu.pinned_array((4, 8))
        with pytest.raises(ns.BadPlanError, match=r"^page_out must"):
            ns.exchange(device, host, [1, 2], [])
        with pytest.raises(ns.BadPlanError, match=r"^page_in must"):
            ns.exchange(device, host, [], [1, 2])


def test_decisions_are_logged(caplog):
    caplog.set_level("DEBUG", "numba_swap")
    with ns.simulate() as gpu:
        plan = ns.plan_exchange(gpu.device_array((24, 8)), gpu.pinned_array((24, 8)), *IN_PLACE)
        caplog.clear()
        decision = plan.explain(mode="kernel")
        assert caplog.messages[-1] == str(decision)
        caplog.clear()
        plan.explain(mode="kernel")  # remembered, and logged all the same
        assert caplog.messages == [str(decision)]


def test_what_is_pending_on_the_pools_comes_first(rng):
    with ns.simulate() as gpu:
        contents = random_bytes(rng, (4, BLOCK)), random_bytes(rng, (4, BLOCK))
        source = make_array(gpu, "pinned", contents[0])
        device, host = (
            gpu.device_array((4, BLOCK), np.uint8),
            make_array(gpu, "pinned", contents[1]),
        )
        busy = gpu.stream(non_blocking=True)
        for mode in ("kernel", "loop"):
            device.copy_to_device(source, stream=busy)
            pending = SimpleNamespace(
                __cuda_array_interface__={
                    **device.__cuda_array_interface__,
                    "stream": busy.handle,
                }
            )
            stream = gpu.stream(non_blocking=True)
            ns.exchange(pending, host, [[0, 3]], [], stream=stream, mode=mode).wait()
            assert np.array_equal(host[3], contents[0][0])
            host[3] = contents[1][3]
