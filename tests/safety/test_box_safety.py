"""What users may hand over and do with boxes: refused before any byte moves, or safe."""

import gc
import threading
import weakref

import numpy as np
import pytest
from box_model import Layout
from machines import Case, address_of, make_array, random_bytes, read_array, real_modes

import numba_swap as ns

MODES = ["batch", "loop", "kernel"]
MACHINES = [
    pytest.param(Case("13.0", "auto"), id="simulated"),
    pytest.param(Case("real", "auto"), marks=pytest.mark.gpu, id="real"),
]
CORNERS, SLOTS, BOX = [[0, 0], [3, 2], [4, 4]], [[0, 0, 0], [2, 0, 0], [1, 0, 0]], (4, 4)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def machine(request):
    with request.param.open() as gpu:
        yield gpu


def tile(array, rows=2, length=3):
    """A view of rows, at the beginning of any array of bytes."""
    return Layout((rows, length), (8, 1), 0, 1).of(array)


BAD_CALLS = {
    "outside": {"src_origins": [*CORNERS[:2], [5, 5]]},
    "negative": {"src_origins": [*CORNERS[:2], [-1, 0]]},
    "no such slot": {"dst_origins": [*SLOTS[:2], [3, 0, 0]]},
    "twice": {"dst_origins": [*SLOTS[:2], SLOTS[0]]},
    "huge": {"src_origins": [*CORNERS[:2], [2**63 - 1, 0]]},
    "lowest": {"src_origins": [*CORNERS[:2], [-(2**63), 0]]},
    "columns": {"src_origins": [[0, 0, 0]] * 3},
    "floats": {"src_origins": [[0.0, 0.0]] * 3},
    "shape": {"box_shape": (4, 4, 4)},
    "length": {"box_shape": (4, -4)},
    "edge": {"edge": "beyond"},
}


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_boxes_are_refused_before_any_byte_moves(machine, rng, case):
    content, target = random_bytes(rng, (8, 8)), random_bytes(rng, (3, 4, 4))
    field, pool = make_array(machine, "pinned", content), make_array(machine, "device", target)
    call = {"src_origins": CORNERS, "dst_origins": SLOTS, "box_shape": BOX} | BAD_CALLS[case]
    with pytest.raises((ns.BadPlanError, ns.BadArgumentError)) as error:
        ns.copy_boxes(field, pool, **call)
    if case in ("outside", "negative", "no such slot", "twice", "huge", "lowest"):
        assert error.value.index == 2
    assert np.array_equal(read_array(machine, pool), target)
    assert np.array_equal(read_array(machine, field), content)


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
@pytest.mark.parametrize("case", ["itemsize", "read-only", "shape", "overlap", "meets", "no array"])
def test_a_bad_pair_among_good_ones_stops_all_of_them(machine, rng, case):
    content, target = random_bytes(rng, (8, 8)), random_bytes(rng, (8, 8))
    field, out = make_array(machine, "pinned", content), make_array(machine, "device", target)
    frozen = np.zeros((4, 4), np.uint8)
    frozen.flags.writeable = False
    bad = {
        "itemsize": (field, make_array(machine, "device", random_bytes(rng, (8, 8), "u2"))),
        "read-only": (field[:4, :4], frozen),
        "shape": (field[:3], out),
        "overlap": (field[:2, :3], Layout((2, 3), (1, 1), 0, 1).of(out)),
        "meets": (field[:3, 2:5], tile(out, 3, 3)),
        "no array": (field, [1, 2]),
    }[case]
    with pytest.raises((ns.BadPlanError, ns.UnsupportedArrayError), match="pair 1") as error:
        ns.copy_many([(field[2:4, 5:8], tile(out)), bad])
    if case != "no array":
        assert error.value.index == 1
    assert np.array_equal(read_array(machine, out), target)
    assert np.array_equal(read_array(machine, field), content)


