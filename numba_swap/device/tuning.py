"""The figures of one kind of machine that copies are cut, shaped and judged by.

They were measured on an H200 (132 SMs, PCIe 5, driver 580) unless said otherwise, and are part of a
calibration file: what `costs` are for the choice of a mode, these are for how it runs.
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple


@functools.cache
def usable_cpus() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Tuning(NamedTuple):
    """Sizes, counts and factors of one machine.

    Attributes
    ----------
    link_blocks, link_blocks_short, link_blocks_beside : int
        Thread blocks of a copy kernel over a host link: 8 saturate one direction, but with both at
        once they reached 0.60 of the link and 16 reached 0.70. Short copies have less in flight.
        Beside a kernel of the other direction a few more pay (0.68 instead of 0.67). (Cache hints,
        and eight loads in flight, changed nothing.)
    link_threads, device_threads : int
        Threads of a block, over a host link and within the device.
    device_blocks, device_blocks_beside : int
        The most thread blocks within the device, which wants a tile for every chunk, all at once;
        beside other work some room is left on every multiprocessor.
    peer_threads, peer_blocks, peer_blocks_beside : int
        A copy kernel between two GPUs: with 132 blocks of 512 threads it reached 0.89 to 0.91 of a
        contiguous copy over NVLink, from 512 bytes up; with 32 blocks 0.83 to 0.85, with 16 of
        them 0.84 where it writes to the other GPU and 0.88 where it reads from it (two H100,
        driver 580).
    chunk_bytes : int
        A longer copy is shared by several tiles of threads; a multiple of 16, to keep alignment.
    bytes_a_thread, short_copy_threads : int
        So many bytes a thread are worth a larger tile; a short copy is spread over a few threads
        all the same, for neighbouring threads share a memory transaction.
    exchange_blocks, exchange_threads : int
        The grid of the kernel that makes the copies of both directions pair by pair. It moves 80
        GB/s in sum with blocks of 2 KiB and more; two kernels side by side moved 65 to 75.
    batch_streams, batch_streams_beside : int
        Over how many private streams a batch is spread: one leaves gaps between copies, eight are
        better than four, and as good as sixteen. Where two directions are busy, four each.
    fewest_bytes_for_streams, fewest_copies_a_stream : int
        From when on a batch is spread.
    fewest_bytes_of_a_direction : int
        Directions run side by side if the second has so many bytes: a fork costs some 20 us.
    strands, pieces_a_strand, smallest_piece_bytes : int
        An exchange by the copy engines: streams that nothing joins before the end, the pieces of
        each, and none smaller than what it takes to submit it. This reached 1.00 of what the link
        does in both directions with blocks of 256 KiB, and 0.95 where one direction follows the
        other into the same slots; streams joined after every piece reached 0.86 and 0.77.
    staged_bytes, stages : int
        What comes in by way of device memory goes in pieces of so many bytes, of which so many are
        under way: 64 MiB did as well as or better than 4 and 16.
    ring_piece_bytes, ring_smallest_bytes, ring_pieces, host_threads : int
        Rows of pageable memory go round a ring of so many pieces, of at most so many bytes, which
        stay in the processor's cache; shorter swaps in as many shorter ones, none below the
        smallest. So many threads of the host move them; what staging costs was measured with them.
        (The sizes are a guess still: a ring of 16 MiB, and pieces worth some 100 us of 16 threads.)
    group_rows, group_bytes, group_pool_bytes : int
        From so many rows of at most so many bytes on, over more than so many bytes of pinned
        memory, rows are ordered by regions: a GPU that reads host memory at random over more than
        about 1 GiB misses its address translations, and blocks of 512 bytes move at half the speed.
    unaligned_factor, odd_factor : float
        What a copy kernel's time a byte is multiplied by where addresses or lengths are no
        multiples of 16 bytes, and where they are none of 4.
    duplex_kernel_factor, duplex_host_us_a_copy : float
        With both directions of a host link busy, kernels take longer over their bytes than copy
        engines do (66 GB/s in sum instead of 90), and the host has to submit the copies of both.
    pairs_factor : float
        The time of an exchange pair by pair over that of its longer direction alone.
    side_by_side_us, staged_factor : float
        What it takes to let two directions run side by side, and how much longer it takes if what
        comes in has to be staged.
    overlap_blocks, overlap_blocks_within_device : int
        Policy "overlap": thread blocks that a kernel may have, the second of them also between two
        GPUs. Four blocks of 512 threads move
        8 KiB blocks at 0.76 of a host link beside a matrix product, and slow it by less than 3 %.
    overlap_patience : float
        Policy "overlap": how much slower copy engines may be.
    split_gain : float
        Two parts at once have to save so much of the predicted time, for they cost host time.
    """

    link_blocks: int = 16
    link_blocks_short: int = 32
    link_blocks_beside: int = 24
    link_threads: int = 512
    device_threads: int = 256
    device_blocks: int = 2**31 - 1
    device_blocks_beside: int = 264
    peer_threads: int = 512
    peer_blocks: int = 132
    peer_blocks_beside: int = 132
    chunk_bytes: int = 1 << 13
    bytes_a_thread: int = 64
    short_copy_threads: int = 8
    exchange_blocks: int = 48
    exchange_threads: int = 512
    batch_streams: int = 8
    batch_streams_beside: int = 4
    fewest_bytes_for_streams: int = 1 << 20
    fewest_copies_a_stream: int = 4
    fewest_bytes_of_a_direction: int = 1 << 20
    strands: int = 4
    pieces_a_strand: int = 8
    smallest_piece_bytes: int = 2 << 20
    staged_bytes: int = 64 << 20
    stages: int = 2
    ring_piece_bytes: int = 4 << 20
    ring_smallest_bytes: int = 512 << 10
    ring_pieces: int = 4
    host_threads: int = 16
    group_rows: int = 4096
    group_bytes: int = 2048
    group_pool_bytes: int = 3 << 28
    unaligned_factor: float = 1.15
    odd_factor: float = 2.0
    duplex_kernel_factor: float = 1.4
    duplex_host_us_a_copy: float = 1.2
    pairs_factor: float = 1.2
    side_by_side_us: float = 40.0
    staged_factor: float = 1.2
    overlap_blocks: int = 4
    overlap_blocks_within_device: int = 16
    overlap_patience: float = 1.25
    split_gain: float = 0.99

    def spread_over(self, copies: int, nbytes: int, *, beside: bool = False) -> int:
        """Return over how many streams so many copies of a batch are spread.

        Parameters
        ----------
        copies, nbytes : int
            How many copies, and bytes in all.
        beside : bool, optional
            Whether it runs beside another part.
        """
        if nbytes < self.fewest_bytes_for_streams:
            return 1
        most = self.batch_streams_beside if beside else self.batch_streams
        return max(1, min(most, copies // self.fewest_copies_a_stream))

    def threads(self, said: int | None) -> int:
        """Return how many threads of the host move rows: as the user said, or as are useful."""
        return said or min(self.host_threads, usable_cpus())

    def may_be_grouped(self, rows: int, run_bytes: int) -> bool:
        """Whether rows like these are worth ordering by their place in host memory."""
        return rows >= self.group_rows and run_bytes <= self.group_bytes


_MOST_BYTES = 1 << 40
_MOST_BLOCKS = 2**31 - 1
_MOST_FACTOR = 1e9


def why_not_figure(name: str, value: Any) -> str | None:
    """Return why a value cannot be one of the figures of `Tuning`; None if it can.

    Parameters
    ----------
    name : str
        The figure.
    value : object
        What was read, from a file for example.
    """
    if name not in Tuning._fields:
        return "is no figure of this version"
    if isinstance(getattr(DEFAULT_TUNING, name), float):
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if right and 0 < value < _MOST_FACTOR else "is no positive number"
    step, most = 1, _MOST_BYTES if name.endswith("bytes") else _MOST_BLOCKS
    if name in ("chunk_bytes", "ring_piece_bytes", "ring_smallest_bytes"):
        step = 16
    elif name in ("link_threads", "device_threads", "peer_threads", "exchange_threads"):
        step, most = 32, 1024
    right = isinstance(value, int) and not isinstance(value, bool)
    if right and 0 < value <= most and value % step == 0:
        return None
    multiple = f", multiple of {step}," if step > 1 else ""
    return f"is no positive integer{multiple} up to {most}"


DEFAULT_TUNING = Tuning()

# Numba's simulator runs every thread in Python: a few show what many would.
_SIMULATED = {
    name: 32 if name.endswith("threads") else 4
    for name in Tuning._fields
    if name.startswith(("link_", "device_", "peer_", "exchange_"))
}
SIMULATED_TUNING = DEFAULT_TUNING._replace(**_SIMULATED)
