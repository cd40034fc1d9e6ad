"""The cost model: what is counted of copies, and what time follows from it."""

import math

import numpy as np
import pytest
from machines import make_copies

import numba_swap as ns
from numba_swap.copies.ends import Ends
from numba_swap.device.memory import Allocation, MemoryKind
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.conditions import Capabilities, Conditions
from numba_swap.dispatch.cost_model import CostModel, ModeCost
from numba_swap.dispatch.ranking import rank, split_by_size
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import (
    CLASS_EDGES,
    Workload,
    class_of,
    route_key,
    route_of,
    split_workload,
    uniform_workload,
    workload_of,
    workload_of_sizes,
)

KIB, MIB = 1 << 10, 1 << 20
HERE = Conditions(Capabilities(ns.DriverVersion(13, 0), False, {}))
NOTHING = ModeCost(0.0, 0.0, (0.0,) * 4, (0.0,) * 4)


def costs_of(loop, batch, kernel):
    """Costs of one route; None for what was not measured."""
    modes = {Mode.LOOP: loop, Mode.BATCH: batch, Mode.KERNEL: kernel}
    return CostModel({"h2d": {m: cost for m, cost in modes.items() if cost is not None}}, "made up")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, 0),
        (4 * KIB - 1, 0),
        (4 * KIB, 1),
        (28 * KIB - 1, 1),
        (28 * KIB, 2),
        (128 * KIB - 1, 2),
        (128 * KIB, 3),
        (1 << 40, 3),
    ],
)
def test_classes_begin_at_their_edges(size, expected):
    assert class_of(size) == expected
    ((index, count, nbytes),) = workload_of_sizes("h2d", np.array([size], np.uint64)).terms
    assert (index, count, nbytes) == (expected, 1, size)


def test_a_workload_counts_copies_and_bytes_of_each_class():
    sizes = [100, 4096, 200, 1 << 20, 30_000, 5000, 1 << 21]
    workload = workload_of_sizes("d2h", np.array(sizes, np.uint64), 12)
    assert workload == Workload(
        "d2h", ((0, 2, 300), (1, 2, 9096), (2, 1, 30_000), (3, 2, 3 << 20)), 7, sum(sizes), 12
    )
    assert all(type(number) is int for term in workload.terms for number in term)
    assert uniform_workload("d2d", 3, 5000) == Workload(
        "d2d", ((1, 3, 15_000),), 3, 15_000, 0, alike=True
    )
    alike = workload_of_sizes("d2d", np.full(3, 5000, np.uint64))._replace(alike=True)
    assert alike == uniform_workload("d2d", 3, 5000)


@pytest.mark.parametrize("size", [512, 4096, 12345, 1 << 20])
def test_the_same_copies_have_the_same_workload_however_they_are_given(size):
    begins = np.arange(9, dtype=np.uint64) * np.uint64(4 * size) + np.uint64(1 << 20)
    one = make_copies(begins, begins + np.uint64(1 << 32), size)
    other = make_copies(begins, begins + np.uint64(1 << 32), np.full(9, size, np.uint64))
    assert workload_of(one) == workload_of(other)
    assert workload_of(one) is workload_of(one)
    assert workload_of(one)[:4] == workload_of_sizes("h2d", other.sizes)[:4]


def test_the_last_copy_of_another_length_makes_another_workload():
    begins = np.arange(4, dtype=np.uint64) * np.uint64(1 << 24)
    same, other = (
        make_copies(begins, begins, np.array([8192, 8192, 8192, last], np.uint64))
        for last in (8192, 1 << 20)
    )
    assert workload_of(same).terms == ((1, 4, 4 * 8192),)
    assert workload_of(other).terms == ((1, 3, 3 * 8192), (3, 1, 1 << 20))


def memory(kind):
    return Allocation(0, 1 << 40, MemoryKind(kind), 0, 0)


