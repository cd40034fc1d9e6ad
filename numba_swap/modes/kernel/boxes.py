"""Boxes in one launch: the table that the kernel goes through, and its shape."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction
from numba_swap.copies.forms import Boxes, Words
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.driver import abi
from numba_swap.modes.kernel.loading import load_kernel
from numba_swap.modes.kernel.table import WARP, Launch, why_no_memory

_WORD = 16
_FORM_SHIFT = 40
# Words of a chunk: at least so many that every thread has four accesses in flight.
_IN_FLIGHT = 4
_FEWEST_CHUNKS_A_TILE = 2
_THREADS_A_MULTIPROCESSOR = 2048


class _Grid(NamedTuple):
    """How the words of all boxes are shared out.

    Attributes
    ----------
    tile : int
        Threads that share one chunk.
    chunk_words : int
        Words of a chunk.
    """

    tile: int
    chunk_words: int


def prepare_boxes(copies: Copies, boxes: Boxes, launch: LaunchContext) -> Launch:
    """Make the launch over boxes."""
    conditions, device, count = launch.conditions, launch.device, len(copies)
    threads, most_blocks = _shape(device, copies.direction, beside=conditions.beside)
    if conditions.max_blocks is not None:
        most_blocks = min(most_blocks, conditions.max_blocks)
    forms = _kernel_forms(copies, boxes)
    words = forms[:, native.boxes.KERNEL_FORM.index("words")]
    each = words if len(boxes.which) == 0 else words[boxes.which]
    total = int(each.sum()) if len(boxes.which) else int(words[0]) * count
    resident = _THREADS_A_MULTIPROCESSOR * device.attribute(abi.DEVICE_MULTIPROCESSOR_COUNT)
    busy = min(threads * most_blocks, resident)
    grid = _share(total, int(total // count), busy, device)
    native.boxes.set_steps(forms, grid.tile)
    if len(forms) == 1:
        columns = [copies.dst, copies.src]
        rows, chunks = count, -(-int(words[0]) // grid.chunk_words)
    else:
        columns = _chunk_rows(copies, boxes, each, grid.chunk_words)
        rows, chunks = len(columns[0]), 1
    column_bytes = 8 * rows * len(columns)
    nbytes = column_bytes + 8 * forms.size
    buffer = devices_of(device.driver).host_buffers.take(nbytes, device.ordinal)
    for i, column in enumerate(columns):
        buffer.words[i * rows : (i + 1) * rows] = column
    buffer.words[column_bytes // 8 : nbytes // 8] = forms.view(np.uint64).ravel()
    return Launch(
        load_kernel(device, "box"),
        max(1, min(most_blocks, -(-rows * chunks * grid.tile // threads))),
        threads,
        (
            buffer.address,
            rows,
            chunks,
            grid.chunk_words,
            grid.tile,
            buffer.address + column_bytes,
            int(len(forms) > 1),
        ),
        buffer,
        most_blocks,
        nbytes,
        (0, 5),
    )


def why_no_box_table(device: Device, copies: Copies, boxes: Boxes) -> str | None:
    """Return why there is no pinned memory for a table of boxes; None if there is."""
    rows = len(copies)
    if len(boxes.forms) > 1:  # at most a row for every chunk of the shortest words, half empty
        bits = copies.alignment_bits | _WORD
        rows += 2 * copies.nbytes // ((bits & -bits) * _IN_FLIGHT * WARP)
    return why_no_memory(device, 8 * (3 * rows + len(native.boxes.KERNEL_FORM) * len(boxes.forms)))


def _shape(device: Device, direction: Direction, *, beside: bool) -> tuple[int, int]:
    """Return threads of a block, and the most blocks."""
    tuning = device.tuning
    if direction is Direction.P2P:
        return tuning.peer_threads, tuning.peer_blocks_beside if beside else tuning.peer_blocks
    if direction in (Direction.D2D, Direction.MIXED):
        return tuning.device_threads, (
            tuning.device_blocks_beside if beside else tuning.device_blocks
        )
    blocks = tuning.link_blocks
    return tuning.link_threads, max(blocks, tuning.link_blocks_beside) if beside else blocks


def _share(total: int, mean: int, threads: int, device: Device) -> _Grid:
    """Choose tiles and chunks: long ones cost the fewest divisions, short ones busy all tiles."""
    tile = min(WARP, 1 << (max(1, mean).bit_length() - 1))
    least = _IN_FLIGHT * tile
    wanted = total // max(1, _FEWEST_CHUNKS_A_TILE * threads // tile)
    most = device.tuning.chunk_bytes // _WORD
    return _Grid(tile, max(least, min(most, wanted) // least * least))


def _kernel_forms(copies: Copies, boxes: Boxes) -> Words:
    """Return what the kernel reads of each form, but for the steps."""
    found = np.zeros((len(boxes.forms), len(native.boxes.KERNEL_FORM)), dtype=np.int64)
    overread = all(a.start % _WORD == 0 and a.stop % _WORD == 0 for a in copies.ends.sources)
    native.boxes.describe_forms(
        copies.dst, copies.src, boxes.forms, boxes.which, int(overread), found
    )
    return found


def _chunk_rows(copies: Copies, boxes: Boxes, words: Words, chunk: int) -> list[np.ndarray]:
    """Return destinations, sources, and form and first word, of every chunk of unlike boxes."""
    chunks = -(-words // chunk)
    box = np.repeat(np.arange(len(copies)), chunks)
    within = np.arange(len(box)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    places = (boxes.which[box] << _FORM_SHIFT) + within * chunk
    return [copies.dst[box], copies.src[box], places.astype(np.uint64)]
