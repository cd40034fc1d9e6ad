"""Copies in parts, to run side by side or in turns: by direction, by length, by rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import SIDES, Copies, merge
from numba_swap.copies.provenance import Origin
from numba_swap.device.memory import Addresses, Allocation
from numba_swap.dispatch.cost_model import CLASS_EDGES

Rows = npt.NDArray[np.intp]


def by_length(copies: Copies, edge: int) -> tuple[Copies, Copies]:
    """Return the copies of the classes of lengths below one, and those from it on."""
    key = by_length, edge
    if key not in copies.prepared:
        long = copies.sizes >= np.uint64(CLASS_EDGES[edge - 1])
        copies.prepared[key] = tuple(take(copies, np.flatnonzero(rows)) for rows in (~long, long))
    parts: tuple[Copies, Copies] = copies.prepared[key]
    return parts


def by_direction(copies: Copies) -> tuple[Copies, ...]:
    """Return the copies of each direction, those over a host link first; `copies` if all are one.

    A copy lies in one allocation at each end, so its direction is that of the two. They stay
    together where it is not known of every copy in which ones it lies.
    """
    if by_direction not in copies.prepared:
        sources = _allocations_behind(copies.src, copies.sources)
        destinations = _allocations_behind(copies.dst, copies.destinations)
        parts = []
        if sources is not None and destinations is not None:
            kinds = 2 * _on_device(copies.sources)[sources]
            kinds += _on_device(copies.destinations)[destinations]
            for kind in (1, 2, 0, 3):  # host to device, device to host; within the host, the device
                rows = np.flatnonzero(kinds == kind)
                if rows.size:
                    parts.append(
                        take(
                            copies,
                            rows,
                            _present(sources[rows], copies.sources),
                            _present(destinations[rows], copies.destinations),
                        )
                    )
        copies.prepared[by_direction] = (copies,) if len(parts) <= 1 else tuple(parts)
    found: tuple[Copies, ...] = copies.prepared[by_direction]
    return found


def _allocations_behind(addresses: Addresses, allocations: Sequence[Allocation]) -> Rows | None:
    """Return in which allocation each address lies; None if one of them lies in none of these."""
    if not allocations:
        return None
    order = np.argsort([a.start for a in allocations], kind="stable")
    starts = np.array([allocations[i].start for i in order], dtype=np.uint64)
    stops = np.array([allocations[i].stop for i in order], dtype=np.uint64)
    at = np.searchsorted(starts, addresses, side="right") - 1
    if (at < 0).any() or (addresses >= stops[at]).any():
        return None
    which: Rows = order[at]
    return which


def _on_device(allocations: Sequence[Allocation]) -> Rows:
    return np.array([SIDES[a.kind] == "device" for a in allocations], dtype=np.intp)


def _present(which: Rows, allocations: Sequence[Allocation]) -> tuple[Allocation, ...]:
    return tuple(allocations[i] for i in np.unique(which))


def take(
    copies: Copies,
    rows: Rows | slice,
    sources: tuple[Allocation, ...] | None = None,
    destinations: tuple[Allocation, ...] | None = None,
) -> Copies:
    """Return some of the copies, in an order; of all allocations, if it is not said of which."""
    return Copies(
        copies.dst[rows],
        copies.src[rows],
        copies.uniform or copies.sizes[rows],
        copies.sources if sources is None else sources,
        copies.destinations if destinations is None else destinations,
        owners=copies.owners,
        producer_streams=copies.producer_streams,
        origin=PartOrigin(
            copies.origin, range(rows.start, rows.stop) if isinstance(rows, slice) else rows
        ),
        mergeable=copies.mergeable,
    )


def merged(copies: Copies) -> Copies:
    """Return the copies with neighbours merged; the same, if there are none."""
    if not copies.mergeable:
        return copies
    sides = (copies.sources, copies.destinations)
    # Of several layers, the first allocation need not be the lowest.
    inner = [a.start for side in sides if len(side) > 1 for a in side]
    size = copies.uniform or copies.sizes
    columns, first = merge(copies.dst, copies.src, size, np.array(inner, dtype=np.uint64))
    if first is None:
        return copies
    return Copies(
        *columns,
        copies.sources,
        copies.destinations,
        owners=copies.owners,
        producer_streams=copies.producer_streams,
        origin=_MergedOrigin(copies.origin, first, len(copies)),
    )


class PartOrigin(NamedTuple):
    """Some copies of a plan, of which others run beside them."""

    origin: Origin
    chosen: Rows | range

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its origin does."""
        return self.origin.describe(int(self.chosen[index]), offset)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that its origin tells."""
        return self.origin.row(int(self.chosen[index]), offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return nothing: what runs beside may have written other rows."""
        return None


class _MergedOrigin(NamedTuple):
    """Copies of a plan, several of which may have become one."""

    origin: Origin
    first: Rows
    total: int

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the first of them, and say how many follow."""
        start, *following = self.first[index : index + 2].tolist()
        more = (following[0] if following else self.total) - start - 1
        words = self.origin.describe(start, offset)
        if offset is not None or not more:
            return words
        return f"{words}, merged with the {more} {'copy' if more == 1 else 'copies'} after it"

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that the origin of the first tells."""
        return self.origin.row(int(self.first[index]), offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return nothing, as `PartOrigin` does."""
        return None
