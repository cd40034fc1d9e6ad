"""The copy kernel without a GPU: its PTX, and its source under Numba's CUDA simulator."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.modes.kernel.table import _split, _tile_size


@pytest.fixture(scope="module")
def ptx():
    from numba import cuda

    from numba_swap.modes.kernel import copy_source

    text, _ = cuda.compile_ptx(copy_source.copy_kernel, copy_source.KERNEL_SIGNATURE, cc=(9, 0))
    return text


def test_ptx_has_128_bit_accesses_with_four_in_flight(ptx):
    loads = [m.start() for m in re.finditer(r"ld\.global\.v2\.u64", ptx)]
    stores = [m.start() for m in re.finditer(r"st\.global\.v2\.u64", ptx)]
    assert len(loads) >= 5
    assert len(stores) >= 5
    # Four loads stand before the first store of the same loop.
    assert sum(load < stores[0] for load in loads) >= 4


def test_ptx_stays_in_integers_and_global_memory(ptx):
    assert not re.search(r"\.f64|\.f32", ptx)
    assert not re.search(r"(ld|st)\.local", ptx)
    assert not re.search(r"\bld\.u|\bst\.u", ptx)  # generic accesses: the address space was lost


def test_source_runs_under_numbas_simulator_in_its_own_process():
    """With NUMBA_ENABLE_CUDASIM=1, which Numba reads when it is imported."""
    code = """
import numpy as np, numba_swap as ns
from numba.core import config
assert config.ENABLE_CUDASIM
rng = np.random.default_rng(3)
with ns.simulate(driver_version=(12, 4)) as gpu:
    src, dst = gpu.pinned_array((16, 333), np.uint8), gpu.device_array((16, 333), np.uint8)
    src[:] = rng.integers(0, 256, src.shape)
    transfer = ns.swap_blocks(src, dst, [[i, 15 - i] for i in range(16)])
    transfer.wait()
    assert transfer.decision.mode == "kernel", transfer.decision
    assert np.array_equal(dst.copy_to_host(), src[::-1])
print("right")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"},
    )
    assert result.stdout == "right\n", result.stderr


@pytest.mark.parametrize(
    ("mean", "tile"),
    [(1, 1), (16, 1), (17, 2), (64, 4), (128, 8), (512, 8), (1024, 16), (2048, 32), (1 << 20, 32)],
)
def test_tile_size(mean, tile):
    assert _tile_size(mean, DEFAULT_TUNING) == tile


def test_long_copies_are_split_without_gap_or_overlap(rng):
    sizes = np.array([5, 4096, 4097, 100_000, 8192], np.uint64)
    starts = np.cumsum(sizes) - sizes
    dst, src = ((starts * np.uint64(2) + np.uint64(base)) for base in (7, 1 << 40))
    table = _split((dst, src), sizes, 4096)
    assert table[2].max() <= 4096
    assert len(table[2]) == 1 + 1 + 2 + 25 + 2
    pieces = {}
    for d, s, n in table.T.tolist():
        for k in range(n):
            assert d + k not in pieces
            pieces[d + k] = s + k
    want = {
        int(d) + k: int(s) + k
        for d, s, n in zip(dst, src, sizes, strict=True)
        for k in range(int(n))
    }
    assert pieces == want
