"""Memory to copy between, cut into blocks, and random mappings over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.copies.copies import Direction
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
        """Return the device memory of a name."""
        if name not in self._device:
            self._device[name] = self.gpu.device_bytes(self.device_bytes)
        return self._device[name]

    def sides(self, direction: Direction, kind: str = "pinned") -> tuple[Any, Any, int]:
        """Return source, destination, and how many bytes of the source there is room for."""
        if direction is Direction.D2D:
            return self.device(), self.device("other device"), self.device_bytes
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

    def contiguous(self, direction: Direction, nbytes: int) -> Callable[[], None]:
        """Return what copies one contiguous range with one driver call, and waits: the ceiling."""
        source, destination, _ = self.sides(direction)
        src, dst = address_of(source), address_of(destination)
        copy, wait, stream = self.gpu.driver.memcpy_async, self.gpu.wait, self.gpu.stream

        def action() -> None:
            copy(dst, src, nbytes, stream)
            wait()

        return action
