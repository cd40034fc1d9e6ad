"""From pairs of views of one shape to checked copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.boxes.from_origins import check_pair, ends_of, overlapping_error
from numba_swap.copies.boxes.meeting import check_allocations, check_in_memory, is_one_allocation
from numba_swap.copies.copies import Copies, no_copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import (
    NO_FORMS,
    Boxes,
    Folded,
    axes_of,
    fold,
    form_words,
    memory_type,
)
from numba_swap.copies.hazards import spans_meet
from numba_swap.copies.layout import may_overlap
from numba_swap.copies.provenance import PairRows
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadPlanError


class ViewPair(NamedTuple):
    """Two views of one shape, the first of which is copied into the second.

    Attributes
    ----------
    src, dst : BlockArray
        The views.
    name : str
        What the user calls the pair.
    """

    src: BlockArray
    dst: BlockArray
    name: str


def fold_pair(pair: ViewPair) -> Folded | None:
    """Return how one view maps onto the other; None if there is nothing to copy.

    Raises
    ------
    BadPlanError
        If the two do not fit, or the destination cannot be written.
    """
    src, dst = pair.src.view, pair.dst.view
    if src.shape != dst.shape:
        raise BadPlanError(
            f"{pair.name}: {pair.src.name} has the shape {src.shape}, {pair.dst.name} {dst.shape}: "
            "copy between equal shapes"
        )
    check_pair(pair.src, pair.dst)
    if 0 in dst.shape or dst.itemsize == 0:
        return None
    axes = list(zip(dst.shape, dst.strides, strict=True))
    if may_overlap(axes, dst.itemsize):
        raise overlapping_error(pair.dst)
    return fold(axes_of(dst.shape, src.strides, dst.strides, dst.itemsize))


def plan_views(driver: Driver, pairs: Sequence[ViewPair]) -> Copies:
    """Turn pairs of views into checked copies.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If a pair does not fit, or the order of the copies would matter.
    """
    kept: list[int] = []
    forms: dict[tuple[int, ...], int] = {}
    which: list[int] = []
    columns: tuple[list[int], list[int]] = ([], [])
    for row, pair in enumerate(pairs):
        try:
            folded = fold_pair(pair)
        except BadPlanError as error:
            raise BadPlanError(str(error), row) from None
        if folded is None:
            continue
        types = memory_type(pair.dst.allocations), memory_type(pair.src.allocations)
        number = forms.setdefault(form_words(folded.form, *types), len(forms))
        count = len(folded.dst_offsets)
        which += [number] * count
        kept += [row] * count
        columns[0].extend((folded.dst_offsets + pair.dst.address).tolist())
        columns[1].extend((folded.src_offsets + pair.src.address).tolist())
    if not kept:
        return no_copies()
    nbytes = [row_bytes * rows * planes for row_bytes, rows, planes, *_ in forms]
    boxes = None
    if any(rows * planes > 1 for _, rows, planes, *_ in forms):
        numbers = NO_FORMS if len(forms) == 1 else np.array(which, dtype=np.int64)
        boxes = Boxes(np.array(list(forms), dtype=np.int64), numbers)
    rows = np.array(kept)
    copies = Copies(
        np.array(columns[0], dtype=np.uint64),
        np.array(columns[1], dtype=np.uint64),
        nbytes[0] if len(forms) == 1 else np.array(nbytes, dtype=np.uint64)[which],
        _ends_of([pairs[row] for row in dict.fromkeys(kept)]),
        PairRows(rows, [pair.name for pair in pairs]),
        boxes=boxes,
    )
    unsure = [row for row in dict.fromkeys(kept) if _is_unsure(pairs[row])]
    if unsure:
        arrays = ((np.flatnonzero(rows == row), *pairs[row][:2]) for row in unsure)
        copies = check_allocations(driver, copies, arrays)
    if _may_meet(pairs):
        copies = copies.without_identities()
        check_in_memory(copies)
    return copies


def _is_unsure(pair: ViewPair) -> bool:
    """Whether there is more to know of the memory that a pair lies in."""
    return not (is_one_allocation(pair.src) and is_one_allocation(pair.dst))


def _ends_of(pairs: Sequence[ViewPair]) -> Ends:
    ends = [ends_of(pair.src, pair.dst) for pair in pairs]
    if len(ends) == 1:
        return ends[0]
    return Ends.joined(ends)


def _may_meet(pairs: Sequence[ViewPair]) -> bool:
    """Whether a destination shares addresses with any other array of the call."""
    return spans_meet(
        (*array.span, written)
        for pair in pairs
        for array, written in ((pair.src, False), (pair.dst, True))
    )
