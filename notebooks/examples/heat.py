"""Heat in a periodic field on the host, four steps at each visit of a slab.

``python notebooks/examples/heat.py [side] [steps]``; without a GPU it runs on a simulated one.
"""

import contextlib
import sys

import numpy as np

import numba_swap as ns


def on_gpu():
    """Return what makes pinned arrays, and what enqueues one step as a CUDA kernel."""
    from numba import cuda

    @cuda.jit
    def heat(old, new):
        i, j, k = cuda.grid(3)
        if i < new.shape[2] and j < new.shape[1] and k < new.shape[0]:
            x, y, z = i + 1, j + 1, k + 1
            total = old[z - 1, y, x] + old[z + 1, y, x] + old[z, y - 1, x] + old[z, y + 1, x]
            total += old[z, y, x - 1] + old[z, y, x + 1]
            new[k, j, i] = old[z, y, x] + 0.1 * (total - 6 * old[z, y, x])

    def launch(step):
        grid = tuple(-(-n // 8) for n in reversed(step.writes[0].shape))
        heat[grid, (8, 8, 8), step.stream](*step.reads, *step.writes)

    return cuda, launch


def on_simulated_gpu(stack):
    """Return the same without a GPU: the kernel is a Python function on NumPy arrays."""
    gpu = stack.enter_context(ns.simulate())

    def heat(old, new):
        mid = old[1:-1, 1:-1, 1:-1]
        new[:] = mid - 0.6 * mid
        for axis in range(3):
            for shift in (0, 2):
                window = [slice(1, -1)] * 3
                window[axis] = slice(shift, shift + new.shape[axis])
                new += 0.1 * old[tuple(window)]

    return gpu, lambda step: gpu.launch(heat, *step.reads, *step.writes, stream=step.stream)


def main(side=64, steps=20):
    """Compute, and return the heat before and after, and the warmest element of all."""
    with contextlib.ExitStack() as stack:
        there = ns.driver_info()["available"]
        arrays, launch = on_gpu() if there else on_simulated_gpu(stack)
        u = arrays.pinned_array((side,) * 3, np.float64)
        u[:] = 0
        u[side // 2, side // 2, side // 2] = 1000
        tiling = ns.Tiling(u.shape, tile=(side // 4, side, side), halo=1, boundary="periodic")
        before = u.sum()
        ns.run_steps([u], tiling, launch, steps, steps_per_visit=4)
        return before, u.sum(), u.max()


if __name__ == "__main__":
    print("heat before and after, warmest:", *main(*map(int, sys.argv[1:])))
