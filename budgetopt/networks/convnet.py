"""ConvNet-D of the condensation literature: D × (3×3 conv, instance norm, ReLU, 2×2 average pooling)."""

from __future__ import annotations

import math

import torch
from torch import nn


def depth_for(resolution: int) -> int:
    """D = max(2, ⌈log2 resolution⌉ − 2): 2 for 8×8, 3 for 28×28 and 32×32, 5 for 128×128."""
    return max(2, math.ceil(math.log2(resolution)) - 2)


class ConvNet(nn.Module):
    """x: (n, c, h, w) float32, standardised → logits (n, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
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

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(x))


def convnet(shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    return ConvNet(shape, classes, width)
