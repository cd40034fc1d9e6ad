"""The public verbs of copies: plan, swap, warm up."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

from numba_swap.copies.copies import Copies
from numba_swap.copies.ends import Direction
from numba_swap.copies.from_arrays import plan_layers, read_mapping
from numba_swap.copies.from_pointers import Validation, plan_pointers
from numba_swap.copies.inputs.mapping import Integers
from numba_swap.copies.layers import NAMES, ArgumentNames, LayerPair, device_of, read_arrays
from numba_swap.device.devices import Devices, devices_of
from numba_swap.device.streams import stream_handle
from numba_swap.device.tuning import DEFAULT_TUNING, Tuning
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.ranking import rank, split_by_share
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import uniform_workload, workload_of
from numba_swap.driver.current import current_driver
from numba_swap.swap.plans.blueprint import Blueprint
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.plans.plan_cache import ArrayPair, plan_cache
from numba_swap.swap.plans.prepared.rows import PreparedRows
from numba_swap.swap.plans.prepared.runs import PreparedLaunch
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.select import Selection
from numba_swap.swap.running.transfer import After, Transfer, wait_early


def plan_blocks(
    src: Any, dst: Any, block_mapping: Any, *, block_axis: int = 0, updatable: bool = False
) -> CopyPlan:
    """Check a swap of blocks once, to run it many times.

    Parameters
    ----------
    src, dst : array, or sequence of arrays
        Where the blocks come from and go to: one array each, or equally many layers (list or
        tuple) that share the mapping. An array is anything with ``__cuda_array_interface__``
        (Numba, CuPy), a NumPy array (pinned, mapped, managed or plain), a PyTorch tensor of any
        dtype of whole bytes (on a GPU, or on the CPU, pinned or not), or anything that speaks
        DLPack. The two may differ in strides, number of blocks and dtype, so long as their blocks
        have as many bytes.
    block_mapping : array_like of int, shape (n, 2)
        Of each row, the block of `src` that is read (column 0) and the block of `dst` that is
        written (column 1), in host memory.
    block_axis : int, optional
        The axis along which the blocks lie.
    updatable : bool, optional
        Keep every row a copy of its own, neighbours, too, so that `CopyPlan.update` can change
        what captured graphs copy.

    Returns
    -------
    CopyPlan
        Validated copies: empty ones dropped, neighbours merged. A block that is not contiguous
        is copied as a box: rows at a pitch, or more of them where it has more axes.

    Raises
    ------
    BadArgumentError
        A block axis that is no integer.
    BadPlanError
        Wrong shape or dtype of the mapping, blocks out of range, destination blocks written
        twice, one block written and read, unequal block sizes, a read-only destination. Nothing
        was copied.
    UnsupportedArrayError
        An argument that is no array.
    DriverUnavailableError
        No CUDA driver or device.

    Notes
    -----
    Bytes are copied as they are: dtypes are never converted, and masks of `numpy.ma` are ignored.
    Only the bytes of a block must agree.

    In one array, copies of a block onto itself are left out, and a swap that writes a block
    which another row reads is refused: the order of copies is not defined.

    Each row of the mapping is one copy. A mapping given the other way round, sources in row 0 and
    destinations in row 1, is refused by its shape, unless it is of two copies: ``[[3, 5], [0, 1]]``
    is block 3 to 5 and block 0 to 1. Nothing tells whether 3 to 0 and 5 to 1 was meant.
    """
    devices = current_devices()
    mapping = read_mapping(block_mapping)
    layers = read_arrays(devices.driver, src, dst, block_axis)
    asked = layers if len(mapping) else []  # of no rows nothing is asked
    with asking_about(devices, asked):
        tuning = tuning_for(devices, asked)
        copies = plan_layers(
            devices, layers, mapping, NAMES.mapping, tuning, in_order=bool(updatable)
        )
        made = Blueprint.of(devices, layers, mapping, tuning, in_order=bool(updatable))
    return CopyPlan(devices, copies, made)


def swap_blocks(
    src: Any,
    dst: Any,
    block_mapping: Any,
    *,
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Copy blocks between arrays: ``dst[mapping[i, 1]] = src[mapping[i, 0]]`` for every row.

    Parameters
    ----------
    src, dst, block_mapping, block_axis
        As for `plan_blocks`.
    stream : stream, int or None, optional
        Where the copies are enqueued, after the work already there and before what follows: a
        stream of Numba, PyTorch, CuPy or PyCUDA, any object with ``__cuda_stream__``, or a handle.
        None is Numba's default stream, of every GPU whose memory takes part. In a stream of yet
        another GPU the copies only stand in that stream's order.
    mode : {"auto", "batch", "loop", "kernel", "staged"} or Mode, optional
        How to copy; ``"auto"`` chooses by the driver, the memory and the sizes, whatever
        `override` or the environment force. By default what these force, else ``"auto"``.
    policy : {"throughput", "overlap", "latency"} or Policy, optional
        What the choice is to be good for (see `Policy`); by default what `override` or the
        environment says, else ``"throughput"``.
    max_blocks : int, optional
        The most thread blocks that a kernel may have, to leave room for other kernels.
    after : Transfer or iterable of Transfer, optional
        What the copies are to come after, in whatever streams that is: `stream` waits for it, the
        host does not.

    Returns
    -------
    Transfer
        The call returns as soon as the work is enqueued: wait on this, or on the stream.

    Raises
    ------
    NumbaSwapError
        As for `plan_blocks` and `CopyPlan.run`.

    Notes
    -----
    Plain NumPy memory, which is pageable, is moved by the host itself where that is the fastest
    (mode ``"staged"``). Such a call returns later. From the host: it waits for what is in the
    stream already, and returns when all of the source has been read, which may be changed then.
    To the host: it returns when all of the destination has been written.
    """
    devices = current_devices()
    known = plan_cache.find(devices, src, dst, block_axis)
    options = RunOptions(stream_handle(stream), mode, max_blocks, policy)
    if after is not None:
        after = wait_early(after, options.stream)
    rows: PreparedRows | None = None
    if known is not None and not after:
        rows = known.prepared(options.stream)
        if rows is not None:
            transfer = rows.copy(block_mapping, options, (src, dst, stream))
            if transfer is not None:
                return transfer
    request = RowsRequest(src, dst, block_mapping, block_axis, stream, after)
    return _swap_anew(devices, request, options, known, rows)


