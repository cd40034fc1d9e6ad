"""Two GPUs: blocks from one to the other, and calls with memory of both: a section of the suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from numba_swap.copies.ends import Direction
from numba_swap.dispatch.settings import DIRECT_MODES, Mode
from numba_swap.swap.boxes import plan_many
from numba_swap.swap.plans.plan import CopyPlan
from numba_swap.swap.verbs import plan_blocks
from numba_swap.tools.bench.gpu import BenchGPU, address_of, gpu_of, on_device
from numba_swap.tools.bench.memory import ITEM_BYTES, BenchMemory, FieldView, scatter
from numba_swap.tools.bench.speed.latency import bare_launch
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import Samples, measure, measure_in_turn
from numba_swap.tools.units import KIB, MIB, format_bytes

TARGETS = {512: 0.85, 2 * KIB: 0.88, 8 * KIB: 0.90, 64 * KIB: 0.90, MIB: 0.90}
FEW_BLOCKS, FEW_TARGET = 32, 0.85
BOTH_TARGET = 0.85
ELSEWHERE_TARGET = 0.98
LAYERS_TARGET = 0.90
FACES_TARGET = 0.97
LATENCY_TARGET = 1.2
_LARGEST_FIELD = 512
_ROUNDS = 4


class _Side:
    """One of two GPUs: memory on both, and a stream of its own in which it reads from the other.

    Attributes
    ----------
    gpu : BenchGPU
        It, with its stream.
    memory : BenchMemory
        Arrays on both.
    """

    def __init__(self, run: SpeedRun, device: int, peer: int) -> None:
        self._run = run
        with on_device(run.gpu.driver, device):
            self.gpu: BenchGPU = gpu_of(run.gpu.driver, peer)
            self.memory = BenchMemory(self.gpu, run.unit_bytes, run.unit_bytes)
            source, destination, _ = self.memory.sides(Direction.P2P)
            self.gpu.copy(source, run.memory.host(), run.unit_bytes)
        self.source, self.destination = source, destination

    def plan(self, size: int, nbytes: int) -> CopyPlan:
        """Plan copies of random blocks from the other GPU; run it, and check a sample of them."""
        blocks = self._run.unit_bytes // size
        src, dst = (
            FieldView(array, (blocks, size // ITEM_BYTES))
            for array in (self.source, self.destination)
        )
        count = min(nbytes // size, blocks // 2)
        mapping = scatter(np.random.default_rng(size), count, blocks, blocks)
        plan = plan_blocks(src, dst, mapping)
        plan.run(self.gpu.stream).wait()
        for i, j in mapping[:: max(1, count // 8)].tolist():
            read, written = self._bytes(src, i, size), self._bytes(dst, j, size)
            if not np.array_equal(read, written):
                raise AssertionError(f"blocks of {size} bytes: block {i} arrived wrong in {j}")
        return plan

    def _bytes(self, array: FieldView, block: int, size: int) -> np.ndarray[Any, Any]:
        host = np.empty(size, np.uint8)
        self._run.gpu.driver.memcpy_async(
            host.ctypes.data, address_of(array) + block * size, size, self.gpu.stream
        )
        self.gpu.wait()
        return host

    def start(self, dst: Any, src: Any, nbytes: int) -> None:
        """Enqueue one contiguous copy."""
        driver = self.gpu.driver
        driver.memcpy_async(address_of(dst), address_of(src), nbytes, self.gpu.stream)

    def wait(self) -> None:
        """Wait for the stream."""
        self.gpu.wait()


def measure_peers(run: SpeedRun) -> None:
    """Blocks, faces and layers of two GPUs, beside contiguous copies between the two."""
    driver = run.gpu.driver
    if driver.device_count() < 2:
        run.report("peers: not measured, for this machine has one GPU")
        return
    first = driver.current_device()
    second = 1 if first == 0 else 0
    # The first of them reads from the second one in the stream of the first, and the reverse.
    here, there = _Side(run, first, second), _Side(run, second, first)
    for side in (here, there):  # enables access, before the contiguous copies are measured
        side.plan(8 * KIB, run.unit_bytes // 4)
    _measure_blocks(run, here)
    _measure_both_ways(run, here, there)
    _measure_elsewhere(run, there)
    _measure_layers(run, here, there)
    _measure_faces(run, here)
    _measure_latency(run, here)


def _measure_blocks(run: SpeedRun, side: _Side) -> None:
    """Blocks of every length, beside the contiguous copy."""
    unit, stream = run.unit_bytes, side.gpu.stream

    def contiguous() -> None:
        side.start(side.destination, side.source, unit)
        side.wait()

    cases = [(size, None, target) for size, target in TARGETS.items()]
    for size, blocks, target in [*cases, (8 * KIB, FEW_BLOCKS, FEW_TARGET)]:
        plan = side.plan(size, unit // 2)
        samples = measure_in_turn(
            {
                "contiguous": contiguous,
                "blocks": lambda p=plan, b=blocks: p.run(stream, max_blocks=b).wait(),  # type: ignore[misc]
            },
            repeats=run.repeats,
            there_and_back=True,
        )
        ceiling = samples["contiguous"]
        if size == 512:
            run.add_rate("peers: contiguous", ceiling, unit, direction=Direction.P2P)
        few = f", at most {blocks} thread blocks" if blocks else ""
        run.add_rate(
            f"peers: blocks of {format_bytes(size)} from GPU to GPU{few}",
            samples["blocks"],
            plan.nbytes,
            ceiling,
            target,
            direction=Direction.P2P,
            block=size,
            chosen=str(plan.explain(stream, max_blocks=blocks).mode),
            ceiling_raw_ns=ceiling.raw_ns,
        )


def _measure_both_ways(run: SpeedRun, here: _Side, there: _Side) -> None:
    """Both directions at once, in two plans, beside both contiguous copies at once."""
    unit = run.unit_bytes
    plans = [side.plan(8 * KIB, unit // 2) for side in (here, there)]

    def contiguous() -> None:
        for side in (here, there):
            side.start(side.destination, side.source, unit)
        for side in (here, there):
            side.wait()

    def blocks() -> None:
        transfers = [
            plan.run(side.gpu.stream) for plan, side in zip(plans, (here, there), strict=True)
        ]
        for transfer in transfers:
            transfer.wait()

    _add_beside(run, "both directions at once, 8 KiB", blocks, contiguous, plans, 2, BOTH_TARGET)


def _add_beside(
    run: SpeedRun,
    name: str,
    blocks: Callable[[], None],
    contiguous: Callable[[], None],
    plans: list[CopyPlan],
    copies: int,
    target: float,
) -> None:
    """Keep the rate of plans over that of so many contiguous copies of the unit, all at once."""
    samples = measure_in_turn(
        {"contiguous": contiguous, "blocks": blocks}, repeats=run.repeats, there_and_back=True
    )
    nbytes = sum(plan.nbytes for plan in plans)
    ceiling = samples["contiguous"].rate(copies * run.unit_bytes)
    run.add(
        f"peers: {name}",
        samples["blocks"].rate(nbytes) / ceiling,
        samples["blocks"],
        target,
        bytes=nbytes,
        ceiling_rate=ceiling,
        ceiling_raw_ns=samples["contiguous"].raw_ns,
    )


def _measure_elsewhere(run: SpeedRun, there: _Side) -> None:
    """From the host to the second GPU, with either current, in the default stream."""
    size = 8 * KIB
    blocks = run.unit_bytes // size
    host = run.gpu.as_blocks(run.memory.host(), size, run.unit_bytes)
    device = FieldView(there.destination, (blocks, size // ITEM_BYTES))
    rows = scatter(np.random.default_rng(1), blocks // 8, blocks, blocks)
    plan = plan_blocks(host, device, rows)
    samples: dict[str, Samples] = {"first": Samples(), "second": Samples()}
    ordinals = {"first": run.gpu.device, "second": there.gpu.device}
    for _ in range(_ROUNDS):
        for name, ordinal in ordinals.items():
            with on_device(run.gpu.driver, ordinal):
                measure(lambda: plan.run().wait(), repeats=run.repeats, into=samples[name])
    ratio = samples["second"].median_s / samples["first"].median_s
    run.add(
        "peers: host to the second GPU, the first current / the second current",
        ratio,
        samples["first"],
        ELSEWHERE_TARGET,
        chosen=str(plan.explain().mode),
        second_raw_ns=samples["second"].raw_ns,
    )


def _measure_layers(run: SpeedRun, here: _Side, there: _Side) -> None:
    """Layers on both GPUs from one host, beside a contiguous copy to each at once."""
    size, unit = 8 * KIB, run.unit_bytes
    half = unit // 2
    blocks = half // size
    host = run.memory.host()
    hosts = [run.gpu.as_blocks(host[i * half : (i + 1) * half], size, half) for i in range(2)]
    devices = [FieldView(side.destination, (blocks, size // ITEM_BYTES)) for side in (here, there)]
    plan = plan_blocks(
        hosts, devices, scatter(np.random.default_rng(2), blocks // 2, *[blocks] * 2)
    )

    def contiguous() -> None:
        for i, side in enumerate((here, there)):
            side.start(side.destination, host[i * half :], half)
        for side in (here, there):
            side.wait()

    stream = here.gpu.stream
    plan.run(stream).wait()
    _add_beside(
        run,
        "layers on both GPUs from one host, 8 KiB",
        lambda: plan.run(stream).wait(),
        contiguous,
        [plan],
        1,
        LAYERS_TARGET,
    )


class _Face:
    """A plane of a field of 4-byte elements, of one length along all three axes."""

    def __init__(self, array: Any, length: int, axis: int, index: int) -> None:
        strides = [ITEM_BYTES * length**power for power in (2, 1, 0)]
        begin = address_of(array) + index * strides.pop(axis)
        self._array = array  # kept alive
        self.__cuda_array_interface__ = {
            "shape": (length, length),
            "strides": tuple(strides),
            "typestr": "<u4",
            "data": (begin, False),
            "version": 3,
        }


def _measure_faces(run: SpeedRun, side: _Side) -> None:
    """Time the faces of two neighbouring fields, both ways in one call, in every mode."""
    length = min(_LARGEST_FIELD, int((run.unit_bytes // ITEM_BYTES) ** (1 / 3)))
    u, v, stream = side.destination, side.source, side.gpu.stream
    for axis, name in enumerate("zyx"):
        last = partial(_Face, length=length, axis=axis)
        arms = {}
        for mode in ("auto", *map(str, DIRECT_MODES)):
            pairs = [
                (last(u, index=length - 2), last(v, index=0)),
                (last(v, index=1), last(u, index=length - 1)),
            ]
            plan = plan_many(pairs)
            plan.run(stream, mode).wait()
            arms[mode] = lambda p=plan, m=mode: p.run(stream, m).wait()
        chosen = " and ".join(plan.explain(stream).modes)
        samples = measure_in_turn(arms, repeats=run.repeats, runs=(1, 3), there_and_back=True)
        best = min(samples[str(mode)].median_s for mode in DIRECT_MODES)
        run.add(
            f"peers: faces of {length}^3 along {name}, both ways, best mode / auto ({chosen})",
            best / samples["auto"].median_s,
            samples["auto"],
            FACES_TARGET,
            bytes=plan.nbytes,
            raw_ns={arm: some.raw_ns for arm, some in samples.items()},
        )


def _measure_latency(run: SpeedRun, side: _Side) -> None:
    """Sixteen blocks of 4 KiB, planned, against a bare launch of the same kernel."""
    stream, size = side.gpu.stream, 4 * KIB
    plan = side.plan(size, 16 * size)
    if plan.explain(stream).mode is not Mode.KERNEL:
        run.report("peers: latency skipped, for these copies run in another mode here")
        return
    plan.run(stream).wait()
    samples = measure_in_turn(
        {"bare": bare_launch(side.gpu, plan), "run": lambda: plan.run(stream).wait()},
        repeats=20,
        warmups=0,
        runs=(10, 100),
        there_and_back=True,
    )
    bare = samples["bare"].median_s
    run.add("peers: 16 x 4 KiB, bare launch", bare, samples["bare"], unit="s")
    run.add(
        "peers: 16 x 4 KiB, plan.run to completion / bare launch",
        samples["run"].median_s / bare,
        samples["run"],
        LATENCY_TARGET,
        at_least=False,
    )
