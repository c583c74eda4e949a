"""The transform contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from budgetopt.options import Options, Schema, complete
from budgetopt.packing.inverse import InverseTransform
from budgetopt.packing.layout import Layout


class Transform(ABC):
    """Raw units (n, c, h, w), (n, c, d, h, w) or (n, f) ↔ coded domain (n, K). `forward(inverse(z)) = z` within
    `tolerance`, relative to the spread of z, for z that `forward` can give."""

    tolerance: ClassVar[float]
    options: ClassVar[Schema] = {}

    def __init__(self, chosen: Options = ()) -> None:
        self.chosen = complete(self.options, chosen, type(self).__name__.lower())

    @classmethod  # noqa: B027 - most take everything
    def check_shape(cls, shape: tuple[int, ...]) -> None:
        """Raise `InputError` for samples that this transform cannot take."""

    @abstractmethod
    def fit(self, x: torch.Tensor) -> None:
        """Set parameters, rounded to the precision of the file, from the initial set x: (n, *shape)."""

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw → coded, (n, K)."""

    @abstractmethod
    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Coded → raw, differentiable; equals the file's integer arithmetic on quantized z within
        one float32 rounding (what is reported is always decoded from the file)."""

    @abstractmethod
    def side_information(self) -> InverseTransform:
        """What the file stores."""

    @property
    def layout(self) -> Layout:
        """Of the coded values; known once fitted."""
        return self.side_information().layout(self._shape)

    _shape: tuple[int, ...]  # of one sample; set by fit
