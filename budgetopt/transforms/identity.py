"""The coded domain is the raw domain."""

from __future__ import annotations

import torch

from budgetopt.packing import inverse as side
from budgetopt.transforms.base import Transform


class Identity(Transform):
    tolerance = 0.0

    def fit(self, x: torch.Tensor) -> None:
        self._shape = tuple(x.shape[1:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, *self._shape)

    def side_information(self) -> side.InverseTransform:
        return side.Identity()
