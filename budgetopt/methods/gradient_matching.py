"""Gradient matching with the quantizer in the loop (DC, Zhao, Mopuri and Bilen, ICLR 2021; DSA, Zhao and Bilen, ICML
2021; BCDC Table 3)."""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import vmap

from budgetopt import augmentation
from budgetopt.checkpoint import State
from budgetopt.methods.base import Method, Optimizers, TrainingData, per_class_descent
from budgetopt.methods.gradient_bank import (
    CHUNK,
    GradientBank,
    Weights,
    augmented,
    augmented_as,
    class_gradient,
    matched_weights,
    real_directions,
)
from budgetopt.methods.target_bank import Condition, freeze_statistics
from budgetopt.objective import GradientMatchingObjective
from budgetopt.representation import Representation
from budgetopt.seeding import derive, generator

BATCH = 256  # synthetic samples a step, of the network's training (DC, appendix)
NO_LENGTH = 1e-6  # a unit that no sample reaches has a gradient, but no direction


class GradientMatching(Method):
    """Minimise Σ_c D(∇L(A(S_c)), ∇L(A(T_c))) (DC eq. 9, DSA eq. 7), the gradients of one network with respect to its
    weights, A an augmentation drawn per class (none for DC).

    A network is matched `outer` times; between them it takes `inner` steps on the synthetic set. With outer = 1 all
    networks are random and the real side can be looked up in a bank; without one it is computed in every step.
    """

    def __init__(
        self,
        objective: GradientMatchingObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        bank: GradientBank | None = None,
    ) -> None:
        self._objective, self._data = objective, augmented_as(objective, data)
        self._representation, self._bank, self._generator = representation, bank, generator
        image, shares = per_class_descent(representation, objective.lr_image, objective.momentum)
        self._optimizers = Optimizers(image, representation, objective.lr_quantizer, shares)
        self._groups = groups(representation.counts)
        self._order: list[int] = []
        self._condition: Condition | None = None  # with the network that lives on, where outer > 1
        self._matched = 0  # times, of that network

    def step(self) -> float:
        condition, target = self._next_target()
        return self._optimizers.descend(self.loss(condition, target))

    def loss(self, condition: Condition, target: torch.Tensor) -> torch.Tensor:
        """Matching loss under one condition; target: (classes, W), the directions of the real gradients.

        Classes are summed group by group, backward at once: activations of second derivatives are what fills memory.
        """
        x, labels = self._data.standardized(self._representation()), self._representation.labels
        weights = matched_weights(condition.network)
        gradient, total = torch.zeros_like(x), torch.zeros((), device=x.device)
        for classes, rows in self._groups:
            part = x[rows].detach().requires_grad_()
            y = labels[rows]
            of_class = class_gradients(condition.network, weights, augmented(condition, part, y), y, len(classes))
            distance = distances(of_class, target[classes]).sum()
            (gradient[rows],) = torch.autograd.grad(distance, part)
            total += distance.detach()
        return total + (gradient * (x - x.detach())).sum()  # the second term is zero in value

    def state(self) -> State:
        network = None if self._condition is None else self._condition.network.state_dict()
        own = {"order": self._order, "network": network, "matched": self._matched}
        return own | {"optimizers": self._optimizers.state()}

    def restore(self, state: State) -> None:
        self._order, self._matched = list(state["order"]), state["matched"]
        if state["network"] is not None:
            network = self._data.random_network(generator("restored")).eval()
            network.load_state_dict(state["network"])
            self._condition = Condition(network, None)  # every match has a draw of its own
        self._optimizers.restore(state["optimizers"])

    def _next_target(self) -> tuple[Condition, torch.Tensor]:
        if self._bank is None:
            return self._live_target()
        if not self._order:  # every target once, in a new order, before any comes again
            self._order = torch.randperm(len(self._bank), generator=self._generator).tolist()
        k = self._order.pop()
        target = torch.tensor(self._bank.directions[k], dtype=torch.float32, device=self._data.device)
        return Condition.from_seed(int(self._bank.seeds[k]), self._data), target

    def _live_target(self) -> tuple[Condition, torch.Tensor]:
        seed = derive("live", int(torch.randint(2**62, (), generator=self._generator)))
        condition = Condition.from_seed(seed, self._data)
        if self._condition is not None and self._matched < self._objective.outer:
            network = self._condition.network
            self._train(network, seed)
            freeze_statistics(network, seed, self._data)
            condition = Condition(network, condition.draw)
        else:
            self._matched = 0
        self._condition, self._matched = condition, self._matched + 1
        return condition, real_directions(condition, seed, self._objective.real_batch, self._data)

    def _train(self, network: nn.Module, seed: int) -> None:
        """`inner` steps on the samples as they are decoded now, each image under its own draw."""
        g, augment = generator("network", seed), self._data.invariances
        training = self._representation.training
        with torch.no_grad():  # in evaluation mode: no noise of a quantizer's surrogate
            x = self._data.standardized(self._representation.eval()())
        self._representation.train(training)
        optimizer = torch.optim.SGD(network.train().requires_grad_().parameters(), lr=self._objective.lr_network)
        for _ in range(self._objective.inner):
            rows = torch.randperm(len(x), generator=g)[:BATCH].to(x.device)
            inputs = x[rows]
            if augment:
                inputs = augmentation.apply(inputs, augmentation.draw(augment, len(rows), g).to(x.device))
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), self._representation.labels[rows]).backward()
            optimizer.step()
        network.requires_grad_(False)


def groups(counts: tuple[int, ...]) -> list[tuple[range, slice]]:
    """Neighbouring classes that go through the network in one pass, and their rows: equally many samples each, CHUNK
    in all or one class. One pass for all is slower from there on, and one a class below. Classes without a sample are
    left out."""
    found, row = [], 0
    for count, equal in groupby(range(len(counts)), key=lambda c: counts[c]):
        classes = list(equal)
        size = max(1, CHUNK // count) if count else len(classes)
        for start in range(0, len(classes), size):
            group = range(classes[start], classes[start] + len(classes[start : start + size]))
            if count:
                found.append((group, slice(row, row + count * len(group))))
            row += count * len(group)
    return found


def class_gradients(network: nn.Module, weights: Weights, x: torch.Tensor, y: torch.Tensor, classes: int) -> Weights:
    """The gradient of every class: {name: (classes, out, ...)}. x: (classes·n, ...), y: (classes·n,), n each."""
    if classes == 1:
        return {name: g.unsqueeze(0) for name, g in class_gradient(network, weights, x, y).items()}
    x, y = x.unflatten(0, (classes, -1)), y.unflatten(0, (classes, -1))
    return vmap(lambda x, y: class_gradient(network, weights, x, y))(x, y)


def distances(gradients: Weights, target: torch.Tensor) -> torch.Tensor:
    """Σ over layers and output units of 1 − cosine (DC eq. 10 and the one after it), for every class: (classes,).
    gradients: {name: (classes, out, ...)}; target: (classes, W), directions."""
    total, at = torch.zeros(len(target), device=target.device), 0
    for g in gradients.values():
        rows = g.flatten(2)
        wanted = target[:, at : at + rows[0].numel()].view_as(rows)
        cosine = (rows * wanted).sum(2) / (torch.linalg.vector_norm(rows, dim=2) + NO_LENGTH)
        total, at = total + (1.0 - cosine).sum(1), at + rows[0].numel()
    return total
