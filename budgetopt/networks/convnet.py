"""ConvNet-D of the condensation literature: D × (3×3 conv, instance norm, ReLU, 2×2 average pooling)."""

from __future__ import annotations

import math

from torch import nn

from budgetopt.networks.base import Network


def depth_for(resolution: int) -> int:
    """D = max(2, ⌈log2 resolution⌉ − 2): 2 for 8×8, 3 for 28×28 and 32×32, 5 for 128×128."""
    return max(2, math.ceil(math.log2(resolution)) - 2)


class ConvNet(Network):
    """x: (n, c, h, w) → logits (n, classes)."""

    axes = (3,)

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__(shape, classes, width)
        channels, height, width_px = shape
        layers: list[nn.Module] = []
        for _ in range(depth_for(max(height, width_px))):
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),  # one group per channel = instance norm with affine parameters
                nn.ReLU(),
            ]
            if min(height, width_px) > 1:
                layers.append(nn.AvgPool2d(2))
                height, width_px = height // 2, width_px // 2
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * height * width_px, classes)
