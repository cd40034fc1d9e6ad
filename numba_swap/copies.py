"""The flat columns of copies: what every mode is given, and what may be asked of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.driver.pools import PinnedBuffer
from numba_swap.errors import BadPlanError
from numba_swap.memory import Addresses, Allocation, MemoryKind


class Direction(enum.StrEnum):
    """Between which sides the bytes move; managed memory counts as device memory.

    Attributes
    ----------
    H2D, D2H, D2D, H2H
        Host to device, device to host, within or between devices, within the host.
    MIXED
        Several of these in one call of raw pointers or layers.
    """

    H2D = "host to device"
    D2H = "device to host"
    D2D = "device to device"
    H2H = "host to host"
    MIXED = "mixed directions"


class Copies:
    """Copies to be made in any order: validated, without empty ones, neighbours merged.

    Nothing here is changed after it was made, but for what is derived on demand.

    Parameters
    ----------
    dst, src : ndarray of uint64, shape (n,)
        Addresses, one copy a row.
    size : int or ndarray of uint64, shape (n,)
        Lengths in bytes; one number if all are equal.
    sources, destinations : tuple of Allocation
        Every allocation that the copies read and write.
    describe : callable
        What the copy at an index is, in the user's terms, for error messages.
    owners : tuple of object
        What keeps the memory alive.
    producer_streams : tuple of int
        Streams whose work on the arrays must come first.
    buffer : PinnedBuffer, optional
        Pinned memory in which `dst` and `src` stand one after the other, if they do.
    alignment_bits : int, optional
        All addresses and lengths or-ed, if known: low bits that are 0 here are 0 in all of them.

    Attributes
    ----------
    nbytes, largest : int
        Bytes in all, and of the longest copy.
    uniform : int
        Bytes of every copy, or 0 if they differ.
    direction : Direction
        Between which sides the bytes move.
    device : int or None
        The GPU whose memory takes part, the first if there are several; None if none does.
    prepared : dict
        What the modes derive and want to find again.
    """

    def __init__(
        self,
        dst: Addresses,
        src: Addresses,
        size: Addresses | int,
        sources: tuple[Allocation, ...] = (),
        destinations: tuple[Allocation, ...] = (),
        describe: Callable[[int], str] = "copy {}".format,
        owners: tuple[object, ...] = (),
        producer_streams: tuple[int, ...] = (),
        buffer: PinnedBuffer | None = None,
        alignment_bits: int | None = None,
    ) -> None:
        self.dst = dst
        self.src = src
        self.sources = sources
        self.destinations = destinations
        self.describe = describe
        self.owners = owners
        self.producer_streams = producer_streams
        self.buffer = buffer
        self._alignment_bits = alignment_bits
        self._sizes: Addresses | None = None
        if isinstance(size, int):
            self.uniform = self.largest = size
            self.nbytes = size * len(dst)
        else:
            self._sizes = size
            self.nbytes = int(size.sum())
            self.largest = int(size.max(initial=0))
            self.uniform = self.largest if self.nbytes == self.largest * len(dst) else 0
        self.direction, self.device = _route(sources, destinations)
        self.prepared: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.dst)

    @property
    def sizes(self) -> Addresses:
        """Lengths in bytes, one a row; made on demand."""
        if self._sizes is None:
            self._sizes = np.full(len(self), self.uniform, dtype=np.uint64)
        return self._sizes

    @property
    def alignment_bits(self) -> int:
        """All addresses and lengths or-ed: low bits that are 0 here are 0 in all of them."""
        if self._alignment_bits is None:
            columns = (self.dst, self.src, self.sizes)
            self._alignment_bits = int(
                np.bitwise_or.reduce([np.bitwise_or.reduce(column) for column in columns])
            )
        return self._alignment_bits

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All allocations that take part."""
        return self.sources + self.destinations


SIDES = {
    MemoryKind.DEVICE: "device",
    MemoryKind.MANAGED: "device",
    MemoryKind.PINNED: "host",
    MemoryKind.PAGEABLE: "host",
}
_DIRECTIONS: dict[tuple[str | None, str | None], Direction] = {
    ("host", "device"): Direction.H2D,
    ("device", "host"): Direction.D2H,
    ("device", "device"): Direction.D2D,
    ("host", "host"): Direction.H2H,
}


def _route(
    sources: tuple[Allocation, ...], destinations: tuple[Allocation, ...]
) -> tuple[Direction, int | None]:
    """Return the direction, and the GPU whose memory takes part."""
    device = managed = None
    sides = []
    for allocations in (sources, destinations):
        side = None
        for allocation in allocations:
            here = SIDES[allocation.kind]
            side = here if side in (None, here) else "both"
            if allocation.kind is MemoryKind.DEVICE and device is None:
                device = allocation.device
            elif allocation.kind is MemoryKind.MANAGED and managed is None:
                managed = allocation.device
        sides.append(side)
    direction = _DIRECTIONS.get((sides[0], sides[1]), Direction.MIXED)
    return direction, managed if device is None else device


