"""One pass through the tiles of fields: what is under way, in which order, and how it ends."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from numba_swap.device.devices import Devices
from numba_swap.device.streams import is_legacy, stream_handle
from numba_swap.dispatch.settings import (
    Mode,
    Policy,
    current_settings,
    parse_mode,
    parse_policy,
)
from numba_swap.errors import CapturedTransferError, brief
from numba_swap.paging.tiles.arrays import check_fits
from numba_swap.paging.tiles.box import Box, Slices
from numba_swap.paging.tiles.fields import Fields, least_row_bytes
from numba_swap.paging.tiles.slots import Buffer, Needs, Output, Slot, Slots
from numba_swap.paging.tiles.tiling import Order, Tiling
from numba_swap.swap.boxes import copy
from numba_swap.swap.running.transfer import Transfer

_log = logging.getLogger("numba_swap")
_SHORT_ROW_BYTES = 64
_MOST_SLABS = 4096  # what is advised is looked for, and takes its time


class Step(NamedTuple):
    """One tile on the device, ready to be computed in a stream.

    Attributes
    ----------
    reads : tuple of device array
        Of each field in `reads`, then in `updates`: the tile with its halo, old values. C-ordered.
    writes : tuple of device array
        Of each field in `writes`, then in `updates`: where the tile's new values go. Uninitialised:
        write every element. C-ordered, of the tile's shape, without halo.
    stream : stream
        Where to launch: what is read is there before, and what is written is fetched after what is
        launched here. Of Numba, or of the simulation.
    tile : int
        The tile's number in the tiling.
    inner : tuple of slice
        The tile itself within an array of `reads`.
    box : Box
        The tile in indices of the field.
    """

    reads: tuple[Any, ...]
    writes: tuple[Any, ...]
    stream: Any
    tile: int
    inner: Slices
    box: Box


class Run:
    """One pass through all tiles, and what became of each.

    Parameters
    ----------
    fields : Fields
        The arrays, checked.
    tiling : Tiling
        Their tiles.
    order : str
        In which order.
    slots : Slots
        What it runs in.
    options : dict
        Of each copy: mode and policy.
    """

    def __init__(
        self, fields: Fields, tiling: Tiling, order: Order, slots: Slots, options: dict[str, Any]
    ) -> None:
        self.written: list[int] = []
        self._fields = fields
        self._tiling = tiling
        self._order: list[int] = tiling.order(order).tolist()
        self._releases = tiling.releases(order).after if fields.updates else []
        self._slots = slots
        self._options = options
        # Of each tile of which something was, or is being, sent out: what is still to arrive.
        self._missing: Counter[int] = Counter()
        self._kept: dict[int, Output] = {}  # by position: computed, and not yet sent out
        self._parts = bool(fields.writes) + bool(fields.updates)

    @property
    def unsure(self) -> list[int]:
        """Tiles that may be written in part."""
        return list(self._missing)

    def report(self) -> str:
        """Say which tiles are new, and which may be so in part."""
        unsure = f", {len(self._missing)} perhaps in part: {brief(self.unsure)}"
        return (
            f"Of {len(self._order)} tiles {len(self.written)} are written: {brief(self.written)}"
            f"{unsure if self._missing else ''}; all others are as they were."
        )

    def steps(self) -> Generator[tuple[Slot, Step]]:
        """Yield the tiles one after another; whatever ends this, nothing is under way afterwards.

        What was computed when the next one was asked for is sent out also where something ends
        the loop early.
        """
        slots = self._slots.slots
        try:
            for position, tile in enumerate(self._order):
                slot = slots[position % len(slots)]
                output = self._begin(tile, slot)
                yield slot, self._step(tile, slot, output)
                self._end(position, tile, slot, output)
            self._drain()
        except BaseException as error:
            self._leave(error)
            raise

    # -- one tile ---------------------------------------------------------------------------

    def _begin(self, tile: int, slot: Slot) -> Output | None:
        """Bring a tile in, and take memory for its new values."""
        before = len(slot.under_way)
        outer = self._tiling.boxes(tile).outer.shape
        everything = (*self._fields.reads, *self._fields.updates)
        entering: list[Transfer] = []
        slot.under_way.append((None, entering))
        for field, buffer in zip(everything, slot.reads, strict=True):
            entering += self.fill(buffer, field.dtype, tile, slot)
            for source in self._tiling.sources(tile):
                part = buffer.part(outer, source.outer)
                entering.append(self._copy(field[source.field.slices], part, slot))
        # Only now, so that the copies above begin as soon as the slot's stream is through.
        self._wait(slot, before)
        if not self._fields.updates:
            return None
        slot.loaded.record(slot.handle)
        return self._slots.outputs.popleft()

    def _step(self, tile: int, slot: Slot, output: Output | None) -> Step:
        inner, outer = self._tiling.boxes(tile)
        into = [*slot.writes, *(output.buffers if output else ())]
        return Step(
            tuple(buffer.view(outer.shape) for buffer in slot.reads),
            tuple(buffer.view(inner.shape) for buffer in into),
            slot.stream,
            tile,
            inner.within(outer),
            inner,
        )

    def _end(self, position: int, tile: int, slot: Slot, output: Output | None) -> None:
        """Send out what was computed, as far as nobody needs the old values any more."""
        if output is not None:
            output.computed.record(slot.handle)
            self._kept[position] = output
        self._send(tile, slot, self._fields.writes, slot.writes)
        if output is not None:
            self._release(self._releases[position], slot)

    def _release(self, positions: Sequence[int], slot: Slot) -> None:
        """Write tiles in place, after all loads up to now: their neighbours have read them."""
        if not positions:
            return
        for other in self._slots.slots:
            other.loaded.hold_back(slot.handle)
        for position in positions:
            # Taken out first: an interrupt must not let it be sent twice.
            output = self._kept.pop(position)
            output.computed.hold_back(slot.handle)
            self._send(self._order[position], slot, self._fields.updates, output.buffers)
            self._slots.outputs.append(output)

    def _send(self, tile: int, slot: Slot, fields: Sequence[Any], buffers: Sequence[Any]) -> None:
        if not fields:
            return
        box = self._tiling.boxes(tile).inner
        self._missing.setdefault(tile, self._parts)
        leaving: list[Transfer] = []
        for field, buffer in zip(fields, buffers, strict=True):
            leaving.append(self._copy(buffer.view(box.shape), field[box.slices], slot))
        slot.under_way.append((tile, leaving))

    def fill(self, buffer: Buffer, dtype: Any, tile: int, slot: Slot) -> list[Transfer]:
        """Put the boundary's value around a tile in a buffer of a slot; see `Slots.fill`."""
        return self._slots.fill(buffer, dtype, tile, stream=slot.handle, **self._options)

    def _copy(self, src: Any, dst: Any, slot: Slot) -> Transfer:
        return copy(src, dst, stream=slot.handle, **self._options)

    def _wait(self, slot: Slot, groups: int) -> None:
        """Wait for the first groups of copies of a slot."""
        for _ in range(groups):
            tile, transfers = slot.under_way[0]
            for transfer in transfers:
                transfer.wait()
            slot.under_way.popleft()
            if tile is not None:
                self._missing[tile] -= 1
                if not self._missing[tile]:
                    del self._missing[tile]
                    self.written.append(tile)

    # -- the end ----------------------------------------------------------------------------

    def _drain(self) -> None:
        """Wait for everything, the kernels of the user too; raise the first error at the end."""
        errors: list[BaseException] = []
        for slot in self._slots.slots:
            try:
                self._wait(slot, len(slot.under_way))
            except BaseException as error:
                errors.append(error)
            try:
                slot.stream.synchronize()
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _leave(self, error: BaseException) -> None:
        """End early: send out what was computed, and wait."""
        early = isinstance(error, GeneratorExit)
        with contextlib.ExitStack() as stack:
            if not early:  # the first error is the one to be told
                stack.enter_context(contextlib.suppress(Exception))
            try:
                if self._kept:
                    self._release(sorted(self._kept), self._slots.slots[0])
            finally:
                self._drain()


