"""A cache of blocks in device memory, for arrays larger than the GPU.

What there is to know, where it lives, and who owns it:

=========================  =======================================  ============================
state                      lives in                                 owner
=========================  =======================================  ============================
the data                   ``host``, and ``pool`` for residents     the user; the cache
newest bytes of a block    ``pool`` if it is dirty, else ``host``   whoever leases it last
slot of a block            `PageTable.slot_of`                      `PageTable`, under the lock
block, dirty, leases,      `PageTable.table`, 64 bytes a slot       `PageTable`, under the lock
tickets, order of use
way back of a block        `PageTable.saved`, a ticket              `PageTable`, under the lock
uses not passed yet        `Tickets`: an event or `Transfer` each   `Tickets`, until passed
slots of an open lease     pinned, and copied to the device         the lease, then `Tickets`
copies in flight           `Transfer`                               the library
what is lost               `Residency.lost`                         `Residency`, until dropped
=========================  =======================================  ============================

Everything but the copies themselves happens on the host, in one request at a time; nothing here
waits for the GPU but `flush` and `close`. A slot is used again at once: its new use waits, on the
GPU, for the old one's ticket.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from numba_swap.dispatch.settings import Policy
from numba_swap.errors import CacheFullError
from numba_swap.paging.cache.future import Future
from numba_swap.paging.cache.lease import Lease, LeaseMode, Schedule
from numba_swap.paging.cache.memory import DeviceArray
from numba_swap.paging.cache.page_table import Choice, PageTable, Slots
from numba_swap.paging.cache.pool import Pool
from numba_swap.paging.cache.residency import Residency


class CacheStats(NamedTuple):
    """What a cache did so far.

    Attributes
    ----------
    hits, misses : int
        Blocks of leases that were there, and that were not; each once a lease.
    prefetched : int
        Blocks that `prefetch`, or a schedule, brought in before.
    clean_evictions, dirty_evictions : int
        Blocks that made room, without traffic and with.
    bytes_in, bytes_out : int
        Copied to the pool and back, flushes included.
    waited_s : float
        Seconds that the host waited for the GPU, in `flush` and `close`.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    clean_evictions: int = 0
    dirty_evictions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    waited_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """The share of blocks that did not have to be brought in, by a lease or before it."""
        wanted = self.hits + self.misses
        return 1.0 - (self.misses + self.prefetched) / wanted if wanted else 1.0


