"""Why a request of a cache is refused, in words."""

from __future__ import annotations

from collections.abc import Sequence

from numba_swap import native
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.errors import (
    BadPlanError,
    BlocksLostError,
    CacheFullError,
    LeaseConflictError,
    NumbaSwapError,
)
from numba_swap.paging.cache.page_table import CONFLICT, FULL, OUT_OF_RANGE, PageTable


def refused(status: int, ids: Integers, table: PageTable) -> NumbaSwapError:
    """Make the error of a request that was refused just now; nothing was changed."""
    heads, pages, rows = table.heads, native.pages, table.table
    at = int(heads[pages.AT])
    if status == OUT_OF_RANGE:
        return out_of_range(ids, at, len(table.slot_of))
    if status == FULL:
        kept = (rows[:, pages.LEASES] != 0) | (rows[:, pages.MARK] == heads[pages.REQUEST])
        return CacheFullError(int(heads[pages.MISSES]), len(table), int(kept.sum()))
    assert status == CONFLICT
    block = int(ids[at])
    how = "writing" if rows[table.slot_of[block], pages.LEASES] < 0 else "reading"
    return LeaseConflictError(
        f"block {block} is leased for {how}: end that lease first, or lease it for reading only",
        block,
    )


def out_of_range(ids: Integers, at: int, blocks: int) -> BadPlanError:
    """Make the error of a block that does not exist."""
    return BadPlanError(
        f"ids[{at}]: block {ids[at]} is not one of the {blocks} blocks (0 to {blocks - 1})", at
    )


def leased_error(table: PageTable, slot: int, what: str) -> LeaseConflictError:
    """Make the error of a block in a slot that cannot be dropped, for example, while leased."""
    row, pages = table.table[slot], native.pages
    block = int(row[pages.BLOCK])
    how = " for writing" if row[pages.LEASES] < 0 else ""
    return LeaseConflictError(
        f"block {block} is leased{how}, and cannot be {what}: end the lease first", block
    )


def lost_error(blocks: Sequence[int]) -> BlocksLostError:
    """Make the error of blocks that were lost."""
    some = ", ".join(map(str, blocks[:5])) + (", ..." if len(blocks) > 5 else "")
    return BlocksLostError(
        f"what was written to {len(blocks)} blocks ({some}) was lost when the driver failed; on "
        "the host each is as it was, as it was to be, or a mixture. Write them anew with "
        "mode='w', or take what is on the host: drop(ids, discard=True)",
        blocks,
    )
