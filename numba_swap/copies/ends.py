"""Between which sides copies go, and what they have in common at both."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from numba_swap.device.memory import Allocation, MemoryKind


class Direction(enum.StrEnum):
    """Between which sides the bytes move; managed memory counts as device memory.

    Attributes
    ----------
    H2D, D2H, D2D, H2H
        Host to device, device to host, within or between devices, within the host.
    MIXED
        Several of these in one call of raw pointers, layers or pairs of views.
    """

    H2D = "host to device"
    D2H = "device to host"
    D2D = "device to device"
    H2H = "host to host"
    MIXED = "mixed directions"


class Ends(NamedTuple):
    """What copies have in common at both sides, whichever of them are picked out.

    Attributes
    ----------
    sources, destinations : tuple of Allocation
        Every allocation that the copies read and write; of many, one of each sort is enough.
    direction : Direction
        Between which sides the bytes move.
    device : int or None
        The GPU whose memory takes part, the first if there are several; None if none does.
    owners : tuple of object
        What keeps the memory alive.
    producer_streams : tuple of int
        Streams whose work on the arrays must come first.
    strided : bool
        Whether the copies are boxes, of rows that are not neighbours.
    """

    sources: tuple[Allocation, ...]
    destinations: tuple[Allocation, ...]
    direction: Direction
    device: int | None
    owners: tuple[object, ...] = ()
    producer_streams: tuple[int, ...] = ()
    strided: bool = False

    @classmethod
    def of(
        cls,
        sources: tuple[Allocation, ...],
        destinations: tuple[Allocation, ...],
        owners: tuple[object, ...] = (),
        producer_streams: tuple[int, ...] = (),
    ) -> Ends:
        """Return the ends in these allocations."""
        direction, device = _route(sources, destinations)
        return cls(sources, destinations, direction, device, owners, producer_streams)

    @classmethod
    def joined(cls, ends: Sequence[Ends]) -> Ends:
        """Return the ends of several copies together."""
        return cls.of(
            tuple(dict.fromkeys(item for end in ends for item in end.sources)),
            tuple(dict.fromkeys(item for end in ends for item in end.destinations)),
            tuple(owner for end in ends for owner in end.owners),
            tuple(dict.fromkeys(stream for end in ends for stream in end.producer_streams)),
        )

    def if_pinned(self) -> Ends:
        """Return what the ends would be if all pageable memory were pinned."""
        sides = (
            tuple(
                a._replace(kind=MemoryKind.PINNED, device_offset=0)
                if a.kind is MemoryKind.PAGEABLE
                else a
                for a in side
            )
            for side in (self.sources, self.destinations)
        )
        sources, destinations = sides
        return self._replace(sources=sources, destinations=destinations)

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
