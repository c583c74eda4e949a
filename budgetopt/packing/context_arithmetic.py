"""Logarithm and logistic tables of the context coder, exact on every machine: Python integers, no libm.

The unit of the stretched domain is 1/256 nat: stretch(p) = 256·ln(p / (1 − p)).
"""

from __future__ import annotations

from functools import cache

import numpy as np

UNIT = 256  # stretched units a nat
FAR = 2815  # the largest stretched value, 11 nats
ONE = 1 << 16  # probability 1
_BITS = 96  # fraction bits of the intermediate values; the tables need fewer than 30


@cache
def logarithms(count: int, scale: int, offset: int) -> np.ndarray:
    """→ (count,) int32, entry k is 256·ln(scale·k + offset), rounded to nearest. Read-only."""
    table = np.empty(count, np.int32)
    value, at = 0, 1
    for k in range(count):
        target = scale * k + offset
        while at < target:
            at += 1
            value += _log_step(at)
        table[k] = (UNIT * value + (1 << (_BITS - 1))) >> _BITS
    table.flags.writeable = False
    return table


def _log_step(m: int) -> int:
    """ln(m / (m − 1))·2^96 = 2·artanh(1 / (2m − 1))·2^96, by its series."""
    base = 2 * m - 1
    square, power, total, divisor = base * base, (2 << _BITS) // base, 0, 1
    while power:
        total += power // divisor
        power //= square
        divisor += 2
    return total


@cache
def logistic() -> np.ndarray:
    """→ (2·FAR + 1,) int32, entry x + FAR is 65536 / (1 + e^(−x/256)), rounded, in 1 … 65535. Read-only."""
    step, term, k = 0, 1 << _BITS, 0  # e^(1/256) by its series
    while term:
        step += term
        k += 1
        term //= UNIT * k
    table = np.empty(2 * FAR + 1, np.int32)
    growth = 1 << _BITS  # e^(x/256)
    for x in range(FAR + 1):
        upper = ((ONE * growth << 1) + growth + (1 << _BITS)) // (2 * (growth + (1 << _BITS)))
        upper = min(upper, ONE - 1)
        table[FAR + x], table[FAR - x] = upper, ONE - upper
        growth = (growth * step) >> _BITS
    table.flags.writeable = False
    return table


@cache
def inverse_roots(count: int) -> np.ndarray:
    """→ (count,) int64, entry k is ⌊4096 / √max(k, 1)⌋. Read-only."""
    table = np.empty(count, np.int64)
    root = 4096
    for k in range(count):  # the root falls slowly: walk it down instead of taking count roots
        while root * root * max(k, 1) > 1 << 24:
            root -= 1
        table[k] = root
    table.flags.writeable = False
    return table
