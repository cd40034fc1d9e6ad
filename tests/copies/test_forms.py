"""The forms of boxes: every byte has its place, in the fewest boxes that say so."""

import itertools

import numpy as np
import pytest

from numba_swap.copies import forms
from numba_swap.copies.forms import NO_FORMS, Boxes, Form, axes_of, fold, form_words, join_boxes
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.driver import abi
from numba_swap.native import boxes as compiled

UNIFIED = abi.MEMORYTYPE_UNIFIED
MAX_PITCH = 2**31 - 1


def positions(axes):
    """Where each byte is read, and where it goes, one a row."""
    src = dst = np.zeros(1, np.int64)
    for length, src_step, dst_step in axes:
        src = (src[:, None] + np.arange(length) * src_step).ravel()
        dst = (dst[:, None] + np.arange(length) * dst_step).ravel()
    return {*zip(src.tolist(), dst.tolist(), strict=True)}


def positions_of(folded):
    form = folded.form
    planes = (form.planes, form.src_plane, form.dst_plane)
    rows = (form.rows, form.src_pitch, form.dst_pitch)
    inside = positions([planes, rows, (form.row_bytes, 1, 1)])
    begins = zip(folded.src_offsets.tolist(), folded.dst_offsets.tolist(), strict=True)
    return {(s + a, d + b) for s, d in begins for a, b in inside}


def random_axes(rng, *, most=6):
    """A box between two arrays, each laid out in an order of its own, some axes backwards."""
    shape = rng.integers(1, 4, rng.integers(0, most))
    itemsize = int(rng.choice([1, 2, 3, 4, 8, 16]))
    sides = []
    for side in range(2):
        strides, step = [0] * len(shape), itemsize
        for axis in rng.permutation(len(shape)):
            if side == 0 and rng.random() < 0.1:
                continue
            step += int(rng.choice([0, 0, 0, 1, 4, itemsize]))
            strides[axis] = step * int(rng.choice([1, 1, 1, -1]))
            step *= int(shape[axis])
        sides.append(strides)
    return axes_of([int(n) for n in shape], *sides, itemsize)


def test_every_byte_has_its_place_whatever_the_axes(rng):
    for _ in range(600):
        axes = random_axes(rng)
        folded = fold(axes)
        assert positions_of(folded) == positions(axes)
        form = folded.form
        assert form.nbytes * len(folded.src_offsets) == np.prod([n for n, _, _ in axes])
        assert form.dst_pitch >= 0
        assert form.dst_plane >= 0
        # Planes are there only where rows are, and rows only where they are no longer row.
        assert form.rows > 1 or (form.planes, form.dst_pitch, form.src_pitch) == (1, 0, 0)
        assert form.planes > 1 or (form.dst_plane, form.src_plane) == (0, 0)
        assert (form.dst_pitch, form.src_pitch) != (form.row_bytes,) * 2


def test_what_is_contiguous_on_both_sides_folds():
    def folded(shape, src, dst, itemsize=4):
        form, src_offsets, _ = fold(axes_of(shape, src, dst, itemsize))
        return form[:7], len(src_offsets)

    dense = np.zeros((3, 4, 5, 6), np.int32).strides
    assert folded((3, 4, 5, 6), dense, dense) == ((1440, 1, 1, 0, 0, 0, 0), 1)
    # A tile of a field into a slot of a pool.
    field, pool = (4000, 400, 4), (96, 24, 4)
    assert folded((3, 4, 6), field, pool) == ((24, 4, 3, 24, 96, 400, 4000), 1)
    assert folded((3, 4, 100), field, (1600, 400, 4)) == ((1600, 3, 1, 1600, 0, 4000, 0), 1)
    # Of more than two axes above the row, the longest two are kept.
    apart = (1 << 24, 1 << 20, 1 << 12, 4)
    assert folded((2, 7, 5, 6), apart, (840, 120, 24, 4)) == (
        (24, 5, 7, 24, 120, 1 << 12, 1 << 20),
        2,
    )
    assert folded((7, 2, 5, 6), apart, (240, 120, 24, 4)) == (
        (24, 5, 7, 24, 240, 1 << 12, 1 << 24),
        2,
    )
    # Single elements that are no neighbours are rows.
    assert folded((5,), (8,), (4,)) == ((4, 5, 1, 4, 0, 8, 0), 1)
    assert folded((), (), ()) == ((4, 1, 1, 0, 0, 0, 0), 1)
    assert folded((1,), (99,), (7,), itemsize=1) == ((1, 1, 1, 0, 0, 0, 0), 1)


