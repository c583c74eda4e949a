"""Differentiable data quantization: a smooth staircase that hardens while it is trained (BCDC eq. 6–7)."""

from __future__ import annotations

from typing import ClassVar

import torch

from budgetopt.options import Number, Options, Schema
from budgetopt.packing.layout import Layout
from budgetopt.quantizers import surrogates
from budgetopt.quantizers.granularity import GRANULARITY
from budgetopt.quantizers.uniform import Uniform


class Ddq(Uniform):
    """Training sees Q_V(x), steps of tanh whose sharpness kΔ grows from 1 to `sharpness`; the file holds the uniform
    levels of eq. 4–5 (as `uniform`, from which it decodes). `weight` is λ of the penalty.

    The penalty λ·Σ_c mean_(i in c) ‖x_i − Q_V(x_i)‖²/σ², σ the standard deviation of the initial set: summed over
    values and classes, averaged within a class, like the matching losses that it is added to, so that one λ fits all
    datasets, sample counts and units. The paper has λ = 0.2.
    """

    clippings: ClassVar[tuple[str, ...]] = ("minmax", "p1", "p5")
    options: ClassVar[Schema] = {
        "granularity": GRANULARITY,
        "weight": Number(0.2, 0.0, 100.0),
        "sharpness": Number(surrogates.LAST_SHARPNESS, surrogates.FIRST_SHARPNESS, 64.0),
    }

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self._surrogate = "soft"
        self.last_sharpness = float(self.chosen["sharpness"])

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        super().fit(x, labels, layout)
        self._unit = float(x.std(correction=0)) or 1.0

    def penalty(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = float(self.chosen["weight"])
        if not weight:
            return x.new_zeros(())
        # Q_V held fixed: its own slope is above 1 midway between levels, where values would be drawn to the middle
        each = ((x - self.surrogate(x, labels).detach()) / self._unit).square().sum(1)
        return weight * (each / torch.bincount(labels)[labels]).sum()
