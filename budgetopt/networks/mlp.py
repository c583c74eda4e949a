"""Multilayer perceptron for feature vectors: hidden layers of 4 × the protocol's width, two unless said."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import nn

from budgetopt.networks.base import Network
from budgetopt.options import Number, Options, Schema


class MLP(Network):
    """x: (n, ...), flattened here → logits (n, classes)."""

    axes = (1, 2, 3, 4)
    options: ClassVar[Schema] = {"depth": Number(2, 1, 6, whole=True)}

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        inputs, hidden = math.prod(shape), 4 * width
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(int(self.chosen["depth"])):
            layers += [nn.Linear(inputs, hidden), nn.ReLU()]
            inputs = hidden
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden, classes)
