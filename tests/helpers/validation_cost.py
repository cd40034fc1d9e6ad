"""What each level of validation costs: time to plan copies between raw addresses.

Run by ``scripts/validation_cost``; on a GPU if there is one, else on a simulated driver, whose
answers to pointer queries take longer than those of a real one.
"""

import argparse
import contextlib
import json
import sys
import time

import numpy as np
from machines import RealGPU, address_of

import numba_swap as ns
from numba_swap.copies.from_pointers import plan_pointers
from numba_swap.driver.current import current_driver
from numba_swap.tools.streams import run_command

LEVELS = ["none", "bounds", "full"]
BLOCK_BYTES = 64


def address(array):
    return address_of(array)


def best_seconds(action, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - start)
    return min(times) * 1e-9


def columns(count, src, dst):
    """Addresses of blocks in random order, none a neighbour of the next."""
    rng = np.random.default_rng(count)
    orders = rng.permutation(count), rng.permutation(count)
    pair = (
        address(side) + BLOCK_BYTES * order for side, order in zip((src, dst), orders, strict=True)
    )
    return *pair, np.full(count, BLOCK_BYTES - 1)


def measure(gpu, counts, allocations, rounds):
    """Return rows of (what, level, milliseconds)."""
    driver, rows = current_driver(), []
    driver.current_context()
    cases = []
    for count in counts:
        make = {"pinned": gpu.pinned_array, "pageable": np.zeros}
        for kind, array in make.items():
            pair = array(count * BLOCK_BYTES, np.uint8), gpu.device_array(count * BLOCK_BYTES, "u1")
            cases.append((f"{count} copies, {kind} memory to device", columns(count, *pair), pair))
    if allocations:
        host = gpu.pinned_array(allocations * BLOCK_BYTES, np.uint8)
        device = [gpu.device_array(BLOCK_BYTES, np.uint8) for _ in range(allocations)]
        src, _, sizes = columns(allocations, host, host)
        call = src, np.array([address(array) for array in device]), sizes
        cases.append((f"{allocations} copies, each to an allocation of its own", call, device))
    for what, call, _ in cases:
        for level in LEVELS:
            seconds = best_seconds(lambda c=call, v=level: plan_pointers(driver, *c, v), rounds)
            rows.append((what, level, 1e3 * seconds))
    return rows


def main(arguments=None):
    return run_command("validation_cost", lambda: measure_levels(arguments))


def measure_levels(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", action="store_true", help="even if there is a GPU")
    parser.add_argument("--counts", type=int, nargs="+", default=[8192, 1_000_000])
    parser.add_argument("--allocations", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        real = not options.simulate and ns.driver_info()["available"]
        gpu = RealGPU() if real else stack.enter_context(ns.simulate())
        rows = measure(gpu, options.counts, options.allocations, options.rounds)
    if options.json:
        print(json.dumps([dict(zip(("what", "level", "ms"), row, strict=True)) for row in rows]))
        return 0
    for what, level, milliseconds in rows:
        print(f"{what:<55} {level:<7} {milliseconds:10.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
