"""What a `BlockCache` would hit, for a recorded trace of block ids and several sizes; no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from numba_swap.copies.inputs.mapping import Integers
from numba_swap.errors import BadArgumentError, say
from numba_swap.paging.cache.replay import ALL, Replay, replay


def read_trace(path: str, request: int | None) -> list[Integers]:
    """Read the requests of a trace.

    Parameters
    ----------
    path : str
        A file of `numpy.save`: ids of shape (n,), or (requests, ids of each); of the latter,
        negative ones are left out, for requests of unequal length.
    request : int or None
        How many successive ids of the former make one request; 1 by default.

    Raises
    ------
    BadArgumentError
        If it is no such file.
    """
    try:
        trace = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadArgumentError(f"{path} is no file of numpy.save: {say(error)}") from None
    if (
        not isinstance(trace, np.ndarray)
        or trace.ndim not in (1, 2)
        or trace.dtype.kind not in "iu"
    ):
        raise BadArgumentError(f"{path} holds no array of integers of one or two dimensions")
    if trace.ndim == 1:
        if (trace < 0).any():
            raise BadArgumentError(f"{path} holds negative block ids")
        size = request or 1
        return [trace[i : i + size].astype(np.int64) for i in range(0, len(trace), size)]
    if request is not None:
        raise BadArgumentError("--request is for traces of one dimension; each row is a request")
    rows = trace.astype(np.int64)
    return [row[row >= 0] for row in rows]


def run_cache_sim(requests: Sequence[Integers], slots: Sequence[int]) -> list[Replay]:
    """Replay a trace for every policy and number of slots.

    Raises
    ------
    BadArgumentError
        If a request has more blocks than there are slots.
    """
    blocks = 1 + max((int(ids.max()) for ids in requests if len(ids)), default=0)
    largest = max((len(np.unique(ids)) for ids in requests), default=0)
    for count in slots:
        if count < largest:
            raise BadArgumentError(
                f"--slots {count}: the largest request has {largest} blocks, so that is the "
                "smallest cache that works"
            )
    return [replay(requests, blocks, count, policy) for count in slots for policy in ALL]


def format_table(rows: Sequence[Replay]) -> str:
    """Return hit rates as a table: a line a number of slots, a column a policy."""
    lines = [f"{'slots':>10}" + "".join(f"{policy:>9}" for policy in ALL)]
    for slots in sorted({row.slots for row in rows}):
        rates = {row.policy: row.hit_rate for row in rows if row.slots == slots}
        lines.append(f"{slots:>10}" + "".join(f"{rates[policy]:>9.4f}" for policy in ALL))
    return "\n".join(lines)


def plot(rows: Sequence[Replay], path: Path) -> None:
    """Draw the hit rate against the number of slots.

    Raises
    ------
    BadArgumentError
        If matplotlib is not here.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BadArgumentError("--plot needs matplotlib: pip install matplotlib") from None
    with mpl.rc_context({"svg.hashsalt": "numba_swap"}):
        figure: Any = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        for policy in ALL:
            mine = sorted((row.slots, row.hit_rate) for row in rows if row.policy == policy)
            axes.plot(*zip(*mine, strict=True), marker="o", label=policy)
        axes.set(xlabel="slots", ylabel="hit rate", ylim=(0, 1))
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(path)
