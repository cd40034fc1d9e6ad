"""Boxes of a field, and how they lie in each other."""

from __future__ import annotations

import itertools
from typing import NamedTuple, TypeAlias

Index: TypeAlias = tuple[int, ...]
Slices: TypeAlias = tuple[slice, ...]


class Box(NamedTuple):
    """A box of a field: along each axis, its first index and the one after its last.

    Attributes
    ----------
    start, stop : tuple of int
        Where it begins and ends. With a halo it may reach beyond the field, also below 0.
    """

    start: Index
    stop: Index

    @property
    def shape(self) -> Index:
        """Its lengths."""
        return tuple(stop - start for start, stop in zip(*self, strict=True))

    @property
    def slices(self) -> Slices:
        """What selects it in an array that holds it."""
        return tuple(itertools.starmap(slice, zip(*self, strict=True)))

    def within(self, outer: Box) -> Slices:
        """Return what selects it in an array of a box around it."""
        starts = zip(self.start, self.stop, outer.start, strict=True)
        return tuple(slice(start - first, stop - first) for start, stop, first in starts)

    def grown(self, lengths: Index) -> Box:
        """Return it with so many more elements at both ends of each axis."""
        return Box(
            tuple(start - more for start, more in zip(self.start, lengths, strict=True)),
            tuple(stop + more for stop, more in zip(self.stop, lengths, strict=True)),
        )

    def clipped(self, shape: Index) -> Box:
        """Return what of it lies inside a field of a shape."""
        return Box(
            tuple(max(0, start) for start in self.start),
            tuple(min(length, stop) for stop, length in zip(self.stop, shape, strict=True)),
        )


class Boxes(NamedTuple):
    """The two boxes of a tile.

    Attributes
    ----------
    inner : Box
        The tile itself.
    outer : Box
        The tile with its halo.
    """

    inner: Box
    outer: Box


class Source(NamedTuple):
    """Where a part of a tile with its halo comes from.

    Attributes
    ----------
    field : Box
        In the field.
    outer : tuple of slice
        In an array of the outer box.
    """

    field: Box
    outer: Slices
