"""The teacher of soft labels: one network, trained on the train part and nothing else, once for a whole run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from budgetopt import networks
from budgetopt.allocation import TEMPERATURE
from budgetopt.errors import TrialFailure
from budgetopt.evaluation import Standardize, TrainingSet, train_network
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
    threads = torch.get_num_threads()
    if data.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        net = train_network(subject, _longer(data.protocol), _seed(data, seed), data.device, progress)
    except TrialFailure as failure:
        raise TrialFailure(f"the teacher of the soft labels: {failure}") from None
    finally:
        torch.set_num_threads(threads)
    weights = {name: value.detach().cpu().numpy() for name, value in net.state_dict().items()}
    return _teacher(data, weights)


def cached(
    data: TrainingData, seed: int, folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Teacher:
    """`train`, or the same teacher from `folder`. The key holds the split's hash and all that shapes the training."""
    parts = ("v1", data.spec.split_hash, _longer(data.protocol).hash, seed, torch.__version__)
    path = folder / f"teacher-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.npz"
    weights = _read(path, data)
    if weights is not None:
        return _teacher(data, weights)
    made = train(data, seed, progress)
    _write(path, made.weights)
    return made


def _longer(protocol: Protocol) -> Protocol:
    return protocol.model_copy(update={"steps": STEPS * protocol.steps})


def _seed(data: TrainingData, seed: int) -> int:
    return derive("teacher", seed, data.spec.split_hash)


def _teacher(data: TrainingData, weights: dict[str, np.ndarray]) -> Teacher:
    spec, protocol = data.spec, data.protocol
    return Teacher(protocol.network, protocol.width, spec.shape, spec.classes, spec.mean, spec.std, weights)


def _read(path: Path, data: TrainingData) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            weights = {name: archive[name] for name in archive.files}
    except Exception:  # whatever zipfile, zlib and numpy raise
        return None  # absent or damaged: train it again
    expected = data.random_network(generator("teacher")).state_dict()
    good = weights.keys() == expected.keys() and all(
        weights[name].shape == tuple(value.shape) and np.isfinite(weights[name]).all()
        for name, value in expected.items()
    )
    return weights if good else None


def _write(path: Path, weights: dict[str, np.ndarray]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        with open(partial, "wb") as stream:
            np.savez(stream, **weights)  # type: ignore[arg-type]
        partial.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, not results