def options_of(mode: Mode | str | None, policy: Policy | str | None) -> dict[str, Any]:
    """Return how each copy is to run; what is in force now holds for all."""
    parse_mode("auto" if mode is None else mode)
    if policy is not None:
        parse_policy(policy)
    return {"mode": mode or current_settings().mode or "auto", "policy": policy}


def needs_of(
    fields: Fields, tiling: Tiling, depth: int, order: Order, spare: Sequence[Any] = ()
) -> Needs:
    """Return what device memory a run needs."""
    outputs = 0
    if fields.updates:
        # Besides those that are kept, one for each other tile under way: so the one that is free
        # longest has left in this slot's stream, or in one that the host has waited for since.
        outputs = min(tiling.releases(order).most + depth - 1, len(tiling))
    reads, writes, updates, beside = ([a.dtype for a in arrays] for arrays in (*fields, spare))
    return Needs(reads, writes, updates, beside, depth, outputs)


def make_slots(devices: Devices, fields: Fields, tiling: Tiling, needs: Needs) -> Slots:
    """Take the device memory of a run, if there is enough.

    Raises
    ------
    BadArgumentError
        If there is not.
    """
    arrays = [*fields.reads, *fields.writes, *fields.updates]
    row = least_row_bytes(arrays, tiling)
    if row is not None and row < _SHORT_ROW_BYTES:
        _log.warning(
            "rows of tiles have %d bytes: below %d most of the link is lost; make tiles longer "
            "along the last axis",
            row,
            _SHORT_ROW_BYTES,
        )
    check_fits(
        devices.driver,
        needs.nbytes(tiling),
        f"{tiling!r}, depth {needs.depth},",
        lambda free: _advise(fields, tiling, needs, free),
    )
    return Slots(devices, tiling, needs)


