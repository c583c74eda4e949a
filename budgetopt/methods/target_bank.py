"""Target embeddings of the real data for distribution matching, made once and shared by all trials.

A target is the mean embedding of each real class in one network under one augmentation draw per class. Only the seed,
the weights of networks that were trained, and the (classes, d) means are kept: random network and draw are made again
from the seed, so that synthetic samples meet the same network and the same draw (siamese).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from budgetopt import augmentation, cache, evaluation
from budgetopt.methods.base import TrainingData
from budgetopt.networks import Network
from budgetopt.objective import DistributionMatchingObjective
from budgetopt.seeding import derive, generator

CHUNK = 64  # real samples embedded at once: activations stay in the processor's cache, 2.5 times as fast as 512
FREQUENCIES = 1024  # of the random features of the Gaussian kernel
NORMALISED = 16  # real samples a class behind the frozen statistics of batch norm (DC, appendix)
LEAST_TRAINING = 6  # steps, of the networks that are trained at all


@dataclass(frozen=True, eq=False)
class TargetBank:
    """seeds: (k,) int64; means: (k, classes, d) float32; weights: (k, P) float32 of trained networks, P = 0 where they
    are random; bandwidths: (k,) float64 of the kernels, 0 without one. Plain arrays, so that workers can map them
    read-only."""

    seeds: np.ndarray
    means: np.ndarray
    weights: np.ndarray
    bandwidths: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)

    def condition(self, k: int, data: TrainingData) -> Condition:
        """The k-th, made again."""
        seed, bandwidth = int(self.seeds[k]), float(self.bandwidths[k])
        return Condition.from_seed(seed, data, self.weights[k] if self.weights.size else None, bandwidth)


ARRAYS = tuple(field.name for field in fields(TargetBank))


@dataclass(frozen=True, eq=False)
class Fourier:
    """Random features of the Gaussian kernel exp(−‖a − b‖²/(2h²)) (Rahimi and Recht, NeurIPS 2007, eq. 1): the mean of
    a class under them stands for all its moments, where the mean of plain features is the first one alone."""

    frequencies: torch.Tensor  # (d, D)
    phases: torch.Tensor  # (D,)

    @classmethod
    def draw(cls, d: int, bandwidth: float, g: torch.Generator) -> Fourier:
        frequencies = torch.randn(d, FREQUENCIES, generator=g) / bandwidth
        return cls(frequencies, 2 * math.pi * torch.rand(FREQUENCIES, generator=g))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """(n, d) → (n, D), with inner products near the kernel."""
        angles = features @ self.frequencies.to(features.device) + self.phases.to(features.device)
        return math.sqrt(2 / FREQUENCIES) * torch.cos(angles)


@dataclass(frozen=True, eq=False)
class Condition:
    """One network and one augmentation draw per class; and a kernel, if features are not matched as they are."""

    network: Network
    draw: augmentation.Draw | None
    kernel: Fourier | None = None

    @classmethod
    def from_seed(
        cls, seed: int, data: TrainingData, weights: np.ndarray | None = None, bandwidth: float = 0.0
    ) -> Condition:
        """weights: (P,) that the network has instead of random ones; bandwidth: of the kernel, 0 for none."""
        g = generator("matching condition", seed)
        network = data.random_network(g)
        if weights is not None:
            vector_to_parameters(torch.tensor(weights, device=data.device), network.parameters())
        freeze_statistics(network, seed, data)
        drawn = None
        if data.invariances:
            drawn = augmentation.draw(data.invariances, data.spec.classes, g).to(data.device)
        if not bandwidth:
            return cls(network, drawn)
        return cls(network, drawn, Fourier.draw(network.classifier.in_features, bandwidth, g))

    def embed(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """x: standardised samples; labels: (n,) pick the draw → (n, d), or (n, D) of the kernel."""
        if self.draw is not None:
            x = augmentation.apply(x, self.draw[labels])
        features = self.network.embed(x)
        return features if self.kernel is None else self.kernel(features)


@torch.no_grad()
def freeze_statistics(network: Network, seed: int, data: TrainingData) -> None:
    """Batch norm takes the statistics of real samples of all classes, and keeps them: those of one class alone would
    hide what the class looks like, and real and synthetic samples must meet the same network. Other networks stay as
    they are."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of what is seen
        rows = [real_rows(c, seed, NORMALISED, data) for c in range(data.spec.classes)]
        network.train()(data.standardized(torch.from_numpy(data.train.x[np.concatenate(rows)]).to(data.device)))
    network.eval()


def real_rows(label: int, seed: int, count: int, data: TrainingData) -> np.ndarray:
    """Up to `count` random rows of the train part of one class."""
    rng = np.random.default_rng(derive("real batch", seed, label))
    return rng.permutation(np.flatnonzero(data.train.y == label))[:count]


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(n, d), (n,) → (classes, d)."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).unsqueeze(1)
    sums = torch.zeros(classes, features.shape[1], device=features.device, dtype=features.dtype)
    return sums.index_add(0, labels, features) / counts


