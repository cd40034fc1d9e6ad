"""Blocks of a cache while a program uses them."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Protocol

from numba_swap.copies.inputs.mapping import Integers
from numba_swap.errors import BadArgumentError, brief
from numba_swap.paging.cache.future import Future
from numba_swap.paging.cache.memory import DeviceArray
from numba_swap.paging.cache.page_table import NO_SCORE, Slots

LeaseMode = Literal["r", "rw", "w"]
MODES = ("r", "rw", "w")


class Keeper(Protocol):
    """What begins and ends leases: `Residency`."""

    def begin(self, lease: Lease) -> None:
        """Bring the blocks of a lease in, and keep them there."""

    def end(self, lease: Lease, *, failed: bool) -> None:
        """Let the blocks of a lease go when its stream has passed."""

    def prefetch(self, ids: Integers, score: Integers) -> int:
        """Bring blocks in that are wanted next."""


class Lease:
    """Blocks that stay in the cache until the ``with`` block ends; see `BlockCache`.

    Attributes
    ----------
    ids : array_like of int
        The blocks.
    mode : {"r", "rw", "w"}
        What they are used for.
    stream : stream, int or None
        Where they are used.
    slots : DeviceArray of int32, shape (n,)
        The slot of each of `ids`, on the device, for kernels in `stream` within the block.
    fetched : int
        How many blocks had to come in.
    """

    def __init__(self, cache: Keeper, ids: Any, mode: LeaseMode, stream: Any) -> None:
        if mode not in MODES:
            raise BadArgumentError(
                f"mode={brief(mode)} is none of 'r' (read), 'rw' (read and write) and 'w' (write "
                "whole blocks)"
            )
        self.ids = ids
        self.mode = mode
        self.stream = stream
        self.slots: DeviceArray | None = None
        self.fetched = 0
        self._cache = cache
        # For the cache: when each block is wanted next, if that is known; then what it keeps.
        self.score: Integers = NO_SCORE
        self.held: Held | None = None

    @property
    def host_slots(self) -> Slots:
        """The slot of each of `ids`, in host memory: a copy."""
        if self.held is None:
            raise BadArgumentError("this lease is not open: use it within its `with` block")
        return self.held.out.copy()

    def __enter__(self) -> Lease:
        if self.held is not None or self.slots is not None:
            raise BadArgumentError("a lease is used once: ask the cache for another")
        self._cache.begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cache.end(self, failed=kind is not None)


class Held:
    """What a lease holds while it is open.

    Attributes
    ----------
    handle : int
        Of its stream.
    out : ndarray of int32
        The slots, in pinned memory.
    fresh : ndarray of int64
        Slots of blocks that were not there before.
    alive : tuple of object
        What must outlive the work in the stream.
    """

    __slots__ = ("alive", "fresh", "handle", "out")

    def __init__(self, handle: int, out: Slots, fresh: Integers, alive: tuple[object, ...]) -> None:
        self.handle = handle
        self.out = out
        self.fresh = fresh
        self.alive = alive


class ScheduledLease(Lease):
    """A lease of which it is known what comes after it; see `BlockCache.schedule`."""

    def __init__(
        self, cache: Keeper, future: Future, number: int, mode: LeaseMode, stream: Any
    ) -> None:
        super().__init__(cache, future.requests[number], mode, stream)
        self._future = future
        self._number = number
        self.score = future.score

    def __enter__(self) -> ScheduledLease:
        self._future.begin(self._number)
        super().__enter__()
        following = self._number + 1
        if following < len(self._future) and self.mode != "w":
            try:
                self._cache.prefetch(self._future.requests[following], self.score)
            except BaseException:
                self._cache.end(self, failed=True)
                raise
        return self


class Schedule:
    """Leases in a known order: iterate over it, and open each; see `BlockCache.schedule`."""

    def __init__(self, cache: Keeper, future: Future, mode: LeaseMode, stream: Any) -> None:
        self._cache = cache
        self._future = future
        self._mode = mode
        self._stream = stream

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self._future)

    def __iter__(self) -> Iterator[ScheduledLease]:
        for number in range(len(self._future)):
            yield ScheduledLease(self._cache, self._future, number, self._mode, self._stream)
