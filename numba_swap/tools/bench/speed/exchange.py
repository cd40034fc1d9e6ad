"""Both directions at once, as two swaps and as an exchange: sections of the speed suite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from numba_swap.swap.exchange.verbs import exchange, plan_exchange
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.gpu import address_of
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import measure, measure_in_turn
from numba_swap.tools.units import KIB, format_bytes

DUPLEX_TARGET = 0.67
EXCHANGE_TARGETS = {8 * KIB: 0.67, 64 * KIB: None, 256 * KIB: 0.88}


def _copy_both_ways(run: SpeedRun, other_stream: int) -> Callable[[], object]:
    """Return what copies half in each direction of the link, and waits: the duplex ceiling."""
    driver, stream, wait, half = run.gpu.driver, run.stream, run.gpu.wait, run.unit_bytes // 2
    host, device = address_of(run.memory.host()), address_of(run.memory.device())
    event = driver.create_event()

    def action() -> None:
        driver.memcpy_async(device, host, half, stream)
        driver.memcpy_async(host + half, device + half, half, other_stream)
        driver.record_event(event, other_stream)
        driver.synchronize_event(event)
        wait()

    return action


def measure_duplex(run: SpeedRun) -> None:
    """Both directions at once, each with its own plan and stream."""
    memory, unit, half = run.memory, run.unit_bytes, run.unit_bytes // 2
    other_stream = run.gpu.driver.create_stream()
    ceiling = measure(_copy_both_ways(run, other_stream), repeats=run.repeats)
    name = "contiguous, both directions at once"
    run.add_rate(name, ceiling, unit)
    host, device = memory.host(), memory.device()
    for size in (2 * KIB, 8 * KIB, 32 * KIB):
        plans = []
        for source, destination in ((host[:half], device[:half]), (device[half:], host[half:])):
            src, dst = (run.gpu.as_blocks(side, size, half) for side in (source, destination))
            plans.append(plan_blocks(src, dst, memory.mapping(src, dst, half // size // 2)))

        def both(plans: list[CopyPlan] = plans) -> None:
            transfers = [
                plan.run(stream)
                for plan, stream in zip(plans, (run.stream, other_stream), strict=True)
            ]
            for transfer in transfers:
                transfer.wait()

        samples = measure(both, repeats=run.repeats)
        nbytes = sum(plan.nbytes for plan in plans)
        name = f"both directions at once, {format_bytes(size)} blocks"
        run.add_rate(name, samples, nbytes, ceiling, DUPLEX_TARGET, block=size)


def measure_exchange(run: SpeedRun) -> None:
    """Measure `exchange` against both directions of one contiguous copy, in turn with it."""
    stream, unit = run.stream, run.unit_bytes
    ceiling_action = _copy_both_ways(run, run.gpu.driver.create_stream())
    rng = np.random.default_rng(0)
    for size, target in EXCHANGE_TARGETS.items():
        count = unit // 4 // size  # a quarter in each direction
        host, device = (
            run.gpu.as_blocks(side, size, unit) for side in (run.memory.host(), run.memory.device())
        )
        blocks, slots = (rng.permutation(unit // size) for _ in range(2))
        page_out = np.stack([slots[:count], blocks[:count]], axis=1)
        others = blocks[count : 2 * count]
        for words, page_in in (
            ("other slots", np.stack([others, slots[count : 2 * count]], axis=1)),
            ("same slots", np.stack([others, slots[:count]], axis=1)),
            ("in place", page_out[:, ::-1].copy()),
        ):
            plan = plan_exchange(device, host, page_out, page_in)
            samples = measure_in_turn(
                {
                    "ceiling": ceiling_action,
                    "planned": lambda p=plan: p.run(stream).wait(),  # type: ignore[misc]
                    "fresh": lambda i=page_in, d=device, h=host, o=page_out: exchange(  # type: ignore[misc]
                        d, h, o, i, stream=stream
                    ).wait(),
                },
                repeats=run.repeats,
            )
            ceiling = samples.pop("ceiling")
            decision = plan.explain(stream)
            way = "in pairs" if "pair by pair" in decision.reason else " and ".join(decision.modes)
            for how, measured in samples.items():
                name = f"exchange, {size // KIB} KiB blocks, {words}, {how} ({way})"
                aim = target if how == "planned" and words != "in place" else None
                case = {"block": size, "slots": words, "way": way, "how": how}
                case["ceiling_ns"] = ceiling.raw_ns
                run.add_rate(name, measured, plan.nbytes, ceiling, aim, **case)
