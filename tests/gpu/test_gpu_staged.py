"""Plain NumPy memory by way of pinned memory, on a GPU."""

import numpy as np
import pytest

import numba_swap as ns

pytestmark = pytest.mark.gpu


def pools(rng, nbytes, count):
    from numba import cuda

    host = rng.integers(0, 256, (2 * count, nbytes), np.uint8)
    device = cuda.to_device(rng.integers(0, 256, (2 * count, nbytes), np.uint8))
    rows = 2 * np.stack([rng.permutation(count), rng.permutation(count)], axis=1)
    return host, device, rows


@pytest.mark.parametrize("threads", [1, 3, None])
@pytest.mark.parametrize(
    ("nbytes", "count"), [(1, 300), (100, 5000), (512, 8192), (8192, 4096), (9 << 20, 6)]
)
@pytest.mark.parametrize("direction", ["in", "out"])
def test_every_byte_is_right(rng, direction, nbytes, count, threads):
    from numba import cuda

    host, device, rows = pools(rng, nbytes, count)
    src, dst = (host, device) if direction == "in" else (device, host)
    before = device.copy_to_host()
    expected = (before if direction == "in" else host).copy()
    expected[rows[:, 1]] = (host if direction == "in" else before)[rows[:, 0]]
    plan, stream = ns.plan_blocks(src, dst, rows), cuda.stream()
    with ns.override(threads=threads):
        for _ in range(3):
            transfer = plan.run(stream, "staged")
    if direction == "out":
        assert np.array_equal(host, expected)  # without waiting
    transfer.wait()
    assert np.array_equal(device.copy_to_host() if direction == "in" else host, expected)


def test_out_and_in_again_in_one_stream(rng):
    """Each call sees what the one before has written, with nobody waiting."""
    from numba import cuda

    host, device, rows = pools(rng, 4096, 2048)
    other, stream = cuda.device_array_like(device), cuda.stream()
    wanted = device.copy_to_host()[rows[:, 0]]
    for mode in ("staged", "auto", "batch", "loop"):
        host[:] = 0
        ns.swap_blocks(device, host, rows, stream=stream, mode=mode)
        ns.swap_blocks(host, other, rows[:, [1, 0]], stream=stream, mode="staged")
        host[:] = 0  # it has been read
        stream.synchronize()
        assert np.array_equal(other.copy_to_host()[rows[:, 0]], wanted), mode


def test_many_are_staged_by_themselves_where_there_are_processors(rng):
    host, device, rows = pools(rng, 8192, 8192)
    with ns.override(threads=16):
        assert ns.plan_blocks(host, device, rows).explain().mode == "staged"
        assert ns.plan_blocks(host, device, rows[:1]).explain().mode == "loop"