class RowsRequest(NamedTuple):
    """What is to be swapped, and what the user calls it.

    Attributes
    ----------
    src, dst, mapping, axis, stream, after
        As for `swap_blocks`.
    names : ArgumentNames
        For messages.
    """

    src: Any
    dst: Any
    mapping: Any
    axis: int
    stream: Any
    after: After
    names: ArgumentNames = NAMES


def swap_rows(request: RowsRequest, options: RunOptions) -> Transfer:
    """Do what `swap_blocks` does, for verbs whose arguments have other names.

    (It is not called there: the short way of a repeated swap has no time for another call.)
    """
    devices = current_devices()
    src, dst, mapping, axis, stream, after, _ = request
    known = plan_cache.find(devices, src, dst, axis)
    options = options._replace(stream=stream_handle(stream))
    if after is not None:
        after = wait_early(after, options.stream)
    rows: PreparedRows | None = None
    if known is not None and not after:
        rows = known.prepared(options.stream)
        transfer = None if rows is None else rows.copy(mapping, options, (src, dst, stream))
        if transfer is not None:
            return transfer
    return _swap_anew(devices, request._replace(after=after), options, known, rows)


def _swap_anew(
    devices: Devices,
    request: RowsRequest,
    options: RunOptions,
    known: ArrayPair | None,
    rows: PreparedRows | None,
) -> Transfer:
    """Plan a swap and run it; remember how, for the next one between the same arrays."""
    src, dst, block_mapping, axis, stream, after, names = request
    mapping = read_mapping(block_mapping, names.mapping)
    if known is None:
        layers = read_arrays(devices.driver, src, dst, axis, names)
    else:
        layers = known.layers_of(src, dst)
    copies = _plan(devices, layers, mapping, names.mapping)
    plan = CopyPlan(devices, copies)
    _, mode, max_blocks, policy = options
    transfer = plan.run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)
    if known is None:
        known = plan_cache.remember(devices, src, dst, axis, layers)
    outdated = rows is None or not rows.stays_right(options, layers[0])
    if known is not None and isinstance(plan.last, PreparedLaunch) and outdated:
        _prepare_rows(known, plan.last, copies)
    return transfer


def _plan(
    devices: Devices, layers: list[LayerPair], mapping: Integers, name: str = NAMES.mapping
) -> Copies:
    asked = layers if len(mapping) else []  # of no rows nothing is asked
    with asking_about(devices, asked):
        tuning = tuning_for(devices, asked)
        return plan_layers(devices, layers, mapping, name, tuning)


