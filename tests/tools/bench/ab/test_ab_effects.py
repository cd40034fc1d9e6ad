"""The statistics of A/B timing on made data, whose answers are known."""

import numpy as np
import pytest
from made_results import make_cell

from numba_swap.tools.bench.ab.analysis import effects
from numba_swap.tools.bench.ab.analysis.effects import (
    LEAST_ROUNDS,
    Verdict,
    judge,
    paired_effect,
    pooled_effect,
    round_values,
    spread,
    unpaired_effect,
)
from numba_swap.tools.bench.ab.analysis.report import control_of, summarise_cell
from numba_swap.tools.bench.ab.measure.order import round_orders
from numba_swap.tools.bench.ab.spec.cases import Case

CASE = Case("h2d", 8192, 1024)


def effect_of(ratio, **data):
    """The effect that is found where the second arm takes `ratio` times as long."""
    cell = make_cell(CASE, {"batch": 1e6, "loop": ratio * 1e6}, **data)
    return summarise_cell(cell, seed=0).find("loop").effect


# -- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.90, 0.979, "FASTER"),
        (0.90, 0.98, "INCONCLUSIVE"),
        (0.98, 1.02, "SAME"),
        (0.999, 1.001, "SAME"),
        (1.01, 1.021, "INCONCLUSIVE"),
        (0.97, 1.03, "INCONCLUSIVE"),
        (1.02, 1.03, "INCONCLUSIVE"),
        (1.0201, 1.03, "SLOWER"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, verdict):
    assert judge(low, high, LEAST_ROUNDS) == verdict
    assert judge(low, high, LEAST_ROUNDS - 1) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "SAME"), (1.005, "SAME"), (1.05, "SLOWER"), (0.95, "FASTER")]
)
def test_known_shifts_are_called_as_they_are(ratio, verdict):
    effect = effect_of(ratio)
    assert effect.verdict == verdict
    assert effect.low <= ratio <= effect.high
    if abs(ratio - 1) > 0.01:
        assert effect.p_value < 0.001


def test_noise_leaves_it_open():
    effect = effect_of(1.03, noise=0.1)
    assert effect.verdict is Verdict.INCONCLUSIVE
    assert effect.low < 1.02 < effect.high


def test_the_ratio_is_other_over_baseline():
    assert effect_of(2.0, noise=0).ratio == pytest.approx(2.0)
    assert effect_of(0.5, noise=0).ratio == pytest.approx(0.5)


def test_without_noise_the_interval_is_a_point():
    effect = effect_of(1.01, noise=0)
    assert effect.low == effect.high == pytest.approx(1.01)


# -- drift and outliers -------------------------------------------------------------------------


def test_a_drift_over_the_whole_cell_changes_nothing():
    """The machine gets 50 % slower while it is measured; ABBA takes it out of each ratio."""
    for ratio, verdict in [(1.0, "SAME"), (1.05, "SLOWER")]:
        effect = effect_of(ratio, drift=0.5)
        assert effect.verdict == verdict
        assert effect.ratio == pytest.approx(ratio, rel=0.003)


def test_linear_drift_cancels_exactly():
    """To the last digit but for rounding to whole nanoseconds."""
    cell = make_cell(CASE, {"batch": 1e9, "loop": 1e9, "auto": 1e9}, noise=0, drift=0.3)
    values = [round_values(arm.completion_ns) for arm in cell.arms]
    for other in values[1:]:
        np.testing.assert_allclose(other, values[0], rtol=1e-8)


def test_the_same_drift_would_fool_blocks_of_one_arm():
    """All of one arm, then all of the other: what this drift does to a comparison without order."""
    times = 1e6 * (1 + 0.5 * np.arange(96) / 96)
    effect = unpaired_effect(round_values(times[:48]), round_values(times[48:]), seed=0)
    assert effect.verdict is Verdict.SLOWER


def test_outliers_spoil_their_rounds_only():
    """Five samples of ten times the time, in rounds of their own."""
    cell_samples = 2 * 3
    spikes = [cell_samples * number + 1 for number in (2, 5, 9, 14, 20)]
    effect = effect_of(1.05, spikes=spikes)
    assert effect.verdict is Verdict.SLOWER
    assert effect.ratio == pytest.approx(1.05, rel=0.005)
    assert effect_of(1.0, spikes=spikes).verdict is Verdict.SAME