def test_memory_that_cuda_does_not_know_is_refused(gpu):
    """A null or freed pointer would be taken for host memory, and crash."""

    class Null:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (4, 4),
            "strides": (8, 1),
            "typestr": "|u1",
            "data": (0, False),
            "version": 3,
        }

    device, host = gpu.device_array((8, 8), np.uint8), gpu.pinned_array((8, 8), np.uint8)
    origins = [[0, 0]], [[0, 0]], (2, 2)
    for src, dst, name in ((Null(), device[:4, :4], "src"), (host[:4, :4], Null(), "dst")):
        with pytest.raises(
            ns.UnsupportedArrayError, match=rf"^{name} lies at 0x0, which is no mem"
        ):
            ns.copy(src, dst)
        with pytest.raises(
            ns.UnsupportedArrayError, match=rf"^{name} lies at 0x0, which is no mem"
        ):
            ns.copy_boxes(src, dst, *origins)
    gpu.library.free(address_of(device))
    for call in (
        lambda: ns.copy(host[:4, :4], device[:4, :4]),
        lambda: ns.copy_many([(host[:4, :4], device[:4, :4])]),
        lambda: ns.copy_boxes(host, device, *origins),
    ):
        with pytest.raises(ns.UnsupportedArrayError, match=r"^dst.* lies at .*was it freed"):
            call()


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_an_array_that_leaves_its_memory_is_refused(machine):
    """Not only boxes that would: the array says what is not so."""
    host, device = machine.pinned_array((8, 8), np.uint8), machine.device_array((8, 8), np.uint8)
    far = Layout((3, 8), (1 << 40, 1), 0, 1).of(device)
    with pytest.raises(ns.BadPlanError, match="dst"):
        ns.copy(host[:3], far)
    with pytest.raises(ns.BadPlanError, match="dst"):
        ns.copy_boxes(host, far, [[0, 0]], [[0, 0]], (1, 8))


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_memory_freed_under_a_transfer_is_an_error_of_the_wait(mode, side):
    with ns.simulate() as gpu:
        arrays = gpu.pinned_array((8, 8), np.uint8), gpu.device_array((8, 8), np.uint8)
        transfer = ns.copy(arrays[0][1:5, 1:5], arrays[1][2:6, 3:7], mode=mode)
        gpu.library.free(address_of(arrays[side]))
        with pytest.raises(ns.DriverCallError, match="ILLEGAL_ADDRESS") as caught:
            transfer.wait()
        assert caught.value.sticky


class Holder:
    """A view whose death can be watched."""

    def __init__(self, view):
        self.__cuda_array_interface__ = view.__cuda_array_interface__
        self.view = view


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("verb", ["copy", "copy_many", "copy_boxes"])
def test_arrays_live_until_the_copy_is_over(gpu, mode, verb):
    stream = gpu.stream()
    host = gpu.pinned_array((8, 8), np.uint8)
    held = Holder(gpu.device_array((8, 8), np.uint8)[1:, 1:])
    alive = weakref.ref(held)
    how = {"stream": stream, "mode": mode}
    if verb == "copy":
        transfer = ns.copy(held, host[:7, :7], **how)
    elif verb == "copy_many":
        transfer = ns.copy_many([(held, host[:7, :7])], **how)
    else:
        transfer = ns.copy_boxes(held, host, [[1, 1]], [[2, 2]], (3, 3), **how)
    del held
    gc.collect()
    assert alive() is not None
    transfer.wait()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("mode", ["batch", "loop"])
def test_many_threads_run_one_plan(gpu, rng, mode):
    """Each into memory that another thread reads only when it is over."""
    content = random_bytes(rng, (8, 16, 16))
    field, pool = make_array(gpu, "pinned", content), gpu.device_array((8, 6, 6), np.uint8)
    origins = [[i, 3, 5] for i in range(8)], [[i, 0, 0] for i in range(8)]
    plan = ns.plan_boxes(field, pool, *origins, (6, 6))
    errors = []

    def work():
        try:
            stream = gpu.stream()
            for _ in range(10):
                plan.run(stream, mode).wait()
                ns.copy_boxes(field, pool, *origins, (6, 6), stream=stream, mode=mode).wait()
        except BaseException as error:  # told by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert np.array_equal(pool.copy_to_host(), content[:, 3:9, 5:11])


@pytest.mark.parametrize("machine", MACHINES, indirect=True)
def test_boxes_in_order_with_what_is_in_the_stream(machine, rng):
    """Out of a field and back into another one, with nothing in between to wait for."""
    content = random_bytes(rng, (16, 16), np.float32)
    first, last = make_array(machine, "pinned", content), machine.pinned_array((16, 16), np.float32)
    tiles = machine.device_array((4, 8, 8), np.float32)
    last[...] = 0
    stream = machine.stream()
    corners = [[0, 0], [0, 8], [8, 0], [8, 8]]
    slots = [[i, 0, 0] for i in range(4)]
    for mode in real_modes():
        ns.copy_boxes(first, tiles, corners, slots, (8, 8), stream=stream, mode=mode)
        ns.copy_boxes(tiles, last, slots, corners[::-1], (8, 8), stream=stream, mode=mode).wait()
        halves = [content[:8], content[8:]]
        swapped = [np.concatenate([half[:, 8:], half[:, :8]], axis=1) for half in halves[::-1]]
        assert last.tobytes() == np.concatenate(swapped).tobytes()
        last[...] = 0


def test_many_boxes_are_checked_in_no_time(gpu):
    """Boxes that touch on all sides, and in one address range: no pair of rows is looked at."""
    field = gpu.device_array((32, 32, 32), np.uint8)
    grid = np.stack(np.meshgrid(*[np.arange(32)] * 3, indexing="ij"), -1).reshape(-1, 3)
    even = np.ascontiguousarray(grid[grid[:, 0] < 16])
    plan = ns.plan_boxes(field, field, even, even + np.array([16, 0, 0]), (1, 1, 1))
    assert len(plan) == 16 * 32 * 32
    again = even + np.array([16, 0, 0])
    again[777] = again[778]
    with pytest.raises(ns.BadPlanError, match=r"box 778 .* writes what box 777") as error:
        ns.plan_boxes(field, field, even, again, (1, 1, 1))
    assert error.value.index == 778
