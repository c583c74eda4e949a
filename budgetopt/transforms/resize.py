"""Fewer pixels: stored small, up-sampled on decoding (as in IDC, ICML 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch

from budgetopt.errors import InputError
from budgetopt.options import Number, OneOf, Schema
from budgetopt.packing.inverse_resize import Resize as StoredResize
from budgetopt.transforms.base import Transform
from budgetopt.transforms.resampling import down, up


class Resize(Transform):
    """Pictures of `scale` times the height and width. `down`: `fit` stores the pixels whose up-sampling is nearest to
    the picture (least squares), `area` stores the mean of what each pixel covers (then forward(inverse(z)) is a
    smoothed z)."""

    tolerance = 1e-4
    options: ClassVar[Schema] = {"scale": Number(0.5, 0.25, 1.0), "down": OneOf(("fit", "area"))}

    @classmethod
    def check_shape(cls, shape: tuple[int, ...]) -> None:
        if len(shape) != 3:
            raise InputError(f"resize takes pictures (channels, height, width), got samples of shape {shape}")

    def fit(self, x: torch.Tensor) -> None:
        self.check_shape(tuple(x.shape[1:]))
        self._shape = tuple(x.shape[1:])
        _, height, width = self._shape
        small = [max(1, round(side * float(self.chosen["scale"]))) for side in (height, width)]
        self._side = StoredResize(*small)
        way = str(self.chosen["down"])
        self._down = [down(side, s, way).float().to(x.device) for side, s in zip((height, width), small, strict=True)]
        self._up = [up(s, side).float().to(x.device) for side, s in zip((height, width), small, strict=True)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self._down[0] @ x @ self._down[1].T).flatten(1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        small = z.reshape(-1, self._shape[0], self._side.height, self._side.width)
        return self._up[0] @ small @ self._up[1].T

    def side_information(self) -> StoredResize:
        return self._side
