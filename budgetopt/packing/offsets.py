"""One offset for each channel, in fixed point: what a transform subtracts first and a decoder adds last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, Reader, Writer

MOST_MAGNITUDE = 1 << 62  # every integer on the way stays below it
MOST_EXPONENT = 127  # of a value as a power of two


@dataclass(frozen=True)
class Offsets:
    """The offset of channel c is mantissas[c]·2^(−exponent)."""

    mantissas: tuple[int, ...]
    exponent: int

    def __post_init__(self) -> None:
        if any(abs(m) >= MANTISSA_LIMIT for m in self.mantissas):
            raise BadHeader(f"an offset of the transform must be below 2^24, got {self.mantissas}")
        if abs(self.exponent) > EXPONENT_LIMIT:
            raise BadHeader(f"the exponent of the offsets must be within ±{EXPONENT_LIMIT}, got {self.exponent}")

    def check(self, most: int, exponent: int) -> None:
        """Raise `BadHeader` where adding to integers of magnitude up to `most` at this exponent leaves 62 bits, or
        where they are no float32."""
        if most.bit_length() - exponent > MOST_EXPONENT:
            raise BadHeader(f"levels up to {most} times 2^{-exponent} are too large for float32")
        largest = max(map(abs, self.mantissas))
        shift = exponent - self.exponent if largest else 0  # zeros may be as far apart as they like
        if (most << max(0, -shift)) + (largest << max(0, shift)) >= MOST_MAGNITUDE:
            raise BadHeader("the levels and the parameters of the transform do not fit 64-bit integers together")

    def add(self, ints: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
        """ints: (n, c, …) int64 at `exponent` → the sum at the finer of the two exponents."""
        shift = exponent - self.exponent
        if any(self.mantissas):
            offset = np.array([m << max(0, shift) for m in self.mantissas], np.int64)
            ints = (ints << max(0, -shift)) + offset.reshape(-1, *(1,) * (ints.ndim - 2))
            exponent += max(0, -shift)
        return ints, exponent

    def write(self, out: Writer) -> None:
        out.signed(self.exponent)
        for mantissa in self.mantissas:
            out.signed(mantissa)

    @classmethod
    def read(cls, fields: Reader, channels: int) -> Offsets:
        exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the offsets")
        return cls(tuple(fields.signed(MANTISSA_LIMIT - 1, "an offset") for _ in range(channels)), exponent)
