"""The launch over boxes, and its kernel in Python: every byte, access and alignment."""

import ctypes
import types
from typing import NamedTuple

import numpy as np
import pytest
from box_model import Layout

import numba_swap as ns
from numba_swap.device.devices import devices_of
from numba_swap.driver import abi
from numba_swap.modes.kernel import box_source
from numba_swap.modes.kernel.boxes import prepare_boxes
from numba_swap.native.boxes import KERNEL_FORM
from numba_swap.swap.running.context import RunOptions, launching

WAYS = ["aligned", "split", "narrow", "shifted"]
ROOM = 1 << 14


@pytest.fixture
def gpu():
    with ns.simulate() as gpu:
        gpu.driver.current_context()
        yield gpu


def prepared(plan, **options):
    """The launch of a plan's boxes."""
    options = RunOptions(mode="kernel", **options)
    with launching(plan._devices, plan._device, plan._direction, options) as launch:
        return prepare_boxes(plan.copies, plan.copies.boxes, launch)


class Form(NamedTuple):
    """What the kernel reads of a form."""

    row_bytes: int
    rows: int
    dst_pitch: int
    dst_plane: int
    src_pitch: int
    src_plane: int
    row_words: int
    words: int
    step_words: int
    step_rows: int
    step_planes: int
    unit: int
    segment: int
    may_overread: int

    @property
    def way(self):
        if self.unit == 16:
            return "aligned"
        return "shifted" if self.segment < 0 else "narrow" if self.segment else "split"


