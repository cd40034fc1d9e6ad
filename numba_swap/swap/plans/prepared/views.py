"""A copy between two views that lie like two that were copied between before.

A program that goes through a field makes new views at every step, and most lie alike: they have the
same shape and strides, elsewhere in memory of the same sort. How a box between them is copied is
then known, but for its addresses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numba_swap import native
from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.boxes.from_views import ViewPair
from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction
from numba_swap.copies.inputs.array_state import read_likeness
from numba_swap.device.devices import Devices
from numba_swap.device.memory import MemoryKind
from numba_swap.driver import abi
from numba_swap.swap.plans.plan_cache import Key, plan_cache
from numba_swap.swap.plans.prepared.runs import PreparedLaunch, PreparedLoop, PreparedRun
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.transfer import Transfer

_KINDS = {
    MemoryKind.DEVICE: abi.MEMORYTYPE_DEVICE,
    MemoryKind.PINNED: abi.MEMORYTYPE_HOST,
}
_NO_MEMORY = np.zeros(0, dtype=np.uint64)
# Of addresses, a choice depends on so many low bits.
_LOW_BITS = 15


class FoundViews(NamedTuple):
    """Two views, and how they lie.

    Attributes
    ----------
    key : tuple
        What calls must share to copy in one way.
    src, dst : int
        Their addresses.
    """

    key: Key
    src: int
    dst: int


class PreparedViews:
    """A copy between views of one layout, as one box over a host link.

    Parameters
    ----------
    devices : Devices
        The GPUs.
    run : PreparedLoop or PreparedLaunch
        How the box was copied.
    copies : Copies
        The box.
    pair : ViewPair
        The views, as they were read for it, not kept alive.
    """

    def __init__(
        self, devices: Devices, run: PreparedLoop | PreparedLaunch, copies: Copies, pair: ViewPair
    ) -> None:
        self.run = run = run.without_work()
        self._driver = driver = run.launched.driver
        self._selections = (run.selection,)
        boxes = copies.boxes
        words = dict(zip(native.prepared.LAUNCH, driver.launch_functions, strict=True))
        words |= zip(("query", "codes"), driver.query_functions, strict=True)
        words |= zip(("memcpy_3d", "memcpy"), driver.box_functions, strict=True)
        words |= {"context": run.context.handle, "stream": run.stream}
        words |= dict.fromkeys(("kernel", "threads", "most_blocks", "chunk_words", "tile"), 0)
        self._buffers = None
        if isinstance(run, PreparedLaunch):
            kernel = run.kernel
            words |= {
                "kernel": kernel.function,
                "threads": kernel.threads,
                "most_blocks": kernel.most_blocks,
            }
            _, _, _, words["chunk_words"], words["tile"], _, _ = kernel.arguments
            table_bytes = 8 * native.prepared_boxes.TABLE_WORDS
            self._buffers = devices.host_buffers.of_size(table_bytes)
        else:
            boxes = run.boxes
        assert boxes is not None  # of a launch, `prepare_views` asked
        self._form = boxes.forms
        for side, array, column in (("src", pair.src, copies.src), ("dst", pair.dst, copies.dst)):
            (allocation,), low = array.allocations, array.span[0]
            assert allocation.device is not None
            assert allocation.device_offset is not None  # `prepare_views` asked
            words |= {
                f"{side}_first": int(column[0]) - array.address,
                f"{side}_low": low - array.address,
                f"{side}_high": array.span[1] - array.address,
                f"{side}_memory_type": _KINDS[allocation.kind],
                f"{side}_managed": 0,
                f"{side}_device": allocation.device,
                f"{side}_device_offset": allocation.device_offset,
            }
        self._words = native.prepared.pack(native.prepared_boxes.FIELDS, words)

    def copy(
        self, found: FoundViews, options: RunOptions, holds: tuple[object, ...]
    ) -> Transfer | None:
        """Copy between two arrays like those; None, with nothing done, if that is another case.

        Parameters
        ----------
        found : FoundViews
            The arrays.
        options : RunOptions
            What the user said, with the handle of the stream.
        holds : tuple of object
            What must outlive the work.
        """
        if not self.run.holds(*options):
            return None
        memory, table = _NO_MEMORY, 0
        if self._buffers is not None:
            buffer = self._buffers.take_spare()
            if buffer is None:
                return None
            memory, table, holds = buffer.words, buffer.address, (buffer, *holds)
        _, src, dst = found
        return self.run.track(self._selections, holds, self._submit, src, dst, memory, table)

    def _submit(self, src: int, dst: int, memory: Any, table: int, event: int) -> int:
        done, code = self._driver.copy_box(self._words, self._form, src, dst, memory, table, event)
        if code:
            raise self.run.refused(code, 0)
        return int(done)


def copy_again(
    devices: Devices, found: FoundViews, options: RunOptions, holds: tuple[object, ...]
) -> Transfer | None:
    """Copy between views as between earlier ones; None, with nothing done, if they were others."""
    known: PreparedViews | None = devices.views.get(found.key)
    done = None if known is None else known.copy(found, options, holds)
    if known is not None and done is None:
        devices.views[found.key] = None  # in other memory, for example: prepared anew
    plan_cache.count(hit=done is not None)
    return done


def find_views(src: Any, dst: Any, options: RunOptions) -> FoundViews | None:
    """Read two views as cheaply as can be; None if they are to be read in full.

    Parameters
    ----------
    src, dst : array
        The views.
    options : RunOptions
        What the user said, with the handle of the stream.
    """
    source, destination = read_likeness(src), read_likeness(dst)
    if source is None or destination is None:
        return None
    (src_at, src_likeness), (dst_at, dst_likeness) = source, destination
    low_bits = src_at & _LOW_BITS, dst_at & _LOW_BITS
    key = options, src_likeness, dst_likeness, low_bits
    try:
        hash(key)
    except TypeError:  # the mode is an array, for example
        return None
    return FoundViews(key, src_at, dst_at)


def prepare_views(
    found: FoundViews, devices: Devices, run: PreparedRun | None, copies: Copies, pair: ViewPair
) -> None:
    """Remember how a copy between views ran, if views like these can be copied in the same way.

    Nothing is prepared at the first time: many views are seen once.
    """
    views = plan_cache.views_of(devices)
    if views is None:
        return
    if found.key not in views:
        views[found.key] = None
        plan_cache.trim_views(views)
        return
    if (
        not isinstance(run, PreparedLoop | PreparedLaunch)
        or len(copies) != 1
        or (isinstance(run, PreparedLaunch) and copies.boxes is None)
        or copies.direction not in (Direction.H2D, Direction.D2H)
        or not all(_is_simple(array) for array in (pair.src, pair.dst))
    ):
        return
    views[found.key] = PreparedViews(devices, run, copies, pair)


def _is_simple(array: BlockArray) -> bool:
    """Whether an array lies in one allocation, which is neither managed nor ordinary memory."""
    allocations = array.allocations
    return (
        len(allocations) == 1
        and allocations[0].kind in _KINDS
        and allocations[0].device_offset is not None
    )
