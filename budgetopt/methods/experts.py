"""Expert trajectories for trajectory matching: the weights of networks on their way through the real train part, made
once and shared by all trials (MTT, Cazenavette et al., CVPR 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import parameters_to_vector

from budgetopt import augmentation, cache
from budgetopt.errors import InputError
from budgetopt.evaluation import default_parallel
from budgetopt.methods.base import TrainingData
from budgetopt.networks import Network
from budgetopt.objective import TrajectoryObjective
from budgetopt.seeding import generator

MOST_BYTES = 1 << 32  # of all trajectories together: they are held in memory
POLL = 0.1  # seconds between two calls of `progress`


@dataclass(frozen=True, eq=False)
class Experts:
    """weights: (experts, epochs + 1, P) float32, the flat weights of each at random and after every epoch. A plain
    array, so that workers can map it read-only."""

    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)


class _Stopped(Exception):
    """Another expert failed, or the run is interrupted."""


def template(data: TrainingData) -> Network:
    """A network of the protocol that lends its form to flat weights. Raises `InputError` for one with batch norm: its
    running statistics are no weights, and a student could not start from an expert without them."""
    network = data.random_network(generator("template"))
    if next(network.buffers(), None) is not None:
        raise InputError(
            f"trajectory matching needs a network without batch norm, got {data.protocol.network!r}: "
            "use norm=instance or norm=none"
        )
    return network


def epoch_steps(objective: TrajectoryObjective, data: TrainingData) -> int:
    """Optimiser steps between two stored weights: as many as asked for, or one pass over the train part."""
    return objective.expert_steps or max(1, len(data.train) // data.protocol.batch)


def build(
    objective: TrajectoryObjective, data: TrainingData, seed: int, progress: cache.Progress = cache.silent
) -> Experts:
    """Train `objective.experts` networks by plain SGD. On the CPU each takes one thread, so that its weights do not
    depend on how many there are. `progress(done, total)` counts optimiser steps; what it raises ends all trainings.

    Raises `InputError` for batch norm, for trajectories above MOST_BYTES, and where an expert diverges.
    """
    weights = np.empty(_shape(objective, data), np.float32)
    x, y = torch.from_numpy(data.train.x).to(data.device), torch.from_numpy(data.train.y).to(data.device)
    done, stop = [0] * len(weights), Event()

    def train(k: int) -> None:
        if data.device.type == "cpu":
            torch.set_num_threads(1)  # of this thread of the pool

        def stepped() -> None:
            done[k] += 1
            if stop.is_set():
                raise _Stopped

        _train(objective, data, x, y, generator("expert", seed, k), weights[k], stepped)

    total = len(weights) * objective.expert_epochs * epoch_steps(objective, data)
    with ThreadPoolExecutor(default_parallel(data.device)) as pool:
        pending = {pool.submit(train, k) for k in range(len(weights))}
        try:
            while pending:
                finished, pending = wait(pending, POLL)
                for expert in finished:
                    expert.result()
                progress(sum(done), total)
        finally:
            stop.set()
    return Experts(weights)


def _train(
    objective: TrajectoryObjective,
    data: TrainingData,
    x: torch.Tensor,
    y: torch.Tensor,
    g: torch.Generator,
    trajectory: np.ndarray,
    stepped: Callable[[], None],
) -> None:
    """Fill `trajectory` (epochs + 1, P) with the weights of one network; `stepped` is called after every step."""
    network = data.random_network(g).requires_grad_(True)
    optimizer = torch.optim.SGD(network.parameters(), objective.expert_lr, objective.expert_momentum)
    augment, batch = data.augment, min(data.protocol.batch, len(y))
    order = torch.empty(0, dtype=torch.long)
    for epoch in range(len(trajectory)):
        for _ in range(epoch_steps(objective, data) if epoch else 0):
            if len(order) < batch:
                order = torch.cat([order, torch.randperm(len(y), generator=g)])
            index, order = order[:batch].to(x.device), order[batch:]
            inputs = data.standardized(x[index])
            if augment:
                inputs = augmentation.apply(inputs, augmentation.draw(augment, batch, g).to(x.device))
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), y[index]).backward()
            optimizer.step()
            stepped()
        trajectory[epoch] = parameters_to_vector(network.parameters()).detach().cpu().numpy()
        if not np.isfinite(trajectory[epoch]).all():
            raise InputError(f"an expert diverged in epoch {epoch}: expert_lr {objective.expert_lr:g} is too large")


def _shape(objective: TrajectoryObjective, data: TrainingData) -> tuple[int, int, int]:
    weights = sum(p.numel() for p in template(data).parameters())
    shape = objective.experts, objective.expert_epochs + 1, weights
    if (size := 4 * int(np.prod(shape, dtype=np.int64))) > MOST_BYTES:
        raise InputError(
            f"trajectories of {shape[0]} experts with {shape[1]} × {weights:,} weights take {size:,} bytes, at most "
            f"{MOST_BYTES:,} are allowed: use fewer experts or expert_epochs, or a narrower network"
        )
    return shape


def cached(
    objective: TrajectoryObjective,
    data: TrainingData,
    seed: int,
    folder: Path,
    progress: cache.Progress = cache.silent,
) -> Experts:
    """`build`, or the same experts from `folder`; all objectives with equal settings of experts share them."""
    shape, protocol = _shape(objective, data), data.protocol

    def good(found: cache.Arrays) -> bool:
        weights = found["weights"]
        return weights.shape == shape and weights.dtype == np.float32 and bool(np.isfinite(weights).all())

    recipe = epoch_steps(objective, data), objective.expert_lr, objective.expert_momentum
    network = protocol.network, protocol.width, protocol.batch, sorted(protocol.augment.items())
    key = ("v1", data.spec.split_hash, *shape, recipe, network, seed)
    found = cache.arrays(
        folder, "experts", key, good, lambda: {"weights": build(objective, data, seed, progress).weights}
    )
    return Experts(found["weights"])
