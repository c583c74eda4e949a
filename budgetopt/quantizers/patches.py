"""Patch-wise and group-aware quantization: PAQ and GAQ (PTQ for condensation, eq. 2–7)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from budgetopt.errors import InputError
from budgetopt.options import Number, OneOf, Options
from budgetopt.packing.fields import Writer
from budgetopt.packing.layout import Domain, Layout, values_of
from budgetopt.packing.patches import (
    FRACTION_BITS,
    MAX_GROUPS,
    PatchLevels,
    patch_layout,
    patch_of,
    starts_and_spans,
)
from budgetopt.quantizers.base import Quantizer
from budgetopt.quantizers.patch_groups import Groups, largest_groups
from budgetopt.quantizers.uniform_levels import uniform_table

PICTURES = ("identity", "standardize", "resize", "ycbcr")  # transforms whose coded values are pictures
EVERY_PATCH, MOST = 0, -1
LEAST_SQUARES_ROUNDS = 4
MEASURED = 1 << 19  # values that a candidate's size is measured on; larger sets are thinned out


class Patches(Quantizer):
    """α = (max − min)/(L − 1), x^q = clip(⌊(x − min)/α⌉, 0, L − 1) for each patch, or each group of patches.

    groups: G of eq. 6; 0 gives every patch its own levels (PAQ), −1 is the largest G that fits `budget`. After
    clustering, the levels of a group are calibrated on all of its values (eq. 7): `minmax`, or `mse`, least squares
    of the values on their symbols. grid: `minimum` puts the first level at the minimum; `zero-point` moves the levels
    to whole multiples of α (eq. 3), by up to half a step. precision: bits of the two numbers that a patch or group
    stores, on a grid over the range of the initial set. Straight-through gradient; clusters are fitted once, levels
    follow the current values.
    """

    clippings = ("minmax", "mse")
    options: ClassVar = {
        "side": Number(5, 1, 64, whole=True),
        "groups": Number(64, -1, MAX_GROUPS, whole=True),
        "channels": OneOf(("joint", "each")),
        "cluster": OneOf(("range", "scaled")),
        "grid": OneOf(("minimum", "zero-point")),
        "precision": Number(8, 2, 8, whole=True),
    }
    reserved: int  # bytes of the file that are not this quantizer's
    groups: int  # fitted: the number that was asked for or found

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        self.side, self.groups = int(self.chosen["side"]), int(self.chosen["groups"])
        self.joint = self.chosen["channels"] == "joint"
        self.zero_point = self.chosen["grid"] == "zero-point"
        self.reserved = 64

    @classmethod
    def check_transform(cls, transform: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or transform not in PICTURES:
            raise InputError(f"patches needs pictures, not {transform} of samples of shape {shape}")

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self._layout = layout
        self._grid = uniform_table(float(x.min()), float(x.max()), 2 ** int(self.chosen["precision"]))
        self._patch = torch.from_numpy(patch_of(layout, self.side, self.joint)).long().to(x.device)
        self._patches = values_of(patch_layout(layout, self.side, self.joint))
        self._seed = int(torch.randint(2**31, (), generator=self.generator))
        self.groups = int(self.chosen["groups"])
        if self.groups == MOST:
            self.groups = self._largest(x, labels)
        self._groups = self._clustered(x, self.groups)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, PatchLevels]:
        return self._encode(x, self._groups)

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.quantized(x, labels) + (x - x.detach())  # the second term is zero in value

    def _clustered(self, x: torch.Tensor, count: int) -> Groups | None:
        if count == EVERY_PATCH:
            return None
        low, high = self._calibrated(x, self._each_patch(len(x)), len(x) * self._patches)
        flattest = float(self._grid.step) * 2.0**-self._grid.exponent
        return Groups(low, high, count, str(self.chosen["cluster"]), flattest, self._seed)

    def _calibrated(self, x: torch.Tensor, member: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(count,) first and last level of each group, from the values x (n, K) that are `member` (n, K) of it."""
        low, high = _ranges(x, member, count)
        return _least_squares(x, member, low, high, self.levels) if self.clipping == "mse" else (low, high)

    def _each_patch(self, n: int) -> torch.Tensor:
        """(n, K) int64: the number of each value's patch among all n·P."""
        return torch.arange(n, device=self._patch.device)[:, None] * self._patches + self._patch

    def _encode(self, x: torch.Tensor, groups: Groups | None) -> tuple[np.ndarray, PatchLevels]:
        n, member = len(x), self._each_patch(len(x))
        count, group = n * self._patches, None
        low, high = self._calibrated(x, member, count)
        if groups is not None:
            used, of_patch = groups.of(low, high).unique(return_inverse=True)  # sets are cut: some may be empty
            member, count = of_patch[member], len(used)
            group = of_patch.reshape(n, self._patches).to(torch.uint8).cpu().numpy()
            low, high = self._calibrated(x, member, count)
        low_index, high_index = self._on_grid(low), self._on_grid(high)
        first, span = starts_and_spans(self._grid, low_index, high_index, self.levels, self.zero_point)
        unit = 2.0 ** -(self._grid.exponent + FRACTION_BITS)
        start, alpha = (torch.from_numpy(v * unit).to(x.device) for v in (first, span / (self.levels - 1)))
        alpha = torch.where(alpha > 0, alpha, 1.0)
        symbols = torch.round((x.double() - start[member]) / alpha[member]).clamp(0, self.levels - 1)
        shape = (n, self._patches) if group is None else (count,)
        bounds = low_index.reshape(shape), high_index.reshape(shape)
        side = PatchLevels(self.levels, self.side, self.joint, self.zero_point, self._grid, *bounds, group)
        return symbols.to(torch.uint8).cpu().numpy(), side

    def _on_grid(self, values: torch.Tensor) -> np.ndarray:
        """Nearest indices into the grid, uint8."""
        scaled = (values.double() * 2.0**self._grid.exponent - self._grid.low) / self._grid.step
        return torch.round(scaled).clamp(0, self._grid.count - 1).to(torch.uint8).cpu().numpy()

    def _largest(self, x: torch.Tensor, labels: torch.Tensor) -> int:
        if self.budget is None:
            return MAX_GROUPS
        every = max(1, -(-x.numel() // MEASURED))
        part, part_labels = x[::every], labels[::every]
        domain = Domain(self._layout, tuple(np.bincount(part_labels.cpu().numpy()).tolist()))
        share = len(x) / len(part)

        def parameters(count: int) -> float:
            return count * 2 * int(self.chosen["precision"]) / 8

        def size(count: int) -> int:
            symbols, side = self._encode(part, self._clustered(x, count))
            out = Writer()
            side.write(out, domain)
            grown = len(out.data) + len(side.payload(symbols, domain)[1]) - parameters(count)
            return round(grown * share + parameters(count)) + self.reserved

        return largest_groups(size, parameters, self.budget)


def _ranges(x: torch.Tensor, member: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count,) smallest and largest of the values x (n, K) that are `member` (n, K) of each group."""
    empty, flat = x.new_zeros(count), member.reshape(-1)
    low = empty.scatter_reduce(0, flat, x.reshape(-1), "amin", include_self=False)
    return low, empty.scatter_reduce(0, flat, x.reshape(-1), "amax", include_self=False)


def _least_squares(
    x: torch.Tensor, member: torch.Tensor, low: torch.Tensor, high: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last level of each group that have the least squared error, by turns of quantizing and regressing
    the values on their symbols (Lloyd's algorithm for equally spaced levels)."""
    flat, values = member.reshape(-1), x.reshape(-1).double()
    low, high = low.double(), high.double()
    ones = torch.zeros_like(low).index_add_(0, flat, torch.ones_like(values))

    def mean(v: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(low).index_add_(0, flat, v) / ones

    centre = mean(values)
    for _ in range(LEAST_SQUARES_ROUNDS):
        alpha = (high - low) / (levels - 1)
        safe = torch.where(alpha > 0, alpha, 1.0)
        q = torch.round((values - low[flat]) / safe[flat]).clamp(0, levels - 1)
        q_mean = mean(q)
        deviation = q - q_mean[flat]
        spread = mean(deviation * deviation)
        slope = mean(deviation * (values - centre[flat])) / torch.where(spread > 0, spread, 1.0)
        low = centre - slope * q_mean
        high = low + slope * (levels - 1)
    return low, high
