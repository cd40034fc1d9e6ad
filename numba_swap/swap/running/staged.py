"""Copies in two steps, by way of memory in between."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import memory_type
from numba_swap.device.memory import Addresses, Allocation

Staged = tuple[Copies, Copies]


def staged_through(copies: Copies, memory: Allocation) -> Staged:
    """Return copies of the same rows to where they are staged, and on from there.

    Parameters
    ----------
    copies : Copies
        What is copied.
    memory : Allocation
        Where it is staged; large enough, and aligned to 256 bytes.
    """
    ends, sizes, boxes = copies.ends, copies.sizes, copies.boxes
    places: Addresses = np.uint64(memory.start) + np.cumsum(sizes) - sizes
    aside, settle = (
        Copies(
            dst,
            src,
            copies.size,
            ends,
            copies.origin,
            # Staging memory begins at a multiple of 256, lengths are among the bits.
            alignment_bits=copies.alignment_bits if boxes is None else None,
            mergeable=copies.mergeable,
            boxes=boxes and boxes.dense_at(side, memory_type([memory])),
        ).coalesced()
        for dst, src, ends, side in (
            (places, copies.src, Ends.of(ends.sources, (memory,)), "dst"),
            (copies.dst, places, Ends.of((memory,), ends.destinations), "src"),
        )
    )
    return aside, settle


def pieces_of(copies: Copies, nbytes: int) -> Iterator[Copies]:
    """Yield the copies in pieces of so many bytes at most; a longer one is a piece of its own."""
    ends = np.cumsum(copies.sizes)
    start, before = 0, 0
    while start < len(copies):
        stop = max(start + 1, int(np.searchsorted(ends, before + nbytes, side="right")))
        yield copies.select(slice(start, stop))
        start, before = stop, int(ends[stop - 1])
