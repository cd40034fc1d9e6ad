"""Copies in parts, to run side by side or in turns: by direction, by length, in slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies import SIDES, Copies
from numba_swap.costs import CLASS_EDGES
from numba_swap.memory import Addresses, Allocation
from numba_swap.origins import Origin

Rows = npt.NDArray[np.intp]


def by_length(copies: Copies, edge: int) -> tuple[Copies, Copies]:
    """Return the copies of the classes of lengths below one, and those from it on."""
    key = by_length, edge
    if key not in copies.prepared:
        long = copies.sizes >= np.uint64(CLASS_EDGES[edge - 1])
        copies.prepared[key] = tuple(
            _take(copies, np.flatnonzero(rows), copies.sources, copies.destinations)
            for rows in (~long, long)
        )
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
                        _take(
                            copies,
                            rows,
                            _present(sources[rows], copies.sources),
                            _present(destinations[rows], copies.destinations),
                        )
                    )
        copies.prepared[by_direction] = (copies,) if len(parts) <= 1 else tuple(parts)
    found: tuple[Copies, ...] = copies.prepared[by_direction]
    return found


def in_slices(copies: Copies, slices: int) -> tuple[Copies, ...]:
    """Return the copies in so many runs of rows, about equally many in each."""
    key = in_slices, slices
    if key not in copies.prepared:
        bounds = np.linspace(0, len(copies), slices + 1).astype(np.intp)
        copies.prepared[key] = tuple(
            _take(copies, np.arange(begin, end), copies.sources, copies.destinations)
            for begin, end in itertools.pairwise(bounds)
            if begin < end
        )
    found: tuple[Copies, ...] = copies.prepared[key]
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


def _take(
    copies: Copies,
    rows: Rows,
    sources: tuple[Allocation, ...],
    destinations: tuple[Allocation, ...],
) -> Copies:
    return Copies(
        copies.dst[rows],
        copies.src[rows],
        copies.uniform or copies.sizes[rows],
        sources,
        destinations,
        owners=copies.owners,
        producer_streams=copies.producer_streams,
        origin=_PartOrigin(copies.origin, rows),
    )


class _PartOrigin(NamedTuple):
    """Some copies of a plan, of which others run beside them."""

    origin: Origin
    chosen: Rows

    def describe(self, index: int, offset: int | None = None) -> str:
        """Describe the copy as its origin does."""
        return self.origin.describe(int(self.chosen[index]), offset)

    def row(self, index: int, offset: int = 0) -> int | None:
        """Return the row that its origin tells."""
        return self.origin.row(int(self.chosen[index]), offset)

    def rows(self, count: int) -> Sequence[int] | None:
        """Return nothing: what runs beside may have written other rows."""
        return None
