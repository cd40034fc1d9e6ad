"""The public verbs of boxes: views of n-D arrays, one, many unlike ones, or many of one shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numba_swap.copies.block_array import BlockArray
from numba_swap.copies.boxes.edges import Edge
from numba_swap.copies.boxes.from_origins import plan_origins, read_boxes
from numba_swap.copies.boxes.from_views import ViewPair, plan_views
from numba_swap.device.devices import Devices
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.errors import BadArgumentError, BadPlanError
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.plans.prepared.views import copy_again, find_views, prepare_views
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.transfer import After, Transfer, wait_early
from numba_swap.swap.verbs import current_devices


def plan_copy(src: Any, dst: Any) -> CopyPlan:
    """Check a copy from one view to another once, to run it many times.

    Parameters
    ----------
    src, dst : array
        Views of one shape, on either side, of any strides, negative ones too: slices of n-D
        arrays for example. An array is what `plan_blocks` takes. Elements must have equally many
        bytes; these are copied as they are, and never converted.

    Returns
    -------
    CopyPlan
        The checked copy.

    Raises
    ------
    BadPlanError
        Unlike shapes or element sizes, a read-only destination, one whose elements share memory,
        or views that overlap. Nothing was copied.
    UnsupportedArrayError
        An argument that is no array.
    DriverUnavailableError
        No CUDA driver or device.
    """
    devices = current_devices()
    return _plan_views(devices, [_pair_of(devices, src, dst)])


def copy(
    src: Any,
    dst: Any,
    *,
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Copy a view of an n-D array into another of the same shape: ``dst[...] = src``.

    Parameters
    ----------
    src, dst
        As for `plan_copy`.
    stream, mode, policy, max_blocks, after
        As for `swap_blocks`.

    Returns
    -------
    Transfer
        The call returns as soon as the work is enqueued: wait on this, or on the stream.

    Raises
    ------
    NumbaSwapError
        As for `plan_copy` and `CopyPlan.run`.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     field = gpu.pinned_array((8, 8, 8), np.float32)
    ...     field[:] = np.arange(512).reshape(8, 8, 8)
    ...     tile = gpu.device_array((2, 4, 3), np.float32)
    ...     ns.copy(field[1:3, 2:6, 5:8], tile).wait()
    ...     bool((tile.copy_to_host() == field[1:3, 2:6, 5:8]).all())
    True
    """
    devices = current_devices()
    options = RunOptions(stream_handle(stream), mode, max_blocks, policy)
    found = find_views(src, dst, options)
    if after is not None:
        after = wait_early(after, options.stream)
    if found is not None and not after:
        done = copy_again(devices, found, options, (src, dst, stream))
        if done is not None:
            return done
    pair = _pair_of(devices, src, dst)
    plan = _plan_views(devices, [pair])
    transfer = plan.run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)
    if found is not None:
        prepare_views(found, devices, plan.last, plan.copies, pair)
    return transfer


def plan_many(pairs: Iterable[tuple[Any, Any]]) -> CopyPlan:
    """Check copies between pairs of views once, to run them many times.

    Parameters
    ----------
    pairs : iterable of (array, array)
        Source and destination of each copy, as for `plan_copy`. The copies run in no defined
        order, and may go in several directions.

    Returns
    -------
    CopyPlan
        The checked copies.

    Raises
    ------
    BadArgumentError
        `pairs` is no iterable.
    BadPlanError
        As for `plan_copy`; or what one pair writes, another reads or writes too. `index` is the
        pair. Nothing was copied.
    UnsupportedArrayError, DriverUnavailableError
        As for `plan_copy`.
    """
    devices = current_devices()
    try:
        listed = iter(pairs)
    except TypeError:
        raise BadArgumentError(
            f"pairs is a {type(pairs).__name__}: give a list of (source, destination)"
        ) from None
    read = []
    for i, pair in enumerate(listed):
        if not isinstance(pair, (tuple, list)) or len(pair) != _SIDES:
            raise BadPlanError(
                f"pairs[{i}] is a {type(pair).__name__}, no pair of a source and a destination: "
                "give a list of (source, destination)",
                i,
            )
        read.append(ViewPair(*_read(devices, *pair, f" of pair {i}"), f"pair {i}"))
    return _plan_views(devices, read)


