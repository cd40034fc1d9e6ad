"""The choice itself, from facts made by hand: no driver, no arrays."""

import math

import pytest

import numba_swap as ns
from numba_swap.device.tuning import DEFAULT_TUNING
from numba_swap.dispatch.choice import decide, estimate
from numba_swap.dispatch.conditions import Capabilities, Conditions
from numba_swap.dispatch.cost_model import CostModel, ModeCost, SharedCost
from numba_swap.dispatch.settings import Mode, Policy
from numba_swap.dispatch.workload import Workload, uniform_workload

H2D, D2D, MIXED = ns.Direction.H2D, ns.Direction.D2D, ns.Direction.MIXED
HERE = Conditions(Capabilities(ns.DriverVersion(12, 8), False, {}))
FEW = uniform_workload("h2d", 3, 64)
# Two short copies and three long ones.
MIXED_SIZES = Workload("h2d", ((0, 2, 200), (3, 3, 3 << 20)), 5, 200 + (3 << 20))


def flat(us, fork=0.0):
    """A mode that takes so long whatever it copies."""
    return ModeCost(us, fork, (0.0,) * 4, (0.0,) * 4)


def a_copy(*us, full_blocks=0.0, megabyte=(0.0,) * 4):
    """A mode that takes so long a copy, by the class of its length."""
    return ModeCost(0.0, 0.0, us, megabyte, full_blocks)


def costs_of(loop, batch, kernel, **figures):
    modes = {Mode.LOOP: loop, Mode.BATCH: batch, Mode.KERNEL: kernel}
    tuning = DEFAULT_TUNING._replace(**figures)
    return CostModel({"h2d": modes, "d2d": modes}, "a made machine", tuning)


EQUAL = costs_of(flat(30.0), flat(20.0), flat(10.0))
# The kernel is good at short copies, the batch at long ones, and the loop at nothing.
EACH_ITS_OWN = costs_of(flat(1e6), a_copy(100.0, 100.0, 1.0, 1.0), a_copy(1.0, 1.0, 100.0, 100.0))


def nothing_against(mode):
    return None


def only(*modes):
    """What says that all others cannot run."""
    return lambda mode: None if mode in modes else f"no {mode} here"


def choose(workload=FEW, costs=EQUAL, mode=None, why_not=nothing_against, direction=H2D, **how):
    return decide(workload, direction, costs, HERE._replace(**how), mode, why_not)


def test_what_is_predicted_best_is_chosen():
    decision, edge, _ = choose()
    assert edge is None
    assert decision == ns.Decision(
        Mode.KERNEL,
        ns.DriverVersion(12, 8),
        H2D,
        3,
        192,
        ((10.0, Mode.KERNEL), (20.0, Mode.BATCH), (30.0, Mode.LOOP)),
        {},
        "",
        Policy.THROUGHPUT,
        False,
        "a made machine",
    )
    assert decision.reason == "predicted: kernel 10 us, batch 20 us, loop 30 us"


def test_the_facts_of_the_machine_are_told():
    simulated = Capabilities(ns.DriverVersion(12, 4), True, {}, simulated=True)
    decision, *_ = choose(capabilities=simulated, direction=ns.Direction.D2H)
    assert str(decision).startswith(
        "kernel for 3 copies, 192 bytes, device to host, simulated driver 12.4: "
    )


def test_rejected_modes_are_told_in_order():
    decision, *_ = choose(why_not=only(Mode.LOOP))
    assert decision.mode is Mode.LOOP
    assert list(decision.rejected.items()) == [
        (Mode.KERNEL, "no kernel here"),
        (Mode.BATCH, "no batch here"),
    ]
    assert decision.reason.endswith(
        ", but no kernel: no kernel here; no batch: no batch here; so loop"
    )
    decision, *_ = choose(why_not=only(Mode.LOOP, Mode.KERNEL))
    assert (decision.mode, dict(decision.rejected)) == (Mode.KERNEL, {})  # nobody asked further


def test_where_nothing_can_run_all_reasons_are_given():
    with pytest.raises(ns.ModeUnavailableError) as error:
        choose(why_not=only())
    assert error.value.mode == "auto"
    for mode in (Mode.LOOP, Mode.BATCH, Mode.KERNEL):
        assert f"{mode}: no {mode} here" in error.value.reason


@pytest.mark.parametrize("mode", [*Mode, *map(str, Mode), " Loop "])
def test_a_forced_mode_is_taken_whatever_is_predicted(mode):
    decision, edge, _ = choose(mode=mode)
    assert decision.mode == str(mode).strip().lower()
    assert edge is None
    assert decision.reason == "forced by the mode argument"
    assert len(decision.ranked) == 3


