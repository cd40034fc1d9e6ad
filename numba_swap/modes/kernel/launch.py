"""All copies in one launch of a Numba kernel that reaches both sides from the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Copies, Direction
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import Addresses, Allocation, MemoryKind
from numba_swap.device.resources import DeviceBuffer, PinnedBuffer
from numba_swap.dispatch.ranking import Situation
from numba_swap.driver import abi
from numba_swap.driver.calls import Driver
from numba_swap.driver.version import DriverVersion
from numba_swap.modes.kernel.loading import load_kernel, why_not_loaded

# Numba-CUDA 0.30 speaks to the driver through cuda.bindings, which needs 12.0.
SINCE = DriverVersion(12, 0)

# The figures below were measured on an H200. A team has four 16-byte accesses a thread in flight,
# so that many bytes a thread are worth a larger team; a short copy is spread over a few threads
# all the same, for neighbouring threads share a memory transaction.
_WARP = 32
_BYTES_A_THREAD = 64
_ACCESS_BYTES = 16
_SHORT_COPY_TEAM = 8
# A host link is saturated by few blocks, which leaves the other multiprocessors to the user's own
# kernels: 8 do for one direction, but with both at once they reached 0.60 of the link, 16 reached
# 0.70. Short copies have less in flight. (Cache hints on loads or stores, and eight loads in
# flight, changed nothing.)
_LINK_BLOCKS = 16
_LINK_BLOCKS_FOR_SHORT_COPIES = 32
# Beside a kernel of the other direction a few more pay: 0.68 of both instead of 0.67.
_LINK_BLOCKS_BESIDE_ANOTHER = 24
_LINK_THREADS = 512
# Device memory wants a team for every piece, all at once.
_DEVICE_THREADS = 256
# Beside other work it leaves room for it on every multiprocessor.
_DEVICE_BLOCKS_BESIDE_ANOTHER = 264
_SIMULATED_BLOCKS = 4
_SIMULATED_THREADS = 32
# A copy longer than a piece is shared by several teams. Multiples of 16 keep the alignment.
_PIECE_BYTES = 1 << 13


class Launch:
    """Everything about a launch that does not change from run to run.

    Attributes
    ----------
    function, blocks, threads, arguments
        The launch, but for its stream.
    most_blocks : int
        The most blocks that such a launch may have.
    table : PinnedBuffer
        The descriptors that `arguments` point to.
    staged : _Staged or None
        A copy of them in device memory, with the arguments that point there.
    """

    __slots__ = (
        "arguments",
        "blocks",
        "function",
        "most_blocks",
        "staged",
        "table",
        "threads",
    )

    def __init__(
        self,
        function: int,
        blocks: int,
        threads: int,
        arguments: tuple[int, ...],
        table: PinnedBuffer,
        most_blocks: int,
    ) -> None:
        self.function = function
        self.blocks = blocks
        self.threads = threads
        self.arguments = arguments
        self.table = table
        self.most_blocks = most_blocks
        self.staged: _Staged | None = None


class _Staged(NamedTuple):
    buffer: DeviceBuffer
    arguments: tuple[int, ...]
    first: InFlight  # the work that copies the descriptors there


def why_not(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return why this mode cannot run the copies; None if it can.

    The kernel is compiled and loaded here if it was not before: a failure of that is a reason,
    not an error.
    """
    obstacle = why_not_in_principle(driver, copies, situation)
    if obstacle is not None:
        return obstacle
    return why_not_loaded(driver, situation.device, "copy")


def why_not_in_principle(driver: Driver, copies: Copies, situation: Situation) -> str | None:
    """Return what `why_not` can tell without compiling anything."""
    if situation.driver_version < SINCE:
        return (
            f"{situation.driver_words} is older than {SINCE}, which Numba-CUDA needs to compile "
            "and load a kernel"
        )
    for allocation in copies.allocations:
        obstacle = _unreachable(driver, allocation, situation.device)
        if obstacle is not None:
            return obstacle
    return None


