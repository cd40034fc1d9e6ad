"""What a cache would have hit, for a trace of requests: pure, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numba_swap.copies.inputs.mapping import Integers
from numba_swap.paging.cache.future import Future
from numba_swap.paging.cache.page_table import NO_SCORE, POLICIES, PageTable

BELADY = "belady"


class Replay(NamedTuple):
    """What became of a trace.

    Attributes
    ----------
    policy : str
        Who left first; ``"belady"`` knew what would come.
    slots : int
        How many slots there were.
    wanted, fetched : int
        Blocks of all requests, each once a request, and those of them that had to come in.
    """

    policy: str
    slots: int
    wanted: int
    fetched: int

    @property
    def hit_rate(self) -> float:
        """The share of blocks that were there."""
        return 1.0 - self.fetched / self.wanted if self.wanted else 1.0


def replay(requests: Sequence[Integers], blocks: int, slots: int, policy: str) -> Replay:
    """Let requests come one after the other.

    Parameters
    ----------
    requests : sequence of array_like of int
        The blocks of each.
    blocks, slots : int
        How many there are.
    policy : {"lru", "clock", "lfu", "belady"}
        Who leaves first.

    Raises
    ------
    ValueError
        A request that does not fit.

    Examples
    --------
    >>> loop = [[0], [1], [2]] * 4
    >>> [round(replay(loop, 3, 2, policy).hit_rate, 2) for policy in ("lru", "belady")]
    [0.0, 0.42]
    """
    future = Future(requests, blocks) if policy == BELADY else None
    table = PageTable(blocks, slots, "lru" if future is not None else policy)
    wanted = fetched = 0
    for i, ids in enumerate(requests):
        if future is not None:
            future.begin(i)
        fetched += table.request(ids, NO_SCORE if future is None else future.score)
        wanted += len(np.unique(ids))
    return Replay(policy, slots, wanted, fetched)


ALL = (*POLICIES, BELADY)
