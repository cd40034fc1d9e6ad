"""How long copies take in each mode: a small model, fitted to measurements.

The time of a swap is a start-up, plus a share for every copy and a share for every byte. Both
shares depend on how long the copy is, for copy engines change their ways with the length (below
some 28 KiB an engine is fed another way, and the time a copy jumps). Within a class of lengths
they are constants, so that the sum over all copies needs only the number of copies, and of bytes,
in each class: mixed sizes are judged by what is really copied.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.copies.forms import Boxes
from numba_swap.device.memory import Addresses, MemoryKind
from numba_swap.device.tuning import DEFAULT_TUNING, Tuning
from numba_swap.dispatch.settings import Mode

# Lengths in bytes at which a class of copies begins, but for the first. Measured on an H200,
# driver 580: host to device the batch copy jumps between 24 and 28 KiB.
CLASS_EDGES = (4 << 10, 28 << 10, 128 << 10)
CLASSES = len(CLASS_EDGES) + 1
_EDGES = np.array(CLASS_EDGES, dtype=np.uint64)

# The same for the rows of boxes: a copy engine takes some 10 ns a row, whatever its length, so that
# boxes of short rows are slow (H100, driver 580).
ROW_EDGES = (192, 448, 896)
_ALL_AXES = 2  # see `Form.driver_axes`

# Routes that are measured. Copies within the host, and those of several directions in one piece,
# are not: they count as one that is. Boxes have routes of their own, and so have boxes of which an
# address or a length is no multiple of 16 bytes. Those between two GPUs depend on how the two are
# linked, and are measured only if that is asked for.
PLAIN_ROUTES = ("h2d", "d2h", "d2d", "h2d pageable", "d2h pageable")
_BOXES = ("boxes", "odd boxes")
PEER_ROUTES = ("p2p", *(f"p2p {kind}" for kind in _BOXES))
OWN_ROUTES = PLAIN_ROUTES + tuple(
    f"{route} {kind}" for route in ("h2d", "d2h", "d2d") for kind in _BOXES
)
ROUTES = OWN_ROUTES + PEER_ROUTES
BOX_ROUTES = tuple(route for route in ROUTES if route.endswith("boxes"))
_MEASURED_AS = {
    Direction.H2D: "h2d",
    Direction.D2H: "d2h",
    Direction.D2D: "d2d",
    Direction.P2P: "p2p",
    Direction.H2H: "d2h",
    Direction.MIXED: "h2d",
}


_PAGEABLE = " pageable"


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
    return f"{name}{_PAGEABLE}" if pageable and name not in ("d2d", "p2p") else name


def route_of(ends: Ends) -> str:
    """Return the key of the route that copies take."""
    for allocation in ends.allocations:
        if allocation.kind is MemoryKind.PAGEABLE:
            return route_key(ends.direction, pageable=True)
    return _MEASURED_AS[ends.direction]


def pinned_route(route: str) -> str | None:
    """Return the route that a pageable one would be if its memory were pinned; else None."""
    return route.removesuffix(_PAGEABLE) if route.endswith(_PAGEABLE) else None


class Workload(NamedTuple):
    """All that the time of copies depends on.

    Attributes
    ----------
    route : str
        The key of the route.
    terms : tuple of (int, int, int)
        For each class of lengths that occurs: the class, how many copies, how many bytes.
    copies, nbytes : int
        How many copies, and how many bytes in all.
    alignment_bits : int
        All addresses and lengths or-ed.
    calls : int
        Of boxes, whose terms count rows, how many copies of the driver they take; else 0.
    alike : bool
        Whether all copies are equally long, and all boxes of one form.
    """

    route: str
    terms: tuple[tuple[int, int, int], ...]
    copies: int
    nbytes: int
    alignment_bits: int = 0
    calls: int = 0
    alike: bool = False


def class_of(nbytes: int) -> int:
    """Return the class of one length."""
    first, second, third = CLASS_EDGES
    if nbytes < second:
        return 0 if nbytes < first else 1
    return 2 if nbytes < third else 3


def uniform_workload(route: str, copies: int, size: int, alignment_bits: int = 0) -> Workload:
    """Return the workload of equally long copies."""
    nbytes = copies * size
    term = class_of(size), copies, nbytes
    return Workload(route, (term,), copies, nbytes, alignment_bits, alike=True)


def workload_of_sizes(route: str, sizes: Addresses, alignment_bits: int = 0) -> Workload:
    """Return the workload of copies of different lengths."""
    classes = np.searchsorted(_EDGES, sizes, side="right")
    counts = np.bincount(classes, minlength=CLASSES).tolist()
    nbytes = np.bincount(classes, weights=sizes, minlength=CLASSES).tolist()
    terms = tuple((i, counts[i], int(nbytes[i])) for i in range(CLASSES) if counts[i])
    return Workload(route, terms, len(sizes), int(sum(nbytes)), alignment_bits)


def workload_of(copies: Copies) -> Workload:
    """Return the workload of copies; made once, and kept with them."""
    workload: Workload | None = copies.memo.get(Workload)
    if workload is None:
        route, bits = route_of(copies.ends), copies.alignment_bits
        if copies.boxes is not None:
            workload = _workload_of_boxes(copies, copies.boxes)
        elif copies.uniform:
            workload = uniform_workload(route, len(copies), copies.uniform, bits)
        else:
            workload = workload_of_sizes(route, copies.sizes, bits)
        copies.memo[Workload] = workload
    return workload


def _workload_of_boxes(copies: Copies, boxes: Boxes) -> Workload:
    """Return the workload of boxes: what they cost goes by the length of their rows."""
    each = [len(copies)]
    if len(boxes.which):
        each = np.bincount(boxes.which, minlength=len(boxes.forms)).tolist()
    in_class = [[0, 0] for _ in range(CLASSES)]
    calls = 0
    for (row_bytes, rows, planes, *_, axes, _, _), count in zip(
        boxes.forms.tolist(), each, strict=True
    ):
        term = in_class[bisect_right(ROW_EDGES, row_bytes)]
        term[0] += rows * planes * count
        term[1] += row_bytes * rows * planes * count
        calls += count * (1 if axes == _ALL_AXES else planes * (1 if axes else rows))
    terms = tuple((i, rows, nbytes) for i, (rows, nbytes) in enumerate(in_class) if rows)
    bits = copies.alignment_bits
    kind = "odd boxes" if bits & 15 else "boxes"
    return Workload(
        f"{_MEASURED_AS[copies.direction]} {kind}",
        terms,
        len(copies),
        copies.nbytes,
        bits,
        calls,
        len(boxes.forms) == 1,
    )


def share_out(copies: int, share: float) -> tuple[int, int]:
    """Return how many copies go to the kernel and to the batch, which gets a share of them."""
    batch = round(copies * share)
    return copies - batch, batch


def share_workload(workload: Workload, share: float) -> tuple[Workload, Workload]:
    """Return the workloads of equally long copies in the kernel and in the batch."""
    ((number, copies, nbytes),) = workload.terms
    counts = share_out(workload.copies, share)
    kernel, batch = (
        workload._replace(
            terms=((number, copies * n // workload.copies, nbytes * n // workload.copies),),
            copies=n,
            nbytes=nbytes * n // workload.copies,
            calls=workload.calls * n // workload.copies,
        )
        for n in counts
    )
    return kernel, batch


def split_workload(workload: Workload, edge: int) -> tuple[Workload, Workload]:
    """Return the workload of the copies below a class, and of those from it on."""
    short, long = (
        workload._replace(
            terms=terms, copies=sum(n for _, n, _ in terms), nbytes=sum(n for _, _, n in terms)
        )
        for terms in (
            tuple(term for term in workload.terms if term[0] < edge),
            tuple(term for term in workload.terms if term[0] >= edge),
        )
    )
    return short, long


class ModeCost(NamedTuple):
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
    call_us : float
        Of boxes, a copy of the driver; then `copy_us` is the time of a row.
    full_blocks : float
        Of a kernel: as many thread blocks as its time a byte needs; fewer take longer in
        proportion. 0 for the other modes.
    """

    start_us: float
    fork_us: float
    copy_us: tuple[float, ...]
    megabyte_us: tuple[float, ...]
    full_blocks: float = 0.0
    call_us: float = 0.0

    def predict_us(
        self,
        workload: Workload,
        tuning: Tuning = DEFAULT_TUNING,
        *,
        forked: bool = False,
        max_blocks: int | None = None,
    ) -> float:
        """Return the predicted time from call to completion.

        Parameters
        ----------
        workload : Workload
            What is copied.
        tuning : Tuning, optional
            The other figures of the machine.
        forked : bool
            Whether a mode that can do so spreads it over private streams.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        """
        time = self.start_us + self.fork_us if forked else self.start_us
        time += workload.calls * self.call_us
        moving = 0.0
        copy_us, megabyte_us = self.copy_us, self.megabyte_us
        for i, count, nbytes in workload.terms:
            time += count * copy_us[i]
            moving += nbytes * megabyte_us[i]
        moving *= 1e-6
        if self.full_blocks:
            bits = workload.alignment_bits
            if bits & 15 and not workload.calls:
                moving *= tuning.odd_factor if bits & 3 else tuning.unaligned_factor
            if max_blocks is not None and max_blocks < self.full_blocks:
                moving *= self.full_blocks / max_blocks
        return time + moving


