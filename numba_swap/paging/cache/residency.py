"""Requests of a cache, one at a time: what is there, what moves, who waits for whom.

`BlockCache` says what all of this means to a user, and has the table of states.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import numpy as np

from numba_swap import native
from numba_swap.copies.inputs.mapping import Integers, read_integers
from numba_swap.device.devices import devices_of
from numba_swap.device.streams import stream_handle
from numba_swap.errors import (
    BadArgumentError,
    DriverCallError,
    NumbaSwapError,
)
from numba_swap.paging.cache.lease import Held, Lease
from numba_swap.paging.cache.memory import DeviceArray, DeviceMemory
from numba_swap.paging.cache.page_table import (
    FULL,
    HIT,
    MISS,
    NO_SCORE,
    PageTable,
    Slots,
)
from numba_swap.paging.cache.pool import Pool
from numba_swap.paging.cache.refusals import leased_error, lost_error, out_of_range, refused
from numba_swap.paging.cache.tickets import EventMarker, Tickets
from numba_swap.swap.running.transfer import Transfer

_NONE: Integers = np.zeros(0, np.int64)
_PREFETCH = "prefetch"


class Residency:
    """What is in a pool, and what is on its way.

    Parameters
    ----------
    pool : Pool
        The slots.
    table : PageTable
        Who is in them.

    Attributes
    ----------
    lock : RLock
        Held by one request at a time.
    lost : set of int
        Blocks whose newest bytes were lost.
    counts : list of int
        As `CacheStats` has them, in its order.
    waited_s : float
        Seconds that the host waited for the GPU.
    is_open : bool
        Whether there are slots.
    """

    def __init__(self, pool: Pool, table: PageTable) -> None:
        self.pool, self.table = pool, table
        self.lock = threading.RLock()
        self.lost: set[int] = set()
        self.counts = [0] * 7
        self.waited_s = 0.0
        self.is_open = True
        self._context = pool.context
        self._driver = pool.context.driver
        self._buffers = devices_of(self._driver).host_buffers
        self._tickets = Tickets()
        self._broken: DriverCallError | None = None
        self._own_stream = 0

    # -- leases -----------------------------------------------------------------------------

    def begin(self, lease: Lease) -> None:
        """Bring the blocks of a lease in, and keep them there."""
        handle = stream_handle(lease.stream)
        ids = read_integers(lease.ids, "ids", 1)
        mode, count = lease.mode, len(ids)
        writes = int(mode != "r")
        if writes and self.pool.readonly:
            raise BadArgumentError(f"host is read-only: mode={mode!r} cannot write to its blocks")
        with self.lock, self.pool.entered(handle):
            self.check_open()
            if self.lost:
                self._check_lost(ids, mode)
            nbytes = max(4 * count, 1)
            pinned = self._buffers.take(nbytes, self._context.device.ordinal)
            memory = self._context.take_buffer(nbytes)
            out: Slots = pinned.words.view(np.int32)[:count]
            misses = np.empty(count, np.int64)
            table, pages, fresh = self.table, native.pages, _NONE
            status = table.look(ids, out, misses, writes=writes, holds=1)
            counts = self.counts
            if status == MISS:
                lease.fetched = int(table.heads[pages.MISSES])
                fresh = self._bring(out, misses[: lease.fetched], handle, lease.score, mode)
                counts[1] += lease.fetched
            elif status != HIT:
                raise refused(status, ids, self.table)
            counts[0] += int(table.heads[pages.HITS])
            try:
                if status == HIT:
                    self._tickets.order(handle, int(table.heads[pages.WAIT]))
                if count:
                    self._driver.memcpy_async(memory.address, pinned.address, 4 * count, handle)
            except BaseException as error:
                self._note(error)
                self._release(handle, out, (pinned, memory), dirty=False)
                self.table.drop(fresh if mode == "w" else _NONE)
                raise
            alive = (pinned, memory, lease.stream, self.pool)
            lease.held = Held(handle, out, fresh, alive)
            lease.slots = DeviceArray(self._context, memory.address, (count,), np.int32, memory)

    def end(self, lease: Lease, *, failed: bool) -> None:
        """Let the blocks of a lease go when its stream has passed."""
        held, lease.held = lease.held, None
        if held is None:
            return
        with self.lock:
            if self._broken is not None:  # nothing runs any more
                self.table.release(held.out, self._tickets.draw(), dirty=False)
                return
            with self.pool.current():
                self._release(held.handle, held.out, held.alive, dirty=lease.mode != "r")
            if lease.mode == "w":
                if failed:
                    self.table.drop(held.fresh)
                elif self.lost:
                    self.lost.difference_update(read_integers(lease.ids, "ids", 1).tolist())

    def _release(self, handle: int, out: Slots, alive: tuple[object, ...], *, dirty: bool) -> None:
        ticket = self._tickets.draw()
        self.table.release(out, ticket, dirty=dirty)
        self._tickets.add(ticket, handle, EventMarker(self._context, handle), alive)

    # -- what moves -------------------------------------------------------------------------

    def prefetch(self, ids: Integers, score: Integers = NO_SCORE) -> int:
        """Bring blocks in, in a stream of its own; with a score, only where that does no harm."""
        with self.lock, self.pool.current():
            self.check_open()
            if self.lost:
                if len(score) and self.lost.intersection(ids.tolist()):
                    return 0  # the request itself will say so
                self._check_lost(ids, _PREFETCH)
            out, misses = np.empty(len(ids), np.int32), np.empty(len(ids), np.int64)
            status = self.table.look(ids, out, misses, writes=0, holds=0)
            if status == HIT or (status == FULL and len(score)):
                return 0
            if status != MISS:
                raise refused(status, ids, self.table)
            count = int(self.table.heads[native.pages.MISSES])
            fresh = self._bring(out, misses[:count], self._private_stream(), score, _PREFETCH)
            self.counts[2] += len(fresh)
            return len(fresh)

    def _bring(
        self, out: Slots, misses: Integers, stream: int, score: Integers, mode: str
    ) -> Integers:
        """Let blocks come in that are not there, and others leave; return the slots.

        A prefetch with a score chooses among all blocks, leased ones, too, and puts off what would
        come into the slots of those: so the same ones leave as without it.
        """
        table = self.table
        try:
            ahead = mode == _PREFETCH and len(score) > 0
            chosen = table.choose(len(misses), score, leased=ahead)
            if ahead:
                chosen = chosen[table.table[chosen, native.pages.LEASES] == 0]
            count = len(chosen)
            out_rows, in_rows, upto = table.leaving(misses[:count], chosen)
            if mode == "w":
                in_rows = in_rows[:0]
            ticket, transfer = self._tickets.draw(), None
            self._tickets.order(stream, upto)
            if len(out_rows) or len(in_rows):
                transfer = self._submit(out_rows, in_rows, chosen, stream, ticket)
        except BaseException:
            table.abort(misses)
            raise
        table.abort(misses[count:])
        moved = ticket if transfer is not None else 0
        writes, holds = int(mode in ("rw", "w")), int(mode != _PREFETCH)
        table.commit(misses[:count], chosen, out, moved, writes=writes, holds=holds)
        if transfer is not None:
            self._tickets.add(ticket, stream, transfer, None)
        counts, heads, pages = self.counts, table.heads, native.pages
        counts[3] += int(heads[pages.CLEAN_OUT])
        counts[4] += int(heads[pages.DIRTY_OUT])
        counts[5] += len(in_rows) * self.pool.block_bytes
        counts[6] += len(out_rows) * self.pool.block_bytes
        return chosen

    def _submit(
        self, out_rows: Integers, in_rows: Integers, chosen: Integers, stream: int, ticket: int
    ) -> Transfer:
        """Enqueue what moves.

        Raises
        ------
        BlocksLostError
            If a part may have been submitted, and dirty blocks were to leave.
        NumbaSwapError
            Otherwise. What was not submitted has changed nothing.
        """
        try:
            return self.pool.move(out_rows, in_rows, stream)
        except BaseException as error:
            self._note(error)
            if isinstance(error, NumbaSwapError) and (
                not isinstance(error, DriverCallError) or error.submitted == 0
            ):
                raise
            # Nobody knows what is in these slots, and in the blocks that were to leave.
            lost = out_rows[:, 1].tolist()
            self.table.saved[lost] = ticket
            self.table.table[chosen, native.pages.USED] = ticket
            self.table.drop(chosen)
            self._tickets.add(ticket, stream, EventMarker(self._context, stream), None)
            self.lost.update(lost)
            if lost:
                raise lost_error(lost) from error
            raise

    def flush(self) -> None:
        """Copy all dirty blocks back, and wait."""
        with self.lock, self.pool.current():
            self.check_open()
            pages, table = native.pages, self.table.table
            writing = np.flatnonzero(table[:, pages.LEASES] < 0)
            if len(writing):
                raise leased_error(self.table, writing[0], "flushed")
            slots = self.table.dirty_slots()
            if len(slots):
                self._flush(slots, table[slots, pages.BLOCK])
            # The host is to see also what left before.
            self._wait_until_settled()

    def _flush(self, slots: Integers, blocks: Integers) -> None:
        pages, table, stream = native.pages, self.table.table, self._private_stream()
        upto = int(max(table[slots, pages.USED].max(), table[slots, pages.WRITTEN].max()))
        rows = np.stack([slots, blocks], axis=1)
        ticket = self._tickets.draw()
        try:
            self._tickets.order(stream, upto)
            transfer = self.pool.move(rows, rows[:0], stream)
        except BaseException as error:
            self._note(error)
            # A part may be on its way: whatever follows for these blocks comes after it.
            self.table.saved[blocks] = ticket
            table[slots, pages.USED] = ticket
            self._tickets.add(ticket, stream, EventMarker(self._context, stream), None)
            raise
        self.table.cleaned(slots, ticket)
        self._tickets.add(ticket, stream, transfer, None)
        self.counts[6] += len(slots) * self.pool.block_bytes

    def _wait_until_settled(self) -> None:
        start = time.perf_counter()
        try:
            self._tickets.wait()
        except DriverCallError as error:
            self._note(error)
            raise
        finally:
            self.waited_s += time.perf_counter() - start

    def drop(self, ids: Integers, *, discard: bool) -> None:
        """Forget blocks."""
        with self.lock:
            self.check_open()
            pages, table = native.pages, self.table.table
            slots: Integers = np.unique(self.table.slot_of[ids]).astype(np.int64)
            slots = slots[slots >= 0]
            leased = slots[table[slots, pages.LEASES] != 0]
            if len(leased):
                raise leased_error(self.table, leased[0], "dropped")
            dirty = slots[table[slots, pages.DIRTY] != 0]
            if len(dirty) and not discard:
                raise BadArgumentError(
                    f"block {table[dirty[0], pages.BLOCK]} is dirty ({len(dirty)} are): flush "
                    "first, or drop with discard=True what was written to them"
                )
            self.table.drop(slots)
            self.lost.difference_update(ids.tolist())

    def close(self) -> None:
        """Flush, and free the slots."""
        with self.lock:
            if not self.is_open:
                return
            if self.table.in_use:
                slot = np.flatnonzero(self.table.table[:, native.pages.LEASES])[0]
                raise leased_error(self.table, slot, "left behind")
            try:
                if self._broken is None:
                    self.flush()
                elif self.lost:
                    raise lost_error(sorted(self.lost)) from self._broken
            finally:
                self.is_open = False
                if self._broken is None:
                    self.pool.free()

    def abandon(self) -> None:
        """Free the slots without a flush, when all that uses them is over."""
        self.is_open = False
        if self._broken is None:
            with contextlib.suppress(Exception), self.pool.current():  # in a finalizer
                self._tickets.wait()
                self.pool.free()

    def upload_table(self) -> DeviceArray:
        """Return the slot of every block, in device memory, as it is now."""
        with self.lock, self.pool.current():
            self.check_open()
            slot_of = self.table.slot_of
            pinned = self._buffers.take(slot_of.nbytes, self._context.device.ordinal)
            pinned.words.view(np.int32)[: len(slot_of)] = slot_of
            memory = DeviceMemory(self._context, slot_of.nbytes)
            stream = self._private_stream()
            self._driver.memcpy_async(memory.address, pinned.address, slot_of.nbytes, stream)
            ticket = self._tickets.draw()
            self._tickets.add(ticket, stream, EventMarker(self._context, stream), (pinned, memory))
            self._wait_until_settled()
            return DeviceArray(self._context, memory.address, slot_of.shape, np.int32, memory)

    # -- what is asked first ----------------------------------------------------------------

    def check_open(self) -> None:
        """Refuse to go on with a cache that is closed, or broken."""
        if not self.is_open:
            raise BadArgumentError("this cache is closed")
        if self._broken is not None:
            raise self._broken

    def read(self, ids: Any) -> Integers:
        """Read block ids that are to be in range.

        Raises
        ------
        BadPlanError, UnsupportedArrayError
            If they are not.
        """
        read = read_integers(ids, "ids", 1)
        outside = (read < 0) | (read >= self.pool.blocks)
        if outside.any():
            raise out_of_range(read, int(np.argmax(outside)), self.pool.blocks)
        return read

    def _private_stream(self) -> int:
        if not self._own_stream:
            (self._own_stream,) = self._context.private_streams(1, "cache")
        return self._own_stream

    def _check_lost(self, ids: Integers, mode: str) -> None:
        asked = sorted(self.lost.intersection(ids.tolist()))
        if asked and mode != "w":
            raise lost_error(asked)

    def _note(self, error: BaseException) -> None:
        """After a sticky error all that was not copied back is lost, and nothing goes on."""
        if isinstance(error, DriverCallError) and error.sticky and self._broken is None:
            self._broken = error
            dirty = self.table.dirty_slots()
            self.lost.update(self.table.table[dirty, native.pages.BLOCK].tolist())
