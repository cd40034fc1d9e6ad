"""Shapes, strides, axes, dtypes and mappings at random, against a plain NumPy model."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_swap as ns

MODES = ["batch", "loop", "kernel"]


@st.composite
def layouts(draw):
    """A block shape with its block axis, and a way to lay it out for each side."""
    block = draw(st.lists(st.integers(1, 5), min_size=0, max_size=3))
    axis = draw(st.integers(0, len(block)))
    itemsize = draw(st.sampled_from([1, 2, 4, 8, 16]))
    sides = [
        {
            "blocks": draw(st.integers(1, 6)),
            "order": draw(st.permutations(range(len(block) + 1))),
            "step": draw(st.lists(st.sampled_from([1, 2, -1]), min_size=4, max_size=4)),
            "offset": draw(st.integers(0, 20)),
        }
        for _ in range(2)
    ]
    seed = draw(st.integers(0, 2**32 - 1))
    mode = draw(st.sampled_from(MODES))
    return block, axis, itemsize, sides, seed, mode


def make_side(gpu, device, block, axis, itemsize, side, rng):
    """An array of the wanted shape somewhere inside a larger allocation, in any memory order."""
    shape = [*block[:axis], side["blocks"], *block[axis:]]
    stored = [shape[i] * abs(side["step"][i]) for i in side["order"]]
    nbytes = int(np.prod(stored)) * itemsize
    make = gpu.device_array if device else gpu.pinned_array
    base = make(nbytes + 64, np.uint8)
    content = rng.integers(0, 256, nbytes + 64, dtype=np.uint8)

    def view(array):
        inner = array[side["offset"] : side["offset"] + nbytes]
        inner = inner.view(f"V{itemsize}").reshape(stored)
        inner = inner.transpose(np.argsort(side["order"]))
        return inner[tuple(slice(None, None, step) for step in side["step"][: inner.ndim])]

    if not device:
        base[:] = content
        return base, view(base), content, view(content)
    base.copy_to_device(content)
    wanted = view(content)
    pointer = base.__cuda_array_interface__["data"][0]

    class Device:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": wanted.shape,
            "strides": wanted.strides,
            "typestr": f"|V{itemsize}",
            "data": (pointer + wanted.ctypes.data - content.ctypes.data, False),
            "version": 3,
            "stream": None,
        }
        owner = base

    return base, Device(), content, wanted


@settings(max_examples=400, deadline=None)
@given(layouts())
def test_blocks_arrive_and_nothing_else_changes(layout):
    block, axis, itemsize, sides, seed, mode = layout
    rng = np.random.default_rng(seed)
    to_device = bool(rng.integers(2))
    with ns.simulate() as gpu:
        _, src, _, src_model = make_side(gpu, not to_device, block, axis, itemsize, sides[0], rng)
        base, dst, content, dst_model = make_side(
            gpu, to_device, block, axis, itemsize, sides[1], rng
        )
        n = rng.integers(0, sides[1]["blocks"] + 1)
        targets = rng.permutation(sides[1]["blocks"])[:n]
        mapping = np.stack([rng.integers(0, sides[0]["blocks"], n), targets], axis=1)
        plan = ns.plan_blocks(src, dst, mapping, block_axis=axis)
        assert plan.nbytes == n * int(np.prod(block, dtype=int)) * itemsize
        plan.run(mode=mode).wait()
        got = base.copy_to_host() if to_device else np.array(base)
    for i, j in mapping:
        np.moveaxis(dst_model, axis, 0)[j] = np.moveaxis(src_model, axis, 0)[i]
    assert np.array_equal(got, content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_pointers_arrive_and_nothing_else_changes(data):
    cells = data.draw(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=25))
    seed = data.draw(st.integers(0, 2**32 - 1))
    mode = data.draw(st.sampled_from(MODES))
    rng = np.random.default_rng(seed)
    sizes = np.array([size for size, _ in cells], dtype=np.int64)
    gaps = np.array([gap for _, gap in cells], dtype=np.int64)
    room = int(sizes.sum() + gaps.sum()) + 16
    starts = np.cumsum(sizes + gaps) - sizes  # with gaps of 0, neighbours that can merge
    order = np.arange(len(cells)) if rng.integers(2) else rng.permutation(len(cells))
    content, target = (rng.integers(0, 256, room, dtype=np.uint8) for _ in range(2))
    with ns.simulate() as gpu:
        src, dst = gpu.pinned_array(room, np.uint8), gpu.device_array(room, np.uint8)
        src[:] = content
        dst.copy_to_device(target)
        dst_base = dst.__cuda_array_interface__["data"][0]
        transfer = ns.swap_blocks_batch(
            (src.ctypes.data + starts)[order], (dst_base + starts)[order], sizes[order], mode=mode
        )
        transfer.wait()
        got = dst.copy_to_host()
    assert transfer.nbytes == sizes.sum()
    for start, size in zip(starts, sizes, strict=True):
        target[start : start + size] = content[start : start + size]
    assert np.array_equal(got, target)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_pool_is_copied_right_or_refused(data):
    """Within one array: never a result that depends on the order of the copies."""
    n = data.draw(st.integers(1, 8))
    ids = st.integers(0, n - 1)
    mapping = data.draw(st.lists(st.tuples(ids, ids), max_size=8))
    targets = [j for _, j in mapping]
    moved = [(i, j) for i, j in mapping if i != j]
    hazard = len(set(targets)) < len(targets) or bool({i for i, _ in moved} & {j for _, j in moved})
    with ns.simulate() as gpu:
        pool = gpu.device_array((n, 16), np.uint8)
        content = np.arange(n * 16, dtype=np.uint8).reshape(n, 16)
        pool.copy_to_device(content)
        try:
            ns.swap_blocks(pool, pool, mapping).wait()
        except ns.BadPlanError:
            assert hazard
        else:
            assert not hazard
        got = pool.copy_to_host()
    want = content.copy()
    if not hazard:
        for i, j in mapping:
            want[j] = content[i]
    assert np.array_equal(got, want)