class SharedCost(NamedTuple):
    """The time of equally long copies that the kernel and the copy engines share, at once.

    Attributes
    ----------
    share : float
        Of the copies, what goes to the batch.
    start_us, megabyte_us : float
        The time of a swap in microseconds, and of a million bytes.
    """

    share: float
    start_us: float
    megabyte_us: float


# What is staged is pageable memory: of routes where nobody has measured it, nothing is said of it.
_DIRECT_MODES = tuple(mode for mode in Mode if mode is not Mode.STAGED)


class CostModel(NamedTuple):
    """The costs of all modes, and where they come from.

    Attributes
    ----------
    routes : mapping
        For the key of a route, the costs of the modes that were measured there. Where predictions
        are equal, the mode that stands first comes first: the one that uses the least of the
        machine.
    source : str
        On what they were measured, for people.
    tuning : Tuning
        The other figures of that machine.
    boxes_source : str
        The same of boxes, if that was another machine.
    shared : mapping
        For the key of a route and a class of lengths, the cost of both engines at once, where that
        was measured to be faster than either.
    estimated : str
        Which costs of pageable memory were measured elsewhere, if any, for people.
    peers_source : str
        The same of copies between two GPUs.
    peers : mapping
        For each kind of pair of GPUs that was measured, as `pair_key` names it, its routes.
    """

    routes: Mapping[str, Mapping[Mode, ModeCost]]
    source: str
    tuning: Tuning = DEFAULT_TUNING
    boxes_source: str = ""
    shared: Mapping[tuple[str, int], SharedCost] = MappingProxyType({})
    estimated: str = ""
    peers_source: str = ""
    peers: Mapping[str, Mapping[str, Mapping[Mode, ModeCost]]] = MappingProxyType({})

    def between(self, pair: str) -> CostModel:
        """Return the costs for a pair of GPUs: those measured of its kind, if any were."""
        measured = self.peers.get(pair)
        if measured is None:
            return self
        return self._replace(
            routes={**self.routes, **measured}, peers_source=f"{self.source}, between GPUs: {pair}"
        )

    def source_of(self, route: str) -> str:
        """Return on what the costs of a route were measured, for people."""
        if route in PEER_ROUTES:
            return self.peers_source or self.source
        if self.estimated and pinned_route(route) is not None:
            return f"{self.source}; {self.estimated}"
        return (route in BOX_ROUTES and self.boxes_source) or self.source

    def predict(
        self,
        workload: Workload,
        *,
        max_blocks: int | None = None,
        spread: bool = True,
        threads: int | None = None,
    ) -> list[tuple[float, Mode]]:
        """Return the predicted microseconds of every mode.

        Parameters
        ----------
        workload : Workload
            What is copied.
        max_blocks : int, optional
            The most thread blocks of a kernel.
        spread : bool
            Whether a batch may use private streams.
        threads : int, optional
            How many threads of the host move what is staged, if the user says so.

        Returns
        -------
        list of (float, Mode)
            Infinite where nothing was measured; what is staged is told where it was measured.
        """
        measured, tuning = self.routes[workload.route], self.tuning
        forked = spread and tuning.spread_over(workload.copies, workload.nbytes) > 1
        predicted, expected = [], len(_DIRECT_MODES)
        for mode, cost in measured.items():
            us = cost.predict_us(workload, tuning, forked=forked, max_blocks=max_blocks)
            if mode is Mode.STAGED:  # fewer threads take longer over the rows, in proportion
                fewer = max(1.0, tuning.host_threads / tuning.threads(threads))
                us = cost.start_us + fewer * (us - cost.start_us)
                expected += 1
            predicted.append((us, mode))
        if len(measured) < expected:
            predicted += [(math.inf, mode) for mode in _DIRECT_MODES if mode not in measured]
        return predicted

    def predict_shared(self, workload: Workload) -> tuple[float, float] | None:
        """Return the share of the batch, and the predicted microseconds of both engines at once.

        None for copies of several lengths, or at addresses that a kernel is slower with, and where
        that was not measured, or did not pay.
        """
        if not workload.alike or len(workload.terms) != 1:
            return None
        if workload.alignment_bits & 15 and not workload.calls:
            return None
        ((number, _, nbytes),) = workload.terms
        cost = self.shared.get((workload.route, number))
        if cost is None:
            return None
        return cost.share, cost.start_us + nbytes * cost.megabyte_us * 1e-6

    def predict_mode(
        self, mode: Mode, workload: Workload, *, max_blocks: int | None = None
    ) -> float:
        """Return the predicted microseconds of one mode; infinite if nothing was measured."""
        cost = self.routes[workload.route].get(mode)
        if cost is None:
            return math.inf
        forked = self.tuning.spread_over(workload.copies, workload.nbytes) > 1
        return cost.predict_us(workload, self.tuning, forked=forked, max_blocks=max_blocks)
