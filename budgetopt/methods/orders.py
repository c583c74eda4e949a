"""Orders of samples by usefulness, as pure functions of arrays. The first m of an order do not depend on its length."""

from __future__ import annotations

import numpy as np


def herding_order(features: np.ndarray, count: int, mean: np.ndarray | None = None) -> np.ndarray:
    """Greedy order in which the running mean stays closest to `mean`, by default that of all (Welling, ICML 2009).
    features: (n, d) → (count,).

    Step t takes the x that minimises ‖μ − (s_t + x)/(t+1)‖, without replacement; O(count·n·d).
    """
    mean = features.mean(0) if mean is None else mean
    squares = (features**2).sum(1)
    free = np.zeros(len(features))
    total = np.zeros_like(mean)
    order = np.empty(count, np.int64)
    for t in range(count):
        wanted = (t + 1) * mean - total  # ‖wanted − x‖² up to a constant
        order[t] = np.argmin(squares - 2.0 * (features @ wanted) + free)
        free[order[t]] = np.inf
        total += features[order[t]]
    return order


def k_centre_order(features: np.ndarray, count: int) -> np.ndarray:
    """Greedy k-centre (Sener and Savarese, ICLR 2018, algorithm 1): from the sample nearest to the mean on, always the
    one farthest from all that are chosen, so that the first m cover the rest within twice the least possible radius
    of m that hold the first. features: (n, d) → (count,); O(count·n·d)."""
    order = np.empty(count, np.int64)
    order[0] = np.argmin(((features - features.mean(0)) ** 2).sum(1))
    nearest = np.full(len(features), np.inf)  # squared distance to the nearest chosen one
    for t in range(1, count):
        nearest = np.minimum(nearest, ((features - features[order[t - 1]]) ** 2).sum(1))
        nearest[order[t - 1]] = -np.inf  # not again, where all others are copies of chosen ones
        order[t] = np.argmax(nearest)
    return order
