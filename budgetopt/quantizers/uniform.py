"""Uniform quantization, affine, symmetric or companded (QuADD A.1, eq. 12 and 13; BCDC eq. 4–5)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import TrialFailure
from budgetopt.options import OneOf, Options, Schema
from budgetopt.packing.companding import CURVES, CompandedLevels
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.layout import Layout
from budgetopt.packing.levels import LevelTable
from budgetopt.quantizers import surrogates, uniform_levels
from budgetopt.quantizers.base import ScalarQuantizer
from budgetopt.quantizers.granularity import GRANULARITY
from budgetopt.quantizers.uniform_levels import IndexUnits

BOUNDED = 0.99  # share of tanh's reach that the range of the start takes: its ends still move


class Uniform(ScalarQuantizer):
    """Levels from 2 to 256, from low to high of the initial set.

    Clipping: `minmax`; `p1` and `p5`, percentiles 1 to 99 and 5 to 95; `symmetric`, ±α with α the larger magnitude of
    the 1st and 99th percentile; all these are frozen. `learned` starts from `p1` and moves both ends (as LSQ and PACT):
    with w = high − low, d(x̂)/d(high) = (x̂ − x)/w inside the range and 1 above it, d(x̂)/d(low) = −(x̂ − x)/w and 1 below.

    Surrogate, with dQ/dx = 1 for values outside the range, so that they still move:
    `ste`, the file's value and dQ/dx = 1; `noise`, plus uniform noise of one step; `soft`, the annealed staircase of
    BCDC eq. 6–7; `fsq`, noise of ± half a step on half of the steps and `ste` on the others (QuADD eq. 13), on values
    that tanh keeps within the range of the start, so that none is ever outside; `fsq-uniform`, the same with uniform
    noise. The free values of both start at atanh(0.99·t), t the value on the range's scale from −1 to 1.

    Companding compresses, quantizes uniformly and expands: levels lie denser where values do. The nearest *expanded*
    level is taken, which never errs more than rounding in the compressed domain.
    """

    clippings: ClassVar[tuple[str, ...]] = ("minmax", "p1", "p5", "symmetric", "learned")
    options: ClassVar[Schema] = {
        "granularity": GRANULARITY,
        "surrogate": OneOf(("ste", "noise", "soft", "fsq", "fsq-uniform")),
        "companding": OneOf(("none", *CURVES)),
    }

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self._surrogate = str(self.chosen.get("surrogate", "ste"))
        self._bounded = self._surrogate.startswith("fsq")
        self._curve = str(self.chosen.get("companding", "none"))
        self.last_sharpness = surrogates.LAST_SHARPNESS
        if clipping == "learned":
            self.range = nn.Parameter(torch.zeros(2, 1))  # low and high of each group

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self.group(labels, layout)
        percent = {"minmax": 0.0, "p5": 5.0}.get(self.clipping, 1.0)
        ranges = self.groups.ranges(x, labels, percent)
        if self.clipping == "symmetric":
            alpha = np.abs(ranges).max(1)
            alpha[alpha == 0] = alpha.max() or 1.0
            ranges = np.stack([-alpha, alpha], 1)
        self._first_ranges = ranges
        self._shape: CompandedLevels | None = None
        if self._curve != "none":
            low, high = (torch.from_numpy(end).to(x)[self.groups.of(labels)] for end in ranges.T)
            inside = torch.where(high > low, (x - low) / (high - low), 0.5).clamp(0, 1).cpu().numpy()
            self._shape = uniform_levels.companded_shape(
                inside.astype(np.float64), self._curve, self.levels, self.clipping == "symmetric"
            )
        if self.clipping == "learned":
            self.range = nn.Parameter(torch.from_numpy(ranges.T.copy()).to(x))
            self._narrowest = np.maximum(1e-3 * (ranges[:, 1] - ranges[:, 0]), 1e-6 * np.abs(ranges).max() or 1e-6)
        else:
            self._frozen = self._table(ranges)

    def free(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self._bounded:
            return x
        middle, half = self._middle_and_half(x, labels)
        return half * torch.atanh(BOUNDED * ((x - middle) / half).clamp(-1, 1))

    def coded(self, free: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if not self._bounded:
            return free
        middle, half = self._middle_and_half(free, labels)
        return middle + half / BOUNDED * torch.tanh(free / half)

    def _middle_and_half(self, like: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the range of the start, for every value."""
        low, high = (torch.from_numpy(end.copy()).to(like)[self.groups.of(labels)] for end in self._first_ranges.T)
        return (low + high) / 2, torch.where(high > low, (high - low) / 2, 1.0)

    def sizes(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Half of the width of each group's range: where it lies says nothing of how far its ends should move."""
        if self.clipping != "learned":
            return super().sizes()
        low, high = self.range.detach()
        half = (high - low) / 2
        return [(self.range, torch.where(half > 0, half, half.mean()))]

    def side_information(self) -> LevelTable | Grouped:
        return self._table(self._learned_ranges()) if self.clipping == "learned" else self._frozen

    def _learned_ranges(self) -> np.ndarray:
        """(G, 2), kept in order: a step too far must not turn the levels around."""
        low, high = self.range.detach().cpu().numpy().astype(np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise TrialFailure("distillation diverged: the range of the levels is not finite")
        return np.stack([low, np.maximum(high, low + self._narrowest)], 1)

    def _table(self, ranges: np.ndarray) -> LevelTable | Grouped:
        symmetric = self.clipping == "symmetric"
        if self.groups.count > 1:
            return uniform_levels.grouped_table(self._shape, self.groups.kind, ranges, self.levels, symmetric)
        low, high = ranges[0].tolist()
        if self._shape is not None:
            return uniform_levels.companded_table(self._shape, low, high, symmetric)
        if symmetric:
            return uniform_levels.symmetric_table(high, self.levels)
        return uniform_levels.uniform_table(low, high, self.levels)

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hard = self._surrogate == "ste" or (self._bounded and not surrogates.noisy_step(self.generator))
        learned = self.clipping == "learned"
        stored = self.quantized(x, labels) if hard or learned else x
        out = stored + (x - x.detach()) if hard else self._relaxed(x, labels)
        return out + self._range_gradient(x.detach(), stored, labels) if learned else out

    def _relaxed(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        units = IndexUnits(self.side_information(), self.groups, labels)
        inside, outside = surrogates.clamped(units.of(x), self.levels)
        if self._surrogate == "soft":
            relaxed = surrogates.soft_round(inside, surrogates.annealed(self.progress, self.last_sharpness))
        elif self._surrogate == "fsq":
            relaxed = surrogates.sign_noise(inside, self.generator)
        else:
            relaxed = surrogates.uniform_noise(inside, self.generator)
        return units.values(relaxed + outside).to(x.dtype)

    def _range_gradient(self, x: torch.Tensor, stored: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Zero in value; the gradient of the `stored` values of x to both ends, x held fixed."""
        group = self.groups.of(labels)
        with torch.no_grad():
            low, high = self.range[0][group], self.range[1][group]
            width = (high - low).clamp(min=float(self._narrowest.min()))
            error = (stored - x) / width
            below, above = (x < low).to(x), (x > high).to(x)
            to_low = torch.where(below + above > 0, below, -error)
            to_high = torch.where(below + above > 0, above, error)
        moved = self.range - self.range.detach()
        return to_low * moved[0][group] + to_high * moved[1][group]
