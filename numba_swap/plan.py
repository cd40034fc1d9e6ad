"""From arrays and block ids, or raw pointers, to flat columns of checked copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.blocks import match_blocks, may_overlap
from numba_swap.copies import (
    Copies,
    check_hazards,
    concatenate,
    drop_identities,
    merge,
    no_copies,
)
from numba_swap.driver.api import Driver
from numba_swap.errors import BadPlanError, UnsupportedArrayError
from numba_swap.memory import (
    Addresses,
    Allocation,
    ArrayView,
    allocations_of_addresses,
    allocations_of_array,
    view_array,
)

Ids = npt.NDArray[np.int64]


def plan_array_blocks(
    driver: Driver, src: Any, dst: Any, block_mapping: Any, block_axis: int
) -> Copies:
    """Turn arrays and a block mapping into copies.

    Parameters
    ----------
    driver : Driver
        Asked what kind of memory the arrays are.
    src, dst : array or sequence of arrays
        One array each, or as many layers each.
    block_mapping : array_like of int, shape (n, 2)
        Source block and destination block of each row.
    block_axis : int
        Axis along which the blocks lie.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If the copies are not possible or not well defined.
    """
    pairs = _pair_layers(src, dst)
    mapping = _read_mapping(block_mapping)
    parts = [
        _plan_layer(driver, *pair, mapping, block_axis, "" if len(pairs) == 1 else f" of layer {i}")
        for i, pair in enumerate(pairs)
    ]
    copies = concatenate([part.copies for part in parts])
    if _extents_meet([part.extents for part in parts]):
        copies = drop_identities(copies)
        check_hazards(copies)
    return copies


def plan_pointers(driver: Driver, src_ptrs: Any, dst_ptrs: Any, sizes: Any) -> Copies:
    """Turn raw addresses into copies, dropping those of no bytes.

    Raises
    ------
    BadPlanError
        If lengths differ, a pointer is null, or a copy is not inside one allocation.
    """
    src, dst, sizes = (
        _read_integers(values, name, 1)
        for values, name in ((src_ptrs, "src_ptrs"), (dst_ptrs, "dst_ptrs"), (sizes, "sizes"))
    )
    if not len(src) == len(dst) == len(sizes):
        raise BadPlanError(
            f"src_ptrs, dst_ptrs and sizes must be equally long, not {len(src)}, {len(dst)} "
            f"and {len(sizes)}"
        )
    _refuse_rows(sizes < 0, sizes, "sizes", "is negative")
    # Addresses above 2**63 do not exist in user space on any platform that CUDA runs on.
    _refuse_rows((src <= 0) & (sizes > 0), src, "src_ptrs", "is not a valid address")
    _refuse_rows((dst <= 0) & (sizes > 0), dst, "dst_ptrs", "is not a valid address")
    rows = np.flatnonzero(sizes)
    src_column, dst_column, lengths = (c[rows].astype(np.uint64) for c in (src, dst, sizes))
    sources = allocations_of_addresses(driver, src_column, lengths, "src_ptrs", writable=False)
    destinations = allocations_of_addresses(driver, dst_column, lengths, "dst_ptrs", writable=True)
    bounds = np.array([a.start for a in sources + destinations], dtype=np.uint64)
    columns, first = merge(dst_column, src_column, lengths, bounds)

    def describe(index: int) -> str:
        row = rows[first[index]]
        return f"copy {row} (from {src[row]:#x} to {dst[row]:#x}, {sizes[row]} bytes)"

    return Copies(*columns, sources, destinations, describe)


def _refuse_rows(wrong: npt.NDArray[np.bool_], values: Ids, name: str, what: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadPlanError(f"{name}[{row}] = {values[row]} {what}", row)


@dataclass(frozen=True, eq=False)
class _Layer:
    copies: Copies
    extents: tuple[tuple[int, int], tuple[int, int]]  # of source and destination


def _pair_layers(src: Any, dst: Any) -> list[tuple[Any, Any]]:
    many = [isinstance(side, (list, tuple)) for side in (src, dst)]
    if many == [False, False]:
        return [(src, dst)]
    if many != [True, True] or len(src) != len(dst):
        lengths = [len(side) if isinstance(side, (list, tuple)) else "one" for side in (src, dst)]
        raise BadPlanError(
            f"src and dst must be one array each or equally many layers, not {lengths[0]} "
            f"and {lengths[1]}"
        )
    return list(zip(src, dst, strict=True))


def _read_integers(values: Any, name: str, dimensions: int) -> Ids:
    """Read a host sequence of integers as int64; values that do not fit are refused."""
    if hasattr(values, "__cuda_array_interface__"):
        raise UnsupportedArrayError(f"{name} lies on a device; give it in host memory")
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros((0, 2)[:dimensions], dtype=np.int64)
    if array.ndim != dimensions:
        raise BadPlanError(f"{name} must have {dimensions} dimension(s), not {array.ndim}")
    if array.dtype.kind not in "iu":
        raise BadPlanError(f"{name} must hold integers, not {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        too_large = np.flatnonzero(array.ravel() > np.uint64(np.iinfo(np.int64).max))
        if too_large.size:
            row = int(too_large[0]) // (array.shape[1] if dimensions == 2 else 1)
            raise BadPlanError(f"{name} holds {array.ravel()[too_large[0]]}, beyond 2**63", row)
    return array.astype(np.int64, copy=False)


def _read_mapping(block_mapping: Any) -> Ids:
    mapping = _read_integers(block_mapping, "block_mapping", 2)
    if mapping.shape[1] != 2:
        raise BadPlanError(
            "block_mapping must have two columns, source block and destination block, not "
            f"{mapping.shape[1]}"
        )
    return mapping


def _check_ids(ids: Ids, count: int, name: str) -> None:
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        row = int(np.flatnonzero((ids < 0) | (ids >= count))[0])
        raise BadPlanError(
            f"block_mapping[{row}]: {name} block {ids[row]} is not one of its {count} blocks "
            f"(0 to {count - 1})",
            row,
        )


def _check_no_duplicates(ids: Ids, count: int) -> None:
    if ids.size < 2:
        return
    if count <= 64 * ids.size:
        seen = np.zeros(count, dtype=bool)
        seen[ids] = True
        if np.count_nonzero(seen) == ids.size:
            return
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if again.size:
        first, row = int(order[again[0]]), int(order[again[0] + 1])
        raise BadPlanError(
            f"block_mapping[{row}]: destination block {ids[row]} is written twice (first by row "
            f"{first}); the order of copies is not defined",
            row,
        )


def _plan_layer(
    driver: Driver, src: Any, dst: Any, mapping: Ids, block_axis: int, layer: str
) -> _Layer:
    views = (view_array(src, f"src{layer}"), view_array(dst, f"dst{layer}"))
    source, destination = views
    if destination.readonly:
        raise BadPlanError(f"dst{layer} is read-only")
    runs = match_blocks(source, destination, block_axis, f"src and dst{layer}")
    src_ids, dst_ids = mapping[:, 0], mapping[:, 1]
    src_blocks, dst_blocks = (view.shape[block_axis] for view in views)
    _check_ids(src_ids, src_blocks, f"src{layer}")
    _check_ids(dst_ids, dst_blocks, f"dst{layer}")
    _check_no_duplicates(dst_ids, dst_blocks)
    src_step, dst_step = (view.strides[block_axis] for view in views)
    extents = (source.extent, destination.extent)
    if len(mapping) == 0 or runs.run_bytes == 0:
        return _Layer(no_copies(), ((0, 0), (0, 0)))
    sources = allocations_of_array(driver, source, f"src{layer}")
    destinations = allocations_of_array(driver, destination, f"dst{layer}")
    columns, first = merge(
        _column(destination, dst_ids, dst_step, runs.dst_offsets),
        _column(source, src_ids, src_step, runs.src_offsets),
        runs.run_bytes,
        _inner_bounds(sources, destinations),
    )

    def describe(index: int) -> str:
        row = int(first[index]) // len(runs.src_offsets)
        return (
            f"block_mapping[{row}] (source block {src_ids[row]} to destination block "
            f"{dst_ids[row]}{layer})"
        )

    copies = Copies(
        *columns,
        sources,
        destinations,
        describe,
        owners=tuple(view.owner for view in views),
        producer_streams=tuple(view.stream for view in views if view.stream is not None),
    )
    if may_overlap([*runs.dst_axes, (dst_blocks, dst_step)], runs.run_bytes):
        check_hazards(copies)
    return _Layer(copies, extents)


def _column(view: ArrayView, ids: Ids, step: int, offsets: npt.NDArray[np.int64]) -> Addresses:
    begins = view.address + ids * step
    if len(offsets) > 1:
        begins = (begins[:, None] + offsets).ravel()
    return begins.astype(np.uint64)


def _inner_bounds(*sides: tuple[Allocation, ...]) -> Addresses:
    """Return where an array passes from one allocation into the next: no copy may span that."""
    return np.array([a.start for side in sides for a in side[1:]], dtype=np.uint64)


def _extents_meet(extents: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    """Whether a destination array shares addresses with any other array of the call."""
    spans = sorted(
        (*extent, side == 1)
        for pair in extents
        for side, extent in enumerate(pair)
        if extent[0] < extent[1]
    )
    read_until = written_until = 0
    for start, stop, written in spans:
        if start < written_until or (written and start < read_until):
            return True
        if written:
            written_until = max(written_until, stop)
        else:
            read_until = max(read_until, stop)
    return False
