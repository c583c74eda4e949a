"""Level tables: what a symbol stands for in the coded domain, as integers times 2^(−exponent)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.layout import Domain

MAX_LEVELS = 256


class LevelTable(Dequantizer):
    """One table of scalar levels for all values."""

    @abstractmethod
    def table(self) -> np.ndarray:
        """(L,) int64, strictly increasing: level k is table[k] · 2^(−exponent)."""

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        return self.table()[symbols]

    @property
    def most(self) -> int:
        return int(np.abs(self.table()[[0, -1]]).max())

    def values(self) -> np.ndarray:
        """(L,) float32: the levels in the coded domain (exact wherever |table| < 2^24)."""
        return self.table().astype(np.float32) * np.float32(2.0**-self.exponent)


def read_exponent(fields: Reader) -> int:
    return fields.signed(EXPONENT_LIMIT, "the exponent of the levels")


def check_exponent(exponent: int) -> None:
    if abs(exponent) > EXPONENT_LIMIT:
        raise BadHeader(f"the exponent of the levels must be within ±{EXPONENT_LIMIT}, got {exponent}")


@dataclass(frozen=True)
class UniformLevels(LevelTable):
    """Level k = (low + k·step)·2^(−exponent). Affine uniform quantization (QuADD eq. 12; BCDC eq. 4–5)."""

    family: ClassVar[int] = 0
    name: ClassVar[str] = "uniform"
    count: int
    low: int
    step: int
    exponent: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MAX_LEVELS:
            raise BadHeader(f"levels must be in 2..{MAX_LEVELS}, got {self.count}")
        if not 1 <= self.step < MANTISSA_LIMIT:
            raise BadHeader(f"the step of uniform levels must be positive, got {self.step}")
        if abs(self.low) >= MANTISSA_LIMIT:
            raise BadHeader(f"the lowest level must be below 2^24, got {self.low}")
        check_exponent(self.exponent)

    @property
    def levels(self) -> int:
        return self.count

    def table(self) -> np.ndarray:
        return self.low + self.step * np.arange(self.count, dtype=np.int64)

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.count - 1)
        out.signed(self.low)
        out.unsigned(self.step)
        out.signed(self.exponent)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> UniformLevels:
        count = fields.byte() + 1
        low = fields.signed(MANTISSA_LIMIT - 1, "the lowest level")
        step = fields.unsigned(MANTISSA_LIMIT - 1, "the step of the levels")
        return cls(count, low, step, read_exponent(fields))


APOT_PRECISION = 22  # bits below the largest term: terms smaller than 2^-22 of it are dropped


@lru_cache(maxsize=256)
def apot_magnitudes(bits: int, k: int) -> tuple[int, ...]:
    """Non-negative levels of additive powers of two, as integers (APoT: Li, Dong and Wang, ICLR 2020).

    b − 1 = k·n bits of magnitude give Σ_{i<n} p_i with p_i ∈ {0, 2^(−i), 2^(−(i+n)), …, 2^(−(i+(2^k−2)n))}. Odd
    remainders with k = 2: n = ⌊(b−1)/2⌋ terms p_i ∈ {0, 2^(−i), 2^(−(i+n)), 2^(−(i+2n+1))} and one term
    {0, 2^(−2n)}. b = 1 has the single magnitude 1. The result is scaled by the smallest power of two that makes
    all of them whole (at most 2^22).
    """
    magnitude_bits = bits - 1
    if magnitude_bits == 0:
        return (1,)
    n, rest = divmod(magnitude_bits, k)
    if rest and k != 2:
        raise ValueError(f"APoT with k = {k} needs bits - 1 divisible by {k}, got {bits} bits")
    terms: list[list[int | None]] = []  # exponents of the choices of each term; None is the choice 0
    if rest:
        terms = [[None, i, i + n, i + 2 * n + 1] for i in range(n)]
        terms.append([None, 2 * n])
    else:
        terms = [[None, *(i + j * n for j in range(2**k - 1))] for i in range(n)]
    sums = {0}
    for choices in terms:
        parts = [0 if e is None or e > APOT_PRECISION else 1 << (APOT_PRECISION - e) for e in choices]
        sums = {s + p for s in sums for p in parts}
    ordered = sorted(sums)
    shift = min((s & -s).bit_length() - 1 for s in ordered if s)
    return tuple(s >> shift for s in ordered)


@dataclass(frozen=True)
class ApotLevels(LevelTable):
    """Levels ±(magnitude · unit)·2^(−exponent); unit is chosen so that the largest one is the clipping threshold
    α (γ of the paper is 1 / largest magnitude). One zero only: 2 levels at 1 bit, 2^b − 1 at b ≥ 2."""

    family: ClassVar[int] = 1
    name: ClassVar[str] = "apot"
    bits: int
    k: int
    unit: int
    exponent: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise BadHeader(f"APoT bits must be in 1..8, got {self.bits}")
        if not 1 <= self.k <= 7:
            raise BadHeader(f"APoT k must be in 1..7, got {self.k}")
        if (self.bits - 1) % self.k and self.k != 2:
            raise BadHeader(f"APoT k = {self.k} does not divide {self.bits} - 1 bits of magnitude")
        if not 1 <= self.unit < MANTISSA_LIMIT:
            raise BadHeader(f"the unit of APoT levels must be positive, got {self.unit}")
        check_exponent(self.exponent)

    @property
    def levels(self) -> int:
        return self.table().size

    def table(self) -> np.ndarray:
        magnitudes = np.array(apot_magnitudes(self.bits, self.k), np.int64)
        negative = -magnitudes[::-1]
        both = np.concatenate([negative[:-1] if magnitudes[0] == 0 else negative, magnitudes])
        return both * self.unit

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.bits - 1 | self.k << 4)
        out.unsigned(self.unit)
        out.signed(self.exponent)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> ApotLevels:
        packed = fields.byte()
        unit = fields.unsigned(MANTISSA_LIMIT - 1, "the unit of the APoT levels")
        return cls((packed & 0x0F) + 1, packed >> 4, unit, read_exponent(fields))
