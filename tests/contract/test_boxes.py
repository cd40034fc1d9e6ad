"""Boxes of n-D arrays against NumPy: any shapes, strides, edges and element sizes, in every mode.

What a copy reads and writes is worked out byte by byte. It must then be right, with no other byte
touched; or be refused, which it must be if its result would depend on the order of the copies.
"""

import itertools
import threading

import numpy as np
import pytest
from box_model import TYPES, Layout, bytes_of_box, bytes_of_views, depends_on_order, layouts
from hypothesis import given
from hypothesis import strategies as st
from machines import (
    MACHINES,
    MEMORY_KINDS,
    Case,
    capture,
    examples,
    make_array,
    random_bytes,
    read_array,
    real_modes,
)

import numba_swap as ns

MODES = ["batch", "loop"] * 4 + ["kernel", "auto"]
KINDS = [
    *[("pinned", "device"), ("device", "pinned"), ("device", "device"), ("pinned", "pinned")] * 2,
    *[("pageable", "device"), ("device", "pageable"), ("pageable", "pageable")],
    *[("managed", "device"), ("pinned", "managed")],
]
ITEMSIZES = [1, 2, 3, 4, 4, 8, 12, 16]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Case("13.0", "auto"), id="simulated"),
        pytest.param(Case("real", "auto"), marks=pytest.mark.gpu, id="real"),
    ],
)
def machine(request):
    with request.param.open() as gpu:
        yield gpu


