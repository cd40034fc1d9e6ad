"""What steps through a field must give: the same on the whole field, with NumPy."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import numba_swap as ns


def spread(old, inner, halo):
    """Weigh all that lies within the halo of each element of a tile; no two places weigh the same.

    Where the halo ends early, there are zeros.
    """
    gaps = [(h - s.start, h - (n - s.stop)) for n, s, h in zip(old.shape, inner, halo, strict=True)]
    padded = np.pad(old, gaps)
    lengths = [s.stop - s.start for s in inner]
    total = np.zeros(lengths, old.dtype)
    for i, at in enumerate(itertools.product(*(range(2 * h + 1) for h in halo))):
        shifted = tuple(slice(a, a + n) for a, n in zip(at, lengths, strict=True))
        total += (3 * i + 1) * padded[shifted]
    return total


def spread_whole(field, tiling):
    """The same of a whole field, with what lies beyond it as the boundary of a tiling says."""
    pads = [(h, h) for h in tiling.halo]
    if tiling.boundary == "periodic":
        around = np.pad(field, pads, mode="wrap")
    else:
        value = 0 if tiling.boundary == "clip" else tiling.boundary
        around = np.pad(field, pads, constant_values=value)
    inner = tuple(slice(h, h + n) for h, n in zip(tiling.halo, field.shape, strict=True))
    return spread(around, inner, tiling.halo)


def launch_spread(gpu, halo, step, count=None):
    """Enqueue `spread` from each of the first arrays read to the array written beside it."""

    def kernel(*arrays):
        half = len(arrays) // 2
        for old, new in zip(arrays[:half], arrays[half:], strict=True):
            new[...] = spread(old, step.inner, halo)

    reads = step.reads[: len(step.writes) if count is None else count]
    gpu.launch(kernel, *reads, *step.writes, stream=step.stream)


class Case(NamedTuple):
    """A tiling, and how to go through it."""

    tiling: Any
    depth: int
    order: str


@st.composite
def cases(draw, most_halo=2):
    axes = draw(st.integers(1, 3))
    longest = (24, 9, 5)[axes - 1]
    shape = draw(st.tuples(*[st.integers(1, longest)] * axes))
    tile = draw(st.tuples(*[st.integers(1, longest)] * axes))
    halo = draw(st.tuples(*[st.integers(0, most_halo)] * axes))
    boundary = draw(st.sampled_from(["clip", "periodic", 0, 7]))
    if boundary == "periodic":
        halo = tuple(map(min, halo, shape))
    tiling = ns.Tiling(shape, tile, halo, boundary)
    return Case(tiling, draw(st.integers(1, 5)), draw(st.sampled_from(["rows", "morton"])))


def numbers(shape, seed=0):
    """Any 64-bit integers: sums of them wrap round, and are exact."""
    return np.random.default_rng(seed).integers(-(1 << 62), 1 << 62, shape)
