"""Device memory through which incoming blocks go until what is in their slots has left."""

from __future__ import annotations

from collections.abc import Callable

from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.resources import DeviceBuffer
from numba_swap.dispatch.conditions import LaunchContext
from numba_swap.swap.running.staged import Staged


class _Stage:
    """Device memory for some pieces, and the copies planned for it."""

    def __init__(self, buffers: list[DeviceBuffer], nbytes: int, device: int) -> None:
        self._buffers = buffers
        self.memory = [
            Allocation(b.address, b.address + nbytes, MemoryKind.DEVICE, device, 0) for b in buffers
        ]
        self.copies: dict[int, Staged] = {}


class Lease:
    """A stage in use; it goes back when this is dropped, which ends its use.

    Attributes
    ----------
    memory : list of Allocation
        The memory of each piece under way.
    """

    def __init__(self, stage: _Stage, free_list: list[_Stage]) -> None:
        self._stage = stage
        self._free_list = free_list
        self.memory = stage.memory

    def copies(self, piece: int, make: Callable[[Allocation], Staged]) -> Staged:
        """Return the copies of a piece; what was planned for an earlier run serves again."""
        known = self._stage.copies
        if piece not in known:
            known[piece] = make(self.memory[piece % len(self.memory)])
        return known[piece]

    def __del__(self) -> None:
        self._free_list.append(self._stage)


class StagingBuffers:
    """The stages of one exchange: what served an earlier run that is over serves again."""

    def __init__(self) -> None:
        self._free_lists: dict[int, list[_Stage]] = {}  # of each context

    def lease(self, launch: LaunchContext, nbytes: int, pieces: int) -> Lease:
        """Return memory for pieces of so many bytes, two of them under way at a time."""
        free_list = self._free_lists.setdefault(launch.context.handle, [])
        try:
            return Lease(free_list.pop(), free_list)
        except IndexError:
            buffers = [
                launch.context.take_buffer(max(nbytes, 1))
                for _ in range(min(launch.device.tuning.stages, pieces))
            ]
            return Lease(_Stage(buffers, nbytes, launch.device.ordinal), free_list)