@torch.no_grad()
def real_features(
    condition: Condition, seed: int, real_batch: int, data: TrainingData
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of up to `real_batch` random real samples of every class: (n, d), and their labels (n,)."""
    rng = np.random.default_rng(derive("real batch", seed))
    index = np.concatenate(
        [rng.permutation(np.flatnonzero(data.train.y == c))[:real_batch] for c in range(data.spec.classes)]
    )
    labels = torch.from_numpy(data.train.y[index]).to(data.device)
    features = []
    for start in range(0, len(index), CHUNK):
        part = slice(start, start + CHUNK)
        x = torch.from_numpy(data.train.x[index[part]]).to(data.device)
        features.append(condition.embed(data.standardized(x), labels[part]))
    return torch.cat(features), labels


def real_means(condition: Condition, seed: int, real_batch: int, data: TrainingData) -> torch.Tensor:
    """Mean embedding of up to `real_batch` random real samples of every class: (classes, d)."""
    return class_means(*real_features(condition, seed, real_batch, data), data.spec.classes)


def build(
    objective: DistributionMatchingObjective,
    data: TrainingData,
    seed: int,
    progress: cache.Progress = cache.silent,
) -> TargetBank:
    """Embed the real data under `objective.bank` conditions. `progress(done, total)` is called after each."""
    seeds = np.array([derive("bank", seed, k) for k in range(objective.bank)], np.int64)
    means, weights, bandwidths = [], [], []
    for k, condition_seed in enumerate(seeds.tolist()):
        own = _trained(condition_seed, objective.trained, data) if objective.trained else None
        condition = Condition.from_seed(condition_seed, data, own)
        features, labels = real_features(condition, condition_seed, objective.real_batch, data)
        bandwidth = 0.0
        if objective.kernel == "gaussian":
            bandwidth = _median_distance(features, labels)
            kernel = Condition.from_seed(condition_seed, data, own, bandwidth).kernel
            assert kernel is not None
            features = kernel(features)
        means.append(class_means(features, labels, data.spec.classes).cpu().numpy())
        weights.append(np.zeros(0, np.float32) if own is None else own)
        bandwidths.append(bandwidth)
        progress(k + 1, len(seeds))
    return TargetBank(seeds, np.stack(means), np.stack(weights), np.array(bandwidths))


def _trained(seed: int, most: int, data: TrainingData) -> np.ndarray:
    """Weights (P,) after a number of steps of the protocol that is drawn up to `most`: networks of every age."""
    spec, g = data.spec, generator("steps of a matched network", seed)
    steps = int(torch.randint(LEAST_TRAINING, max(most, LEAST_TRAINING) + 1, (), generator=g))
    real = evaluation.TrainingSet(data.train.x, data.train.y, spec.classes, spec.mean, spec.std)
    protocol = data.protocol.model_copy(update={"steps": steps})
    with evaluation.one_thread(data.device):  # rounding depends on how many there are
        network = evaluation.train_network(real, protocol, derive("matched network", seed), data.device)
    return parameters_to_vector(network.parameters()).detach().cpu().numpy()


def _median_distance(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Between samples of one class: the usual bandwidth of a Gaussian kernel. 1 where all are the same."""
    distances = [torch.pdist(features[labels == c][:CHUNK]) for c in labels.unique().tolist()]
    return float(torch.cat(distances).median()) or 1.0 if sum(len(d) for d in distances) else 1.0


def cached(
    objective: DistributionMatchingObjective,
    data: TrainingData,
    seed: int,
    folder: Path,
    progress: cache.Progress = cache.silent,
) -> TargetBank | None:
    """`build`, or the same bank from `folder`; None where the objective embeds real samples in every step."""
    if not objective.bank:
        return None

    def good(found: cache.Arrays) -> bool:
        size = (objective.bank,)
        shapes = found["seeds"].shape == found["bandwidths"].shape == size and found["means"].shape[:2] == (
            *size,
            classes,
        )
        shapes &= found["weights"].shape == (*size, weights if objective.trained else 0)
        return shapes and all(np.isfinite(found[name]).all() for name in ("means", "weights", "bandwidths"))

    def make() -> cache.Arrays:
        bank = build(objective, data, seed, progress)
        return {name: getattr(bank, name) for name in ARRAYS}

    classes, network = data.spec.classes, (data.protocol.network, data.protocol.width)
    augment = sorted(data.invariances.items())
    weights = sum(p.numel() for p in data.random_network(generator("size")).parameters())
    chosen = (objective.bank, objective.real_batch, objective.trained, objective.kernel)
    recipe = data.protocol.hash if objective.trained else None
    key = ("v4", data.spec.split_hash, chosen, network, recipe, augment, seed)
    found = cache.arrays(folder, "bank", key, good, make)
    return TargetBank(*(found[name] for name in ARRAYS))
