"""ConvNet-D of the condensation literature: D × (3×3 conv, norm, ReLU, 2×2 average pooling); also in 1-D and 3-D."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from budgetopt.networks.base import NORM, Network, Shrinking, norm_layer
from budgetopt.options import Number, Options, Schema

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def depth_for(resolution: int) -> int:
    """D = max(2, ⌈log2 resolution⌉ − 2): 2 for 8×8, 3 for 28×28 and 32×32, 5 for 128×128."""
    return max(2, math.ceil(math.log2(resolution)) - 2)


class ConvNet(Network):
    """x: (n, c, h, w) → logits (n, classes). depth 0: what `depth_for` says."""

    axes: ClassVar[tuple[int, ...]] = (3,)
    options: ClassVar[Schema] = {"depth": Number(0, 0, 5, whole=True), "norm": NORM}

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        channels, *sides = shape
        maps, axes = Shrinking(sides), len(sides)
        layers: list[nn.Module] = []
        for _ in range(int(self.chosen["depth"]) or depth_for(max(sides))):
            layers += [
                CONVOLUTIONS[axes - 1](channels, width, kernel_size=3, padding=1),
                norm_layer(str(self.chosen["norm"]), width, maps.sides),
                nn.ReLU(),
                *maps.pool(POOLINGS[axes - 1]),
            ]
            channels = width
        self.features: nn.Sequential = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * math.prod(maps.sides), classes)


class ConvNet1d(ConvNet):
    """x: (n, c, t), c channels of a signal, or (n, t), features whose neighbours belong together, such as the beams of
    a sweep → logits (n, classes)."""

    axes = (1, 2)

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape if len(shape) == 2 else (1, *shape), classes, width, chosen)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2:  # one channel, or as many as there are networks side by side
            x = x.unflatten(1, (self.features.get_submodule("0").in_channels, -1))
        return super().embed(x)


class ConvNet3d(ConvNet):
    """x: (n, c, t, h, w), pictures over time or slices of a volume → logits (n, classes)."""

    axes = (4,)
