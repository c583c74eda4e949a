"""Refinement of a coreset: quantization-aware feature matching to the originals (PTQ for condensation, eq. 8–10)."""

from __future__ import annotations

import torch

from budgetopt.checkpoint import State
from budgetopt.methods.base import Method, Optimizers, TrainingData
from budgetopt.objective import CoresetObjective, Optimised
from budgetopt.representation import Representation


class Refinement(Method):
    """Minimise ‖f(x) − f(deq(x̃))‖² over the stored samples x̃, x the selected real samples, f a fresh random network
    in every step. original: x, standardised as networks take it, where it is not what the representation holds now."""

    def __init__(
        self,
        objective: CoresetObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        shared: None = None,
        *,
        original: torch.Tensor | None = None,
    ) -> None:
        self._data, self._representation, self._generator = data, representation, generator
        if original is None:
            original = data.standardized(representation.transform.inverse(representation.coded().detach()))
        self.original = original
        image = torch.optim.Adam([representation.latent], lr=objective.lr_image)
        self._optimizers = Optimizers(image, representation, objective.lr_quantizer)

    def step(self) -> float:
        network = self._data.random_network(self._generator)
        with torch.no_grad():
            target = network.embed(self.original)
        features = network.embed(self._data.standardized(self._representation()))
        return self._optimizers.descend(((features - target) ** 2).sum(1).mean())

    def state(self) -> State:
        return {"original": self.original, "optimizers": self._optimizers.state()}

    def restore(self, state: State) -> None:
        self.original = state["original"].to(self._data.device)
        self._optimizers.restore(state["optimizers"])


class Refined(Method):
    """`method` for its steps, then refinement towards the samples as they are then before quantization."""

    def __init__(
        self,
        method: Method,
        objective: Optimised,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
    ) -> None:
        self._method, self._objective, self._done = method, objective, 0
        self._end = data, representation, generator

    def step(self) -> float:
        if self._done == self._objective.steps:
            self._method = self._refinement()
        self._done += 1
        return self._method.step()

    def state(self) -> State:
        return {"done": self._done, "method": self._method.state()}

    def restore(self, state: State) -> None:
        self._done = state["done"]
        if self._done > self._objective.steps:
            self._method = self._refinement()
        self._method.restore(state["method"])

    def _refinement(self) -> Method:
        return Refinement(self._objective.refinement(), *self._end)