@pytest.mark.parametrize(
    ("src", "dst", "route"),
    [
        ("pinned", "device", "h2d"),
        ("device", "pinned", "d2h"),
        ("device", "managed", "d2d"),
        ("managed", "device", "d2d"),
        ("pageable", "device", "h2d pageable"),
        ("managed", "pageable", "d2h pageable"),
    ],
)
def test_routes(src, dst, route):
    begins = np.zeros(1, np.uint64)
    copies = make_copies(begins, begins, 64, (memory(src),), (memory(dst),))
    assert workload_of(copies).route == route
    assert route_of(Ends.of((memory(src),), (memory(dst),))) == route


@pytest.mark.parametrize(
    ("direction", "route", "pageable"),
    [
        (ns.Direction.H2D, "h2d", "h2d pageable"),
        (ns.Direction.D2H, "d2h", "d2h pageable"),
        (ns.Direction.D2D, "d2d", "d2d"),
    ],
)
def test_routes_of_pageable_memory_only_where_it_is_said(direction, route, pageable):
    assert route_key(direction) == route_key(direction, pageable=False) == route
    assert route_key(direction, pageable=True) == pageable


def test_every_direction_has_a_route_that_is_measured():
    from numba_swap.dispatch.calibration import reference_costs

    for direction in ns.Direction:
        for pageable in (False, True):
            measured = reference_costs().routes[route_key(direction, pageable=pageable)]
            assert measured[Mode.LOOP] is not None


@pytest.mark.parametrize("edge", [1, 2, 3])
def test_a_workload_is_split_at_an_edge_and_nothing_is_lost(edge):
    sizes = np.array([16, 4096, 28 << 10, 128 << 10, 4095, (28 << 10) - 1, 1 << 20], np.uint64)
    whole = workload_of_sizes("h2d", sizes, 16)
    short, long = split_workload(whole, edge)
    below = sizes < CLASS_EDGES[edge - 1]
    assert short == workload_of_sizes("h2d", sizes[below], 16)
    assert long == workload_of_sizes("h2d", sizes[~below], 16)


def test_predictions_computed_by_hand():
    cost = ModeCost(10.0, 5.0, (1.0, 2.0, 3.0, 4.0), (100.0, 50.0, 20.0, 10.0))
    sizes = [1000] * 3 + [10_000] * 2 + [1_000_000]
    workload = workload_of_sizes("h2d", np.array(sizes, np.uint64), 1)  # alignment is for kernels
    # 10, then 3 x 1 + 2 x 2 + 1 x 4 for the copies, 0.3 + 1 + 10 for the bytes
    assert cost.predict_us(workload) == pytest.approx(32.3)
    assert cost.predict_us(workload, forked=True) == pytest.approx(37.3)
    assert cost.predict_us(uniform_workload("h2d", 500, 2000)) == pytest.approx(10 + 500 + 100)


@pytest.mark.parametrize(
    ("bits", "blocks", "factor"),
    [
        (0x1000, None, 1.0),
        (16, None, 1.0),
        (8, None, 1.15),
        (4, None, 1.15),
        (12, None, 1.15),
        (2, None, 2.0),
        (1, None, 2.0),
        (9, None, 2.0),
        (16, 8, 1.0),
        (16, 9, 1.0),
        (16, 4, 2.0),
        (16, 1, 8.0),
        (1, 2, 8.0),
    ],
)
def test_a_kernel_is_slower_unaligned_and_with_few_blocks(bits, blocks, factor):
    """Its bytes take longer; its start and its copies do not."""
    kernel = ModeCost(7.0, 0.0, (1.0,) * 4, (30.0,) * 4, full_blocks=8.0)
    workload = uniform_workload("h2d", 10, 100_000, bits)
    assert kernel.predict_us(workload, max_blocks=blocks) == pytest.approx(7 + 10 + 30 * factor)
    others = kernel._replace(full_blocks=0.0)
    assert others.predict_us(workload, max_blocks=blocks) == pytest.approx(7 + 10 + 30)


