"""Copies in parts, to run side by side or in turns: by direction, by length, in slices."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from numba_swap.copies import SIDES, Copies
from numba_swap.costs import CLASS_EDGES
from numba_swap.memory import Addresses, Allocation

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

    A copy lies in one allocation at each end, so its direction is that of the two.
    """
    if not copies.allocations:
        return (copies,)
    if by_direction not in copies.prepared:
        sources, from_device = _sides(copies.src, copies.sources)
        destinations, to_device = _sides(copies.dst, copies.destinations)
        kinds = 2 * from_device + to_device
        parts = []
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


def _sides(
    addresses: Addresses, allocations: Sequence[Allocation]
) -> tuple[Rows, npt.NDArray[np.intp]]:
    """Return in which allocation each address lies, and whether that is device memory."""
    order = np.argsort([a.start for a in allocations])
    starts = np.array([allocations[i].start for i in order], dtype=np.uint64)
    which = order[np.searchsorted(starts, addresses, side="right") - 1]
    on_device = np.array([SIDES[a.kind] == "device" for a in allocations], dtype=np.intp)
    return which, on_device[which]


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
        lambda index: copies.describe(int(rows[index])),
        copies.owners,
        copies.producer_streams,
    )
