"""The strided copies of the simulated driver: ``cuMemcpy3DAsync`` and the batch of them."""

# ruff: noqa: N802 -- functions have the names, and do the work, that NVIDIA documents

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.driver import abi
from numba_swap.driver.simulated.functions import Functions
from numba_swap.driver.simulated.memory import Allocation, Kind, Memory, SimulatedFailure

_MAX_PITCH = 2**31 - 1  # what the device attribute of that name is on every GPU
_ADDRESS_SPACE = 2**47
_ON_HOST = (None, Kind.PINNED, Kind.REGISTERED)

Bytes: TypeAlias = npt.NDArray[np.uint8]
Allocations: TypeAlias = tuple[Allocation, ...]


class Extent(NamedTuple):
    """What is copied: bytes of a row, rows of a plane, planes."""

    width: int
    height: int
    depth: int


class Side(NamedTuple):
    """Address of one side, bytes from row to row, rows from plane to plane; where the copy begins.

    `begin` is counted in bytes from the address.
    """

    address: int
    pitch: int
    height: int
    begin: int = 0


class _OutsideFailure(SimulatedFailure):
    """A box that is not all in memory that may be copied."""


class BoxCopies:
    """The strided copies of one submission; called when their turn comes.

    Parameters
    ----------
    memory, translated
        As for `memory.Copies`.
    """

    def __init__(self, memory: Memory, *, translated: bool = True) -> None:
        self._memory = memory
        self._translated = translated
        self._copies: list[tuple[Allocations, Bytes, Bytes]] = []
        self.pageable = False

    def add(
        self,
        extent: Extent,
        dst: Side,
        src: Side,
        allows: Callable[[Allocations, Allocations], bool] | None = None,
        read_now: bool = False,
    ) -> None:
        """Check one copy and note it; with `read_now` the source is read before the call ends."""
        to, target = self._find(extent, dst)
        origin, source = self._find(extent, src)
        if allows is not None and not allows(to, origin):
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        self.pageable |= not (to and origin)
        self._copies.append((to + origin, target, source.copy() if read_now else source))

    def _find(self, extent: Extent, side: Side) -> tuple[Allocations, Bytes]:
        """Return the allocations of one side, none for pageable memory, and a view of its rows."""
        address, pitch, height, begin = side
        if pitch < extent.width or height < extent.height:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        # To the end of the last row of the last plane: what lies behind it is not touched.
        nbytes = ((extent.depth - 1) * height + extent.height - 1) * pitch + extent.width
        if begin + nbytes > _ADDRESS_SPACE:
            raise _OutsideFailure(abi.ERROR_INVALID_VALUE)
        try:
            allocations = self._memory.find_span(address, begin + nbytes)
        except SimulatedFailure as failure:
            raise _OutsideFailure(failure.code) from None
        span = (ctypes.c_uint8 * nbytes).from_address(address + begin)
        memory = np.frombuffer(memoryview(span), np.uint8)
        strides = (height * pitch, pitch, 1)
        return allocations, np.ndarray(extent[::-1], np.uint8, memory, strides=strides)

    def __call__(self) -> None:
        """Do them, unless some of the memory is gone by now."""
        # No order is promised within a batch: the last one first, so that nobody relies on one.
        for touched, target, source in reversed(self._copies):
            if not all(a.alive and (self._translated or not a.device_offset) for a in touched):
                raise SimulatedFailure(abi.ERROR_ILLEGAL_ADDRESS)
            np.copyto(target, source)


