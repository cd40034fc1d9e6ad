"""The form of a box: rows of bytes at two pitches, on both sides."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.driver import abi

Words = npt.NDArray[np.int64]

# Axes as (length, bytes between elements at the source, the same at the destination).
Axis = tuple[int, int, int]

FIELDS = (
    "row_bytes",
    "rows",
    "planes",
    "dst_pitch",
    "dst_plane",
    "src_pitch",
    "src_plane",
    "driver_axes",
    "dst_type",
    "src_type",
)
# What the driver's strided copies take as a pitch at most (CU_DEVICE_ATTRIBUTE_MAX_PITCH).
_MOST_PITCH = 2**31 - 1
# From so many bytes on, a warp reads and writes a row alone, and the order of rows is free.
_WIDE_ROW = 128


class Form(NamedTuple):
    """Rows of bytes at two pitches: what a box looks like, wherever it lies.

    Attributes
    ----------
    row_bytes, rows, planes : int
        Bytes of a row, rows of a plane, and planes.
    dst_pitch, dst_plane, src_pitch, src_plane : int
        Bytes from row to row and from plane to plane, on either side; may be negative.
    driver_axes : int
        What a strided copy of the driver can express: 2 all of it, 1 a plane of it, 0 a row.
    """

    row_bytes: int
    rows: int
    planes: int
    dst_pitch: int
    dst_plane: int
    src_pitch: int
    src_plane: int
    driver_axes: int

    @property
    def nbytes(self) -> int:
        """Bytes of a box."""
        return self.row_bytes * self.rows * self.planes

    @property
    def alignment_bits(self) -> int:
        """Everything but the addresses or-ed: low bits that are 0 here are 0 in all of it."""
        return self.row_bytes | self.dst_pitch | self.dst_plane | self.src_pitch | self.src_plane


class Folded(NamedTuple):
    """A box as the fewest boxes of one form.

    Attributes
    ----------
    form : Form
        Of each.
    src_offsets, dst_offsets : ndarray of int64
        Where each begins, in bytes from the first element of the box.
    """

    form: Form
    src_offsets: Words
    dst_offsets: Words


@functools.lru_cache(maxsize=1024)
def fold(axes: tuple[Axis, ...]) -> Folded:
    """Turn axes, the innermost (single bytes) last, into the fewest boxes of one form.

    Axes of one element vanish, neighbours without a gap on either side are joined, and an axis
    that runs backwards at the destination is turned round. Of more than two axes above the row,
    the longest are kept, and each step along the others is a box of its own. The two kept follow
    the destination's order, unless only the other one can be told to the driver: then they do not
    where rows are wide enough that the order is nothing to a kernel.
    """
    src_at = dst_at = 0
    turned: list[Axis] = []
    for length, src_step, dst_step in _sorted_by_destination(axes):
        if dst_step < 0:
            src_at += (length - 1) * src_step
            dst_at += (length - 1) * dst_step
            src_step, dst_step = -src_step, -dst_step  # noqa: PLW2901 -- the axis turned round
        turned.append((length, src_step, dst_step))
    *outer, (row_bytes, _, _) = join_axes(turned)
    kept = sorted(sorted(range(len(outer)), key=lambda i: -outer[i][0])[:2])
    rest = [axis for i, axis in enumerate(outer) if i not in kept]
    inner = [outer[i] for i in kept]
    above = [*[(1, 0, 0)] * (2 - len(inner)), *inner]
    form = _form_of(row_bytes, *above)
    if not form.driver_axes and row_bytes >= _WIDE_ROW:
        # Rows that run backwards at one end, the driver takes only as planes.
        turned_over = _form_of(row_bytes, *reversed(above))
        form = turned_over if turned_over.driver_axes else form
    return Folded(
        form,
        step_offsets([(n, step) for n, step, _ in rest]) + src_at,
        step_offsets([(n, step) for n, _, step in rest]) + dst_at,
    )


def _form_of(row_bytes: int, planes: Axis, rows: Axis) -> Form:
    (number, src_pitch, dst_pitch), (layers, src_plane, dst_plane) = rows, planes
    sides = (dst_pitch, dst_plane), (src_pitch, src_plane)
    driver_axes = _driver_axes(row_bytes, number, layers, sides)
    return Form(row_bytes, number, layers, *sides[0], *sides[1], driver_axes)


def _driver_axes(row_bytes: int, rows: int, planes: int, sides: Sequence[tuple[int, int]]) -> int:
    if rows == 1 or any(not row_bytes <= pitch <= _MOST_PITCH for pitch, _ in sides):
        return 0
    if planes == 1:
        return 2
    for pitch, plane in sides:
        # The driver is told of a plane as a number of rows.
        if plane % pitch or plane // pitch < rows:
            return 1
    return 2


def _sorted_by_destination(axes: tuple[Axis, ...]) -> list[Axis]:
    # The order in which elements are visited is free: follow the destination's memory.
    return [*sorted(axes[:-1], key=lambda axis: -abs(axis[2])), axes[-1]]


def join_axes(axes: Sequence[Axis]) -> list[Axis]:
    """Drop axes of one element, and join neighbours without a gap at either end."""
    joined: list[Axis] = []
    for axis in axes:
        if axis[0] == 1:
            continue
        if joined:
            n, src_step, dst_step = joined[-1]
            if src_step == axis[0] * axis[1] and dst_step == axis[0] * axis[2]:
                joined[-1] = (n * axis[0], axis[1], axis[2])
                continue
        joined.append(axis)
    if not joined or joined[-1][1:] != (1, 1):
        joined.append((1, 1, 1))  # elements of one byte that are not neighbours
    return joined


def step_offsets(axes: Sequence[tuple[int, int]]) -> Words:
    """Return where each step along some axes begins, in bytes."""
    found = np.zeros(1, dtype=np.int64)
    for length, step in axes:
        found = (found[:, None] + np.arange(length, dtype=np.int64) * step).ravel()
    return found


def expand(begins: Addresses, offsets: Words) -> Addresses:
    """Return the address at every offset from every address, in memory of its own."""
    expanded: Addresses = (begins[:, None] + offsets.astype(np.uint64)).ravel()
    return expanded


class Boxes(NamedTuple):
    """The forms of copies that are boxes.

    Attributes
    ----------
    forms : ndarray of int64, shape (m, 10)
        Each form's figures, `FIELDS`.
    which : ndarray of int64, shape (n,)
        The form of each copy; of length 0 if all are of form 0.
    """

    forms: Words
    which: Words

    def select(self, rows: npt.NDArray[np.intp] | slice) -> Boxes:
        """Return those of some copies."""
        return self if len(self.which) == 0 else Boxes(self.forms, self.which[rows])

    def of_each(self, name: str, count: int) -> Words:
        """Return one figure of every copy, of `count` in all."""
        column = self.forms[:, FIELDS.index(name)]
        if len(self.which) == 0:
            return np.full(count, column[0])
        picked: Words = column[self.which]
        return picked

    def same_steps(self, count: int) -> npt.NDArray[np.bool_]:
        """Return of every copy, of `count` in all, whether its two sides lie alike."""
        pitches, planes = (
            self.of_each(f"dst_{name}", count) == self.of_each(f"src_{name}", count)
            for name in ("pitch", "plane")
        )
        alike: npt.NDArray[np.bool_] = pitches & planes
        return alike

    def driver_copies(self, count: int) -> Words:
        """Return how many copies of the driver each box takes, of `count` in all."""
        axes, rows, planes = (self.of_each(name, count) for name in ("driver_axes", *_OUTER))
        return np.where(axes == 2, 1, planes) * np.where(axes == 0, rows, 1)

    @property
    def alignment_bits(self) -> int:
        """The figures of all forms or-ed, but for the addresses."""
        geometry = [FIELDS.index(name) for name in _GEOMETRY]
        return int(np.bitwise_or.reduce(self.forms[:, geometry], axis=None))

    def dense_at(self, side: str, memory_type: int) -> Boxes:
        """Return the same boxes with one side, ``"dst"`` or ``"src"``, without gaps elsewhere."""
        forms = self.forms.copy()
        column = FIELDS.index
        row_bytes, rows = forms[:, column("row_bytes")], forms[:, column("rows")]
        forms[:, column(f"{side}_pitch")] = row_bytes
        forms[:, column(f"{side}_plane")] = row_bytes * rows
        forms[:, column(f"{side}_type")] = memory_type
        pitches = column("dst_pitch"), column("src_pitch")
        forms[:, column("driver_axes")] = [
            _driver_axes(form[0], form[1], form[2], [(form[i], form[i + 1]) for i in pitches])
            for form in forms.tolist()
        ]
        return Boxes(forms, self.which)


_OUTER = ("rows", "planes")
_GEOMETRY = ("row_bytes", "dst_pitch", "dst_plane", "src_pitch", "src_plane")
NO_FORMS: Words = np.zeros(0, dtype=np.int64)

_MEMORY_TYPES = {
    MemoryKind.DEVICE: abi.MEMORYTYPE_DEVICE,
    MemoryKind.PINNED: abi.MEMORYTYPE_HOST,
    MemoryKind.PAGEABLE: abi.MEMORYTYPE_HOST,
}


def memory_type(allocations: Sequence[Allocation]) -> int:
    """Return what the driver's strided copies call the memory of one side."""
    types = {_MEMORY_TYPES.get(a.kind, abi.MEMORYTYPE_UNIFIED) for a in allocations}
    return types.pop() if len(types) == 1 else abi.MEMORYTYPE_UNIFIED


