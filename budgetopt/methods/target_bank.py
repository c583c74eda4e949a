"""Target embeddings of the real data for distribution matching, made once and shared by all trials.

A target is the mean embedding of each real class in one random network under one augmentation draw per class.
Only the seed and the (classes, d) means are kept: network and draw are made again from the seed, so that synthetic
samples meet the same network and the same draw (siamese).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from budgetopt import augmentation
from budgetopt.methods import cache
from budgetopt.methods.base import TrainingData
from budgetopt.networks import Network
from budgetopt.objective import DistributionMatchingObjective
from budgetopt.seeding import derive, generator

CHUNK = 64  # real samples embedded at once: activations stay in the processor's cache, 2.5 times as fast as 512


@dataclass(frozen=True, eq=False)
class TargetBank:
    """seeds: (k,) int64; means: (k, classes, d) float32. Plain arrays, so that workers can map them read-only."""

    seeds: np.ndarray
    means: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True, eq=False)
class Condition:
    """One random network and one augmentation draw per class."""

    network: Network
    draw: augmentation.Draw | None

    @classmethod
    def from_seed(cls, seed: int, data: TrainingData) -> Condition:
        g = generator("matching condition", seed)
        network = data.random_network(g)
        if not (data.spec.is_image and data.protocol.augment):
            return cls(network, None)
        return cls(network, augmentation.draw(data.protocol.augment, data.spec.classes, g).to(data.device))

    def embed(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """x: standardised samples; labels: (n,) pick the draw → (n, d)."""
        if self.draw is not None:
            x = augmentation.apply(x, self.draw[labels])
        return self.network.embed(x)


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(n, d), (n,) → (classes, d)."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).unsqueeze(1)
    sums = torch.zeros(classes, features.shape[1], device=features.device, dtype=features.dtype)
    return sums.index_add(0, labels, features) / counts


@torch.no_grad()
def real_means(condition: Condition, seed: int, real_batch: int, data: TrainingData) -> torch.Tensor:
    """Mean embedding of up to `real_batch` random real samples of every class: (classes, d)."""
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
    return class_means(torch.cat(features), labels, data.spec.classes)


def build(
    objective: DistributionMatchingObjective,
    data: TrainingData,
    seed: int,
    progress: cache.Progress = cache.silent,
) -> TargetBank:
    """Embed the real data under `objective.bank` conditions. `progress(done, total)` is called after each."""
    seeds = np.array([derive("bank", seed, k) for k in range(objective.bank)], np.int64)
    means = []
    for k, condition_seed in enumerate(seeds):
        condition = Condition.from_seed(int(condition_seed), data)
        means.append(real_means(condition, int(condition_seed), objective.real_batch, data).cpu().numpy())
        progress(k + 1, len(seeds))
    return TargetBank(seeds, np.stack(means))


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
        shapes = found["seeds"].shape == (objective.bank,) and found["means"].shape[:2] == (objective.bank, classes)
        return shapes and bool(np.isfinite(found["means"]).all())

    def make() -> cache.Arrays:
        bank = build(objective, data, seed, progress)
        return {"seeds": bank.seeds, "means": bank.means}

    classes, network = data.spec.classes, (data.protocol.network, data.protocol.width)
    augment = sorted(data.protocol.augment.items())
    key = ("v1", data.spec.split_hash, objective.bank, objective.real_batch, network, augment, seed)
    found = cache.arrays(folder, "bank", key, good, make)
    return TargetBank(found["seeds"], found["means"])
