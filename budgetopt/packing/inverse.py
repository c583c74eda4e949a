"""Inverse transforms in integer arithmetic: decoded levels → samples in the dataset's raw units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.layout import Layout, channels_of, layout_of


class InverseTransform(ABC):
    """Side information of a transform: K coded values of a sample → its raw values, in integers. Immutable."""

    family: ClassVar[int]
    name: ClassVar[str]

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Of the coded values of samples of `shape`, (c, h, w), (c, d, h, w) or (f,)."""
        return layout_of(shape)

    @abstractmethod
    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """ints: (n, K) int64, values ints · 2^(−exponent) in the coded domain → ((n, *shape) int64, exponent) in raw
        units."""

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:  # noqa: B027 - many need no check
        """Raise `BadHeader` where |ints| ≤ `most` at this exponent cannot be decoded in 64 bits."""

    @abstractmethod
    def write(self, out: Writer) -> None: ...

    @classmethod
    @abstractmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> InverseTransform:
        """Raises `BadHeader` for parameters that samples of `shape` cannot have."""


@dataclass(frozen=True)
class Identity(InverseTransform):
    """The coded domain is the raw domain."""

    family: ClassVar[int] = 0
    name: ClassVar[str] = "identity"

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        return ints.reshape(-1, *shape), exponent

    def write(self, out: Writer) -> None:
        pass

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Identity:
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

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:
        offset_shift, product_shift = self._shifts(exponent)
        if abs(offset_shift) > 36 or most >= 2**36 >> product_shift:
            raise BadHeader("the exponents of the levels and of the standardisation are too far apart")

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        per_channel = (len(self.scale),) + (1,) * max(0, len(shape) - 1)
        offset_shift, product_shift = self._shifts(exponent)
        product = ints.reshape(-1, *shape) * np.array(self.scale, np.int64).reshape(per_channel)
        offset = np.array(self.offset, np.int64).reshape(per_channel)
        shifted = (product << product_shift) + (offset << max(0, offset_shift))
        return shifted, exponent + self.scale_exponent + product_shift

    def _shifts(self, exponent: int) -> tuple[int, int]:
        """Bits by which offset and product are shifted to the finer of their exponents."""
        offset_shift = exponent + self.scale_exponent - self.offset_exponent
        return offset_shift, max(0, -offset_shift)

    def write(self, out: Writer) -> None:
        out.signed(self.scale_exponent)
        out.signed(self.offset_exponent)
        for scale, offset in zip(self.scale, self.offset, strict=True):
            out.unsigned(scale)
            out.signed(offset)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Standardize:
        channels = channels_of(shape)
        scale_exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the scale")
        offset_exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the offset")
        pairs = [
            (fields.unsigned(MANTISSA_LIMIT - 1, "a scale"), fields.signed(MANTISSA_LIMIT - 1, "an offset"))
            for _ in range(channels)
        ]
        return cls(tuple(s for s, _ in pairs), scale_exponent, tuple(o for _, o in pairs), offset_exponent)
