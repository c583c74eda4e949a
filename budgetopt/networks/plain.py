"""LeNet, AlexNet and VGG11 in the forms that the condensation literature trains on small images."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from budgetopt.networks.base import NORM, Network, Shrinking, norm_layer, scaled
from budgetopt.options import OneOf, Options, Schema


class LeNet(Network):
    """LeCun et al. 1998 with ReLU and maximum pooling; one size. x: (n, c, h, w)."""

    axes = (3,)

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        maps = Shrinking(shape[1:])
        layers: list[nn.Module] = []
        for before, after, padding in ((shape[0], 6, 2), (6, 16, 0)):
            layers += [nn.Conv2d(before, after, 5, padding=maps.convolved(5, padding)), nn.ReLU()]
            layers += maps.pool(nn.MaxPool2d)
        layers += [nn.Flatten(), nn.Linear(16 * math.prod(maps.sides), 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(84, classes)


class AlexNet(Network):
    """Krizhevsky et al. 2012, five convolutions of stride 1 and one linear layer. x: (n, c, h, w)."""

    axes = (3,)
    options: ClassVar[Schema] = {"norm": OneOf(("none", "instance", "batch"))}

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        maps, channels = Shrinking(shape[1:]), shape[0]
        layers: list[nn.Module] = []
        pooled = (True, True, False, False, True)
        for index, after in enumerate(scaled(width, 128, 192, 256, 192, 192)):
            kernel = 5 if index < 2 else 3
            layers += [
                nn.Conv2d(channels, after, kernel, padding=maps.convolved(kernel, kernel // 2)),
                norm_layer(str(self.chosen["norm"]), after, maps.sides),
                nn.ReLU(),
                *(maps.pool(nn.MaxPool2d) if pooled[index] else ()),
            ]
            channels = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * math.prod(maps.sides), classes)


class VGG11(Network):
    """Simonyan and Zisserman 2015, configuration A with one linear layer. x: (n, c, h, w)."""

    axes = (3,)
    options: ClassVar[Schema] = {"norm": NORM}

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        maps, channels = Shrinking(shape[1:]), shape[0]
        layers: list[nn.Module] = []
        pooled = (True, True, False, True, False, True, False, True)
        for after, pool in zip(scaled(width, 64, 128, 256, 256, 512, 512, 512, 512), pooled, strict=True):
            layers += [
                nn.Conv2d(channels, after, 3, padding=1),
                norm_layer(str(self.chosen["norm"]), after, maps.sides),
                nn.ReLU(),
                *(maps.pool(nn.MaxPool2d) if pool else ()),
            ]
            channels = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * math.prod(maps.sides), classes)
