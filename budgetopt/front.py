"""Pareto set and hypervolume of (bytes, accuracy); dominance and volume are computed by moocore."""

from __future__ import annotations

import math

import numpy as np


def _minimised(size: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Direction normalised once, here: (n, 2), both columns to be minimised."""
    return np.column_stack([np.asarray(size, np.float64), -np.asarray(accuracy, np.float64)])


def non_dominated(size: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """(n,) bool: no other point has at most the bytes and at least the accuracy, one of them strictly. Of equal points
    the first is kept. O(n log n)."""
    import moocore

    if len(size) == 0:
        return np.zeros(0, bool)
    return np.asarray(moocore.is_nondominated(_minimised(size, accuracy), keep_weakly=False), bool)


def ranks(size: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """(n,) int: 0 on the front, 1 on the front of the rest, and so on."""
    import moocore

    if len(size) == 0:
        return np.zeros(0, np.int64)
    return np.asarray(moocore.pareto_rank(_minimised(size, accuracy)), np.int64)


def hypervolume(size: np.ndarray, accuracy: np.ndarray, smallest: float, budget: float, chance: float) -> float:
    """Share of the rectangle log2(bytes) ∈ [smallest, budget] × accuracy ∈ [chance, 1] that the points dominate;
    reference point (budget, chance). Points outside add nothing beyond its edge."""
    import moocore

    if budget <= smallest or chance >= 1:
        raise ValueError(f"empty rectangle: {smallest}..{budget} bytes, accuracy from {chance}")
    width = math.log2(budget) - math.log2(smallest)
    x = np.clip((np.log2(np.asarray(size, np.float64)) - math.log2(smallest)) / width, 0.0, None)
    y = (np.asarray(accuracy, np.float64) - chance) / (1.0 - chance)
    inside = (x <= 1.0) & (y > 0.0)
    if not inside.any():
        return 0.0
    return float(moocore.hypervolume(np.column_stack([x, -y])[inside], ref=np.array([1.0, 0.0])))


def best(size: np.ndarray, accuracy: np.ndarray) -> int:
    """Index of the highest accuracy, ties to fewer bytes."""
    return min(range(len(size)), key=lambda i: (-accuracy[i], size[i]))


def near_front(size: np.ndarray, accuracy: np.ndarray, error: np.ndarray, most: int) -> np.ndarray:
    """Indices of the points within one standard error `error` of the front, nearest first, at most `most`.

    A point's gap is what its accuracy lacks to the best accuracy of points with at most its bytes. Where the front
    alone has more members than there are places, up to half of the places go to points within one standard error of the
    best accuracy, the others to members spread over log2(bytes).
    """
    size, accuracy = np.asarray(size, np.float64), np.asarray(accuracy, np.float64)
    gap = np.array([accuracy[size <= s].max() - a for s, a in zip(size, accuracy, strict=True)])
    index = np.flatnonzero(gap <= np.asarray(error, np.float64))
    on_front = non_dominated(size, accuracy)
    order = sorted(index, key=lambda i: (not on_front[i], gap[i], size[i]))
    if len(order) > most and on_front[order[:most]].all() and on_front.sum() > most:
        top = best(size, accuracy)
        rivals = sorted(index, key=lambda i: (-accuracy[i], size[i]))
        rivals = [i for i in rivals if accuracy[i] >= accuracy[top] - error[top]][: math.ceil(most / 2)]
        chosen, sizes = list(rivals), np.log2(size)
        left = [i for i in np.flatnonzero(on_front) if i not in chosen]
        for place in np.linspace(sizes[top], sizes[on_front].min(), most - len(chosen) + 1)[1:]:
            # to the nearest that has none yet
            chosen.append(min(left, key=lambda i: (abs(sizes[i] - place), size[i])))
            left.remove(chosen[-1])
        return np.array(chosen)
    return np.array(order[:most], dtype=np.int64)
