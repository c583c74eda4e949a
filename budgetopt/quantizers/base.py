"""The quantizer contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import InputError
from budgetopt.options import Options, Schema, complete
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.layout import Domain, Layout
from budgetopt.packing.levels import LevelTable
from budgetopt.quantizers.granularity import GRANULARITY, Groups


class Quantizer(nn.Module, ABC):
    """Coded values x (n, K) ↔ symbols and side information, with a differentiable surrogate for training.

    In evaluation mode `forward(x, labels)` equals, bit for bit, what `packing` decodes from `encode(x, labels)`. In
    training mode parameters are already rounded to the precision of the file. `labels`: (n,) class of each row of x, in
    class order; rows may be left out between calls (sets are cut to fit a budget), but K and the layout stay.

    `generator` draws the noise of those surrogates that have any; `progress` (0 … 1, the share of training that is
    done) anneals those that do. `budget`: bytes of the whole file, for those that spend what is left of it.
    """

    clippings: ClassVar[tuple[str, ...]] = ("none",)
    options: ClassVar[Schema] = {}
    called: ClassVar[str | None] = None  # by users, where that is not the name of the class
    has_rate: ClassVar[bool] = True  # whether `representation.rate` can estimate its coded size
    fixed_levels: ClassVar[int | None] = None  # of families that do not let one choose

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__()
        self.check_levels(levels)
        self.check_clipping(clipping)
        self.levels, self.clipping = levels, clipping
        self.chosen = complete(self.options, chosen, self.called or type(self).__name__.lower())
        self.generator = torch.Generator().manual_seed(0)
        self.progress = 0.0
        self.budget: int | None = None

    @classmethod
    def check_levels(cls, levels: int) -> None:
        """Raise `InputError` for a number of levels that this family does not offer."""
        if cls.fixed_levels is not None and levels != cls.fixed_levels:
            raise InputError(
                f"{cls.called or cls.__name__.lower()} has {cls.fixed_levels} levels and no other, got {levels}"
            )
        if not 2 <= levels <= 256:
            raise InputError(f"levels must be in 2..256, got {levels}")

    @classmethod
    def check_clipping(cls, clipping: str) -> None:
        """Raise `InputError` for a clipping that this family does not offer."""
        if clipping not in cls.clippings:
            raise InputError(f"clipping must be one of {', '.join(cls.clippings)}, got {clipping!r}")

    @classmethod
    def check_transform(cls, transform: str, shape: tuple[int, ...]) -> None:
        """Raise `InputError` where this family cannot take what `transform` makes of samples of `shape`."""

    @abstractmethod
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        """Set initial parameters from coded values x (n, K)."""

    def free(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Unbounded values behind the coded values x, as `coded` reads them; x itself for most."""
        return x

    def coded(self, free: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Coded values of `free` ones, differentiable; same shape."""
        return free

    @abstractmethod
    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The differentiable stand-in used in training; same shape as x."""

    @abstractmethod
    def encode(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, Dequantizer]:
        """→ ((n, S) symbols, side information from the current parameters), no gradient."""

    def sizes(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Every parameter, and what a step of it is relative to: one size, or one for each group, as it broadcasts."""
        return [(p, p.detach().abs().mean()) for p in self.parameters()]

    def penalty(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the family adds to the loss of any method, zero for most."""
        return x.new_zeros(())

    @torch.no_grad()
    def quantized(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What a receiver decodes, (n, K) float32, without gradient."""
        symbols, side = self.encode(x.detach(), labels)
        domain = Domain(self._layout, tuple(np.bincount(labels.cpu().numpy()).tolist()))
        ints = side.ints(symbols, np.arange(len(symbols)), domain)
        return torch.from_numpy(ints.astype(np.float32) * np.float32(2.0**-side.exponent)).to(x.device)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.surrogate(x, labels) if self.training else self.quantized(x, labels)

    _layout: Layout  # set by fit


class ScalarQuantizer(Quantizer):
    """Levels of single values: a symbol is the index of the nearest level, of one table or of the value's group."""

    options: ClassVar[Schema] = {"granularity": GRANULARITY}

    def group(self, labels: torch.Tensor, layout: Layout) -> None:
        """The first thing that `fit` does: lay out the groups of the chosen granularity."""
        self._layout = layout
        self.groups = Groups(str(self.chosen["granularity"]), layout, labels)

    @abstractmethod
    def side_information(self) -> LevelTable | Grouped:
        """The levels that the file stores, from the current parameters."""

    def symbols(self, x: torch.Tensor, labels: torch.Tensor, side: LevelTable | Grouped) -> torch.Tensor:
        """Index of the nearest level, uint8, same shape as x."""
        if isinstance(side, LevelTable):
            levels = torch.from_numpy(side.values()).to(x.device)
            return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
        # all groups at once: in the units of the common table, in float64 since groups may lie far from zero
        start, factor, shape = (torch.from_numpy(part).to(x.device) for part in side.shifts)
        group = self.groups.of(labels)
        units = (x.double() * 2.0**side.exponent - start.double()[group]) / factor.double()[group]
        return torch.bucketize(units, (shape[1:] + shape[:-1]).double() / 2).to(torch.uint8)

    def decoded(self, symbols: torch.Tensor, labels: torch.Tensor, side: LevelTable | Grouped) -> torch.Tensor:
        """Levels of the symbols as the file's receiver has them, float32, without a way through numpy."""
        if isinstance(side, LevelTable):
            return torch.from_numpy(side.values()).to(symbols.device)[symbols.long()]
        levels = torch.from_numpy(side.tables().astype(np.float32) * np.float32(2.0**-side.exponent))
        entry = self.groups.of(labels) * side.levels + symbols.long()
        return levels.to(symbols.device).flatten()[entry]

    @torch.no_grad()
    def encode(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, LevelTable | Grouped]:
        side = self.side_information()
        return self.symbols(x, labels, side).cpu().numpy(), side

    @torch.no_grad()
    def quantized(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        side = self.side_information()
        return self.decoded(self.symbols(x.detach(), labels, side), labels, side)
