"""From arrays and block ids to flat columns of checked copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.arrays import view_array
from numba_swap.copies.copies import (
    Copies,
    check_hazards,
    concatenate,
    drop_identities,
    merge,
    no_copies,
)
from numba_swap.copies.layout import match_blocks
from numba_swap.copies.mapping import Integers, read_integers
from numba_swap.copies.provenance import BlockOrigin
from numba_swap.device.memory import Addresses, Allocation, MemoryKind, allocations_of_range
from numba_swap.device.resources import PinnedBuffer
from numba_swap.driver.calls import Driver, compiled
from numba_swap.errors import BadPlanError, UnsupportedArrayError

# Where grouping copies by their place in host memory pays: see `native.rows.REGION_BYTES`.
MANY_ROWS = 4096
_SHORT_BYTES = 2048
_LARGE_POOL_BYTES = 3 << 28


class Names(NamedTuple):
    """What the user calls the arguments, for messages."""

    mapping: str = "block_mapping"
    src: str = "src"
    dst: str = "dst"
    layer: str = ""

    @property
    def source(self) -> str:
        """The source array."""
        return f"{self.src}{self.layer}"

    @property
    def destination(self) -> str:
        """The destination array."""
        return f"{self.dst}{self.layer}"

    @property
    def both(self) -> str:
        """The two."""
        return f"{self.src} and {self.destination}"


_NAMES = Names()


def plan_array_blocks(
    driver: Driver,
    src: Any,
    dst: Any,
    block_mapping: Any,
    block_axis: int,
    names: Names = _NAMES,
    *,
    in_order: bool = False,
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
    names : Names, optional
        For messages.
    in_order : bool, optional
        Keep the order of the rows, within each layer, and every run of every block a copy of its
        own: neighbours are not merged, rows not grouped, and blocks onto themselves not left out.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If the copies are not possible or not well defined.
    """
    mapping = read_mapping(block_mapping, names.mapping)
    if not isinstance(src, (list, tuple)) and not isinstance(dst, (list, tuple)):
        layers = [_plan_layer(driver, src, dst, mapping, block_axis, names, in_order)]
    else:
        layers = [
            _plan_layer(
                driver,
                *pair,
                mapping,
                block_axis,
                names._replace(layer=f" of layer {i}"),
                in_order,
            )
            for i, pair in enumerate(pair_layers(src, dst, names))
        ]
    copies = concatenate([layer.copies for layer in layers])
    if _arrays_meet(layers):
        copies = copies if in_order else drop_identities(copies)
        check_hazards(copies)
        return copies
    if any(layer.one_pool for layer in layers):
        _refuse_read_and_written(mapping, names)
        copies = copies if in_order else drop_identities(copies)
    for layer in layers:
        if layer.tangled:
            check_hazards(layer.copies)
    return copies


class _Layer(NamedTuple):
    copies: Copies
    src_span: tuple[int, int]  # first address that the array touches, and the one after the last
    dst_span: tuple[int, int]
    tangled: bool = False  # different destination blocks may share bytes
    one_pool: bool = False  # both sides have the very same blocks, which share no bytes


def pair_layers(src: Any, dst: Any, names: Names) -> list[tuple[Any, Any]]:
    """Return the layers of both sides.

    Raises
    ------
    BadPlanError
        If they are not equally many.
    """
    many = [isinstance(side, (list, tuple)) for side in (src, dst)]
    if many != [True, True] or len(src) != len(dst):
        lengths = [len(side) if isinstance(side, (list, tuple)) else "one" for side in (src, dst)]
        raise BadPlanError(
            f"{names.both} must be one array each or equally many layers, not {lengths[0]} "
            f"and {lengths[1]} (a list or tuple means layers; for data give an array)"
        )
    return list(zip(src, dst, strict=True))


def read_mapping(block_mapping: Any, name: str = "block_mapping") -> Integers:
    """Read a block mapping as rows of int64.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If it is none; the message calls it `name`.
    """
    mapping = read_integers(block_mapping, name, 2)
    if mapping.shape[1] != 2:
        raise BadPlanError(
            f"{name} must have rows of two columns, source block and destination block, not "
            f"the shape {mapping.shape}"
        )
    return mapping