def test_a_forced_mode_that_cannot_run_raises_and_is_not_replaced():
    asked = []

    def why_not(mode):
        asked.append(mode)
        return "it is too far"

    for forced in (Mode.KERNEL, "kernel"):
        with pytest.raises(ns.ModeUnavailableError, match="it is too far") as error:
            choose(mode=forced, why_not=why_not)
        assert (error.value.mode, error.value.reason) == ("kernel", "it is too far")
    with ns.override(mode="batch"), pytest.raises(ns.ModeUnavailableError, match="'batch'"):
        choose(why_not=why_not)
    assert asked == [Mode.KERNEL, Mode.KERNEL, Mode.BATCH]
    with pytest.raises(ns.BadArgumentError, match="mode='warp' is no mode"):
        choose(mode="warp")


def test_who_forces_is_told_and_the_argument_is_stronger():
    with ns.override(mode="batch"):
        assert choose().decision.mode is Mode.BATCH
        assert choose().decision.reason == "forced by override"
        decision = choose(mode="loop").decision
        lifted = choose(mode="auto").decision
    assert (decision.mode, decision.forced_by) == (Mode.LOOP, "the mode argument")
    assert lifted == choose().decision
    assert not lifted.forced


# -- short copies in the kernel and long ones in the batch ---------------------------------------


def test_short_copies_go_to_the_kernel_and_long_ones_to_the_batch():
    decision, edge, _ = choose(MIXED_SIZES, EACH_ITS_OWN)
    assert edge == 1
    short, long = decision.parts
    assert (short.mode, short.copies, short.nbytes) == (Mode.KERNEL, 2, 200)
    assert (long.mode, long.copies, long.nbytes) == (Mode.BATCH, 3, 3 << 20)
    assert short.ranked[0] == (2.0, Mode.KERNEL)
    assert long.ranked[0] == (3.0, Mode.BATCH)
    assert (decision.mode, decision.copies, decision.nbytes) == (Mode.BATCH, 5, MIXED_SIZES.nbytes)
    assert decision.modes == (Mode.KERNEL, Mode.BATCH)
    assert decision.at_once
    assert decision.direction is short.direction is long.direction is H2D
    # All in one would take 2 x 100 us for the short ones, or 3 x 100 us for the long ones, more.
    assert decision.reason == (
        "predicted: short copies in the kernel and long ones in the batch, at once, 5 us, "
        "all in the batch 203 us"
    )


@pytest.mark.parametrize(
    ("terms", "edge"),
    [
        (((0, 5, 500), (1, 5, 50_000), (2, 5, 200_000)), 2),
        (((0, 5, 500), (2, 5, 200_000)), 1),
        (((1, 5, 50_000), (3, 5, 1 << 20)), 2),
        (((0, 5, 500), (1, 5, 50_000)), None),  # the kernel is better at both
        (((2, 5, 200_000), (3, 5, 1 << 20)), None),  # the batch is
    ],
)
def test_where_the_long_copies_begin(terms, edge):
    workload = Workload("h2d", terms, 10, sum(nbytes for _, _, nbytes in terms))
    assert choose(workload, EACH_ITS_OWN).edge == edge


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "batch"},
        {"capturing": True},
        {"policy": Policy.LATENCY},
        {"policy": Policy.OVERLAP},
        {"duplex": True},
        {"direction": MIXED},
        {"workload": MIXED_SIZES._replace(route="d2d"), "direction": D2D},
        {"why_not": only(Mode.LOOP, Mode.BATCH)},
        {"why_not": only(Mode.LOOP, Mode.KERNEL)},
        {"workload": uniform_workload("h2d", 5, 1 << 20)},
    ],
    ids=lambda changes: " ".join(f"{name} {str(value)[:12]}" for name, value in changes.items()),
)
def test_what_keeps_copies_in_one_piece(changes):
    decision, edge, _ = choose(**{"workload": MIXED_SIZES, "costs": EACH_ITS_OWN} | changes)
    assert edge is None
    assert decision.parts == ()


def test_a_split_has_to_gain_what_this_machine_asks_for():
    worth = EACH_ITS_OWN._replace(tuning=DEFAULT_TUNING._replace(split_gain=5.1 / 203))
    assert choose(MIXED_SIZES, worth).edge == 1
    not_worth = EACH_ITS_OWN._replace(tuning=DEFAULT_TUNING._replace(split_gain=4.9 / 203))
    decision, edge, _ = choose(MIXED_SIZES, not_worth)
    assert (decision.mode, edge) == (Mode.BATCH, None)


# -- both engines at once -----------------------------------------------------------------------

MANY = uniform_workload("h2d", 1000, 32 << 10)
# 100 us, and 10 us for a million bytes, of which there are 32.768.
SHARED = EACH_ITS_OWN._replace(shared={("h2d", 2): SharedCost(0.3, 100.0, 10.0)})


def test_equally_long_copies_are_shared_where_that_was_measured_to_pay():
    decision, edge, share = choose(MANY, SHARED)
    assert (edge, share) == (None, 0.3)
    assert [(p.mode, p.copies, p.nbytes) for p in decision.parts] == [
        (Mode.KERNEL, 700, 700 << 15),
        (Mode.BATCH, 300, 300 << 15),
    ]
    assert (decision.copies, decision.nbytes) == (1000, 1000 << 15)
    assert decision.reason.startswith(
        "predicted: 30% of the copies in the batch and the others in the kernel, at once, 428 us, "
        "all in the batch 1000 us"
    )


