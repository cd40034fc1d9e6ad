"""Copies in parts, to run side by side: by direction, by size, by shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import SIDES, Ends
from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.dispatch.workload import CLASS_EDGES, share_out

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

    Where memory of several GPUs takes part, those of each GPU, or pair of GPUs, are apart. A copy
    lies in one allocation at each end, so its direction is that of the two. They stay together
    where it is not known of every copy in which ones it lies.
    """
    if by_direction not in copies.memo:
        sources = _allocations_behind(copies.src, copies.ends.sources)
        destinations = _allocations_behind(copies.dst, copies.ends.destinations)
        parts = []
        if sources is not None and destinations is not None:
            read, written = _gpus_of(copies.ends, sources, destinations)
            numbers = int(max(read.max(initial=0), written.max(initial=0))) + 2
            kinds = (read + 1) * numbers + written + 1
            present = [
                divmod(kind, numbers) for kind in np.flatnonzero(np.bincount(kinds)).tolist()
            ]
            for reads, writes in sorted(present, key=_order):
                rows = np.flatnonzero(kinds == reads * numbers + writes)
                ends = Ends.of(
                    _present(sources[rows], copies.ends.sources),
                    _present(destinations[rows], copies.ends.destinations),
                    copies.ends.owners,
                    copies.ends.producer_streams,
                )
                parts.append(copies.select(rows, ends))
        one = len(parts) <= 1 and len(copies.ends.devices) <= 1
        copies.memo[by_direction] = (copies,) if one or not parts else tuple(parts)
    found: tuple[Copies, ...] = copies.memo[by_direction]
    return found


def _order(kind: tuple[int, int]) -> tuple[int, int, int]:
    """Return by what parts are ordered: to a GPU, from one, within the host, within or between."""
    reads, writes = kind  # 0 the host, else the number of a GPU, from 1 on
    return {(0, 1): 0, (1, 0): 1, (0, 0): 2, (1, 1): 3}[bool(reads), bool(writes)], writes, reads


def _gpus_of(ends: Ends, sources: Rows, destinations: Rows) -> tuple[Rows, Rows]:
    """Return the GPU that each copy reads, and that it writes; -1 for the host.

    Managed memory counts as that of the GPU at the other end.
    """
    read, written = _on_gpus(ends.sources)[sources], _on_gpus(ends.destinations)[destinations]
    read_managed = _managed(ends.sources)[sources] & (written >= 0)
    written_managed = _managed(ends.destinations)[destinations] & (read >= 0)
    read = np.where(read_managed, written, read)
    return read, np.where(written_managed, read, written)


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


def _on_gpus(allocations: Sequence[Allocation]) -> Rows:
    return np.array(
        [a.device if SIDES[a.kind] == "device" else -1 for a in allocations], dtype=np.intp
    )


def _managed(allocations: Sequence[Allocation]) -> npt.NDArray[np.bool_]:
    return np.array([a.kind is MemoryKind.MANAGED for a in allocations], dtype=np.bool_)


def _present(which: Rows, allocations: Sequence[Allocation]) -> tuple[Allocation, ...]:
    return tuple(allocations[i] for i in np.unique(which))
