"""The two pools of blocks of an exchange."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from numba_swap.copies.arrays import view_array
from numba_swap.copies.copies import Copies
from numba_swap.copies.from_arrays import Names, pair_layers, plan_array_blocks
from numba_swap.copies.layout import match_blocks
from numba_swap.copies.mapping import Integers
from numba_swap.dispatch.partition import Rows
from numba_swap.driver.calls import Driver
from numba_swap.errors import BadPlanError

_OUT = Names("page_out", "device", "host")
_IN = Names("page_in", "host", "device")


class PoolPair:
    """The two arrays, or layers of arrays, between which blocks are exchanged."""

    def __init__(self, driver: Driver, device: Any, host: Any, block_axis: int) -> None:
        self.driver = driver
        self.device = device
        self.host = host
        self.block_axis = block_axis
        if isinstance(device, (list, tuple)) or isinstance(host, (list, tuple)):
            layers = pair_layers(device, host, _OUT)
        else:
            layers = [(device, host)]
        layouts = []
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self.layers = len(layers)
        for array, other in layers:
            view, back = view_array(array, "device"), view_array(other, "host")
            layout = match_blocks(view, back, block_axis, "device and host")
            layouts.append(layout)
            ends = ((view.address, layout.src_extent), (back.address, layout.dst_extent))
            front, rear = ((at + low, at + high) for at, (low, high) in ends)
            self._spans.append((front, rear))
            layouts.append(match_blocks(back, view, block_axis, "host and device"))
        # How many runs a block of each layer has; none if blocks are empty.
        self._runs = [len(a.src_offsets) if a.run_bytes else 0 for a in layouts[::2]]
        self.one_run = self._runs == [1]
        # Runs go in the order of their destinations, which may not be the same in both directions:
        # where each run of what goes out stands among those of what comes in.
        self._counterparts = [
            np.argsort(into.dst_offsets)[np.argsort(np.argsort(out.src_offsets))][:runs]
            for out, into, runs in zip(layouts[::2], layouts[1::2], self._runs, strict=True)
        ]
        self.same_order = all(
            np.array_equal(runs, np.arange(len(runs))) for runs in self._counterparts
        )
        # Blocks are cut into runs where both pools are contiguous, whichever is the source.
        self.same_runs = all(
            out.run_bytes == into.run_bytes
            and np.array_equal(out.src_offsets[: len(runs)], into.dst_offsets[runs])
            and np.array_equal(out.dst_offsets[: len(runs)], into.src_offsets[runs])
            for out, into, runs in zip(layouts[::2], layouts[1::2], self._counterparts, strict=True)
        )
        self.tangled = any(layout.tangled for layout in layouts)
        # How many blocks the largest layer has, of the device and of the host.
        self.blocks = (
            max((layout.src_blocks for layout in layouts[::2]), default=0),
            max((layout.src_blocks for layout in layouts[1::2]), default=0),
        )
        self.block_bytes = sum(
            runs * layout.run_bytes for runs, layout in zip(self._runs, layouts[::2], strict=True)
        )

    def check_apart(self, out: Copies, into: Copies) -> None:
        """Refuse pools that share memory: then nothing says what is to be read first.

        Raises
        ------
        BadPlanError
            If a block of one overlaps a block of the other.
        """
        if not any(
            start < other_stop and other_start < stop
            for (start, stop), _ in self._spans
            for _, (other_start, other_stop) in self._spans
        ):
            return
        fronts = _intervals([(out.src, out.sizes), (into.dst, into.sizes)])
        backs = _intervals([(out.dst, out.sizes), (into.src, into.sizes)])
        if not (len(fronts[0]) and len(backs[0])):
            return
        # Of the blocks of `device` that begin before a block of `host` ends, one may reach into it.
        order = np.argsort(fronts[0])
        begins, reach = fronts[0][order], np.maximum.accumulate(fronts[1][order])
        before = np.searchsorted(begins, backs[1], side="left")
        meets = (before > 0) & (reach[np.maximum(before, 1) - 1] > backs[0])
        if meets.any():
            where = int(backs[0][np.argmax(meets)])
            raise BadPlanError(
                f"device and host share memory, at {where:#x} for example: exchange needs two "
                "pools apart from each other; within one array, use swap_blocks"
            )

    def check_layers(self, out: Copies, into: Copies) -> None:
        """Note whether layers of one pool share bytes: then ids do not tell which rows meet."""
        for side, (some, others) in enumerate(((out.src, into.dst), (out.dst, into.src))):
            spans = sorted(ends[side] for ends in self._spans)
            if all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans)):
                continue
            begins, ends = _intervals([(some, out.sizes), (others, into.sizes)])
            layers = np.concatenate([self._layers_of(out), self._layers_of(into)])
            order = np.argsort(begins)
            begins, ends, owner = begins[order], ends[order], layers[order]
            same = (begins[1:] == begins[:-1]) & (owner[1:] == owner[:-1])
            self.tangled |= bool(((begins[1:] < ends[:-1]) & ~same).any())

    def _layers_of(self, copies: Copies) -> Rows:
        rows = len(copies) // max(1, sum(self._runs))
        return np.repeat(np.arange(len(self._runs)), np.multiply(self._runs, rows))

    def plan_out(self, rows: Integers) -> Copies:
        """Return the copies of rows that go out: in order, one of every run of every block."""
        return self._plan(self.device, self.host, rows, _OUT)

    def plan_in(self, rows: Integers) -> Copies:
        """Return the copies of rows that come in."""
        return self._plan(self.host, self.device, rows, _IN)

    def _plan(self, src: Any, dst: Any, rows: Integers, names: Names) -> Copies:
        return plan_array_blocks(self.driver, src, dst, rows, self.block_axis, names, in_order=True)

    def runs_of(self, rows: Rows, count: int, *, as_out: bool = False) -> Rows:
        """Return where the copies of some rows stand among those of `count` rows.

        Parameters
        ----------
        rows : ndarray of int
            Indices of rows.
        count : int
            How many rows `plan_out` or `plan_in` was given.
        as_out : bool, optional
            Return the runs of what comes in, in the order of those of what goes out.
        """
        if self.one_run:
            return rows
        found, before = [], 0
        for runs, counterparts in zip(self._runs, self._counterparts, strict=True):
            which = counterparts if as_out else np.arange(runs)
            found.append((before + rows[:, None] * runs + which).ravel())
            before += count * runs
        return np.concatenate(found)


def _intervals(columns: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return where all copies begin, and where they end."""
    begins = np.concatenate([begin for begin, _ in columns])
    return begins, begins + np.concatenate([size for _, size in columns])
