"""Blocks out and other blocks in, in one call: `exchange`."""

from __future__ import annotations

from typing import Any

from numba_swap.copies.copies import Pairs
from numba_swap.copies.from_arrays import read_mapping
from numba_swap.copies.layers import LayerPair, read_arrays
from numba_swap.device.devices import Devices
from numba_swap.device.memory import MemoryKind
from numba_swap.device.streams import stream_handle
from numba_swap.dispatch.calibration import find_costs
from numba_swap.dispatch.decision import Decision, join_decisions
from numba_swap.dispatch.ranking import predict_duplex, predict_pairs, rank
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import uniform_workload, workload_of
from numba_swap.errors import BadPlanError
from numba_swap.swap.exchange.plan import ExchangePlan, decide_pairs
from numba_swap.swap.exchange.pools import OUT_NAMES, ExchangePools
from numba_swap.swap.plans.plan_cache import ArrayPair, plan_cache
from numba_swap.swap.plans.prepared.rows import PreparedRows
from numba_swap.swap.plans.prepared.runs import PreparedLaunch
from numba_swap.swap.running.context import RunOptions
from numba_swap.swap.running.select import Selection, steps_of
from numba_swap.swap.running.transfer import After, Transfer, wait_early
from numba_swap.swap.verbs import asking_about, current_devices, tuning_for


def exchange(
    device: Any,
    host: Any,
    page_out: Any,
    page_in: Any,
    *,
    block_axis: int = 0,
    stream: Any = None,
    mode: Mode | str | None = None,
    policy: Policy | str | None = None,
    max_blocks: int | None = None,
    after: After = None,
) -> Transfer:
    """Copy blocks out and other blocks in, in both directions of the link at once.

    ``host[j] = device[i]`` for every row ``[i, j]`` of `page_out`, and ``device[j] = host[i]`` for
    every row ``[i, j]`` of `page_in`, as if every block were read before any is written.

    Parameters
    ----------
    device, host : array, or sequence of arrays
        The two pools of blocks, as for `numba_swap.plan_blocks`; they share no memory. What this
        is for is a pool on the device and a larger one in pinned memory. Both may lie on devices,
        or both on the host, but not the first on the host and the second on a device: that is
        taken for the wrong order, and refused.
    page_out : array_like of int, shape (n, 2)
        Of each row, the block of `device` that is read (column 0) and the block of `host` that is
        written (column 1).
    page_in : array_like of int, shape (m, 2)
        Of each row, the block of `host` that is read (column 0) and the block of `device` that is
        written (column 1). In both, the source comes first, as in `numba_swap.swap_blocks`; so
        slots of `device` stand in column 0 of `page_out` and in column 1 of `page_in`.
    block_axis, stream, mode, policy, max_blocks, after
        As for `numba_swap.swap_blocks`.

    Returns
    -------
    Transfer
        One for both directions.

    Raises
    ------
    BadPlanError
        As for `numba_swap.plan_blocks`; or the two pools share memory, or stand in the wrong
        order. Nothing was copied.
    NumbaSwapError
        As for `numba_swap.CopyPlan.run`. An error that comes after some steps says how many were
        submitted; what else it says of copies submitted holds for its own step.

    Notes
    -----
    A slot of `device` that is read and overwritten is no conflict, nor is a block of `host`.

    Where a kernel can reach both pools, and no row meets more than one row of the other direction
    (what comes into a slot may replace what goes out of it, and come from where that goes to), one
    kernel can make the copies pair by pair: every thread reads what goes out and what comes in
    before it writes either. This needs no memory and no other streams, and uses both directions of
    the link all the time. Rows without a counterpart follow in the same stream. It is done where it
    is predicted to be faster, which is so for blocks of up to about 64 KiB, and always in mode
    ``"kernel"``.

    Otherwise both directions run side by side, in private streams. If one of them overwrites what
    the other one reads, the other goes ahead, piece by piece. If each overwrites what the other
    reads, what comes into a slot that is still to be read is staged in device memory until what is
    in the slot has left: in two pieces of 64 MiB, or of one block if that is longer. Where rows
    depend on each other in a way that no order of pieces resolves (a block goes out to where a
    later one comes from), all that comes in is staged at once, which needs as much device memory,
    rounded up to a power of two. A plan keeps the memory for its later runs. In a stream that is
    being captured, and with policy ``"latency"``, the directions then run one after another.
    """
    devices = current_devices()
    known = plan_cache.find(devices, device, host, block_axis, "exchange")
    options = RunOptions(stream_handle(stream), mode, max_blocks, policy)
    if after is not None:
        after = wait_early(after, options.stream)
    rows: PreparedRows | None = None
    if known is not None and not after:
        rows = known.prepared(options.stream)
        if rows is not None:
            transfer = rows.exchange(page_out, page_in, options, (device, host, stream))
            if transfer is not None:
                return transfer
    if known is None:
        layers = read_arrays(devices.driver, device, host, block_axis, OUT_NAMES)
    else:
        layers = known.layers_of(device, host)
    plan = _plan(devices, layers, page_out, page_in)
    transfer = plan.run(stream, mode, policy=policy, max_blocks=max_blocks, after=after)
    if known is None:
        known = plan_cache.remember(devices, device, host, block_axis, layers, "exchange")
    outdated = rows is None or not rows.stays_right(options, layers[0])
    if known is not None and isinstance(plan.last, PreparedLaunch) and outdated:
        _prepare_rows(known, plan.last)
    return transfer


