"""In which order the arms of a cell run: ABBA, balanced over the rounds, from a seed."""

from __future__ import annotations

import numpy as np


def round_orders(arms: int, rounds: int, seed: int) -> list[list[int]]:
    """Return the first half of each round; the second half is the same backwards.

    So a round of two arms is ABBA or BAAB. Whatever drifts linearly within a round, a clock or a
    temperature, adds the same to every arm. The halves are the rotations of a random permutation,
    in random order, then those of the next permutation: over `arms` rounds every arm stands once
    in every place, so none is always the one that follows itself in the middle.

    Parameters
    ----------
    arms, rounds : int
        How many of each.
    seed : int
        The same seed gives the same orders.
    """
    rng = np.random.default_rng((seed, arms))
    orders: list[list[int]] = []
    while len(orders) < rounds:
        base = rng.permutation(arms)
        orders += [np.roll(base, shift).tolist() for shift in rng.permutation(arms)]
    return orders[:rounds]