def _plan_layer(
    driver: Driver,
    src: Any,
    dst: Any,
    mapping: Integers,
    block_axis: int,
    names: Names,
    in_order: bool,
) -> _Layer:
    source, destination = view_array(src, names.source), view_array(dst, names.destination)
    if destination.readonly and len(mapping):
        raise BadPlanError(f"{names.destination} is read-only, so it cannot be a destination")
    layout = match_blocks(source, destination, block_axis, names.both)
    rows = len(mapping)
    if rows == 0:
        return _Layer(no_copies(), (0, 0), (0, 0))
    low, high = layout.src_extent
    src_span = source.address + low, source.address + high
    low, high = layout.dst_extent
    dst_span = destination.address + low, destination.address + high
    sources = allocations_of_range(driver, *src_span, names.source)
    destinations = allocations_of_range(driver, *dst_span, names.destination)
    for view, allocations, name in (
        (source, sources, names.source),
        (destination, destinations, names.destination),
    ):
        if view.on_cuda and allocations[0].kind is MemoryKind.PAGEABLE and layout.run_bytes:
            raise UnsupportedArrayError(
                f"{name} lies at {view.address:#x}, which is no memory that CUDA knows: "
                "was it freed, or does it belong to a simulation that has ended?"
            )
    contiguous = len(layout.src_offsets) == 1
    native = compiled()
    buffer = driver.pools.take_buffer(16 * rows)
    dst_column, src_column = buffer.words[:rows], buffer.words[rows : 2 * rows]
    grouped_by = -1
    if contiguous and not in_order and layout.dst_step and may_be_grouped(rows, layout.run_bytes):
        grouped_by = _column_to_group(sources, src_span, destinations, dst_span)
    found = native.place_rows(
        mapping,
        source.address,
        layout.src_step,
        layout.src_blocks,
        destination.address,
        layout.dst_step,
        layout.dst_blocks,
        layout.run_bytes if contiguous else 0,
        grouped_by,
        dst_column,
        src_column,
    )
    if found not in (0, native.NEIGHBOURS):
        raise _bad_row(mapping, layout.src_blocks, layout.dst_blocks, names)
    if layout.run_bytes == 0:
        return _Layer(no_copies(), (0, 0), (0, 0))
    size: Addresses | int = layout.run_bytes
    first = None
    kept: PinnedBuffer | None = buffer
    bounds = _inner_bounds(sources, destinations)
    if not contiguous or (found and not in_order):
        dst_column = _expand(dst_column, layout.dst_offsets)
        src_column = _expand(src_column, layout.src_offsets)
        kept = None
        if not in_order:
            (dst_column, src_column, size), first = merge(
                dst_column, src_column, layout.run_bytes, bounds
            )
    if bounds.size:
        _check_within(dst_column, src_column, size, bounds, names.both)

    origin = BlockOrigin(
        (dst_column, src_column),
        (destination.address, source.address),
        (layout.dst_step, layout.src_step),
        (layout.dst_offsets, layout.src_offsets),
        layout.run_bytes,
        rows,
        first,
        mapping if grouped_by >= 0 and not found else None,
        names.layer,
        kept,
        names.mapping,
    )
    streams = (source.stream, destination.stream)
    copies = Copies(
        dst_column,
        src_column,
        size,
        sources,
        destinations,
        owners=(source.owner, destination.owner),
        producer_streams=()
        if streams == (None, None)
        else tuple(s for s in streams if s is not None),
        buffer=kept,
        alignment_bits=layout.alignment_bits | source.address | destination.address,
        origin=origin,
        mergeable=in_order and (bool(found) or not contiguous),
    )
    one_pool = (
        not layout.tangled
        and (source.address, layout.src_step) == (destination.address, layout.dst_step)
        and np.array_equal(layout.src_offsets, layout.dst_offsets)
    )
    return _Layer(copies, src_span, dst_span, layout.tangled, one_pool)


