"""Both engines at once: what share of equally long copies the batch should get, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from numba_swap.copies.copies import Copies
from numba_swap.device.device import Device
from numba_swap.device.devices import devices_of
from numba_swap.dispatch.calibration import find_costs, use_costs
from numba_swap.dispatch.cost_model import CostModel, SharedCost
from numba_swap.dispatch.workload import share_out, workload_of
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.tools.bench.costs.measure import GridBoxes, GridSwap, SwapTimer
from numba_swap.tools.bench.timing import measure_in_turn

# Of the copies, what the batch gets. On a host that is read fast 0.2 to 0.3 was best with copies of
# 32 KiB to 256 KiB; where the kernel reads at half speed it should be more.
SHARES = (0.1, 0.2, 0.3, 0.45, 0.6)
_FEWER = 4  # what start and rate are told apart by
# How much faster it has to be than all in the best single mode.
_GAIN = 0.99


def measure_shared(
    timer: SwapTimer, device: Device, costs: CostModel, swap: GridSwap | GridBoxes
) -> dict[tuple[str, int], SharedCost]:
    """Time a swap with the engines' shares of it, and as it is chosen without.

    Parameters
    ----------
    timer : SwapTimer
        What has the memory.
    device : Device
        The GPU, which chooses by its own costs again afterwards.
    costs : CostModel
        To choose by without shares.
    swap : GridSwap or GridBoxes
        The swap.

    Returns
    -------
    dict of (str, int) to SharedCost
        The best share, under its route and class; empty if none is faster than no share at all.
    """
    copies = timer.plan(swap).copies
    fewer = copies.select(slice(0, len(copies) // _FEWER))
    shares = [s for s in SHARES if 0 not in (*share_out(len(fewer), s), len(fewer))]
    if not shares:  # too little memory for as many as it takes
        return {}
    load = workload_of(copies)
    key = load.route, load.terms[0][0]
    former = find_costs(device)
    try:
        whole_us, part_us = (
            _times_us(timer, device, some, costs, key, shares) for some in (copies, fewer)
        )
        share = min(shares, key=lambda s: whole_us[s])
        # Once more: the best of several is in part the luckiest.
        again_us = _times_us(timer, device, copies, costs, key, [share])
    finally:
        use_costs(device, former)
    shared_us = max(whole_us[share], again_us[share])
    if shared_us >= _GAIN * min(whole_us[None], again_us[None]):
        return {}
    megabytes = copies.nbytes * 1e-6, fewer.nbytes * 1e-6
    megabyte_us = max(0.0, (shared_us - part_us[share]) / (megabytes[0] - megabytes[1]))
    start_us = max(0.0, shared_us - megabyte_us * megabytes[0])
    return {key: SharedCost(share, round(start_us, 2), round(megabyte_us, 4))}


def _times_us(
    timer: SwapTimer,
    device: Device,
    copies: Copies,
    costs: CostModel,
    key: tuple[str, int],
    shares: Iterable[float],
) -> dict[float | None, float]:
    """Return the median time with each share, and under None that without one."""
    arms: dict[float | None, Callable[[], object]] = {
        None: _arm(timer, device, copies, costs._replace(shared={}))
    }
    for share in shares:
        always = {key: SharedCost(share, 0.0, 0.0)}
        arms[share] = _arm(timer, device, copies, costs._replace(shared=always))
    samples = measure_in_turn(arms, repeats=5, warmups=1, there_and_back=True)
    return {share: some.median_s * 1e6 for share, some in samples.items()}


def _arm(
    timer: SwapTimer, device: Device, copies: Copies, costs: CostModel
) -> Callable[[], object]:
    # A plan of its own, which remembers what it chose by these costs.
    plan = CopyPlan(devices_of(device.driver), copies)

    def run() -> None:
        use_costs(device, costs)
        # Whatever `override` or the environment says: it is the shares that are compared.
        plan.run(timer.stream, "auto", policy="throughput").wait()

    return run
