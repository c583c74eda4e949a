"""Input statistics of a set brought along: what a receiver subtracts and divides by, for its test data too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from budgetopt.errors import InputError

Statistics = tuple[np.ndarray, np.ndarray]


def of_samples(x: np.ndarray, name: str) -> Statistics:
    """Mean and std of each channel of x, (n, c, …) or (n, f) with one channel: (c,) float32, as `rounded`."""
    channels = x if x.ndim > 2 else x[:, None]
    axes = (0, *range(2, channels.ndim))
    mean = channels.mean(axes, dtype=np.float64)
    std = channels.std(axes, dtype=np.float64)
    if max(np.abs(mean).max(), std.max()) > 1e30:
        raise InputError(f"{name}: values are too large to standardise: mean {mean}, std {std}")
    return rounded(mean, std)


def pooled(parts: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Statistics:
    """(samples, mean, std) of several sets → those of all their samples together, weighted by samples."""
    share = np.array([samples for samples, _, _ in parts], np.float64)[:, None]
    means = np.array([mean for _, mean, _ in parts], np.float64)
    stds = np.array([std for _, _, std in parts], np.float64)
    mean = (share * means).sum(0) / share.sum()
    variance = (share * (stds**2 + (means - mean) ** 2)).sum(0) / share.sum()
    return rounded(mean, np.sqrt(variance))


def rounded(mean: np.ndarray, std: np.ndarray) -> Statistics:
    """As float32; rounded to float16, in which a file holds them in half the bytes, where that changes the input of a
    network by less than 1 %. A constant channel has std 1."""
    std = np.where(std > 0, std, 1.0)
    with np.errstate(over="ignore"):
        halves = [values.astype(np.float16).astype(np.float64) for values in (mean, std)]
    if all((np.abs(half - full) <= 0.01 * std).all() for half, full in zip(halves, (mean, std), strict=True)):
        mean, std = halves
    return mean.astype(np.float32), std.astype(np.float32)
