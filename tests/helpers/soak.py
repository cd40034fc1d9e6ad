"""Swap blocks of all sorts for minutes, from several threads, and look at every byte.

Run by ``scripts/soak``; on a GPU if there is one, else on a simulated driver.

Each thread owns four pools: pinned host memory, two of device memory, and pinned host memory to
come back to. A round moves blocks from the first to the second, to the third, to the fourth, and
exchanges blocks of the third and the fourth, each time with other blocks, sizes, alignments, verbs
and modes, in the thread's own streams, in one that all threads share, or in Numba's default
stream. A copy of all pools that is made by a few
lines of compiled code on the host is what the pools must hold afterwards, the bytes between the
blocks included.
"""

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from machines import RealGPU, address_of
from numba import njit, types

import numba_swap as ns
from numba_swap.tools.checks import check_writable
from numba_swap.tools.streams import run_command

MODES = ["auto", "auto", "batch", "kernel", "loop"]
VERBS = ["arrays", "layers", "plan", "pointers", "pointers"]
EXCHANGES = ["apart", "refill", "in place", "any"]
LARGEST = 1 << 20
# The most that one step moves, by the longest block: millions of short blocks, but also long ones.
STEP_BYTES = 8 << 20
MOST_BLOCKS = 20_000
# What allocators and caches may keep: growth beyond this is a leak.
ALLOWED_GROWTH_BYTES = 48 << 20

_column = types.Array(types.int64, 1, "C")
_bytes = types.Array(types.uint8, 1, "C")


@njit(types.void(_bytes, _bytes, _column, _column, _column), nogil=True)
def apply(dst, src, dst_at, src_at, sizes):
    """Do on the host what a swap is to do."""
    for row in range(len(sizes)):
        for i in range(sizes[row]):
            dst[dst_at[row] + i] = src[src_at[row] + i]


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_bytes(real):
    """Device memory in use, as the driver tells; 0 on a simulation."""
    if not real:
        return 0
    from numba import cuda

    free, total = cuda.current_context().get_memory_info()
    return total - free


def address(array):
    return address_of(array)


class View:
    """Blocks that begin anywhere in a pool."""

    def __init__(self, pool, offset, size, blocks):
        self.owner = pool
        self.__cuda_array_interface__ = {
            "shape": (blocks, size),
            "typestr": "|u1",
            "data": (address(pool) + offset, False),
            "version": 3,
        }


