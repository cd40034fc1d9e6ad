"""What a decision says of itself."""

import copy
import pickle

import pytest

import numba_swap as ns
from numba_swap.dispatch.decision import format_us
from numba_swap.dispatch.settings import Mode

INF = float("inf")


def decision(**changes):
    plain = ns.Decision(Mode.LOOP, ns.DriverVersion(12, 4), ns.Direction.H2D, 3, 192)
    return plain._replace(**changes)


@pytest.mark.parametrize(
    ("us", "words"),
    [
        (0.6, "1 us"),
        (9_994, "9994 us"),
        (9_994.4, "9994 us"),
        (9_995, "10.0 ms"),
        (12_340, "12.3 ms"),
        (99_949, "99.9 ms"),
        (99_950, "0.10 s"),
        (12_345_678, "12.35 s"),
    ],
)
def test_times_in_words(us, words):
    assert format_us(us) == words


def test_reasons():
    ranked = ((5.0, Mode.BATCH), (7.0, Mode.LOOP), (INF, Mode.KERNEL))
    plain = decision(ranked=ranked)
    assert plain.reason == "predicted: batch 5 us, loop 7 us"
    hasty = plain._replace(policy=ns.Policy.LATENCY)
    assert hasty.reason == "for latency, predicted: batch 5 us, loop 7 us"
    blocked = plain._replace(rejected={Mode.BATCH: "too old", Mode.KERNEL: "too far"})
    assert blocked.reason == f"{plain.reason}, but no batch: too old; no kernel: too far; so loop"
    asked = plain._replace(forced_by="override")
    assert asked.reason == "forced by override"
    assert asked.forced is True
    assert plain.forced is False
    assert asked._replace(note="nothing to copy").reason == "nothing to copy"


def test_decisions_are_pickled_and_copied():
    estimates = (ns.Estimate(Mode.BATCH, 5.0, "too old"), ns.Estimate(Mode.LOOP, INF, None))
    blocked = decision(rejected={Mode.BATCH: "too old"}, estimates=estimates, ranked=((INF, "x"),))
    for one in (decision(), blocked, decision(parts=(decision(), blocked), policy="latency")):
        copies = [pickle.loads(pickle.dumps(one, protocol)) for protocol in range(6)]
        for other in (*copies, copy.deepcopy(one), copy.copy(one)):
            assert type(other) is ns.Decision
            assert other == one
            assert other.table() == one.table()
            assert other.mode is one.mode


def test_decisions_as_text():
    assert str(decision(note="so")) == (
        "loop for 3 copies, 192 bytes, host to device, driver 12.4: so"
    )
    assert str(decision(note="so", copies=1, simulated=True)) == (
        "loop for 1 copy, 192 bytes, host to device, simulated driver 12.4: so"
    )
    parts = tuple(decision(mode=mode) for mode in (Mode.KERNEL, Mode.BATCH, Mode.KERNEL))
    several = decision(mode=Mode.BATCH, parts=parts, note="so")
    assert several.modes == (Mode.KERNEL, Mode.BATCH)
    assert str(several).startswith("kernel and batch for 3 copies")
    assert decision().modes == (Mode.LOOP,)


def test_predicted_time_of_a_decision():
    ranked = ((5.0, Mode.BATCH), (7.0, Mode.LOOP), (INF, Mode.KERNEL))
    assert decision(ranked=ranked).predicted_us == 7.0
    assert decision(ranked=ranked, mode=Mode.KERNEL).predicted_us is None
    assert decision().predicted_us is None
    known, unknown = decision(ranked=ranked), decision()
    assert decision(ranked=ranked, parts=(known, known)).predicted_us == 14.0
    assert decision(ranked=ranked, parts=(known, unknown)).predicted_us is None
    back = known._replace(direction=ns.Direction.D2H, ranked=((5.0, Mode.LOOP),))
    both = decision(parts=(known, back, back))
    assert both.predicted_us == 10.0  # the two directions side by side
    assert both._replace(at_once=False).predicted_us == 17.0
    assert both.reason == (
        "at once: host to device, predicted: batch 5 us, loop 7 us; "
        "device to host, predicted: loop 5 us; device to host, predicted: loop 5 us"
    )
    assert both._replace(at_once=False).reason.startswith("one after another: host to device, ")


def test_table_of_an_explained_decision():
    estimates = (
        ns.Estimate(Mode.BATCH, 5.0, "too old"),
        ns.Estimate(Mode.LOOP, 12_340.0, None),
        ns.Estimate(Mode.KERNEL, INF, None),
    )
    text = decision(estimates=estimates, note="so", costs_source="a made machine").table()
    assert text.splitlines() == [
        "loop for 3 copies, 192 bytes, host to device, driver 12.4: so",
        "",
        "mode    predicted  chosen  why not",
        "batch   -                  too old",
        "loop    12.3 ms    yes",
        "kernel  -",
        "",
        "predicted from a made machine",
    ]


def test_table_of_a_decision_that_was_not_explained():
    ranked = ((5.0, Mode.BATCH), (7.0, Mode.LOOP))
    text = decision(ranked=ranked, rejected={Mode.BATCH: "too old"}, note="so").table()
    assert text.splitlines()[2:] == [
        "mode   predicted  chosen  why not",
        "loop   7 us       yes",
        "batch  -                  too old",
    ]


def test_table_of_parts():
    known = decision(mode=Mode.KERNEL, ranked=((7.0, Mode.KERNEL),), copies=1, nbytes=64)
    text = decision(parts=(known, decision(mode=Mode.BATCH)), note="so").table()
    assert text.splitlines()[2:] == [
        "mode    predicted  chosen  why not",
        "kernel  -          yes",
        "batch   -          yes",
        "",
        "at once:",
        "  kernel, 1 copy, 64 bytes, host to device, 7 us",
        "  batch, 3 copies, 192 bytes, host to device",
    ]
    text = decision(parts=(known, known), at_once=False, note="so").table()
    assert "\none after another:\n" in text
