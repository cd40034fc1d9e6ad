"""From arrays and block ids to flat columns of checked copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.copies import Copies, PinnedTable, concatenate, merge, no_copies
from numba_swap.copies.ends import Ends
from numba_swap.copies.forms import NO_FORMS, Boxes, expand, fold, form_words, memory_type
from numba_swap.copies.hazards import check_hazards, check_within, inner_bounds, spans_meet
from numba_swap.copies.inputs.mapping import Integers, read_integers
from numba_swap.copies.layers import NAMES, ArgumentNames, LayerPair, device_of, read_arrays
from numba_swap.copies.provenance import Merged, Provenance
from numba_swap.device.addresses import allocations_of_runs
from numba_swap.device.devices import Devices, devices_of
from numba_swap.device.memory import Addresses, Allocation, MemoryKind, known_as_a_whole
from numba_swap.device.tuning import DEFAULT_TUNING, Tuning
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadPlanError


def plan_array_blocks(
    driver: Driver,
    src: Any,
    dst: Any,
    block_mapping: Any,
    block_axis: int,
    names: ArgumentNames = NAMES,
    *,
    tuning: Tuning = DEFAULT_TUNING,
) -> Copies:
    """Turn arrays and a block mapping into copies: `read_mapping`, `read_arrays`, `plan_layers`."""
    mapping = read_mapping(block_mapping, names.mapping)
    layers = read_arrays(driver, src, dst, block_axis, names)
    return plan_layers(devices_of(driver), layers, mapping, names.mapping, tuning)


def read_mapping(block_mapping: Any, name: str = "block_mapping") -> Integers:
    """Read a block mapping as rows of int64.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If it is none; the message calls it `name`.
    """
    mapping = read_integers(block_mapping, name, 2)
    if mapping.shape[1] != 2:
        transposed = ": give its transpose" if len(mapping) == 2 else ""
        raise BadPlanError(
            f"{name} must have rows of two columns, source block and destination block, not "
            f"the shape {mapping.shape}{transposed}"
        )
    return mapping


def plan_layers(
    devices: Devices,
    layers: Sequence[LayerPair],
    mapping: Integers,
    name: str,
    tuning: Tuning,
    *,
    in_order: bool = False,
    table: PinnedTable | None = None,
) -> Copies:
    """Turn pairs of arrays and a block mapping into copies.

    Parameters
    ----------
    devices : Devices
        Whose pinned memory holds the addresses.
    layers : sequence of LayerPair
        The arrays.
    mapping : ndarray of int64, shape (n, 2)
        Source block and destination block of each row.
    name : str
        What the user calls it.
    tuning : Tuning
        From when on rows are worth grouping.
    in_order : bool, optional
        Keep the order of the rows, within each layer, and every run of every block (or every box,
        see `LayerPair.is_boxed`) a copy of its own: neighbours are not merged, rows not grouped,
        and blocks onto themselves not left out.
    table : PinnedTable, optional
        Where the addresses of one layer are to stand; otherwise memory is taken, pinned if there
        is any left.

    Raises
    ------
    BadPlanError, UnsupportedArrayError
        If the copies are not possible or not well defined.
    """
    if len(mapping):
        for pair in layers:
            pair.check_writable()
    parts = [
        _Rows(devices, pair, mapping, name, tuning, in_order).place(table)
        if len(mapping)
        else no_copies()
        for pair in layers
    ]
    copies = concatenate(parts)
    if len(mapping) and _arrays_overlap(layers):
        copies = copies if in_order else copies.without_identities()
        check_hazards(copies)
        return copies
    if any(pair.same_blocks for pair in layers):
        _refuse_read_and_written(mapping, name)
        copies = copies if in_order else copies.without_identities()
    for pair, part in zip(layers, parts, strict=True):
        if pair.layout.may_alias:
            check_hazards(part)
    return copies


class _Rows(NamedTuple):
    """The rows of one layer, on their way to copies."""

    devices: Devices
    pair: LayerPair
    mapping: Integers
    name: str
    tuning: Tuning
    in_order: bool

    def place(self, table: PinnedTable | None) -> Copies:
        """Turn them into checked copies."""
        pair, layout = self.pair, self.pair.layout
        src, dst = pair.src, pair.dst
        sources, destinations = src.allocations, dst.allocations
        rows, contiguous = len(self.mapping), len(layout.src_offsets) == 1
        if table is None:
            buffer = self.devices.host_buffers.find(16 * rows, device_of([pair]))
            table = None if buffer is None else PinnedTable(buffer, buffer.address)
        if table is None:  # only the kernel needs more than this
            words = np.empty(2 * rows, dtype=np.uint64)
        else:
            begin = (table.address - table.buffer.address) // 8
            words = table.buffer.words[begin : begin + 2 * rows]
        dst_column, src_column = words[:rows], words[rows:]
        grouped_by = self._column_to_group() if contiguous else -1
        found = native.rows.place_rows(
            self.mapping,
            src.address,
            layout.src_step,
            layout.src_blocks,
            dst.address,
            layout.dst_step,
            layout.dst_blocks,
            layout.run_bytes if contiguous else 0,
            grouped_by,
            dst_column,
            src_column,
        )
        if found not in (0, native.rows.NEIGHBOURS):
            raise self._bad_row()
        if layout.run_bytes == 0:
            return no_copies()
        whole = known_as_a_whole(sources) and known_as_a_whole(destinations)
        if pair.is_boxed(in_order=self.in_order):
            return self._boxes(dst_column, src_column)
        kept = table
        if not contiguous or (found and not self.in_order):
            dst_column = expand(dst_column, layout.dst_offsets)
            src_column = expand(src_column, layout.src_offsets)
            kept = None
        columns = (dst_column, src_column)
        grouped = grouped_by >= 0 and not found
        origin: Provenance = pair.rows(columns, self.name, kept, self.mapping, reordered=grouped)
        size: Addresses | int = layout.run_bytes
        ends = pair.ends
        if not whole:
            sources = self._ask(src, src_column, origin)
            destinations = self._ask(dst, dst_column, origin)
            ends = Ends.of(sources, destinations, ends.owners, ends.producer_streams)
        bounds = inner_bounds(sources, destinations)
        if kept is None and not self.in_order:
            count = len(dst_column)
            (dst_column, src_column, size), first = merge(dst_column, src_column, size, bounds)
            if first is not None:
                origin = Merged(origin, first, layout.run_bytes, count)
        copies = Copies(
            dst_column,
            src_column,
            size,
            ends,
            origin,
            table=kept,
            alignment_bits=pair.alignment_bits,
            mergeable=self.in_order and (bool(found) or not contiguous),
        )
        if bounds.size:

            def describe(index: int) -> tuple[str, int | None]:
                return copies.origin.describe(index), copies.origin.row(index)

            for column in (dst_column, src_column):
                check_within(column, column + copies.sizes, bounds, describe)
        return copies

    def _boxes(self, dst: Addresses, src: Addresses) -> Copies:
        """Return the copies of blocks that are not contiguous, which begin at these addresses."""
        pair = self.pair
        folded = fold(pair.layout.axes)
        offsets = folded.dst_offsets, folded.src_offsets
        columns = expand(dst, offsets[0]), expand(src, offsets[1])
        types = memory_type(pair.dst.allocations), memory_type(pair.src.allocations)
        return Copies(
            *columns,
            folded.form.nbytes,
            pair.ends,
            pair.rows(columns, self.name, None, self.mapping, offsets=offsets),
            boxes=Boxes(np.array([form_words(folded.form, *types)]), NO_FORMS),
        )

    def _ask(
        self, array: BlockArray, column: Addresses, origin: Provenance
    ) -> tuple[Allocation, ...]:
        """Return what the copies lie in at one side, asking about them if need be."""
        known = array.allocations
        if known_as_a_whole(known):
            return known

        def describe(index: int) -> tuple[str, int | None]:
            return f"{origin.describe(index)}, {array.name}", origin.row(index)

        nbytes = self.pair.layout.run_bytes
        return allocations_of_runs(self.devices.driver, column, nbytes, known, describe)

    def _column_to_group(self) -> int:
        """Return which column, if any, lies in so much host memory that its order matters."""
        layout = self.pair.layout
        if (
            self.in_order
            or not layout.dst_step
            or not self.tuning.may_be_grouped(len(self.mapping), layout.run_bytes)
        ):
            return -1
        for column, array in enumerate((self.pair.src, self.pair.dst)):
            start, stop = array.span
            if stop - start > self.tuning.group_pool_bytes and (
                array.allocations[0].kind is MemoryKind.PINNED
            ):
                return column
        return -1

    def _bad_row(self) -> BadPlanError:
        """Find out which row of a mapping that was refused is at fault."""
        mapping, name, layout = self.mapping, self.name, self.pair.layout
        for column, count, array in (
            (0, layout.src_blocks, self.pair.src),
            (1, layout.dst_blocks, self.pair.dst),
        ):
            ids = mapping[:, column]
            outside = (ids < 0) | (ids >= count)
            if outside.any():
                row = int(np.argmax(outside))
                which = f"0 to {count - 1}" if count else "it has none"
                return BadPlanError(
                    f"{name}[{row}]: {array.name} block {ids[row]} is not one of its {count} "
                    f"blocks ({which})",
                    row,
                )
        ids = mapping[:, 1]
        order = np.argsort(ids, kind="stable")
        same = ids[order][1:] == ids[order][:-1]
        if not same.any():
            return BadPlanError(f"{name} was changed while it was read: wait before changing it")
        again = int(np.argmax(same))
        first, row = int(order[again]), int(order[again + 1])
        return BadPlanError(
            f"{name}[{row}]: destination block {ids[row]} is written twice (first by row "
            f"{first}); the order of copies is not defined",
            row,
        )


def _refuse_read_and_written(mapping: Integers, name: str) -> None:
    """Refuse rows, all within one pool of blocks, that read what another row writes."""
    reader = int(native.rows.find_read_and_written(mapping))
    if reader >= 0:
        writer = int(np.argmax(mapping[:, 1] == mapping[reader, 0]))
        rows = [
            f"{name}[{row}] (source block {mapping[row, 0]} to destination block {mapping[row, 1]})"
            for row in (reader, writer)
        ]
        raise BadPlanError(
            f"{rows[0]} reads what {rows[1]} writes; the order of copies is not defined: "
            "stage one of them elsewhere, or make two calls",
            reader,
        )


def _lies_within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _arrays_overlap(layers: Sequence[LayerPair]) -> bool:
    """Whether a destination array shares addresses with any other array of the call.

    Not asked of the two sides of one pool: block ids tell whether their blocks meet.
    """
    if len(layers) == 1:
        (pair,) = layers
        (src_start, src_stop), (dst_start, dst_stop) = pair.src.span, pair.dst.span
        return src_start < dst_stop and dst_start < src_stop and not pair.same_blocks
    return spans_meet(
        (*array.span, written)
        for pair in layers
        for array, written in ((pair.src, False), (pair.dst, True))
        if written or not (pair.same_blocks and _lies_within(pair.src.span, pair.dst.span))
    )
