"""A cache of blocks beside planned exchanges of the same blocks, and peers: a section of the suite.

Times are from the call to the end of the stream, but for leases of residents, which are host time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from numba_swap.paging.cache.block_cache import BlockCache
from numba_swap.paging.cache.replay import replay
from numba_swap.swap.exchange.verbs import plan_exchange
from numba_swap.swap.gather import gather
from numba_swap.tools.bench.speed.run import SpeedRun
from numba_swap.tools.bench.timing import Samples, measure, measure_in_turn
from numba_swap.tools.units import KIB, MIB, format_bytes

Ids = npt.NDArray[np.int64]
_Action = Callable[[], object]

SIZES = (2 * KIB, 8 * KIB, 64 * KIB)
HOST_TARGETS_S = {8192: 120e-6, 64: 25e-6}
MISSES = (0.1, 0.5, 1.0)
PLANNED_TARGET = 0.8
ZIPF_TARGET = 1.1
PEER_TARGETS = {"managed memory": 5.0, "PyTorch's staged gather": 2.0}
_MOST_BYTES = 256 * MIB
_REQUESTS = 60


def measure_cache(run: SpeedRun) -> None:
    """Leases of residents, leases with misses, Zipf's law, a known order, and peers."""
    _measure_residents(run)
    for size in SIZES:
        for share in MISSES:
            _measure_misses(run, size, share)
    for size in SIZES:
        _measure_zipf(run, size)
    _measure_schedule(run)
    _measure_peers(run)


def _blocks(run: SpeedRun, size: int, most: int | None = None) -> Any:
    nbytes = run.unit_bytes if most is None else min(run.unit_bytes, most * size)
    return run.gpu.as_blocks(run.memory.host(), size, nbytes)


def _measure_residents(run: SpeedRun) -> None:
    """Host time of a lease whose blocks are all there, from opening it to its end."""
    host = _blocks(run, 2 * KIB)
    rng = np.random.default_rng(0)
    slots = min(16384, len(host))
    with BlockCache(host, slots) as cache:
        resident = rng.permutation(len(host))[:slots]
        cache.prefetch(resident)
        for count, target in HOST_TARGETS_S.items():
            ids = np.ascontiguousarray(rng.permutation(resident)[:count])

            def lease(ids: Ids = ids) -> None:
                with cache.lease(ids, "r", run.stream):
                    pass

            samples = measure(lease, repeats=401, warmups=50)
            run.gpu.wait()
            name = f"cache: lease of {len(ids)} resident ids, host time"
            run.add(name, samples.median_s, samples, target, unit="s", at_least=False)


def _windows(rng: np.random.Generator, blocks: int, count: int, share: float) -> Iterator[Ids]:
    """Yield requests of which a share is new; the rest was in the one before."""
    order = rng.permutation(blocks)
    new = max(1, round(share * count))
    now, at = order[:count], count
    while True:
        yield np.ascontiguousarray(now)
        taken = np.take(order, range(at, at + new), mode="wrap")
        at += new
        kept = np.setdiff1d(now, taken, assume_unique=True)
        now = np.concatenate([rng.permutation(kept)[: count - new], taken])


