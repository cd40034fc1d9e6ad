"""Swapping again between the same two arrays, with other blocks: the short way.

Programs that page swap between the same pools over and over, a few blocks each time. Everything
but the block ids is then as it was, and one compiled call checks that it is, places the rows and
launches the kernel. Whatever is not as it was, and whatever is wrong with the rows, is left to the
long way, which looks at everything anew and explains it.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from typing import Any, NamedTuple

import numpy as np

from numba_swap.copies.arrays import view_array
from numba_swap.copies.copies import Copies, Direction
from numba_swap.copies.from_arrays import may_be_grouped
from numba_swap.copies.layout import match_blocks
from numba_swap.device.in_flight import InFlight
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.cost_model import Costs, load_of, uniform_load
from numba_swap.dispatch.ranking import Decision, Situation, rank
from numba_swap.dispatch.settings import Mode, Policy, Settings, current_settings
from numba_swap.driver.calls import Driver
from numba_swap.modes.kernel import launch as kernel
from numba_swap.swap.select import How
from numba_swap.swap.transfer import Transfer

_log = logging.getLogger("numba_swap")
_INT64 = np.dtype(np.int64)
_MOST_RECIPES = 64
_ONE_EACH = 2  # allocations: one of the source, one of the destination
_MOST_DECISIONS = 1024

Key = tuple[int, int, int]


class Run(NamedTuple):
    """How copies ran as a kernel, with what this followed from.

    Attributes
    ----------
    how : How
        What the user said.
    settings : Settings
        What was in force.
    handle, context, device : int
        The stream, its context and its device.
    most_blocks : int or None
        The most thread blocks that the launch was allowed.
    decision : Decision
        What followed.
    costs : Costs
        What was predicted with.
    """

    how: How
    settings: Settings
    handle: int
    context: int
    device: int
    most_blocks: int | None
    decision: Decision
    costs: Costs

    def holds(
        self,
        driver: Driver,
        stream: object,
        mode: Mode | str,
        max_blocks: int | None,
        policy: Policy | str | None,
    ) -> bool:
        """Whether the same would follow from these arguments here and now."""
        how = self.how
        return (
            # Asked anew: an object may stand for "the current stream".
            (stream if type(stream) is int and stream else stream_handle(stream)) == self.handle
            and mode == how.mode
            and max_blocks == how.max_blocks
            and policy == how.policy
            and current_settings() is self.settings
            and find_costs(driver, self.device) is self.costs
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

    Attributes
    ----------
    tangled : bool
        Whether different destination blocks may share bytes: not for the short way.
    """

    def __init__(
        self, driver: Driver, src: Any, dst: Any, block_axis: int, copies: Copies, run: Run
    ) -> None:
        self._driver = weakref.ref(driver)
        self._src, self._dst = weakref.ref(src), weakref.ref(dst)
        self._states = _state(src), _state(dst)
        self._run = run
        launch = kernel.find_launch(copies, run.device, run.most_blocks)
        self._threads, self._most_blocks = launch.threads, launch.most_blocks
        source, destination = view_array(src, "src"), view_array(dst, "dst")
        layout = match_blocks(source, destination, block_axis, "src and dst")
        self.tangled = layout.tangled
        self._size = layout.run_bytes
        self._route = load_of(copies).route
        self._alignment_bits = copies.alignment_bits
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
        self._decisions: dict[int, Decision] = {}

    def swap(
        self,
        driver: Driver,
        src: Any,
        dst: Any,
        mapping: Any,
        how: How,
    ) -> Transfer | None:
        """Swap other blocks; None, with nothing done, if this needs the long way."""
        run = self._run
        if (
            type(mapping) is not np.ndarray
            or mapping.dtype is not _INT64
            or mapping.ndim != 2
            or not mapping.flags.carray
            or not run.holds(driver, how.stream, how.mode, how.max_blocks, how.policy)
            or not self.is_of(driver, src, dst)
        ):
            return None
        rows, columns = mapping.shape
        if columns != 2 or rows == 0 or may_be_grouped(rows, self._size):
            return None
        decision = self._decisions.get(rows)  # another thread may clear it at any time
        if decision is None:
            decision = self._decide(rows)
            if decision is None:
                return None
            if len(self._decisions) >= _MOST_DECISIONS:
                self._decisions.clear()
            self._decisions[rows] = decision
        # Only what is there already: to make more, a context would have to be current.
        buffer = driver.pools.spare_buffer(16 * rows)
        event = driver.pools.spare_event(run.context)
        if buffer is None or not event:
            if event:
                driver.pools.give_event(run.context, event)
            return None
        work = InFlight(driver, run.context, (buffer, src, dst, how.stream), False, event)
        try:
            launched = driver.swap_again(
                self._constants,
                mapping,
                buffer,
                min(
                    self._most_blocks,
                    -(-rows * self._items_a_row * self._team // self._threads),
                ),
                event,
            )
        except BaseException:
            work.close_after_failure(run.handle)
            raise
        if launched:
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug("%s", decision)
            return Transfer(work, decision, False)
        work.cancel()
        return None

    def is_of(self, driver: Driver, src: Any, dst: Any) -> bool:
        """Whether these are the arrays, unchanged, that it knows."""
        return (
            self._driver() is driver
            and self._src() is src
            and self._dst() is dst
            and (_state(src), _state(dst)) == self._states
        )

    def _decide(self, rows: int) -> Decision | None:
        """Return the decision for so many rows; None if it is not the kernel."""
        run = self._run
        load = uniform_load(self._route, rows, self._size, self._alignment_bits)
        decision = run.decision
        if not decision.forced:
            policy = decision.policy
            situation = Situation(
                decision.driver_version,
                False,
                run.handle,
                run.context,
                False,
                run.device,
                run.most_blocks,
                policy,
            )
            ranked = rank(run.costs, load, situation)
            if ranked[0][1] is not Mode.KERNEL:
                return None
            decision = decision._replace(ranked=ranked, rejected={})
        return decision._replace(copies=rows, nbytes=load.nbytes)


def _state(array: Any) -> object:
    """Return all that may change about an array while it stays the same object."""
    if type(array) is np.ndarray:
        return array.ctypes.data, array.shape, array.strides, array.flags.writeable
    return array.__cuda_array_interface__


_recipes: dict[Key, Recipe] = {}


def find_recipe(src: Any, dst: Any, block_axis: int) -> Recipe | None:
    """Return what is known of swaps between two objects with these ids, if anything."""
    if type(block_axis) is not int:
        return None
    return _recipes.get((id(src), id(dst), block_axis))


def keep_recipe(
    driver: Driver, src: Any, dst: Any, block_axis: int, copies: Copies, run: Run
) -> None:
    """Remember how copies between two arrays ran, if the short way can take such ones."""
    key = id(src), id(dst), block_axis
    known = _recipes.get(key)
    if (
        type(block_axis) is not int
        or (
            known is not None
            and known.is_of(driver, src, dst)
            and known._run.costs is run.costs  # not calibrated anew since
        )
        or copies.direction not in (Direction.H2D, Direction.D2H)
        or copies.buffer is None
        or len(copies.allocations) != _ONE_EACH
        or may_be_grouped(len(copies), copies.uniform)
        or isinstance(src, (list, tuple))
        or isinstance(dst, (list, tuple))
    ):
        return
    if len(_recipes) >= _MOST_RECIPES:
        _recipes.clear()
    # Objects without weak references, or with DLPack alone, cannot be looked at cheaply.
    with contextlib.suppress(TypeError, AttributeError):
        recipe = Recipe(driver, src, dst, block_axis, copies, run)
        if not recipe.tangled:
            _recipes[key] = recipe
