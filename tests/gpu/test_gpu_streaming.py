"""Streaming steps on a GPU: real kernels, in streams of Numba."""

import numpy as np
import pytest
from tile_model import numbers, spread_whole

import numba_swap as ns

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def kernel():
    from numba import cuda

    @cuda.jit
    def spread(old, new, z0, y0, x0, hz, hy, hx):
        x, y, z = cuda.grid(3)
        if z >= new.shape[0] or y >= new.shape[1] or x >= new.shape[2]:
            return
        total, weight = 0, 1
        for dz in range(-hz, hz + 1):
            for dy in range(-hy, hy + 1):
                for dx in range(-hx, hx + 1):
                    k, j, i = z + z0 + dz, y + y0 + dy, x + x0 + dx
                    inside = 0 <= k < old.shape[0] and 0 <= j < old.shape[1]
                    if inside and 0 <= i < old.shape[2]:
                        total += weight * old[k, j, i]
                    weight += 3
        new[z, y, x] = total

    return spread


def launch(kernel, step, halo, fields=1):
    block = (8, 8, 4)
    starts = [some.start for some in step.inner]
    for old, new in zip(step.reads[:fields], step.writes, strict=True):
        grid = tuple(-(-n // b) for n, b in zip(reversed(new.shape), block, strict=True))
        kernel[grid, block, step.stream](old, new, *starts, *halo)


def array_of(kind, content):
    from numba import cuda

    array = cuda.pinned_array(content.shape, content.dtype) if kind == "pinned" else content.copy()
    array[...] = content
    return array


BOUNDARIES = ["clip", "periodic", 7]


@pytest.mark.parametrize("kind", ["pinned", "plain"])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("tile", [(32, 32, 32), (11, 96, 80), (5, 7, 80)])
def test_updates_and_writes(kernel, kind, boundary, tile):
    tiling = ns.Tiling((70, 96, 80), tile, (1, 2, 1), boundary)
    field = numbers(tiling.shape)
    want = spread_whole(field, tiling)
    for policy in ("overlap", "throughput"):
        for order in ("rows", "morton"):
            u, w = array_of(kind, field), array_of(kind, np.zeros_like(field))
            options = {"tiling": tiling, "policy": policy, "order": order}
            for step in ns.stream_tiles([u], [w], **options):
                launch(kernel, step, tiling.halo)
            assert (w == want).all()
            steps = ns.stream_tiles(updates=[u], **options)
            for step in steps:
                launch(kernel, step, tiling.halo)
            assert (u == want).all()
            assert sorted(steps.written) == list(range(len(tiling)))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("most", [1, 3])
def test_steps(kernel, boundary, most):
    tiling = ns.Tiling((40, 33, 48), (16, 16, 48), 1, boundary)
    u = array_of("pinned", numbers(tiling.shape))
    want = u.copy()
    for _ in range(7):
        want = spread_whole(want, tiling)
    ns.run_steps([u], tiling, lambda step: launch(kernel, step, (1, 1, 1)), 7, most)
    assert (u == want).all()


def test_leaving_early(kernel):
    tiling = ns.Tiling((64, 32, 32), (8, 32, 32), 1, "periodic")
    field = numbers(tiling.shape)
    want = spread_whole(field, tiling)
    u = array_of("pinned", field)
    for step in ns.stream_tiles(updates=[u], tiling=tiling):
        launch(kernel, step, (1, 1, 1))
        if step.tile == 5:
            break
    assert (u[:40] == want[:40]).all()
    assert (u[40:] == field[40:]).all()


def test_too_large_is_refused():
    shape = (1 << 20, 1 << 12, 1 << 8)  # never touched: pages come when they are
    u = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), shape, (0, 0, 0))
    with pytest.raises(ns.BadArgumentError, match="bytes of device memory, and"):
        ns.stream_tiles([u], tiling=ns.Tiling(shape, shape))


def test_snapshots():
    from numba import cuda

    content = numbers((64, 33, 20))
    tiles, stream = cuda.to_device(content), cuda.stream()
    seen = []

    @cuda.jit
    def add(a):
        i = cuda.grid(1)
        if i < a.size:
            a[i] += 1

    flat = tiles.reshape(tiles.size)
    ids = [3, 63, 0]
    with ns.Snapshots(tiles, depth=2, to=lambda snap: seen.append(snap.data.copy())) as snaps:
        for _ in range(8):
            snaps.take(ids, stream=stream)
            add[-(-flat.size // 256), 256, stream](flat)
    assert [(array == content[ids] + i).all() for i, array in enumerate(seen)] == [True] * 8
    snap = ns.Snapshots(tiles).take(ids, stream=stream)
    tiles.copy_to_device(np.zeros_like(content), stream=stream)
    snap.restore(stream).wait()
    assert (tiles.copy_to_host()[ids] == content[ids] + 8).all()
