"""Both directions at once, beside a matrix product, and in a graph: sections of the speed suite."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_swap.copies.copies import Direction
from numba_swap.dispatch.settings import Policy
from numba_swap.modes.kernel import launch as kernel
from numba_swap.swap.exchange.verbs import exchange, plan_exchange
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.memory import GIB, Pools
from numba_swap.tools.bench.speed.rows import Row
from numba_swap.tools.bench.timing import Samples, measure, measure_in_turn

KIB, MIB = 1 << 10, 1 << 20
EXCHANGE_TARGETS = {8 * KIB: 0.67, 64 * KIB: None, 256 * KIB: 0.88}
EXCHANGE_BYTES = GIB // 4  # in each direction
SLOWED_TARGET = 1.10
BESIDE_TARGET = 0.6
BESIDE_BYTES = 64 * MIB
GRAPH_TARGET = 1.05
_MATRIX = 8192
_PRODUCTS = 30
_NS_A_MS = 1_000_000

Add = Callable[[Row], None]


def measure_exchange(pools: Pools, add: Add, repeats: int) -> None:
    """Measure `exchange` against both directions of one contiguous copy, in turn with it."""
    other_stream = pools.driver.create_stream()
    rng = np.random.default_rng(0)
    for size, target in EXCHANGE_TARGETS.items():
        count = EXCHANGE_BYTES // size
        host = pools.host.reshape(-1, size)
        device = pools.device[:GIB].reshape(-1, size)
        blocks, slots = rng.permutation(len(host)), rng.permutation(len(device))
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
                    "ceiling": lambda: pools.copy_both_ways(other_stream),
                    "planned": lambda p=plan: p.run(pools.stream).wait(),  # type: ignore[misc]
                    "fresh": lambda i=page_in, d=device, h=host, o=page_out: exchange(  # type: ignore[misc]
                        d, h, o, i, stream=pools.stream
                    ).wait(),
                },
                repeats=repeats,
            )
            ceiling = samples.pop("ceiling")
            decision = plan.explain(pools.stream)
            way = "in pairs" if "pair by pair" in decision.reason else " and ".join(decision.modes)
            for how, measured in samples.items():
                name = f"exchange, {size // KIB} KiB blocks, {words}, {how} ({way})"
                value = measured.rate(plan.nbytes) / ceiling.rate(GIB)
                details = {
                    "block": size,
                    "bytes": plan.nbytes,
                    "slots": words,
                    "way": way,
                    "ceiling_ns": ceiling.raw_ns,
                    "how": how,
                }
                aim = target if how == "planned" and words != "in place" else None
                add(Row(name, value, "ratio", aim, True, details, measured))


def measure_overlap(pools: Pools, add: Add) -> None:
    """Measure copies beside a bf16 matrix product, with policy "overlap" and without."""
    try:
        import torch
    except ImportError:
        add(
            Row(
                "beside a matrix product: not measured, PyTorch is not installed",
                float("nan"),
                "ratio",
                None,
                True,
                {},
                Samples(),
            )
        )
        return
    shape = (_MATRIX, _MATRIX)
    a, b = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product, stream = torch.empty_like(a), torch.cuda.Stream()

    def multiply() -> tuple[Any, Any]:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        with torch.cuda.stream(stream):
            events[0].record()
            for _ in range(_PRODUCTS):
                torch.matmul(a, b, out=product)
            events[1].record()
        return events[0], events[1]

    def alone() -> Samples:
        samples = Samples()
        for _ in range(7):
            begin, end = multiply()
            end.synchronize()
            samples.raw_ns.append(int(begin.elapsed_time(end) * _NS_A_MS))
        return samples

    alone()
    base = alone()
    for direction in (Direction.H2D, Direction.D2H):
        ceiling = measure(lambda d=direction: pools.copy_contiguous(d), repeats=5)  # type: ignore[misc]
        for size in (8 * KIB, 256 * KIB):
            source, destination = pools.blocks(direction, size)
            mapping = pools.mapping(source, destination, BESIDE_BYTES // size)
            plan = plan_blocks(source, destination, mapping)
            for policy in (Policy.OVERLAP, Policy.THROUGHPUT):
                slowed, rates = Samples(), []
                for _ in range(7):
                    last = plan.run(pools.stream, policy=policy)
                    begin, end = multiply()
                    start, swaps = time.perf_counter(), 0
                    while not end.query():
                        following = plan.run(pools.stream, policy=policy)
                        last.wait()
                        last, swaps = following, swaps + 1
                    seconds = time.perf_counter() - start
                    last.wait()
                    slowed.raw_ns.append(int(begin.elapsed_time(end) * _NS_A_MS))
                    rates.append(swaps * plan.nbytes / seconds)
                aimed = policy is Policy.OVERLAP and size == 8 * KIB
                where = (
                    f"{direction}, {size // KIB} KiB blocks, policy {policy} ({last.decision.mode})"
                )
                details = {
                    "direction": direction,
                    "block": size,
                    "policy": policy,
                    "mode": last.decision.mode,
                    "alone_ns": base.raw_ns,
                    "rates": rates,
                    "ceiling_ns": ceiling.raw_ns,
                }
                add(
                    Row(
                        f"matrix product slowed by copies {where}",
                        slowed.median_s / base.median_s,
                        "ratio",
                        SLOWED_TARGET if aimed else None,
                        False,
                        details,
                        slowed,
                    )
                )
                add(
                    Row(
                        f"copies beside it, {where}",
                        statistics.median(rates) / ceiling.rate(GIB),
                        "ratio",
                        BESIDE_TARGET if aimed else None,
                        True,
                        {"direction": direction, "block": size, "policy": policy},
                        slowed,
                    )
                )


def measure_capture(pools: Pools, add: Add) -> None:
    """Measure the launch of a captured swap against a graph of the same kernel launch."""
    from cuda.bindings import driver as cu

    def check(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise AssertionError(f"a graph call failed: {result[0]}")
        return result[1] if len(result) > 1 else None

    source, destination = pools.blocks(Direction.H2D, 4 * KIB)
    plan = plan_blocks(source, destination, pools.mapping(source, destination, 16))
    plan.run(pools.stream).wait()
    launch = kernel.find_launch(plan._copies, 0, None)
    driver = pools.driver

    def captured(action: Callable[[], object]) -> Any:
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(cu.cuStreamBeginCapture(pools.stream, mode))
        action()
        return check(cu.cuGraphInstantiate(check(cu.cuStreamEndCapture(pools.stream)), 0))

    def bare() -> None:
        arguments = (launch.function, launch.blocks, launch.threads, pools.stream)
        driver.launch_kernel(*arguments, launch.arguments, 0)

    graphs = {"swap": captured(lambda: plan.run(pools.stream)), "bare": captured(bare)}

    def replay(graph: Any) -> None:
        check(cu.cuGraphLaunch(graph, pools.stream))
        pools.wait()

    samples = {name: Samples() for name in graphs}
    for graph in list(graphs.values()) * 20:
        replay(graph)
    for turn in range(400):  # in turns: the two differ by less than the machine drifts
        for name in list(graphs)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter_ns()
            replay(graphs[name])
            samples[name].raw_ns.append(time.perf_counter_ns() - start)
    add(
        Row(
            "16 x 4 KiB, graph of a captured swap / graph of a bare launch",
            samples["swap"].median_s / samples["bare"].median_s,
            "ratio",
            GRAPH_TARGET,
            False,
            {"bare_ns": samples["bare"].raw_ns},
            samples["swap"],
        )
    )