class BoxFunctions(Functions):
    """All C functions of the simulated driver: those of `Functions`, and the strided copies."""

    def cuMemcpy3DAsync_v2(self, parameters: Any, stream: int | None) -> None:
        """Copy a box; at once, and with all that it depends on, if either side is pageable."""
        queue = self.timeline.stream(stream or 0, self._required_context())
        if not parameters:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        box = parameters[0]
        extent = Extent(box.width_in_bytes, box.height, box.depth)
        if box.src_lod or box.dst_lod or box.reserved0 or box.reserved1:
            raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
        if 0 in extent:
            return
        dst, src = _side_of(box, "dst", extent), _side_of(box, "src", extent)

        def allows(to: Allocations, origin: Allocations) -> bool:
            return _is_of(box.dst_memory_type, to) and _is_of(box.src_memory_type, origin)

        copies = BoxCopies(self.memory)
        copies.add(extent, dst, src, allows)
        operation = self.timeline.submit(queue, copies)
        if copies.pageable and queue.graph is None:
            self.timeline.run(operation)

    def cuMemcpy3DBatchAsync(
        self, count: int, operations: Any, fail_index: Any, flags: int, stream: int | None
    ) -> None:
        """Submit copies of boxes, as CUDA 12.8 does."""
        queue, fail = self._begin_batch(stream, fail_index)
        if queue.legacy or not (count and operations) or flags:
            raise fail(abi.SIZE_MAX)
        copies = BoxCopies(self.memory, translated=False)
        for index in range(count):
            operation = operations[index]
            try:
                _add_operation(copies, operation)
            except SimulatedFailure as failure:
                # What is wrong with an operation in itself is told, and nothing is submitted; of
                # memory that it is not all in, nothing is told; and a null pointer is found on
                # the way, when those before it are submitted (all of it seen with driver 580).
                null = not (operation.dst.address and operation.src.address)
                if null:
                    self.timeline.submit(queue, copies)
                told = not (null or isinstance(failure, _OutsideFailure))
                raise fail(index if told else abi.SIZE_MAX) from None
        self.timeline.submit(queue, copies)

    def cuMemcpy3DBatchAsync_v2(self, *arguments: Any) -> None:
        """Submit copies of boxes, as CUDA 13.0 does: without telling which one failed."""
        with_fail_index = [*arguments[:2], None, *arguments[2:]]
        self.cuMemcpy3DBatchAsync(*with_fail_index)


def _side_of(box: Any, side: str, extent: Extent) -> Side:
    """Return the destination ("dst") or source of a `CUDA_MEMCPY3D` as it is to be read."""

    def field(name: str) -> int:
        return getattr(box, f"{side}_{name}") or 0

    x, y, z = field("x_in_bytes"), field("y"), field("z")
    pitch, height = field("pitch"), field("height")
    if pitch > _MAX_PITCH:
        raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
    # Not specified, where they would not be used.
    if not height and extent.depth == 1 and not z:
        height = y + extent.height
    if not pitch and extent.height == extent.depth == 1 and not (y or z):
        pitch = x + extent.width
    if pitch < x + extent.width or height < y + extent.height:
        raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
    on_host = field("memory_type") == abi.MEMORYTYPE_HOST
    address = field("host" if on_host else "device")
    return Side(address, pitch, height, begin=(z * height + y) * pitch + x)


def _is_of(memory_type: int, allocations: Allocations) -> bool:
    """Whether memory may be called so; CUDA arrays are not simulated."""
    kind = allocations[0].kind if allocations else None
    if memory_type == abi.MEMORYTYPE_HOST:
        return True  # of device memory, too (driver 580)
    if memory_type == abi.MEMORYTYPE_DEVICE:
        return kind not in _ON_HOST
    return memory_type == abi.MEMORYTYPE_UNIFIED


def _add_operation(copies: BoxCopies, operation: Any) -> None:
    """Add one `CUDA_MEMCPY3D_BATCH_OP`."""
    extent = Extent(operation.extent.width, operation.extent.height, operation.extent.depth)
    if 0 in extent or not 1 <= operation.src_access_order <= 3:
        raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
    dst, src = (_operand_of(operand, extent) for operand in (operation.dst, operation.src))
    # Both early orders read at once: the earliest moment that ANY (3) allows.
    copies.add(extent, dst, src, read_now=operation.src_access_order > 1)


def _operand_of(operand: Any, extent: Extent) -> Side:
    """Return one side of an operation as it is to be read; CUDA arrays are not simulated."""
    if operand.type != abi.OPERAND_TYPE_POINTER:
        raise SimulatedFailure(abi.ERROR_INVALID_VALUE)
    # 0 stands for rows, or planes, one after the other.
    pitch, height = operand.row_length or extent.width, operand.layer_height or extent.height
    return Side(operand.address, pitch, height)
