"""Use caches of blocks at random for minutes, look at every byte, and at the memory in use.

On a GPU if there is one, else on a simulated driver:
``python tests/helpers/cache_soak.py --minutes 5``.
"""

import argparse
import contextlib
import json
import sys
import time

import numpy as np
from cache_model import CacheModel, RealKernels, SimulatedKernels
from machines import RealGPU
from soak import ALLOWED_GROWTH_BYTES, device_bytes, resident_bytes

import numba_swap as ns

POLICIES = ("lru", "clock", "lfu", "lru")


def run(gpu, real, minutes, steps, seed):
    """Let models of several shapes take their turns; return what is to be told."""
    rng, start = np.random.default_rng(seed), time.monotonic()
    kernels = RealKernels() if real else SimulatedKernels(gpu)
    shapes = [(3000, 400, 256), (500, 64, 1024), (60, 16, 32), (4000, 1000, 64)] if real else [
        (60, 16, 16), (30, 8, 8)
    ]  # fmt: skip
    models = [
        CacheModel(gpu, kernels, rng, *shape, evict=policy)
        for shape, policy in zip(shapes, POLICIES, strict=False)
    ]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.callback(model.cache.close)  # a model that fails leaves the others open
        return measure(models, kernels, real, minutes, steps, seed, start)


def measure(models, kernels, real, minutes, steps, seed, start):
    """Let them take their turns until the time is over."""
    done, before = 0, None
    while done < steps and time.monotonic() < start + 60 * minutes:
        for model in models:
            model.step()
        done += 1
        if before is None and (done >= steps // 4 or time.monotonic() > start + 15 * minutes):
            before = resident_bytes(), device_bytes(real)
    stats = [model.cache.stats for model in models]
    wrong, after = kernels.wrong, (resident_bytes(), device_bytes(real))
    for model in models:
        model.end()
    before = before or after
    return {
        "device": ns.driver_info()["devices"][0]["name"] if real else "simulated",
        "seconds": round(time.monotonic() - start, 1),
        "seed": seed,
        "steps": done * len(models),
        "wrong_words": wrong,
        "hits": sum(s.hits for s in stats),
        "misses": sum(s.misses for s in stats),
        "dirty_evictions": sum(s.dirty_evictions for s in stats),
        "bytes": sum(s.bytes_in + s.bytes_out for s in stats),
        "host_growth_bytes": after[0] - before[0],
        "device_growth_bytes": after[1] - before[1],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=sys.maxsize)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--simulate", action="store_true", help="even if there is a GPU")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        real = not options.simulate and ns.driver_info()["available"]
        gpu = RealGPU() if real else stack.enter_context(ns.simulate())
        if not real:
            stack.enter_context(ns.override(mode="loop"))
        result = run(gpu, real, options.minutes, options.steps, options.seed)
    print(json.dumps(result, indent=2))
    growth = max(result["host_growth_bytes"], result["device_growth_bytes"])
    return 0 if not result["wrong_words"] and growth <= ALLOWED_GROWTH_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
