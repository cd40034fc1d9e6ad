"""Copies in parts: which go where, and what a part still says of them."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
from machines import make_copies

import numba_swap as ns
from numba_swap.copies.provenance import Selected
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.dispatch.partition import by_direction, by_share, by_size
from numba_swap.dispatch.workload import share_workload, split_workload, workload_of

KIB, MIB = 1 << 10, 1 << 20
# Just below every edge between two classes of lengths, and on it.
SIZES = [4 * KIB - 1, 4 * KIB, 28 * KIB - 1, 28 * KIB, 128 * KIB - 1, 128 * KIB]


def memory(kind, start, nbytes=MIB):
    return Allocation(start, start + nbytes, MemoryKind(kind), 0, 0)


def column(numbers):
    return np.array(numbers, np.uint64)


def copies_of(sizes, **arguments):
    begins = column(np.arange(1, len(sizes) + 1) * MIB)
    return make_copies(begins, begins + np.uint64(1 << 30), column(sizes), **arguments)


def rows(parts):
    """The rows of the whole in each part."""
    return [[int(part.origin.describe(i).split()[1]) for i in range(len(part))] for part in parts]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.45, 0.99])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_shares_are_parted_as_their_workload_is(share, count):
    copies = copies_of([64 * KIB] * count)
    parts = by_share(copies, share)
    assert by_share(copies, share) is parts
    kernel, batch = rows(parts)
    assert kernel + batch == list(range(count))
    assert len(parts[1]) == round(share * count)
    for part, workload in zip(parts, share_workload(workload_of(copies), share), strict=True):
        assert (len(part), part.nbytes) == (workload.copies, workload.nbytes)


@pytest.mark.parametrize("edge", [1, 2, 3])
def test_lengths_are_parted_as_their_workload_is(edge):
    copies = copies_of(SIZES)
    parts = by_size(copies, edge)
    assert rows(parts) == [list(range(2 * edge - 1)), list(range(2 * edge - 1, 6))]
    predicted = split_workload(workload_of(copies), edge)
    assert [workload_of(part)[:4] for part in parts] == [load[:4] for load in predicted]


PINNED, PAGEABLE = memory("pinned", 2 * MIB), memory("pageable", 9 * MIB)
DEVICE, MANAGED = memory("device", 5 * MIB), memory("managed", 7 * MIB)


def all_directions():
    """Two copies of every direction, in no order."""
    src = [DEVICE, PINNED, MANAGED, PAGEABLE, PAGEABLE, PINNED, DEVICE, DEVICE]
    dst = [PINNED, DEVICE, PAGEABLE, PINNED, MANAGED, PAGEABLE, DEVICE, MANAGED]
    steps = column(np.arange(8) * 64)
    return make_copies(
        column([allocation.start for allocation in dst]) + steps,
        column([allocation.stop for allocation in src]) - steps - np.uint64(64),
        64,
        (DEVICE, PINNED, MANAGED, PAGEABLE),
        (PAGEABLE, MANAGED, PINNED, DEVICE),
    )


def test_every_copy_goes_with_those_of_its_direction():
    parts = by_direction(all_directions())
    assert [part.direction for part in parts] == [
        ns.Direction.H2D,
        ns.Direction.D2H,
        ns.Direction.H2H,
        ns.Direction.D2D,
    ]
    assert rows(parts) == [[1, 4], [0, 2], [3, 5], [6, 7]]
    assert [set(part.ends.sources) for part in parts] == [
        {PINNED, PAGEABLE},
        {DEVICE, MANAGED},
        {PINNED, PAGEABLE},
        {DEVICE},
    ]
    assert [set(part.ends.destinations) for part in parts] == [
        {DEVICE, MANAGED},
        {PINNED, PAGEABLE},
        {PINNED, PAGEABLE},
        {DEVICE, MANAGED},
    ]


def test_one_direction_is_the_whole():
    begins = column([2, 5]) * np.uint64(MIB)
    copies = make_copies(begins, begins, 64, (PINNED, DEVICE), (PINNED, DEVICE))
    assert len(by_direction(copies)) == 2
    begins = column([2 * MIB, 2 * MIB + 64])
    copies = make_copies(
        begins + np.uint64(3 * MIB), begins, 64, (PINNED, DEVICE), (DEVICE, PINNED)
    )
    assert by_direction(copies) == (copies,)


@pytest.mark.parametrize("end", ["src", "dst", "both"])
@pytest.mark.parametrize(
    "address",
    [MIB, 3 * MIB, 4 * MIB, 6 * MIB],
    ids=["before all", "behind one", "between", "behind all"],
)
def test_copies_stay_together_where_the_memory_of_one_is_not_known(end, address):
    known = column([2 * MIB, 5 * MIB, 5 * MIB + 64, 2 * MIB + 64])
    other = known.copy()
    other[2] = address
    ends = {"src": (known[::-1], other), "dst": (other, known[::-1]), "both": (other, other)}
    copies = make_copies(*ends[end], 64, (PINNED, DEVICE), (DEVICE, PINNED))
    assert by_direction(copies) == (copies,)
    copies = make_copies(known, known[::-1], 64, (PINNED, DEVICE), ())
    assert by_direction(copies) == (copies,)


def test_parts_of_each_kind_are_made_once():
    """They keep what the modes derive from them, such as tables of descriptors."""
    copies, directions = copies_of(SIZES), all_directions()
    ways = [
        *(partial(by_size, copies, edge) for edge in (1, 2, 3)),
        partial(by_direction, directions),
    ]
    first = [way() for way in ways]
    assert [[len(part) for part in parts] for parts in first] == [
        [1, 5],
        [3, 3],
        [5, 1],
        [2, 2, 2, 2],
    ]
    assert all(way() is parts for way, parts in zip(ways, first, strict=True))


class Numbers(NamedTuple):
    """An origin whose rows show what it was asked."""

    def describe(self, index, offset=None):
        return f"copy {index}, byte {offset}"

    def describe_merged(self, start, stop):
        return f"copies {start} to {stop - 1}"

    def row(self, index, offset=0):
        return 1000 * index + offset

    def rows(self, count):
        return range(count)


def test_a_part_says_what_the_whole_says():
    owner = object()
    copies = copies_of(SIZES, owners=(owner,), producer_streams=(7,), origin=Numbers())
    for parts in (
        by_size(copies, 2),
        (copies.select(np.arange(3)), copies.select(np.arange(3, 6))),
    ):
        second = parts[1]
        assert second.ends.owners == (owner,)
        assert second.ends.producer_streams == (7,)
        assert second.origin.describe(1) == "copy 4, byte None"
        assert second.origin.describe(1, 30) == "copy 4, byte 30"
        assert (second.origin.row(1), second.origin.row(1, 30)) == (4000, 4030)
        assert second.origin.rows(2) is None  # what ran beside it is not known


@pytest.mark.parametrize("lower_first", [True, False])
def test_neighbours_are_merged_but_not_over_the_end_of_an_allocation(lower_first):
    one, two = memory("pinned", 0, 128), memory("pinned", 128, 256)
    sources = (one, two) if lower_first else (two, one)
    starts = column([0, 64, 128, 192, 320])
    dst = starts + np.uint64(5 * MIB)
    origin = Selected(Numbers(), range(5), others_run=True)
    copies = make_copies(dst, starts, 64, sources, (DEVICE,), origin=origin, mergeable=True)
    together = copies.coalesced()
    assert together.src.tolist() == [0, 128, 320]
    assert together.sizes.tolist() == [128, 128, 64]
    more = ", merged with the 1 copy after it"
    words = [origin.describe(0) + more, origin.describe(2) + more, origin.describe(4)]
    assert [together.origin.describe(i) for i in range(3)] == words
    assert together.origin.row(1, 63) == copies.origin.row(2, 63)
    assert together.origin.row(1, 70) == copies.origin.row(3, 6)
    assert together.origin.describe(1, 70) == copies.origin.describe(3, 6)
    assert (together.ends.sources, together.ends.destinations) == (sources, (DEVICE,))
    alone = copies.select(np.array([4, 0, 2]))
    assert alone.uniform == 64
    assert alone.coalesced() is alone
    known = make_copies(dst, starts, 64)  # to have none that are not merged yet
    assert len(known.coalesced()) == 5


def test_merged_copies_of_different_lengths_keep_what_they_need():
    owner, starts = object(), column([0, 96, 128, 320])
    copies = make_copies(
        starts + np.uint64(5 * MIB),
        starts,
        column([96, 32, 64, 16]),
        (memory("pinned", 0),),
        (DEVICE,),
        owners=(owner,),
        producer_streams=(7,),
        mergeable=True,
    )
    together = copies.coalesced()
    assert together.src.tolist() == [0, 320]
    assert together.sizes.tolist() == [192, 16]
    assert (together.ends.owners, together.ends.producer_streams) == ((owner,), (7,))


def test_copies_of_several_gpus_are_parted_by_gpu_and_pair():
    there = Allocation(9 * MIB, 10 * MIB, MemoryKind.DEVICE, 1, 0)
    ends = (DEVICE, there, PINNED, MANAGED)
    src = [PINNED, DEVICE, there, there, DEVICE, MANAGED, PINNED]
    dst = [there, there, DEVICE, PINNED, DEVICE, there, DEVICE]
    copies = make_copies(
        np.array([a.start for a in dst], np.uint64),
        np.array([a.start for a in src], np.uint64) + np.uint64(64),
        64,
        ends,
        ends,
    )
    parts = by_direction(copies)
    found = [(part.direction, part.ends.devices, len(part)) for part in parts]
    assert found == [
        (ns.Direction.H2D, (0,), 1),
        (ns.Direction.H2D, (1,), 1),
        (ns.Direction.D2H, (1,), 1),
        (ns.Direction.D2D, (0,), 1),
        (ns.Direction.P2P, (0, 1), 1),
        (ns.Direction.P2P, (1, 0), 1),
        (ns.Direction.D2D, (1,), 1),  # what is managed counts as that of the other end
    ]
    # All of one GPU, though several might take part: it knows which one.
    (only,) = by_direction(copies.select(slice(0, 1)))
    assert (only.direction, only.ends.devices) == (ns.Direction.H2D, (1,))
