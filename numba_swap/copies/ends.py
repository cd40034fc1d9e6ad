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
        Host to device, device to host, within a device, within the host.
    P2P
        From one device to another.
    MIXED
        Several of these in one call of raw pointers, layers or pairs of views.
    """

    H2D = "host to device"
    D2H = "device to host"
    D2D = "device to device"
    H2H = "host to host"
    P2P = "device to another device"
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
        The GPU whose memory takes part; of several the one that is written, or the first; None if
        none does.
    devices : tuple of int
        All of them, that one first. Managed memory counts only where no other memory of a GPU does.
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
    devices: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        sources: tuple[Allocation, ...],
        destinations: tuple[Allocation, ...],
        owners: tuple[object, ...] = (),
        producer_streams: tuple[int, ...] = (),
    ) -> Ends:
        """Return the ends in these allocations."""
        direction, devices = _route(sources, destinations)
        device = devices[0] if devices else None
        return cls(
            sources, destinations, direction, device, owners, producer_streams, False, devices
        )

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
) -> tuple[Direction, tuple[int, ...]]:
    """Return the direction, and the GPUs whose memory takes part."""
    device = managed = None
    several = False
    sides = []
    for allocations in (sources, destinations):
        side = None
        for allocation in allocations:
            here = SIDES[allocation.kind]
            side = here if side in (None, here) else "both"
            if allocation.kind is MemoryKind.DEVICE:
                if device is None:
                    device = allocation.device
                elif allocation.device != device:
                    several = True
            elif allocation.kind is MemoryKind.MANAGED and managed is None:
                managed = allocation.device
        sides.append(side)
    direction = _DIRECTIONS.get((sides[0], sides[1]), Direction.MIXED)
    if several:
        return _route_of_several(sources, destinations, direction)
    if device is None:
        device = managed
    return direction, () if device is None else (device,)


def _route_of_several(
    sources: tuple[Allocation, ...], destinations: tuple[Allocation, ...], direction: Direction
) -> tuple[Direction, tuple[int, ...]]:
    """Do what `_route` does where several GPUs take part, from what their sides are."""
    read, written = (
        list(dict.fromkeys(a.device or 0 for a in side if a.kind is MemoryKind.DEVICE))
        for side in (sources, destinations)
    )
    if direction is not Direction.D2D:
        return direction, tuple(dict.fromkeys([*read, *written]))
    if len(read) == len(written) == 1:
        # The GPU that is written reads from the other one: with few thread blocks, a copy kernel
        # that reads from another GPU is faster than one that writes to it (two H100, driver 580).
        return Direction.P2P, (*written, *read)
    # Each within a GPU, or between any two of them: that is known of each copy only.
    return Direction.MIXED, tuple(dict.fromkeys([*read, *written]))