def copy_many(
    pairs: Iterable[tuple[Any, Any]],
    *,
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Copy between pairs of views, checked and moved as one: ``dst[...] = src`` for each.

    Parameters
    ----------
    pairs
        As for `plan_many`.
    stream, mode, policy, max_blocks, after
        As for `swap_blocks`.

    Returns
    -------
    Transfer
        What to wait on.

    Raises
    ------
    NumbaSwapError
        As for `plan_many` and `CopyPlan.run`.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     u, v = gpu.pinned_array((4, 6), np.float32), gpu.pinned_array((4, 6), np.float64)
    ...     u[:], v[:] = 1, 2
    ...     inner, edge = gpu.device_array((2, 4), np.float32), gpu.device_array((4,), np.float64)
    ...     ns.copy_many([(u[1:3, 1:5], inner), (v[:, 0], edge)]).wait()
    ...     float(inner.copy_to_host().sum()), float(edge.copy_to_host().sum())
    (8.0, 8.0)
    """
    return plan_many(pairs).run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)


def plan_boxes(
    src: Any,
    dst: Any,
    src_origins: Any,
    dst_origins: Any,
    box_shape: Any,
    *,
    edge: Edge = "error",
) -> CopyPlan:
    """Check copies of boxes of one shape once, to run them many times.

    Parameters
    ----------
    src, dst : array
        Where the boxes come from and go to, as for `plan_copy`, but of any shapes.
    src_origins : array_like of int, shape (n, src.ndim)
        Index of each box's first element in the source.
    dst_origins : array_like of int, shape (n, dst.ndim)
        The same in the destination.
    box_shape : sequence of int
        Lengths of a box along the last axes of both arrays, in elements. Along axes before those
        a box has the length 1: so boxes of a field ``(Z, Y, X)`` go into slots of a pool
        ``(slots, z, y, x)``, at origins ``[slot, 0, 0, 0]``. ``()`` copies single elements.
    edge : {"error", "clip", "wrap"}, optional
        What to do with boxes that reach beyond either array along the axes of the box, also by
        negative origins: refuse them; copy only what lies inside both arrays, and leave the rest
        of the destination as it is; or go on at the other side, as in a periodic field, for boxes
        no longer than either array. Along axes before those of the box nothing may reach beyond.

    Returns
    -------
    CopyPlan
        The checked copies.

    Raises
    ------
    BadArgumentError
        A box shape of too many axes, or of a negative length; another `edge`.
    BadPlanError
        A box that is not inside; boxes that are written twice, or written and read; origins of a
        wrong shape; and as for `plan_copy`. `index` is the row. Nothing was copied.
    UnsupportedArrayError, DriverUnavailableError
        As for `plan_copy`.

    Notes
    -----
    Planning takes time by the number of boxes, whatever their size.
    """
    devices = current_devices()
    arrays = _read(devices, src, dst, "")
    call = read_boxes(*arrays, src_origins, dst_origins, box_shape)
    with devices.asking_about([array.address for array in arrays]):
        return CopyPlan(devices, plan_origins(devices.driver, call, edge))


def copy_boxes(
    src: Any,
    dst: Any,
    src_origins: Any,
    dst_origins: Any,
    box_shape: Any,
    *,
    edge: Edge = "error",
    stream: Any = None,
    mode: Mode | str = "auto",
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Copy boxes of one shape between n-D arrays.

    Parameters
    ----------
    src, dst, src_origins, dst_origins, box_shape, edge
        As for `plan_boxes`.
    stream, mode, policy, max_blocks, after
        As for `swap_blocks`.

    Returns
    -------
    Transfer
        What to wait on.

    Raises
    ------
    NumbaSwapError
        As for `plan_boxes` and `CopyPlan.run`.

    Examples
    --------
    Two tiles of a periodic field, each with a halo of one element, into slots of a pool:

    >>> import numpy as np
    >>> import numba_swap as ns
    >>> with ns.simulate() as gpu:
    ...     field = gpu.pinned_array((8, 8), np.float32)
    ...     field[:] = np.arange(64).reshape(8, 8)
    ...     pool = gpu.device_array((2, 6, 6), np.float32)
    ...     corners, slots = [[-1, -1], [3, 3]], [[0, 0, 0], [1, 0, 0]]
    ...     ns.copy_boxes(field, pool, corners, slots, (6, 6), edge="wrap").wait()
    ...     tiles = pool.copy_to_host()
    ...     float(tiles[0, 0, 0]), float(tiles[1, 0, 0])
    (63.0, 27.0)
    """
    plan = plan_boxes(src, dst, src_origins, dst_origins, box_shape, edge=edge)
    return plan.run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)


_SIDES = 2


def _read(devices: Devices, src: Any, dst: Any, suffix: str) -> tuple[BlockArray, BlockArray]:
    driver = devices.driver
    return BlockArray(driver, src, 0, f"src{suffix}"), BlockArray(driver, dst, 0, f"dst{suffix}")


def _pair_of(devices: Devices, src: Any, dst: Any) -> ViewPair:
    return ViewPair(*_read(devices, src, dst, ""), "the copy")


def _plan_views(devices: Devices, pairs: list[ViewPair]) -> CopyPlan:
    addresses = [array.address for pair in pairs for array in (pair.src, pair.dst)]
    with devices.asking_about(addresses):
        return CopyPlan(devices, plan_views(devices.driver, pairs))
