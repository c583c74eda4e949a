"""Per-channel standardisation by the statistics of the initial set, frozen (QuADD appendix B, "Normalization")."""

from __future__ import annotations

import torch

from budgetopt.packing import inverse as side
from budgetopt.packing.fields import to_fixed
from budgetopt.transforms.base import Transform

SCALE_BITS, OFFSET_BITS = 8, 12


class Standardize(Transform):
    """z = (x − mean_c) / std_c. Feature vectors have one channel. A constant channel has std 1."""

    tolerance = 1e-4

    def fit(self, x: torch.Tensor) -> None:
        self._shape = tuple(x.shape[1:])
        channels = x if x.dim() > 2 else x[:, None]
        axes = [0, *range(2, channels.dim())]
        mean = channels.double().mean(dim=axes)
        std = channels.double().std(dim=axes, correction=0)
        std = torch.where(std > 0, std, 1.0)
        scale, scale_exponent = to_fixed(std.cpu().numpy(), SCALE_BITS)
        scale = [max(1, s) for s in scale]  # a channel much flatter than the widest one
        # a mean far below one step of the levels needs no precision of its own (and no exponent far from theirs)
        finest = scale_exponent + OFFSET_BITS
        mean = torch.round(mean * 2.0**finest) * 2.0**-finest
        offset, offset_exponent = to_fixed(mean.cpu().numpy(), OFFSET_BITS)
        self._side = side.Standardize(tuple(scale), scale_exponent, tuple(offset), offset_exponent)
        shape = (-1,) + (1,) * max(0, x.dim() - 2)
        self._std = (torch.tensor(scale) * 2.0**-scale_exponent).float().reshape(shape).to(x.device)
        self._mean = (torch.tensor(offset) * 2.0**-offset_exponent).float().reshape(shape).to(x.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x - self._mean) / self._std).flatten(1)

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        return z.reshape(-1, *self._shape) * self._std + self._mean

    def side_information(self) -> side.InverseTransform:
        return self._side
