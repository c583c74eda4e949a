"""Resolution as matrices: the file's bilinear up-sampling, and two ways down."""

from __future__ import annotations

import numpy as np
import torch

from budgetopt.packing.bilinear import WEIGHT_BITS, taps


def up(small: int, large: int) -> torch.Tensor:
    """(large, small) float64: what `packing.bilinear` does along one axis."""
    first, second, weight = taps(small, large)
    matrix = np.zeros((large, small))
    rows = np.arange(large)
    np.add.at(matrix, (rows, first), (1 << WEIGHT_BITS) - weight)
    np.add.at(matrix, (rows, second), weight)
    return torch.from_numpy(matrix * 2.0**-WEIGHT_BITS)


def area(large: int, small: int) -> torch.Tensor:
    """(small, large) float64: mean over the part of the axis that a pixel covers."""
    edges = torch.arange(small + 1, dtype=torch.float64) * large / small
    pixels = torch.arange(large, dtype=torch.float64)
    return (torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)).clamp(min=0) * (
        small / large
    )


def down(large: int, small: int, way: str) -> torch.Tensor:
    """(small, large) float64: `area`, or `fit`, the least-squares inverse of `up`."""
    return area(large, small) if way == "area" else torch.linalg.pinv(up(small, large))
