"""`exchange`: blocks out and other blocks in, as if all were read before any is written."""

import numpy as np
import pytest
from machines import CASES, make_array, random_bytes, read_array

import numba_swap as ns
from numba_swap import paging

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
def test_as_if_all_were_read_first(case, rng, monkeypatch, a_piece):
    monkeypatch.setattr(paging, "_STAGED_BYTES", a_piece * BLOCK)
    with case.open() as gpu:
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
def test_kinds_of_exchanges(case, rng, monkeypatch, what):
    monkeypatch.setattr(paging, "_STAGED_BYTES", 4 * BLOCK)
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
        both = ns.exchange(device, host, [[0, 3], [2, 1]], [[0, 3], [2, 1]]).decision
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
