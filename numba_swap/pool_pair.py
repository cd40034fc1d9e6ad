"""The two pools of blocks of an exchange."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from numba_swap.blocks import match_blocks
from numba_swap.copies import Copies
from numba_swap.driver.api import Driver
from numba_swap.errors import BadPlanError
from numba_swap.integers import Integers
from numba_swap.memory import view_array
from numba_swap.plan import Names, plan_array_blocks

Rows: TypeAlias = npt.NDArray[np.intp]

_OUT = Names("page_out", "device", "host")
_IN = Names("page_in", "host", "device")


class PoolPair:
    """The two arrays, or layers of arrays, between which blocks are exchanged."""

    def __init__(self, driver: Driver, device: Any, host: Any, block_axis: int) -> None:
        self.driver = driver
        self.device = device
        self.host = host
        self.block_axis = block_axis
        fronts = device if isinstance(device, (list, tuple)) else (device,)
        backs = host if isinstance(host, (list, tuple)) else (host,)
        self.views = [view_array(array, "device") for array in fronts]
        layouts = []
        self._spans: list[tuple[tuple[int, int], tuple[int, int]]] = []
        # Unequal numbers of layers are refused, with a better message, by `plan_array_blocks`.
        for view, array in zip(self.views, backs, strict=False):
            back = view_array(array, "host")
            layout = match_blocks(view, back, block_axis, "device and host")
            layouts.append(layout)
            ends = ((view.address, layout.src_extent), (back.address, layout.dst_extent))
            front, other = ((at + low, at + high) for at, (low, high) in ends)
            self._spans.append((front, other))
            layouts.append(match_blocks(back, view, block_axis, "host and device"))
        # How many runs a block of each layer has; none if blocks are empty.
        self._runs = [len(a.src_offsets) if a.run_bytes else 0 for a in layouts[::2]]
        self.one_run = self._runs == [1]
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

    def plan_out(self, rows: Integers) -> Copies:
        """Return the copies of rows that go out: in order, one of every run of every block."""
        return self._plan(self.device, self.host, rows, _OUT)

    def plan_in(self, rows: Integers) -> Copies:
        """Return the copies of rows that come in."""
        return self._plan(self.host, self.device, rows, _IN)

    def _plan(self, src: Any, dst: Any, rows: Integers, names: Names) -> Copies:
        return plan_array_blocks(self.driver, src, dst, rows, self.block_axis, names, in_order=True)

    def runs_of(self, rows: Rows, count: int) -> Rows:
        """Return where the copies of some rows stand among those of `count` rows.

        Parameters
        ----------
        rows : ndarray of int
            Indices of rows.
        count : int
            How many rows `plan_out` or `plan_in` was given.
        """
        if self.one_run:
            return rows
        found, before = [], 0
        for runs in self._runs:
            found.append((before + rows[:, None] * runs + np.arange(runs)).ravel())
            before += count * runs
        return np.concatenate(found)


def _intervals(columns: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Return where all copies begin, and where they end."""
    begins = np.concatenate([begin for begin, _ in columns])
    return begins, begins + np.concatenate([size for _, size in columns])