class Arenas:
    """Memory of both sides, and what is to be in it."""

    def __init__(self, gpu, data, end, kinds=None, *, same=None):
        src_kind, dst_kind = kinds or data.draw(st.sampled_from(KINDS), "kinds")
        self.gpu = gpu
        self.same = data.draw(st.sampled_from([False, False, True])) if same is None else same
        room = -(-end // 64) * 64 + data.draw(st.sampled_from([0, 7]))
        rng = np.random.default_rng(end)
        self.contents = [random_bytes(rng, room) for _ in range(2)]
        self.dst = make_array(gpu, dst_kind, self.contents[1])
        if self.same:
            src_kind, self.src = dst_kind, self.dst
            self.contents[0] = self.contents[1]
        else:
            self.src = make_array(gpu, src_kind, self.contents[0])
        modes = [
            mode for mode in MODES if mode != "kernel" or "pageable" not in (src_kind, dst_kind)
        ]
        self.mode = data.draw(st.sampled_from(modes), "mode")

    def copy_or_refuse(self, copy, rows):
        """Do it; it must be refused, or its bytes be right."""
        before = [content.copy() for content in self.contents]
        refused = None
        try:
            copy(self.mode).wait()
        except ns.BadPlanError as error:
            refused = error
        if refused is None:
            assert not depends_on_order(rows, self.same, strict=True)
            for reads, writes in rows:
                moved = (reads != writes) | (not self.same)  # bytes onto themselves say nothing
                self.contents[1][writes[moved]] = before[0][reads[moved]]
        else:
            assert depends_on_order(rows, self.same, strict=False), refused
            assert "order of copies" in str(refused)
        assert np.array_equal(read_array(self.gpu, self.dst), self.contents[1])
        if not self.same:
            assert np.array_equal(read_array(self.gpu, self.src), before[0])
        return refused


shapes = st.lists(st.integers(1, 5), min_size=0, max_size=5).filter(lambda s: np.prod(s) <= 120)


@examples(250)
@given(data=st.data())
def test_any_view_into_any_other(machine, data):
    itemsize = data.draw(st.sampled_from(ITEMSIZES), "itemsize")
    shape = tuple(data.draw(shapes, "shape"))
    src = data.draw(layouts(shape, itemsize, broadcast=True), "src")
    dst = data.draw(layouts(shape, itemsize), "dst")
    arenas = Arenas(machine, data, max(src.end, dst.end))
    types = [data.draw(st.sampled_from(TYPES[itemsize])) for _ in range(2)]
    views = src.of(arenas.src, types[0]), dst.of(arenas.dst, types[1])
    rows = [bytes_of_views(src, dst)]
    arenas.copy_or_refuse(lambda mode: ns.copy(*views, mode=mode), rows)


@examples(150)
@given(data=st.data())
def test_many_unequal_views_at_once(machine, data):
    pairs = []
    for _ in range(data.draw(st.integers(1, 5))):
        itemsize = data.draw(st.sampled_from(ITEMSIZES))
        shape = tuple(data.draw(shapes))
        pairs.append(
            (
                data.draw(layouts(shape, itemsize, broadcast=True)),
                data.draw(layouts(shape, itemsize)),
            )
        )
    if data.draw(st.booleans(), "apart"):
        at = 0
        for i, (src, dst) in enumerate(pairs):
            pairs[i] = src, dst._replace(first=dst.first + at)
            at = pairs[i][1].end
    arenas = Arenas(machine, data, max(layout.end for pair in pairs for layout in pair))
    views = [(src.of(arenas.src), dst.of(arenas.dst)) for src, dst in pairs]
    rows = [bytes_of_views(*pair) for pair in pairs]
    refused = arenas.copy_or_refuse(lambda mode: ns.copy_many(views, mode=mode), rows)
    if refused is not None:
        assert 0 <= refused.index < len(pairs)


@st.composite
def fields(draw, itemsize, *, broadcast=False):
    shape = draw(
        st.lists(st.integers(1, 7), min_size=1, max_size=5).filter(lambda s: np.prod(s) <= 400)
    )
    return draw(layouts(shape, itemsize, broadcast=broadcast))


@examples(350)
@given(data=st.data())
def test_boxes_of_one_shape(machine, data):
    itemsize = data.draw(st.sampled_from(ITEMSIZES), "itemsize")
    one_array = data.draw(st.sampled_from([False, False, True]), "one array")
    dst = data.draw(fields(itemsize), "dst")
    src = dst if one_array else data.draw(fields(itemsize, broadcast=True), "src")
    axes = data.draw(st.integers(0, min(len(src.shape), len(dst.shape))), "axes")
    edge = data.draw(st.sampled_from(["error", "clip", "wrap"]), "edge")
    box = tuple(
        data.draw(st.integers(1, n if edge == "clip" else min(n, m)))
        for n, m in list(zip(src.shape[::-1], dst.shape[::-1], strict=False))[:axes][::-1]
    )
    beyond = 0 if edge == "error" else data.draw(st.sampled_from([0, 2, 40]))

    def origin(layout):
        lead = len(layout.shape) - axes
        return [
            *[data.draw(st.integers(0, n - 1)) for n in layout.shape[:lead]],
            *[
                data.draw(st.integers(-beyond, max(0, n - b) + beyond))
                for n, b in zip(layout.shape[lead:], box, strict=True)
            ],
        ]

    count = data.draw(st.integers(0, 5))
    origins = [[origin(side) for _ in range(count)] for side in (src, dst)]
    rows = [bytes_of_box(src, dst, pair, box, edge) for pair in zip(*origins, strict=True)]
    arenas = Arenas(machine, data, max(src.end, dst.end), same=True if one_array else None)
    from_ = src.of(arenas.src)
    to = dst.of(arenas.dst)

    def copy(mode):
        return ns.copy_boxes(from_, to, *origins, box, edge=edge, mode=mode)

    if None in rows:
        with pytest.raises(ns.BadPlanError) as error:
            copy(arenas.mode)
        assert error.value.index == rows.index(None)
        assert np.array_equal(read_array(machine, arenas.dst), arenas.contents[1])
        return
    refused = arenas.copy_or_refuse(copy, rows)
    if refused is not None:
        assert 0 <= refused.index < count


# -- one of each, in every mode of every driver ------------------------------------------------


KIND_PAIRS = [
    pair for pair in itertools.product(MEMORY_KINDS, MEMORY_KINDS) if pair != ("pageable",) * 2
]


@pytest.mark.parametrize(("src_kind", "dst_kind"), KIND_PAIRS)
def test_every_kind_of_memory(gpu, mode, rng, src_kind, dst_kind):
    content, target = random_bytes(rng, (5, 7, 9), "f4"), random_bytes(rng, (3, 2, 4, 5), "f4")
    src, dst = make_array(gpu, src_kind, content), make_array(gpu, dst_kind, target)
    call = [[0, 1, 2], [3, 3, 4], [1, 0, 0]], [[2, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]], (2, 4, 5)
    if mode == "kernel" and "pageable" in (src_kind, dst_kind):
        with pytest.raises(ns.ModeUnavailableError, match="cannot reach pageable memory"):
            ns.copy_boxes(src, dst, *call, mode=mode)
        assert np.array_equal(read_array(gpu, dst).view("u4"), target.view("u4"))
        return
    transfer = ns.copy_boxes(src, dst, *call, mode=mode)
    transfer.wait()
    assert transfer.done()
    assert transfer.nbytes == 3 * 40 * 4
    for (z, y, x), (slot, *_) in zip(*call[:2], strict=True):
        target[slot] = content[z : z + 2, y : y + 4, x : x + 5]
    assert read_array(gpu, dst).tobytes() == target.tobytes()
    assert read_array(gpu, src).tobytes() == content.tobytes()
    if mode != "auto":
        assert transfer.decision.mode == mode


@pytest.mark.parametrize(
    "dtype", ["u1", "i2", "f4", "c8", "c16", "V3", "S5", "M8[ns]", [("a", "f4"), ("b", "i2", (3,))]]
)
def test_elements_of_any_type(gpu, mode, rng, dtype):
    size = np.dtype(dtype).itemsize
    content, target = random_bytes(rng, 6 * 8 * size), random_bytes(rng, 4 * 5 * size)
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    from_ = Layout((6, 8), (8 * size, size), 0, size).of(src, dtype)[1:5, 3:]
    to = Layout((4, 5), (5 * size, size), 0, size).of(dst)
    ns.copy(from_, to, mode=mode).wait()
    assert read_array(gpu, dst).tobytes() == np.ascontiguousarray(from_).tobytes()


@pytest.mark.parametrize("kinds", [("pinned", "device"), ("device", "pinned")])
def test_a_periodic_field_there_and_back(gpu, mode, rng, kinds):
    """Tiles with halos out of a field; their insides, moved by one, into another."""
    content = random_bytes(rng, (8, 6), np.float32)
    field = make_array(gpu, kinds[0], content)
    tiles = make_array(gpu, kinds[1], random_bytes(rng, (4, 6, 5), np.float32))
    corners = [(y, x) for y in (0, 4) for x in (0, 3)]
    halos = [[y - 1, x - 1] for y, x in corners]
    slots = [[i, 0, 0] for i in range(4)]
    ns.copy_boxes(field, tiles, halos, slots, (6, 5), edge="wrap", mode=mode).wait()
    got = read_array(gpu, tiles)
    for (y, x), tile in zip(halos, got, strict=True):
        want = np.roll(content, (-y, -x), (0, 1))[:6, :5]
        assert tile.tobytes() == np.ascontiguousarray(want).tobytes()
    back = make_array(gpu, kinds[0], random_bytes(rng, (8, 6), np.float32))
    inside = [[i, 1, 1] for i in range(4)]
    moved = [[y + 5, x - 1] for y, x in corners]
    ns.copy_boxes(tiles, back, inside, moved, (4, 3), edge="wrap", mode=mode).wait()
    assert read_array(gpu, back).tobytes() == np.roll(content, (5, -1), (0, 1)).tobytes()


def test_what_is_cut_off_leaves_the_rest_of_the_destination(gpu, mode, rng):
    content, target = random_bytes(rng, (6, 7)), random_bytes(rng, (3, 4, 4))
    src, dst = make_array(gpu, "pinned", content), make_array(gpu, "device", target)
    corners, slots = [[-2, 5], [9, 0], [4, -1]], [[0, 0, 0], [1, 0, 0], [2, 1, 0]]
    transfer = ns.copy_boxes(src, dst, corners, slots, (4, 4), edge="clip", mode=mode)
    transfer.wait()
    assert transfer.nbytes == 2 * 2 + 2 * 3
    target[0, 2:, :2] = content[:2, 5:]
    target[2, 1:3, 1:] = content[4:, :3]
    assert np.array_equal(read_array(gpu, dst), target)


def test_faces_of_several_fields_in_both_directions(gpu, mode, rng):
    contents = [random_bytes(rng, (5, 6, 7), dtype) for dtype in ("f4", "f8", "u1")]
    fields = [
        make_array(gpu, kind, content)
        for kind, content in zip(("pinned", "device", "pinned"), contents, strict=True)
    ]
    faces = [
        gpu.device_array((6, 7), np.float32),
        gpu.pinned_array((5, 7), np.float64),
        gpu.device_array((5, 6), np.uint8),
        gpu.device_array((5, 6), np.uint8),
    ]
    views = [fields[0][2], fields[1][:, 3], fields[2][..., 0], fields[2][..., -1]]
    wants = [contents[0][2], contents[1][:, 3], contents[2][..., 0], contents[2][..., -1]]
    transfer = ns.copy_many(zip(views, faces, strict=True), mode=mode)
    transfer.wait()
    for face, want in zip(faces, wants, strict=True):
        assert read_array(gpu, face).tobytes() == np.ascontiguousarray(want).tobytes()


@pytest.mark.parametrize(
    "kinds", [("pinned", "device"), ("device", "pinned"), ("device", "device")]
)
def test_a_plan_runs_again_and_again(gpu, mode, rng, kinds):
    src, dst = (make_array(gpu, kind, random_bytes(rng, (9, 20))) for kind in kinds)
    plan = ns.plan_copy(src[2:7, 3:16], dst[1:6, 1:14])
    assert plan.nbytes == 5 * 13
    stream = gpu.stream()
    for _ in range(4):
        content, target = random_bytes(rng, (9, 20)), random_bytes(rng, (9, 20))
        write(src, content)
        write(dst, target)
        plan.run(stream, mode, max_blocks=2).wait()
        target[1:6, 1:14] = content[2:7, 3:16]
        assert np.array_equal(read_array(gpu, dst), target)
    plan.run(stream, mode)
    decision = plan.explain(stream, mode)
    assert decision.nbytes == 65
    assert str(decision)
    gpu.synchronize()


def write(array, content):
    if isinstance(array, np.ndarray):
        array[...] = content
    else:
        array.copy_to_device(content)


@pytest.mark.parametrize("mode", ["kernel", "loop", "auto"])
@pytest.mark.parametrize(("src_kind", "dst_kind"), [("pinned", "device"), ("device", "device")])
@pytest.mark.parametrize("machine_", MACHINES)
def test_a_captured_copy_of_boxes_replays(machine_, mode, rng, src_kind, dst_kind):
    """Also if it is the first of its kind; but never as a batch."""
    with machine_.open() as gpu:
        src = make_array(gpu, src_kind, random_bytes(rng, (6, 8)))
        dst = make_array(gpu, dst_kind, random_bytes(rng, (6, 8)))
        plan = ns.plan_boxes(src, dst, [[0, 1], [3, 4]], [[2, 2], [0, 5]], (2, 3))
        stream, seen = gpu.stream(), []

        def work():
            with pytest.raises(ns.ModeUnavailableError, match="captured into a graph"):
                plan.run(stream, "batch")
            seen.append(plan.run(stream, mode))

        replay = capture(gpu, stream, work)
        (transfer,) = seen
        with pytest.raises(ns.CapturedTransferError):
            transfer.wait()
        for _ in range(3):
            content, target = random_bytes(rng, (6, 8)), random_bytes(rng, (6, 8))
            write(src, content)
            write(dst, target)
            replay()
            target[2:4, 2:5], target[:2, 5:] = content[:2, 1:4], content[3:5, 4:7]
            assert np.array_equal(read_array(gpu, dst), target)
        plan.run(stream).wait()


def test_dropping_everything_is_safe(gpu, mode, rng):
    """The library keeps the source alive until the copy is over, though nobody else does."""
    dst = make_array(gpu, "device", np.zeros((4, 60, 60), np.uint8))
    contents = [random_bytes(rng, (80, 70)) for _ in range(4)]
    for i, content in enumerate(contents):
        src = make_array(gpu, "pinned", content)
        ns.copy(src[3:63, 5:65], dst[i], stream=gpu.stream(), mode=mode)
        del src
    gpu.synchronize()
    want = np.stack([content[3:63, 5:65] for content in contents])
    assert np.array_equal(read_array(gpu, dst), want)


@pytest.mark.parametrize("mode", ["auto", *[m for m in real_modes() if m != "kernel"]])
@pytest.mark.parametrize("machine_", MACHINES)
def test_threads_with_streams_of_their_own(machine_, mode, rng):
    content = random_bytes(rng, (8, 16, 16))
    with machine_.open() as gpu:
        field, pool = make_array(gpu, "pinned", content), gpu.device_array((8, 6, 6), np.uint8)
        errors = []

        def work(i):
            try:
                stream = gpu.stream()
                for _ in range(5):
                    ns.copy(field[i, 3:9, 5:11], pool[i], stream=stream, mode=mode).wait()
            except BaseException as error:  # told by the main thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert np.array_equal(read_array(gpu, pool), content[:, 3:9, 5:11])
