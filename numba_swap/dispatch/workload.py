"""What is copied, as far as the time that it takes depends on it."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.copies.forms import Boxes
from numba_swap.device.memory import Addresses, MemoryKind

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