@pytest.mark.parametrize(
    ("copies", "nbytes", "beside", "streams"),
    [
        (1000, MIB - 1, False, 1),
        (1000, MIB, False, 8),
        (32, MIB, False, 8),
        (31, MIB, False, 7),
        (8, MIB, False, 2),
        (7, 1 << 30, False, 1),
        (1, 1 << 30, False, 1),
        (1000, MIB, True, 4),
        (8, MIB, True, 2),
    ],
)
def test_streams_of_a_batch(copies, nbytes, beside, streams):
    assert DEFAULT_TUNING.spread_over(copies, nbytes, beside=beside) == streams
    assert DEFAULT_TUNING.spread_over(1000, MIB) == 8


@pytest.mark.parametrize(
    ("count", "size", "circumstances", "forked"),
    [
        (8, 128 * KIB, {}, True),
        (8, 128 * KIB - 16, {}, False),  # not enough bytes
        (7, MIB, {}, False),  # not enough copies
        (8, 128 * KIB, {"policy": Policy.OVERLAP}, True),
        (8, 128 * KIB, {"policy": Policy.LATENCY}, False),
        (8, 128 * KIB, {"capturing": True}, False),
    ],
)
def test_the_batch_pays_for_a_fork_only_where_it_forks(count, size, circumstances, forked):
    dear = NOTHING._replace(start_us=1000.0)
    costs = costs_of(dear, NOTHING._replace(fork_us=25.0), dear)
    ranked = rank(costs, uniform_workload("h2d", count, size), HERE._replace(**circumstances))
    assert ranked[0] == ((25.0 if forked else 0.0), Mode.BATCH)


def test_what_was_not_measured_comes_last():
    costs = costs_of(NOTHING._replace(start_us=5.0), None, None)
    ranked = rank(costs, uniform_workload("h2d", 1, 64), HERE)
    assert ranked == ((5.0, Mode.LOOP), (math.inf, Mode.BATCH), (math.inf, Mode.KERNEL))
    assert (
        split_by_size(costs, workload_of_sizes("h2d", np.array([1, MIB], np.uint64)), HERE) is None
    )


def test_of_equal_predictions_the_least_of_the_machine():
    ranked = rank(costs_of(NOTHING, NOTHING, NOTHING), uniform_workload("h2d", 1, 64), HERE)
    assert tuple(mode for _, mode in ranked) == (Mode.LOOP, Mode.BATCH, Mode.KERNEL)


# A kernel that is good at short copies, a batch that is good at long ones.
SHORT_KERNEL = NOTHING._replace(megabyte_us=(20.0, 20.0, 60.0, 60.0))
LONG_BATCH = NOTHING._replace(copy_us=(2.0, 2.0, 0.1, 0.1), megabyte_us=(20.0,) * 4)