def forms_of(launch):
    begin = (launch.arguments[5] - launch.arguments[0]) // 8
    words = launch.table.words[begin : launch.table_bytes // 8].astype(np.int64)
    return [Form(*row) for row in words.reshape(-1, 14).tolist()]


class Accesses:
    """What the kernel touches: where, how wide, and whether that is aligned."""

    def __init__(self, launch):
        self.seen = []
        self.launch = launch
        self.kernel = box_source.python_kernel(self._note)

    def _note(self, address, width):
        assert address % width == 0
        self.seen.append((address, width))

    def run(self, *, blocks=None, threads=None):
        """Run all threads one after another, in Python."""
        threads = threads or self.launch.threads
        total = threads * (blocks or self.launch.blocks)
        here = types.SimpleNamespace(gridsize=lambda _: total)
        self.kernel.__globals__["cuda"] = here
        for thread in range(total):
            here.grid = lambda _, thread=thread: thread
            self.kernel(*self.launch.arguments)
        return self

    def within(self, start, stop):
        """How often each byte of a range was touched."""
        counts = np.zeros(stop - start, np.int64)
        for address, width in self.seen:
            if start <= address < stop:
                counts[address - start : address - start + width] += 1
        return counts


class Side(NamedTuple):
    """A view of an arena of bytes: itself, where the arena begins, and its content."""

    view: object
    address: int
    model: np.ndarray


def make_side(gpu, kind, shape, strides, first, content):
    """A view of an arena that begins `first` bytes after a multiple of 512."""
    make = gpu.pinned_array if kind == "pinned" else gpu.device_array
    arena = make(len(content) + 512, np.uint8)
    flat = arena if kind == "pinned" else arena._memory
    begin = -flat.ctypes.data % 512
    flat[:] = 0
    flat[begin : begin + len(content)] = content
    address = flat.ctypes.data + begin
    view = Layout(shape, strides, begin + first, 1).of(arena)
    return Side(view, address, Layout(shape, strides, first, 1).of(content))


def touched(shape, strides, first):
    """How often each byte of an arena is part of a view."""
    at = Layout(shape, strides, first, 1).positions().ravel()
    return np.bincount(at, minlength=ROOM)


def check_copy(gpu, rng, kinds, shape, strides, firsts, **launch_as):
    """Copy one view into another, as the kernel would; return the form and what was read."""
    contents = [rng.integers(0, 256, ROOM, dtype=np.uint8) for _ in range(2)]
    src, dst = (
        make_side(gpu, kind, shape, steps, first, content)
        for kind, steps, first, content in zip(kinds, strides, firsts, contents, strict=True)
    )
    plan = ns.plan_copy(src.view, dst.view)
    launch = prepared(plan, max_blocks=1)
    (form,) = forms_of(launch)
    accesses = Accesses(launch).run(**launch_as)
    want = contents[1].copy()
    Layout(shape, strides[1], firsts[1], 1).of(want)[...] = src.model
    got = np.frombuffer(memoryview((ctypes.c_uint8 * ROOM).from_address(dst.address)), np.uint8)
    assert np.array_equal(got, want)
    # Each byte of the boxes is written once, and no other.
    written = accesses.within(dst.address, dst.address + ROOM)
    assert np.array_equal(written, touched(shape, strides[1], firsts[1]))
    read = accesses.within(src.address, src.address + ROOM) > 0
    asked = touched(shape, strides[0], firsts[0]) > 0
    assert (read | ~asked).all()
    return form, read & ~asked, asked


def whole_words(asked):
    """The bytes of all 16-byte words of which a byte is asked for."""
    return np.repeat(asked.reshape(-1, 16).any(axis=1), 16)


@pytest.mark.parametrize(
    ("kinds", "way"),
    [
        (("pinned", "device"), "split"),
        (("device", "device"), "shifted"),
        (("device", "pinned"), "narrow"),
        (("pinned", "pinned"), "narrow"),
    ],
)
@pytest.mark.parametrize("row_bytes", [1, 2, 7, 15, 16, 17, 31, 40, 100, 300])
def test_every_alignment_of_rows_and_strides(gpu, rng, kinds, way, row_bytes):
    firsts = [(0, 0), (1, 0), (0, 15), (7, 9), (8, 8), (4, 12), (2, 6), (16, 32)]
    gaps = [(1, 0), (16, 16), (5, 11), (8, 24), (0, 3)]
    for i, first in enumerate(firsts):
        gap = gaps[(i + row_bytes) % len(gaps)]
        pitches = [row_bytes + g for g in gap]
        rows = 1 + 240 // row_bytes if row_bytes < 100 else 2
        strides = [(rows * pitch + 16 * (i % 3), pitch, 1) for pitch in pitches]
        shape = (2, rows, row_bytes)
        form, over, asked = check_copy(gpu, rng, kinds, shape, strides, first, threads=32)
        assert form.way == ("aligned" if form.unit == 16 else way)
        assert not over.any() or (form.way in ("split", "shifted") and form.may_overread)
        assert not (over & ~whole_words(asked)).any()


@pytest.mark.parametrize("unit", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kinds", [("pinned", "device"), ("device", "pinned")])
def test_the_widest_unit_that_all_allow(gpu, rng, unit, kinds):
    shape, pitch = (2, 5, 3 * unit), 4 * unit
    strides = (16 * pitch, pitch, 1), (8 * pitch, pitch, 1)
    form, *_ = check_copy(gpu, rng, kinds, shape, strides, (3 * unit, 5 * unit))
    assert form.unit == unit
    for figure in range(7):
        changed = [list(steps) for steps in strides]
        firsts, length = [3 * unit, 5 * unit], 3 * unit
        if figure < 2:
            changed[figure][1] += unit // 2 or 1
        elif figure < 4:
            changed[figure - 2][0] += unit // 2 or 1
        elif figure < 6:
            firsts[figure - 4] += unit // 2 or 1
        else:
            length -= unit // 2 or 1
        strided = [tuple(steps) for steps in changed]
        narrower, *_ = check_copy(gpu, rng, kinds, (2, 5, length), strided, firsts)
        assert narrower.unit == max(1, unit // 2)


@pytest.mark.parametrize(
    ("kinds", "row_bytes", "pitches"),
    [
        (("pinned", "device"), 16, (16, 32)),  # aligned: one word a row
        (("pinned", "device"), 8, (16, 24)),  # split: one word a row
        (("device", "pinned"), 8, (24, 32)),  # narrow: four words a row
        (("device", "device"), 8, (24, 16)),  # shifted: one word a row
    ],
)
def test_every_number_of_words(gpu, rng, kinds, row_bytes, pitches):
    """From less than one for each thread of a tile to more than four, and no word beyond."""
    for rows in [*range(2, 36), 48, 63, 64, 65, 95, 96, 97, 127, 128, 129, 160, 161]:
        strides = [(pitch, 1) for pitch in pitches]
        check_copy(gpu, rng, kinds, (rows, row_bytes), strides, (0, 0), threads=32)


def test_words_are_shared_by_the_threads_of_a_tile_whatever_their_number(gpu, rng):
    """Fewer and more threads than words, chunks and boxes."""
    shape, strides = (3, 7, 33), ((7 * 50, 50, 1), (7 * 33 + 5, 33, 1))
    for kinds in (("pinned", "device"), ("device", "pinned")):
        for threads in (32, 64, 1024):
            check_copy(gpu, rng, kinds, shape, strides, (1, 2), threads=threads, blocks=2)


@pytest.mark.parametrize("strides", [(-40, 1), (0, 1), (40, -1), (-40, -1), (1, 40)])
@pytest.mark.parametrize(
    "kinds", [("pinned", "device"), ("device", "pinned"), ("device", "device")]
)
def test_sources_that_run_backwards_stand_still_or_are_transposed(gpu, rng, strides, kinds):
    shape = (6, 5)
    low = -sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0)
    check_copy(gpu, rng, kinds, shape, (strides, (8, 1)), (low + 3, 1))


@pytest.mark.parametrize("room", [4096, 4096 + 8, 4096 + 1])
@pytest.mark.parametrize("kind", ["pinned", "device"])
@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_the_source_is_read(gpu, rng, room, kind, at_end):
    """Words at its ends are read whole only if all of them is the allocation's."""
    src = (gpu.pinned_array if kind == "pinned" else gpu.device_array)(room, np.uint8)
    dst = gpu.device_array((40, 24), np.uint8)  # so many that all four words in flight are used
    flat = src if kind == "pinned" else src._memory
    flat[:] = rng.integers(0, 256, room, dtype=np.uint8)
    start = flat.ctypes.data
    assert start % 16 == 0
    rows = Layout((40, 24), (30, 1), room - 39 * 30 - 24 if at_end else 0, 1)
    launch = prepared(ns.plan_copy(rows.of(src), dst))
    (form,) = forms_of(launch)
    way = "split" if kind == "pinned" else "shifted"
    assert (form.way, form.may_overread) == (way, int(room % 16 == 0))
    near = [
        (address - start, width)
        for address, width in Accesses(launch).run().seen
        if start - 64 <= address < start + room + 64
    ]
    assert len(near) >= 40 * 24 / 16
    assert all(at >= 0 and at + width <= room for at, width in near)
    assert np.array_equal(dst.copy_to_host(), rows.of(flat, "|u1"))


# -- many boxes ---------------------------------------------------------------------------------


def test_unlike_boxes_share_one_launch(gpu, rng):
    """Forms of all ways beside each other, long boxes in chunks, one after the other."""
    kinds = ("pinned", "device"), ("device", "pinned")
    boxes = [
        ((4, 32), (64, 1), kinds[0]),
        ((9, 21), (40, 1), kinds[0]),
        ((5, 18), (24, 1), kinds[1]),
        ((9, 21), (40, 1), kinds[0]),
        ((40, 200), (201, 1), kinds[0]),
        ((1, 48), (48, 1), kinds[0]),
        ((7, 45), (50, 1), ("device", "device")),
    ]
    pairs, wants = [], []
    for shape, strides, (src_kind, dst_kind) in boxes:
        content = rng.integers(0, 256, ROOM, dtype=np.uint8)
        src = make_side(gpu, src_kind, shape, strides, 0, content)
        dst = {"device": gpu.device_array, "pinned": gpu.pinned_array}[dst_kind](shape, "V1")
        pairs.append((src.view, dst))
        wants.append(src.model)
    plan = ns.plan_many(pairs)
    launch = prepared(plan)
    assert {form.way for form in forms_of(launch)} == {*WAYS}
    assert launch.arguments[1] > len(pairs)  # rows of the table: some boxes take several chunks
    assert launch.arguments[6] == 1
    Accesses(launch).run(threads=64, blocks=1)
    for (_, dst), want in zip(pairs, wants, strict=True):
        got = dst if isinstance(dst, np.ndarray) else dst.copy_to_host()
        assert got.tobytes() == want.tobytes()


def test_long_boxes_are_shared_by_many_tiles(gpu, rng):
    src, dst = gpu.pinned_array((4, 64, 160), np.int32), gpu.device_array((4, 64, 128), np.int32)
    src[...] = rng.integers(0, 1 << 30, src.shape)
    launch = prepared(ns.plan_copy(src[:, :, 5:133], dst))
    _, rows, chunks, chunk_words, tile, _, unlike = launch.arguments
    assert (rows, unlike) == (1, 0)
    assert tile == 32
    assert chunks > 1
    assert chunk_words % (4 * tile) == 0
    Accesses(launch).run(threads=256, blocks=2)
    assert np.array_equal(dst.copy_to_host(), src[:, :, 5:133])


@pytest.mark.parametrize(
    ("length", "tile"), [(1, 2), (2, 4), (4, 8), (15, 16), (16, 32), (500, 32)]
)
def test_short_boxes_share_a_warp(gpu, length, tile):
    src, dst = gpu.pinned_array((99, 2, 2000), "V16"), gpu.device_array((99, 3, length + 1), "V16")
    origins = [[i, 0, 0] for i in range(99)]
    launch = prepared(ns.plan_boxes(src, dst, origins, origins, (2, length)))
    assert launch.arguments[4] == tile
    assert launch.blocks == min(launch.most_blocks, -(-99 * tile // launch.threads))


def test_there_are_never_more_blocks_than_work_or_than_is_allowed(gpu):
    src, dst = (
        gpu.pinned_array((64, 64, 64), np.float32),
        gpu.device_array((32, 32, 32), np.float32),
    )
    plan = ns.plan_copy(src[:32, :32, :32], dst)
    for most in (1, 3, 7):
        launch = prepared(plan, max_blocks=most)
        assert launch.blocks <= launch.most_blocks <= most
    tiny = ns.plan_copy(src[:2, :1, :2], dst[:2, :1, :2])
    assert prepared(tiny).blocks == 1


def test_the_descriptors_may_be_moved(gpu, rng):
    """Within the device they are read from a copy in its memory."""
    src, dst = (gpu.device_array((8, 8, 8), np.float32) for _ in range(2))
    launch = prepared(ns.plan_copy(src[::2, ::2], dst[1::2, 1::2]))
    moved = launch.moved(4096)
    changed = [i for i, (a, b) in enumerate(zip(moved, launch.arguments, strict=True)) if a != b]
    assert changed == [0, 5]
    assert [moved[i] - launch.arguments[i] for i in changed] == [4096, 4096]
    assert launch.arguments[5] + 8 * 14 - launch.arguments[0] == launch.table_bytes


def test_the_forms_are_as_long_as_the_kernel_reads_them():
    assert Form._fields == KERNEL_FORM


def test_host_memory_is_told_by_what_the_driver_calls_it(gpu):
    field = gpu.pinned_array((8, 9), np.uint8)
    for make, way in (
        (gpu.pinned_array, "narrow"),
        (gpu.device_array, "split"),
        (gpu.managed_array, "split"),
    ):
        plan = ns.plan_copy(field[:, :7], make((8, 8), np.uint8)[:, 1:])
        assert forms_of(prepared(plan))[0].way == way
    assert plan.copies.boxes.forms[0, 8] == abi.MEMORYTYPE_UNIFIED


def test_warming_up_loads_the_kernel_of_boxes_too(gpu):
    ns.warm_up()
    assert {*devices_of(gpu.driver)[0].kernels} == {"copy", "box", "exchange"}
