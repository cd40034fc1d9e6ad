"""Many steps through a field that is larger than the GPU, several at each visit of a tile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from numba_swap.dispatch.settings import Mode, Policy, check_positive
from numba_swap.errors import BadArgumentError, brief
from numba_swap.paging.tiles.arrays import like
from numba_swap.paging.tiles.fields import Fields, read_fields
from numba_swap.paging.tiles.run import Run, Step, make_run, make_slots, needs_of, options_of
from numba_swap.paging.tiles.slots import Slot
from numba_swap.paging.tiles.tiling import Order, Tiling
from numba_swap.swap.verbs import current_devices


def run_steps(
    fields: Sequence[Any],
    tiling: Tiling,
    kernel: Callable[[Step], object],
    steps: int,
    steps_per_visit: int = 1,
    *,
    constants: Sequence[Any] = (),
    depth: int = 3,
    order: Order = "rows",
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = "overlap",
) -> None:
    """Compute many steps of fields that are larger than the GPU, several a visit of each tile.

    The results are those of this loop, bit for bit, with one array for the old and one for the
    new values::

        for _ in range(steps):
            for step in stream_tiles(reads=old, writes=new, tiling=tiling):
                kernel(step)
            old, new = new, old

    Parameters
    ----------
    fields : list of ndarray
        What the steps change: host arrays of the tiling's shape, pinned or plain. They hold the
        results afterwards.
    tiling : Tiling
        How they are cut; its halo is how far *one* step of the kernel reads.
    kernel : callable
        Called with a `Step`: has to enqueue one step in `Step.stream`, from `Step.reads` (the
        fields, then the constants) to all elements of `Step.writes` (the fields). At visits of
        several steps, boxes are larger than the tile for all but the last, and views have strides.
    steps : int
        How many steps.
    steps_per_visit : int, optional
        How many of them to compute each time that a tile is on the GPU. Tiles are then read with
        a halo so many times as long, and what lies in it is computed, too, at each tile: worth it
        where the link is slower than the kernel.
    constants : list of ndarray, optional
        Further fields that every step reads, with the same halo.
    depth, order, stream, mode, policy : optional
        As for `stream_tiles`.

    Raises
    ------
    BadArgumentError
        As for `stream_tiles`; or steps that are no positive integers. Nothing was copied.
    NumbaSwapError
        As for `stream_tiles`. Whatever is raised, also by the kernel, or by an interrupt: the
        fields then hold the state after a whole number of steps, and a note on the error says
        after how many.

    Notes
    -----
    Steps go from the fields to a second set of host arrays and back: of the same size, pinned
    where the fields are. After an even number of visits the result is where it belongs, after an
    odd one the host copies it there. So the steps are dealt out to an even number of visits where
    there are enough.

    Where the boundary is a number, all that lies outside of the field keeps that value in every
    step. With ``"clip"``, views end where the field ends in every step.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> def mean(old, new):
    ...     new[:] = (old[:-2] + old[2:]) / 2
    >>> with ns.simulate() as gpu:
    ...     def kernel(step):
    ...         gpu.launch(mean, *step.reads, *step.writes, stream=step.stream)
    ...     u = gpu.pinned_array(8)
    ...     u[:] = [0, 64, 0, 0, 0, 0, 0, 0]
    ...     tiling = ns.Tiling(u.shape, tile=4, halo=1, boundary=0.0)
    ...     ns.run_steps([u], tiling, kernel, steps=4, steps_per_visit=2)
    ...     u
    array([ 0., 20.,  0., 16.,  0.,  4.,  0.,  0.])
    """
    for name, number in ("steps", steps), ("steps_per_visit", steps_per_visit), ("depth", depth):
        check_positive(number, name)
    if not callable(kernel):
        raise BadArgumentError(f"kernel={brief(kernel)}: give what enqueues one step")
    constant, _, now = read_fields(constants, [], fields, tiling, ("constants", "", "fields"))
    if not now:
        raise BadArgumentError("fields is empty: give at least one array")
    lengths = _visits(steps, steps_per_visit)
    wide = _widened(tiling, max(lengths))
    options = options_of(mode, policy)
    wide.order(order)  # which checks it
    devices = current_devices()
    depth = min(depth, len(wide))
    there = Fields([*now, *constant], now, [])
    needs = needs_of(there, wide, depth, order, now if max(lengths) > 1 else ())
    slots = make_slots(devices, there, wide, needs)
    other = [like(devices.driver, array) for array in now]
    done = 0
    try:
        for length in lengths:
            there = Fields([*now, *constant], other, [])
            run = make_run(devices, there, wide, order, stream, needs, options, slots)
            with contextlib.closing(run.steps()) as tiles:
                for slot, visit in tiles:
                    for step in _steps_of(visit, slot, run, (tiling, wide), length, len(now)):
                        kernel(step)
            now, other = other, now
            done += length
    except BaseException as error:
        error.add_note(f"The fields hold the state after {done} of {steps} steps.")
        raise
    finally:
        for field, array in zip(fields, now, strict=True):
            if array is not field:
                np.copyto(field, array)


def _visits(steps: int, most: int) -> list[int]:
    """Deal steps out to visits, an even number of them if there are enough steps."""
    count = -(-steps // most)
    if count % 2 and count < steps:
        count += 1
    return [steps // count + (i < steps % count) for i in range(count)]


def _widened(tiling: Tiling, steps: int) -> Tiling:
    halo = tuple(steps * length for length in tiling.halo)
    try:
        return Tiling(tiling.shape, tiling.tile, halo, tiling.boundary)
    except BadArgumentError as error:
        raise BadArgumentError(f"with {steps} steps a visit, {error}") from None


def _steps_of(
    visit: Step, slot: Slot, run: Run, tilings: tuple[Tiling, Tiling], count: int, fields: int
) -> Iterator[Step]:
    """Yield the steps of one visit: each on a smaller box than the one before, to and fro."""
    tiling, wide = tilings
    outer = wide.boxes(visit.tile).outer
    if count > 1:
        filled = []
        for buffer, array in zip(slot.spare, visit.reads, strict=False):
            filled += run.fill(buffer, array.dtype, visit.tile, slot)
        slot.under_way.append((None, filled))
    old, new = slot.reads[:fields], slot.spare
    for i in range(count):
        more = tuple((count - 1 - i) * length for length in tiling.halo)
        box = tiling.around(visit.box, more)
        if not tiling.periodic:
            box = box.clipped(tiling.shape)
        around = tiling.around(box, tiling.halo)
        reads = [*old, *slot.reads[fields:]]
        writes: Sequence[Any] = visit.writes
        if i < count - 1:
            writes = [buffer.part(outer.shape, box.within(outer)) for buffer in new]
        yield visit._replace(
            reads=tuple(buffer.part(outer.shape, around.within(outer)) for buffer in reads),
            writes=tuple(writes),
            inner=box.within(around),
            box=box,
        )
        old, new = new, old
