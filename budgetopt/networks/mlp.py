"""Multilayer perceptron for feature vectors: two hidden layers of 4 × the protocol's width."""

from __future__ import annotations

import math

from torch import nn

from budgetopt.networks.base import Network
from budgetopt.options import Options


class MLP(Network):
    """x: (n, ...), flattened here → logits (n, classes)."""

    axes = (1, 2, 3, 4)

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, chosen: Options = ()) -> None:
        super().__init__(shape, classes, width, chosen)
        hidden = 4 * width
        self.features = nn.Sequential(
            nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden, classes)
