"""Pictures stored at a lower resolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from budgetopt.packing.bilinear import WEIGHT_BITS, upsample
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.inverse import InverseTransform
from budgetopt.packing.layout import Layout, Plane
from budgetopt.packing.offsets import MOST_MAGNITUDE


@dataclass(frozen=True)
class Resize(InverseTransform):
    """(c, height, width) → (c, h, w), bilinear."""

    family: ClassVar[int] = 4
    name: ClassVar[str] = "resize"
    height: int
    width: int

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return (Plane(shape[0], self.height, self.width),)

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        small = ints.reshape(-1, shape[0], self.height, self.width)
        return upsample(small, shape[1], shape[2]), exponent + 2 * WEIGHT_BITS

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:
        if most << 2 * WEIGHT_BITS >= MOST_MAGNITUDE:
            raise BadHeader(f"levels up to {most} do not fit 64-bit integers after up-sampling")

    def write(self, out: Writer) -> None:
        out.unsigned(self.height)
        out.unsigned(self.width)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Resize:
        if len(shape) != 3:
            raise BadHeader(f"only pictures can be resized, got samples of shape {shape}")
        sides = [fields.unsigned(side, "a side of the stored pictures") for side in shape[1:]]
        if 0 in sides:
            raise BadHeader("a side of the stored pictures is 0")
        return cls(*sides)