def _prepare_rows(known: ArrayPair, run: PreparedLaunch, copies: Copies) -> None:
    """Remember how copies between two arrays ran, if other rows can be copied so."""
    pair, tuning = known.layers[0], run.launched.device.tuning
    if (
        len(known.layers) > 1
        or copies.direction not in (Direction.H2D, Direction.D2H)
        or copies.table is None
        or pair.layout.may_alias
        or any(len(array.allocations) > 1 for array in (pair.src, pair.dst))
        or tuning.may_be_grouped(len(copies), copies.uniform)
    ):
        return

    decision, conditions = run.selection.decision, run.launched.conditions
    costs, route = find_costs(run.launched.device), workload_of(copies).route
    size, bits = copies.uniform, copies.alignment_bits

    def select(count: int) -> tuple[Selection, ...]:
        if tuning.may_be_grouped(count, size):
            return ()
        workload, chosen = uniform_workload(route, count, size, bits), decision
        if not decision.forced:
            ranked = rank(costs, workload, conditions)
            if ranked[0][1] is not Mode.KERNEL:
                return ()
            if split_by_share(costs, workload, conditions, ranked[0][0]) is not None:
                return ()
            chosen = decision._replace(ranked=ranked, rejected={})
        return (Selection(chosen._replace(copies=count, nbytes=workload.nbytes)),)

    bare = run.without_work()
    known.prepare(run.stream, lambda: PreparedRows(bare, pair, 16, select))


def swap_blocks_batch(
    src_ptrs: Any,
    dst_ptrs: Any,
    sizes: Any,
    *,
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
    validate: Validation = "bounds",
) -> Transfer:
    """Copy between raw addresses, ``sizes[i]`` bytes from ``src_ptrs[i]`` to ``dst_ptrs[i]``.

    Parameters
    ----------
    src_ptrs, dst_ptrs, sizes : array_like of int, shape (n,)
        Addresses, and lengths in bytes, in host memory (NumPy, list, CPU tensor).
    stream, mode, policy, max_blocks, after
        As for `swap_blocks`.
    validate : {"bounds", "full", "none"}, optional
        ``"bounds"``: every copy lies, at both sides, wholly inside one allocation that CUDA
        knows, or inside mapped memory of this process; the driver is asked once an allocation.
        ``"full"``: also, no two destinations overlap, and no copy writes what another reads.
        ``"none"``: nothing but lengths and dtypes is checked. The first address of each side is
        taken to tell what kind of memory all of them are, and a wrong address kills the process,
        overwrites memory of others, or breaks the CUDA context for good.

    Returns
    -------
    Transfer
        What to wait on. Nothing but the caller keeps the memory alive: it must outlive the copy.

    Raises
    ------
    BadPlanError
        Unequal lengths, a negative size, a null pointer, an address that is no memory, a copy
        that runs past its allocation, copies that overlap if that was asked for. Nothing was
        copied.
    BadArgumentError
        Another value of `validate`.
    NumbaSwapError
        As for `CopyPlan.run`.

    Notes
    -----
    Addresses and sizes need no alignment. The order of copies is not defined: the result of
    overlapping ones, which only ``validate="full"`` looks for, is not either, but they touch no
    other memory.
    """
    devices = current_devices()
    plan = CopyPlan(devices, plan_pointers(devices.driver, src_ptrs, dst_ptrs, sizes, validate))
    return plan.run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)


def current_devices() -> Devices:
    """Return the GPUs of the driver in use, initialised.

    Raises
    ------
    DriverUnavailableError
        No CUDA driver or device.
    """
    driver = current_driver()
    if not driver.initialized:
        driver.initialize()
    return devices_of(driver)


def asking_about(
    devices: Devices, layers: list[LayerPair]
) -> contextlib.AbstractContextManager[None]:
    """Let the calling thread have a context while the driver is asked about arrays."""
    arrays = [array for pair in layers for array in (pair.src, pair.dst)]
    return devices.asking_about([array.address for array in arrays])


def tuning_for(devices: Devices, layers: list[LayerPair]) -> Tuning:
    """Return the figures of the GPU whose memory takes part."""
    device = device_of(layers)
    return DEFAULT_TUNING if device is None else find_costs(devices[device]).tuning
