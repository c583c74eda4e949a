"""The method contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch.optim import SGD

from budgetopt import networks
from budgetopt.checkpoint import State
from budgetopt.data.dataset import DataSpec, Split
from budgetopt.protocol import Protocol, taken
from budgetopt.representation import Representation

NO_LOSS = 1e-6  # a first loss below it is rounding, as of a lossless set: its bits are weighed against 1


@dataclass(frozen=True, eq=False)
class TrainingData:
    """All that a method may see: the train part (never validation or test), and the protocol's network."""

    train: Split
    spec: DataSpec
    protocol: Protocol
    device: torch.device

    @property
    def invariances(self) -> dict[str, float]:
        """Augmentations under which samples keep their class; none for feature vectors."""
        return taken(self.spec.invariances, self.spec.shape)

    @property
    def augment(self) -> dict[str, float]:
        """What the protocol augments such samples by when it trains on them."""
        return taken(self.protocol.augment, self.spec.shape)

    def standardized(self, x: torch.Tensor) -> torch.Tensor:
        """Raw units → what networks take. x: (n, c, h, w) or (n, f), any dtype."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean = torch.from_numpy(self.spec.mean).to(x.device).reshape(shape)
        std = torch.from_numpy(self.spec.std).to(x.device).reshape(shape)
        return (x.float() - mean) / std

    def random_network(self, generator: torch.Generator) -> networks.Network:
        """A network of the protocol with random weights that take no gradient."""
        net = networks.build(self.protocol.network, self.spec.shape, self.spec.classes, self.protocol.width, generator)
        return net.to(self.device).requires_grad_(False)


class Method(ABC):
    """One distillation objective on one Representation. Anytime: the set can be read after every step.

    `step()` changes the Representation's parameters and nothing else; all randomness comes from the generator. `state`
    is what the steps have made of the method itself: one that is built anew from the same arguments, with the
    Representation, the generator and this state put back, goes on as if nothing had happened.
    """

    @abstractmethod
    def step(self) -> float:
        """Perform one optimisation step; return the loss before it."""

    @abstractmethod
    def state(self) -> State:
        """As `checkpoint.State`."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Take the `state` of a method of the same arguments."""


def per_class_descent(representation: Representation, lr: float, momentum: float) -> tuple[SGD, torch.Tensor | None]:
    """SGD on the samples for a loss of class means, and what it needs of `Optimizers`. The gradient of a mean reaches
    one sample divided by the number of samples in its class, so its step is multiplied by that: by the average of all
    classes, and by the share of its own in it, (n, 1), where classes are unequal."""
    counts = torch.tensor(representation.counts, dtype=torch.float32)
    average = sum(representation.counts) / len(representation.counts)
    optimizer = SGD([representation.latent], lr=lr * average, momentum=momentum)
    if counts.min() == counts.max():
        return optimizer, None
    labels = representation.labels
    return optimizer, (counts.to(labels.device) / average)[labels].unsqueeze(1)


class Optimizers:
    """The optimiser of the samples, and Adam on the quantizer's parameters where it has any. Adam's steps have the size
    of `lr_quantizer` whatever the loss is scaled to; it is relative to the parameter's initial size, every group's
    to its own. shares: (n, 1) factors on the gradients of the samples."""

    def __init__(
        self,
        image: torch.optim.Optimizer,
        representation: Representation,
        lr_quantizer: float,
        shares: torch.Tensor | None = None,
    ) -> None:
        self._representation, self._shares = representation, shares
        groups = []
        self._relative: list[tuple[torch.nn.Parameter, torch.Tensor]] = []  # of groups of unequal sizes
        for parameter, size in representation.quantizer.sizes():
            average = float(size.mean())
            groups.append({"params": [parameter], "lr": lr_quantizer * average})
            if size.numel() > 1 and average > 0:
                self._relative.append((parameter, size / average))
        self._all = [image, torch.optim.Adam(groups)] if groups else [image]
        self._bit: float | None = None  # what a bit adds to the loss, known once there is a loss

    def descend(self, loss: torch.Tensor) -> float:
        """One step down the gradient of `loss`, of what the quantizer adds to it, and of λ·(first loss)·(bits ÷ bits at
        the start); returns the value of `loss`."""
        for optimizer in self._all:
            optimizer.zero_grad()
        (loss + self._representation.penalty() + self._rate(float(loss.detach()))).backward()
        if self._shares is not None and self._representation.latent.grad is not None:
            self._representation.latent.grad *= self._shares
        before = [parameter.detach().clone() for parameter, _ in self._relative]
        for optimizer in self._all:
            optimizer.step()
        with torch.no_grad():  # Adam moves every entry equally far
            for (parameter, relative), start in zip(self._relative, before, strict=True):
                parameter.copy_(start + (parameter - start) * relative)
        return float(loss.detach())

    def state(self) -> State:
        return {"optimizers": [optimizer.state_dict() for optimizer in self._all], "bit": self._bit}

    def restore(self, state: State) -> None:
        for optimizer, held in zip(self._all, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        self._bit = state["bit"]

    def _rate(self, loss: float) -> torch.Tensor | float:
        if self._representation.rate_weight == 0:
            return 0.0
        bits = self._representation.rate()
        if self._bit is None:
            scale = 1.0 if loss < NO_LOSS else loss
            self._bit = self._representation.rate_weight * scale / max(1.0, float(bits.detach()))
        return self._bit * bits
