"""Boxes as sets of byte positions: views of any strides, and what a copy of boxes must do."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

TYPES = {1: ["|u1"], 2: ["<i2", "<f2"], 3: ["|V3"], 4: ["<f4", "<i4"], 8: ["<f8", "<c8"]}
TYPES |= {12: ["|V12"], 16: ["<c16"]}


class Layout(NamedTuple):
    """Where the elements of a view lie within an arena of bytes."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    itemsize: int

    @property
    def end(self) -> int:
        spans = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        return self.first + sum(s for s in spans if s > 0) + self.itemsize

    def positions(self) -> np.ndarray:
        """The position of every byte of every element, shape (*shape, itemsize)."""
        at = np.full((), self.first)
        for n, s in zip((*self.shape, self.itemsize), (*self.strides, 1), strict=True):
            at = at[..., None] + np.arange(n) * s
        return at

    def of(self, arena, typestr: str | None = None):
        """The view of an arena: a NumPy array, or what says of itself where it lies."""
        typestr = typestr or f"|V{self.itemsize}"
        if isinstance(arena, np.ndarray):
            return np.ndarray(self.shape, np.dtype(typestr), arena, self.first, self.strides)
        return DeviceView(arena, self, typestr)


class DeviceView:
    """A view of an array in device memory, of any strides."""

    def __init__(self, arena, layout: Layout, typestr: str) -> None:
        self.arena = arena
        self.__cuda_array_interface__ = {
            "shape": layout.shape,
            "strides": layout.strides,
            "typestr": typestr,
            "data": (arena.__cuda_array_interface__["data"][0] + layout.first, False),
            "version": 3,
        }


@st.composite
def layouts(draw, shape, itemsize, *, broadcast=False):
    """A view of a shape: its axes in any order, with any gaps, some of them backwards."""
    strides = [0] * len(shape)
    step = itemsize
    for axis in draw(st.permutations(range(len(shape)))):
        if broadcast and draw(st.sampled_from([False, False, False, True])):
            continue
        step += draw(st.sampled_from([0, 0, 0, 0, 1, 3, itemsize, 16, 3 * itemsize]))
        strides[axis] = step * draw(st.sampled_from([1, 1, 1, -1]))
        step *= shape[axis]
    low = sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if s < 0)
    return Layout(tuple(shape), tuple(strides), draw(st.integers(0, 33)) - low, itemsize)


class Bytes(NamedTuple):
    """The bytes that one row reads, and those that it writes, one to one."""

    reads: np.ndarray
    writes: np.ndarray


def bytes_of_views(src: Layout, dst: Layout) -> Bytes:
    """What a copy from one view into another moves."""
    return Bytes(src.positions().ravel(), dst.positions().ravel())


def bytes_of_box(src: Layout, dst: Layout, origins, box, edge) -> Bytes | None:
    """What a copy of a box moves; None if it is not inside."""
    places, keeps, sides = [], [], (src, dst)
    for layout, origin in zip(sides, origins, strict=True):
        lead = len(layout.shape) - len(box)
        if any(not 0 <= o < n for o, n in zip(origin, layout.shape[:lead], strict=False)):
            return None
        places.append([o + np.arange(n) for o, n in zip(origin[lead:], box, strict=True)])
        lengths = layout.shape[lead:]
        if edge == "wrap":
            if any(n > length for n, length in zip(box, lengths, strict=True)):
                return None
            places[-1] = [at % n for at, n in zip(places[-1], lengths, strict=True)]
        keeps.append(
            [(at >= 0) & (at < n) for at, n in zip(places[-1], lengths, strict=True)],
        )
    kept = [one & other for one, other in zip(*keeps, strict=True)]
    if edge != "clip" and not all(keep.all() for keep in kept):
        return None
    found = []
    for layout, origin, place in zip(sides, origins, places, strict=True):
        lead = len(layout.shape) - len(box)
        inside = layout.positions()[tuple(origin[:lead])]
        along = [at[keep] for at, keep in zip(place, kept, strict=True)]
        found.append(inside[np.ix_(*along)].ravel() if along else inside.ravel())
    return Bytes(*found)


def depends_on_order(rows: list[Bytes], same: bool, *, strict: bool) -> bool:
    """Whether the result depends on an order: a byte written twice, or written and read.

    Parameters
    ----------
    rows : list of Bytes
        Of all rows.
    same : bool
        Whether they are read from where they are written.
    strict : bool
        Leave out all bytes that stay where they are; else only rows all of whose bytes do.
    """
    moved = []
    for reads, writes in rows:
        stays = (reads == writes) if same else np.zeros(len(reads), bool)
        if strict:
            moved.append(Bytes(reads[~stays], writes[~stays]))
        elif not stays.all():
            moved.append(Bytes(reads, writes))
    if not moved:
        return False
    reads, writes = (np.concatenate(column) for column in zip(*moved, strict=True))
    twice = len(np.unique(writes)) < len(writes)
    return twice or (same and bool(np.isin(reads, writes).any()))
