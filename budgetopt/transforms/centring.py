"""Per-channel means in the precision of the file: subtracted before a linear transform, so that its first value is
small."""

from __future__ import annotations

import math

import torch

from budgetopt.packing.fields import to_fixed
from budgetopt.packing.layout import channels_of
from budgetopt.packing.offsets import Offsets

MEAN_BITS = 8  # the values that follow take up what rounding leaves


def stored_means(x: torch.Tensor) -> Offsets:
    """x: (n, c, …) or (n, f), which has one channel → their rounded means."""
    channels = x.double().reshape(len(x), channels_of(tuple(x.shape[1:])), -1)
    mean = channels.mean(dim=(0, 2))
    spread = float(channels.std(dim=(0, 2), correction=0).max())
    if spread > 0:  # a mean far below one step of any levels needs no exponent far from theirs
        finest = MEAN_BITS - math.frexp(spread)[1]
        mean = torch.round(mean * 2.0**finest) * 2.0**-finest
    mantissas, exponent = to_fixed(mean.cpu().numpy(), MEAN_BITS)
    return Offsets(tuple(mantissas), exponent)


def as_tensor(offsets: Offsets, like: torch.Tensor) -> torch.Tensor:
    """Float32 on the device of `like` (n, c, …) or (n, f), in a shape that broadcasts against it."""
    values = torch.tensor(offsets.mantissas, dtype=torch.float64) * 2.0**-offsets.exponent
    return values.float().reshape((-1,) + (1,) * max(0, like.dim() - 2)).to(like.device)
