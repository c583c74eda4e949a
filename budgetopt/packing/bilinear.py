"""Bilinear up-sampling in integer arithmetic: pixel centres at half-integers, edges repeated."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WEIGHT_BITS = 10  # of each axis


@lru_cache(maxsize=64)
def taps(small: int, large: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """→ (first, second, weight), each (large,) int64: pixel i is first·(2^10 − weight) + second·weight.

    Its centre lies at (i + ½)·small/large − ½ = (2i + 1)·small − large over 2·large, not below 0; the weight is the
    fraction, rounded to 10 bits, half up.
    """
    numerator = np.maximum((2 * np.arange(large, dtype=np.int64) + 1) * small - large, 0)
    first, rest = np.divmod(numerator, 2 * large)
    second = np.minimum(first + 1, small - 1)
    weight = ((rest << WEIGHT_BITS) + large) // (2 * large)
    for array in (first, second, weight):
        array.setflags(write=False)
    return first, second, weight


def upsample(ints: np.ndarray, height: int, width: int) -> np.ndarray:
    """(…, h', w') int64 → (…, height, width), 2^20 times the values."""
    first, second, weight = taps(ints.shape[-1], width)
    ints = ints[..., first] * ((1 << WEIGHT_BITS) - weight) + ints[..., second] * weight
    first, second, weight = taps(ints.shape[-2], height)
    weight = weight[:, None]
    return ints[..., first, :] * ((1 << WEIGHT_BITS) - weight) + ints[..., second, :] * weight