def submit(driver: Driver, copies: Copies, situation: Situation, work: InFlight) -> None:
    """Enqueue the copies in their stream as one kernel launch.

    Raises
    ------
    DriverCallError
        If the driver refuses the launch; nothing was copied.
    """
    key = _key(situation.device, situation.max_blocks, situation.lane)
    launch = copies.prepared.get(key)
    if launch is None:
        # Two threads may get here at once: both must use, and hold, the one that is kept.
        launch = copies.prepared.setdefault(key, _prepare(driver, copies, situation))
    arguments = launch.arguments
    if copies.direction is Direction.D2D and not situation.capturing:
        arguments = _stage(driver, launch, situation, work)
    driver.launch_kernel(
        launch.function,
        launch.blocks,
        launch.threads,
        situation.stream,
        arguments,
        work.event,
    )


def submit_again(
    driver: Driver,
    copies: Copies,
    work: InFlight,
    *,
    stream: int,
    context: int,
    device: int,
    max_blocks: int | None,
) -> bool:
    """Do what `submit` did before, if the context and the stream are still as they were then.

    Returns
    -------
    bool
        Whether it was done; if not, nothing was.
    """
    launch = find_launch(copies, device, max_blocks)
    arguments = launch.arguments
    staged = launch.staged
    if staged is not None:
        if not staged.first.over:
            return False
        work.hold(staged)
        arguments = staged.arguments
    return driver.launch_kernel(
        launch.function,
        launch.blocks,
        launch.threads,
        stream,
        arguments,
        work.event,
        context,
    )


def find_launch(copies: Copies, device: int, max_blocks: int | None) -> Launch:
    """Return the launch of copies that ran in this mode."""
    launch: Launch = copies.prepared[_key(device, max_blocks, 0)]
    return launch


def _key(device: int, max_blocks: int | None, lane: int) -> tuple[object, ...]:
    return submit, device, max_blocks, lane > 0


def _prepare(driver: Driver, copies: Copies, situation: Situation) -> Launch:
    table = tabulate(driver, (copies.dst, copies.src), copies, copies.buffer)
    threads = _LINK_THREADS
    most_blocks = _LINK_BLOCKS if table.team == _WARP else _LINK_BLOCKS_FOR_SHORT_COPIES
    if situation.lane:
        most_blocks = max(most_blocks, _LINK_BLOCKS_BESIDE_ANOTHER)
    if copies.direction in (Direction.D2D, Direction.MIXED):
        threads = _DEVICE_THREADS
        most_blocks = _DEVICE_BLOCKS_BESIDE_ANOTHER if situation.lane else 2**31 - 1
    aligned = int(copies.alignment_bits % _ACCESS_BYTES == 0)
    function = load_kernel(driver, situation.device, "copy")
    return make_launch(driver, function, table, threads, most_blocks, aligned, situation)


class Table(NamedTuple):
    """Descriptors in pinned memory, and how teams of threads go through them.

    Attributes
    ----------
    buffer : PinnedBuffer
        The columns of addresses, one after the other, and that of lengths if they differ.
    rows : int
        How many there are.
    size : int
        Bytes of every copy, or 0.
    pieces : int
        How many teams share one copy.
    team : int
        Threads of a team.
    """

    buffer: PinnedBuffer
    rows: int
    size: int
    pieces: int
    team: int


