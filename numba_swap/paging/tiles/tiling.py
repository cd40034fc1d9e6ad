"""How a field is cut into tiles, and what lies around each: pure, and without a GPU."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.errors import BadArgumentError, brief
from numba_swap.paging.tiles.box import Box, Boxes, Index, Slices, Source

Order: TypeAlias = Literal["rows", "morton"]


class Releases(NamedTuple):
    """When tiles that are written in place may be, so that their neighbours see the old values.

    Attributes
    ----------
    after : list of list of int
        Of each position in the order of tiles, the positions of the tiles whose old values nobody
        needs once the tile at this position was read.
    most : int
        The most tiles that are computed, or being so, and not released, at any position.
    """

    after: list[list[int]]
    most: int


class Tiling:
    """A field cut into tiles, each with a halo of what lies around it.

    Parameters
    ----------
    shape : sequence of int
        Of the field.
    tile : int or sequence of int
        Lengths of a tile, in elements; those at the end of an axis may be shorter. One number is
        for every axis.
    halo : int or sequence of int, optional
        How many elements around a tile are read with it, at both ends of each axis.
    boundary : {"clip", "periodic"} or number, optional
        What the halo is where it leaves the field. ``"clip"``: there is none, and the outer box is
        shorter there. ``"periodic"``: the field goes on at its other side. A number: that value.

    Attributes
    ----------
    shape, tile, halo : tuple of int
        As given, one number for each axis; tiles are no longer than the field.
    boundary : str or number
        As given.
    grid : tuple of int
        How many tiles there are along each axis. Tiles are numbered in the order of rows: the last
        axis is the fastest.

    Raises
    ------
    BadArgumentError
        Lengths that are no integers from 1 on (of a halo, from 0 on), or not one for each axis;
        another boundary; a periodic field that is shorter than the halo.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> tiling = ns.Tiling((4, 10), tile=(4, 4), halo=1, boundary="periodic")
    >>> len(tiling), tiling.grid, tiling.neighbours(0)
    (3, (1, 3), (1, 2))
    >>> tiling.boxes(2)
    Boxes(inner=Box(start=(0, 8), stop=(4, 10)), outer=Box(start=(-1, 7), stop=(5, 11)))
    >>> field = np.arange(40).reshape(4, 10)
    >>> tiling.split(field)[2][0]
    array([37, 38, 39, 30])
    >>> bool((tiling.join(tiling.split(field)) == field).all())
    True
    """

    def __init__(
        self,
        shape: Sequence[int],
        tile: int | Sequence[int],
        halo: int | Sequence[int] = 0,
        boundary: Any = "clip",
    ) -> None:
        self.shape = _lengths(shape, "shape", 1)
        axes = len(self.shape)
        whole = _lengths(tile, "tile", 1, axes)
        self.tile = tuple(map(min, whole, self.shape))
        self.halo = _lengths(halo, "halo", 0, axes)
        self.boundary = _boundary(boundary)
        if self.periodic and any(map(operator.gt, self.halo, self.shape)):
            raise BadArgumentError(
                f"halo={self.halo} is longer than the field {self.shape}, which would be met more "
                "than once: a periodic field must be as long as its halo"
            )
        self.grid = tuple(-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))
        self._releases: dict[str, Releases] = {}
        self._boxes: dict[int, Boxes] = {}
        self._sources: dict[int, list[Source]] = {}

    @property
    def periodic(self) -> bool:
        """Whether the field goes on at its other side."""
        return isinstance(self.boundary, str) and self.boundary == "periodic"

    @property
    def clips(self) -> bool:
        """Whether halos end where the field ends."""
        return isinstance(self.boundary, str) and self.boundary == "clip"

    def __len__(self) -> int:
        return math.prod(self.grid)

    def __repr__(self) -> str:
        return f"Tiling({self.shape}, tile={self.tile}, halo={self.halo}, {self.boundary!r})"

    def boxes(self, i: int) -> Boxes:
        """Return the boxes of a tile, without and with its halo.

        Parameters
        ----------
        i : int
            The tile's number.

        Returns
        -------
        Boxes
            In indices of the field. Where the boundary is not ``"clip"``, `outer` reaches beyond
            the field at its ends.

        Raises
        ------
        BadArgumentError
            No such tile.
        """
        known = self._boxes.get(i)
        if known is None:
            start = tuple(map(operator.mul, self._cell(i), self.tile))
            stop = tuple(map(operator.add, start, self.tile))
            inner = Box(start, stop).clipped(self.shape)
            known = self._boxes[i] = Boxes(inner, self.around(inner, self.halo))
        return known

    def around(self, box: Box, lengths: Index) -> Box:
        """Return a box with so many elements around it, as far as the boundary gives them."""
        grown = box.grown(lengths)
        return grown.clipped(self.shape) if self.clips else grown

    def sources(self, i: int) -> list[Source]:
        """Return where the parts of a tile with its halo lie in the field: one, or where it wraps.

        Parameters
        ----------
        i : int
            The tile's number.
        """
        known = self._sources.get(i)
        if known is None:
            outer = self.boxes(i).outer
            known = [
                Source(
                    Box(tuple(s for s, _, _ in parts), tuple(s + n for s, _, n in parts)),
                    tuple(slice(at, at + n) for _, at, n in parts),
                )
                for parts in itertools.product(*map(self._segments, range(len(self.shape)), *outer))
            ]
            self._sources[i] = known
        return known

    def outside(self, i: int) -> list[Slices]:
        """Return what of an array of a tile's outer box lies outside of the field: its faces.

        They meet in the corners. There are none unless the boundary is a number.
        """
        if self.clips or self.periodic:
            return []
        return self.faces(self.boxes(i).outer)

    def faces(self, box: Box) -> list[Slices]:
        """Return what of an array of a box lies outside of the field; faces meet in corners."""
        found: list[Slices] = []
        everything: Slices = (slice(None),) * len(self.shape)
        ends = zip(box.start, box.stop, self.shape, strict=True)
        for axis, (start, stop, length) in enumerate(ends):
            for face in (slice(0, -start), slice(length - start, stop - start)):
                if face.start < face.stop:
                    found.append((*everything[:axis], face, *everything[axis + 1 :]))
        return found

    def neighbours(self, i: int) -> tuple[int, ...]:
        """Return the numbers of the other tiles that the halo of a tile reads, and that read it.

        Parameters
        ----------
        i : int
            The tile's number.

        Returns
        -------
        tuple of int
            In ascending order. If the halo is longer than a tile, they are not only those beside.
        """
        reached: list[set[int]] = []
        for axis, length in enumerate(self.tile):
            cells: set[int] = set()
            outer = self.boxes(i).outer
            for start, _, count in self._segments(axis, outer.start[axis], outer.stop[axis]):
                cells.update(range(start // length, (start + count - 1) // length + 1))
            reached.append(cells)
        found = {self._number(cell) for cell in itertools.product(*reached)}
        return tuple(sorted(found - {i}))

    def order(self, by: Order = "rows") -> npt.NDArray[np.int64]:
        """Return the numbers of all tiles in an order to go through them.

        Parameters
        ----------
        by : {"rows", "morton"}, optional
            As they are numbered; or along a Morton curve, which keeps neighbours closer together.

        Returns
        -------
        ndarray of int64, shape (len(tiling),)
            Each tile once.

        Raises
        ------
        BadArgumentError
            Another order.
        """
        if by not in ("rows", "morton"):
            raise BadArgumentError(f"order={brief(by)} is none: give 'rows' or 'morton'")
        numbers_ = np.arange(len(self))
        if by == "rows":
            return numbers_
        cells = np.stack(np.unravel_index(numbers_, self.grid)).astype(object)
        keys = np.zeros(len(self), dtype=object)  # integers of any length
        axes = len(cells)
        for bit in range(max(self.grid).bit_length()):
            for axis in range(axes):
                keys |= (cells[axis] >> bit & 1) << (bit * axes + axes - 1 - axis)
        return np.array(sorted(numbers_, key=keys.__getitem__), dtype=np.int64)

    def releases(self, by: Order) -> Releases:
        """Return when tiles may be written in place, if they are read in an order."""
        known = self._releases.get(by)
        if known is None:
            order = self.order(by).tolist()
            position = {tile: n for n, tile in enumerate(order)}
            after: list[list[int]] = [[] for _ in order]
            for n, tile in enumerate(order):
                last = max((position[other] for other in self.neighbours(tile)), default=n)
                after[max(n, last)].append(n)
            held = most = 0
            for released in after:
                held += 1
                most = max(most, held)
                held -= len(released)
            known = self._releases[by] = Releases(after, most)
        return known

    def split(self, a: npt.ArrayLike) -> list[npt.NDArray[Any]]:
        """Return a copy of every tile of a field, with its halo as the boundary says.

        Parameters
        ----------
        a : array_like
            The field, on the host.

        Returns
        -------
        list of ndarray
            The outer box of each tile, in the order of their numbers.

        Raises
        ------
        BadArgumentError
            An array of another shape.
        """
        field = np.asarray(a)
        if field.shape != self.shape:
            raise BadArgumentError(f"a has the shape {field.shape}, the tiling {self.shape}")
        tiles = []
        for i in range(len(self)):
            tile = np.empty(self.boxes(i).outer.shape, field.dtype)
            for face in self.outside(i):
                tile[face] = self.boundary
            for source in self.sources(i):
                tile[source.outer] = field[source.field.slices]
            tiles.append(tile)
        return tiles

    def join(self, tiles: Iterable[npt.ArrayLike]) -> npt.NDArray[Any]:
        """Return the field that tiles make up.

        Parameters
        ----------
        tiles : iterable of array_like
            All tiles in the order of their numbers, each with its halo, which is left out, or
            without.

        Returns
        -------
        ndarray
            A new array, of the type of the first tile.

        Raises
        ------
        BadArgumentError
            Another number of tiles, or a tile of a wrong shape.
        """
        arrays = [np.asarray(tile) for tile in tiles]
        if len(arrays) != len(self):
            raise BadArgumentError(f"{len(arrays)} tiles were given, the tiling has {len(self)}")
        field = np.empty(self.shape, arrays[0].dtype)
        for i, array in enumerate(arrays):
            inner, outer = self.boxes(i)
            if array.shape == outer.shape:
                array = array[inner.within(outer)]  # noqa: PLW2901 -- its halo is done with
            elif array.shape != inner.shape:
                raise BadArgumentError(
                    f"tile {i} has the shape {array.shape}: it should be {inner.shape}, or "
                    f"{outer.shape} with its halo"
                )
            field[inner.slices] = array
        return field

    def _segments(self, axis: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield where a range along an axis lies in the field, in itself, and its length."""
        length = self.shape[axis]
        for shift in (-length, 0, length) if self.periodic else (0,):
            first, last = max(start, shift), min(stop, shift + length)
            if first < last:
                yield first - shift, first - start, last - first

    def _cell(self, i: int) -> Index:
        try:
            number = operator.index(i)
        except TypeError:
            number = -1
        if not 0 <= number < len(self):
            raise BadArgumentError(f"tile {brief(i)} is none of the {len(self)} tiles of {self!r}")
        cell = []
        for count in reversed(self.grid):
            number, at = divmod(number, count)
            cell.append(at)
        return tuple(reversed(cell))

    def _number(self, cell: Index) -> int:
        number = 0
        for at, count in zip(cell, self.grid, strict=True):
            number = number * count + at
        return number


def _lengths(given: Any, name: str, least: int, axes: int | None = None) -> Index:
    """Read lengths along axes."""
    try:
        if axes is not None and not isinstance(given, Iterable):
            given = [given] * axes
        found = tuple(map(operator.index, given))
    except TypeError:
        raise BadArgumentError(f"{name}={brief(given)}: give integers, one an axis") from None
    if axes is not None and len(found) != axes:
        raise BadArgumentError(f"{name}={found} is of {len(found)} axes, the field of {axes}")
    if not found or min(found) < least:
        raise BadArgumentError(f"{name}={found}: give integers from {least} on, one an axis")
    return found


def _boundary(given: Any) -> Any:
    """Read what lies beyond the field."""
    if isinstance(given, str):
        if given in ("clip", "periodic"):
            return given
    elif isinstance(given, numbers.Number | np.generic):
        return given
    raise BadArgumentError(f"boundary={brief(given)}: give 'clip', 'periodic' or a number")
