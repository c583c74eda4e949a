"""Bilevel distillation with the quantizer in the loop (BCDC Algorithm 1; Wang et al., 2018)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from budgetopt import augmentation
from budgetopt.checkpoint import State
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.methods import hypergradient
from budgetopt.methods.base import Method, Optimizers, TrainingData
from budgetopt.networks import Network
from budgetopt.objective import BilevelObjective
from budgetopt.representation import Representation
from budgetopt.seeding import derive
from budgetopt.seeding import generator as seeded


class Bilevel(Method):
    """Minimise the cross entropy on T_val of a network that is trained on the samples.

    In every step the network takes `inner_steps` steps of SGD on L(θ, S) = cross entropy + weight_decay/2 · ‖θ‖², then
    the samples take one down the hypergradient. It starts from where the step before left it, and anew after `restart`
    steps: the loss of single steps rises and falls with its age. Labels are those that the file would hold at the last
    restart. Gradients to the samples vary in length over orders of magnitude, hence Adam.
    """

    def __init__(
        self,
        objective: BilevelObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        shared: None = None,
    ) -> None:
        self._objective, self._data, self._representation = objective, data, representation
        self._generator = generator
        self._validation = validation_rows(data.train, data.spec, objective.val_share)
        self._augment = data.augment if objective.augment else {}
        image = torch.optim.Adam([representation.latent], lr=objective.lr_image)
        self._optimizers = Optimizers(image, representation, objective.lr_quantizer)
        self._age = 0  # steps since the restart

    def step(self) -> float:
        if self._age == 0:
            self._restart()
        self._age = (self._age + 1) % self._objective.restart
        x = self._data.standardized(self._representation())
        value, gradient = self._hypergradient(x.detach())
        return self._optimizers.descend(value + ((x - x.detach()) * gradient).sum())  # the second term is zero in value

    def state(self) -> State:
        own = {"age": self._age, "optimizers": self._optimizers.state()}
        if self._age:  # else the next step starts from a new network
            own |= {"network": self._network.state_dict(), "weights": self._weights, "targets": self._targets}
        return own

    def restore(self, state: State) -> None:
        self._age = state["age"]
        self._optimizers.restore(state["optimizers"])
        if self._age:
            network = self._data.random_network(seeded("restored"))
            network.load_state_dict(state["network"])
            self._go_on_with(network)
            self._weights = state["weights"].to(self._data.device)
            self._targets = state["targets"].to(self._data.device)

    def _restart(self) -> None:
        self._go_on_with(self._data.random_network(self._generator))
        self._weights = parameters_to_vector(self._network.parameters())
        self._targets = self._representation.targets().detach()

    def _go_on_with(self, network: Network) -> None:
        self._network = network
        self._shapes = {name: p.shape for name, p in network.named_parameters()}

    def _hypergradient(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        """x: standardised samples → L_val of the network after its steps, its gradient to x. The network moves on."""
        o = self._objective
        losses, outer = [self._inner_loss() for _ in range(o.inner_steps)], self._outer_loss()
        if o.gradient == "unrolled":
            before, last = losses[: -o.unroll], losses[-o.unroll :]
            start = hypergradient.descent(before, self._weights, x, o.lr_network)
            value, gradient, self._weights = hypergradient.unrolled(last, outer, start, x, o.lr_network)
            return value, gradient
        self._weights = hypergradient.descent(losses, self._weights, x, o.lr_network)
        solver: hypergradient.Solver = (
            partial(hypergradient.conjugate_gradient, terms=o.terms)
            if o.solver == "cg"
            else partial(hypergradient.neumann, terms=o.terms, scale=o.lr_network)
        )
        return hypergradient.implicit(losses[-1], outer, self._weights, x, o.damping, solver)

    def _inner_loss(self) -> hypergradient.InnerLoss:
        """L on a batch of the samples, each under its own augmentation: a fixed function of weights and samples."""
        n, decay = len(self._representation.labels), self._objective.weight_decay
        rows = torch.randperm(n, generator=self._generator)[: self._objective.batch]
        drawn = augmentation.draw(self._augment, len(rows), self._generator) if self._augment else None
        rows, drawn = rows.to(self._data.device), drawn and drawn.to(self._data.device)
        targets = self._targets[rows]

        def inner(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            inputs = x[rows] if drawn is None else augmentation.apply(x[rows], drawn)
            loss = F.cross_entropy(self._logits(weights, inputs), targets)
            return loss + decay / 2 * weights.dot(weights)

        return inner

    def _outer_loss(self) -> hypergradient.OuterLoss:
        """Cross entropy on a batch of T_val."""
        train, chosen = self._data.train, torch.randperm(len(self._validation), generator=self._generator)
        rows = self._validation[chosen[: self._objective.val_batch].numpy()]
        x = self._data.standardized(torch.from_numpy(train.x[rows]).to(self._data.device))
        y = torch.from_numpy(train.y[rows]).to(self._data.device)
        return lambda weights: F.cross_entropy(self._logits(weights, x), y)

    def _logits(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """(P,), (b, …) standardised → (b, C)"""
        parts = weights.split([shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return functional_call(self._network, named, (inputs,))


def validation_rows(train: Split, spec: DataSpec, share: float) -> np.ndarray:
    """T_val as rows of the train part: a random `share` of every class, at least one sample; equal for all trials."""
    rng = np.random.default_rng(derive("bilevel validation", spec.split_hash))
    parts = []
    for c in range(spec.classes):
        members = rng.permutation(np.flatnonzero(train.y == c))
        parts.append(members[: max(1, round(share * len(members)))])
    return np.sort(np.concatenate(parts))