def tabulate(
    driver: Driver, columns: Sequence[Addresses], copies: Copies, buffer: PinnedBuffer | None = None
) -> Table:
    """Make the table of a kernel.

    Parameters
    ----------
    driver : Driver
        Whose pinned memory to take.
    columns : sequence of ndarray of uint64
        Addresses.
    copies : Copies
        Their lengths count.
    buffer : PinnedBuffer, optional
        Where the columns of equally long copies stand already.
    """
    uniform = copies.uniform
    if uniform:
        pieces = -(-uniform // _PIECE_BYTES)
        if buffer is None:
            buffer = _fill_table(driver, columns)
        return Table(buffer, len(copies), uniform, pieces, _team_size(min(uniform, _PIECE_BYTES)))
    split = _split(columns, copies.sizes, _PIECE_BYTES)
    rows = split.shape[1]
    return Table(_fill_table(driver, list(split)), rows, 0, 1, _team_size(copies.nbytes // rows))


def make_launch(
    driver: Driver,
    function: int,
    table: Table,
    threads: int,
    most_blocks: int,
    access: int,
    situation: Situation,
) -> Launch:
    """Make the launch of a kernel over a table; `access` is the kernel's last argument."""
    buffer, rows, size, pieces, team = table
    if driver.simulated:
        threads, most_blocks = _SIMULATED_THREADS, _SIMULATED_BLOCKS
    if situation.max_blocks is not None:
        most_blocks = min(most_blocks, situation.max_blocks)
    return Launch(
        function,
        min(most_blocks, -(-rows * pieces * team // threads)),
        threads,
        (buffer.address, rows, size, pieces, _PIECE_BYTES, team, access),
        buffer,
        most_blocks,
    )


def _stage(driver: Driver, launch: Launch, situation: Situation, work: InFlight) -> tuple[int, ...]:
    """Return the launch's arguments with the descriptors in device memory.

    Between host and device the link is the bottleneck, and descriptors in pinned memory arrive
    in time. Within a device they would not.
    """
    staged = launch.staged
    if staged is None or not staged.first.over:
        # Until the first copy of the descriptors is known to be over, each run makes its own,
        # which costs little and needs no order between streams.
        count, size = launch.arguments[1:3]
        nbytes = 8 * count * (2 if size else 3)
        buffer = driver.pools.take_device_buffer(situation.context, nbytes)
        driver.memcpy_async(buffer.address, launch.table.address, nbytes, situation.stream)
        staged = launch.staged = _Staged(buffer, (buffer.address, *launch.arguments[1:]), work)
    work.hold(staged)
    return staged.arguments


def _fill_table(driver: Driver, columns: Sequence[Addresses]) -> PinnedBuffer:
    rows = len(columns[0])
    buffer = driver.pools.take_buffer(8 * rows * len(columns))
    for i, column in enumerate(columns):
        buffer.words[i * rows : (i + 1) * rows] = column
    return buffer


def _unreachable(driver: Driver, allocation: Allocation, device: int) -> str | None:
    """Return why a kernel on a device cannot use an allocation at its own address."""
    start, _, kind, owner, offset = allocation
    if kind is MemoryKind.PAGEABLE:
        return (
            f"the GPU cannot reach pageable memory at {start:#x} (pin it, with cuda.pinned_array "
            "for example)"
        )
    if kind is MemoryKind.DEVICE and owner != device:
        return f"device memory at {start:#x} belongs to device {owner}, the kernel runs on {device}"
    if kind is MemoryKind.MANAGED and not driver.device_attribute(
        abi.DEVICE_CONCURRENT_MANAGED_ACCESS, device
    ):
        return (
            f"device {device} shares managed memory at {start:#x} only while the host leaves it "
            "alone"
        )
    if offset != 0:
        return f"{kind} memory at {start:#x} has another address on the GPU"
    return None


def _team_size(mean_bytes: int) -> int:
    """Return how many threads share one copy: a power of two, at most a warp."""
    full = mean_bytes // _BYTES_A_THREAD
    short = min(_SHORT_COPY_TEAM, -(-mean_bytes // _ACCESS_BYTES))
    return min(_WARP, 1 << (max(full, short, 1).bit_length() - 1))


def _split(columns: Sequence[Addresses], sizes: Addresses, piece: int) -> npt.NDArray[np.uint64]:
    """Return columns and sizes, long copies in pieces, so that one team never copies alone."""
    table = np.stack([*columns, sizes])
    if int(sizes.max(initial=0)) <= piece:
        return table
    pieces = -(-sizes.astype(np.int64) // piece)
    rows = np.repeat(np.arange(len(pieces)), pieces)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = (within * piece).astype(np.uint64)
    split = table[:, rows]
    split[:-1] += offset
    split[-1] = np.minimum(split[-1] - offset, np.uint64(piece))
    return split
