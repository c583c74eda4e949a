"""Trajectory matching: a student that trains on the samples follows experts, which trained on the real data (MTT,
Cazenavette et al., CVPR 2022; DATM, Guo et al., ICLR 2024; QuADD Algorithm 2, with the quantizer in the loop).

A match starts a student at an expert's weights θ*_t. N steps θ_{i+1} = θ_i − η·g_i on the samples lead it to θ_N, and

    L = ‖θ_N − θ*_{t+M}‖² / ‖θ*_t − θ*_{t+M}‖²,   g_i = ∇_θ CE(θ_i; batch i of the samples and their labels).

QuADD eq. 16 and 18 are an outline of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from budgetopt import augmentation
from budgetopt.checkpoint import State
from budgetopt.methods import experts
from budgetopt.methods.base import Method, Optimizers, TrainingData
from budgetopt.objective import DifficultyAlignedObjective, TrajectoryObjective
from budgetopt.representation import Representation
from budgetopt.seeding import generator as seeded

CHUNK = 128  # samples at once, where an expert names their labels


@dataclass(frozen=True, eq=False)
class Batch:
    """Of one student step. index: (b,) samples; draw: one augmentation for all of them, or None."""

    index: torch.Tensor
    draw: augmentation.Draw | None


# (weights (P,), samples (n, …) in raw units, labels (n,) or (n, C), batch) → loss of the student, twice differentiable
StudentLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Batch], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Match:
    """One student. start, target: (P,), θ*_t and θ*_{t+M}; batches: the same N of them in every call."""

    start: torch.Tensor
    target: torch.Tensor
    loss: StudentLoss
    batches: Callable[[], Iterator[Batch]]

    def unrolled(self, x: torch.Tensor, labels: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        """L, differentiable through all steps (MTT Algorithm 1). Memory grows with their number."""
        weights = self.start.clone().requires_grad_()
        for batch in self.batches():
            (g,) = torch.autograd.grad(self.loss(weights, x, labels, batch), weights, create_graph=True)
            weights = weights - eta * g
        return (weights - self.target).square().sum() / self._scale()

    def separate(self, x: torch.Tensor, labels: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        """L, with the gradient that it has where every g_i is taken at constant weights θ_i (TESLA, Cui et al., ICML
        2023). Then θ_N = θ*_t − η·Σ g_i, and one vector v = ∂L/∂g_i = −2η·(θ_N − θ*_{t+M}) / ‖θ*_t − θ*_{t+M}‖² serves
        all steps: a first walk gives it, a second takes the same steps, adds up the gradients of v·g_i and forgets
        each. The memory of one step.
        """
        length, scale, total = float(eta.detach()), self._scale(), torch.zeros_like(self.start)
        for g in self._walk(x.detach(), labels.detach(), length, graph=False):
            total += g
        residual = self.start - length * total - self.target
        v = -2 * length * residual / scale
        samples, named = (t.detach().requires_grad_(t.requires_grad) for t in (x, labels))
        for g in self._walk(samples, named, length, graph=True):
            g.backward(v, inputs=[t for t in (samples, named) if t.requires_grad])
        slopes = [(x, samples.grad), (labels, named.grad), (eta, -2 * (residual @ total) / scale)]
        return _carrying(residual.square().sum() / scale, slopes)

    def _walk(self, x: torch.Tensor, labels: torch.Tensor, length: float, graph: bool) -> Iterator[torch.Tensor]:
        """g_i of all steps, at weights that are constants; with `graph` differentiable."""
        weights = self.start
        for batch in self.batches():
            at = weights.clone().requires_grad_()
            (g,) = torch.autograd.grad(self.loss(at, x, labels, batch), at, create_graph=graph)
            yield g
            weights = weights - length * g.detach()

    def _scale(self) -> torch.Tensor:
        return (self.start - self.target).square().sum()


def _carrying(value: torch.Tensor, slopes: Sequence[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
    """`value` with given gradients to tensors: what is added to it is zero."""
    for t, slope in slopes:
        if slope is not None:
            value = value + ((t - t.detach()) * slope).sum()
    return value


class TrajectoryMatching(Method):
    """Minimise L over matches: a random expert, a start t in 0 … max_start, one augmentation drawn a student step. The
    step size η is learned beside the samples, as its logarithm: it stays positive, and one rate fits all scales. The
    gradient to one value falls with the number of all, so the learning rate is multiplied by it.
    """

    def __init__(
        self,
        objective: TrajectoryObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        shared: experts.Experts | None = None,
    ) -> None:
        self._objective, self._data, self._representation = objective, data, representation
        self._generator = generator
        self._experts = shared or experts.build(objective, data, self._draw(2**62))
        self._network = experts.template(data)
        self._shapes = {name: p.shape for name, p in self._network.named_parameters()}
        rate = objective.lr_image * representation.latent.numel()
        self._image = torch.optim.SGD([representation.latent], rate, objective.momentum)
        self._optimizers = Optimizers(self._image, representation, objective.lr_quantizer)
        self._log_eta = nn.Parameter(torch.tensor(math.log(objective.student_lr), device=data.device))
        self._eta = torch.optim.Adam([self._log_eta], objective.lr_step)

    def step(self) -> float:
        match = self.next_match()
        loss_of = match.unrolled if self._objective.exact else match.separate
        loss = loss_of(self._representation(), self._representation.targets(), self._log_eta.exp())
        self._eta.zero_grad()
        value = self._optimizers.descend(loss)
        self._eta.step()
        return value

    def state(self) -> State:
        eta = {"log": self._log_eta.detach(), "optimizer": self._eta.state_dict()}
        return {"eta": eta, "optimizers": self._optimizers.state()}

    def restore(self, state: State) -> None:
        with torch.no_grad():
            self._log_eta.copy_(state["eta"]["log"])
        self._eta.load_state_dict(state["eta"]["optimizer"])
        self._optimizers.restore(state["optimizers"])

    @property
    def step_size(self) -> float:
        """η"""
        return float(self._log_eta.detach().exp())

    def next_match(self) -> Match:
        k, (first, last) = self._draw(len(self._experts)), self.window()
        t = first + self._draw(last - first + 1)
        ends = self._experts.weights[k, t], self._experts.weights[k, t + self._objective.match_epochs]
        start, target = (
            torch.tensor(end, device=self._data.device) for end in ends
        )  # copies: they are mapped read-only
        return Match(start, target, self.student_loss, partial(self._batches, self._draw(2**62)))

    def window(self) -> tuple[int, int]:
        """The first and the last epoch that a match may start from."""
        return 0, self._objective.max_start

    def student_loss(self, weights: torch.Tensor, x: torch.Tensor, labels: torch.Tensor, batch: Batch) -> torch.Tensor:
        inputs = self._data.standardized(x[batch.index])
        if batch.draw is not None:
            inputs = augmentation.apply(inputs, batch.draw)
        return F.cross_entropy(self._logits(weights, inputs), labels[batch.index])

    def _logits(self, weights: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """(P,), (b, …) standardised → (b, C)"""
        parts = weights.split([shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return functional_call(self._network, named, (inputs,))

    def _batches(self, seed: int) -> Iterator[Batch]:
        g, n, device = seeded("student", seed), len(self._representation.labels), self._data.device
        augment = self._data.augment
        size, order = min(self._objective.batch or n, n), torch.empty(0, dtype=torch.long)
        for _ in range(self._objective.student_steps):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(n, generator=g)])
            index, order = order[:size].to(device), order[size:]
            yield Batch(index, augmentation.draw(augment, 1, g).to(device) if augment else None)

    def _draw(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self._generator))


class DifficultyAligned(TrajectoryMatching):
    """The window of starts opens from the easy epochs to the hard ones, and soft labels are learned with the samples
    (DATM). They start from what the teacher says of the start samples, without one from the logits of an expert.
    """

    def __init__(
        self,
        objective: DifficultyAlignedObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        shared: experts.Experts | None = None,
    ) -> None:
        super().__init__(objective, data, representation, generator, shared)
        self._aligned, self._done = objective, 0
        if representation.label_bits:
            logits = representation.learn_labels(self._expert_logits())
            rate = objective.lr_label * len(logits)
            self._image.add_param_group({"params": [logits], "lr": rate, "momentum": objective.momentum_label})

    def step(self) -> float:
        value = super().step()
        self._done += 1
        return value

    def state(self) -> State:
        return super().state() | {"done": self._done}

    def restore(self, state: State) -> None:
        super().restore(state)
        self._done = state["done"]

    def window(self) -> tuple[int, int]:
        o = self._aligned
        return o.min_start, opened(self._done / o.steps, o.first_max_start, o.max_start, o.growth)

    @torch.no_grad()
    def _expert_logits(self) -> torch.Tensor:
        """What the first expert says at the end of its training of the samples before quantization: (n, C)."""
        weights = torch.tensor(self._experts.weights[0, -1], device=self._data.device)
        x = self._representation.transform.inverse(self._representation.coded())
        return torch.cat([self._logits(weights, self._data.standardized(part)) for part in x.split(CHUNK)])


def opened(share: float, first: int, last: int, growth: float) -> int:
    """Upper end of the window after a `share` of the matches: from `first` to `last`, which it reaches at `growth`."""
    return last if share >= growth else first + math.floor((last - first) * share / growth)
