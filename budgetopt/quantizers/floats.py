"""`none`: values as they are, for baselines."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from budgetopt.errors import InputError, TrialFailure
from budgetopt.options import OneOf
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.floats import ByteValues, FloatValues
from budgetopt.packing.layout import Layout
from budgetopt.quantizers.base import Quantizer
from budgetopt.quantizers.pictures import pixel_scale, to_pixels


class Floats(Quantizer):
    """dtype: `float32` (exact), `float16`, or `uint8`, whole numbers 0 … 255 (other ranges: 256 equal steps), which
    coders can shorten."""

    fixed_levels = 256
    has_rate = False
    options: ClassVar = {"dtype": OneOf(("float32", "float16", "uint8"))}

    @classmethod
    def check_transform(cls, transform: str, shape: tuple[int, ...]) -> None:
        if transform != "identity":
            raise InputError(f"none takes no transform, got {transform}")

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self._layout = layout
        if self.chosen["dtype"] == "uint8":
            self._scale = pixel_scale(x)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, Dequantizer]:
        if self.chosen["dtype"] == "uint8":
            scale = self._scale
            return to_pixels(x, scale).cpu().numpy(), ByteValues(scale.count, scale.low, scale.step, scale.exponent)
        values = self.quantized(x, torch.empty(0)).cpu().numpy()
        if not np.isfinite(values).all():
            raise TrialFailure(f"a value is NaN, infinite or too large for {self.chosen['dtype']}")
        return values, FloatValues(4 if self.chosen["dtype"] == "float32" else 2)

    @torch.no_grad()
    def quantized(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.chosen["dtype"] == "uint8":
            return super().quantized(x, labels)
        x = x.detach().float()
        return x.half().float() if self.chosen["dtype"] == "float16" else x

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.quantized(x, labels) + (x - x.detach())  # the second term is zero in value
