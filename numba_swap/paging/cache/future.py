"""Requests whose order is known: who is wanted when, so that the farthest one leaves (Belady).

Of all ways to choose who leaves, this one fetches least (L. A. Belady, "A study of replacement
algorithms for a virtual-storage computer", IBM Systems Journal 5, 1966).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from numba_swap import native
from numba_swap.copies.inputs.mapping import Integers, read_integers
from numba_swap.errors import BadArgumentError, BadPlanError


class Future:
    """A list of requests, and when each block is wanted next.

    Parameters
    ----------
    requests : iterable of array_like of int
        The blocks of each request, in the order in which they will come.
    blocks : int
        How many blocks there are.

    Attributes
    ----------
    requests : list of ndarray of int64
        As given.
    score : ndarray of int64, shape (blocks,)
        The next request that wants each block, as seen from the request that began last.

    Raises
    ------
    BadArgumentError
        No iterable.
    BadPlanError, UnsupportedArrayError
        Requests that are no block ids.

    Examples
    --------
    >>> future = Future([[0, 1], [2], [0]], blocks=4)
    >>> future.begin(0)
    >>> [int(request) for request in future.score[:3] if request < 3]
    [2, 1]
    """

    def __init__(self, requests: Iterable[Any], blocks: int) -> None:
        try:
            listed = list(requests)
        except TypeError:
            raise BadArgumentError(
                f"requests is a {type(requests).__name__}: give a list of the blocks of each"
            ) from None
        self.requests = [
            # Copied, for they are read again when their turn comes.
            read_integers(ids, f"request {i}", 1).copy()
            for i, ids in enumerate(listed)
        ]
        for i, ids in enumerate(self.requests):
            outside = (ids < 0) | (ids >= blocks)
            if outside.any():
                at = int(np.argmax(outside))
                raise BadPlanError(
                    f"request {i}[{at}]: block {ids[at]} is not one of the {blocks} blocks", i
                )
        flat = np.concatenate([*self.requests, np.zeros(0, np.int64)])
        self._ends = np.cumsum([len(ids) for ids in self.requests], dtype=np.int64)
        self._following = np.empty(len(flat), np.int64)
        self.score: Integers = np.full(blocks, native.pages.NEVER, np.int64)
        native.pages.next_uses(
            flat, self._ends, self.score, self._following, np.empty(len(flat), np.int64)
        )

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.requests)

    def begin(self, request: int) -> None:
        """Look ahead from a request on: each in turn, from 0."""
        ids = self.requests[request]
        end = int(self._ends[request])
        self.score[ids] = self._following[end - len(ids) : end]
