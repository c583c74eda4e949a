"""Accuracy of a packed file: unpack → train from random weights by the protocol → test, at the last step."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from budgetopt import augmentation, networks
from budgetopt.data.dataset import Split
from budgetopt.errors import TrialFailure
from budgetopt.packing import PackedSet, unpack
from budgetopt.protocol import Protocol
from budgetopt.seeding import derive, generator

TEST_CHUNK = 128  # activations stay in the processor's cache


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of independent trainings on one file; the figure is their mean."""

    accuracies: tuple[float, ...]
    samples: int  # tested on

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def half_width(self) -> float:
        """Half of the 95 % Student-t interval of the mean over trainings; NaN for a single training."""
        from scipy.stats import t

        n = len(self.accuracies)
        if n < 2:
            return math.nan
        return float(t.ppf(0.975, n - 1) * np.std(self.accuracies, ddof=1) / math.sqrt(n))

    @property
    def binomial_half_width(self) -> float:
        """Half of the 95 % normal interval from the finite test set: what another test set would change."""
        p = self.accuracy
        return 1.96 * math.sqrt(p * (1.0 - p) / self.samples)

    @property
    def standard_error(self) -> float:
        """Of the mean over trainings and of the finite test set together; used to choose candidates."""
        n, p = len(self.accuracies), self.accuracy
        spread = float(np.var(self.accuracies, ddof=1)) / n if n > 1 else 0.0
        return math.sqrt(spread + p * (1.0 - p) / self.samples)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """x: (n, c, h, w) or (n, f) in raw units, uint8 or float32; y: (n,) int64; mean, std: (c,) input standardisation;
    targets: (n, classes) float32 probabilities to train towards, or None for `y`."""

    x: np.ndarray
    y: np.ndarray
    classes: int
    mean: np.ndarray
    std: np.ndarray
    targets: np.ndarray | None = None

    @classmethod
    def of(cls, packed: PackedSet) -> TrainingSet:
        classes = len(packed.counts)
        return cls(packed.decode(), packed.labels(), classes, packed.mean, packed.std, packed.targets())


def file_seeds(data: bytes, count: int) -> list[int]:
    """Training seeds that follow from the file alone, so that `eval` repeats what a run reported."""
    digest = hashlib.sha256(data).hexdigest()
    return [derive("file", digest, i) for i in range(count)]


def evaluate_file(
    data: bytes,
    test: Split,
    protocol: Protocol,
    seeds: Sequence[int],
    device: torch.device,
    parallel: int = 1,
) -> Evaluation:
    """Accuracy on `test` of networks trained on what `data` decodes to."""
    return evaluate_set(TrainingSet.of(unpack(data)), test, protocol, seeds, device, parallel)


def evaluate_set(
    train: TrainingSet,
    test: Split,
    protocol: Protocol,
    seeds: Sequence[int],
    device: torch.device,
    parallel: int = 1,
) -> Evaluation:
    """One training per seed, `parallel` at a time, each on one CPU thread so that results do not depend on it.
    Raises `TrialFailure` if a training diverges."""

    def one(seed: int) -> float:
        if device.type == "cpu":
            torch.set_num_threads(1)
        return train_and_test(train, test, protocol, seed, device)

    if parallel == 1 or len(seeds) == 1:
        return Evaluation(tuple(one(seed) for seed in seeds), len(test))
    with ThreadPoolExecutor(parallel) as pool:
        return Evaluation(tuple(pool.map(one, seeds)), len(test))


def default_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_parallel(device: torch.device) -> int:
    """Trainings at once where this process is alone on the machine."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


def train_and_test(train: TrainingSet, test: Split, protocol: Protocol, seed: int, device: torch.device) -> float:
    """One training from random weights, `protocol.steps` steps; accuracy at the last step."""
    net = train_network(train, protocol, seed, device)
    return accuracy(net, test, Standardize(train.mean, train.std, train.x.shape[1:], device), device)


def train_network(
    train: TrainingSet,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> networks.Network:
    """A network trained from random weights by `protocol`: cross entropy with the labels, or with the set's soft
    targets where it has any. `progress(done, total)` is called after every step. Raises `TrialFailure` if the training
    diverges."""
    g = generator("training", seed)
    shape = train.x.shape[1:]
    net = networks.build(protocol.network, shape, train.classes, protocol.width, g).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay)
    # torch divides by the length of the rise, 0.2 · steps − 1, which is zero for 5 steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, protocol.lr, total_steps=max(6, protocol.steps), pct_start=0.2
    )
    standardize = Standardize(train.mean, train.std, shape, device)
    x = torch.from_numpy(train.x).to(device)
    y = torch.from_numpy(train.y if train.targets is None else train.targets).to(device)
    batch = min(protocol.batch, len(y))
    augmented = bool(protocol.augment) and len(shape) == 3
    order = torch.empty(0, dtype=torch.long)
    for step in range(protocol.steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(y), generator=g)])
        index, order = order[:batch].to(device), order[batch:]
        inputs = standardize(x[index])
        if augmented:
            inputs = augmentation.apply(inputs, augmentation.draw(protocol.augment, batch, g).to(device))
        loss = F.cross_entropy(net(inputs), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, protocol.steps)
        if step % 50 == 0 and not torch.isfinite(loss):
            raise TrialFailure(f"training diverged: the loss is {float(loss.detach())} at step {step}")
    if not all(torch.isfinite(p).all() for p in net.parameters()):
        raise TrialFailure("training diverged: the network's weights are not finite")
    return net


@torch.no_grad()
def accuracy(net: torch.nn.Module, test: Split, standardize: Standardize, device: torch.device) -> float:
    """Share of `test` that `net` classifies rightly."""
    net.eval()
    right = 0
    for start in range(0, len(test), TEST_CHUNK):
        x = torch.from_numpy(test.x[start : start + TEST_CHUNK]).to(device)
        predicted = net(standardize(x)).argmax(1).cpu()
        right += int((predicted == torch.from_numpy(test.y[start : start + TEST_CHUNK])).sum())
    return right / len(test)


class Standardize:
    """Raw units → network input, (x − mean) / std per channel."""

    def __init__(self, mean: np.ndarray, std: np.ndarray, shape: tuple[int, ...], device: torch.device) -> None:
        view = (1, -1) + (1,) * (len(shape) - 1)
        self._mean = torch.tensor(mean).reshape(view).to(device)
        self._std = torch.tensor(std).reshape(view).to(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() - self._mean) / self._std