def test_boxes_are_shared_as_well():
    term = 1, 64 * 1000, 1000 << 14
    load = Workload("h2d odd boxes", (term,), 1000, 1000 << 14, 4, 1000, alike=True)
    costs = SHARED._replace(
        routes={**SHARED.routes, "h2d odd boxes": SHARED.routes["h2d"]},
        shared={("h2d odd boxes", 1): SharedCost(0.5, 100.0, 10.0)},
    )
    decision, _, share = choose(load, costs)
    assert share == 0.5
    assert [(p.mode, p.copies, p.nbytes) for p in decision.parts] == [
        (Mode.KERNEL, 500, 500 << 14),
        (Mode.BATCH, 500, 500 << 14),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "kernel"},
        {"capturing": True},
        {"policy": Policy.LATENCY},
        {"policy": Policy.OVERLAP},
        {"duplex": True},
        {"max_blocks": 4},
        {"direction": MIXED},
        {"workload": MANY._replace(route="d2d"), "direction": D2D},
        {"workload": uniform_workload("h2d", 1000, 8 << 10)},
        {"workload": uniform_workload("h2d", 1, 64 << 10)},
        {"workload": uniform_workload("h2d", 1000, 32 << 10, 8)},  # odd addresses
        {"workload": MANY._replace(alike=False)},  # of one class, and not equally long
        {"why_not": only(Mode.LOOP, Mode.BATCH)},
        {"why_not": only(Mode.LOOP, Mode.KERNEL)},
        {"costs": EACH_ITS_OWN},
        {"costs": SHARED._replace(shared={("h2d", 2): SharedCost(0.3, 700.0, 10.0)})},
    ],
    ids=lambda changes: " ".join(f"{name} {str(value)[:12]}" for name, value in changes.items()),
)
def test_what_keeps_equally_long_copies_in_one_piece(changes):
    decision, edge, share = choose(**{"workload": MANY, "costs": SHARED} | changes)
    assert (edge, share) == (None, None)
    assert decision.parts == ()


# -- policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "mode", "words"),
    [
        (Policy.THROUGHPUT, Mode.KERNEL, "predicted: kernel 10 us, batch 12 us, loop 30 us"),
        (Policy.LATENCY, Mode.KERNEL, "for latency, predicted: kernel 10 us, batch 12 us,"),
        (Policy.OVERLAP, Mode.BATCH, "for overlap, predicted: batch 12 us, kernel 10 us,"),
    ],
)
def test_overlap_waits_for_copy_engines(policy, mode, words):
    costs = costs_of(flat(30.0), flat(12.0), flat(10.0))
    decision, *_ = choose(costs=costs, policy=policy)
    assert (decision.mode, decision.policy) == (mode, policy)
    assert decision.reason.startswith(words)
    hasty = costs._replace(tuning=DEFAULT_TUNING._replace(overlap_patience=1.1))
    assert choose(costs=hasty, policy=policy).decision.mode is Mode.KERNEL


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ({}, Mode.KERNEL),
        ({"policy": Policy.LATENCY}, Mode.BATCH),
        ({"capturing": True}, Mode.BATCH),
    ],
)
def test_where_no_private_streams_may_be_used_no_fork_is_paid_for(how, mode):
    costs = costs_of(flat(300.0), flat(10.0, fork=50.0), flat(30.0))
    assert choose(uniform_workload("h2d", 64, 1 << 20), costs, **how).decision.mode is mode


def test_a_limit_of_thread_blocks_slows_the_kernel():
    kernel = a_copy(0.0, 0.0, 0.0, 0.0, full_blocks=8.0, megabyte=(1e5,) * 4)
    costs = costs_of(flat(1000.0), flat(100.0), kernel)
    for most, mode in ((None, Mode.KERNEL), (8, Mode.KERNEL), (1, Mode.BATCH)):
        assert choose(costs=costs, max_blocks=most).decision.mode is mode


def test_a_busy_link_slows_kernels_and_the_host():
    costs = costs_of(flat(11.0), flat(30.0), flat(10.0))
    assert choose(costs=costs).decision.mode is Mode.KERNEL
    decision, *_ = choose(costs=costs, duplex=True)
    assert decision.ranked == ((11.0, Mode.LOOP), (14.0, Mode.KERNEL), (30.0, Mode.BATCH))


# -- what is said of every mode -----------------------------------------------------------------


def test_estimates_tell_time_and_obstacle_of_every_mode():
    measured = {Mode.LOOP: flat(30.0), Mode.BATCH: flat(20.0)}
    costs = CostModel({"h2d": measured}, "a made machine")
    assert estimate(FEW, costs, HERE, only(Mode.LOOP)) == (
        ns.Estimate(Mode.BATCH, 20.0, "no batch here"),
        ns.Estimate(Mode.LOOP, 30.0, None),
        ns.Estimate(Mode.KERNEL, math.inf, "no kernel here"),
    )
