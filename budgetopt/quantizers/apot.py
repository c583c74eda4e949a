"""Additive powers of two with a learned clipping threshold (QuADD; APoT: Li, Dong and Wang, ICLR 2020)."""

from __future__ import annotations

import torch
from torch import nn

from budgetopt.errors import InputError, TrialFailure
from budgetopt.options import Options
from budgetopt.packing.fields import to_fixed
from budgetopt.packing.layout import Layout
from budgetopt.packing.levels import ApotLevels, LevelTable, apot_magnitudes
from budgetopt.quantizers.base import ScalarQuantizer, percentile_range

UNIT_BITS = 10  # precision of the stored unit (α / largest magnitude): α is off by less than 0.1 %
K = 2  # bits of one term, the paper's choice


class Apot(ScalarQuantizer):
    """x̂ = α·Π(clip(x/α, −1, 1)), Π the nearest level; symmetric, so it wants centred data.

    2 levels (±α) at 1 bit, else 2^b − 1 (one zero only). Clipping: the initial `clip` (α of QuADD eq. 14) as a share
    of |P99 − P1|: `quadd` is the paper's (which starts wide, since it takes a full range for a half one), `half` and
    `quarter` scale it. α is learned: dx̂/dα = sign(x) outside and Π(x/α) − x/α inside; dx̂/dx = 1 everywhere.
    """

    clippings = ("quadd", "half", "quarter")

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self.alpha = nn.Parameter(torch.ones(()))

    @classmethod
    def check_levels(cls, levels: int) -> None:
        super().check_levels(levels)
        if levels not in LEVELS:
            raise InputError(f"apot offers {', '.join(map(str, LEVELS))} levels, got {levels}")

    @property
    def bits(self) -> int:
        return LEVELS.index(self.levels) + 1

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self._layout = layout
        low, high = percentile_range(x, 1.0)
        share = {"quadd": 1.0, "half": 0.5, "quarter": 0.25}[self.clipping]
        alpha = share * (high - low) or float(x.abs().max()) or 1.0
        self.alpha.fill_(alpha)
        self._smallest = alpha * 1e-3

    def _threshold(self) -> float:
        """α, kept positive: a step too far must not turn the levels around."""
        return max(float(self.alpha.detach()), self._smallest)

    def side_information(self) -> LevelTable:
        largest = apot_magnitudes(self.bits, K)[-1]
        try:
            (unit,), exponent = to_fixed([self._threshold() / largest], UNIT_BITS)
        except ValueError:  # NaN, infinite, or beyond what a file can hold
            raise TrialFailure(f"distillation diverged: the clipping threshold is {self._threshold()}") from None
        return ApotLevels(self.bits, K, unit, exponent)

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        quantized, alpha = self.quantized(x, labels), self._threshold()
        ratio = x.detach() / alpha
        slope = torch.where(ratio.abs() > 1, ratio.sign(), quantized / alpha - ratio)
        change = (x - x.detach()) + slope * (self.alpha - self.alpha.detach())  # zero in value
        return quantized + change


LEVELS = (2, *(2**b - 1 for b in range(2, 9)))
