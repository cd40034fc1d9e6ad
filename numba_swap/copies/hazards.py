"""Copies whose result would depend on their order."""

from __future__ import annotations

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.errors import BadPlanError


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
