"""Copies whose result would depend on their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.errors import BadPlanError


def spans_meet(spans: Iterable[tuple[int, int, bool]]) -> bool:
    """Whether a range of addresses that is written meets any other range.

    Parameters
    ----------
    spans : iterable of (int, int, bool)
        First address, the one after the last, and whether it is written; the empty ones meet none.
    """
    read_until = written_until = 0
    for start, stop, written in sorted(span for span in spans if span[0] < span[1]):
        if start < written_until or (written and start < read_until):
            return True
        if written:
            written_until = max(written_until, stop)
        else:
            read_until = max(read_until, stop)
    return False


def inner_bounds(*sides: tuple[Allocation, ...]) -> Addresses:
    """Return where an array passes from one allocation into the next: no copy may span that.

    In rising order. Chunks of device memory are none.
    """
    hosts = [side for side in sides if len(side) > 1 and side[0].kind is not MemoryKind.DEVICE]
    bounds = {bound for side in hosts for a in side for bound in (a.start, a.stop)}
    return np.array(sorted(bounds), dtype=np.uint64)


def check_within(
    starts: np.ndarray,
    stops: np.ndarray,
    bounds: Addresses,
    describe: Callable[[int], tuple[str, int | None]],
) -> None:
    """Refuse copies over the end of one allocation into the next, as the driver would.

    Parameters
    ----------
    starts, stops : ndarray, shape (n,)
        First byte of each on one side, and the one after the last.
    bounds : ndarray of uint64
        See `inner_bounds`.
    describe : callable
        Says what a copy is, and of which row.
    """
    limits = bounds.astype(starts.dtype)
    after = np.searchsorted(limits, starts, side="right")
    following = limits[np.minimum(after, len(limits) - 1)]
    over = np.flatnonzero((after < len(limits)) & (stops > following))
    if over.size:
        index = int(over[0])
        words, row = describe(index)
        raise BadPlanError(
            f"{words}, at {int(starts[index]):#x}, runs over {int(following[index]):#x}, where one "
            "registration (pinning) of host memory ends and another begins: register the blocks "
            "whole",
            row,
        )


def check_hazards(copies: Copies) -> None:
    """Refuse copies whose result would depend on their order.

    Raises
    ------
    BadPlanError
        If two destinations overlap, or one copy writes what another reads; it names the rows.
    """
    rows = copies.unfolded()
    # A row that a box, for all of them, moves onto itself does no harm, unless others write it.
    onto_itself = rows.dst == rows.src if rows is not copies else None
    copies = rows
    order = np.argsort(copies.dst, kind="stable")
    starts = copies.dst[order]
    stops = starts + copies.sizes[order]
    again = np.flatnonzero(starts[1:] < stops[:-1])
    if again.size:
        first, second = int(order[again[0]]), int(order[again[0] + 1])
        raise _hazard(copies, (second, first), int(copies.dst[second]), read=False)
    # Destinations are disjoint now, so the first one that ends after a source begins decides.
    after = np.searchsorted(stops, copies.src, side="right")
    candidates = np.minimum(after, len(order) - 1)
    meets = (after < len(order)) & (starts[candidates] < copies.src + copies.sizes)
    read = np.flatnonzero(meets if onto_itself is None else meets & ~onto_itself)
    if read.size:
        reader, writer = int(read[0]), int(order[after[read[0]]])
        met = max(int(copies.src[reader]), int(copies.dst[writer]))
        raise _hazard(copies, (reader, writer), met, read=True)


def _hazard(copies: Copies, pair: tuple[int, int], address: int, *, read: bool) -> BadPlanError:
    """Name the two rows, merged into these copies, that meet at an address."""
    one, other = pair
    begins = (copies.src if read else copies.dst)[one], copies.dst[other]
    offset, other_offset = (address - int(begin) for begin in begins)
    row, other_row = copies.origin.row(one, offset), copies.origin.row(other, other_offset)
    name = copies.origin.describe(one, offset)
    itself = one == other and row == other_row
    other_name = "it" if itself else copies.origin.describe(other, other_offset)
    return order_error(name, other_name, row, read=read)


def order_error(name: str, other_name: str, row: int | None, *, read: bool) -> BadPlanError:
    """Make the error of a copy that reads, or writes too, what another one writes."""
    what, advice = f"writes what {other_name} writes too", ""
    if read:
        what = f"reads what {other_name} writes"
        advice = ": stage one of them elsewhere, or make two calls"
        if other_name == "it":
            advice = ", nor within one: copy by way of another array"
    return BadPlanError(f"{name} {what}; the order of copies is not defined{advice}", row)
