"""Fisher information of a packed set beside that of the training data, class by class, after BCDC Theorem 4.6.

The theorem bounds I(T; θ) − I(Q(S); θ), what quantization and distillation lose of the information that the data T hold
about the weights θ; its bound has a Lipschitz constant that nobody knows. Measured here is what it bounds: the trace of
E[∇_θ log p(y | x, θ) ∇_θ log p(y | x, θ)ᵀ] = E‖∇_θ log p(y | x, θ)‖², over the samples of a class, at random weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, vmap

from budgetopt import networks
from budgetopt.data.dataset import Split
from budgetopt.evaluation import Standardize
from budgetopt.packing import PackedSet
from budgetopt.protocol import Protocol
from budgetopt.seeding import generator

NETWORKS = 3  # with random weights, over which traces are averaged
MOST = 200  # real samples a class, drawn: the standard error of a mean over them is a few percent
AT_ONCE = 16  # gradients in memory
LEAST = 0.01  # share of the most probable label, under which one is not worth a gradient of its own


@dataclass(frozen=True)
class Retention:
    """Of one class. samples, real: how many it has in the file and in the training data; file, train: mean trace of a
    sample."""

    label: int
    samples: int
    real: int
    file: float
    train: float

    @property
    def each(self) -> float:
        """Information of a sample of the file in samples of the training data."""
        return self.file / self.train

    @property
    def total(self) -> float:
        """Share of the class's information in the training data: information of independent samples adds up."""
        return self.each * self.samples / self.real


def retention(packed: PackedSet, train: Split, protocol: Protocol, seed: int = 0) -> list[Retention]:
    """One entry for every class that the file has samples of, measured in `NETWORKS` of the protocol's networks.

    packed: its soft labels, where it has any, are the y of its samples. train: samples of the same shape, of which at
    most `MOST` a class are drawn. The same seed gives the same figures.
    """
    labels, targets = packed.labels(), packed.targets()
    classes = len(packed.counts)
    y = np.eye(classes, dtype=np.float32)[labels] if targets is None else targets
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(train.y == label) for label in range(classes)]
    drawn = np.concatenate([rng.permutation(rows)[:MOST] for rows in members])
    hard = np.eye(classes, dtype=np.float32)[train.y[drawn]]
    of_file, of_train = np.zeros(len(labels)), np.zeros(len(drawn))
    standardize = Standardize(packed.mean, packed.std, packed.shape, torch.device("cpu"))
    for k in range(NETWORKS):
        weights = generator("fisher", seed, k)
        network = networks.build(protocol.network, packed.shape, classes, protocol.width, weights).eval()
        of_file += traces(network, standardize(torch.from_numpy(packed.decode())), torch.from_numpy(y)) / NETWORKS
        real = standardize(torch.from_numpy(train.x[drawn]))
        of_train += traces(network, real, torch.from_numpy(hard)) / NETWORKS
    return [
        Retention(
            label,
            samples=packed.counts[label],
            real=len(members[label]),
            file=float(of_file[labels == label].mean()),
            train=float(of_train[train.y[drawn] == label].mean()),
        )
        for label in range(classes)
        if packed.counts[label] and len(members[label])
    ]


def traces(network: torch.nn.Module, x: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    """(n,) expected squared norms E_y‖∇ log p(y | x, θ)‖² of the gradient in all weights. x: (n, …) standardised,
    targets: (n, classes) probabilities of y; those under LEAST of a sample's largest are left out."""
    targets = torch.where(targets >= LEAST * targets.amax(1, keepdim=True), targets, 0.0)
    targets = targets / targets.sum(1, keepdim=True)
    rows, labels = torch.nonzero(targets, as_tuple=True)
    weights = {name: value.detach() for name, value in network.named_parameters()}
    fixed = dict(network.named_buffers())

    def loss(weights: dict[str, torch.Tensor], one: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = functional_call(network, (weights, fixed), (one.unsqueeze(0),))
        return F.cross_entropy(logits, label.unsqueeze(0))

    of_each = vmap(grad(loss), in_dims=(None, 0, 0))
    found = []
    for start in range(0, len(rows), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        gradients = of_each(weights, x[rows[part]], labels[part])
        found.append(torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0))
    weighted = targets[rows, labels].double() * torch.cat(found).double()
    return torch.zeros(len(x), dtype=torch.float64).index_add_(0, rows, weighted).numpy()
