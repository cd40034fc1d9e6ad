"""Views of any shape, stride, alignment and overlap at random, against sets of byte positions.

What a swap reads and writes is worked out byte by byte, with NumPy alone. A swap must then be
right, or be refused; it must be refused if its result would depend on the order of the copies.

``NUMBA_SWAP_EXAMPLES_FACTOR=20 pytest -m "gpu or not gpu" tests/test_fuzz.py`` tries more, and
other, examples.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import Case, address_of, examples, make_array, read_array

import numba_swap as ns

ROOM = 600
MODES = ["batch", "loop", "batch", "loop", "kernel"]
KINDS = [("device", "device"), ("pinned", "device"), ("device", "pinned"), ("managed", "pinned")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Case("13.0", "auto"), id="simulated"),
        pytest.param(Case("real", "auto"), marks=pytest.mark.gpu, id="real"),
    ],
)
def gpu(request):
    with request.param.open() as gpu:
        yield gpu


class View:
    """Anything that says of itself where it lies, at any address."""

    def __init__(self, at, shape, strides, itemsize):
        self.__cuda_array_interface__ = {
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{itemsize}",
            "data": (at, False),
            "version": 3,
        }


@st.composite
def sides(draw, block_shape, itemsize):
    """Blocks, strides (any, also 0, negative or overlapping) and first position of one side."""
    blocks = draw(st.integers(1, 6))
    shape = (blocks, *block_shape)
    strides = []
    step = itemsize
    for length in reversed(shape):
        extra = draw(st.sampled_from([0, 0, 0, 1, 3, itemsize]))
        overlap = draw(st.sampled_from([False] * 7 + [True]))
        stride = draw(st.integers(0, step)) if overlap else step + extra
        strides.insert(0, stride * draw(st.sampled_from([1, 1, 1, -1])))
        step = max(step, stride * length)
    spans = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    low, high = sum(s for s in spans if s < 0), sum(s for s in spans if s > 0) + itemsize
    first = draw(st.integers(-low, max(-low, min(ROOM - high, 60 - low))))
    return shape, tuple(strides), first, first + high


def positions(shape, strides, first, itemsize):
    """The position of every byte of every block, shape (blocks, bytes of a block)."""
    at = np.full(1, first)
    grids = [np.arange(n) * s for n, s in zip(shape, strides, strict=True)]
    for steps in [*grids, np.arange(itemsize)]:
        at = (at[:, None] + steps).ravel()
    return at.reshape(shape[0], -1)


def is_hazard(reads, writes, same):
    """Whether the result depends on an order: a byte written twice, or written and read."""
    twice = len(np.unique(writes)) < len(writes)
    return twice or (same and bool(np.isin(reads, writes).any()))


@examples(1500)
@given(data=st.data())
def test_views_of_any_kind_are_copied_right_or_refused(gpu, data):
    itemsize = data.draw(st.sampled_from([1, 1, 2, 3, 4, 8, 16]), "itemsize")
    block_shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=2), "block shape"))
    same = data.draw(st.booleans(), "one pool")
    (src_shape, src_strides, src_first, src_end), (dst_shape, dst_strides, dst_first, dst_end) = (
        data.draw(sides(block_shape, itemsize)) for _ in range(2)
    )
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(0, src_shape[0] - 1), st.integers(0, dst_shape[0] - 1)),
            min_size=1,
            max_size=6,
        )
    )
    mapping = np.array(rows)
    kinds = data.draw(st.sampled_from(KINDS))
    mode = data.draw(st.sampled_from(MODES))
    rng = np.random.default_rng(src_end)
    room = max(src_end, dst_end, ROOM)
    contents = [rng.integers(0, 256, room, dtype=np.uint8) for _ in range(2)]
    if same:
        pool = make_array(gpu, kinds[0], contents[0])
        pools, contents = [pool, pool], [contents[0]] * 2
    else:
        pools = [make_array(gpu, kind, c) for kind, c in zip(kinds, contents, strict=True)]
    bases = [address_of(pool) for pool in pools]
    src = View(bases[0] + src_first, src_shape, src_strides, itemsize)
    dst = View(bases[1] + dst_first, dst_shape, dst_strides, itemsize)
    reads = positions(src_shape, src_strides, src_first, itemsize)[mapping[:, 0]]
    writes = positions(dst_shape, dst_strides, dst_first, itemsize)[mapping[:, 1]]
    moved = (reads != writes) | (not same)  # a byte that stays where it is counts for nothing
    want = contents[1].copy()
    want[writes[moved]] = contents[0][reads[moved]]
    hazard = is_hazard(reads[moved], writes[moved], same)
    refused = None
    try:
        ns.swap_blocks(src, dst, mapping, mode=mode).wait()
    except ns.BadPlanError as error:
        refused = str(error)
    if refused is None:
        assert not hazard
    else:
        # Ids that stand twice, and runs of a block that may share bytes, are always refused.
        assert hazard or "written twice" in refused or "may share memory" in refused
        want = contents[1]
    assert np.array_equal(read_array(gpu, pools[1]), want)
    if not same:
        assert np.array_equal(read_array(gpu, pools[0]), contents[0])


@examples(1500)
@given(data=st.data())
def test_pointers_of_any_kind_are_copied_right_or_refused(gpu, data):
    """With full validation: refused if, and only if, copies overlap."""
    place = st.integers(0, 90)
    copies = np.array(
        data.draw(
            st.lists(
                st.tuples(place, place, st.sampled_from([0, 1, 2, 3, 7, 16, 17])),
                min_size=1,
                max_size=8,
            )
        )
    )
    same = data.draw(st.booleans())
    kinds = data.draw(st.sampled_from(KINDS))
    mode = data.draw(st.sampled_from(MODES))
    content = np.random.default_rng(len(copies)).integers(0, 256, (2, 128), dtype=np.uint8)
    pools = [make_array(gpu, kind, c) for kind, c in zip(kinds, content, strict=True)]
    if same:
        pools[0], content[0] = pools[1], content[1]
    bases = [address_of(pool) for pool in pools]
    src, dst, sizes = copies.T
    moved = [row for row in copies if row[2] and not (same and row[0] == row[1])]
    written = [set(range(d, d + n)) for _, d, n in moved]
    read = [set(range(s, s + n)) if same else set() for s, _, n in moved]
    hazard = len(set().union(*written)) < sum(map(len, written)) or bool(
        set().union(*written) & set().union(*read)
    )
    want = content[1].copy()
    for s, d, n in moved:
        want[d : d + n] = content[0][s : s + n]
    call = bases[0] + src, bases[1] + dst, sizes
    if hazard:
        with pytest.raises(ns.BadPlanError, match="the order of copies is not defined") as error:
            ns.swap_blocks_batch(*call, mode=mode, validate="full")
        assert sizes[error.value.index] > 0
        want = content[1]
    else:
        ns.swap_blocks_batch(*call, mode=mode, validate="full").wait()
        ns.swap_blocks_batch(*call, mode=mode).wait()
        ns.swap_blocks_batch(*call, mode=mode, validate="none").wait()
    assert np.array_equal(read_array(gpu, pools[1]), want)


@examples(1000)
@given(data=st.data())
def test_one_pool_by_ids_and_by_addresses_agree(gpu, data):
    """The linear check of ids and the check by sorting say the same, and name a row at fault."""
    from numba_swap.copies.from_arrays import plan_array_blocks
    from numba_swap.copies.hazards import check_hazards

    blocks = data.draw(st.sampled_from([3, 8, 40, 3000]))
    ids = st.integers(0, blocks - 1)
    mapping = np.array(data.draw(st.lists(st.tuples(ids, ids), min_size=1, max_size=12)))
    pool = pool_of(gpu, blocks)
    apart = pool_of(gpu, blocks, "other")
    driver = ns.driver.current.current_driver()
    driver.current_context()
    try:
        copies = plan_array_blocks(driver, apart, apart[:], mapping, 0).without_identities()
        check_hazards(copies)
    except ns.BadPlanError:
        copies = None
    if copies is None:
        with pytest.raises(ns.BadPlanError) as error:
            ns.plan_blocks(pool, pool, mapping)
        assert 0 <= error.value.index < len(mapping)
    else:
        assert ns.plan_blocks(pool, pool, mapping).nbytes == copies.nbytes


_pools = {}


def pool_of(gpu, blocks, name=""):
    key = id(gpu), blocks, name
    if key not in _pools:
        _pools[key] = gpu, gpu.device_array((blocks, 4), np.uint8)
    return _pools[key][1]