# -- intervals ----------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        one, other = np.exp(0.02 * rng.standard_normal((2, 24)))
        effect = paired_effect(one, 1.04 * other, seed)
        held += effect.low <= 1.04 <= effect.high
    assert 0.90 <= held / 200 <= 0.995


def test_medians_of_resamples_are_those_of_a_plain_bootstrap():
    for count in (20, 21):
        values = np.random.default_rng(5).lognormal(size=count)
        drawn = np.random.default_rng(7).integers(0, count, (4999, count))
        plain = np.median(np.sort(values)[drawn], axis=1)
        np.testing.assert_allclose(effects._medians(values, 7), plain)


def test_the_same_seed_gives_the_same_interval():
    one, other = np.exp(0.05 * np.random.default_rng(1).standard_normal((2, 24)))
    assert paired_effect(one, other, 4) == paired_effect(one, other, 4)
    assert not np.array_equal(effects._medians(one, 4), effects._medians(one, 5))


def test_few_rounds_are_never_called():
    effect = effect_of(3.0, rounds=12)
    assert effect.rounds == 12
    assert effect.ratio == pytest.approx(3.0, rel=0.02)
    assert effect.verdict is Verdict.INCONCLUSIVE


def test_few_distinct_values_give_no_narrow_interval():
    """A clock so coarse that rounds are either 1.0 or 1.1: the interval spans both."""
    one = np.ones(24)
    other = np.where(np.arange(24) % 2, 1.0, 1.1)
    effect = paired_effect(one, other, 0)
    assert (effect.low, effect.high) == (1.0, pytest.approx(1.1))
    assert effect.verdict is Verdict.INCONCLUSIVE


def test_unpaired_results():
    rng = np.random.default_rng(9)
    one, other = (1e6 * np.exp(0.004 * rng.standard_normal(n)) for n in (24, 30))
    assert unpaired_effect(one, other, 0).verdict is Verdict.SAME
    assert unpaired_effect(one, 1.05 * other, 0).verdict is Verdict.SLOWER
    assert unpaired_effect(one, 0.9 * other, 0).verdict is Verdict.FASTER
    assert unpaired_effect(one, other, 0).rounds == 24


# -- controls -----------------------------------------------------------------------------------


def test_control_is_the_baseline_against_itself():
    summary = summarise_cell(make_cell(CASE, {"batch": 1e6, "loop": 2e6}), seed=0)
    assert summary.control.verdict is Verdict.SAME
    assert summary.stable
    noisy = summarise_cell(make_cell(CASE, {"batch": 1e6, "loop": 2e6}, noise=0.3), seed=0)
    assert not noisy.stable


def test_control_of_many_cells_sees_a_bias_that_all_share():
    cells = [make_cell(CASE, {"batch": 1e6}, seed=i, noise=0.05) for i in range(40)]
    summaries = [summarise_cell(cell, seed=0) for cell in cells]
    assert not all(summary.stable for summary in summaries)  # too noisy one by one
    assert control_of(summaries, 0).verdict is Verdict.SAME
    for cell in cells:  # whoever comes second is 4 % slower
        cell.arms[1].completion_ns = [round(1.04 * ns) for ns in cell.arms[1].completion_ns]
    biased = control_of([summarise_cell(cell, seed=0) for cell in cells], 0)
    assert biased.verdict is Verdict.SLOWER
    assert biased.p_value < 0.001


def test_control_of_one_cell_is_that_cells():
    summary = summarise_cell(make_cell(CASE, {"batch": 1e6}), seed=0)
    assert control_of([summary], 0) == summary.control
    assert control_of([], 0) is None


def test_pooled_effect_of_equal_ratios():
    effect = pooled_effect(np.ones(30), 0)
    assert effect[:4] == (1.0, 1.0, 1.0, 1.0)
    assert effect.verdict is Verdict.SAME


def test_quartiles():
    assert spread([4, 1, 3, 2, 5]) == (3, 2, 4)


# -- order --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arms", [2, 3, 7])
def test_every_arm_stands_equally_often_in_every_place(arms):
    orders = np.array(round_orders(arms, 4 * arms, seed=1))
    for place in range(arms):
        assert np.bincount(orders[:, place], minlength=arms).tolist() == [4] * arms


def test_orders_come_from_the_seed():
    assert round_orders(4, 24, 1) == round_orders(4, 24, 1)
    assert round_orders(4, 24, 1) != round_orders(4, 24, 2)
    assert len(round_orders(5, 21, 0)) == 21
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in round_orders(5, 21, 0))
