"""Device memory and a stream for each tile that is under way."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numba_swap.device.context import Context
from numba_swap.device.devices import Devices
from numba_swap.device.streams import stream_handle
from numba_swap.driver.calls import Driver
from numba_swap.paging.tiles.arrays import arrays_of
from numba_swap.paging.tiles.box import Index, Slices
from numba_swap.paging.tiles.tiling import Tiling
from numba_swap.swap.boxes import copy
from numba_swap.swap.running.transfer import Transfer


class Mark:
    """A point of a stream that other streams may wait for; the host does not."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._event = 0

    def record(self, stream: int) -> None:
        """Let it stand for what is in a stream now."""
        if not self._event:
            with self._context.driver.activate(self._context.handle):
                self._event = self._context.take_event()
        self._context.driver.record_event(self._event, stream)

    def hold_back(self, stream: int) -> None:
        """Let what is put into a stream from now on wait for it; nothing if never recorded."""
        if self._event:
            self._context.driver.wait_event(stream, self._event)

    def __del__(self) -> None:
        if self._event:
            self._context.give_event(self._event)


class Buffer:
    """Device memory for one tile of a field, seen as arrays of the shapes that tiles have.

    Views are kept: to make one takes Numba longer than to copy a small tile.
    """

    def __init__(self, arrays: Any, length: int, dtype: np.dtype[Any]) -> None:
        self._flat = arrays.device_array(length, dtype)
        self._views: dict[tuple[Any, ...], Any] = {}

    def view(self, shape: Index) -> Any:
        """Return the first elements as a contiguous array."""
        known = self._views.get(shape)
        if known is None:
            known = self._views[shape] = self._flat[: math.prod(shape)].reshape(shape)
        return known

    def part(self, shape: Index, slices: Slices) -> Any:
        """Return a part of `view`."""
        key = (shape, tuple((some.start, some.stop) for some in slices))
        known = self._views.get(key)
        if known is None:
            known = self.view(shape)
            if slices != tuple(map(slice, [0] * len(shape), shape)):
                known = known[slices]
            self._views[key] = known
        return known


class Output(NamedTuple):
    """Device memory for the new values of a tile that is written in place.

    Attributes
    ----------
    buffers : list of Buffer
        One a field.
    computed : Mark
        Where they were there.
    """

    buffers: list[Buffer]
    computed: Mark


class Slot:
    """What one tile under way has: its stream, in which it comes in, is computed, and goes out.

    So the order of the stream keeps the next tile from coming in before this one is through.

    Attributes
    ----------
    stream : stream
        For kernels: Numba's, or the simulation's.
    handle : int
        The driver's handle of it.
    reads, writes, spare : list of Buffer
        For each field that is read (with a halo) or written, and what else was asked for.
    loaded : Mark
        Where all that is read was there.
    under_way : deque of (int or None, list of Transfer)
        What is copied in the stream: of which tile new values to the host, or None.
    """

    def __init__(
        self,
        stream: Any,
        context: Context,
        reads: list[Buffer],
        writes: list[Buffer],
        spare: list[Buffer],
    ) -> None:
        self.stream = stream
        self.handle = stream_handle(stream)
        self.reads, self.writes, self.spare = reads, writes, spare
        self.loaded = Mark(context)
        self.under_way: deque[tuple[int | None, list[Transfer]]] = deque()


class Needs(NamedTuple):
    """What device memory the steps through a tiling take.

    Attributes
    ----------
    reads, writes, updates, spare : list of dtype
        Of the fields that are read, written, or both, and of buffers beside.
    depth : int
        How many tiles are under way.
    outputs : int
        How many tiles' new values are kept at a time.
    """

    reads: list[np.dtype[Any]]
    writes: list[np.dtype[Any]]
    updates: list[np.dtype[Any]]
    spare: list[np.dtype[Any]]
    depth: int
    outputs: int

    def nbytes(self, tiling: Tiling) -> int:
        """Return how many bytes that is."""
        outer, inner, face = lengths_of(tiling)

        def a_tile(dtypes: Sequence[np.dtype[Any]], length: int) -> int:
            return sum(dtype.itemsize for dtype in dtypes) * length

        everything = [*self.reads, *self.updates]
        slot = a_tile([*everything, *self.spare], outer) + a_tile(self.writes, inner)
        kept = self.outputs * a_tile(self.updates, inner)
        return self.depth * slot + kept + a_tile(everything, face)


