"""Additive powers of two with a learned clipping threshold (QuADD; APoT: Li, Dong and Wang, ICLR 2020)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import InputError, TrialFailure
from budgetopt.options import OneOf, Options, Schema
from budgetopt.packing.fields import to_fixed
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.layout import Layout
from budgetopt.packing.levels import ApotLevels, LevelTable, apot_magnitudes
from budgetopt.quantizers.base import ScalarQuantizer
from budgetopt.quantizers.granularity import GRANULARITY, symmetric_groups

UNIT_BITS = 10  # precision of the stored unit (α / largest magnitude): α is off by less than 0.1 %
TABLE_BITS = 28  # of magnitude and unit together: only magnitudes of k ≥ 5 leave fewer than 10 bits for the unit
LEVELS = (2, *(2**b - 1 for b in range(2, 9)))


class Apot(ScalarQuantizer):
    """x̂ = α·Π(clip(x/α, −1, 1)), Π the nearest level; symmetric, so it wants centred data.

    2 levels (±α) at 1 bit, else 2^b − 1 (one zero only); `k` bits a term must divide the b − 1 bits of magnitude, but
    for the paper's k = 2, which takes any. (k ≥ 5 asks for powers down to 2^(−126); those below 2^(−22) are dropped,
    which leaves 47 levels.)

    Clipping: the initial α of QuADD eq. 14 as a share of |P99 − P1|: `quadd` is the paper's (which starts wide, since
    it takes a full range for a half one), `half` and `quarter` scale it. α is learned, one for each group
    (`granularity="band"` is eq. 15): dx̂/dα = sign(x) outside and Π(x/α) − x/α inside. dx̂/dx = 1 everywhere, or with
    `clip_gradient="yes"` 0 where |x| > α. `gamma="learned"` scales all levels against α (QuADD Algorithm 2):
    x̂ = α·Π_γ(x/α), dx̂/dγ = x̂/γ; the file holds the product.
    """

    clippings = ("quadd", "half", "quarter")
    options: ClassVar[Schema] = {
        "granularity": GRANULARITY,
        "k": OneOf((2, 1, 3, 4, 5, 6, 7)),
        "gamma": OneOf(("fixed", "learned")),
        "clip_gradient": OneOf(("no", "yes")),
    }

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self.k = int(self.chosen["k"])
        if (self.bits - 1) % self.k and self.k != 2:
            fitting = ", ".join(str(n) for b, n in enumerate(LEVELS) if b % self.k == 0)
            raise InputError(f"apot: k = {self.k} offers {fitting} levels, got {levels}")
        self._largest = apot_magnitudes(self.bits, self.k)[-1]
        self.alpha = nn.Parameter(torch.ones(()))
        self.gamma = nn.Parameter(torch.ones(())) if self.chosen["gamma"] == "learned" else None

    @classmethod
    def check_levels(cls, levels: int) -> None:
        super().check_levels(levels)
        if levels not in LEVELS:
            raise InputError(f"apot offers {', '.join(map(str, LEVELS))} levels, got {levels}")

    @property
    def bits(self) -> int:
        return LEVELS.index(self.levels) + 1

    def sizes(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Each group's own."""
        return [(p, p.detach().abs()) for p in self.parameters()]

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self.group(labels, layout)
        share = {"quadd": 1.0, "half": 0.5, "quarter": 0.25}[self.clipping]
        ranges = self.groups.ranges(x, labels, 1.0)
        alpha = share * (ranges[:, 1] - ranges[:, 0])
        alpha = np.where(alpha > 0, alpha, np.abs(ranges).max(1))  # a constant: its magnitude
        alpha[alpha == 0] = alpha.max() or 1.0
        one = self.groups.count == 1
        start = torch.from_numpy(alpha).to(x)
        self.alpha = nn.Parameter(start.reshape(()) if one else start)
        if self.gamma is not None:
            self.gamma = nn.Parameter(torch.ones_like(self.alpha))
        self._smallest = (float(alpha[0]) if one else alpha) * 1e-3

    def _positive(self, parameter: torch.Tensor, least: float | np.ndarray) -> np.ndarray:
        """(G,) float64, kept positive: a step too far must not turn the levels around."""
        return np.maximum(parameter.detach().cpu().numpy().astype(np.float64), least).reshape(-1)

    def _thresholds(self) -> np.ndarray:
        return self._positive(self.alpha, self._smallest)

    def side_information(self) -> LevelTable | Grouped:
        top = self._thresholds()
        if self.gamma is not None:
            top = top * self._positive(self.gamma, 1e-3)
        if not np.isfinite(top).all():
            raise TrialFailure(f"distillation diverged: the clipping threshold is {top.max()}")
        if self.groups.count > 1:
            return symmetric_groups(lambda e: ApotLevels(self.bits, self.k, 1, e), self.groups.kind, top)
        bits = min(UNIT_BITS, TABLE_BITS - self._largest.bit_length())
        try:
            (unit,), exponent = to_fixed([float(top[0]) / self._largest], bits)
        except ValueError:  # beyond what a file can hold
            raise TrialFailure(f"distillation diverged: the clipping threshold is {top[0]}") from None
        return ApotLevels(self.bits, self.k, unit, exponent)

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        quantized, group = self.quantized(x, labels), self.groups.of(labels)
        alpha = torch.from_numpy(self._thresholds()).to(x)[group]
        ratio = x.detach() / alpha
        outside = ratio.abs() > 1
        slope = torch.where(outside, ratio.sign(), quantized / alpha - ratio)
        passed = torch.where(outside, x.detach(), x) if self.chosen["clip_gradient"] == "yes" else x
        change = (passed - x.detach()) + slope * _moved(self.alpha)[group]  # zero in value
        if self.gamma is not None:
            gamma = torch.from_numpy(self._positive(self.gamma, 1e-3)).to(x)[group]
            change = change + quantized / gamma * _moved(self.gamma)[group]
        return quantized + change


def _moved(parameter: torch.Tensor) -> torch.Tensor:
    """(G,) zeros that pass a gradient on."""
    return (parameter - parameter.detach()).reshape(-1)