def _refuse_read_and_written(mapping: Integers, names: Names) -> None:
    """Refuse rows, all within one pool of blocks, that read what another row writes."""
    reader = int(compiled().find_read_and_written(mapping))
    if reader >= 0:
        writer = int(np.argmax(mapping[:, 1] == mapping[reader, 0]))
        rows = [
            f"{names.mapping}[{row}] (source block {mapping[row, 0]} to destination block "
            f"{mapping[row, 1]})"
            for row in (reader, writer)
        ]
        raise BadPlanError(
            f"{rows[0]} reads what {rows[1]} writes; the order of copies is not defined: "
            "stage one of them elsewhere, or make two swaps",
            reader,
        )


def may_be_grouped(rows: int, run_bytes: int) -> bool:
    """Whether rows like these are worth grouping by their place in host memory."""
    return rows >= MANY_ROWS and run_bytes <= _SHORT_BYTES


def _check_within(
    dst: Addresses, src: Addresses, size: Addresses | int, bounds: Addresses, name: str
) -> None:
    """Refuse copies over the end of one allocation into the next, as the driver would."""
    length = np.asarray(size, dtype=np.uint64)
    for column in (dst, src):
        for bound in bounds:
            over = (column < bound) & (column + length > bound)
            if over.any():
                raise BadPlanError(
                    f"{name}: a copy at {int(column[np.argmax(over)]):#x} runs over {int(bound):#x}, "  # noqa: E501
                    "where one registration (pinning) of host memory ends and another begins: "
                    "register the blocks whole"
                )


def _column_to_group(
    sources: tuple[Allocation, ...],
    src_span: tuple[int, int],
    destinations: tuple[Allocation, ...],
    dst_span: tuple[int, int],
) -> int:
    """Return which column, if any, lies in so much host memory that its order matters."""
    for column, allocations, (start, stop) in (
        (0, sources, src_span),
        (1, destinations, dst_span),
    ):
        if allocations[0].kind is MemoryKind.PINNED and stop - start > _LARGE_POOL_BYTES:
            return column
    return -1


def _bad_row(mapping: Integers, src_blocks: int, dst_blocks: int, names: Names) -> BadPlanError:
    """Find out which row of a mapping that was refused is at fault."""
    for column, count, name in ((0, src_blocks, names.source), (1, dst_blocks, names.destination)):
        ids = mapping[:, column]
        outside = (ids < 0) | (ids >= count)
        if outside.any():
            row = int(np.argmax(outside))
            return BadPlanError(
                f"{names.mapping}[{row}]: {name} block {ids[row]} is not one of its {count} "
                f"blocks (0 to {count - 1})",
                row,
            )
    ids = mapping[:, 1]
    order = np.argsort(ids, kind="stable")
    same = ids[order][1:] == ids[order][:-1]
    if not same.any():
        return BadPlanError(
            f"{names.mapping} was changed while it was read: wait before changing it"
        )
    again = int(np.argmax(same))
    first, row = int(order[again]), int(order[again + 1])
    return BadPlanError(
        f"{names.mapping}[{row}]: destination block {ids[row]} is written twice (first by row "
        f"{first}); the order of copies is not defined",
        row,
    )


def _expand(begins: Addresses, offsets: npt.NDArray[np.int64]) -> Addresses:
    """Return the address of every run of every block, in memory of its own."""
    return (begins[:, None] + offsets.astype(np.uint64)).ravel()


def _inner_bounds(*sides: tuple[Allocation, ...]) -> Addresses:
    """Return where an array passes from one allocation into the next: no copy may span that."""
    return np.array([a.start for side in sides for a in side[1:]], dtype=np.uint64)


def _arrays_meet(layers: Sequence[_Layer]) -> bool:
    """Whether a destination array shares addresses with any other array of the call.

    Not asked of the two sides of one pool: block ids tell whether their blocks meet.
    """
    if len(layers) == 1:
        (layer,) = layers
        (src_start, src_stop), (dst_start, dst_stop) = layer.src_span, layer.dst_span
        return not layer.one_pool and src_start < dst_stop and dst_start < src_stop
    spans = sorted(
        (*span, written)
        for layer in layers
        for span, written in ((layer.src_span, False), (layer.dst_span, True))
        if span[0] < span[1] and (written or not layer.one_pool)
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