class BlockCache:
    """A cache in device memory of the blocks of a larger array.

    Parameters
    ----------
    host : array, or sequence of arrays
        The array, or layers of equally many blocks, in any memory; pinned is fastest. While the
        cache is open, other code must not write to blocks that are resident, nor read blocks that
        are dirty: `flush` and `drop` say when it may.
    slots : int, optional
        How many blocks there is room for; no more than there are blocks.
    bytes : int or str, optional
        Instead, how much device memory the pool takes: bytes, or a share of what is free ("60%").
    block_axis : int, optional
        The axis along which the blocks lie.
    evict : {"lru", "clock", "lfu"} or callable, optional
        Which blocks leave first: those used longest ago; about the same with less work; those used
        least often. Or a function that gets the ids of the blocks that may leave (ndarray of int64,
        the one used longest ago first) and how many must, and returns so many of them. ``"lfu"``
        and functions take time by the number of slots.
    device : int, optional
        The GPU; by default that of the calling thread's context, else the first one.
    policy, max_blocks
        How blocks are copied, as for `numba_swap.swap_blocks`.

    Attributes
    ----------
    pool : DeviceArray, or list of them
        The slots, as `host` has blocks: of the same shape but along `block_axis`. Numba converts it
        at every launch; ``numba.cuda.as_cuda_array(cache.pool)`` does so once.
    slots, blocks : int
        How many of each there are.
    block_bytes : int
        Bytes of a block, of all layers.

    Raises
    ------
    BadArgumentError
        Not exactly one of `slots` and `bytes`, or a value that means nothing.
    BadPlanError, UnsupportedArrayError
        An array that cannot be used, or layers that do not fit together.
    DriverCallError
        No memory for the pool.

    Notes
    -----
    **Order.** A lease's copies, and what follows in its stream, come after all earlier uses of the
    same slots and blocks in whatever stream; the host waits for nothing. Each request makes at
    most one exchange, blocks out and blocks in at once. Kernels must use a lease's slots in its
    stream, enqueued within its ``with`` block.

    **Leases.** As long as a lease is open its blocks stay; afterwards a block may leave, and its
    slot is refilled when the lease's stream has passed. Leases of several streams and threads may
    overlap. While a lease for writing is open, no other lease of its blocks may open, and none for
    writing of a block that is leased: `LeaseConflictError`. Blocks leased for reading are clean
    afterwards, and leave without traffic. A lease in mode ``"w"`` fetches nothing: the program must
    write all of each block.

    **Exceptions.** After an exception within a lease the blocks count as written in mode ``"rw"``,
    for a kernel may have run; in mode ``"w"``, too, but those that were not there before are
    dropped, and the host keeps what it had.

    **Failures.** If the driver refuses a copy, and nothing was submitted, nothing has changed. If a
    part may have been, the slots concerned are empty afterwards: clean blocks are right on the
    host, and dirty ones that were to leave are lost. `BlocksLostError` names them, `lost` lists
    them, and leases refuse them until they are written anew in mode ``"w"``, or dropped, which
    takes what is on the host. All others go on. After a sticky error nothing goes on, and all dirty
    blocks are lost.

    **Graphs.** Streams that are being captured are refused: which blocks are where is decided when
    a lease begins, and would be frozen.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     table, stream = gpu.pinned_array((1000, 64), np.float32), gpu.stream()
    ...     table[:] = np.arange(1000)[:, None]
    ...     with ns.BlockCache(table, slots=16) as cache:
    ...         with cache.lease([7, 400, 7], "r", stream=stream) as lease:
    ...             slots = lease.slots.copy_to_host(stream.handle)
    ...             rows = cache.pool.copy_to_host(stream.handle)[slots]
    ...         rows[:, 0].tolist(), cache.stats.misses
    ([7.0, 400.0, 7.0], 2)
    """

    def __init__(
        self,
        host: Any,
        slots: int | None = None,
        *,
        bytes: int | str | None = None,
        block_axis: int = 0,
        evict: str | Choice = "lru",
        device: int | None = None,
        policy: Policy | str | None = None,
        max_blocks: int | None = None,
    ) -> None:
        pool = Pool(host, slots, bytes, block_axis, device, policy, max_blocks)
        self.pool = pool.arrays
        self.slots, self.blocks = pool.slots, pool.blocks
        self.block_bytes = pool.block_bytes
        self._table = PageTable(self.blocks, self.slots, evict)
        self._residency = Residency(pool, self._table)
        self._uploaded: tuple[Slots, DeviceArray] | None = None

    # -- what there is ----------------------------------------------------------------------

    @property
    def stats(self) -> CacheStats:
        """What it did so far."""
        with self._residency.lock:
            counts = CacheStats(*self._residency.counts[:7])
            return counts._replace(waited_s=self._residency.waited_s)

    @property
    def lost(self) -> tuple[int, ...]:
        """The blocks whose newest bytes were lost in a failure, in order."""
        return tuple(sorted(self._residency.lost))

    @property
    def slot_of(self) -> DeviceArray:
        """The slot of every block, -1 for those that are absent, as int32 on the device.

        It is copied there when it is asked for, if it has changed, and waited for. What it says is
        right for blocks that are leased; others may leave at the next request.
        """
        with self._residency.lock:
            self._residency.check_open()
            known = self._uploaded
            if known is None or not np.array_equal(known[0], self._table.slot_of):
                array = self._residency.upload_table()
                known = self._uploaded = self._table.slot_of.copy(), array
            return known[1]

    def resident(self, ids: Any) -> npt.NDArray[np.bool_]:
        """Say of each block whether it is in the cache.

        Parameters
        ----------
        ids : array_like of int, shape (n,)
            The blocks.
        """
        with self._residency.lock:
            return np.asarray(self._table.slot_of[self._residency.read(ids)] >= 0)

    # -- requests ---------------------------------------------------------------------------

    def lease(self, ids: Any, mode: LeaseMode = "r", stream: Any = None) -> Lease:
        """Let blocks be in the cache as long as a ``with`` block lasts.

        Parameters
        ----------
        ids : array_like of int, shape (n,)
            The blocks, in host memory. One may stand there several times.
        mode : {"r", "rw", "w"}, optional
            Read; read and write; or write whole blocks, which are not fetched.
        stream : stream, int or None, optional
            Where the blocks are used, as for `numba_swap.swap_blocks`.

        Returns
        -------
        Lease
            To be opened in a ``with`` statement, which raises the errors below.

        Raises
        ------
        BadArgumentError
            Another mode, a cache that is closed, or a stream of another context.
        BadPlanError, UnsupportedArrayError
            Blocks that do not exist, or are no integers.
        CacheFullError
            More blocks than can be there at once; nothing was changed.
        LeaseConflictError
            A block that is leased for writing, or is to be written and leased already.
        BlocksLostError
            A block that was lost; or, of a failure now, the blocks that are lost.
        CapturedTransferError
            A stream that is being captured into a graph.
        DriverCallError
            If the driver refuses a copy.
        """
        return Lease(self._residency, ids, mode, stream)

    def prefetch(self, ids: Any) -> int:
        """Begin to bring blocks in that will be leased, in a stream of the cache's own.

        Blocks in open leases stay. Blocks that were prefetched and not leased yet may leave.

        Parameters
        ----------
        ids : array_like of int, shape (n,)
            The blocks.

        Returns
        -------
        int
            How many blocks had to come in.

        Raises
        ------
        NumbaSwapError
            As for `lease`.
        """
        return self._residency.prefetch(self._residency.read(ids))

    def schedule(
        self, requests: Iterable[Any], mode: LeaseMode = "r", stream: Any = None
    ) -> Schedule:
        """Plan a loop whose requests are known: the block wanted last leaves, the next ones come.

        While one request is leased, those blocks of the next one come in for which there is room
        without harm to later ones. As many blocks are fetched as anybody could fetch at least.

        Parameters
        ----------
        requests : iterable of array_like of int
            The blocks of each request, in order.
        mode, stream
            As for `lease`, for all of them.

        Returns
        -------
        Schedule
            Iterate over it, and open each lease: ``for lease in cache.schedule(...): with lease:``.

        Raises
        ------
        NumbaSwapError
            As for `lease`. If a request is larger than the cache, that is said here.

        Notes
        -----
        Leases beside the schedule, or requests that are left out, are served, but the choice may
        then not be the best one.
        """
        future = Future(requests, self.blocks)
        for ids in future.requests:
            needed = len(np.unique(ids))
            if needed > self.slots:
                raise CacheFullError(needed, self.slots, 0)
        return Schedule(self._residency, future, mode, stream)

    # -- the way back -----------------------------------------------------------------------

    def flush(self) -> None:
        """Copy all dirty blocks back, and wait: the host array is right then.

        Raises
        ------
        LeaseConflictError
            If a lease for writing is open.
        DriverCallError
            If the driver refuses. The blocks are still there, and dirty.
        """
        self._residency.flush()

    def drop(self, ids: Any, *, discard: bool = False) -> None:
        """Forget blocks: the next lease fetches them anew. Call it after writing to the host array.

        Parameters
        ----------
        ids : array_like of int, shape (n,)
            The blocks.
        discard : bool, optional
            Also forget what was written to them on the device.

        Raises
        ------
        LeaseConflictError
            If one of them is leased.
        BadArgumentError
            If one of them is dirty, unless that is to be discarded. Nothing was dropped.
        """
        self._residency.drop(self._residency.read(ids), discard=discard)

    def close(self) -> None:
        """Flush, and free the pool. A cache that is closed already stays so.

        Raises
        ------
        LeaseConflictError
            If a lease is open: the cache stays open, too.
        DriverCallError, BlocksLostError
            If dirty blocks cannot be copied back: it is closed, and their changes are lost.
        """
        self._residency.close()

    def __enter__(self) -> BlockCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it, after an exception, too: what was written before it is copied back."""
        self.close()

    def __del__(self) -> None:
        residency = self.__dict__.get("_residency")  # none, if it could not be made
        if residency is None or not residency.is_open:
            return
        dirty = len(self._table.dirty_slots())
        residency.abandon()
        if dirty:
            warnings.warn(
                f"a BlockCache was dropped with {dirty} dirty blocks, which are lost: close it, or "
                "use it in a `with` statement",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = f"{self._table.in_use} leased" if self._residency.is_open else "closed"
        return f"<BlockCache: {self.slots} slots for {self.blocks} blocks, {state}>"
