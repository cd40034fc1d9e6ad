"""A field that stays on the host, stepped tile by tile: a section of the speed suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.device.streams import stream_handle
from numba_swap.paging.tiles.arrays import arrays_of
from numba_swap.paging.tiles.run import Step
from numba_swap.paging.tiles.snapshots import Snapshots
from numba_swap.paging.tiles.streaming import stream_tiles
from numba_swap.paging.tiles.tiling import Tiling
from numba_swap.paging.tiles.visits import run_steps
from numba_swap.tools.bench.gpu import address_of
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import measure, measure_in_turn

TILES_TARGET, SLABS_TARGET = 0.85, 0.93
COMPUTE_TARGET = 1.05
VISITS_TARGET = 3.0
MANAGED_TARGET = 5.0
SNAPSHOT_TARGET = 1.05
_DEPTH = 4
_BLOCK = (64, 4, 1)  # threads along the last axis first
_SNAPSHOT_STEPS = 10
_TILES_ON_DEVICE = 64


def measure_streaming(run: SpeedRun) -> None:
    """Step a stencil through a field of four units in pinned memory, beside the ceilings."""
    Streaming(run).measure()


class Streaming:
    """The fields, and a stencil that reads each element's neighbours.

    Parameters
    ----------
    run : SpeedRun
        What it measures on.
    """

    def __init__(self, run: SpeedRun) -> None:
        self.run = run
        self.arrays = arrays_of(run.gpu.driver)
        self.side = round((4 * run.unit_bytes / 4) ** (1 / 3)) // 8 * 8
        shape = (self.side,) * 3
        self.u, self.w = (self.arrays.pinned_array(shape, np.float32) for _ in range(2))
        rows = np.random.default_rng(0).random((self.side, self.side), np.float32)
        for plane in range(self.side):
            self.u[plane] = np.roll(rows, plane)
        self.w[:] = 0
        self.kernel: Any = _simulated_stencil if run.gpu.simulated else _compile_stencil()
        self.tiles = Tiling(shape, self.side // 8, halo=1)
        self.slabs = Tiling(shape, (self.side // 32, *shape[1:]), halo=(1, 0, 0))

    def measure(self) -> None:
        """Add all rows."""
        ceiling = measure(self._both_ways(), repeats=self.run.repeats)
        # (Each way copies the unit.)
        one_way = ceiling.rate(self.run.unit_bytes)
        self.run.add("streaming: both ways at once, each", one_way, ceiling, unit="B/s")
        self._measure_link_bound(one_way)
        self._measure_compute_bound()
        self._measure_visits()
        self._measure_managed()
        self._measure_snapshots()

    def launch(self, step: Step, rounds: int = 1) -> None:
        """Enqueue one step, of so many rounds of arithmetic."""
        self.enqueue(
            step.reads[0], step.writes[0], step.inner, stream_handle(step.stream), rounds, step
        )

    def enqueue(
        self,
        old: Any,
        new: Any,
        inner: Iterable[slice],
        stream: int,
        rounds: int = 1,
        step: Step | None = None,
    ) -> None:
        """Enqueue the stencil between two arrays."""
        starts = [int(some.start) for some in inner]
        if self.run.gpu.simulated:
            self.arrays.launch(self.kernel, old, new, *starts, rounds, stream=stream)
            return
        grid = [-(-n // b) for n, b in zip(reversed(new.shape), _BLOCK, strict=True)]
        where = self.arrays.external_stream(stream) if step is None else step.stream
        self.kernel[tuple(grid), _BLOCK, where](old, new, *starts, rounds)

    def sweep(
        self, tiling: Tiling, u: Any = None, w: Any = None, rounds: int = 1, **options: Any
    ) -> None:
        """Take one step of the whole field."""
        u, w = self.u if u is None else u, self.w if w is None else w
        options = {"depth": _DEPTH, **options}
        for step in stream_tiles([u], [w], tiling=tiling, **options):
            self.launch(step, rounds)

    def _both_ways(self) -> Callable[[], None]:
        """Return what copies a unit each way at once, and waits."""
        run = self.run
        driver, unit = run.gpu.driver, run.unit_bytes
        device = run.memory.device()
        start, end = address_of(device), address_of(device) + unit
        other, event = driver.create_stream(), driver.create_event()
        source, target = address_of(self.u), address_of(self.w)

        def action() -> None:
            driver.memcpy_async(start, source, unit, run.stream)
            driver.memcpy_async(target, end, unit, other)
            driver.record_event(event, other)
            driver.synchronize_event(event)
            run.gpu.wait()

        return action

    def _measure_link_bound(self, one_way: float) -> None:
        nbytes, repeats = self.u.nbytes, max(1, self.run.repeats // 3)
        for name, tiling, target in (
            (f"tiles of {self.side // 8}^3 with halo 1", self.tiles, TILES_TARGET),
            (f"slabs of {self.side // 32} planes with halo 1", self.slabs, SLABS_TARGET),
        ):
            self.sweep(tiling)
            self._check(name)
            policies = ("overlap", "throughput")
            samples = measure_in_turn(
                {policy: lambda p=policy, t=tiling: self.sweep(t, policy=p) for policy in policies},  # type: ignore[misc]
                repeats=repeats,
                warmups=1,
            )
            for policy in policies:
                self.run.add(
                    f"streaming: {name}, policy {policy}",
                    samples[policy].rate(nbytes) / one_way,
                    samples[policy],
                    target if policy == "overlap" else None,
                    bytes=nbytes,
                    depth=_DEPTH,
                )

            def in_place(t: Tiling = tiling) -> None:
                for step in stream_tiles(updates=[self.w], tiling=t, depth=_DEPTH):
                    self.launch(step)

            updates = measure(in_place, repeats=repeats, warmups=1)
            words = f"streaming: {name}, in place"
            self.run.add(words, updates.rate(nbytes) / one_way, updates, bytes=nbytes)
        plain = [np.array(self.u), np.zeros_like(self.w)]
        slow = measure(lambda: self.sweep(self.slabs, *plain), repeats=2, warmups=1)
        name = "streaming: slabs of a plain NumPy field"
        self.run.add(name, slow.rate(nbytes) / one_way, slow, bytes=nbytes)

    def _check(self, name: str) -> None:
        """Compare some planes with NumPy."""
        n = self.side
        for plane in (0, n // 8 - 1, n // 8, n - 1):
            near = self.u[max(plane - 1, 0) : plane + 2]
            want = np.empty((1, n, n), np.float32)
            _simulated_stencil(near, want, min(plane, 1), 0, 0, 1)
            if not np.allclose(self.w[plane], want[0], rtol=1e-5):
                raise AssertionError(f"streaming: {name}: plane {plane} is wrong")

    def _measure_compute_bound(self) -> None:
        """Give the kernel about twice as much to do as the link takes, and time it alone."""
        tile = self.tiles
        inner, outer = tile.boxes(len(tile) // 2)
        old, new = (self.arrays.device_array(box.shape, np.float32) for box in (outer, inner))
        where, stream = inner.within(outer), self.run.stream

        def alone(rounds: int, count: int = len(tile)) -> None:
            for _ in range(count):
                self.enqueue(old, new, where, stream, rounds)
            self.run.gpu.wait()

        link = measure(lambda: self.sweep(tile), repeats=2, warmups=1).median_s
        rounds = 1
        while not self.run.gpu.simulated and rounds < 1 << 20:
            if measure(lambda r=rounds: alone(r), repeats=2, warmups=1).median_s > 2 * link:  # type: ignore[misc]
                break
            rounds *= 2
        samples = measure_in_turn(
            {"alone": lambda: alone(rounds), "streamed": lambda: self.sweep(tile, rounds=rounds)},
            repeats=3,
            warmups=1,
        )
        ratio = samples["streamed"].median_s / samples["alone"].median_s
        name = "streaming: compute-bound, over the compute alone"
        alone_ns = samples["alone"].raw_ns
        self.run.add(
            name, ratio, samples["streamed"], COMPUTE_TARGET,
            at_least=False, rounds=rounds, alone_ns=alone_ns, link_s=link,
        )  # fmt: skip

    def _measure_visits(self) -> None:
        def steps(most: int) -> None:
            run_steps([self.u], self.slabs, self.launch, 8, most, depth=_DEPTH)

        samples = {most: measure(lambda m=most: steps(m), repeats=2, warmups=1) for most in (1, 4)}  # type: ignore[misc]
        name = "streaming: steps_per_visit=1 over 4, slabs, the second field's memory counted"
        ratio = samples[1].median_s / samples[4].median_s
        self.run.add(name, ratio, samples[4], VISITS_TARGET, one_ns=samples[1].raw_ns)
        # Without what is done once: the difference of 24 steps and 8.
        more = {
            most: measure(
                lambda m=most: run_steps([self.u], self.slabs, self.launch, 24, m, depth=_DEPTH),  # type: ignore[misc]
                repeats=2,
                warmups=0,
            )
            for most in (1, 4)
        }
        times = {most: max(more[most].median_s - samples[most].median_s, 1e-9) for most in more}
        name = "streaming: steps_per_visit=1 over 4, slabs, a step"
        self.run.add(name, times[1] / times[4], more[4], VISITS_TARGET, one_ns=more[1].raw_ns)

    def _measure_managed(self) -> None:
        """Take the same step in managed memory, which the host wrote, and reads again."""
        shape = (self.side // 4, self.side, self.side)
        slabs = Tiling(shape, (self.side // 32, *shape[1:]), halo=(1, 0, 0))
        u, w = (self.arrays.managed_array(shape, np.float32) for _ in range(2))
        pages: npt.NDArray[np.float32] = np.zeros(1, np.float32)

        def touch() -> None:
            u[:] = self.u[: shape[0]]
            w[:] = 0

        def managed() -> None:
            self.enqueue(u, w, [slice(0, n) for n in shape], self.run.stream)
            self.run.gpu.wait()
            pages[0] = w.reshape(-1)[::1024].sum()  # one element a page

        theirs = measure(managed, repeats=3, warmups=1, before=touch)
        part = self.u[: shape[0]], self.w[: shape[0]]
        ours = measure(lambda: self.sweep(slabs, *part), repeats=3, warmups=1)
        name = "streaming: managed memory over slabs"
        ratio = theirs.median_s / ours.median_s
        self.run.add(name, ratio, ours, MANAGED_TARGET, managed_ns=theirs.raw_ns)

    def _measure_snapshots(self) -> None:
        """Step a pool on the device, and bring a tenth of its tiles to the host at each step."""
        shape = (_TILES_ON_DEVICE, *(self.side // 8,) * 3)
        old, new = (self.arrays.device_array(shape, np.float32) for _ in range(2))
        old.copy_to_device(np.zeros(shape, np.float32))
        views = [(old[i], new[i]) for i in range(len(old))]
        inner = [slice(0, n) for n in shape[1:]]
        ids = np.arange(0, _TILES_ON_DEVICE, 10)
        rounds = 1 if self.run.gpu.simulated else 2048  # so that the GPU is busy, not the host

        def steps(snaps: Snapshots | None) -> None:
            for _ in range(_SNAPSHOT_STEPS):
                for source, target in views:
                    self.enqueue(source, target, inner, self.run.stream, rounds)
                if snaps is not None:
                    snaps.take(ids, stream=self.run.stream)
            self.run.gpu.wait()

        with Snapshots(new, depth=3, to=lambda snap: None) as snaps:
            samples = measure_in_turn(
                {"without": lambda: steps(None), "with": lambda: steps(snaps)}, repeats=5
            )
        ratio = samples["with"].median_s / samples["without"].median_s
        self.run.add(
            "streaming: steps with snapshots of a tenth over without",
            ratio, samples["with"], SNAPSHOT_TARGET,
            at_least=False, without_ns=samples["without"].raw_ns,
        )  # fmt: skip


def _simulated_stencil(old: Any, new: Any, z0: int, y0: int, x0: int, rounds: int) -> None:
    """Do what the kernel does, with NumPy."""
    indices = [
        np.clip(np.arange(-1, n + 1) + start, 0, length - 1)
        for n, start, length in zip(new.shape, (z0, y0, x0), old.shape, strict=True)
    ]
    a = old[np.ix_(*indices)]
    inside = slice(1, -1)
    total = a[:-2, inside, inside] + a[2:, inside, inside]
    total = total + a[inside, :-2, inside] + a[inside, 2:, inside]
    total = total + a[inside, inside, :-2] + a[inside, inside, 2:]
    value = a[inside, inside, inside]
    for _ in range(rounds):
        value = value * np.float32(0.4) + total * np.float32(0.1)
    new[...] = value


def _compile_stencil() -> Any:
    """Make the kernel: the mean of an element and its six neighbours, repeated `rounds` times."""
    from numba import cuda, float32

    @cuda.jit  # type: ignore[untyped-decorator]
    def stencil(old: Any, new: Any, z0: Any, y0: Any, x0: Any, rounds: Any) -> None:
        x, y, z = cuda.grid(3)
        if z >= new.shape[0] or y >= new.shape[1] or x >= new.shape[2]:
            return
        k, j, i = z + z0, y + y0, x + x0
        total = old[max(k - 1, 0), j, i] + old[min(k + 1, old.shape[0] - 1), j, i]
        total += old[k, max(j - 1, 0), i] + old[k, min(j + 1, old.shape[1] - 1), i]
        total += old[k, j, max(i - 1, 0)] + old[k, j, min(i + 1, old.shape[2] - 1)]
        value = old[k, j, i]
        for _ in range(rounds):
            value = value * float32(0.4) + total * float32(0.1)
        new[z, y, x] = value

    return stencil
