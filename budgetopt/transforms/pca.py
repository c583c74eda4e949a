"""A basis learned from the initial set and stored in the file: principal components."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch

from budgetopt.errors import InputError
from budgetopt.options import Number, Schema
from budgetopt.packing.fields import to_fixed
from budgetopt.packing.inverse_basis import MOST_ENTRIES, Basis, largest_entry
from budgetopt.transforms.base import Transform
from budgetopt.transforms.centring import as_tensor, stored_means

SCALE_BITS = 7  # one byte for each component: their norms are 1 within 1 %
MOST_SAMPLES = 2048  # that the directions are computed from: bounds the eigenvalue problem
_INDEPENDENT = 1e-2  # least share of a rounded vector that its predecessors do not explain


class PCA(Transform):
    """x ≈ z·B + mean_c. The rows of B are the directions of most energy about the channels' means, with entries of
    `bits` bits and norms near 1; z is the least-squares solution for the *rounded* basis. `components` counts them, or
    is a share of a sample's values where below 1; never more than the initial set has directions."""

    tolerance = 1e-3
    options: ClassVar[Schema] = {"components": Number(32, 0.001, 4096), "bits": Number(5, 3, 8, whole=True)}

    @classmethod
    def check_shape(cls, shape: tuple[int, ...]) -> None:
        if math.prod(shape) > MOST_ENTRIES:
            raise InputError(f"pca takes samples of at most {MOST_ENTRIES:,} values, got {math.prod(shape):,}")

    def fit(self, x: torch.Tensor) -> None:
        self._shape = tuple(x.shape[1:])
        offsets = stored_means(x)
        self._mean = as_tensor(offsets, x)
        flat = (x - self._mean).flatten(1).double()
        wanted = float(self.chosen["components"])
        values = flat.shape[1]
        count = max(1, round(wanted * values if wanted < 1 else wanted))
        directions = principal(flat, min(count, values, MOST_ENTRIES // values))
        top, bits = directions.abs().amax(1, keepdim=True), int(self.chosen["bits"])
        entries = _independent(torch.round(directions / top * largest_entry(bits)))
        scale, exponent = to_fixed((1 / entries.norm(dim=1)).cpu().numpy(), SCALE_BITS)
        scale = [max(1, s) for s in scale]
        mantissas = (entries.cpu().numpy() + largest_entry(bits)).astype(np.uint8).tobytes()
        self._side = Basis(bits, self._shape, mantissas, tuple(scale), exponent, offsets)
        basis = torch.from_numpy(self._side.matrix.astype(np.float64) * 2.0**-exponent).to(x.device)
        self._basis, self._solve = basis.float(), torch.linalg.pinv(basis).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self._mean).flatten(1) @ self._solve

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self._basis).reshape(-1, *self._shape) + self._mean

    def side_information(self) -> Basis:
        return self._side


def principal(flat: torch.Tensor, count: int, most: int = MOST_SAMPLES) -> torch.Tensor:
    """flat: (n, K) → at most `count` orthonormal rows of most energy, the largest entry of each positive."""
    if min(flat.shape) > most:
        flat = flat[torch.linspace(0, len(flat) - 1, most, device=flat.device).long()]
    small = flat @ flat.T if len(flat) < flat.shape[1] else flat.T @ flat
    energy, vectors = torch.linalg.eigh(small)  # ascending
    energy, vectors = energy.flip(0)[:count], vectors.flip(1)[:, :count]
    vectors = vectors[:, energy > 1e-10 * energy[0].clamp(min=1e-300)]
    if vectors.shape[1] == 0:  # constant samples: any direction will do
        return torch.eye(1, flat.shape[1], dtype=flat.dtype, device=flat.device)
    rows = (flat.T @ vectors if len(flat) < flat.shape[1] else vectors).T
    rows = rows / rows.norm(dim=1, keepdim=True)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.sign(largest)


def _independent(entries: torch.Tensor) -> torch.Tensor:
    """Rows of rounded entries without those that the rows before them explain."""
    diagonal = torch.linalg.qr(entries.T).R.diagonal().abs()
    found = diagonal > _INDEPENDENT * entries.norm(dim=1)[: len(diagonal)]
    return entries[: len(diagonal)][found]