class Worker:
    """One thread with its pools."""

    def __init__(self, gpu, number, options, shared, real):
        self.rng = np.random.default_rng([options.seed, number])
        self.real = real
        self.gpu = gpu
        self.room = options.pool_bytes
        self.modes = MODES if real else ["batch", "loop"]
        self.streams = [gpu.stream(), gpu.stream(), shared, None]
        self.models = [self.rng.integers(0, 256, self.room, dtype=np.uint8) for _ in range(4)]
        self.pools = [
            gpu.pinned_array(self.room, np.uint8),
            gpu.device_array(self.room, np.uint8),
            gpu.device_array(self.room, np.uint8),
            gpu.pinned_array(self.room, np.uint8),
        ]
        for pool, model in zip(self.pools, self.models, strict=True):
            if hasattr(pool, "copy_to_device"):
                pool.copy_to_device(model)
            else:
                pool[:] = model
        self.counts, self.blocks, self.bytes, self.wrong = Counter(), 0, 0, 0
        self.plans = []

    def round(self):
        """Move blocks through all pools, then compare all of them."""
        stream = self.streams[self.rng.integers(len(self.streams))]
        last = None
        for side in range(4):
            if last is not None and self.rng.integers(4) == 0:
                last.wait()  # the next may then run in another stream
                stream = self.streams[self.rng.integers(len(self.streams))]
            last = self.step(side, stream) if side < 3 else self.exchange(stream)
        last.wait()
        for pool, model in zip(self.pools, self.models, strict=True):
            got = pool.copy_to_host() if hasattr(pool, "copy_to_host") else pool
            self.wrong += int(np.count_nonzero(got != model))

    def step(self, side, stream):
        rng, verb = self.rng, VERBS[self.rng.integers(len(VERBS))]
        mode = self.modes[rng.integers(len(self.modes))]
        src, dst = self.pools[side], self.pools[side + 1]
        longest = min(int(2 ** rng.uniform(0, 20.01)), self.room // 4)
        options = {"stream": stream, "mode": mode}
        if verb == "pointers":
            src_at, dst_at, sizes = self.cells(longest)
            validate = ("bounds", "full", "none")[rng.integers(3)]
            call = address(src) + src_at, address(dst) + dst_at, sizes
            transfer = ns.swap_blocks_batch(*call, validate=validate, **options)
        else:
            transfer, src_at, dst_at, sizes = self.rows(verb, src, dst, longest, options)
        apply(self.models[side + 1], self.models[side], dst_at, src_at, sizes)
        self.counts[f"{verb} {transfer.decision.mode}"] += 1
        self.blocks += len(sizes)
        self.bytes += transfer.nbytes
        return transfer

    def exchange(self, stream):
        """Blocks out of the third pool, and others in from the fourth."""
        rng = self.rng
        size = min(int(2 ** rng.uniform(0, 20.01)), self.room // 4)
        offsets = rng.integers(0, 17, 2)
        if rng.integers(2):  # so that pairs can be made of them
            size, offsets = -(-size // 16) * 16, offsets & 16
        blocks = (self.room - 16) // size
        count = int(min(MOST_BLOCKS, max(1, STEP_BYTES // size), blocks // 2))
        slots, places = rng.permutation(blocks), rng.permutation(blocks)
        out = np.stack([slots[:count], places[:count]], axis=1)
        kind = EXCHANGES[rng.integers(len(EXCHANGES))]
        other = min(count, blocks - count)  # as many again, that are not among these
        into = {
            "apart": np.stack([places[-other:], slots[-other:]], axis=1),
            "refill": np.stack([places[-other:], slots[:other]], axis=1),
            "in place": out[:, ::-1],
            "any": np.stack([rng.integers(0, blocks, other), rng.permutation(slots)[:other]], 1),
        }[kind]
        views = [
            View(pool, int(offset), size, blocks)
            for pool, offset in zip(self.pools[2:], offsets, strict=True)
        ]
        mode = self.modes[rng.integers(len(self.modes))]
        transfer = ns.exchange(*views, out, into, stream=stream, mode=mode)
        device, host = self.models[2], self.models[3]
        before = host.copy()
        slot_at, block_at = (lambda ids, at=at: at + ids * size for at in offsets)
        sizes = np.full(max(count, other), size)
        apply(host, device, block_at(out[:, 1]), slot_at(out[:, 0]), sizes[:count])
        apply(device, before, slot_at(into[:, 1]), block_at(into[:, 0]), sizes[: len(into)])
        self.counts[f"exchange {transfer.decision.mode}"] += 1
        self.blocks += count + len(into)
        self.bytes += transfer.nbytes
        return transfer

    def cells(self, longest):
        """Places of blocks of mixed sizes, at any alignment, that do not meet."""
        rng = self.rng
        count = int(min(MOST_BLOCKS, max(1, STEP_BYTES // longest), self.room // (longest + 16)))
        sizes = rng.integers(0 if rng.integers(4) == 0 else 1, longest + 1, count)
        orders = rng.permutation(count), rng.permutation(count)
        places = [order * (longest + 16) + rng.integers(0, 17, count) for order in orders]
        return *places, sizes

    def rows(self, verb, src, dst, size, options):
        """Blocks of one size, as arrays that begin anywhere."""
        rng = self.rng
        offsets = [int(rng.integers(0, 17)) for _ in range(2)]
        blocks = (self.room - 16) // size
        count = int(min(MOST_BLOCKS, max(1, STEP_BYTES // size), blocks // 2))
        layers = 2 if verb == "layers" else 1
        views = [
            [
                View(pool, offset + i * (blocks // 2) * size, size, blocks // layers)
                for i in range(layers)
            ]
            for pool, offset in zip((src, dst), offsets, strict=True)
        ]
        count = max(1, count // layers)
        # The same arrays again, with other rows: the short way, where there is one.
        times = rng.integers(1, 4) if verb == "arrays" else 1
        places = []
        for _ in range(times):
            ids = [rng.permutation(blocks // layers)[:count] for _ in range(2)]
            mapping = np.stack(ids, axis=1)
            if verb == "layers":
                transfer = ns.swap_blocks(*views, mapping, **options)
            elif verb == "plan":
                plan = ns.plan_blocks(views[0][0], views[1][0], mapping)
                for _ in range(rng.integers(0, 3)):
                    plan.run(**options)
                transfer = plan.run(**options)
            else:
                transfer = ns.swap_blocks(views[0][0], views[1][0], mapping, **options)
            bases = np.arange(layers)[:, None] * (blocks // 2) * size
            places.append([(bases + column * size).ravel() for column in ids])
        src_at, dst_at = np.concatenate(places, axis=1) + np.array(offsets)[:, None]
        return transfer, src_at, dst_at, np.full(len(src_at), size)


def run(gpu, options, real):
    shared = gpu.stream()
    workers = [Worker(gpu, i, options, shared, real) for i in range(options.threads)]
    errors, start = [], time.monotonic()
    end = start + 60 * options.minutes
    rounds = options.rounds or sys.maxsize

    def work(worker, until, most):
        try:
            done = 0
            while done < most and time.monotonic() < until and not errors:
                worker.round()
                done += 1
        except BaseException as error:
            errors.append(error)

    def all_together(until, most):
        threads = [threading.Thread(target=work, args=(worker, until, most)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        gpu.synchronize()

    # Pools of events and buffers, compilers and allocators grow to what the busiest moment needs.
    all_together(start + 60 * options.minutes / 4, max(3, rounds // 4))
    before = resident_bytes(), device_bytes(real)
    all_together(end, rounds)
    after = resident_bytes(), device_bytes(real)
    counts = sum((worker.counts for worker in workers), Counter())
    return {
        "device": ns.driver_info()["devices"][0]["name"] if real else "simulated",
        "seconds": round(time.monotonic() - start, 1),
        "seed": options.seed,
        "threads": options.threads,
        "swaps": sum(counts.values()),
        "blocks": sum(worker.blocks for worker in workers),
        "bytes": sum(worker.bytes for worker in workers),
        "wrong_bytes": sum(worker.wrong for worker in workers),
        "host_bytes": before[0],
        "host_growth_bytes": after[0] - before[0],
        "device_bytes": before[1],
        "device_growth_bytes": after[1] - before[1],
        "swaps_by_verb_and_mode": dict(sorted(counts.items())),
        "errors": [f"{type(error).__name__}: {error}" for error in errors],
    }


def is_good(result):
    growth = max(result["host_growth_bytes"], result["device_growth_bytes"])
    return not result["wrong_bytes"] and not result["errors"] and growth <= ALLOWED_GROWTH_BYTES


def main(arguments=None):
    return run_command("soak", lambda: run_soak(arguments))


def run_soak(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=0, help="the most rounds of each thread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pool-bytes", type=int, default=16 << 20)
    parser.add_argument("--simulate", action="store_true", help="even if there is a GPU")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    options = parser.parse_args(arguments)
    if options.json:
        check_writable(Path(options.json))
    with contextlib.ExitStack() as stack:
        real = not options.simulate and ns.driver_info()["available"]
        gpu = RealGPU() if real else stack.enter_context(ns.simulate())
        result = run(gpu, options, real)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        Path(options.json).write_text(text + "\n", encoding="utf-8")
    return 0 if is_good(result) else 1


if __name__ == "__main__":
    sys.exit(main())
