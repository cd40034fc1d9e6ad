"""Results made up from models of time, with answers that are known."""

from __future__ import annotations

import numpy as np

from numba_swap.tools.bench.ab.measure.order import round_orders
from numba_swap.tools.bench.ab.results.results import ArmResult, CellResult, Result
from numba_swap.tools.bench.ab.spec.cases import Case

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "devices": [{"ordinal": 0, "name": "Made-up GPU"}],
    "driver_version": "13.0",
    "driver_release": "580.1",
    "pretended_version": None,
    "versions": {"python": "3.12.0"},
    "system": "Linux",
    "cores": 4,
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "uncommitted_changes": False,
}


def make_cell(case, times_ns, *, rounds=24, seed=0, noise=0.003, drift=0.0, spikes=()):
    """A cell whose arms take these times: an arm's text -> nanoseconds.

    Every sample is the model's time, times log-normal noise, times a drift that grows by the
    fraction `drift` over the whole cell, linearly in the samples' order; `spikes` are indices of
    samples, in that order, that take ten times as long.
    """
    rng = np.random.default_rng(seed)
    names = list(times_ns)
    entries = [names[0], *names]
    entries[1], control = names[0], [False, True, *(False for _ in names[1:])]
    orders = round_orders(len(entries), rounds, seed)
    samples = [[] for _ in entries]
    place, last = 0, rounds * 2 * len(entries)
    for order in orders:
        for index in (*order, *reversed(order)):
            value = times_ns[entries[index]] * np.exp(noise * rng.standard_normal())
            value *= 1 + drift * place / last
            samples[index].append(round(value * (10 if place in spikes else 1)))
            place += 1
    arms = [
        ArmResult(
            arm=name,
            control=control[i],
            mode=name if name in ("batch", "kernel", "loop") else None,
            reason=None,
            planted_ns=0,
            settled=True,
            runs_a_sample=1,
            warmups_ns=[round(times_ns[name] * 3), round(times_ns[name])],
            enqueue_ns=[max(1, value // 10) for value in samples[i]],
            completion_ns=samples[i],
            gpu_ns=[max(1, value * 9 // 10) for value in samples[i]],
        )
        for i, name in enumerate(entries)
    ]
    return CellResult(case, arms, orders)


def make_result(cells, **changes):
    """A result of these cells on a machine that is none."""
    method = {
        "rounds": len(cells[0].orders) if cells else 24,
        "seed": 0,
        "sample_ns": 10**6,
        "most_arm_ns": 10**9,
        "flush_bytes": 1 << 20,
    }
    values = {
        "simulated": False,
        "complete": True,
        "arguments": ["arms=batch loop"],
        "machine": MACHINE,
        "clocks": [
            {"at_s": 0.5, "sm_mhz": 1980.0, "memory_mhz": 2619.0, "temperature_c": 31.0}
            | {"power_w": None}
        ],
        "method": method,
        "cells": cells,
        "skipped": [],
    }
    return Result(**{**values, **changes})


def link_times(size, count):
    """A link of 55 GB/s: a kernel with a launch, a batch and a loop with a cost for each copy."""
    nbytes = size * count
    cliff = 1.0 if size < 28 << 10 else 0.1
    return {
        "auto": 12e3 + nbytes / 50,
        "kernel": 12e3 + nbytes / 50,
        "batch": 8e3 + max(nbytes / 54, count * 1.0e3 * cliff),
        "loop": 4e3 + max(nbytes / 54, count * 2.0e3),
        "contiguous": 6e3 + nbytes / 55,
    }


def make_grid_result(sizes=(512, 2048, 8192, 32768, 262144, 1 << 20), counts=(16, 256, 4096)):
    """A grid of both directions, of the sizes and counts, with three modes and the ceiling."""
    cells = [
        make_cell(Case(direction, size, count), link_times(size, count), seed=i)
        for i, (direction, size, count) in enumerate(
            (d, s, c) for d in ("h2d", "d2h") for s in sizes for c in counts
        )
    ]
    return make_result(cells)
