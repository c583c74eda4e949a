"""What an evaluation may gain: expected improvement, expected hypervolume improvement, probability of fitting.

Pure functions of arrays. One objective, x, is minimised (log2 of bytes), the other, y, is maximised (accuracy); y of a
candidate is Gaussian, x is known or Gaussian and independent of y.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, ndtr

NODES = 9  # of Gauss–Hermite quadrature, for the moments of an accuracy
RATE_NODES = 3  # for an uncertain size
KNOWN = 1e-6  # spreads of x below it are none
TINY = 1e-12
HOPELESS = 5.0  # standard deviations: what reaches the front once in three million


def expected_improvement(mean: np.ndarray, std: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """E[(Y − best)⁺] of Y ~ N(mean, std²), elementwise: (mean − best)·Φ(u) + std·φ(u), u = (mean − best)/std."""
    mean, std = np.asarray(mean, np.float64), np.maximum(np.asarray(std, np.float64), TINY)
    gain = mean - best
    u = gain / std
    density = np.exp(-0.5 * u * u) / np.sqrt(2.0 * np.pi)
    return np.maximum(gain * ndtr(u) + std * density, 0.0)


def staircase(x: np.ndarray, y: np.ndarray, low: float) -> tuple[np.ndarray, np.ndarray]:
    """The front of points (x, y) as a rising step function: (k + 1,) starts, the first −∞, and (k + 1,) heights, the
    first `low`. From a start on, its height is what points of at most that x reach; points of y ≤ low are none.
    O(n log n)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    order = np.lexsort((-y, x))
    starts, heights = [-np.inf], [low]
    for a, b in zip(x[order], y[order], strict=True):
        if b > heights[-1]:
            if a == starts[-1]:
                heights[-1] = b
            else:
                starts.append(a)
                heights.append(b)
    return np.array(starts), np.array(heights)


def expected_hypervolume_improvement(
    x: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    front_x: np.ndarray,
    front_y: np.ndarray,
    reference: tuple[float, float],
    x_std: np.ndarray | None = None,
) -> np.ndarray:
    """Expected area that each of n candidates adds to what the points (front_x, front_y) dominate: (n,).

    reference: (x, y), the largest x and the least y that count. Exact for a known x: with f the front's step function
    a point (x, Y) adds ∫_x^R (Y − f(t))⁺ dt, so the expectation is a sum over the strips between the front's steps of
    the part of the strip right of x times the expected improvement over its height. `x_std`: (n,) spread of x, over
    which Gauss–Hermite quadrature integrates. O(m·k) for k steps and m candidates that reach the front within HOPELESS
    standard deviations; the others gain nothing.
    """
    x, mean, std = (np.asarray(a, np.float64) for a in (x, mean, std))
    spread = np.zeros(len(x)) if x_std is None else np.asarray(x_std, np.float64)
    starts, heights = staircase(front_x, front_y, reference[1])
    least = x - HOPELESS * spread
    hopeful = mean + HOPELESS * std > heights[np.searchsorted(starts, least, side="right") - 1]
    found = np.zeros(len(x))
    at = np.flatnonzero(hopeful)
    found[at] = _area(x[at], mean[at], std[at], starts, heights, reference[0], spread[at])
    return found


def _area(
    x: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    starts: np.ndarray,
    heights: np.ndarray,
    right: float,
    x_std: np.ndarray,
) -> np.ndarray:
    """The sum over strips, of a front as `staircase` gives it."""
    inside = starts < right
    starts, heights = starts[inside], heights[inside]
    ends = np.append(starts[1:], right)
    gains = expected_improvement(mean[:, None], std[:, None], heights)

    def at(points: np.ndarray) -> np.ndarray:
        widths = np.clip(ends - np.maximum(starts, points[:, None]), 0.0, None)
        return (widths * gains).sum(1)

    if not (x_std > KNOWN).any():
        return at(x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(RATE_NODES)
    return sum(w * at(x + node * x_std) for node, w in zip(nodes, weights / weights.sum(), strict=True))  # type: ignore[return-value]


def probability_within(mean: np.ndarray, std: np.ndarray, limit: float) -> np.ndarray:
    """P(X ≤ limit) of X ~ N(mean, std²); a step where std is zero, and mean = limit fits."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return np.where(std > KNOWN, ndtr((limit - mean) / np.maximum(std, KNOWN)), (mean <= limit).astype(np.float64))


def accuracy_moments(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of an accuracy whose log-odds are N(mean, std²), by Gauss–Hermite quadrature: (n,)
    each. Log-odds far up hardly move the accuracy, those near zero do."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    values = expit(np.asarray(mean)[..., None] + np.asarray(std)[..., None] * nodes)
    first = values @ weights
    second = (values - first[..., None]) ** 2 @ weights
    return first, np.sqrt(second)
