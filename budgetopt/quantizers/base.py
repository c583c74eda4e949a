"""The quantizer contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import InputError
from budgetopt.packing.levels import LevelTable


class Quantizer(nn.Module, ABC):
    """Coded values ↔ integer symbols, with a differentiable surrogate for training.

    In evaluation mode `forward(x)` equals, bit for bit, what `packing` decodes from `encode(x)`: both look the symbol
    up in `side_information()`. In training mode parameters are already rounded to the precision of the file.
    """

    clippings: ClassVar[tuple[str, ...]]

    def __init__(self, levels: int, clipping: str) -> None:
        super().__init__()
        self.check_levels(levels)
        self.check_clipping(clipping)
        self.levels, self.clipping = levels, clipping

    @classmethod
    def check_levels(cls, levels: int) -> None:
        """Raise `InputError` for a number of levels that this family does not offer."""
        if not 2 <= levels <= 256:
            raise InputError(f"levels must be in 2..256, got {levels}")

    @classmethod
    def check_clipping(cls, clipping: str) -> None:
        """Raise `InputError` for a clipping that this family does not offer."""
        if clipping not in cls.clippings:
            raise InputError(f"clipping must be one of {', '.join(cls.clippings)}, got {clipping!r}")

    @abstractmethod
    def fit(self, x: torch.Tensor) -> None:
        """Set initial parameters from coded values x, any shape."""

    @abstractmethod
    def surrogate(self, x: torch.Tensor) -> torch.Tensor:
        """The differentiable stand-in used in training; same shape as x."""

    @abstractmethod
    def side_information(self) -> LevelTable:
        """The level table that the file stores, from the current parameters."""

    def symbols(self, x: torch.Tensor, table: LevelTable) -> torch.Tensor:
        """Index of the nearest level, uint8, same shape as x."""
        levels = torch.from_numpy(table.values()).to(x.device)
        return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, LevelTable]:
        table = self.side_information()
        return self.symbols(x, table), table

    def quantized(self, x: torch.Tensor) -> torch.Tensor:
        """Nearest levels of x, without gradient."""
        symbols, table = self.encode(x.detach())
        return torch.from_numpy(table.values()).to(x.device)[symbols.long()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.surrogate(x) if self.training else self.quantized(x)


def percentile_range(x: torch.Tensor, percent: float) -> tuple[float, float]:
    """(P_percent, P_(100−percent)) of all values of x; (min, max) for 0."""
    low, high = np.percentile(x.detach().cpu().numpy(), [percent, 100.0 - percent])
    return float(low), float(high)
