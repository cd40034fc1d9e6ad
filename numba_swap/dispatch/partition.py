"""Copies in parts, to run side by side: by direction, by size, by shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import SIDES, Ends
from numba_swap.device.memory import Addresses, Allocation
from numba_swap.dispatch.cost_model import CLASS_EDGES, share_out

Rows = npt.NDArray[np.intp]


def by_size(copies: Copies, edge: int) -> tuple[Copies, Copies]:
    """Return the copies of the classes of lengths below one, and those from it on."""
    key = by_size, edge
    if key not in copies.memo:
        long = copies.sizes >= np.uint64(CLASS_EDGES[edge - 1])
        copies.memo[key] = tuple(copies.select(np.flatnonzero(rows)) for rows in (~long, long))
    parts: tuple[Copies, Copies] = copies.memo[key]
    return parts


def by_share(copies: Copies, share: float) -> tuple[Copies, Copies]:
    """Return the copies for the kernel, and a share of them for the batch."""
    key = by_share, share
    if key not in copies.memo:
        kernel, _ = share_out(len(copies), share)
        parts = slice(0, kernel), slice(kernel, len(copies))
        copies.memo[key] = tuple(map(copies.select, parts))
    shares: tuple[Copies, Copies] = copies.memo[key]
    return shares


def by_direction(copies: Copies) -> tuple[Copies, ...]:
    """Return the copies of each direction, those over a host link first; `copies` if all are one.

    A copy lies in one allocation at each end, so its direction is that of the two. They stay
    together where it is not known of every copy in which ones it lies.
    """
    if by_direction not in copies.memo:
        sources = _allocations_behind(copies.src, copies.ends.sources)
        destinations = _allocations_behind(copies.dst, copies.ends.destinations)
        parts = []
        if sources is not None and destinations is not None:
            kinds = 2 * _on_device(copies.ends.sources)[sources]
            kinds += _on_device(copies.ends.destinations)[destinations]
            for kind in (1, 2, 0, 3):  # host to device, device to host; within the host, the device
                rows = np.flatnonzero(kinds == kind)
                if rows.size:
                    ends = Ends.of(
                        _present(sources[rows], copies.ends.sources),
                        _present(destinations[rows], copies.ends.destinations),
                        copies.ends.owners,
                        copies.ends.producer_streams,
                    )
                    parts.append(copies.select(rows, ends))
        copies.memo[by_direction] = (copies,) if len(parts) <= 1 else tuple(parts)
    found: tuple[Copies, ...] = copies.memo[by_direction]
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
