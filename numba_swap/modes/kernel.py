"""All copies in one launch of a Numba kernel that reaches both sides from the GPU.

Everything that is particular to Numba-CUDA stands here and in the two source modules.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from numba_swap.copies import Copies, Direction
from numba_swap.dispatch import Situation
from numba_swap.driver import abi
from numba_swap.driver.api import Driver
from numba_swap.driver.pools import DeviceBuffer, PinnedBuffer
from numba_swap.in_flight import InFlight
from numba_swap.memory import Allocation, MemoryKind
from numba_swap.versions import DriverVersion

if TYPE_CHECKING:
    from numba_swap.driver.simulated import SimulatedLibrary

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
    try:
        _load(driver, situation.device)
    except Exception as error:  # whatever a compiler or a loader may raise
        return f"Numba could not compile or load the kernel ({type(error).__name__}: {error})"
    return None


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
    pieces, count, uniform = 1, len(copies), copies.uniform
    table = copies.buffer
    if uniform:
        mean = uniform
        if uniform > _PIECE_BYTES:
            pieces = -(-uniform // _PIECE_BYTES)
            mean = _PIECE_BYTES
        if table is None:
            table = _fill_table(driver, np.stack([copies.dst, copies.src]))
    else:
        columns = _split(copies, _PIECE_BYTES)
        count = columns.shape[1]
        mean = copies.nbytes // count
        table = _fill_table(driver, columns)
    team = _team_size(mean)
    threads = _LINK_THREADS
    most_blocks = _LINK_BLOCKS if team == _WARP else _LINK_BLOCKS_FOR_SHORT_COPIES
    if situation.lane:
        most_blocks = max(most_blocks, _LINK_BLOCKS_BESIDE_ANOTHER)
    if driver.simulated:
        threads, most_blocks = _SIMULATED_THREADS, _SIMULATED_BLOCKS
    elif copies.direction in (Direction.D2D, Direction.MIXED):
        threads = _DEVICE_THREADS
        most_blocks = _DEVICE_BLOCKS_BESIDE_ANOTHER if situation.lane else 2**31 - 1
    if situation.max_blocks is not None:
        most_blocks = min(most_blocks, situation.max_blocks)
    aligned = int(copies.alignment_bits % _ACCESS_BYTES == 0)
    return Launch(
        _load(driver, situation.device),
        min(most_blocks, -(-count * pieces * team // threads)),
        threads,
        (table.address, count, uniform, pieces, _PIECE_BYTES, team, aligned),
        table,
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


def _fill_table(driver: Driver, columns: npt.NDArray[np.uint64]) -> PinnedBuffer:
    buffer = driver.pools.take_buffer(columns.nbytes)
    buffer.words[: columns.size] = columns.ravel()
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


def _split(copies: Copies, piece: int) -> npt.NDArray[np.uint64]:
    """Return the columns with long copies in pieces, so that one team never copies alone."""
    columns = np.stack([copies.dst, copies.src, copies.sizes])
    if copies.largest <= piece:
        return columns
    pieces = -(-columns[2].astype(np.int64) // piece)
    rows = np.repeat(np.arange(len(pieces)), pieces)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = (within * piece).astype(np.uint64)
    split = columns[:, rows]
    split[:2] += offset
    split[2] = np.minimum(split[2] - offset, np.uint64(piece))
    return split


_load_lock = threading.Lock()


def _load(driver: Driver, device: int) -> int:
    """Compile and load the kernel for a device, once; return the driver's handle of it."""
    if device not in driver.kernels:
        with _load_lock, driver.relaxed_capture():
            if device not in driver.kernels:
                driver.kernels[device] = (
                    _register(cast("SimulatedLibrary", driver.library))
                    if driver.simulated
                    else _compile(device)
                )
    return driver.kernels[device]


def _compile(device: int) -> int:
    """Compile for a GPU with Numba, and return the driver's handle of the function."""
    from numba import cuda

    from numba_swap.modes import kernel_memory, kernel_source

    if kernel_memory.simulator_active:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set, so Numba simulates kernels here")
    with cuda.gpus[device]:
        signature, source = kernel_source.KERNEL_SIGNATURE, kernel_source.copy_kernel
        try:
            dispatcher = cuda.jit(signature, cache=True)(source)
        except RuntimeError:  # neither the installation nor the home directory can be written
            dispatcher = cuda.jit(signature)(source)
        (kernel,) = dispatcher.overloads.values()
        function = kernel._codelibrary.get_cufunc()
    _keep.append((dispatcher, function))
    return int(function.handle)


_keep: list[Any] = []  # the loaded modules, which live as long as the process


# Numba's simulator runs one kernel at a time in a process; drivers that are simulated one after
# another may have work left at the same time.
_simulator_lock = threading.Lock()


def _register(library: SimulatedLibrary) -> int:
    """Hand the same source to a simulated driver, run by Numba's CUDA simulator."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    from numba_swap.driver.simulated.memory import SimulatedFailure
    from numba_swap.modes.kernel_source import python_kernel

    kernel = FakeCUDAKernel(python_kernel(library.memory.check_kernel_access), device=False)

    def run(blocks: int, threads: int, *arguments: int) -> None:
        try:
            with _simulator_lock:
                kernel[blocks, threads](*arguments)
        except SimulatedFailure:  # raised anew by Numba's simulator, with words for a code
            raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS) from None

    return library.register_kernel(run, parameters=7)
