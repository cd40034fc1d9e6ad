"""Boxes whose result would depend on the order of the copies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from numba_swap import native
from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.boxes.edges import Pieces
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import Words
from numba_swap.copies.hazards import check_within, inner_bounds, order_error
from numba_swap.copies.provenance import BoxRows
from numba_swap.device.addresses import allocations_of_runs
from numba_swap.device.memory import Addresses, Allocation, known_as_a_whole
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadPlanError


def check_by_origins(pieces: Pieces, shape: Words, origin: BoxRows, *, read: bool) -> None:
    """Refuse boxes of one array that meet, told by their origins.

    Parameters
    ----------
    pieces : Pieces
        The boxes, with lengths along every axis of the array.
    shape : ndarray of int64
        Of the array, whose elements share no memory.
    origin : BoxRows
        What names the rows.
    read : bool
        Whether the boxes are read from the same array, by the same indices.
    """
    none = np.zeros((0, len(shape)), dtype=np.int64)
    what, first, second = native.box_rows.find_meeting(
        pieces.dst,
        pieces.lengths,
        pieces.src if read else none,
        shape,
        pieces.lengths.max(axis=0),
    )
    if what != native.box_rows.NOTHING:
        one, other = int(pieces.row_of[first]), int(pieces.row_of[second])
        if what == native.box_rows.TWICE:  # the later row is at fault
            one, other = max(one, other), min(one, other)
        raise _error(what, origin.describe_row(one), one, origin.describe_row(other), other)


def is_one_allocation(array: BlockArray) -> bool:
    """Whether all of an array is known to lie in one allocation, so that all its boxes do."""
    known = array.allocations
    return len(known) <= 1 and known_as_a_whole(known)


def check_allocations(
    driver: Driver, copies: Copies, arrays: Iterable[tuple[Words, BlockArray, BlockArray]]
) -> Copies:
    """Refuse boxes that reach from one allocation into the next; return the others.

    Of ordinary memory the driver is asked where each box begins and ends: parts of it may be
    registered with CUDA. A part that lies wholly between the two is not found.

    Parameters
    ----------
    driver : Driver
        Whom to ask.
    copies : Copies
        The boxes.
    arrays : iterable of (ndarray of int, BlockArray, BlockArray)
        Which copies lie in which source and destination.
    """
    registered: dict[str, list[Allocation]] = {"src": [], "dst": []}
    for some, *pair in arrays:
        for side, array in zip(registered, pair, strict=True):
            known = array.allocations
            if is_one_allocation(array):
                continue
            _, starts, stops = (column[some] for column in _in_memory(copies, side))

            def describe(
                index: int, some: Words = some, name: str = array.name
            ) -> tuple[str, int | None]:
                copy = int(some[index])
                return f"{copies.origin.describe(copy)}, {name}", copies.origin.row(copy)

            bounds = inner_bounds(known)
            if bounds.size:
                check_within(starts, stops, bounds, describe)
            if not known_as_a_whole(known):
                columns = starts.astype(np.uint64), (stops - starts).astype(np.uint64)
                found = allocations_of_runs(driver, *columns, known, describe)
                registered[side] += found[len(known) :]
    if not any(registered.values()):
        return copies
    ends = copies.ends
    ends = Ends.of(
        (*ends.sources, *registered["src"]),
        (*ends.destinations, *registered["dst"]),
        ends.owners,
        ends.producer_streams,
    )
    return copies.select(np.arange(len(copies)), ends, others_run=False)


def check_in_memory(copies: Copies) -> None:
    """Refuse boxes that meet, told by their addresses: any boxes, of any arrays."""
    count = len(copies)
    sides = [_in_memory(copies, name) for name in ("dst", "src")]
    boxes, starts, stops = (np.concatenate(columns) for columns in zip(*sides, strict=True))
    order = np.argsort(starts, kind="stable")
    what, first, second = native.box_rows.find_meeting_in_memory(
        boxes[order], starts[order], stops[order], (order < count).astype(np.int64)
    )
    if what != native.box_rows.NOTHING:
        one, other = int(order[first]) % count, int(order[second]) % count
        if what == native.box_rows.TWICE:
            one, other = max(one, other), min(one, other)
        origin = copies.origin
        raise _error(
            *(what, origin.describe(one), origin.row(one)),
            *(origin.describe(other), origin.row(other)),
        )


def _error(
    what: int, name: str, row: int | None, other_name: str, other_row: int | None
) -> BadPlanError:
    """Make the error of two rows that meet; a box may also meet itself."""
    read = what == native.box_rows.READ_AND_WRITTEN
    return order_error(name, "it" if row == other_row else other_name, row, read=read)


def _in_memory(copies: Copies, side: str) -> tuple[Words, Words, Words]:
    """Return the boxes of one side as they lie in memory, and the range of bytes of each."""
    count = len(copies)
    addresses: Addresses = getattr(copies, side)
    at = addresses.astype(np.int64)
    if copies.boxes is None:
        one, none = np.ones(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        lengths = copies.sizes.astype(np.int64)
        table = np.stack([at, lengths, one, one, none, none], axis=1)
        return table, at, at + lengths
    names = ("row_bytes", "rows", "planes", f"{side}_pitch", f"{side}_plane")
    columns = [copies.boxes.of_each(name, count) for name in names]
    row_bytes, rows, planes, pitch, plane = columns
    ends = (rows - 1) * pitch, (planes - 1) * plane
    low = sum(np.minimum(end, 0) for end in ends)
    high = sum(np.maximum(end, 0) for end in ends) + row_bytes
    return np.stack([at, *columns], axis=1), at + low, at + high
