"""What a call costs, in the whole, in planning, and within a graph: sections of the speed suite."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import Mode
from numba_swap.modes.kernel.table import Launch
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.plans.prepared.runs import PreparedLaunch
from numba_swap.swap.verbs import plan_blocks, swap_blocks
from numba_swap.tools.bench.gpu import BenchGPU
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import measure, measure_in_turn
from numba_swap.tools.units import KIB

RUN_LATENCY_TARGET = 1.15
FRESH_LATENCY_TARGET = 1.6
ENQUEUE_TARGET_S = 200e-6
PLAN_TARGET_S = 50e-3
GRAPH_TARGET = 1.05


def measure_latency(run: SpeedRun) -> None:
    """Sixteen blocks of 4 KiB, against a bare launch of the same kernel."""
    size, count, stream = 4 * KIB, 16, run.stream
    arrays = run.memory.blocks(Direction.H2D, size)
    mapping = run.memory.mapping(*arrays, count)
    plan = plan_blocks(*arrays, mapping)
    if plan.explain(stream).mode is not Mode.KERNEL:
        run.report("latency: skipped, for these copies run in another mode here")
        return
    plan.run(stream).wait()
    samples = measure_in_turn(
        {
            "bare": bare_launch(run.gpu, plan),
            "run": lambda: plan.run(stream).wait(),
            "fresh": lambda: swap_blocks(*arrays, mapping, stream=stream).wait(),
        },
        repeats=20,
        warmups=0,
        runs=(10, 100),
        there_and_back=True,
    )
    bare = samples["bare"].median_s
    case: dict[str, Any] = {"direction": Direction.H2D, "block": size, "count": count}
    run.add("16 x 4 KiB, bare launch", bare, samples["bare"], unit="s", **case)
    for name, target, words in (
        ("run", RUN_LATENCY_TARGET, "plan.run to completion / bare launch"),
        ("fresh", FRESH_LATENCY_TARGET, "swap_blocks, fresh mapping / bare launch"),
    ):
        ratio = samples[name].median_s / bare
        run.add(f"16 x 4 KiB, {words}", ratio, samples[name], target, at_least=False, **case)


def _kernel_of(plan: CopyPlan) -> Launch:
    """Return the kernel launch that a plan ran as."""
    assert isinstance(plan.last, PreparedLaunch)
    return plan.last.kernel


def bare_launch(gpu: BenchGPU, plan: CopyPlan) -> Callable[[], object]:
    """Return a plain ``cuLaunchKernel`` of the plan's kernel, and a wait for its stream."""
    driver, stream = gpu.driver, gpu.stream
    prepared = _kernel_of(plan)
    values = (ctypes.c_int64 * len(prepared.arguments))(*prepared.arguments)
    pointers = (ctypes.c_void_p * len(values))(
        *(ctypes.addressof(values) + 8 * i for i in range(len(values)))
    )
    launch = driver.entry_points.function("cuLaunchKernel")
    record = driver.entry_points.function("cuEventRecord")
    synchronize = driver.entry_points.function("cuEventSynchronize")
    event = driver.create_event()
    grid, block = (prepared.blocks, 1, 1), (prepared.threads, 1, 1)

    # The driver reads the parameters through `pointers` at every launch: `values` must live.
    def action(kept: object = values) -> None:
        codes = (
            launch(prepared.function, *grid, *block, 0, stream, pointers, None),
            record(event, stream),
            synchronize(event),
        )
        if any(codes):
            raise AssertionError(f"the bare launch failed: {codes}")

    return action


def measure_planning(run: SpeedRun) -> None:
    """Processor time of planning and enqueueing."""
    stream = run.stream
    arrays = run.memory.blocks(Direction.H2D, 8 * KIB)
    count = min(8192, len(arrays[0]) // 2)
    mapping = run.memory.mapping(*arrays, count)
    transfers: list[Any] = []

    def finish() -> None:
        while transfers:
            transfers.pop().wait()

    samples = measure(
        lambda: transfers.append(swap_blocks(*arrays, mapping, stream=stream)),
        repeats=50,
        warmups=5,
        before=finish,
    )
    finish()
    case: dict[str, Any] = {"direction": Direction.H2D, "block": 8 * KIB, "count": count}
    name = f"enqueue {count} fresh blocks of 8 KiB through swap_blocks"
    run.add(name, samples.median_s, samples, ENQUEUE_TARGET_S, unit="s", at_least=False, **case)
    arrays = run.memory.blocks(Direction.H2D, 512)
    count = min(1_000_000, len(arrays[0]) // 2)
    mapping = run.memory.mapping(*arrays, count)
    samples = measure(lambda: plan_blocks(*arrays, mapping), repeats=10)
    case = {"direction": Direction.H2D, "block": 512, "count": count}
    name = f"plan {count:,} fresh blocks of 512 B"
    run.add(name, samples.median_s, samples, PLAN_TARGET_S, unit="s", at_least=False, **case)


def measure_capture(run: SpeedRun) -> None:
    """Measure the launch of a captured swap against a graph of the same kernel launch."""
    from cuda.bindings import driver as cu

    def check(result: tuple[Any, ...]) -> Any:
        if int(result[0]):
            raise AssertionError(f"a graph call failed: {result[0]}")
        return result[1] if len(result) > 1 else None

    driver, stream, wait = run.gpu.driver, run.stream, run.gpu.wait
    arrays = run.memory.blocks(Direction.H2D, 4 * KIB)
    plan = plan_blocks(*arrays, run.memory.mapping(*arrays, 16))
    plan.run(stream).wait()
    launch = _kernel_of(plan)

    def captured(action: Callable[[], object]) -> Any:
        mode = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(cu.cuStreamBeginCapture(stream, mode))
        action()
        return check(cu.cuGraphInstantiate(check(cu.cuStreamEndCapture(stream)), 0))

    def bare() -> None:
        arguments = (launch.function, launch.blocks, launch.threads, stream)
        driver.launch_kernel(*arguments, launch.arguments)

    def replay(graph: Any) -> Callable[[], object]:
        def action() -> None:
            check(cu.cuGraphLaunch(graph, stream))
            wait()

        return action

    # There and back: the two differ by less than the machine drifts.
    samples = measure_in_turn(
        {"swap": replay(captured(lambda: plan.run(stream))), "bare": replay(captured(bare))},
        repeats=400,
        warmups=20,
        there_and_back=True,
    )
    run.add(
        "16 x 4 KiB, graph of a captured swap / graph of a bare launch",
        samples["swap"].median_s / samples["bare"].median_s,
        samples["swap"],
        GRAPH_TARGET,
        at_least=False,
        bare_ns=samples["bare"].raw_ns,
    )
