"""Accuracy of a packed file: unpack → train from random weights by the protocol → test, at the last step."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from budgetopt import augmentation, networks
from budgetopt.data.dataset import Split
from budgetopt.errors import TrialFailure
from budgetopt.networks.side_by_side import SideBySide, at_once
from budgetopt.packing import PackedSet, unpack
from budgetopt.protocol import Protocol, taken
from budgetopt.scores import Evaluation, Score
from budgetopt.seeding import derive, generator

TEST_CHUNK = 128  # activations stay in the processor's cache


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """x: (n, c, h, w), (n, c, d, h, w) or (n, f) in raw units, uint8 or float32; y: (n,) int64; mean, std: (c,) input
    standardisation; targets: (n, classes) float32 probabilities to train towards, or None for `y`."""

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
    """One training per seed, `parallel` of their `groups` at a time, each on one CPU thread so that results do not
    depend on it. Raises `TrialFailure` if a training diverges."""

    def one(group: Sequence[int]) -> list[Score]:
        if device.type == "cpu":
            torch.set_num_threads(1)  # every thread of the pool has a number of its own
        return train_and_test(train, test, protocol, group, device)

    parts = groups(seeds, train.x.shape[1:], protocol, device)
    with one_thread(device):  # which puts the caller's back
        if parallel == 1 or len(parts) == 1:
            found = list(map(one, parts))
        else:
            with ThreadPoolExecutor(parallel) as pool:
                found = list(pool.map(one, parts))
    return Evaluation(tuple(itertools.chain.from_iterable(found)), len(test))


def groups(
    seeds: Sequence[int], shape: tuple[int, ...], protocol: Protocol, device: torch.device
) -> list[Sequence[int]]:
    """The seeds that are trained at once, side by side. Follows from its arguments alone: rounding depends on the
    company, so that a figure repeats exactly only in the same one."""
    count = at_once(shape, protocol.width, device)
    return [seeds[start : start + count] for start in range(0, len(seeds), count)]


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On the CPU torch computes on one thread inside, so that results do not depend on how many there are."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def default_device() -> torch.device:
    """The GPU, where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_parallel(device: torch.device) -> int:
    """Trainings at once where this process is alone on the machine."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


def train_and_test(
    train: TrainingSet, test: Split, protocol: Protocol, seeds: Sequence[int], device: torch.device
) -> list[Score]:
    """Trainings from random weights, `protocol.steps` steps, side by side; the score of each at the last step."""
    standardize = Standardize(train.mean, train.std, train.x.shape[1:], device)
    return [
        score(net, test, standardize, device, train.classes) for net in train_networks(train, protocol, seeds, device)
    ]


def train_network(
    train: TrainingSet,
    protocol: Protocol,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[torch.Tensor, torch.Tensor], None] = lambda rows, logits: None,
) -> networks.Network:
    """`train_networks` of a single seed."""
    return train_networks(train, protocol, [seed], device, progress, watch)[0]


def train_networks(
    train: TrainingSet,
    protocol: Protocol,
    seeds: Sequence[int],
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[torch.Tensor, torch.Tensor], None] = lambda rows, logits: None,
) -> list[networks.Network]:
    """A network for every seed, in train mode, trained from random weights by `protocol`: cross entropy with the
    labels, or with the set's soft targets where it has any. All are trained at once; a seed's network is the one it
    gives alone, but for rounding. `progress(done, total)` is called after every step, `watch(rows, logits)` before it
    with what the networks say of their batches, one after another: (k·b,) rows of the set and (k·b, classes). Raises
    `TrialFailure` if a training diverges."""
    generators = [generator("training", seed) for seed in seeds]
    shape = train.x.shape[1:]
    nets = [networks.build(protocol.network, shape, train.classes, protocol.width, g).to(device) for g in generators]
    together = nets[0] if len(nets) == 1 else SideBySide(nets)
    rate = protocol.lr
    optimizer = torch.optim.AdamW(together.parameters(), lr=rate, weight_decay=protocol.weight_decay)
    # torch divides by the length of the rise, 0.2 · steps − 1, which is zero for 5 steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(6, protocol.steps), pct_start=0.2)
    standardize = Standardize(train.mean, train.std, shape, device)
    x = torch.from_numpy(train.x).to(device)
    y = torch.from_numpy(train.y if train.targets is None else train.targets).to(device)
    batch = min(protocol.batch, len(y))
    augment = taken(protocol.augment, shape)
    orders = torch.empty(len(seeds), 0, dtype=torch.long)
    for step in range(protocol.steps):
        if orders.shape[1] < batch:
            more = [torch.randperm(len(y), generator=g) for g in generators]
            orders = torch.cat([orders, torch.stack(more)], 1)
        rows, orders = orders[:, :batch].flatten().to(device), orders[:, batch:]
        inputs = standardize(x[rows])
        if augment:
            draws = [augmentation.draw(augment, batch, g) for g in generators]
            inputs = augmentation.apply(inputs, augmentation.Draw.joined(draws).to(device))
        try:
            logits = together(inputs)
        except ValueError as error:  # batch norm of one value a channel
            raise TrialFailure(f"{protocol.network} cannot be trained on {batch} sample(s) a step: {error}") from None
        watch(rows, logits.detach())
        loss = len(seeds) * F.cross_entropy(logits, y[rows])  # the sum over networks, each of which has its own weights
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, protocol.steps)
        if step % 50 == 0 and not torch.isfinite(loss):
            raise TrialFailure(f"training diverged: the loss is {float(loss.detach())} at step {step}")
    if not all(torch.isfinite(p).all() for p in together.parameters()):
        raise TrialFailure("training diverged: the network's weights are not finite")
    if isinstance(together, SideBySide):
        together.write_back()
    return nets


def score(net: torch.nn.Module, test: Split, standardize: Standardize, device: torch.device, classes: int) -> Score:
    """How well `net` classifies `test`."""
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (test.y, predicted(net, test, standardize, device)), 1)
    return Score.of(confusion)


@torch.no_grad()
def predicted(net: torch.nn.Module, test: Split, standardize: Standardize, device: torch.device) -> np.ndarray:
    """(n,) classes that `net` gives to `test`, in evaluation mode; it is left in the mode that it was in."""
    training = net.training
    net.eval()
    found = np.zeros(len(test), np.int64)
    for start in range(0, len(test), TEST_CHUNK):
        x = torch.tensor(test.x[start : start + TEST_CHUNK]).to(device)  # a copy: mapped samples are read-only
        found[start : start + len(x)] = net(standardize(x)).argmax(1).cpu().numpy()
    net.train(training)
    return found


class Standardize:
    """Raw units → network input, (x − mean) / std per channel."""

    def __init__(self, mean: np.ndarray, std: np.ndarray, shape: tuple[int, ...], device: torch.device) -> None:
        view = (1, -1) + (1,) * (len(shape) - 1)
        self._mean = torch.tensor(mean).reshape(view).to(device)
        self._std = torch.tensor(std).reshape(view).to(device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() - self._mean) / self._std