def form_words(form: Form, dst_type: int, src_type: int) -> tuple[int, ...]:
    """Return a form's figures as they stand in `Boxes.forms`."""
    return (*form, dst_type, src_type)


def join_boxes(parts: Sequence[tuple[Boxes | None, Addresses | int, int]]) -> Boxes | None:
    """Return the forms of the copies of several parts, one after the other; None if all are plain.

    Parameters
    ----------
    parts : sequence of (Boxes or None, int or ndarray of uint64, int)
        Of each part, its forms, the bytes of every copy or of each, and how many copies it has.
    """
    if all(boxes is None for boxes, _, _ in parts):
        return None
    forms: list[Words] = []
    which: list[Words] = []
    begin = 0
    for boxes, size, count in parts:
        found = boxes or plain_forms(size)
        forms.append(found.forms)
        which.append((found.which if len(found.which) else np.zeros(count, np.int64)) + begin)
        begin += len(found.forms)
    unlike, again = np.unique(np.concatenate(forms), axis=0, return_inverse=True)
    if len(unlike) == 1:
        return Boxes(unlike, NO_FORMS)
    return Boxes(unlike, again.reshape(-1)[np.concatenate(which)])


def plain_forms(size: Addresses | int) -> Boxes:
    """Return copies of so many bytes as boxes of one row."""
    sizes, which = np.unique(np.atleast_1d(np.asarray(size, np.int64)), return_inverse=True)
    forms = np.array(
        [
            form_words(Form(n, 1, 1, 0, 0, 0, 0, 0), *[abi.MEMORYTYPE_UNIFIED] * 2)
            for n in sizes.tolist()
        ]
    )
    return Boxes(forms, NO_FORMS if isinstance(size, int) else which.reshape(-1))


def unfold(
    dst: Addresses, src: Addresses, boxes: Boxes
) -> tuple[Addresses, Addresses, Addresses, Words]:
    """Return all rows of some boxes as plain copies, and which box each is of."""
    count = len(dst)
    rows, planes = (boxes.of_each(name, count) for name in ("rows", "planes"))
    each = rows * planes
    owner = np.repeat(np.arange(count), each)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(each) - each, each)
    plane, row = np.divmod(within, rows[owner])

    def side(addresses: Addresses, name: str) -> Addresses:
        pitch = boxes.of_each(f"{name}_pitch", count)[owner]
        step = boxes.of_each(f"{name}_plane", count)[owner]
        moved: Addresses = addresses[owner] + (plane * step + row * pitch).astype(np.uint64)
        return moved

    sizes = boxes.of_each("row_bytes", count)[owner].astype(np.uint64)
    return side(dst, "dst"), side(src, "src"), sizes, owner


def axes_of(
    shape: Sequence[int], src_strides: Sequence[int], dst_strides: Sequence[int], itemsize: int
) -> tuple[Axis, ...]:
    """Return the axes of a box between two arrays, the bytes of an element last."""
    return (*zip(shape, src_strides, dst_strides, strict=True), (itemsize, 1, 1))