def _advise(fields: Fields, tiling: Tiling, needs: Needs, free: int) -> str:
    """Say what would fit into so many bytes."""
    advice = "take smaller tiles, or fewer at a time (depth)"
    if needs.outputs > needs.depth:
        advice += (
            f"; the new values of {needs.outputs} tiles must be kept until their neighbours have "
            "read the old ones, of slabs, cut along the first axis only, the fewest; with another "
            "array in writes, instead of updates, none are"
        )
    planes = tiling.shape[0]
    while (planes := planes // 2) and tiling.shape[0] // planes <= _MOST_SLABS:
        slabs = Tiling(tiling.shape, (planes, *tiling.shape[1:]), tiling.halo, tiling.boundary)
        spare = needs_of(fields, slabs, needs.depth, "rows")._replace(spare=needs.spare)
        if spare.nbytes(slabs) <= free:
            return f"{advice}. Slabs of {planes} planes would fit: tile={slabs.tile}"
    return advice


def make_run(
    devices: Devices,
    fields: Fields,
    tiling: Tiling,
    order: Order,
    stream: Any,
    needs: Needs,
    options: dict[str, Any],
    slots: Slots | None = None,
) -> Run:
    """Take device memory, unless some is given, and let the slots wait for a stream."""
    handle, driver = stream_handle(stream), devices.driver
    default = driver.is_default_stream(handle)
    if not default and driver.probe(handle)[2]:
        raise CapturedTransferError(
            "the stream is being captured into a CUDA graph, and steps that the host waits for "
            "cannot be"
        )
    if slots is None:
        slots = make_slots(devices, fields, tiling, needs)
    if not is_legacy(handle):  # with that, the slots' streams are ordered anyhow
        owner = slots.context
        if not default:
            with driver.activate(driver.probe(handle)[1]):
                owner = devices.context(driver.probe(handle)[1])
        with driver.activate(slots.context.handle):
            for slot in slots.slots:
                slots.context.wait_for(handle, slot.handle, owner)
    return Run(fields, tiling, order, slots, options)
