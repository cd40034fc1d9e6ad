"""Copies beside a matrix product: a section of the speed suite."""

from __future__ import annotations

import statistics
import time
from typing import Any

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import Policy
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import Samples
from numba_swap.tools.units import KIB, MIB

SLOWED_TARGET = 1.10
BESIDE_TARGET = 0.6
BESIDE_BYTES = 64 * MIB
_MATRIX = 8192
_PRODUCTS = 30
_NS_A_MS = 1_000_000


def measure_overlap(run: SpeedRun) -> None:
    """Measure copies beside a bf16 matrix product, with policy "overlap" and without."""
    try:
        import torch
    except ImportError:
        name = "beside a matrix product: not measured, PyTorch is not installed"
        run.add(name, float("nan"), Samples())
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
        ceiling = run.measure_ceiling(direction, repeats=5)
        for size in (8 * KIB, 256 * KIB):
            source, destination = run.memory.blocks(direction, size)
            mapping = run.memory.mapping(source, destination, BESIDE_BYTES // size)
            plan = plan_blocks(source, destination, mapping)
            for policy in (Policy.OVERLAP, Policy.THROUGHPUT):
                slowed, rates = Samples(), []
                for _ in range(7):
                    last = plan.run(run.stream, policy=policy)
                    begin, end = multiply()
                    start, swaps = time.perf_counter(), 0
                    while not end.query():
                        following = plan.run(run.stream, policy=policy)
                        last.wait()
                        last, swaps = following, swaps + 1
                    seconds = time.perf_counter() - start
                    last.wait()
                    slowed.raw_ns.append(int(begin.elapsed_time(end) * _NS_A_MS))
                    rates.append(swaps * plan.nbytes / seconds)
                aimed = policy is Policy.OVERLAP and size == 8 * KIB
                mode = last.decision.mode
                where = f"{direction}, {size // KIB} KiB blocks, policy {policy} ({mode})"
                case: dict[str, Any] = {"direction": direction, "block": size, "policy": policy}
                run.add(
                    f"matrix product slowed by copies {where}",
                    slowed.median_s / base.median_s,
                    slowed,
                    SLOWED_TARGET if aimed else None,
                    at_least=False,
                    **case,
                    mode=mode,
                    alone_ns=base.raw_ns,
                    rates=rates,
                    ceiling_ns=ceiling.raw_ns,
                )
                run.add(
                    f"copies beside it, {where}",
                    statistics.median(rates) / ceiling.rate(run.unit_bytes),
                    slowed,
                    BESIDE_TARGET if aimed else None,
                    **case,
                )