def test_mixed_sizes_are_judged_by_what_is_really_copied():
    """Equally many copies, of the same mean, and yet another mode is better."""
    batch = LONG_BATCH._replace(copy_us=(0.1, 2.0, 0.1, 0.1))
    costs = costs_of(NOTHING._replace(start_us=1e6), batch, SHORT_KERNEL)
    alike = np.full(64, 8 * KIB, np.uint64)
    few_long = np.array([64] * 60 + [(64 * 8 * KIB - 60 * 64) // 4] * 4, np.uint64)
    assert alike.sum() == few_long.sum()
    first = [
        rank(costs, workload_of_sizes("h2d", sizes), HERE)[0][1] for sizes in (alike, few_long)
    ]
    assert first == [Mode.KERNEL, Mode.BATCH]


def test_the_best_split_is_at_the_edge_where_the_two_are_equally_good():
    costs = costs_of(NOTHING._replace(start_us=1e6), LONG_BATCH, SHORT_KERNEL)
    sizes = np.array([512] * 500 + [8 * KIB] * 500 + [64 * KIB] * 500 + [MIB] * 50, np.uint64)
    workload = workload_of_sizes("h2d", sizes)
    edge, predicted = split_by_size(costs, workload, HERE)
    assert CLASS_EDGES[edge - 1] == 28 * KIB
    short, long = sizes[sizes < 28 * KIB], sizes[sizes >= 28 * KIB]
    assert predicted == pytest.approx(20e-6 * short.sum() + 0.1 * len(long) + 20e-6 * long.sum())
    assert predicted < min(us for us, _ in rank(costs, workload, HERE))


@pytest.mark.parametrize("sizes", [[512, 1024, 600], [MIB, 2 * MIB]], ids=["all short", "all long"])
def test_nothing_to_split(sizes):
    costs = costs_of(NOTHING._replace(start_us=1e6), LONG_BATCH, SHORT_KERNEL)
    assert split_by_size(costs, workload_of_sizes("h2d", np.array(sizes, np.uint64)), HERE) is None


def test_a_split_that_gains_next_to_nothing_is_not_made():
    """Two launches instead of one: the starts of both count."""
    workload = workload_of_sizes("h2d", np.array([512] * 10 + [MIB] * 10, np.uint64))
    start = {"start_us": 10_000.0}
    costs = costs_of(None, LONG_BATCH._replace(**start), SHORT_KERNEL._replace(**start))
    assert split_by_size(costs, workload, HERE) is None
    costs = costs_of(None, LONG_BATCH, SHORT_KERNEL)
    assert split_by_size(costs, workload, HERE) is not None


def test_a_split_pays_for_the_fork_of_its_batch():
    workload = workload_of_sizes("h2d", np.array([512] * 10 + [MIB] * 10, np.uint64))
    _, free = split_by_size(costs_of(None, LONG_BATCH, SHORT_KERNEL), workload, HERE)
    forking = LONG_BATCH._replace(fork_us=1.0)
    _, paid = split_by_size(costs_of(None, forking, SHORT_KERNEL), workload, HERE)
    assert paid == pytest.approx(free + 1.0)


@pytest.mark.parametrize(("copies", "forked"), [(7, False), (8, True), (11, True), (40, True)])
def test_a_fork_is_paid_for_from_two_streams_on(copies, forked):
    costs = costs_of(NOTHING, NOTHING._replace(fork_us=25.0), NOTHING)
    workload = uniform_workload("h2d", copies, MIB)
    paid = 25.0 if forked else 0.0
    assert costs.predict_mode(Mode.BATCH, workload) == paid
    assert dict(map(reversed, costs.predict(workload)))[Mode.BATCH] == paid
    assert dict(map(reversed, costs.predict(workload, spread=False)))[Mode.BATCH] == 0.0


def test_what_is_not_split_pays_for_its_fork_too():
    """2 short copies and 40 long ones: 92 us in one batch, 90.2 us in two parts."""
    batch = ModeCost(0.0, 50.0, (1.0,) * 4, (0.0,) * 4)
    kernel = ModeCost(0.0, 0.0, (0.1, 100.0, 100.0, 100.0), (0.0,) * 4)
    workload = Workload("h2d", ((0, 2, 200), (3, 40, 40 * MIB)), 42, 200 + 40 * MIB)
    edge, predicted_us = split_by_size(costs_of(None, batch, kernel), workload, HERE)
    assert (edge, predicted_us) == (1, pytest.approx(90.2))


def test_the_second_direction_slows_kernels_and_makes_the_host_submit_both():
    cheap = NOTHING._replace(start_us=100.0)
    workload = uniform_workload("h2d", 1000, 64)
    ranked = {mode: us for us, mode in rank(costs_of(cheap, cheap, cheap), workload, HERE)}
    beside = HERE._replace(duplex=True)
    slowed = {mode: us for us, mode in rank(costs_of(cheap, cheap, cheap), workload, beside)}
    assert slowed[Mode.KERNEL] > ranked[Mode.KERNEL] == 100.0
    assert slowed[Mode.LOOP] == slowed[Mode.BATCH] > 1000.0  # a microsecond a copy, and more
