"""The two pools of blocks of an exchange, and the copies of rows between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.copies import Copies, PinnedTable
from numba_swap.copies.from_arrays import plan_layers
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.copies.layers import ArgumentNames, LayerPair, device_of
from numba_swap.copies.provenance import Rows
from numba_swap.device.devices import Devices
from numba_swap.device.memory import known_as_a_whole
from numba_swap.device.tuning import Tuning
from numba_swap.errors import BadPlanError
from numba_swap.swap.exchange.pairing import IN, OUT

OUT_NAMES = ArgumentNames("page_out", "device", "host")


class PlannedRows(NamedTuple):
    """Both directions of an exchange, as copies in the order of the rows.

    Attributes
    ----------
    out, into : Copies
        What goes out and what comes in, one copy for every run, or every box, of every block.
    shared : tuple of bool or None
        Where rows of the same number go together as they stand: whether what comes in overwrites
        a slot that goes out, and what goes out a block that comes in.
    """

    out: Copies
    into: Copies
    shared: tuple[bool, bool] | None = None


class ExchangePools:
    """The arrays, or layers of arrays, between which blocks are exchanged.

    Parameters
    ----------
    devices : Devices
        The GPUs.
    outgoing : list of LayerPair
        From the one pool to the other, read once.

    Attributes
    ----------
    outgoing, incoming : list of LayerPair
        The arrays, for copies either way.
    may_alias : bool
        Whether different blocks of a pool may share bytes.
    blocks : tuple of int
        How many blocks the largest layer has, of the device and of the host.
    block_bytes : int
        Bytes of a block, of all layers.
    """

    def __init__(self, devices: Devices, outgoing: list[LayerPair]) -> None:
        self._devices = devices
        self.outgoing = outgoing
        self.incoming = [pair.reversed() for pair in outgoing]
        both = [*self.outgoing, *self.incoming]
        self.may_alias = any(pair.layout.may_alias for pair in both)
        self.blocks = (
            max((pair.layout.src_blocks for pair in self.outgoing), default=0),
            max((pair.layout.src_blocks for pair in self.incoming), default=0),
        )
        self.block_bytes = sum(
            len(pair.layout.src_offsets) * pair.layout.run_bytes for pair in outgoing
        )

    @cached_property
    def _copies(self) -> tuple[list[int], list[int]]:
        """How many copies a block of each layer takes, going out and coming in.

        None if blocks are empty. They differ where only one of the two could be a destination.
        """
        return _copies_a_block(self.outgoing), _copies_a_block(self.incoming)

    @cached_property
    def one_copy(self) -> bool:
        """Whether a block is one copy both ways, of one layer."""
        return self._copies == ([1], [1])

    @cached_property
    def _boxed(self) -> bool:
        """Whether blocks of some layer are copied as boxes."""
        return any(pair.is_boxed(in_order=True) for pair in [*self.outgoing, *self.incoming])

    @cached_property
    def _counterparts(self) -> list[Rows]:
        """Where each run of what goes out stands among those of what comes in.

        Runs go in the order of their destinations, which may not be the same both ways. Where
        these are not the same runs, this means nothing.
        """
        return [
            np.argsort(into.layout.dst_offsets)[np.argsort(np.argsort(out.layout.src_offsets))][
                :runs
            ]
            for out, into, runs in zip(self.outgoing, self.incoming, self._copies[0], strict=True)
        ]

    @cached_property
    def same_order(self) -> bool:
        """Whether the runs of a block go in the same order both ways."""
        return all(np.array_equal(runs, np.arange(len(runs))) for runs in self._counterparts)

    @cached_property
    def same_runs(self) -> bool:
        """Whether blocks are cut into the same runs both ways: where both are contiguous."""
        return (
            not self._boxed
            and self._copies[0] == self._copies[1]
            and all(
                out.layout.run_bytes == into.layout.run_bytes
                and np.array_equal(
                    out.layout.src_offsets[: len(runs)], into.layout.dst_offsets[runs]
                )
                and np.array_equal(
                    out.layout.dst_offsets[: len(runs)], into.layout.src_offsets[runs]
                )
                for out, into, runs in zip(
                    self.outgoing, self.incoming, self._counterparts, strict=True
                )
            )
        )

    def plan(self, out_rows: Integers, in_rows: Integers, tuning: Tuning) -> PlannedRows:
        """Turn the rows of both directions into copies.

        Raises
        ------
        BadPlanError, UnsupportedArrayError
            If they are not possible or not well defined.
        """
        pairs = self._plan_pairs(out_rows, in_rows) if self._may_be_pairs(out_rows) else None
        if pairs is None:
            pairs = PlannedRows(
                plan_layers(
                    self._devices, self.outgoing, out_rows, "page_out", tuning, in_order=True
                ),
                plan_layers(
                    self._devices, self.incoming, in_rows, "page_in", tuning, in_order=True
                ),
            )
        self._check_apart(pairs.out, pairs.into)
        self._check_layers(pairs.out, pairs.into)
        return pairs

    def _may_be_pairs(self, out_rows: Integers) -> bool:
        """Whether rows may be looked at as pairs: nothing but ids tells which of them meet."""
        return (
            len(out_rows) > 0
            and self.one_copy
            and not self.may_alias
            and self.same_runs
            and not (self.outgoing[0].src.view.readonly or self.outgoing[0].dst.view.readonly)
            and all(
                len(array.allocations) == 1 and known_as_a_whole(array.allocations)
                for array in self._arrays
            )
        )

    @property
    def _arrays(self) -> Sequence[Any]:
        return self.outgoing[0].src, self.outgoing[0].dst

    def _plan_pairs(self, out_rows: Integers, in_rows: Integers) -> PlannedRows | None:
        """Place the rows of both directions in one table, if they go together as they stand."""
        rows, (pair,) = len(out_rows), self.outgoing
        buffer = self._devices.host_buffers.find(32 * rows, device_of(self.outgoing))
        # (Without pinned memory there will be no kernel, but the copies are the same.)
        memory = np.empty(4 * rows, dtype=np.uint64) if buffer is None else buffer.words
        layout, words = pair.layout, memory[: 4 * rows]
        neighbours, slots, blocks = native.pairing.place_pairs(
            out_rows,
            in_rows,
            (pair.src.address, layout.src_step, layout.src_blocks),
            (pair.dst.address, layout.dst_step, layout.dst_blocks),
            layout.run_bytes,
            words,
        )
        if neighbours < 0:
            return None
        copies = []
        for i, (some, name, mapping) in enumerate(
            ((pair, "page_out", out_rows), (self.incoming[0], "page_in", in_rows)),
        ):
            table = None
            if buffer is not None:
                table = PinnedTable(buffer, buffer.address + 16 * rows * i)
            dst, src = (words[(2 * i + j) * rows : (2 * i + j + 1) * rows] for j in (0, 1))
            copies.append(
                Copies(
                    dst,
                    src,
                    layout.run_bytes,
                    some.ends,
                    some.rows((dst, src), name, table, mapping),
                    table=table,
                    alignment_bits=some.alignment_bits,
                    mergeable=neighbours > 0,
                )
            )
        out, into = copies
        return PlannedRows(out, into, (slots > 0, blocks > 0))

    def _check_apart(self, out: Copies, into: Copies) -> None:
        """Refuse pools that share memory: then nothing says what is to be read first.

        Raises
        ------
        BadPlanError
            If a block of one overlaps a block of the other.
        """
        spans = [(pair.src.span, pair.dst.span) for pair in self.outgoing]
        if not any(
            start < other_stop and other_start < stop
            for (start, stop), _ in spans
            for _, (other_start, other_stop) in spans
        ):
            return
        out, into = out.unfolded(), into.unfolded()
        fronts = _intervals([(out.src, out.sizes), (into.dst, into.sizes)])
        backs = _intervals([(out.dst, out.sizes), (into.src, into.sizes)])
        if not (len(fronts[0]) and len(backs[0])):
            return
        # Of the blocks of `device` that begin before a block of `host` ends, one may reach into it.
        order = np.argsort(fronts[0])
        begins, reach = fronts[0][order], np.maximum.accumulate(fronts[1][order])
        before = np.searchsorted(begins, backs[1], side="left")
        meets = (before > 0) & (reach[np.maximum(before, 1) - 1] > backs[0])
        if meets.any():
            where = int(backs[0][np.argmax(meets)])
            raise BadPlanError(
                f"device and host share memory, at {where:#x} for example: exchange needs two "
                "pools apart from each other; within one array, use swap_blocks"
            )

    def _check_layers(self, out: Copies, into: Copies) -> None:
        """Note whether layers of one pool share bytes: then ids do not tell which rows meet."""
        if len(self.outgoing) == 1:
            return
        found: list[tuple[Copies, Rows]] = []
        for side in range(2):
            spans = sorted((pair.src, pair.dst)[side].span for pair in self.outgoing)
            if all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans)):
                continue
            found = found or [self._rows_of(out, OUT), self._rows_of(into, IN)]
            (out, out_layers), (into, in_layers) = found
            some, others = ((out.src, into.dst), (out.dst, into.src))[side]
            begins, ends = _intervals([(some, out.sizes), (others, into.sizes)])
            layers = np.concatenate([out_layers, in_layers])
            order = np.argsort(begins)
            begins, ends, owner = begins[order], ends[order], layers[order]
            same = (begins[1:] == begins[:-1]) & (owner[1:] == owner[:-1])
            self.may_alias |= bool(((begins[1:] < ends[:-1]) & ~same).any())

    def _rows_of(self, copies: Copies, side: int) -> tuple[Copies, Rows]:
        """Return all rows of what goes one way, boxes unfolded, and the layer of each."""
        each = self._copies[side]
        rows = len(copies) // max(1, sum(each))
        layers = np.repeat(np.arange(len(each)), np.multiply(each, rows))
        if copies.boxes is None:
            return copies, layers
        counts = copies.boxes.of_each("rows", len(copies))
        counts = counts * copies.boxes.of_each("planes", len(copies))
        return copies.unfolded(), np.repeat(layers, counts)

    def copies_of(self, rows: Rows, count: int, side: int, *, as_out: bool = False) -> Rows:
        """Return where the copies of some rows stand among those of `count` rows.

        Parameters
        ----------
        rows : ndarray of int
            Indices of rows.
        count : int
            How many rows there are in that direction.
        side : int
            The direction, `OUT` or `IN`.
        as_out : bool, optional
            Return those of what comes in, in the order of what goes out; of the same runs only.
        """
        if self.one_copy:
            return rows
        found, before = [], 0
        for layer, each in enumerate(self._copies[side]):
            which = self._counterparts[layer] if as_out else np.arange(each)
            found.append((before + rows[:, None] * each + which).ravel())
            before += count * each
        return np.concatenate(found)


def _copies_a_block(layers: Sequence[LayerPair]) -> list[int]:
    return [pair.copies_a_block(in_order=True) if pair.layout.run_bytes else 0 for pair in layers]


def _intervals(columns: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return where all copies begin, and where they end."""
    begins = np.concatenate([begin for begin, _ in columns])
    return begins, begins + np.concatenate([size for _, size in columns])
