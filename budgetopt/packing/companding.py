"""Companded levels: uniform in a compressed domain, expanded by a table that the decoder makes in integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.layout import Domain
from budgetopt.packing.levels import MAX_LEVELS, LevelTable, check_exponent, read_exponent

CURVES = ("tanh", "laplace")
EDGE = 256  # the ends of the compressed domain are multiples of 1/256 inside (−1, 1)
FRACTION_BITS = 12  # of the expanded levels, before they are scaled
_WORK_BITS = 62


def log2_fixed(numerator: int, denominator: int) -> int:
    """⌊2^12·log2(numerator/denominator)⌋ for numerator ≥ denominator ≥ 1, by repeated squaring of a 62-bit mantissa
    (each square cut off, so that every machine gets the same digits)."""
    mantissa = (numerator << _WORK_BITS) // denominator
    whole = mantissa.bit_length() - 1 - _WORK_BITS
    mantissa >>= whole
    result = whole
    for _ in range(FRACTION_BITS):
        mantissa = mantissa * mantissa >> _WORK_BITS
        bit = mantissa >> (_WORK_BITS + 1)
        mantissa >>= bit
        result = 2 * result + bit
    return result


@lru_cache(maxsize=256)
def expanded(curve: str, count: int, low: int, high: int) -> tuple[int, ...]:
    """2^12·g(u_k), u_k = (low + k·(high − low)/(count − 1))/256, in increasing order.

    g is odd: log2((1 + u)/(1 − u)) for tanh, which is 2·log2(e)·atanh(u), and −log2(1 − u) for u ≥ 0 for the
    distribution function of Laplace, u = 2F − 1.
    """
    whole = EDGE * (count - 1)
    levels = []
    for k in range(count):
        u = low * (count - 1) + k * (high - low)  # times 1 / whole
        numerator = whole + abs(u) if curve == "tanh" else whole
        magnitude = log2_fixed(numerator, whole - abs(u))
        levels.append(magnitude if u >= 0 else -magnitude)
    return tuple(levels)


@dataclass(frozen=True)
class CompandedLevels(LevelTable):
    """Level k = (centre·2^12 + scale·G_k)·2^(−exponent − 12), G = `expanded(curve, count, low, high)`."""

    family: ClassVar[int] = 2
    name: ClassVar[str] = "companded"
    count: int
    curve: str
    low: int
    high: int
    centre: int
    scale: int
    stored_exponent: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MAX_LEVELS:
            raise BadHeader(f"levels must be in 2..{MAX_LEVELS}, got {self.count}")
        if self.curve not in CURVES:
            raise BadHeader(f"unknown companding curve {self.curve!r}")
        if not -EDGE < self.low < self.high < EDGE:
            raise BadHeader(f"the ends of companded levels must increase within ±{EDGE - 1}: {self.low}, {self.high}")
        if not 1 <= self.scale < MANTISSA_LIMIT:
            raise BadHeader(f"the scale of companded levels must be positive, got {self.scale}")
        if abs(self.centre) >= MANTISSA_LIMIT:
            raise BadHeader(f"the centre of companded levels must be below 2^24, got {self.centre}")
        check_exponent(self.stored_exponent)
        if (np.diff(self.table()) <= 0).any():
            raise BadHeader(f"{self.count} companded levels between {self.low} and {self.high} are not distinct")

    @property
    def levels(self) -> int:
        return self.count

    @property
    def exponent(self) -> int:  # type: ignore[override]
        return self.stored_exponent + FRACTION_BITS

    def table(self) -> np.ndarray:
        shape = np.array(expanded(self.curve, self.count, self.low, self.high), np.int64)
        return (self.centre << FRACTION_BITS) + self.scale * shape

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.count - 1)
        out.byte(CURVES.index(self.curve))
        out.signed(self.low)
        out.signed(self.high)
        out.signed(self.centre)
        out.unsigned(self.scale)
        out.signed(self.stored_exponent)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> CompandedLevels:
        count, curve = fields.byte() + 1, fields.byte()
        if curve >= len(CURVES):
            raise BadHeader(f"unknown companding curve {curve}")
        low = fields.signed(EDGE - 1, "the lower end of the levels")
        high = fields.signed(EDGE - 1, "the upper end of the levels")
        centre = fields.signed(MANTISSA_LIMIT - 1, "the centre of the levels")
        scale = fields.unsigned(MANTISSA_LIMIT - 1, "the scale of the levels")
        return cls(count, CURVES[curve], low, high, centre, scale, read_exponent(fields))
