"""ResNet18 (He et al. 2016) for small images: a 3×3 stem of stride 1 without pooling, torchvision's blocks."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from budgetopt.networks.base import NORM, Network, norm_layer, scaled
from budgetopt.options import Options, Schema

LEAST_SIDE = 2  # smaller maps are not halved


class ResNet18(Network):
    """x: (n, c, h, w) → logits (n, classes)."""

    axes = (3,)
    options: ClassVar[Schema] = {"norm": NORM}

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        from torchvision.models.resnet import BasicBlock  # takes a second, which other networks need not wait

        super().__init__(shape, classes, width, chosen)
        sides, channels = list(shape[1:]), scaled(width, 64)[0]

        def norm(channels: int) -> nn.Module:
            return norm_layer(str(self.chosen["norm"]), channels, sides)

        layers = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), norm(channels), nn.ReLU()]
        for index, after in enumerate(scaled(width, 64, 128, 256, 512)):
            stride = 2 if index > 0 and min(sides) > LEAST_SIDE else 1
            sides = [-(-side // stride) for side in sides]
            for step in (stride, 1):
                other = step > 1 or channels != after
                shortcut = nn.Sequential(nn.Conv2d(channels, after, 1, step, bias=False), norm(after))
                layers.append(BasicBlock(channels, after, step, shortcut if other else None, norm_layer=norm))
                channels = after
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, classes)
