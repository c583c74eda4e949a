"""Luma and chroma of BT.601 in full range, as in JPEG (ITU-T T.871), with chroma centred at zero."""

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

MATRIX_BITS = 12
# R = Y + 1.402 Cr, G = Y − 0.344136 Cb − 0.714136 Cr, B = Y + 1.772 Cb, times 2^12 and rounded
TO_RGB = ((4096, 0, 5743), (4096, -1410, -2925), (4096, 7258, 0))
_GAIN = max(sum(map(abs, row)) for row in TO_RGB)


def half(side: int) -> int:
    return (side + 1) // 2


@dataclass(frozen=True)
class LumaChroma(InverseTransform):
    """(Y, Cb, Cr) → (R, G, B); `subsampled` (4:2:0) chroma has half the resolution, up-sampled bilinearly."""

    family: ClassVar[int] = 5
    name: ClassVar[str] = "ycbcr"
    subsampled: bool

    def layout(self, shape: tuple[int, ...]) -> Layout:
        if not self.subsampled:
            return (Plane(*shape),)
        return Plane(1, *shape[1:]), Plane(2, half(shape[1]), half(shape[2]))

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        _, height, width = shape
        luma = ints[:, : height * width].reshape(-1, 1, height, width)
        chroma = ints[:, height * width :]
        if self.subsampled:
            chroma = upsample(chroma.reshape(-1, 2, half(height), half(width)), height, width)
            luma, exponent = luma << 2 * WEIGHT_BITS, exponent + 2 * WEIGHT_BITS
        planes = np.concatenate([luma, chroma.reshape(-1, 2, height, width)], 1)
        colours = [sum(planes[:, i] * factor for i, factor in enumerate(row) if factor) for row in TO_RGB]
        return np.stack(colours, 1), exponent + MATRIX_BITS

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:
        if (most << 2 * WEIGHT_BITS * self.subsampled) * _GAIN >= MOST_MAGNITUDE:
            raise BadHeader(f"levels up to {most} do not fit 64-bit integers in colour conversion")

    def write(self, out: Writer) -> None:
        out.byte(self.subsampled)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> LumaChroma:
        if len(shape) != 3 or shape[0] != 3:
            raise BadHeader(f"only pictures of 3 channels have luma and chroma, got samples of shape {shape}")
        subsampled = fields.byte()
        if subsampled > 1:
            raise BadHeader(f"the chroma of the file must be 0 (full) or 1 (half), got {subsampled}")
        return cls(bool(subsampled))
