"""Which block is in which slot, who may leave, and what is dirty: pure, without a GPU.

The arrays are read and written by compiled functions (`native.pages`), which say what is in them.

>>> table = PageTable(blocks=100, slots=4)
>>> [table.request([7, 3, 7]), table.request([3, 5]), table.request([5, 6, 8])]
[2, 1, 2]
>>> sorted(table.residents().tolist())
[3, 5, 6, 8]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap import native
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.errors import BadArgumentError, brief

Slots = npt.NDArray[np.int32]
# Gets the blocks that may leave, the one used longest ago first, and how many must; returns those.
Choice = Callable[[Integers, int], Any]

POLICIES = ("lru", "clock", "lfu")
# As in `native.pages`, which is not imported before it is needed.
HIT, MISS, OUT_OF_RANGE, CONFLICT, FULL = range(5)
NO_SCORE: Integers = np.zeros(0, np.int64)


class PageTable:
    """The slots of a cache and the blocks in them.

    Parameters
    ----------
    blocks, slots : int
        How many there are.
    evict : {"lru", "clock", "lfu"} or callable, optional
        Who leaves first: the block used longest ago; the first one that was not used since a hand
        came by; the one used least often. Or a function that gets the blocks that may leave, the
        one used longest ago first, and how many must, and returns so many of them.

    Attributes
    ----------
    slot_of : ndarray of int32, shape (blocks,)
        The slot of each block, -1 if it is not there.
    table, heads, saved : ndarray of int64
        As `native.pages` says; ``saved`` has, of each block, the ticket of its last way back.
    policy : int
        Which one it is there.

    Raises
    ------
    BadArgumentError
        Another `evict`.
    """

    def __init__(self, blocks: int, slots: int, evict: str | Choice = "lru") -> None:
        if not (callable(evict) or evict in POLICIES):
            raise BadArgumentError(
                f"evict={brief(evict)} is none of {', '.join(map(repr, POLICIES))} and no function"
            )
        self._choice = evict if callable(evict) else None
        self.policy = 0 if callable(evict) else POLICIES.index(evict)
        pages = native.pages
        self.slot_of: Slots = np.full(blocks, -1, np.int32)
        self.saved: Integers = np.zeros(blocks, np.int64)
        self.table: Integers = np.zeros((slots, pages.FIELDS), np.int64)
        self.table[:, pages.BLOCK] = -1
        self.table[:, pages.NEXT] = np.arange(1, slots + 1)
        self.table[-1, pages.NEXT] = -1
        self.heads: Integers = np.zeros(pages.HEADS, np.int64)
        self.heads[[pages.HEAD, pages.TAIL]] = -1
        self.heads[pages.FREE_COUNT] = slots

    def __len__(self) -> int:
        """Return the number of slots."""
        return len(self.table)

    @property
    def in_use(self) -> int:
        """How many slots are leased."""
        return int(self.heads[native.pages.IN_USE])

    def residents(self) -> Integers:
        """Return the blocks that are there."""
        return np.flatnonzero(self.slot_of >= 0)

    def dirty_slots(self) -> Integers:
        """Return the slots whose blocks were written since they were fetched."""
        pages = native.pages
        table = self.table
        return np.flatnonzero((table[:, pages.DIRTY] != 0) & (table[:, pages.BLOCK] >= 0))

    def look(self, ids: Integers, out: Slots, misses: Integers, *, writes: int, holds: int) -> int:
        """Look up the blocks of a request; see `native.pages.look`."""
        status: int = native.pages.look(
            ids, self.slot_of, self.table, self.heads, self.saved,
            self.policy, writes, holds, out, misses,
        )  # fmt: skip
        return status

    def choose(self, count: int, score: Integers = NO_SCORE, *, leased: bool = False) -> Integers:
        """Return slots for blocks that come in; see `native.victims.choose`.

        Raises
        ------
        BadArgumentError
            If the user's function chooses other blocks than it may.
        """
        chosen = np.empty(count, np.int64)
        free = int(self.heads[native.pages.FREE_COUNT])
        if self._choice is not None and not len(score) and free < count:
            native.victims.choose(
                self.table, self.heads, self.policy, NO_SCORE, free, chosen[:free], 0
            )
            chosen[free:] = self._ask(self._choice, count - free)
        else:
            native.victims.choose(
                self.table, self.heads, self.policy, score, count, chosen, int(leased)
            )
        return chosen

    def _ask(self, choice: Choice, count: int) -> Integers:
        pages = native.pages
        slots = np.empty(len(self), np.int64)
        slots = slots[: native.victims.resting(self.table, self.heads, slots)]
        blocks = self.table[slots, pages.BLOCK]
        answer = np.asarray(choice(blocks.copy(), count))
        if (
            answer.shape != (count,)
            or answer.dtype.kind not in "iu"
            or len(np.unique(answer)) < count
            or not np.isin(answer, blocks).all()
        ):
            raise BadArgumentError(
                f"evict chose {brief(answer)}; it must choose {count} different ones of the "
                f"{len(blocks)} blocks that it was given"
            )
        found: Integers = self.slot_of[answer].astype(np.int64)
        return found

    def leaving(self, misses: Integers, chosen: Integers) -> tuple[Integers, Integers, int]:
        """Say what moves: rows [slot, block] of dirty blocks, rows [block, slot] of misses, wait.

        The last is the ticket up to which all uses of these must be over first.
        """
        count = len(chosen)
        moves = np.empty((2 * count, 2), np.int64)
        dirty = native.pages.leaving(self.table, self.heads, misses, chosen, count, moves)
        return moves[:dirty], moves[dirty : dirty + count], int(self.heads[native.pages.WAIT])

    def commit(
        self,
        misses: Integers,
        chosen: Integers,
        out: Slots,
        ticket: int,
        *,
        writes: int,
        holds: int,
    ) -> None:
        """Let blocks be in the slots that were chosen for them; see `native.pages.commit`."""
        native.pages.commit(
            misses, chosen, len(chosen), self.slot_of, self.table, self.heads, self.saved,
            ticket, self.policy, writes, holds, out,
        )  # fmt: skip

    def abort(self, misses: Integers) -> None:
        """Forget that blocks were looked for."""
        native.pages.abort(misses, len(misses), self.slot_of)

    def release(self, slots: Slots, ticket: int, *, dirty: bool) -> None:
        """End a lease of slots."""
        native.pages.release(slots, self.table, self.heads, ticket, int(dirty))

    def drop(self, slots: Integers) -> None:
        """Take the blocks out of slots, which are free then."""
        native.pages.drop(slots, self.slot_of, self.table, self.heads, self.policy)

    def cleaned(self, slots: Integers, ticket: int) -> None:
        """Note that the blocks in slots go back to the host."""
        native.pages.cleaned(slots, self.table, self.saved, ticket)

    def request(self, ids: Any, score: Integers = NO_SCORE) -> int:
        """Let blocks be there, as if they were leased for a moment; return how many were not.

        Raises
        ------
        ValueError
            If they do not fit, or one of them does not exist.
        """
        ids = np.asarray(ids, np.int64)
        out, misses = np.empty(len(ids), np.int32), np.empty(len(ids), np.int64)
        status = self.look(ids, out, misses, writes=0, holds=0)
        if status > MISS:
            raise ValueError(f"{len(np.unique(ids))} blocks do not fit into {len(self)} slots")
        if status == HIT:
            return 0
        count = int(self.heads[native.pages.MISSES])
        chosen = self.choose(count, score)
        self.commit(misses[:count], chosen, out, 0, writes=0, holds=0)
        return count
