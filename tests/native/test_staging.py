"""Shares of a job: every byte of it once, whatever the rows and the shares."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from machines import examples

from numba_swap import native

loops = native.staging


def make_job(near, offsets, sizes, begin, end, place, share, *, leaves=False, uniform=0):
    """Words of a job over these columns, which the caller keeps alive."""
    words = np.zeros(len(loops.JOB), dtype=np.int64)
    words[loops.NEAR], words[loops.OFFSETS] = near.ctypes.data, offsets.ctypes.data
    words[loops.SIZES], words[loops.UNIFORM] = sizes.ctypes.data, uniform
    words[loops.ROWS], words[loops.SHARE] = len(near), share
    words[loops.BEGIN], words[loops.END] = begin, end
    words[loops.PLACE], words[loops.LEAVES] = place, int(leaves)
    return words


ROW = st.tuples(st.integers(1, 700), st.integers(0, 20), st.integers(0, 20))


@examples(200)
@given(
    st.lists(ROW, min_size=1, max_size=30),
    st.integers(1, 400),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_job_moves_its_numbers_and_no_other_byte(rows, share, leaves, random):
    sizes, gaps, pads = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    offsets = np.cumsum(pads + sizes) - sizes
    total = int(offsets[-1] + sizes[-1])
    host = np.random.default_rng(len(rows)).integers(0, 256, int((sizes + gaps).sum()), np.uint8)
    stage = np.random.default_rng(share).integers(0, 256, total, np.uint8)
    starts = np.cumsum(sizes + gaps) - sizes
    order = list(range(len(rows)))
    random.shuffle(order)  # where rows lie says nothing of their order
    places = np.empty_like(starts)
    at = 0
    for row in order:
        places[row] = at
        at += sizes[row] + gaps[row]
    begin = random.randrange(total)
    end = random.randrange(begin, total) + 1
    wanted_host, wanted_stage = host.copy(), stage.copy()
    for row in range(len(rows)):
        for k in range(int(sizes[row])):
            number = int(offsets[row]) + k
            if begin <= number < end:
                if leaves:
                    wanted_host[places[row] + k] = stage[number]
                else:
                    wanted_stage[number] = host[places[row] + k]
    near = (host.ctypes.data + places).astype(np.uint64)
    job = make_job(near, offsets, sizes, begin, end, stage.ctypes.data, share, leaves=leaves)
    loops.take_shares(job.ctypes.data)
    assert np.array_equal(host, wanted_host)
    assert np.array_equal(stage, wanted_stage)


def test_the_names_of_the_words_are_their_places():
    assert (
        *("taken", "working", "near", "offsets", "sizes", "uniform"),
        *("rows", "begin", "end", "place", "share", "leaves"),
    ) == loops.JOB
    for name in loops.JOB:
        assert loops.JOB[getattr(loops, name.upper())] == name
