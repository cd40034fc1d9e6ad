"""How long copies take in each mode: a small model, fitted to measurements.

The time of a swap is a start-up, plus a share for every copy and a share for every byte. Both
shares depend on how long the copy is, for copy engines change their ways with the length (below
some 28 KiB an engine is fed another way, and the time a copy jumps). Within a class of lengths
they are constants, so that the sum over all copies needs only the number of copies, and of bytes,
in each class: mixed sizes are judged by what is really copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies, Direction
from numba_swap.device.memory import Addresses, MemoryKind
from numba_swap.dispatch.settings import Mode

# Lengths in bytes at which a class of copies begins, but for the first. Measured on an H200,
# driver 580: host to device the batch copy jumps between 24 and 28 KiB.
CLASS_EDGES = (4 << 10, 28 << 10, 128 << 10)
CLASSES = len(CLASS_EDGES) + 1
_EDGES = np.array(CLASS_EDGES, dtype=np.uint64)

# What a copy kernel's time a byte is multiplied by where addresses or lengths are no multiples of
# 16 bytes, and where they are none of 4 (the two ends may then share no alignment). H200: 0.88 and
# 0.5 of the speed.
_UNALIGNED_FACTOR = 1.15
_ODD_FACTOR = 2.0

# From so many bytes on the batch copy is spread over private streams, in equal shares of a few
# copies at least. One stream leaves gaps between copies; on an H200 eight streams are better than
# four, and as good as sixteen. Where two directions are busy at once, four each are better.
_BATCH_STREAMS = 8
_BATCH_STREAMS_OF_A_LANE = 4
_FEWEST_BYTES_FOR_STREAMS = 1 << 20
_FEWEST_COPIES_A_STREAM = 4


def batch_streams(copies: int, nbytes: int, lane: int = 0) -> int:
    """Return over how many streams the batch mode spreads copies.

    Parameters
    ----------
    copies, nbytes : int
        How many copies, and bytes in all.
    lane : int
        Not 0 for a part of a swap that runs beside another part.
    """
    if nbytes < _FEWEST_BYTES_FOR_STREAMS:
        return 1
    most = _BATCH_STREAMS_OF_A_LANE if lane else _BATCH_STREAMS
    return max(1, min(most, copies // _FEWEST_COPIES_A_STREAM))


# Routes that are measured. Copies within the host, and those of several directions in one piece,
# are not: they count as one that is.
ROUTES = ("h2d", "d2h", "d2d", "h2d pageable", "d2h pageable")
_MEASURED_AS = {
    Direction.H2D: "h2d",
    Direction.D2H: "d2h",
    Direction.D2D: "d2d",
    Direction.H2H: "d2h",
    Direction.MIXED: "h2d",
}


def route_key(direction: Direction, *, pageable: bool = False) -> str:
    """Return the key of a route.

    Parameters
    ----------
    direction : Direction
        Between which sides.
    pageable : bool
        Whether some of the host memory is pageable, so that the driver has to stage it.
    """
    name = _MEASURED_AS[direction]
    return f"{name} pageable" if pageable and name != "d2d" else name


def route_of(copies: Copies) -> str:
    """Return the key of the route that copies take."""
    for allocation in copies.allocations:
        if allocation.kind is MemoryKind.PAGEABLE:
            return route_key(copies.direction, pageable=True)
    return _MEASURED_AS[copies.direction]


class Load(NamedTuple):
    """All that the time of copies depends on.

    Attributes
    ----------
    route : str
        The key of the route.
    terms : tuple of (int, int, int)
        For each class of lengths that occurs: the class, how many copies, how many bytes.
    copies, nbytes : int
        The sums of these.
    alignment_bits : int
        All addresses and lengths or-ed.
    """

    route: str
    terms: tuple[tuple[int, int, int], ...]
    copies: int
    nbytes: int
    alignment_bits: int = 0


def class_of(nbytes: int) -> int:
    """Return the class of one length."""
    first, second, third = CLASS_EDGES
    if nbytes < second:
        return 0 if nbytes < first else 1
    return 2 if nbytes < third else 3


def uniform_load(route: str, copies: int, size: int, alignment_bits: int = 0) -> Load:
    """Return the load of equally long copies."""
    nbytes = copies * size
    return Load(route, ((class_of(size), copies, nbytes),), copies, nbytes, alignment_bits)


def load_of_sizes(route: str, sizes: Addresses, alignment_bits: int = 0) -> Load:
    """Return the load of copies of different lengths."""
    classes = np.searchsorted(_EDGES, sizes, side="right")
    counts = np.bincount(classes, minlength=CLASSES).tolist()
    nbytes = np.bincount(classes, weights=sizes, minlength=CLASSES).tolist()
    terms = tuple((i, counts[i], int(nbytes[i])) for i in range(CLASSES) if counts[i])
    return Load(route, terms, len(sizes), int(sum(nbytes)), alignment_bits)


def load_of(copies: Copies) -> Load:
    """Return the load of copies; made once, and kept with them."""
    load: Load | None = copies.prepared.get(Load)
    if load is None:
        route, bits = route_of(copies), copies.alignment_bits
        if copies.uniform:
            load = uniform_load(route, len(copies), copies.uniform, bits)
        else:
            load = load_of_sizes(route, copies.sizes, bits)
        copies.prepared[Load] = load
    return load


def split_load(load: Load, edge: int) -> tuple[Load, Load]:
    """Return the load of the copies below a class, and of those from it on."""
    short, long = (
        load._replace(
            terms=terms, copies=sum(n for _, n, _ in terms), nbytes=sum(n for _, _, n in terms)
        )
        for terms in (
            tuple(term for term in load.terms if term[0] < edge),
            tuple(term for term in load.terms if term[0] >= edge),
        )
    )
    return short, long


class Cost(NamedTuple):
    """The time of one mode on one route, in microseconds.

    Attributes
    ----------
    start_us : float
        Of a swap, whatever it copies.
    fork_us : float
        Of spreading it over private streams, if the mode does.
    copy_us : tuple of float
        A copy, for each class of lengths.
    megabyte_us : tuple of float
        A million bytes, for each class of lengths.
    full_blocks : float
        Of a kernel: as many thread blocks as its time a byte needs; fewer take longer in
        proportion. 0 for the other modes.
    """

    start_us: float
    fork_us: float
    copy_us: tuple[float, ...]
    megabyte_us: tuple[float, ...]
    full_blocks: float = 0.0

    def predict_us(
        self, load: Load, *, forked: bool = False, max_blocks: int | None = None
    ) -> float:
        """Return the predicted time from call to completion.

        Parameters
        ----------
        load : Load
            What is copied.
        forked : bool
            Whether it is spread over private streams.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        """
        time = self.start_us + self.fork_us if forked else self.start_us
        moving = 0.0
        copy_us, megabyte_us = self.copy_us, self.megabyte_us
        for i, count, nbytes in load.terms:
            time += count * copy_us[i]
            moving += nbytes * megabyte_us[i]
        moving *= 1e-6
        if self.full_blocks:
            bits = load.alignment_bits
            if bits & 15:
                moving *= _ODD_FACTOR if bits & 3 else _UNALIGNED_FACTOR
            if max_blocks is not None and max_blocks < self.full_blocks:
                moving *= self.full_blocks / max_blocks
        return time + moving


# Where predictions are equal, the mode that uses the least of the machine comes first.
ORDER = (Mode.LOOP, Mode.BATCH, Mode.KERNEL)


class Costs(NamedTuple):
    """The costs of all modes, and where they come from.

    Attributes
    ----------
    routes : mapping
        For the key of a route, the costs of the modes in the order of `ORDER`; None for a mode
        that cannot run there.
    source : str
        On what they were measured, for people.
    """

    routes: Mapping[str, tuple[Cost | None, Cost | None, Cost | None]]
    source: str

    def predict(
        self, load: Load, *, max_blocks: int | None = None, spread: bool = True
    ) -> list[tuple[float, Mode]]:
        """Return the predicted microseconds of every mode, in the order of `ORDER`.

        Parameters
        ----------
        load : Load
            What is copied.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        spread : bool
            Whether the batch may use private streams.

        Returns
        -------
        list of (float, Mode)
            Infinite where nothing was measured.
        """
        loop, batch, kernel = self.routes[load.route]
        forked = spread and batch_streams(load.copies, load.nbytes) > 1
        return [
            (loop.predict_us(load) if loop else math.inf, Mode.LOOP),
            (batch.predict_us(load, forked=forked) if batch else math.inf, Mode.BATCH),
            (
                kernel.predict_us(load, max_blocks=max_blocks) if kernel else math.inf,
                Mode.KERNEL,
            ),
        ]
