"""Gradients of the real data for gradient matching, made once and shared by all trials.

A target is, for every class, the gradient of the mean loss of real samples of that class with respect to the weights of
one random network, under one augmentation draw per class. Network and draw are made again from the seed (siamese). The
distance of two gradients is a sum of cosines, so a target keeps directions only: every output unit's row has length 1,
which float16 holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad

from budgetopt import augmentation, cache
from budgetopt.errors import InputError
from budgetopt.evaluation import one_thread
from budgetopt.methods.base import TrainingData
from budgetopt.methods.target_bank import Condition, real_rows
from budgetopt.objective import GradientMatchingObjective
from budgetopt.seeding import derive

CHUNK = 64  # samples of one pass: activations stay in the processor's cache
MOST_BYTES = 2_000_000_000  # of a bank: it lies in memory, in the cache folder, and in Ray's object store

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class GradientBank:
    """seeds: (k,) int64; directions: (k, classes, W) float16, the rows of all matched weights one after another, each
    of length 1 or zero. Plain arrays, so that workers can map them read-only."""

    seeds: np.ndarray
    directions: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)


def matched_weights(network: nn.Module) -> Weights:
    """The parameters whose gradients are compared: biases and parameters of norms have one axis and are left out."""
    return {name: p.detach() for name, p in network.named_parameters() if p.dim() > 1}


def class_gradient(network: nn.Module, weights: Weights, x: torch.Tensor, y: torch.Tensor) -> Weights:
    """Gradient with respect to `weights` of the mean cross entropy; differentiable with respect to x. x: (n, ...), as
    the network takes it; y: (n,)."""

    def loss(w: Weights) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, w, (x,)), y)

    return grad(loss)(weights)


def directions(gradients: Weights) -> torch.Tensor:
    """{name: (out, ...)} → (W,): every output unit's gradient divided by its length, zero where that is zero."""
    return torch.cat(
        [F.normalize(g.flatten(1), dim=1, eps=torch.finfo(g.dtype).tiny).flatten() for g in gradients.values()]
    )


def augmented_as(objective: GradientMatchingObjective, data: TrainingData) -> TrainingData:
    """`data` with the augmentation under which gradients are matched as its invariances: none for `dc`."""
    own = objective.augment
    chosen = data.invariances if own is None else own.model_dump(exclude_none=True)
    augment = chosen if objective.method == "dsa" else {}
    return replace(data, spec=replace(data.spec, invariances=augment))


def real_directions(
    condition: Condition,
    seed: int,
    real_batch: int,
    data: TrainingData,
    told: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Directions of the gradients of up to `real_batch` random real samples of every class: (classes, W) float32.
    `told(classes done)` is called after each."""
    weights, found = matched_weights(condition.network), []
    for c in range(data.spec.classes):
        rows = real_rows(c, seed, real_batch, data)
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            x = data.standardized(torch.from_numpy(data.train.x[part]).to(data.device))
            y = torch.full((len(part),), c, device=data.device)
            gradient = class_gradient(condition.network, weights, augmented(condition, x, y), y)
            for name, g in gradient.items():
                total[name] += g * (len(part) / len(rows))
        found.append(directions(total))
        told(c + 1)
    return torch.stack(found)


def augmented(condition: Condition, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x: standardised; y: (n,) pick the draw."""
    return x if condition.draw is None else augmentation.apply(x, condition.draw[y])


def build(
    objective: GradientMatchingObjective,
    data: TrainingData,
    seed: int,
    progress: cache.Progress = cache.silent,
) -> GradientBank:
    """Gradients of the real data under `objective.bank` conditions. `progress(done, total)` is called after each class
    of each."""
    data, classes = augmented_as(objective, data), data.spec.classes
    seeds = np.array([derive("gradient bank", seed, k) for k in range(objective.bank)], np.int64)
    found = []
    for k, condition_seed in enumerate(seeds.tolist()):

        def told(done: int, before: int = k * classes) -> None:
            progress(before + done, len(seeds) * classes)

        condition = Condition.from_seed(condition_seed, data)
        with one_thread(data.device):  # rounding depends on how many there are
            target = real_directions(condition, condition_seed, objective.real_batch, data, told)
        found.append(target.cpu().numpy().astype(np.float16))
    return GradientBank(seeds, np.stack(found))


def cached(
    objective: GradientMatchingObjective,
    data: TrainingData,
    seed: int,
    folder: Path,
    progress: cache.Progress = cache.silent,
) -> GradientBank | None:
    """`build`, or the same bank from `folder`; None where the objective takes real gradients in every step. Raises
    `InputError` for a bank that would be larger than MOST_BYTES."""
    if not objective.bank:
        return None
    network = data.random_network(torch.Generator().manual_seed(0))
    shape = (objective.bank, data.spec.classes, sum(w.numel() for w in matched_weights(network).values()))
    check_size(shape)

    def good(found: cache.Arrays) -> bool:
        shapes = found["seeds"].shape == shape[:1] and found["directions"].shape == shape
        return shapes and found["directions"].dtype == np.float16 and bool(np.isfinite(found["directions"]).all())

    def make() -> cache.Arrays:
        bank = build(objective, data, seed, progress)
        return {"seeds": bank.seeds, "directions": bank.directions}

    protocol, augment = data.protocol, sorted(augmented_as(objective, data).invariances.items())
    chosen = (objective.bank, objective.real_batch, protocol.network, protocol.width, augment)
    found = cache.arrays(folder, "gradients", ("v2", data.spec.split_hash, chosen, seed), good, make)
    return GradientBank(found["seeds"], found["directions"])


def check_size(shape: tuple[int, int, int]) -> None:
    """shape: (k, classes, W) of a bank. Raises `InputError` where it would take more than MOST_BYTES."""
    bank, classes, weights = shape
    one = 2 * classes * weights
    if bank * one > MOST_BYTES:
        most = MOST_BYTES // one
        instead = f"set bank to at most {most}, or to 0" if most else "set bank to 0"
        size = f"{weights:,} weights for {classes:,} classes takes {bank * one / 1e9:.1f} GB"
        raise InputError(f"a bank of {bank:,} gradients of {size}: {instead}, or use a narrower network")
