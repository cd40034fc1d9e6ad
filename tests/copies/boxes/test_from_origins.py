"""Boxes by their origins: what is refused, how they become copies, and what is kept of them."""

import threading
import weakref
from contextlib import suppress

import numpy as np
import pytest

import numba_swap as ns

FIELD, POOL = (8, 9, 10), (4, 2, 3, 4)
BOX = (2, 3, 4)


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


@pytest.fixture
def field(gpu):
    return gpu.pinned_array(FIELD, np.float32)


@pytest.fixture
def pool(gpu):
    return gpu.device_array(POOL, np.float32)


CORNERS = [[0, 0, 0], [6, 6, 6], [2, 0, 6]]
SLOTS = [[2, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]]


def test_a_box_is_one_copy(field, pool):
    copies = ns.plan_boxes(field, pool, CORNERS, SLOTS, BOX).copies
    base = pool.__cuda_array_interface__["data"][0]
    assert copies.src.tolist() == [field[z:, y:, x:].ctypes.data for z, y, x in CORNERS]
    assert copies.dst.tolist() == [base + 96 * slot for slot, *_ in SLOTS]
    assert copies.uniform == 96
    assert copies.nbytes == 288
    assert copies.ends.strided
    assert copies.boxes.forms[:, :7].tolist() == [[16, 3, 2, 16, 48, 40, 360]]
    assert copies.origin.describe(1) == "box 1 (from (6, 6, 6) to (0, 0, 0, 0))"


def test_boxes_without_gaps_are_plain_copies(gpu, field):
    whole = gpu.device_array((5, 9, 10), np.float32)
    copies = ns.plan_boxes(field, whole, [[1, 0, 0]], [[2, 0, 0]], (3, 9, 10)).copies
    assert (copies.boxes, copies.ends.strided, copies.uniform) == (None, False, 3 * 360)
    rows = ns.plan_boxes(field, whole, [[1, 0, 0], [0, 3, 2]], [[2, 0, 0], [0, 0, 0]], (5,)).copies
    assert (rows.boxes, rows.uniform) == (None, 20)
    single = ns.plan_boxes(field, whole, [[1, 2, 3]], [[4, 8, 9]], ()).copies
    assert (len(single), single.nbytes) == (1, 4)


def test_leading_axes_of_one_element_may_be_written_out(field, pool):
    rows = [[1, 2, 3]], [[1, 0, 1, 0]]
    for box in ((2, 4), (1, 2, 4), (1, 1, 2, 4), [1, 1, 1, 1, 2, 4], np.array([2, 4], np.uint8)):
        assert ns.plan_boxes(field, pool, *rows, box).nbytes == 2 * 4 * 4


def test_boxes_of_more_axes_than_a_copy_may_have(gpu):
    src, dst = (
        gpu.pinned_array((3, 5, 5, 5, 5), np.int8),
        gpu.device_array((2, 4, 4, 4, 4), np.int8),
    )
    box = (2, 3, 3, 3)
    plan = ns.plan_boxes(src, dst, [[0, 0, 1, 2, 2], [2, 3, 0, 0, 0]], [[0] * 5, [1] * 5], box)
    assert len(plan) == 2 * 2  # the longest two axes above the row are kept
    assert plan.nbytes == 2 * 2 * 27
    assert [plan.copies.origin.row(i) for i in range(4)] == [0, 0, 1, 1]


