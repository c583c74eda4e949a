"""The transform contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from budgetopt.packing.inverse import InverseTransform


class Transform(ABC):
    """Raw units ↔ coded domain. `forward(inverse(z)) = z` within `tolerance`, relative to the spread of z."""

    tolerance: ClassVar[float]

    @abstractmethod
    def fit(self, x: torch.Tensor) -> None:
        """Set parameters, rounded to the precision of the file, from the initial set x: (n, c, h, w) or (n, f)."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw → coded."""

    @abstractmethod
    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Coded → raw, differentiable; equals the file's integer arithmetic on quantized z within
        one float32 rounding (what is reported is always decoded from the file)."""

    @abstractmethod
    def side_information(self) -> InverseTransform:
        """What the file stores."""
