"""How the samples of a set are shared out among classes of unequal size (QuADD E.2 stores equal numbers)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# name → p: a class of n samples in the train part has a share of about n^p
BALANCES = {"equal": 0.0, "sqrt": 0.5, "proportional": 1.0}


def shared_out(counts: Sequence[int], ipc: int, balance: str = "equal") -> tuple[int, ...]:
    """Samples of each class; counts: those there are. In all as many as `ipc` of each class, all of a smaller one,
    would be, so that the choice moves samples and adds none. No class has more than it has samples, none is left out.
    """
    there = np.asarray(counts, np.int64)
    equal = np.minimum(there, ipc)
    if BALANCES[balance] == 0:
        return tuple(equal.tolist())
    weights, total = there.astype(np.float64) ** BALANCES[balance], int(equal.sum())
    least = np.minimum(there, 1)
    # the level s of s·n^p where all of it adds up to the total: halving finds it to the last bit that counts
    low, high = 0.0, float((there / np.maximum(weights, 1e-300)).max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if np.clip(middle * weights, least, there).sum() >= total else (middle, high)
    exact = np.clip(high * weights, least, there)
    found = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(found - exact, kind="stable")  # largest remainders first, ties to the lower class
    free = order[found[order] < there[order]]
    found[free[: total - int(found.sum())]] += 1
    return tuple(found.tolist())
