"""Copies in one launch: what that needs, and how it is shaped."""

from __future__ import annotations

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction, Ends
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.device.in_flight import InFlight
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.peers import why_no_access
from numba_swap.device.resources import DeviceBuffer
from numba_swap.dispatch.conditions import Capabilities, Conditions, LaunchContext
from numba_swap.driver.version import DriverVersion
from numba_swap.modes.kernel.boxes import prepare_boxes, why_no_box_table
from numba_swap.modes.kernel.loading import load_kernel, why_not_loaded
from numba_swap.modes.kernel.table import (
    WARP,
    DeviceTable,
    Launch,
    build_table,
    make_launch,
    why_no_table,
)

# Numba-CUDA 0.30 speaks to the driver through cuda.bindings, which needs 12.0.
SINCE = DriverVersion(12, 0)


def why_not(ends: Ends, conditions: Conditions) -> str | None:
    """Return why this mode cannot run the copies; None if it can, once the kernel is loaded."""
    capabilities = conditions.capabilities
    if capabilities.version < SINCE:
        return (
            f"{capabilities.driver_words} is older than {SINCE}, which Numba-CUDA needs to compile "
            "and load a kernel"
        )
    for allocation in ends.allocations:
        obstacle = _unreachable(allocation, capabilities)
        if obstacle is not None:
            return obstacle
    return None


def load(device: Device, ends: Ends) -> str | None:
    """Compile and load the kernel if it was not before; return why that cannot be, None if it is.

    So is access to the memory of other GPUs, if that takes part. A failure is a reason, not an
    error.
    """
    obstacle = why_not_loaded(device, "box" if ends.strided else "copy")
    for other in ends.devices:
        if other != device.ordinal and obstacle is None:
            obstacle = why_no_access(device, devices_of(device.driver)[other])
    return obstacle


def room(copies: Copies, device: Device) -> str | None:
    """Return why there is no memory for the kernel's table; None if there is."""
    if copies.boxes is not None:
        return why_no_box_table(device, copies, copies.boxes)
    return why_no_table(device, 2, copies, copies.table)


def reserve(copies: Copies, launch: LaunchContext) -> DeviceBuffer | None:
    """Write the table of descriptors, and take memory for its copy on the device if need be."""
    kernel = _launch_of(copies, launch)
    if not _is_uploaded(copies, launch) or _served(kernel) is not None:
        return None
    return launch.context.take_buffer(kernel.table_bytes)


def submit(copies: Copies, launch: LaunchContext, work: InFlight) -> None:
    """Enqueue the copies in their stream as one kernel launch.

    Raises
    ------
    DriverCallError
        If the driver refuses the launch; nothing was copied.
    """
    kernel = _launch_of(copies, launch)
    arguments = kernel.arguments
    if _is_uploaded(copies, launch):
        arguments = _upload_table(kernel, launch, work)
    launch.driver.launch_kernel(
        kernel.function, kernel.blocks, kernel.threads, launch.stream, arguments
    )


def find_launch(copies: Copies, device: Device, max_blocks: int | None) -> Launch:
    """Return the launch of copies that ran in this mode, as the only part of a call."""
    kernel: Launch = copies.memo[_key(device, max_blocks, beside=False)]
    return kernel


def _key(device: Device, max_blocks: int | None, *, beside: bool) -> tuple[object, ...]:
    return Launch, device, max_blocks, beside


def _launch_of(copies: Copies, launch: LaunchContext) -> Launch:
    """Return the launch that is kept with the copies; made if need be."""
    conditions = launch.conditions
    key = _key(launch.device, conditions.max_blocks, beside=conditions.beside)
    kernel: Launch | None = copies.memo.get(key)
    if kernel is None:
        # Two threads may get here at once: both must use, and hold, the one that is kept.
        kernel = copies.memo.setdefault(key, _prepare(copies, launch))
    return kernel


def _prepare(copies: Copies, launch: LaunchContext) -> Launch:
    conditions, device = launch.conditions, launch.device
    if copies.boxes is not None:
        return prepare_boxes(copies, copies.boxes, launch)
    tuning = device.tuning
    table = build_table(device, (copies.dst, copies.src), copies, copies.table)
    threads = tuning.link_threads
    most_blocks = tuning.link_blocks if table.tile == WARP else tuning.link_blocks_short
    if conditions.beside:
        most_blocks = max(most_blocks, tuning.link_blocks_beside)
    if copies.direction in (Direction.D2D, Direction.MIXED):
        threads = tuning.device_threads
        most_blocks = tuning.device_blocks_beside if conditions.beside else tuning.device_blocks
    elif copies.direction is Direction.P2P:
        threads = tuning.peer_threads
        most_blocks = tuning.peer_blocks_beside if conditions.beside else tuning.peer_blocks
    aligned = int(copies.alignment_bits % 16 == 0)
    function = load_kernel(device, "copy")
    return make_launch(
        device, function, table, threads, most_blocks, aligned, conditions.max_blocks
    )


def _is_uploaded(copies: Copies, launch: LaunchContext) -> bool:
    """Whether the kernel reads its descriptors from device memory (see `_upload_table`)."""
    within = copies.direction in (Direction.D2D, Direction.P2P)
    return within and not launch.conditions.capturing


def _served(kernel: Launch) -> DeviceTable | None:
    """Return the copy of the descriptors on the device; None if it is not there for certain."""
    uploaded = kernel.uploaded
    return uploaded if uploaded is not None and uploaded.first.over else None


def _upload_table(kernel: Launch, launch: LaunchContext, work: InFlight) -> tuple[int, ...]:
    """Return the launch's arguments with the descriptors in device memory.

    Between host and device the link is the bottleneck, and descriptors in pinned memory arrive
    in time. Within a device, or between two, they would not.
    """
    uploaded = _served(kernel)
    if uploaded is None:
        # Until the first copy of the descriptors is known to be over, each run makes its own,
        # which costs little and needs no order between streams.
        address, nbytes = kernel.arguments[0], kernel.table_bytes
        buffer = launch.context.take_buffer(nbytes)
        launch.driver.memcpy_async(buffer.address, address, nbytes, launch.stream)
        arguments = kernel.moved(buffer.address - address)
        uploaded = kernel.uploaded = DeviceTable(buffer, arguments, work)
    work.hold(uploaded)
    return uploaded.arguments


def _unreachable(allocation: Allocation, capabilities: Capabilities) -> str | None:
    """Return why a kernel on a device cannot use an allocation at its own address."""
    start, _, kind, owner, offset = allocation
    device = capabilities.device
    if kind is MemoryKind.PAGEABLE:
        if capabilities.pageable_access:
            return None
        return (
            f"the GPU cannot reach pageable memory at {start:#x} (pin it, with cuda.pinned_array "
            "for example)"
        )
    if kind is MemoryKind.DEVICE and owner != device and owner not in capabilities.peers:
        return (
            f"device memory at {start:#x} belongs to device {owner}, which device {device}, where "
            f"the kernel runs, cannot reach (no peer access)"
        )
    if kind is MemoryKind.MANAGED and not capabilities.concurrent_managed:
        return (
            f"device {device} shares managed memory at {start:#x} only while the host leaves it "
            "alone"
        )
    if offset != 0:
        return f"{kind} memory at {start:#x} has another address on the GPU"
    return None
