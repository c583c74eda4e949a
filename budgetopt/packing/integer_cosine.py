"""The orthonormal DCT-II as a table of integers, the same on every machine: big integers only, no libm."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt

import numpy as np

COSINE_BITS = 13  # leaves room for integers of 28 bits up to 224 × 224; only the shape of the basis depends on it
MOST_SIDE = 512  # of a transformed axis: bounds the table, and the work for one value
_GUARD = 192  # bits of the intermediate numbers: the recurrence loses about 2·log2(size) of them


@lru_cache(maxsize=8)
def cosine_table(size: int) -> np.ndarray:
    """(size, size) int64, read-only: [u, x] is the integer nearest to 2^13·a_u·cos(π(2x + 1)u / (2·size)), with
    a_0 = √(1/size) and a_u = √(2/size).

    There are no ties: the square of an entry is rational only for cosines of multiples of 30° and 45°, and then half
    an odd number would need a size of 2^26 at least.
    """
    if not 1 <= size <= MOST_SIDE:
        raise ValueError(f"the size of a cosine table must be in 1..{MOST_SIDE}, got {size}")
    angle = _pi() // (2 * size)
    cosines = [1 << _GUARD, _cosine(angle)]
    while len(cosines) <= size:  # cos((k+1)θ) = 2·cos θ·cos kθ − cos((k−1)θ)
        cosines.append((2 * cosines[1] * cosines[-1] >> _GUARD) - cosines[-2])
    quarter = np.array([_scaled(c, 2, size) for c in cosines[: size + 1]], np.int64)
    quarter[size] = 0  # cos 90°
    wave = np.concatenate(
        [quarter, -quarter[-2::-1], -quarter[1:], quarter[-2:0:-1]]
    )  # of cos(kπ/(2·size)), k < 4·size
    u, x = np.ogrid[:size, :size]
    table: np.ndarray = wave[(2 * x + 1) * u % (4 * size)]
    table[0] = _scaled(1 << _GUARD, 1, size)
    table.setflags(write=False)
    return table


def synthesize(values: np.ndarray, size: int) -> np.ndarray:
    """(…, U) int64, the lowest U ≤ size bands → (…, size): Σ_u values[…, u]·table[u, x].

    Even bands are mirrored and odd ones negated in the second half of the samples, which halves the work.
    """
    table, half = cosine_table(size), (size + 1) // 2
    rows = values.reshape(-1, values.shape[-1])
    even, odd = (  # transposed copies: numpy multiplies integers fastest where both run along memory
        np.ascontiguousarray(rows[:, first::2]) @ np.ascontiguousarray(table[first : rows.shape[1] : 2, :half].T).T
        for first in (0, 1)
    )
    result = np.empty((len(rows), size), np.int64)
    result[:, :half] = even + odd
    result[:, half:] = (even - odd)[:, : size // 2][:, ::-1]
    return result.reshape(*values.shape[:-1], size)


def reach(size: int) -> int:
    """No Σ_u |table[u, x]| is above this (a column has norm 1 and `size` entries; each is off by half at most)."""
    return (isqrt(size) + 1 << COSINE_BITS) + size


def _scaled(cosine: int, numerator: int, size: int) -> int:
    """The integer nearest to 2^13·√(numerator/size)·cosine."""
    root = isqrt((numerator << 2 * _GUARD) // size)
    return (cosine * root + (1 << 2 * _GUARD - COSINE_BITS - 1)) >> (2 * _GUARD - COSINE_BITS)


def _pi() -> int:
    """π·2^_GUARD, by Machin's formula."""
    return 16 * _arc_tangent_of_inverse(5) - 4 * _arc_tangent_of_inverse(239)


def _arc_tangent_of_inverse(n: int) -> int:
    power, total, k = (1 << _GUARD) // n, 0, 1
    while power:
        total += power // k if k % 4 == 1 else -(power // k)
        power //= n * n
        k += 2
    return total


def _cosine(angle: int) -> int:
    """cos(angle)·2^_GUARD for 0 ≤ angle ≤ π/2, by its Taylor series."""
    square, term, total, k = angle * angle >> _GUARD, 1 << _GUARD, 0, 0
    while term:
        total += term
        term = -((term * square >> _GUARD) // ((k + 1) * (k + 2)))
        k += 2
    return total
