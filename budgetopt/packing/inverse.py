"""Inverse transforms in integer arithmetic: decoded levels → samples in the dataset's raw units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, Reader, Writer


class InverseTransform(ABC):
    """Side information of a transform. `apply` maps (integers, exponent) to (integers, exponent)."""

    family: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def apply(self, ints: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
        """ints: (n, c, h, w) or (n, f) int64, values ints · 2^(−exponent) in the coded domain → raw units."""

    @abstractmethod
    def write(self, out: Writer) -> None: ...

    @classmethod
    @abstractmethod
    def read(cls, fields: Reader, channels: int) -> InverseTransform: ...


@dataclass(frozen=True)
class Identity(InverseTransform):
    """The coded domain is the raw domain."""

    family: ClassVar[int] = 0
    name: ClassVar[str] = "identity"

    def apply(self, ints: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
        return ints, exponent

    def write(self, out: Writer) -> None:
        pass

    @classmethod
    def read(cls, fields: Reader, channels: int) -> Identity:
        return cls()


@dataclass(frozen=True)
class Standardize(InverseTransform):
    """x = z·std_c + mean_c per channel; std = scale·2^(−scale_exponent), mean = offset·2^(−offset_exponent)."""

    family: ClassVar[int] = 1
    name: ClassVar[str] = "standardize"
    scale: tuple[int, ...]
    scale_exponent: int
    offset: tuple[int, ...]
    offset_exponent: int

    def __post_init__(self) -> None:
        if any(not 1 <= s < MANTISSA_LIMIT for s in self.scale):
            raise BadHeader(f"the scale of the standardisation must be in 1..2^24-1, got {self.scale}")
        if any(abs(o) >= MANTISSA_LIMIT for o in self.offset):
            raise BadHeader(f"the offset of the standardisation must be below 2^24, got {self.offset}")
        if max(abs(self.scale_exponent), abs(self.offset_exponent)) > EXPONENT_LIMIT:
            raise BadHeader(f"the exponents of the standardisation must be within ±{EXPONENT_LIMIT}")

    def apply(self, ints: np.ndarray, exponent: int) -> tuple[np.ndarray, int]:
        per_channel = (len(self.scale),) + (1,) * (ints.ndim - 2)
        result_exponent = exponent + self.scale_exponent
        offset_shift = result_exponent - self.offset_exponent
        product_shift = max(0, -offset_shift)
        if abs(offset_shift) > 36 or np.abs(ints).max(initial=0) >= 2**36 >> product_shift:
            raise BadHeader("the exponents of the levels and of the standardisation are too far apart")
        product = ints * np.array(self.scale, np.int64).reshape(per_channel)
        offset = np.array(self.offset, np.int64).reshape(per_channel)
        return (product << product_shift) + (offset << max(0, offset_shift)), result_exponent + product_shift

    def write(self, out: Writer) -> None:
        out.signed(self.scale_exponent)
        out.signed(self.offset_exponent)
        for scale, offset in zip(self.scale, self.offset, strict=True):
            out.unsigned(scale)
            out.signed(offset)

    @classmethod
    def read(cls, fields: Reader, channels: int) -> Standardize:
        scale_exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the scale")
        offset_exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the offset")
        pairs = [
            (fields.unsigned(MANTISSA_LIMIT - 1, "a scale"), fields.signed(MANTISSA_LIMIT - 1, "an offset"))
            for _ in range(channels)
        ]
        return cls(tuple(s for s, _ in pairs), scale_exponent, tuple(o for _, o in pairs), offset_exponent)


FAMILIES: dict[int, type[InverseTransform]] = {family.family: family for family in (Identity, Standardize)}
