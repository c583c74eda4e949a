"""Frequency domain: orthonormal DCT-II, keeping the bands that carry most variance (FReD, NeurIPS 2023)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch

from budgetopt.errors import InputError
from budgetopt.options import Number, OneOf, Schema
from budgetopt.packing.integer_cosine import COSINE_BITS, MOST_SIDE, cosine_table
from budgetopt.packing.inverse_dct import LIMITS, MOST_BANDS, MOST_CHANNELS, Cosine, bands_of, grid_of, sides_of
from budgetopt.packing.kept_positions import low_to_high
from budgetopt.packing.layout import channels_of
from budgetopt.transforms.base import Transform
from budgetopt.transforms.centring import as_tensor, stored_means


class DCT(Transform):
    """z = C_h·(x − mean_c)·C_wᵀ of whole samples or of blocks of 8 × 8; of the bands (c, u, v) the share `keep` that
    varies most over the initial set. Coded from low to high frequency, a channel for each band. A feature vector is
    one row. `mean_c` is stored in 8 bits; edge blocks are filled by reflection and cropped on decoding."""

    tolerance = 1e-4
    options: ClassVar[Schema] = {"keep": Number(1.0, 0.001, 1.0), "block": OneOf(("whole", "8x8"))}

    @classmethod
    def check_shape(cls, shape: tuple[int, ...]) -> None:
        if len(shape) == 4:
            raise InputError(f"dct takes pictures or feature vectors, got samples of shape {shape}")
        # the same for blocks, which could take longer sides: whether samples fit does not depend on the options
        if max(sides_of(shape)) > MOST_SIDE or channels_of(shape) > MOST_CHANNELS or math.prod(shape) > MOST_BANDS:
            raise InputError(f"{LIMITS}, got samples of shape {shape}")

    def fit(self, x: torch.Tensor) -> None:
        self._shape = tuple(x.shape[1:])
        blocks = self.chosen["block"] == "8x8"
        self._bands = bands_of(self._shape, blocks)
        self._grid = grid_of(self._shape, self._bands)
        offsets = stored_means(x)
        self._mean = as_tensor(offsets, x)
        columns, rows = (
            torch.from_numpy(cosine_table(side).astype(np.float64) * 2.0**-COSINE_BITS).to(x.device)
            for side in (self._bands[2], self._bands[1])
        )
        self._rows, self._columns = rows.float(), columns.float()
        # the inverse of the rounded table, so that nothing drifts when values go back and forth
        self._from_rows, self._from_columns = torch.linalg.inv(rows.T).float(), torch.linalg.inv(columns).float()
        order = torch.from_numpy(low_to_high(self._bands).copy()).to(x.device)
        count = max(1, round(float(self.chosen["keep"]) * len(order)))
        kept = b""
        if count < len(order):
            variance = self._spectrum(x).var(dim=(0, 2), correction=0)
            mask = torch.zeros(len(order), dtype=torch.uint8, device=x.device)
            # ties go to the lower frequency
            mask[order[torch.sort(variance[order], descending=True, stable=True).indices[:count]]] = 1
            kept, order = mask.cpu().numpy().tobytes(), order[mask[order] > 0]
        self._side = Cosine(blocks, self._bands, kept, offsets)
        self._places = order
        bands = self._bands[0] * self._bands[1] * self._bands[2]
        self._source = torch.full((bands,), len(order), device=x.device)  # the last one is a zero
        self._source[order] = torch.arange(len(order), device=x.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._spectrum(x)[:, self._places].flatten(1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        (c, a, b), (down, across) = self._bands, self._grid
        z = z.reshape(len(z), len(self._places), down * across)
        full = torch.cat([z, z.new_zeros(len(z), 1, down * across)], 1)[:, self._source]
        blocks = full.reshape(-1, c, a, b, down, across).permute(0, 1, 4, 5, 2, 3)
        blocks = self._rows.T @ blocks @ self._columns
        picture = blocks.transpose(3, 4).reshape(-1, c, down * a, across * b)
        height, width = sides_of(self._shape)
        return picture[:, :, :height, :width].reshape(-1, *self._shape) + self._mean

    def side_information(self) -> Cosine:
        return self._side

    def _spectrum(self, x: torch.Tensor) -> torch.Tensor:
        """→ (n, c·a·b, blocks), all bands."""
        (c, a, b), (down, across) = self._bands, self._grid
        picture = (x - self._mean).reshape(len(x), c, *sides_of(self._shape))
        picture = picture[:, :, _mirrored(picture.shape[2], down * a)][..., _mirrored(picture.shape[3], across * b)]
        blocks = picture.reshape(-1, c, down, a, across, b).transpose(3, 4)
        blocks = self._from_rows @ blocks @ self._from_columns
        return blocks.permute(0, 1, 4, 5, 2, 3).reshape(len(x), c * a * b, down * across)


def _mirrored(side: int, padded: int) -> torch.Tensor:
    """Indices that continue 0 … side − 1 by reflection at the last pixel's outer edge."""
    index = torch.arange(padded)
    return torch.where(index < side, index, 2 * side - 1 - index)
