"""The network contract."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from budgetopt.options import OneOf, Options, Schema, complete

NORM = OneOf(("instance", "batch", "none"))


class Network(nn.Module, ABC):
    """x: (n, ...) float32, standardised → logits (n, classes).

    `width` 128 gives the size of the condensation literature; other widths scale all hidden layers but those of
    networks that have one size only.
    """

    axes: ClassVar[
        tuple[int, ...]
    ]  # of one sample, that the network takes: 3 for images, 1 for feature vectors, 4 for voxels
    options: ClassVar[Schema] = {}
    features: nn.Module
    classifier: nn.Linear

    @abstractmethod
    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        """shape: of one sample, (c, h, w) or (f,). Raises `InputError` where it cannot be taken."""
        super().__init__()
        self.chosen = complete(self.options, chosen, type(self).__name__.lower())

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features before the last linear layer: (n, ...) → (n, d)."""
        return self.features(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(x))


def norm_layer(kind: str, channels: int, sides: Sequence[int]) -> nn.Module:
    """Normalisation of (n, channels, *sides) with affine parameters."""
    if kind == "batch":
        return (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(sides) - 1](channels)
    if kind == "none" or math.prod(sides) == 1:  # instance norm would make a map of one value zero
        return nn.Identity()
    return nn.GroupNorm(channels, channels)  # one group a channel


def scaled(width: int, *channels: int) -> Sequence[int]:
    """Channels of the literature's network at `width`: 128 leaves them as they are."""
    return [max(1, round(c * width / 128)) for c in channels]


class Shrinking:
    """Height and width of the maps on their way through a network that pools as long as there is something to pool."""

    def __init__(self, sides: Sequence[int]) -> None:
        self.sides = list(sides)

    def pool(self, layer: type[nn.Module]) -> list[nn.Module]:
        """[a 2×2 pooling layer], or nothing where a side is 1 already."""
        if min(self.sides) < 2:
            return []
        self.sides = [side // 2 for side in self.sides]
        return [layer(2)]

    def convolved(self, kernel: int, padding: int) -> int:
        """→ the padding of a convolution that is meant to have `padding`: enough for a map smaller than the kernel."""
        padding = max(padding, (kernel - min(self.sides) + 1) // 2)
        self.sides = [side + 2 * padding - kernel + 1 for side in self.sides]
        return padding
