"""Multilayer perceptron for feature vectors: two hidden layers of 4 × the protocol's width."""

from __future__ import annotations

import math

import torch
from torch import nn


class MLP(nn.Module):
    """x: (n, ...) float32, standardised, flattened here → logits (n, classes)."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.features = nn.Sequential(
            nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.classifier = nn.Linear(hidden, classes)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x.flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(x))


def mlp(shape: tuple[int, ...], classes: int, width: int) -> nn.Module:
    return MLP(shape, classes, width)
