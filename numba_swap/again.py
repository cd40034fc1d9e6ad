"""Swapping again between the same two arrays, with other blocks: the short way.

Programs that page swap between the same pools over and over, a few blocks each time. Everything
but the block ids is then as it was, and one compiled call checks that it is, places the rows and
launches the kernel. Whatever is not as it was, and whatever is wrong with the rows, is left to the
long way, which looks at everything anew and explains it.
"""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, NamedTuple

import numpy as np

from numba_swap.blocks import match_blocks
from numba_swap.copies import Copies, Direction
from numba_swap.dispatch import Decision, preference
from numba_swap.driver.api import Driver, compiled
from numba_swap.errors import DriverCallError
from numba_swap.in_flight import InFlight
from numba_swap.memory import view_array
from numba_swap.modes import kernel
from numba_swap.plan import may_be_grouped
from numba_swap.settings import Mode, Settings, current_settings
from numba_swap.transfer import Transfer

_INT64 = np.dtype(np.int64)
_MOST_RECIPES = 64
_MOST_DECISIONS = 1024

Key = tuple[int, int, int]


class Run(NamedTuple):
    """How copies ran as a kernel, with what this followed from."""

    stream: object
    mode: Mode | str
    max_blocks: int | None
    settings: Settings
    handle: int
    context: int
    device: int
    decision: Decision

    def holds(self, stream: object, mode: Mode | str, max_blocks: int | None) -> bool:
        """Whether the same would follow from these arguments here and now."""
        return (
            (stream is self.stream or (type(stream) is int and stream == self.stream))
            and mode == self.mode
            and max_blocks == self.max_blocks
            and current_settings() is self.settings
        )


class Recipe:
    """What is known of swaps between two arrays.

    Parameters
    ----------
    driver : Driver
        The driver.
    src, dst : array
        The arrays; not kept alive, nor is the driver.
    block_axis : int
        Axis along which the blocks lie.
    copies : Copies
        What was copied: uniform, in rows that are in order, between host and device.
    run : Run
        How.
    """

    def __init__(
        self, driver: Driver, src: Any, dst: Any, block_axis: int, copies: Copies, run: Run
    ) -> None:
        self._driver = weakref.ref(driver)
        self._src, self._dst = weakref.ref(src), weakref.ref(dst)
        self._states = _state(src), _state(dst)
        self._run = run
        self._launch = launch = kernel.prepared_launch(copies)
        source, destination = view_array(src, "src"), view_array(dst, "dst")
        layout = match_blocks(source, destination, block_axis, "src and dst")
        self._size = layout.run_bytes
        self._direction = copies.direction
        self._items_a_row, self._team = launch.arguments[3], launch.arguments[5]
        addresses = (
            source.address + layout.src_extent[0],
            destination.address + layout.dst_extent[0],
        )
        constants = (
            *driver.launch_functions,
            *driver.query_functions,
            run.context,
            run.handle,
            launch.function,
            launch.threads,
            source.address,
            layout.src_step,
            layout.src_blocks,
            destination.address,
            layout.dst_step,
            layout.dst_blocks,
            *launch.arguments[2:],
            addresses[0],
            *driver.pointer_info(addresses[0]),
            addresses[1],
            *driver.pointer_info(addresses[1]),
        )
        self._constants = np.array(constants, dtype=np.int64)
        self._decisions: dict[int, Decision | None] = {}

    def swap(
        self,
        driver: Driver,
        src: Any,
        dst: Any,
        mapping: Any,
        stream: Any,
        mode: Mode | str,
        max_blocks: int | None,
    ) -> Transfer | None:
        """Swap other blocks; None, with nothing done, if this needs the long way."""
        run = self._run
        if (
            self._src() is not src
            or self._dst() is not dst
            or self._driver() is not driver
            or type(mapping) is not np.ndarray
            or mapping.dtype is not _INT64
            or mapping.ndim != 2
            or not mapping.flags.c_contiguous
            or not run.holds(stream, mode, max_blocks)
            or (_state(src), _state(dst)) != self._states
        ):
            return None
        rows, columns = mapping.shape
        if columns != 2 or rows == 0 or may_be_grouped(rows, self._size):
            return None
        if rows not in self._decisions:
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            self._decisions[rows] = self._decide(rows)
        decision = self._decisions[rows]
        if decision is None:
            return None
        buffer = driver.pools.take_buffer(16 * rows)
        work = InFlight(driver, run.context, (buffer, src, dst, stream, mapping), False)
        launch = self._launch
        step, code = compiled().swap_again(
            self._constants,
            mapping,
            buffer.words,
            buffer.address,
            min(launch.most_blocks, -(-rows * self._items_a_row * self._team // launch.threads)),
            work.event,
        )
        if step == 0:
            return Transfer(work, decision, False)
        if step > 0:
            work.close_after_failure(run.handle)
            name = ("cuLaunchKernel", "cuEventRecord")[step - 1]
            raise DriverCallError(name, code, driver.error_name(code))
        work.cancel()
        return None

    def _decide(self, rows: int) -> Decision | None:
        """Return the decision for so many rows; None if it is not the kernel."""
        decision, nbytes = self._run.decision, rows * self._size
        merit = decision.reason
        if not decision.forced:
            modes, merit = preference(self._direction, rows, nbytes)
            if modes[0] is not Mode.KERNEL:
                return None
        return decision._replace(reason=merit, copies=rows, nbytes=nbytes)


def _state(array: Any) -> object:
    """Return all that may change about an array while it stays the same object."""
    if type(array) is np.ndarray:
        return array.ctypes.data, array.shape, array.strides, array.flags.writeable
    return array.__cuda_array_interface__


_recipes: dict[Key, Recipe] = {}


def find_recipe(src: Any, dst: Any, block_axis: int) -> Recipe | None:
    """Return what is known of swaps between two objects with these ids, if anything."""
    return _recipes.get((id(src), id(dst), block_axis))


def keep_recipe(
    driver: Driver, src: Any, dst: Any, block_axis: int, copies: Copies, run: Run
) -> None:
    """Remember how copies between two arrays ran, if the short way can take such ones."""
    if (
        copies.direction not in (Direction.H2D, Direction.D2H)
        or copies.buffer is None
        or may_be_grouped(len(copies), copies.uniform)
        or isinstance(src, (list, tuple))
        or isinstance(dst, (list, tuple))
    ):
        return
    if len(_recipes) >= _MOST_RECIPES:
        _recipes.clear()
    # Objects without weak references, or with DLPack alone, cannot be looked at cheaply.
    with contextlib.suppress(TypeError, AttributeError):
        _recipes[id(src), id(dst), block_axis] = Recipe(driver, src, dst, block_axis, copies, run)
