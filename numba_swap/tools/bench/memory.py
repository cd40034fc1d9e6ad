"""Memory to copy between, cut into blocks, and random mappings over it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.ends import Direction
from numba_swap.swap.boxes import plan_boxes
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.tools.bench.gpu import BenchGPU, Bytes, address_of

Mapping = npt.NDArray[np.int64]


def scatter(rng: np.random.Generator, count: int, *blocks: int) -> Mapping:
    """Return rows of random blocks of each side, none a neighbour of another: none are merged.

    Parameters
    ----------
    rng : Generator
        Where the randomness comes from.
    count : int
        How many rows.
    *blocks : int
        How many blocks there are of each side, at least twice as many.
    """
    columns = [2 * rng.permutation(number // 2)[:count] for number in blocks]
    return np.ascontiguousarray(np.stack(columns, axis=1).astype(np.int64))


class FieldView:
    """The first bytes of an array, on either side, as an n-D array of 4-byte elements.

    Parameters
    ----------
    array : array
        On host or device.
    shape : tuple of int
        Of the view.
    """

    def __init__(self, array: Any, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._array = array  # kept alive
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<u4",
            "data": (address_of(array), False),
            "version": 3,
        }


Box = tuple[int, int, int]
ITEM_BYTES = 4
# Rows of a plane and elements of a row of a field of at least so many bytes.
_FIELD_SIDES = (
    (4 << 30, (1024, 1024)),
    (64 << 20, (512, 1024)),
    (1 << 20, (16, 512)),
    (0, (4, 32)),
)


class BenchMemory:
    """Arrays of bytes of the host and the device, taken when they are first asked for.

    Parameters
    ----------
    gpu : BenchGPU
        Where.
    host_bytes, device_bytes : int
        Size of each array.
    seed : int
        Seed of the mappings.

    Attributes
    ----------
    gpu : BenchGPU
        Where.
    host_bytes, device_bytes : int
        Size of each array.
    """

    def __init__(self, gpu: BenchGPU, host_bytes: int, device_bytes: int, seed: int = 0) -> None:
        self.gpu = gpu
        self.host_bytes, self.device_bytes = host_bytes, device_bytes
        self._rng = np.random.default_rng(seed)
        self._host: dict[str, Bytes] = {}
        self._device: dict[str, Any] = {}

    def host(self, kind: str = "pinned") -> Bytes:
        """Return the host's memory of a kind; see `BenchGPU.host_bytes`."""
        if kind not in self._host:
            self._host[kind] = self.gpu.host_bytes(kind, self.host_bytes)
        return self._host[kind]

    def device(self, name: str = "device") -> Any:
        """Return the device memory of a name; that of "peer" is the other GPU's."""
        if name not in self._device:
            where = self.gpu.peer if name == "peer" else self.gpu.device
            self._device[name] = self.gpu.device_bytes(self.device_bytes, where)
        return self._device[name]

    def sides(self, direction: Direction, kind: str = "pinned") -> tuple[Any, Any, int]:
        """Return source, destination, and how many bytes of the source there is room for."""
        if direction is Direction.D2D:
            return self.device(), self.device("other device"), self.device_bytes
        if direction is Direction.P2P:
            return self.device("peer"), self.device(), self.device_bytes
        host, device = self.host(kind), self.device()
        nbytes = min(self.host_bytes, self.device_bytes)
        return (host, device, nbytes) if direction is Direction.H2D else (device, host, nbytes)

    def blocks(
        self, direction: Direction, block_bytes: int, kind: str = "pinned", most: int | None = None
    ) -> tuple[Any, Any]:
        """Return source and destination as new arrays of shape (blocks, block_bytes).

        Parameters
        ----------
        direction : Direction
            Between which sides.
        block_bytes : int
            Size of a block.
        kind : str
            Of the host's memory.
        most : int, optional
            Only the first so many bytes of both. Else the blocks of a destination on the device
            are scattered over all of its memory.
        """
        source, destination, nbytes = self.sides(direction, kind)
        whole = self.device_bytes if direction is Direction.H2D else nbytes
        as_blocks = self.gpu.as_blocks
        return (
            as_blocks(source, block_bytes, nbytes if most is None else most),
            as_blocks(destination, block_bytes, whole if most is None else most),
        )

    def mapping(self, source: Any, destination: Any, count: int) -> Mapping:
        """Return a random mapping of `count` rows without neighbouring blocks."""
        return scatter(self._rng, count, source.shape[0], destination.shape[0])

    def field(self, array: Any, nbytes: int) -> FieldView:
        """Return the first bytes of an array as a field of three axes, of 4-byte elements."""
        rows, columns = next(sides for least, sides in _FIELD_SIDES if nbytes >= least)
        planes = nbytes // (ITEM_BYTES * rows * columns)
        return FieldView(array, (planes, rows, columns))

    def plan_boxes(
        self, direction: Direction, shape: Box, count: int, aligned: bool | None
    ) -> CopyPlan:
        """Plan copies of random boxes between a field and the slots of a pool.

        Parameters
        ----------
        direction : Direction
            The field is the source, or, from device to host, the destination.
        shape : tuple of int
            Of a box, in 4-byte elements.
        count : int
            How many boxes, as far as they do not meet.
        aligned : bool or None
            Whether every row of the field begins at a multiple of 16 bytes, or none does; None for
            any origins.
        """
        field, pool, corners, slots = self.field_and_pool(direction, shape, count, aligned)
        if direction is Direction.D2H:
            return plan_boxes(pool, field, slots, corners, shape)
        return plan_boxes(field, pool, corners, slots, shape)

    def field_and_pool(
        self, direction: Direction, shape: Box, count: int, aligned: bool | None
    ) -> tuple[FieldView, FieldView, Mapping, Mapping]:
        """Return a field, a pool, and origins in both; see `plan_boxes`."""
        source, destination, nbytes = self.sides(direction)
        into_field = direction is Direction.D2H
        field = self.field(destination if into_field else source, nbytes)
        cell = (*shape[:2], (shape[2] + 7) // 4 * 4)
        cells = tuple(n // m for n, m in zip(field.shape, cell, strict=True))
        number = math.prod(cells)
        order = self._rng.choice(number, min(count, number), replace=False)
        corners = np.stack(np.unravel_index(order, cells), axis=1) * np.array(cell)
        if not aligned:
            least = 0 if aligned is None else 1
            corners[:, 2] += self._rng.integers(least, 4, len(corners))
        slots = np.zeros((len(corners), 4), dtype=np.int64)
        slots[:, 0] = self._rng.permutation(len(corners))
        pool = FieldView(source if into_field else destination, (len(corners), *shape))
        return field, pool, corners, slots

    def contiguous(self, direction: Direction, nbytes: int) -> Callable[[], None]:
        """Return what copies one contiguous range with one driver call, and waits: the ceiling."""
        source, destination, _ = self.sides(direction)
        src, dst = address_of(source), address_of(destination)
        copy, wait, stream = self.gpu.driver.memcpy_async, self.gpu.wait, self.gpu.stream

        def action() -> None:
            copy(dst, src, nbytes, stream)
            wait()

        return action
