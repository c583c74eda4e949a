"""Luma and chroma (BT.601, full range, as in JPEG), chroma at full or half resolution."""

from __future__ import annotations

from typing import ClassVar

import torch

from budgetopt.errors import InputError
from budgetopt.options import OneOf, Schema
from budgetopt.packing.inverse_ycbcr import MATRIX_BITS, TO_RGB, LumaChroma, half
from budgetopt.transforms.base import Transform
from budgetopt.transforms.resampling import down, up


class YCbCr(Transform):
    """(R, G, B) ↔ (Y, Cb, Cr), chroma centred at zero: works in any units. `chroma` 420 stores it at half the
    resolution, by least squares for the bilinear up-sampling of the decoder."""

    tolerance = 1e-4
    options: ClassVar[Schema] = {"chroma": OneOf((444, 420))}

    @classmethod
    def check_shape(cls, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[0] != 3:
            raise InputError(f"ycbcr takes pictures of 3 channels, got samples of shape {shape}")

    def fit(self, x: torch.Tensor) -> None:
        self.check_shape(tuple(x.shape[1:]))
        self._shape = tuple(x.shape[1:])
        self._side = LumaChroma(self.chosen["chroma"] == 420)
        matrix = torch.tensor(TO_RGB, dtype=torch.float64) * 2.0**-MATRIX_BITS
        self._to_rgb = matrix.float().to(x.device)
        self._from_rgb = torch.linalg.inv(matrix).float().to(x.device)
        sides = self._shape[1:]
        self._down = [down(side, half(side), "fit").float().to(x.device) for side in sides]
        self._up = [up(half(side), side).float().to(x.device) for side in sides]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        planes = torch.einsum("ij,njhw->nihw", self._from_rgb, x)
        if not self._side.subsampled:
            return planes.flatten(1)
        chroma = self._down[0] @ planes[:, 1:] @ self._down[1].T
        return torch.cat([planes[:, 0].flatten(1), chroma.flatten(1)], 1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        _, height, width = self._shape
        if self._side.subsampled:
            luma = z[:, : height * width].reshape(-1, 1, height, width)
            chroma = z[:, height * width :].reshape(-1, 2, half(height), half(width))
            planes = torch.cat([luma, self._up[0] @ chroma @ self._up[1].T], 1)
        else:
            planes = z.reshape(-1, 3, height, width)
        return torch.einsum("ij,njhw->nihw", self._to_rgb, planes)

    def side_information(self) -> LumaChroma:
        return self._side
