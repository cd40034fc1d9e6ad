"""The table of descriptors that a kernel goes through, and the launch over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies, PinnedTable
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import Addresses
from numba_swap.device.resources import DeviceBuffer, PinnedBuffer
from numba_swap.device.tuning import Tuning

WARP = 32
_ACCESS_BYTES = 16


class DescriptorTable(NamedTuple):
    """Descriptors in pinned memory, and how tiles of threads go through them.

    Attributes
    ----------
    place : PinnedTable
        The columns of addresses, one after the other, and that of lengths if they differ.
    rows : int
        How many there are.
    size : int
        Bytes of every copy, or 0.
    chunks : int
        How many tiles share one copy.
    tile : int
        Threads of a tile.
    """

    place: PinnedTable
    rows: int
    size: int
    chunks: int
    tile: int


class DeviceTable(NamedTuple):
    """A copy of a table in device memory.

    Attributes
    ----------
    buffer : DeviceBuffer
        The memory.
    arguments : tuple of int
        Those of the launch, which point there.
    first : InFlight
        The work that copies the descriptors there.
    """

    buffer: DeviceBuffer
    arguments: tuple[int, ...]
    first: InFlight


class Launch:
    """Everything about a launch that does not change from run to run.

    Attributes
    ----------
    function, blocks, threads, arguments
        The launch, but for its stream.
    most_blocks : int
        The most blocks that such a launch may have.
    table : PinnedBuffer or None
        What holds the descriptors that `arguments` point to.
    table_bytes : int
        Length of the descriptors.
    addresses : tuple of int
        Which of `arguments` are addresses in there; the first one is where they begin.
    uploaded : DeviceTable or None
        A copy of them in device memory.
    """

    __slots__ = (
        "addresses",
        "arguments",
        "blocks",
        "function",
        "most_blocks",
        "table",
        "table_bytes",
        "threads",
        "uploaded",
    )

    def __init__(
        self,
        function: int,
        blocks: int,
        threads: int,
        arguments: tuple[int, ...],
        table: PinnedBuffer | None,
        most_blocks: int,
        table_bytes: int = 0,
        addresses: tuple[int, ...] = (0,),
    ) -> None:
        self.function = function
        self.blocks = blocks
        self.threads = threads
        self.arguments = arguments
        self.table = table
        self.most_blocks = most_blocks
        self.table_bytes = table_bytes
        self.addresses = addresses
        self.uploaded: DeviceTable | None = None

    def moved(self, by: int) -> tuple[int, ...]:
        """Return the arguments with the descriptors so many bytes further on."""
        return tuple(
            value + by if i in self.addresses else value for i, value in enumerate(self.arguments)
        )


def build_table(
    device: Device,
    columns: Sequence[Addresses],
    copies: Copies,
    place: PinnedTable | None = None,
) -> DescriptorTable:
    """Make the table of a kernel.

    Parameters
    ----------
    device : Device
        The GPU that will read it.
    columns : sequence of ndarray of uint64
        Addresses.
    copies : Copies
        Their lengths count.
    place : PinnedTable, optional
        Where the columns of equally long copies stand already.
    """
    uniform, tuning = copies.uniform, device.tuning
    if uniform:
        chunks = -(-uniform // tuning.chunk_bytes)
        tile = _tile_size(min(uniform, tuning.chunk_bytes), tuning)
        return DescriptorTable(place or _write(device, columns), len(copies), uniform, chunks, tile)
    split = _split(columns, copies.sizes, tuning.chunk_bytes)
    rows = split.shape[1]
    tile = _tile_size(copies.nbytes // rows, tuning)
    return DescriptorTable(_write(device, list(split)), rows, 0, 1, tile)


def why_no_table(
    device: Device, columns: int, copies: Copies, place: PinnedTable | None
) -> str | None:
    """Return why there is no pinned memory for a table as `build_table` makes it; None if there is.

    Parameters
    ----------
    device, copies, place
        As for `build_table`.
    columns : int
        How many columns of addresses.
    """
    if copies.uniform:
        if place is not None:
            return None
        rows = len(copies)
    else:
        columns += 1
        chunk = device.tuning.chunk_bytes
        rows = int(-(-copies.sizes.astype(np.int64) // chunk).sum())
    return why_no_memory(device, 8 * rows * columns)


def why_no_memory(device: Device, nbytes: int) -> str | None:
    """Return why there is no pinned memory for a table of so many bytes; None if there is."""
    # What is found goes back at once, to be taken when the table is made.
    if devices_of(device.driver).host_buffers.find(nbytes, device.ordinal) is not None:
        return None
    return f"no pinned host memory is left for the {nbytes} bytes of its table of addresses"


def make_launch(
    device: Device,
    function: int,
    table: DescriptorTable,
    threads: int,
    most_blocks: int,
    access: int,
    max_blocks: int | None,
) -> Launch:
    """Make the launch of a kernel over a table; `access` is the kernel's last argument."""
    place, rows, size, chunks, tile = table
    if max_blocks is not None:
        most_blocks = min(most_blocks, max_blocks)
    return Launch(
        function,
        min(most_blocks, -(-rows * chunks * tile // threads)),
        threads,
        (place.address, rows, size, chunks, device.tuning.chunk_bytes, tile, access),
        place.buffer,
        most_blocks,
        8 * rows * (2 if size else 3),
    )


def _write(device: Device, columns: Sequence[Addresses]) -> PinnedTable:
    rows = len(columns[0])
    buffer = devices_of(device.driver).host_buffers.take(8 * rows * len(columns), device.ordinal)
    for i, column in enumerate(columns):
        buffer.words[i * rows : (i + 1) * rows] = column
    return PinnedTable(buffer, buffer.address)


def _tile_size(mean_bytes: int, tuning: Tuning) -> int:
    """Return how many threads share one copy: a power of two, at most a warp."""
    full = mean_bytes // tuning.bytes_a_thread
    short = min(tuning.short_copy_threads, -(-mean_bytes // _ACCESS_BYTES))
    return min(WARP, 1 << (max(full, short, 1).bit_length() - 1))


def _split(columns: Sequence[Addresses], sizes: Addresses, chunk: int) -> npt.NDArray[np.uint64]:
    """Return columns and sizes, long copies in chunks, so that one tile never copies alone."""
    table = np.stack([*columns, sizes])
    if int(sizes.max(initial=0)) <= chunk:
        return table
    chunks = -(-sizes.astype(np.int64) // chunk)
    rows = np.repeat(np.arange(len(chunks)), chunks)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    offset = (within * chunk).astype(np.uint64)
    split = table[:, rows]
    split[:-1] += offset
    split[-1] = np.minimum(split[-1] - offset, np.uint64(chunk))
    return split
