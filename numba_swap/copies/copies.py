"""The flat columns of copies: what every mode is given, and what may be asked of them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.provenance import ChosenOrigin, Described, LayersOrigin, Origin
from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.device.resources import PinnedBuffer
from numba_swap.errors import BadPlanError, DriverCallError


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
        Every allocation that the copies read and write; of many, one of each sort is enough.
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
    origin : Origin, optional
        What `describe` tells, and the user's rows behind each copy.
    mergeable : bool, optional
        Whether some may still have neighbours that continue them.

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
        origin: Origin | None = None,
        mergeable: bool = False,
    ) -> None:
        self.dst = dst
        self.src = src
        self.sources = sources
        self.destinations = destinations
        self.origin: Origin = Described(describe) if origin is None else origin
        self.mergeable = mergeable
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

    def describe(self, index: int) -> str:
        """Say what the copy at an index is, in the user's terms."""
        return self.origin.describe(index)

    def refused(
        self, function: str, code: int, name: str, index: int | None, most: int
    ) -> DriverCallError:
        """Make the error of a driver function that refused one of the copies.

        Parameters
        ----------
        function, code, name
            The driver's names, and its code.
        index : int or None
            The copy that it refused, if it said so; those before were submitted.
        most : int
            Otherwise, how many copies have been submitted at most.
        """
        rows = self.origin.rows(most if index is None else index)
        if index is None:
            note = "Which copies were submitted is not known"
            note += f": none from copy {most} on." if most < len(self) else "."
            return DriverCallError(function, code, name, None, note, submitted_rows=rows)
        copy = self.describe(index)
        note = (
            f"At fault is {copy}; the {index} copies before it were submitted, the rest were not."
        )
        return DriverCallError(function, code, name, index, note, copy, index, rows)


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
    return Copies(
        np.concatenate([part.dst for part in parts]),
        np.concatenate([part.src for part in parts]),
        _common_size(parts),
        tuple(dict.fromkeys(item for part in parts for item in part.sources)),
        tuple(dict.fromkeys(item for part in parts for item in part.destinations)),
        origin=LayersOrigin([part.origin for part in parts], ends),
        owners=tuple(owner for part in parts for owner in part.owners),
        producer_streams=tuple(
            dict.fromkeys(stream for part in parts for stream in part.producer_streams)
        ),
        mergeable=any(part.mergeable for part in parts),
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
        owners=copies.owners,
        producer_streams=copies.producer_streams,
        origin=ChosenOrigin(copies.origin, rows),
    )


def check_hazards(copies: Copies) -> None:
    """Refuse copies whose result would depend on their order.

    Raises
    ------
    BadPlanError
        If two destinations overlap, or one copy writes what another reads; it names the rows.
    """
    order = np.argsort(copies.dst, kind="stable")
    starts = copies.dst[order]
    stops = starts + copies.sizes[order]
    again = np.flatnonzero(starts[1:] < stops[:-1])
    if again.size:
        first, second = int(order[again[0]]), int(order[again[0] + 1])
        raise _hazard(copies, (second, first), int(copies.dst[second]), "writes what {} writes too")
    # Destinations are disjoint now, so the first one that ends after a source begins decides.
    after = np.searchsorted(stops, copies.src, side="right")
    candidates = np.minimum(after, len(order) - 1)
    read = np.flatnonzero((after < len(order)) & (starts[candidates] < copies.src + copies.sizes))
    if read.size:
        reader, writer = int(read[0]), int(order[after[read[0]]])
        met = max(int(copies.src[reader]), int(copies.dst[writer]))
        raise _hazard(copies, (reader, writer), met, "reads what {} writes", read=True)


def _hazard(
    copies: Copies, pair: tuple[int, int], address: int, what: str, *, read: bool = False
) -> BadPlanError:
    """Name the two rows, merged into these copies, that meet at an address."""
    one, other = pair
    begins = (copies.src if read else copies.dst)[one], copies.dst[other]
    offset, other_offset = (address - int(begin) for begin in begins)
    row, other_row = copies.origin.row(one, offset), copies.origin.row(other, other_offset)
    name = copies.origin.describe(one, offset)
    itself = one == other and row == other_row
    other_name = "it" if itself else copies.origin.describe(other, other_offset)
    advice = ": stage one of them elsewhere, or make two swaps" if read else ""
    return BadPlanError(
        f"{name} {what.format(other_name)}; the order of copies is not defined{advice}", row
    )