def lengths_of(tiling: Tiling) -> tuple[int, int, int]:
    """Return how many elements a tile has at most: with its halo, without, and a face of it."""
    outer = [n + 2 * h for n, h in zip(tiling.tile, tiling.halo, strict=True)]
    if tiling.clips:
        outer = list(map(min, outer, tiling.shape))
        face = 0
    elif tiling.periodic:
        face = 0
    else:
        whole = math.prod(outer)
        # Of a tile that ends before the field does, halos may lie outside with all their length.
        face = max(whole // n * h for n, h in zip(outer, tiling.halo, strict=True))
    return math.prod(outer), math.prod(tiling.tile), face


# By driver: what `copy` remembers of views that lie alike, it remembers for a stream, so that the
# next pass should have the same ones.
_spare_streams: weakref.WeakKeyDictionary[Driver, list[Any]] = weakref.WeakKeyDictionary()


class Slots:
    """All device memory of some steps: slots, outputs, and what lies outside of the field.

    Attributes
    ----------
    context : Context
        That of the streams.
    slots : list of Slot
        One for each tile under way.
    outputs : deque of Output
        Those that are free, the longest unused first.
    """

    def __init__(self, devices: Devices, tiling: Tiling, needs: Needs) -> None:
        arrays = arrays_of(devices.driver)
        outer, inner, self._face = lengths_of(tiling)
        self._tiling = tiling
        self._spare_streams = _spare_streams.setdefault(devices.driver, [])
        streams = self._spare_streams[: needs.depth]
        del self._spare_streams[: needs.depth]
        streams += [arrays.stream() for _ in range(needs.depth - len(streams))]
        handle = devices.driver.probe(stream_handle(streams[0]))[1]
        with devices.driver.activate(handle):
            self.context = devices.context(handle)

        def buffers(dtypes: Sequence[np.dtype[Any]], length: int) -> list[Buffer]:
            return [Buffer(arrays, length, dtype) for dtype in dtypes]

        everything = [*needs.reads, *needs.updates]
        self.slots = [
            Slot(
                stream,
                self.context,
                buffers(everything, outer),
                buffers(needs.writes, inner),
                buffers(needs.spare, outer),
            )
            for stream in streams
        ]
        self.outputs = deque(
            Output(buffers(needs.updates, inner), Mark(self.context)) for _ in range(needs.outputs)
        )
        self._fill: dict[np.dtype[Any], Buffer] = {}
        if self._face:
            for dtype in dict.fromkeys(everything):
                self._fill[dtype] = Buffer(arrays, self._face, dtype)
                flat = np.full(self._face, tiling.boundary, dtype)
                copy(flat, self._fill[dtype].view((self._face,))).wait()

    def __del__(self) -> None:
        if hasattr(self, "slots"):
            self._spare_streams[:0] = [slot.stream for slot in self.slots]

    def fill(
        self, buffer: Buffer, dtype: np.dtype[Any], tile: int, **options: Any
    ) -> list[Transfer]:
        """Put the boundary's value where a tile's halo lies outside of the field.

        Parameters
        ----------
        buffer : Buffer
            Of a slot.
        dtype : dtype
            Of the field.
        tile : int
            The tile's number.
        **options
            Of `numba_swap.copy`, the stream among them.
        """
        transfers = []
        shape = self._tiling.boxes(tile).outer.shape
        for face in self._tiling.outside(tile):
            slices = tuple(
                slice(*some.indices(length)) for some, length in zip(face, shape, strict=True)
            )
            lengths = tuple(some.stop - some.start for some in slices)
            values = self._fill[dtype].view(lengths)
            transfers.append(copy(values, buffer.part(shape, slices), **options))
        return transfers