def test_an_axis_that_runs_backwards_on_both_sides_is_turned():
    folded = fold(axes_of((4, 6), (-400, 4), (-24, 4), 4))
    assert folded.form[:7] == (24, 4, 1, 24, 0, 400, 0)
    assert (folded.src_offsets.tolist(), folded.dst_offsets.tolist()) == ([-1200], [-72])
    assert fold(axes_of((4, 6), (-24, -4), (-24, -4), 4)).form[:3] == (96, 1, 1)
    against = fold(axes_of((4, 6), (-400, 4), (24, 4), 4))
    assert (against.form.src_pitch, against.form.driver_axes) == (-400, 0)


def test_rows_that_only_planes_can_be_told_are_turned_over():
    shape, src, dst = (5, 6, 64), (4096, -256, 4), (1536, 256, 4)
    folded = fold(axes_of(shape, src, dst, 4))
    assert folded.form == Form(256, 5, 6, 1536, 256, 4096, -256, 1)
    narrow = fold(axes_of((5, 6, 8), (4096, -256, 4), (192, 32, 4), 4)).form
    assert narrow == Form(32, 6, 5, 32, 192, -256, 4096, 0)  # as they lie at the destination
    both = fold(axes_of(shape, (-4096, -256, 4), dst, 4)).form
    assert (both.rows, both.driver_axes) == (6, 0)  # of no use


def test_every_byte_has_its_place_when_turned_over(rng, monkeypatch):
    monkeypatch.setattr(forms, "_WIDE_ROW", 1)
    turned = 0
    for _ in range(600):
        axes = random_axes(rng)
        folded = fold.__wrapped__(axes)
        assert positions_of(folded) == positions(axes)
        turned += folded.form.rows > 1 and folded.form.dst_plane < folded.form.dst_pitch
    assert turned > 20


def driver_can(form):
    """How much of a form the C structures can say, worked out from what they hold."""

    def says(axes):
        for pitch, plane in ((form.dst_pitch, form.dst_plane), (form.src_pitch, form.src_plane)):
            if form.rows > 1 and not form.row_bytes <= pitch <= MAX_PITCH:
                return False
            if (
                axes == 2
                and form.planes > 1
                and not any(plane == height * pitch for height in range(form.rows, 40_000))
            ):
                return False
        return True

    if form.rows == 1:
        return {0}
    return {2} if says(2) else {1} if says(1) else {0}


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("src_pitch", [-400, 0, 23, 24, 400, MAX_PITCH, MAX_PITCH + 1])
@pytest.mark.parametrize("src_plane", [-4000, 400, 1200, 1201, 1600, 4000])
def test_how_much_of_a_box_the_driver_expresses(planes, src_pitch, src_plane):
    axes = [(planes, src_plane, 96), (4, src_pitch, 24), (24, 1, 1)]
    form = fold(tuple(axes)).form
    if (form.rows, form.planes) == (4, planes):
        assert form.driver_axes in driver_can(form)


def test_what_cannot_be_said_of_the_destination_either():
    gap = fold(((3, 4000, 97), (4, 400, 24), (24, 1, 1))).form  # planes between rows
    assert gap.driver_axes == 1
    assert fold(((3, 4000, 120), (4, 400, 24), (24, 1, 1))).form.driver_axes == 2


FORMS = [
    Form(24, 4, 3, 24, 96, 400, 4000, 2),
    Form(24, 4, 3, 24, 97, 400, 4000, 1),
    Form(8, 5, 2, 8, 40, -16, 400, 0),
    Form(100, 1, 1, 0, 0, 0, 0, 0),
]
TABLE = np.array([form_words(form, 2, 1) for form in FORMS])


