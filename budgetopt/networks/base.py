"""The network contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn


class Network(nn.Module, ABC):
    """x: (n, ...) float32, standardised → logits (n, classes)."""

    axes: ClassVar[tuple[int, ...]]  # of one sample, that the network takes: 3 for images, 1 for feature vectors
    features: nn.Module
    classifier: nn.Linear

    @abstractmethod
    def __init__(self, shape: tuple[int, ...], classes: int, width: int) -> None:
        """shape: of one sample, (c, h, w) or (f,)."""
        super().__init__()

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Features before the last linear layer: (n, ...) → (n, d)."""
        return self.features(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.embed(x))
