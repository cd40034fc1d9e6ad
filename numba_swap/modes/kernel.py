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
from numba_swap.in_flight import InFlight
from numba_swap.memory import Allocation, MemoryKind
from numba_swap.versions import DriverVersion

if TYPE_CHECKING:
    from numba_swap.driver.simulated import SimulatedLibrary

# Numba-CUDA 0.30 speaks to the driver through cuda.bindings, which needs 12.0.
_SINCE = DriverVersion(12, 0)
_THREADS_PER_BLOCK = 512
_SIMULATED_THREADS_PER_BLOCK = 32
_WARP = 32
_ACCESS_BYTES = 16
# Host links are saturated by few blocks; device memory takes all that the GPU can hold.
_LINK_BLOCKS_PER_MULTIPROCESSOR = 1
_DEVICE_BLOCKS_PER_MULTIPROCESSOR = 8
# A copy longer than a piece is shared by several teams. Multiples of 16 keep the alignment.
_SMALLEST_PIECE_BYTES = 1 << 12
_LARGEST_PIECE_BYTES = 1 << 18


class _Loaded(NamedTuple):
    function: int
    multiprocessors: int
    threads_per_block: int


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
    if situation.driver_version < _SINCE:
        return (
            f"{situation.driver_words} is older than {_SINCE}, which Numba-CUDA needs to compile "
            "and load a kernel"
        )
    for allocation in copies.allocations:
        obstacle = _unreachable(driver, allocation, situation.device)
        if obstacle is not None:
            return obstacle
    return None


def submit(
    driver: Driver, copies: Copies, situation: Situation, context: int, work: InFlight
) -> None:
    """Enqueue the copies in their stream as one kernel launch.

    Raises
    ------
    DriverCallError
        If the driver refuses the launch; nothing was copied.
    """
    loaded = _load(driver, situation.device)
    on_device = copies.direction in (Direction.D2D, Direction.MIXED)
    most_blocks = loaded.multiprocessors * (
        _DEVICE_BLOCKS_PER_MULTIPROCESSOR if on_device else _LINK_BLOCKS_PER_MULTIPROCESSOR
    )
    team = _team_size(copies.nbytes // len(copies))
    teams_per_block = loaded.threads_per_block // team
    table = _split(copies, copies.nbytes // (4 * most_blocks * teams_per_block))
    count = table.shape[1]
    buffer = work.take_buffer(table.nbytes)
    buffer.words[: table.size] = table.ravel()
    blocks = min(most_blocks, -(-count // teams_per_block))
    driver.launch_kernel(
        loaded.function,
        blocks,
        loaded.threads_per_block,
        situation.stream,
        (buffer.address, count, team),
    )


def _unreachable(driver: Driver, allocation: Allocation, device: int) -> str | None:
    """Return why a kernel on a device cannot use an allocation at its own address."""
    kind = allocation.kind
    where = f"{kind} memory at {allocation.start:#x}"
    if kind is MemoryKind.PAGEABLE:
        return f"the GPU cannot reach {where}"
    if kind is MemoryKind.DEVICE and allocation.device != device:
        return f"{where} belongs to device {allocation.device}, the kernel runs on {device}"
    if kind is MemoryKind.MANAGED and not driver.device_attribute(
        abi.DEVICE_CONCURRENT_MANAGED_ACCESS, device
    ):
        return f"device {device} shares {where} only while the host leaves it alone"
    if allocation.device_offset != 0:
        return f"{where} has another address on the GPU"
    return None


def _team_size(mean_bytes: int) -> int:
    """Return how many threads share one copy: a power of two, at most a warp."""
    words = -(-mean_bytes // _ACCESS_BYTES)
    return int(min(_WARP, 1 << max(0, words - 1).bit_length()))


def _split(copies: Copies, piece_bytes: int) -> npt.NDArray[np.uint64]:
    """Return the columns with long copies in pieces, so that one team never copies alone."""
    columns = np.stack([copies.dst, copies.src, copies.size])
    piece = min(max(piece_bytes, _SMALLEST_PIECE_BYTES), _LARGEST_PIECE_BYTES)
    piece = -(-piece // _SMALLEST_PIECE_BYTES) * _SMALLEST_PIECE_BYTES
    if copies.largest <= piece:
        return columns
    pieces = (-(-columns[2].astype(np.int64) // piece)).astype(np.int64)
    rows = np.repeat(np.arange(len(pieces)), pieces)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    offset = (within * piece).astype(np.uint64)
    split = columns[:, rows]
    split[:2] += offset
    split[2] = np.minimum(split[2] - offset, np.uint64(piece))
    return split


_load_lock = threading.Lock()


def _load(driver: Driver, device: int) -> _Loaded:
    """Compile and load the kernel for a device, once."""
    if device not in driver.kernels:
        with _load_lock, driver.relaxed_capture():
            if device not in driver.kernels:
                driver.kernels[device] = _Loaded(
                    _register(cast("SimulatedLibrary", driver.library))
                    if driver.simulated
                    else _compile(device),
                    driver.device_attribute(abi.DEVICE_MULTIPROCESSOR_COUNT, device),
                    _SIMULATED_THREADS_PER_BLOCK if driver.simulated else _THREADS_PER_BLOCK,
                )
    return cast("_Loaded", driver.kernels[device])


def _compile(device: int) -> int:
    """Compile for a GPU with Numba, and return the driver's handle of the function."""
    from numba import cuda

    from numba_swap.modes import kernel_memory, kernel_source

    if kernel_memory.simulator_active:
        raise RuntimeError("NUMBA_ENABLE_CUDASIM is set, so Numba simulates kernels here")
    with cuda.gpus[device]:
        jit = cuda.jit(kernel_source.KERNEL_SIGNATURE, cache=True)
        dispatcher = jit(kernel_source.copy_kernel)
        (kernel,) = dispatcher.overloads.values()
        function = kernel._codelibrary.get_cufunc()
    _keep.append((dispatcher, function))
    return int(function.handle)


_keep: list[Any] = []  # the loaded modules, which live as long as the process


def _register(library: SimulatedLibrary) -> int:
    """Hand the same source to a simulated driver, run by Numba's CUDA simulator."""
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    from numba_swap.modes.kernel_source import python_kernel

    kernel = FakeCUDAKernel(python_kernel(library.memory.check_kernel_access), device=False)

    def run(blocks: int, threads: int, *arguments: int) -> None:
        kernel[blocks, threads](*arguments)

    return library.register_kernel(run, parameters=3)