def test_figures_of_each_box(rng):
    which = rng.integers(0, 4, 20)
    boxes = Boxes(TABLE, which)
    for name, i in zip(forms.FIELDS, range(10), strict=True):
        assert boxes.of_each(name, 20).tolist() == TABLE[which, i].tolist()
    assert (
        boxes.select(slice(3, 9)).of_each("row_bytes", 6).tolist() == TABLE[which[3:9], 0].tolist()
    )
    assert boxes.select(np.array([7, 1])).which.tolist() == which[[7, 1]].tolist()
    assert boxes.same_steps(20).tolist() == (which == 3).tolist()
    all_alike = Boxes(TABLE[:1], NO_FORMS)
    assert all_alike.select(np.array([5])) is all_alike
    assert all_alike.of_each("src_pitch", 3).tolist() == [400] * 3
    assert Boxes(TABLE[:1], NO_FORMS).alignment_bits == 24 | 96 | 400 | 4000
    assert boxes.alignment_bits == 24 | 96 | 97 | 8 | 40 | 400 | 4000 | -16 | 100


def test_copies_of_the_driver_are_counted_as_they_are_written():
    which = np.array([0, 1, 2, 3, 2])
    boxes = Boxes(TABLE, which)
    counts = boxes.driver_copies(5)
    assert counts.tolist() == [1, 3, 10, 1, 10]
    places = np.arange(5, dtype=np.uint64) * np.uint64(1 << 20)
    for i, count in enumerate(counts.tolist()):
        room = np.zeros(count * compiled.OPERATION_WORDS, np.uint64)
        arguments = places, places, boxes.forms, boxes.which, i, i + 1, room
        assert compiled.fill_operations(*arguments) == count


def test_boxes_and_plain_copies_stand_together():
    one = Boxes(TABLE[:1], NO_FORMS)
    two = Boxes(TABLE, np.array([2, 0, 3]))
    sizes = np.array([16, 32, 16], np.uint64)
    joined = join_boxes([(one, 288, 2), (None, 16, 2), (two, 99, 3), (None, sizes, 3)])
    plain = [form_words(Form(n, 1, 1, 0, 0, 0, 0, 0), UNIFIED, UNIFIED) for n in (16, 32)]
    want = [TABLE[0]] * 2 + [plain[0]] * 2 + [TABLE[2], TABLE[0], TABLE[3]]
    want += [plain[0], plain[1], plain[0]]
    assert joined.forms[joined.which].tolist() == [list(map(int, row)) for row in want]
    assert len(np.unique(joined.forms, axis=0)) == len(joined.forms)
    assert join_boxes([(None, 16, 2), (None, 8, 1)]) is None
    again = join_boxes([(one, 288, 2), (one, 288, 1)])
    assert again.forms.tolist() == TABLE[:1].tolist()
    assert not len(again.which)


def test_rows_of_boxes_one_by_one(rng):
    which = rng.integers(0, 4, 6)
    dst, src = (rng.integers(1 << 20, 1 << 30, 6).astype(np.uint64) for _ in range(2))
    to, from_, sizes, owner = forms.unfold(dst, src, Boxes(TABLE, which))
    found = zip(from_.tolist(), to.tolist(), sizes.tolist(), owner.tolist(), strict=True)
    want = [
        (
            int(src[i]) + k * form.src_plane + j * form.src_pitch,
            int(dst[i]) + k * form.dst_plane + j * form.dst_pitch,
            form.row_bytes,
            i,
        )
        for i, form in enumerate(FORMS[n] for n in which)
        for k, j in itertools.product(range(form.planes), range(form.rows))
    ]
    assert [*found] == want


@pytest.mark.parametrize(
    ("kinds", "called"),
    [
        (["DEVICE"], abi.MEMORYTYPE_DEVICE),
        (["PINNED"], abi.MEMORYTYPE_HOST),
        (["PAGEABLE", "PINNED"], abi.MEMORYTYPE_HOST),
        (["MANAGED"], UNIFIED),
        (["DEVICE", "PINNED"], UNIFIED),
        ([], UNIFIED),
    ],
)
def test_what_memory_is_called(kinds, called):
    allocations = [Allocation(0, 4096, MemoryKind[kind], 0, 0) for kind in kinds]
    assert forms.memory_type(allocations) == called
