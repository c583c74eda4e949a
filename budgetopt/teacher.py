"""The teacher of soft labels: one network, trained on the train part and nothing else, once for a whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from budgetopt import cache, networks
from budgetopt.allocation import TEMPERATURE
from budgetopt.errors import TrialFailure
from budgetopt.evaluation import Standardize, TrainingSet, one_thread, train_network
from budgetopt.protocol import Protocol
from budgetopt.seeding import derive, generator

if TYPE_CHECKING:
    from budgetopt.methods.base import TrainingData

STEPS = 5  # times the steps of the protocol
CHUNK = 128  # samples at once: activations stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Teacher:
    """weights: the network's state as plain arrays, so that workers can map them read-only; mean, std: (c,) of its
    inputs."""

    network: str
    width: int
    shape: tuple[int, ...]
    classes: int
    mean: np.ndarray
    std: np.ndarray
    weights: dict[str, np.ndarray]

    @torch.no_grad()
    def probabilities(self, x: torch.Tensor, temperature: float = TEMPERATURE) -> np.ndarray:
        """x: (n, c, h, w) or (n, f) in raw units → (n, classes) float64, softmax of logits / temperature."""
        net = networks.build(self.network, self.shape, self.classes, self.width, generator("teacher"))
        net.load_state_dict({name: torch.tensor(value) for name, value in self.weights.items()})
        net.to(x.device).eval()
        standardize = Standardize(self.mean, self.std, self.shape, x.device)
        logits = [net(standardize(x[start : start + CHUNK])).cpu() for start in range(0, len(x), CHUNK)]
        return torch.softmax(torch.cat(logits).double() / temperature, 1).numpy()


def train(data: TrainingData, seed: int, progress: Callable[[int, int], None] = lambda done, total: None) -> Teacher:
    """Train a teacher by the protocol, STEPS times as long. On the CPU it takes one thread, so that its weights do not
    depend on how many there are. `progress(done, total)` is called in every step. Raises `TrialFailure` if the training
    diverges."""
    spec = data.spec
    subject = TrainingSet(data.train.x, data.train.y, spec.classes, spec.mean, spec.std)
    try:
        with one_thread(data.device):
            net = train_network(subject, _longer(data.protocol), _seed(data, seed), data.device, progress)
    except TrialFailure as failure:
        raise TrialFailure(f"the teacher of the soft labels: {failure}") from None
    weights = {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
    return _teacher(data, weights)


def cached(
    data: TrainingData, seed: int, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Teacher:
    """`train`, or the same teacher from `folder`. The key holds the split's hash and all that shapes the training."""
    expected = {
        name: tuple(value.shape) for name, value in data.random_network(generator("teacher")).state_dict().items()
    }

    def good(weights: cache.Arrays) -> bool:
        shapes = {name: value.shape for name, value in weights.items()}
        return shapes == expected and all(np.isfinite(value).all() for value in weights.values())

    key = ("v1", data.spec.split_hash, _longer(data.protocol).hash, seed)
    weights = cache.arrays(folder, "teacher", key, good, lambda: train(data, seed, progress).weights)
    return _teacher(data, weights)


def _longer(protocol: Protocol) -> Protocol:
    return protocol.model_copy(update={"steps": STEPS * protocol.steps})


def _seed(data: TrainingData, seed: int) -> int:
    return derive("teacher", seed, data.spec.split_hash)


def _teacher(data: TrainingData, weights: dict[str, np.ndarray]) -> Teacher:
    spec, protocol = data.spec, data.protocol
    return Teacher(protocol.network, protocol.width, spec.shape, spec.classes, spec.mean, spec.std, weights)