def _measure_misses(run: SpeedRun, size: int, share: float) -> None:
    """Leases for writing: dirty blocks out, others in, beside a planned exchange of as many."""
    host = _blocks(run, size)
    count = min(8192, _MOST_BYTES // size, len(host) // 3)
    rng = np.random.default_rng(1)
    with BlockCache(host, count) as cache:
        requests = _windows(rng, len(host), count, share)

        coming = [next(requests)]  # made before the clock runs

        def lease() -> None:
            with cache.lease(coming[0], "rw", run.stream):
                pass
            run.gpu.wait()

        def before(name: str) -> None:
            if name == "lease":
                coming[0] = next(requests)

        for _ in range(3):
            lease()
            before("lease")
        moved = max(1, round(share * count))
        slots, blocks = rng.permutation(count)[:moved], rng.permutation(len(host))
        out = np.stack([slots, blocks[:moved]], axis=1)
        into = np.stack([blocks[moved : 2 * moved], slots], axis=1)
        other = run.gpu.as_blocks(run.memory.device(), size, count * size)
        plan = plan_exchange(other, host, out, into)

        def planned() -> None:
            plan.run(run.stream).wait()

        arms = {"lease": lease, "planned": planned}
        samples = measure_in_turn(arms, repeats=run.repeats, before=before)
        ratio = samples["planned"].median_s / samples["lease"].median_s
        run.add(
            f"cache: planned exchange over lease, {format_bytes(size)}, {share:.0%} misses",
            ratio, samples["lease"], PLANNED_TARGET, count=count,
            planned_ns=samples["planned"].raw_ns,
        )  # fmt: skip


def _zipf(rng: np.random.Generator, rows: int, count: int) -> Ids:
    """Return ids by Zipf's law with s = 1.0, over so many rows in a random order."""
    weights = np.cumsum(1.0 / np.arange(1, rows + 1))
    ids: Ids = np.searchsorted(weights, rng.random(count) * weights[-1]).astype(np.int64)
    return ids


def _measure_zipf(run: SpeedRun, size: int) -> None:
    """Ten times as many rows as slots: the time over that of fetching all, by the misses."""
    host = _blocks(run, size)
    slots = max(1, len(host) // 10)
    count = max(1, min(4096, slots // 2))
    rng = np.random.default_rng(2)
    names = rng.permutation(len(host))
    requests = [names[_zipf(rng, len(host), count)] for _ in range(_REQUESTS)]
    with BlockCache(host, slots) as cache:

        def cached() -> None:
            for ids in requests:
                with cache.lease(ids, "r", run.stream):
                    pass
            run.gpu.wait()

        other = run.gpu.as_blocks(run.memory.device(), size, count * size)

        rows = [np.unique(ids) for ids in requests]

        def fetched() -> None:
            for ids in rows:
                gather(host, ids, other, stream=run.stream)
            run.gpu.wait()

        cached()
        before = cache.stats
        cached()
        after = cache.stats
        wanted = after.hits + after.misses - before.hits - before.misses
        missed = (after.misses - before.misses) / wanted
        samples = measure_in_turn({"cached": cached, "fetched": fetched}, repeats=5)
        share = samples["cached"].median_s / samples["fetched"].median_s
        run.add(
            f"cache: Zipf rows of {format_bytes(size)}, time over fetching all, by the miss rate",
            share / missed if missed else share, samples["cached"], ZIPF_TARGET, at_least=False,
            miss_rate=missed, share=share,
        )  # fmt: skip


def _measure_schedule(run: SpeedRun) -> None:
    """Hit rates where the order is known, beside Belady's choice and LRU, on the same trace."""
    host = _blocks(run, 2 * KIB, 4096)
    slots, rng = len(host) // 8, np.random.default_rng(3)
    requests = [_zipf(rng, len(host), slots // 3) for _ in range(_REQUESTS)]
    with BlockCache(host, slots) as cache:
        for lease in cache.schedule(requests, stream=run.stream):
            with lease:
                pass
        rate = cache.stats.hit_rate
    for policy in ("belady", "lru"):
        best = replay(requests, len(host), slots, policy).hit_rate
        name = f"cache: hit rate of a schedule over that of {policy}"
        run.add(name, rate / best if best else 1.0, Samples(), 1.0, hit_rate=rate)


def _measure_peers(run: SpeedRun) -> None:
    """Zipf rows of 8 KiB through the cache, managed memory, and PyTorch's gather on the host."""
    size = 8 * KIB
    host = _blocks(run, size)
    slots, rng = max(1, len(host) // 10), np.random.default_rng(4)
    count = max(1, min(4096, slots // 2))
    names = rng.permutation(len(host))
    requests = [names[_zipf(rng, len(host), count)] for _ in range(20)]
    with BlockCache(host, slots) as cache:

        def ours() -> None:
            for ids in requests:
                with cache.lease(ids, "r", run.stream):
                    pass
            run.gpu.wait()

        # All begin with nothing on the device.
        mine = measure(ours, repeats=5, before=lambda: cache.drop(np.arange(len(host))))
    for name, (action, before) in _peers(run, host, requests).items():
        samples = measure(action, repeats=5, warmups=1, before=before)
        run.add(
            f"cache: {name} over ours, Zipf rows of 8 KiB",
            samples.median_s / mine.median_s, samples, PEER_TARGETS[name],
        )  # fmt: skip


def _peers(run: SpeedRun, host: Any, requests: list[Ids]) -> dict[str, tuple[_Action, _Action]]:
    """Return what brings the rows to the device, and what comes before, for what is here."""
    found: dict[str, tuple[_Action, _Action]] = {}
    if run.gpu.simulated:
        return found
    cuda = importlib.import_module("numba.cuda")
    words = host.view(np.int64)
    managed = cuda.managed_array(words.shape, np.int64)
    out = cuda.device_array((len(requests[0]), words.shape[1]), np.int64)

    @cuda.jit  # type: ignore[untyped-decorator]
    def pick(table: Any, ids: Any, out: Any) -> None:
        row = cuda.blockIdx.x
        for i in range(cuda.threadIdx.x, table.shape[1], cuda.blockDim.x):
            out[row, i] = table[ids[row], i]

    device_ids = [cuda.to_device(ids) for ids in requests]

    def to_the_host() -> None:
        managed[:] = words  # pages move as the kernel touches them

    def by_managed() -> None:
        for ids in device_ids:
            pick[len(out), 128](managed, ids, out)
        cuda.synchronize()

    found["managed memory"] = by_managed, to_the_host
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return found
    table = torch.from_numpy(words)
    staged = torch.empty(out.shape, dtype=torch.int64, pin_memory=True)
    there = torch.empty(out.shape, dtype=torch.int64, device="cuda")
    host_ids = [torch.from_numpy(ids) for ids in requests]

    def by_torch() -> None:
        for ids in host_ids:
            torch.index_select(table, 0, ids, out=staged)
            there.copy_(staged, non_blocking=True)
            torch.cuda.synchronize()  # before the staging memory is written again

    found["PyTorch's staged gather"] = by_torch, torch.cuda.synchronize
    return found