EDGES = {
    "cut": ("clip", [[-1, 0, 8], [3, 3, 3], [9, 0, 0]], [(1, 3, 2), (2, 3, 4)], [0, 1]),
    "wrapped": (
        "wrap",
        [[3, 3, 3], [7, 7, 0]],
        [(2, 3, 4), *[(1, n, 4) for n in (2, 1)] * 2],
        None,
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_pieces_are_in_the_order_of_their_rows(gpu, field, case):
    edge, corners, shapes, rows = EDGES[case]
    pool = gpu.device_array((len(corners), 4, 6, 8), np.float32)
    slots = [[i, 1, 1, 1] for i in range(len(corners))]
    copies = ns.plan_boxes(field, pool, corners, slots, BOX, edge=edge).copies
    assert sorted(copies.sizes.tolist()) == sorted(4 * int(np.prod(shape)) for shape in shapes)
    assert copies.nbytes == sum(4 * int(np.prod(shape)) for shape in shapes)
    found = [copies.origin.row(i) for i in range(len(copies))]
    assert found == (rows if rows is not None else [0, 1, 1, 1, 1])
    assert copies.origin.rows(len(copies)) == range(found[-1] + 1)


def test_pieces_of_several_sorts_stand_together(gpu):
    """Whole rows, rows apart, and boxes: plain copies and boxes in one call."""
    field, pool = gpu.pinned_array((4, 6), np.int16), gpu.device_array((3, 5, 6), np.int16)
    call = [[-2, 0], [3, 0], [0, 0]], [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    copies = ns.plan_boxes(field, pool, *call, (3, 6), edge="clip").copies
    assert copies.sizes.tolist() == [12, 12, 36]
    narrow = ns.plan_boxes(field, pool, [[-2, 0], [3, 0], [0, 3]], call[1], (3, 4), edge="clip")
    assert narrow.copies.sizes.tolist() == [8, 8, 18]
    assert narrow.copies.boxes.of_each("rows", 3).tolist() == [1, 1, 3]


@pytest.mark.parametrize("edge", ["error", "clip", "wrap"])
@pytest.mark.parametrize("box", [(0, 3, 4), (2, 0, 4), (0,)])
def test_boxes_of_nothing(field, pool, edge, box):
    plan = ns.plan_boxes(field, pool, CORNERS, SLOTS, box, edge=edge)
    assert len(plan) == plan.nbytes == 0
    assert plan.run().done()


@pytest.mark.parametrize("none", [[], (), np.zeros(0), np.zeros((0, 3), int), np.zeros((0, 3))])
def test_no_boxes(gpu, field, none):
    plan = ns.plan_boxes(field, gpu.device_array(FIELD, np.float32), none, none, BOX)
    assert len(plan) == 0
    assert plan.run(mode="kernel").done()


def test_arrays_of_nothing(gpu, pool):
    empty = gpu.device_array((0, 9, 10), np.float32)
    rows = [[0, 0, 0]], [[0, 0, 0, 0]]
    assert len(ns.plan_boxes(empty, pool, *rows, BOX, edge="clip")) == 0
    with pytest.raises(ns.BadPlanError, match=r"not inside src, of shape \(0, 9, 10\)"):
        ns.plan_boxes(empty, pool, *rows, BOX)
    with pytest.raises(ns.BadPlanError, match=r"into the source, of \(0, 9, 10\)"):
        ns.plan_boxes(empty, pool, *rows, BOX, edge="wrap")
    nothing = np.zeros((4, 4), "V0")
    assert len(ns.plan_boxes(nothing, nothing, [[0, 0]], [[0, 0]], (2, 2))) == 0


def test_arrays_without_axes(gpu):
    host, device = gpu.pinned_array((), np.float64), gpu.device_array((3,), np.float64)
    assert ns.plan_boxes(host, device, np.zeros((1, 0), int), [[2]], ()).nbytes == 8
    assert ns.plan_boxes(host, device, [[], []], [[2], [0]], ()).nbytes == 16
    with pytest.raises(ns.BadPlanError, match=r"box 1 .* writes what box 0"):
        ns.plan_boxes(device, host, [[2], [0]], [[], []], ())


# -- what is refused ----------------------------------------------------------------------------

BIG = 2**63 - 1
GOOD = {"src_origins": CORNERS, "dst_origins": SLOTS, "box_shape": BOX}
BAD = {
    "columns": (
        {"src_origins": [[0, 0]] * 3},
        r"src_origins must have rows of 3 int.*\(3, 2\)",
        None,
    ),
    "no columns": ({"src_origins": [[]] * 3}, r"rows of 3 integers.*not the shape \(3, 0\)", None),
    "one axis": ({"dst_origins": [0, 0, 0]}, r"dst_origins must have rows of 4 int.*\(3,\)", None),
    "three axes": ({"dst_origins": [SLOTS]}, r"dst_origins must have rows of 4", None),
    "ragged": ({"src_origins": [[0, 0, 0], [1]]}, "src_origins is no array of integers", None),
    "a number": ({"src_origins": 5}, r"src_origins must have rows of 3 integers.* not a int", None),
    "None": ({"src_origins": None}, r"src_origins must have rows of 3 .* not a NoneType", None),
    "floats": ({"src_origins": np.zeros((3, 3))}, "src_origins must hold integers", None),
    "words": ({"src_origins": [["a", "b", "c"]]}, "src_origins must hold integers", None),
    "unequal": ({"src_origins": CORNERS[:2]}, "must be equally long, not 2 and 3", None),
    "beyond 2**63": (
        {"src_origins": np.array([*CORNERS[:2], [2**63, 0, 0]], np.uint64)},
        "src_origins holds 9223372036854775808, beyond",
        2,
    ),
    "beyond 2**64": ({"src_origins": [[2**65, 0, 0]] * 3}, "must hold integers below 2..63", None),
    "negative": (
        {"src_origins": [*CORNERS[:2], [-1, 0, 0]]},
        r"^src_origins\[2\] = \(-1, 0, 0\): a box of \(2, 3, 4\) there is not inside src, of shape "
        r"\(8, 9, 10\); give edge='clip' or 'wrap'",
        2,
    ),
    "too far": ({"src_origins": [[7, 0, 0], *CORNERS[:2]]}, r"^src_origins\[0\] = \(7, 0, 0\)", 0),
    "far away": ({"src_origins": [[0, BIG, 0], *CORNERS[:2]]}, r"^src_origins\[0\]", 0),
    "far below": ({"dst_origins": [SLOTS[0], [0, -BIG, 0, 0], SLOTS[1]]}, r"^dst_origins\[1\]", 1),
    "no such slot": (
        {"dst_origins": [SLOTS[0], [4, 0, 0, 0], SLOTS[1]]},
        r"^dst_origins\[1\] = .*, of shape \([0-9, ]*\)$",  # of an edge there is nothing to say
        1,
    ),
    "longer": ({"box_shape": (9, 1, 1)}, r"^src_origins\[0\].*a box of \(9, 1, 1\)", 0),
    "as long as can be": ({"box_shape": (BIG, 1, BIG)}, r"_origins\[0\].*a box of", 0),
    "twice": ({"dst_origins": [SLOTS[0], SLOTS[1], SLOTS[0]]}, "^box 2 .*writes what box 0", 2),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_origins(field, pool, case):
    change, words, index = BAD[case]
    with pytest.raises(ns.BadPlanError, match=words) as error:
        ns.plan_boxes(field, pool, **(GOOD | change))
    assert error.value.index == index


SHAPES = {
    "a number": (4, "box_shape must be a sequence of integers, not a int"),
    "None": (None, "box_shape must be a sequence of integers, not a NoneType"),
    "floats": ((2.0, 3), "box_shape must hold integers"),
    "booleans": ((True, True), "box_shape must hold integers"),
    "words": ("ab", "box_shape must be a sequence"),
    "rows": ([[2, 3, 4]], r"box_shape must be a sequence of integers, not the shape \(1, 3\)"),
    "negative": ((2, -3, 4), r"box_shape=\(2, -3, 4\) has a negative length"),
    "too many": ((2, 2, 3, 4), r"box_shape=\(2, 2, 3, 4\) has 4 axes, .* fewer axes has 3"),
    "beyond 2**63": ((2**63, 3, 4), "box_shape"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_bad_box_shapes(field, pool, case):
    box, words = SHAPES[case]
    with pytest.raises(ns.BadArgumentError, match=words):
        ns.plan_boxes(field, pool, CORNERS, SLOTS, box)


@pytest.mark.parametrize("edge", ["wrapped", "", None, 1, True, ["wrap"], b"wrap", {}])
def test_bad_edges(field, pool, edge):
    with pytest.raises(ns.BadArgumentError, match=r"edge=.*: give 'error', 'clip' or 'wrap'"):
        ns.plan_boxes(field, pool, CORNERS, SLOTS, BOX, edge=edge)


@pytest.mark.parametrize("edge", ["clip", "wrap"])
def test_there_is_no_edge_along_the_axes_before_the_box(field, pool, edge):
    slots = [SLOTS[0], [4, 0, 0, 0], SLOTS[1]]
    words = r"^dst_origins\[1\] = \(4, 0, 0, 0\) is not inside dst, of shape \(4, 2, 3, 4\), along"
    with pytest.raises(ns.BadPlanError, match=words) as error:
        ns.plan_boxes(field, pool, [[-1, 0, 0], *CORNERS[1:]], slots, BOX, edge=edge)
    assert error.value.index == 1


@pytest.mark.parametrize("origin", [BIG, -BIG - 1])
@pytest.mark.parametrize("box", [(1, 1, 1), (8, 9, 10), (20, 1, 1), (BIG, 1, 1)])
def test_edges_at_the_ends_of_64_bits(gpu, field, origin, box):
    whole = gpu.device_array((8, 9, 10), np.float32)
    call = field, whole, [[origin, 0, 0]], [[0, 0, 0]], box
    assert len(ns.plan_boxes(*call, edge="clip")) == 0
    if max(box) <= 10:
        assert ns.plan_boxes(*call, edge="wrap").nbytes == 4 * int(np.prod(box))


def sliding(array, shape):
    return np.lib.stride_tricks.as_strided(array, shape, (40, 4, 40, 4)[4 - len(shape) :])


def test_bad_arrays(gpu, field, pool):
    rows = CORNERS, SLOTS, BOX
    with pytest.raises(ns.UnsupportedArrayError, match=r"^src is a list"):
        ns.plan_boxes([1.0], pool, *rows)
    with pytest.raises(ns.UnsupportedArrayError, match=r"^dst is a NoneType"):
        ns.plan_boxes(field, None, *rows)
    with pytest.raises(ns.BadPlanError, match="src has elements of 8 bytes, dst of 4"):
        ns.plan_boxes(gpu.pinned_array(FIELD, np.float64), pool, *rows)
    frozen = np.zeros(POOL, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ns.BadPlanError, match="dst is read-only"):
        ns.plan_boxes(field, frozen, *rows)
    with pytest.raises(
        ns.UnsupportedArrayError, match="src_origins lies on a device; give it in host"
    ):
        ns.plan_boxes(field, pool, gpu.device_array((3, 3), np.int64), SLOTS, BOX)
    windows = sliding(gpu.pinned_array((9, 10), np.float32), (4, 4, 4, 4))
    with pytest.raises(ns.BadPlanError, match="elements of dst may share memory"):
        ns.plan_boxes(field, windows, [[0, 0, 0]], [[0, 0, 0, 0]], (2, 2, 2))
    with pytest.raises(ns.BadPlanError, match=r"^box 1 .* writes what box 0 .* writes too"):
        ns.plan_boxes(field, windows, CORNERS[:2], [[0, 0, 0, 0], [1, 0, 0, 0]], (2, 2))
    assert len(ns.plan_boxes(field, windows, CORNERS[:2], [[0] * 4, [2, 0, 0, 0]], (2, 2))) == 2


def test_boxes_of_one_array(gpu):
    field = gpu.device_array((8, 8), np.float32)

    def plan(src, dst, src_origins, dst_origins):
        return ns.plan_boxes(src, dst, src_origins, dst_origins, (4, 4))

    assert len(plan(field, field, [[0, 0], [0, 4]], [[4, 0], [4, 4]])) == 2
    with pytest.raises(ns.BadPlanError, match=r"^box 1 .* reads what box 0 .* writes") as error:
        plan(field, field, [[0, 0], [3, 4]], [[4, 4], [4, 0]])
    assert error.value.index == 1
    with pytest.raises(ns.BadPlanError, match=r"^box 0 \(.*\) reads what it writes"):
        plan(field, field, [[0, 0]], [[1, 1]])
    # Another view of the same memory: by address.
    assert len(plan(field[:, :], field[4:], [[0, 0], [0, 4]], [[0, 0], [0, 4]])) == 2
    with pytest.raises(ns.BadPlanError, match=r"^box 1 .* reads what box 0 .* writes") as error:
        plan(field[:, :], field[4:], [[0, 0], [3, 4]], [[0, 4], [0, 0]])
    assert error.value.index == 1


def test_boxes_onto_themselves_are_left_out(gpu):
    field = gpu.device_array((8, 8), np.float32)
    call = [[0, 0], [0, 4], [0, 0]], [[0, 0], [4, 4], [4, 0]]
    copies = ns.plan_boxes(field, field, *call, (4, 4)).copies
    assert [copies.origin.row(i) for i in range(len(copies))] == [1, 2]
    assert len(ns.plan_boxes(field, field, [[-3, 5]], [[5, -3]], (4, 4), edge="wrap")) == 0
    assert len(ns.plan_boxes(field[1:], field, [[0, 0]], [[1, 0]], (4, 4))) == 0
    # Of all else of the same place, nothing stays.
    with pytest.raises(ns.BadPlanError, match="reads what it writes"):
        ns.plan_boxes(
            field, field.__class__(gpu.library, field._memory.T), [[0, 0]], [[0, 0]], (4, 4)
        )


def test_a_box_over_two_registrations(gpu):
    memory = np.frombuffer(bytearray(4 * 4096), np.uint8)
    start = -memory.ctypes.data % 4096
    host = memory[start : start + 3 * 4096].reshape(3, 64, 64)
    device = gpu.device_array((3, 64, 64), np.uint8)
    gpu.library.register_host(host[0])
    gpu.library.register_host(host[1:])
    words = "^box 1 .*, at .*, runs over .*, where one registration .* ends and another begins"
    for call in ((host, device), (device, host)):
        assert (
            len(ns.plan_boxes(*call, [[0, 9, 9], [1, 0, 0]], [[0, 9, 9], [1, 0, 0]], (9, 9))) == 2
        )
        with pytest.raises(ns.BadPlanError, match=words) as error:
            ns.plan_boxes(*call, [[1, 0, 0], [0, 9, 0]], [[1, 0, 0], [0, 9, 0]], (2, 9, 9))
        assert error.value.index == 1
    for part in (host[0], host[1:]):
        gpu.library.unregister_host(part)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("to_device", [False, True])
def test_a_box_partly_in_registered_memory(gpu, flipped, to_device):
    """Of an ordinary array one page is pinned: the driver copies memory of one sort only."""
    memory = np.frombuffer(bytearray(5 * 4096), np.uint8)
    start = -memory.ctypes.data % 4096
    pages = memory[start : start + 4 * 4096].reshape(4, 64, 64)
    device = gpu.device_array((4, 64, 64), np.uint8)
    gpu.library.register_host(pages[2])
    host = pages[:, ::-1] if flipped else pages
    src, dst = (host, device) if to_device else (device, host)
    good = [[0, 5, 9], [2, 40, 0], [3, 1, 1]]
    assert len(ns.plan_boxes(src, dst, good, good, (20, 9))) == 3
    assert len(ns.plan_copy(src[:2, :9, :9], dst[:2, :9, :9])) == 1
    words = "begins in ordinary memory and ends in memory that is registered"
    bad = [[0, 0, 0], [1, 30, 30]]
    with pytest.raises(ns.BadPlanError, match=rf"^box 1 .*{words}") as error:
        ns.plan_boxes(src, dst, bad, bad, (2, 9, 9))
    assert error.value.index == 1
    views = [(src[i : i + 2, :9, :9], dst[i : i + 2, :9, :9]) for i in (0, 1)]
    with pytest.raises(ns.BadPlanError, match=rf"^pair 1\b.*{words}") as error:
        ns.plan_many(views)
    assert error.value.index == 1
    gpu.library.unregister_host(pages[2])


# -- what is kept -------------------------------------------------------------------------------


def test_origins_changed_after_planning_are_not_misquoted(field, pool):
    corners, slots = np.array(CORNERS), np.array(SLOTS)
    plan = ns.plan_boxes(field, pool, corners, slots, BOX)
    corners[:], slots[:] = 99, 99
    assert plan.copies.origin.describe(1) == "box 1 (from (6, 6, 6) to (0, 0, 0, 0))"


@pytest.mark.parametrize("edge", ["error", "clip", "wrap"])
def test_origins_that_another_thread_changes_cannot_lead_astray(gpu, edge):
    """It is told, or some of its states are copied; no byte outside the destination changes."""
    src, base = gpu.pinned_array((64, 64), np.uint8), gpu.pinned_array((192, 64), np.uint8)
    src[:], base[:] = 1, 0
    dst = base[64:128]
    good = np.stack(np.meshgrid(*[np.arange(0, 64, 4)] * 2), axis=-1).reshape(-1, 2)
    origins, stop = good.copy(), threading.Event()

    def change():
        while not stop.is_set():
            origins[::7] = 1 << 40
            origins[::5] = -(1 << 62)
            origins[:] = good

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(60):
            with suppress(ns.BadPlanError):
                ns.copy_boxes(src, dst, good, origins, (4, 4), edge=edge, mode="loop").wait()
    finally:
        stop.set()
        thread.join()
    assert not base[:64].any()
    assert not base[128:].any()
    assert src.all()


def test_a_plan_keeps_both_arrays(gpu):
    field, pool = gpu.pinned_array(FIELD, np.float32), gpu.device_array(POOL, np.float32)
    kept = weakref.ref(pool)
    plan = ns.plan_boxes(field, pool, CORNERS, SLOTS, BOX)
    del field, pool
    assert kept() is not None
    plan.run(mode="loop").wait()
    del plan
    assert kept() is None


def test_planning_asks_the_driver_once_an_array(gpu, field, pool):
    ns.plan_boxes(field, pool, CORNERS, SLOTS, BOX)
    before = sum(gpu.library.calls.values())
    many = np.zeros((1000, 3), np.int64), np.zeros((1000, 4), np.int64)
    with pytest.raises(ns.BadPlanError, match="writes what"):
        ns.plan_boxes(field, pool, *many, BOX)
    assert sum(gpu.library.calls.values()) - before <= 10
