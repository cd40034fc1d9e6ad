"""What follows from the times: medians, ratios with intervals, verdicts. Pure functions.

The unit of independence is the round. Within one, each arm runs twice, mirrored about the middle,
and the mean of the two is that round's value: a linear drift is then in every arm's value alike.
The effect is the median over rounds of the ratio of two arms' values; an outlier spoils its round
and no other. The interval is a percentile bootstrap over rounds: it says how far the figure would
move were the rounds drawn again from the same minutes on the same machine, and nothing about
another day.
"""

from __future__ import annotations

import enum
import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]

TOLERANCE = 0.02
LEAST_ROUNDS = 20
_RESAMPLES = 4999
_LEVEL = 0.95


class Verdict(enum.StrEnum):
    """What can be said of an arm's time against the baseline's.

    Attributes
    ----------
    FASTER, SLOWER
        The interval of the ratio lies wholly below 0.98, or wholly above 1.02.
    SAME
        It lies wholly between the two.
    INCONCLUSIVE
        It reaches across one of them, or there were too few rounds.
    """

    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    INCONCLUSIVE = "INCONCLUSIVE"


class Spread(NamedTuple):
    """Median and quartiles.

    Attributes
    ----------
    median, low, high : float
        The median, the first and the third quartile.
    """

    median: float
    low: float
    high: float


class Effect(NamedTuple):
    """How an arm's time compares with the baseline's.

    Attributes
    ----------
    ratio : float
        Its time over the baseline's; below 1 it is faster.
    low, high : float
        The 95 % interval of the ratio.
    p_value : float
        Of the two-sided Mann-Whitney test on the rounds' values, which knows nothing of pairs.
    rounds : int
        How many rounds there were; of two unpaired results, in the smaller one.
    verdict : Verdict
        What follows.
    """

    ratio: float
    low: float
    high: float
    p_value: float
    rounds: int
    verdict: Verdict


def judge(low: float, high: float, rounds: int) -> Verdict:
    """Return the verdict on an interval of the ratio."""
    if rounds < LEAST_ROUNDS:
        return Verdict.INCONCLUSIVE
    if high < 1 - TOLERANCE:
        return Verdict.FASTER
    if low > 1 + TOLERANCE:
        return Verdict.SLOWER
    if low >= 1 - TOLERANCE and high <= 1 + TOLERANCE:
        return Verdict.SAME
    return Verdict.INCONCLUSIVE


def spread(values: npt.ArrayLike) -> Spread:
    """Return median and quartiles."""
    low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def round_values(samples: npt.ArrayLike) -> Times:
    """Return each round's value from two samples a round, in the order they were taken."""
    values: Times = np.asarray(samples, np.float64).reshape(-1, 2).mean(axis=1)
    return values


def paired_effect(baseline: Times, other: Times, seed: int) -> Effect:
    """Compare two arms of one cell, round by round.

    Parameters
    ----------
    baseline, other : ndarray
        The rounds' values, of the same rounds.
    seed : int
        Of the bootstrap.
    """
    ratios = other / baseline
    return _effect(float(np.median(ratios)), _medians(ratios, seed), baseline, other)


def unpaired_effect(baseline: Times, other: Times, seed: int) -> Effect:
    """Compare the same arm in two results: the ratio of the medians.

    Parameters
    ----------
    baseline, other : ndarray
        The rounds' values, of any number of rounds each.
    seed : int
        Of the bootstrap, which draws from both independently.
    """
    ratio = float(np.median(other) / np.median(baseline))
    return _effect(ratio, _medians(other, seed + 1) / _medians(baseline, seed), baseline, other)


def pooled_effect(ratios: Times, seed: int) -> Effect:
    """Return the median of the ratios of many cells, with a bootstrap over cells.

    Parameters
    ----------
    ratios : ndarray
        One for each cell.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Effect
        Its p-value is that of a two-sided sign test of the ratios against 1; `rounds` is the
        number of cells.
    """
    from scipy import stats

    low, high = _interval(_medians(ratios, seed))
    above, unlike = int(np.sum(ratios > 1)), int(np.sum(ratios != 1))
    p_value = float(stats.binomtest(above, unlike).pvalue) if unlike else 1.0
    count = len(ratios)
    return Effect(float(np.median(ratios)), low, high, p_value, count, judge(low, high, count))


def _medians(values: Times, seed: int) -> Times:
    """Return the medians of all resamples of the values."""
    medians: Times = np.sort(values)[_middle_ranks(len(values), seed)].mean(axis=1)
    return medians


@functools.lru_cache(maxsize=32)
def _middle_ranks(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw the bootstrap's resamples, and return the ranks of the one or two middle values.

    A resample's median depends on the ranks drawn alone, so the draws serve all data of a length.
    """
    drawn = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    drawn.sort(axis=1)
    return drawn[:, [(count - 1) // 2, count // 2]]


def _interval(resampled: Times) -> tuple[float, float]:
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def _effect(ratio: float, resampled: Times, baseline: Times, other: Times) -> Effect:
    from scipy import stats

    low, high = _interval(resampled)
    rounds = min(len(baseline), len(other))
    test: Any = stats.mannwhitneyu(baseline, other, alternative="two-sided")
    return Effect(ratio, low, high, float(test.pvalue), rounds, judge(low, high, rounds))
