"""A codebook of any increasing levels, stored as differences in few bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.layout import Domain
from budgetopt.packing.levels import MAX_LEVELS, LevelTable, check_exponent, read_exponent

MAX_WIDTH = 16  # bits of one difference


@dataclass(frozen=True)
class CodebookLevels(LevelTable):
    """Level 0 is low·2^(−exponent); each further one is `differences[k]` above the last (Lloyd–Max)."""

    family: ClassVar[int] = 3
    name: ClassVar[str] = "codebook"
    low: int
    differences: tuple[int, ...]
    exponent: int

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= MAX_LEVELS:
            raise BadHeader(f"levels must be in 2..{MAX_LEVELS}, got {self.levels}")
        if any(not 1 <= d <= 1 << MAX_WIDTH for d in self.differences):
            raise BadHeader(f"levels must differ by 1..2^{MAX_WIDTH}, got {self.differences}")
        if abs(self.low) >= MANTISSA_LIMIT:
            raise BadHeader(f"the lowest level must be below 2^24, got {self.low}")
        check_exponent(self.exponent)

    @property
    def levels(self) -> int:
        return len(self.differences) + 1

    def table(self) -> np.ndarray:
        return self.low + np.cumsum(np.array((0, *self.differences), np.int64))

    def write(self, out: Writer, domain: Domain) -> None:
        """Differences less 1, in the width of the largest, most significant bit first, padded with zeros."""
        less = [d - 1 for d in self.differences]
        width = max(less).bit_length()
        bits = sum(value << width * (len(less) - 1 - k) for k, value in enumerate(less))
        size = (width * len(less) + 7) // 8
        out.byte(self.levels - 1)
        out.signed(self.low)
        out.signed(self.exponent)
        out.byte(width)
        out.raw((bits << (8 * size - width * len(less))).to_bytes(size, "big"))

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> CodebookLevels:
        count = fields.byte()
        low = fields.signed(MANTISSA_LIMIT - 1, "the lowest level")
        exponent = read_exponent(fields)
        width = fields.byte()
        if width > MAX_WIDTH:
            raise BadHeader(f"the differences of levels have at most {MAX_WIDTH} bits, got {width}")
        size = (width * count + 7) // 8
        bits = int.from_bytes(fields.raw(size), "big") >> (8 * size - width * count)
        mask = (1 << width) - 1
        differences = tuple((bits >> width * (count - 1 - k) & mask) + 1 for k in range(count))
        return cls(low, differences, exponent)