def no_copies() -> Copies:
    """Return no copies at all."""
    empty = np.zeros(0, dtype=np.uint64)
    return Copies(empty, empty, 0)


def merge(
    dst: Addresses, src: Addresses, size: Addresses | int, bounds: Addresses
) -> tuple[tuple[Addresses, Addresses, Addresses | int], npt.NDArray[np.intp] | None]:
    """Merge each copy with the one before where both ends continue it.

    Parameters
    ----------
    dst, src : ndarray of uint64
        The columns.
    size : int or ndarray of uint64
        Bytes of every copy, or of each.
    bounds : ndarray of uint64
        Addresses at which no copy may be continued.

    Returns
    -------
    columns : tuple
        Merged destinations, sources and sizes.
    first : ndarray of intp or None
        Index of the first row that went into each; None if nothing was merged.
    """
    step = np.uint64(size) if isinstance(size, int) else size[:-1]
    continues = (dst[1:] - dst[:-1] == step) & (src[1:] - src[:-1] == step)
    if bounds.size and continues.any():
        continues &= ~(np.isin(dst[1:], bounds) | np.isin(src[1:], bounds))
    if not continues.any():
        return (dst, src, size), None
    first = np.flatnonzero(np.concatenate(([True], ~continues)))
    if isinstance(size, int):
        sizes = np.diff(first, append=len(dst)).astype(np.uint64) * np.uint64(size)
    else:
        sizes = np.add.reduceat(size, first)
    return (dst[first], src[first], sizes), first


def concatenate(parts: Sequence[Copies]) -> Copies:
    """Join the copies of several layers; rows keep their descriptions."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return no_copies()
    ends = np.cumsum([len(part) for part in parts])

    def describe(index: int) -> str:
        layer = int(np.searchsorted(ends, index, side="right"))
        return parts[layer].describe(index - int(ends[layer]) + len(parts[layer]))

    return Copies(
        np.concatenate([part.dst for part in parts]),
        np.concatenate([part.src for part in parts]),
        _common_size(parts),
        tuple(dict.fromkeys(item for part in parts for item in part.sources)),
        tuple(dict.fromkeys(item for part in parts for item in part.destinations)),
        describe,
        owners=tuple(owner for part in parts for owner in part.owners),
        producer_streams=tuple(
            dict.fromkeys(stream for part in parts for stream in part.producer_streams)
        ),
    )


def _common_size(parts: Sequence[Copies]) -> Addresses | int:
    sizes = {part.uniform for part in parts}
    if len(sizes) == 1 and 0 not in sizes:
        return sizes.pop()
    return np.concatenate([part.sizes for part in parts])


def drop_identities(copies: Copies) -> Copies:
    """Leave out copies of a block onto itself: there is nothing to move."""
    rows = np.flatnonzero(copies.dst != copies.src)
    if len(rows) == len(copies):
        return copies
    return Copies(
        copies.dst[rows],
        copies.src[rows],
        copies.uniform or copies.sizes[rows],
        copies.sources,
        copies.destinations,
        lambda index: copies.describe(int(rows[index])),
        copies.owners,
        copies.producer_streams,
    )


def check_hazards(copies: Copies) -> None:
    """Refuse copies whose result would depend on their order.

    Raises
    ------
    BadPlanError
        If two destinations overlap, or one copy writes what another reads.
    """
    order = np.argsort(copies.dst, kind="stable")
    starts = copies.dst[order]
    stops = starts + copies.sizes[order]
    again = np.flatnonzero(starts[1:] < stops[:-1])
    if again.size:
        pair = [copies.describe(int(order[again[0] + i])) for i in (1, 0)]
        raise BadPlanError(
            f"{pair[0]} writes what {pair[1]} writes too; the order of copies is not defined"
        )
    # Destinations are disjoint now, so the first one that ends after a source begins decides.
    after = np.searchsorted(stops, copies.src, side="right")
    candidates = np.minimum(after, len(order) - 1)
    read = np.flatnonzero((after < len(order)) & (starts[candidates] < copies.src + copies.sizes))
    if read.size:
        reader, writer = int(read[0]), int(order[after[read[0]]])
        what = f"what {copies.describe(writer)} writes"
        if reader == writer:
            what = "what it, or a neighbouring row merged with it, writes"
        raise BadPlanError(
            f"{copies.describe(reader)} reads {what}; the order of copies is not defined: "
            "stage one of them elsewhere, or make two swaps"
        )
