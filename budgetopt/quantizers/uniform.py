"""Affine uniform quantization with a straight-through gradient (QuADD A.1, eq. 12; BCDC eq. 4–5)."""

from __future__ import annotations

import torch

from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, to_fixed
from budgetopt.packing.layout import Layout
from budgetopt.packing.levels import LevelTable, UniformLevels
from budgetopt.quantizers.base import ScalarQuantizer, percentile_range

STEP_BITS = 12  # precision of the stored step: the largest of 256 levels is off by less than 3 % of a step


class Uniform(ScalarQuantizer):
    """Levels from 2 to 256. Clipping: `minmax`, or `pK`, the range from percentile K to 100 − K, both of the initial
    set; the range is then frozen. Q = low + Δ·round((x − low)/Δ), clamped; dQ/dx = 1 everywhere, so that values
    outside the range still move."""

    clippings = ("minmax", "p1", "p5")

    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self._layout = layout
        low, high = percentile_range(x, 0.0 if self.clipping == "minmax" else float(self.clipping[1:]))
        if high <= low:  # more than half of the values are one value: clip nothing
            low, high = percentile_range(x, 0.0)
        step = (high - low) / (self.levels - 1) or 1.0
        (mantissa,), exponent = to_fixed([step], STEP_BITS)
        # `low` may need a finer grid than a round step has, at most 12 bits finer; far from zero a coarser one,
        # since all levels stay below 2^24, where float32 is exact
        finer = 0
        while finer < STEP_BITS and low * 2.0 ** (exponent + finer) != round(low * 2.0 ** (exponent + finer)):
            finer += 1
        finer = min(finer, EXPONENT_LIMIT - exponent)
        while True:
            offset, stored = round(low * 2.0 ** (exponent + finer)), max(1, round(mantissa * 2.0**finer))
            if max(abs(offset), abs(offset + (self.levels - 1) * stored)) < MANTISSA_LIMIT:
                break
            finer -= 1
        self._table = UniformLevels(self.levels, offset, stored, exponent + finer)

    def side_information(self) -> LevelTable:
        return self._table

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.quantized(x, labels) + (x - x.detach())  # the second term is zero in value