def plan_exchange(
    device: Any, host: Any, page_out: Any, page_in: Any, *, block_axis: int = 0
) -> ExchangePlan:
    """Check an exchange once, to run it many times.

    Parameters
    ----------
    device, host, page_out, page_in, block_axis
        As for `exchange`.

    Returns
    -------
    ExchangePlan
        Checked copies.

    Raises
    ------
    NumbaSwapError
        As for `exchange`.
    """
    devices = current_devices()
    layers = read_arrays(devices.driver, device, host, block_axis, OUT_NAMES)
    return _plan(devices, layers, page_out, page_in)


def _plan(devices: Devices, layers: list[LayerPair], page_out: Any, page_in: Any) -> ExchangePlan:
    # Copied, for they are read again when it is decided how to run.
    rows = read_mapping(page_out, "page_out").copy(), read_mapping(page_in, "page_in").copy()
    if not layers:  # of no layers nothing is copied, whatever the rows
        rows = rows[0][:0], rows[1][:0]
    asked = layers if any(map(len, rows)) else []
    with asking_about(devices, asked):
        _check_order(asked)
        tuning = tuning_for(devices, asked)
        return ExchangePlan(devices, ExchangePools(devices, layers), rows, tuning)


def _check_order(layers: list[LayerPair]) -> None:
    """Refuse pools that stand in the order of `swap_blocks`: rows would go the other way.

    Raises
    ------
    BadPlanError
        If the first lies on the host and the second on a device, in all layers. Managed memory may
        be meant as either.
    """
    first, second = (
        {allocation.kind for array in arrays for allocation in array.allocations}
        for arrays in ([pair.src for pair in layers], [pair.dst for pair in layers])
    )
    if first and first <= _ON_HOST and second == {MemoryKind.DEVICE}:
        raise BadPlanError(
            f"the first pool lies in {' and '.join(sorted(first))} host memory and the second on a "
            "device, the wrong way round: call exchange(device, host, page_out, page_in). The pool "
            "on the device comes first, whichever way the blocks go; it is swap_blocks that takes "
            "the source first"
        )


_ON_HOST = {MemoryKind.PINNED, MemoryKind.PAGEABLE}


def _prepare_rows(known: ArrayPair, run: PreparedLaunch) -> None:
    """Remember how an exchange ran, if other rows can be exchanged so."""
    (step,) = steps_of(run.selection)
    pairs, pair = step.work, known.layers[0]
    if (
        not isinstance(pairs, Pairs)
        or len(known.layers) > 1
        or pair.layout.may_alias
        or not pairs.out.uniform
        or len(pair.layout.src_offsets) > 1
        or pairs.out.table is None
    ):
        return
    former, launch = run.selection.decision, run.launched
    costs, size = find_costs(launch.device), pairs.out.uniform
    routes = [workload_of(some).route for some in (pairs.out, pairs.into)]
    bits = pairs.out.alignment_bits | pairs.into.alignment_bits
    directions = pairs.out.direction, pairs.into.direction

    def select(count: int) -> tuple[Selection, ...]:
        out, into = (uniform_workload(route, count, size, bits) for route in routes)
        workloads, conditions = (out, into), launch.conditions
        beside = conditions._replace(duplex=conditions.may_use_private_streams)
        decisions = []
        for workload, direction in zip(workloads, directions, strict=True):
            ranked = rank(costs, workload, beside)
            mode = former.mode if former.forced else ranked[0][1]
            decisions.append(
                former._replace(
                    mode=mode,
                    direction=direction,
                    copies=count,
                    nbytes=workload.nbytes,
                    ranked=ranked,
                    note="",
                )
            )
        apart: Decision = join_decisions(
            decisions[0], decisions, at_once=conditions.may_use_private_streams
        )
        # Whether it would be staged, the rows tell: what is chosen must be right either way.
        times = [
            predict_duplex(costs.tuning, apart.predicted_us or 0.0, conditions, staged=staged)
            for staged in (False, True)
        ]
        if not former.forced and predict_pairs(costs, workloads, conditions) > times[0]:
            return ()
        return tuple(Selection(decide_pairs(workloads, apart, us, launch)) for us in times)

    bare = run.without_work()
    known.prepare(run.stream, lambda: PreparedRows(bare, pair, 32, select))
