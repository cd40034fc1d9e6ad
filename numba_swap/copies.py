"""The flat columns of copies: what every mode is given, and what may be asked of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from numba_swap.errors import BadPlanError
from numba_swap.memory import Addresses, Allocation, MemoryKind


class Direction(enum.StrEnum):
    """Between which sides the bytes move; managed memory counts as device memory."""

    H2D = "host to device"
    D2H = "device to host"
    D2D = "device to device"
    H2H = "host to host"
    MIXED = "mixed directions"


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies to be made in any order: validated, without empty ones, neighbours merged.

    Attributes
    ----------
    dst, src, size : ndarray of uint64, shape (n,)
        Addresses and lengths in bytes, one copy a row. Read-only.
    sources, destinations : tuple of Allocation
        Every allocation that the copies read and write.
    describe : callable
        What the copy at an index is, in the user's terms, for error messages.
    owners : tuple of object
        What keeps the memory alive.
    producer_streams : tuple of int
        Streams whose work on the arrays must come first.
    """

    dst: Addresses
    src: Addresses
    size: Addresses
    sources: tuple[Allocation, ...] = ()
    destinations: tuple[Allocation, ...] = ()
    describe: Callable[[int], str] = field(default=lambda index: f"copy {index}")
    owners: tuple[object, ...] = ()
    producer_streams: tuple[int, ...] = ()
    nbytes: int = field(init=False)
    largest: int = field(init=False)

    def __post_init__(self) -> None:
        for column in (self.dst, self.src, self.size):
            column.flags.writeable = False
        object.__setattr__(self, "nbytes", int(self.size.sum()))
        object.__setattr__(self, "largest", int(self.size.max(initial=0)))

    def __len__(self) -> int:
        return len(self.size)

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All allocations that take part."""
        return self.sources + self.destinations

    @property
    def device(self) -> int | None:
        """The GPU whose memory takes part, the first if there are several; None if none does."""
        return next(
            (a.device for a in self.allocations if a.kind is MemoryKind.DEVICE),
            next((a.device for a in self.allocations if a.kind is MemoryKind.MANAGED), None),
        )

    @property
    def direction(self) -> Direction:
        """Between which sides the bytes move."""
        sides = []
        for allocations in (self.sources, self.destinations):
            on_device = {a.kind in (MemoryKind.DEVICE, MemoryKind.MANAGED) for a in allocations}
            if len(on_device) != 1:
                return Direction.MIXED
            sides.append("device" if on_device.pop() else "host")
        return Direction(" to ".join(sides))


def no_copies() -> Copies:
    """Return no copies at all."""
    empty = np.zeros(0, dtype=np.uint64)
    return Copies(empty, empty.copy(), empty.copy())


def merge(
    dst: Addresses, src: Addresses, size: Addresses | int, bounds: Addresses
) -> tuple[tuple[Addresses, Addresses, Addresses], npt.NDArray[np.intp]]:
    """Merge each copy with the one before where both ends continue it.

    Parameters
    ----------
    dst, src, size : ndarray of uint64
        The columns; `size` may be one number for all.
    bounds : ndarray of uint64
        Addresses at which no copy may be continued.

    Returns
    -------
    columns : tuple of ndarray
        Merged destinations, sources and sizes.
    first : ndarray of intp
        Index of the first row that went into each.
    """
    lengths = np.broadcast_to(np.asarray(size, dtype=np.uint64), dst.shape)
    continues = (dst[1:] - dst[:-1] == lengths[:-1]) & (src[1:] - src[:-1] == lengths[:-1])
    if not continues.any():
        return (dst, src, np.array(lengths)), np.arange(len(dst))
    if bounds.size:
        continues &= ~(np.isin(dst[1:], bounds) | np.isin(src[1:], bounds))
    first = np.flatnonzero(np.concatenate(([True], ~continues)))
    return (dst[first], src[first], np.add.reduceat(lengths, first)), first


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
        np.concatenate([part.size for part in parts]),
        tuple(dict.fromkeys(item for part in parts for item in part.sources)),
        tuple(dict.fromkeys(item for part in parts for item in part.destinations)),
        describe,
        owners=tuple(owner for part in parts for owner in part.owners),
        producer_streams=tuple(
            dict.fromkeys(stream for part in parts for stream in part.producer_streams)
        ),
    )


def drop_identities(copies: Copies) -> Copies:
    """Leave out copies of a block onto itself: there is nothing to move."""
    rows = np.flatnonzero(copies.dst != copies.src)
    if len(rows) == len(copies):
        return copies
    return Copies(
        copies.dst[rows],
        copies.src[rows],
        copies.size[rows],
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
    stops = starts + copies.size[order]
    again = np.flatnonzero(starts[1:] < stops[:-1])
    if again.size:
        pair = [copies.describe(int(order[again[0] + i])) for i in (1, 0)]
        raise BadPlanError(
            f"{pair[0]} writes what {pair[1]} writes too; the order of copies is not defined"
        )
    # Destinations are disjoint now, so the first one that ends after a source begins decides.
    after = np.searchsorted(stops, copies.src, side="right")
    candidates = np.minimum(after, len(order) - 1)
    read = np.flatnonzero((after < len(order)) & (starts[candidates] < copies.src + copies.size))
    if read.size:
        reader, writer = int(read[0]), int(order[after[read[0]]])
        what = f"what {copies.describe(writer)} writes"
        if reader == writer:
            what = "what it, or a neighbouring row merged with it, writes"
        raise BadPlanError(
            f"{copies.describe(reader)} reads {what}; the order of copies is not defined: "
            "stage one of them elsewhere, or make two swaps"
        )
