"""Distribution matching with the quantizer in the loop (DM, Zhao and Bilen, WACV 2023; QuADD-DM; BCDC Algorithm 2)."""

from __future__ import annotations

import torch

from budgetopt.checkpoint import State
from budgetopt.methods.base import Method, Optimizers, TrainingData, per_class_descent
from budgetopt.methods.target_bank import Condition, TargetBank, build, class_means, real_means
from budgetopt.objective import DistributionMatchingObjective
from budgetopt.representation import Representation
from budgetopt.seeding import derive


class DistributionMatching(Method):
    """Minimise Σ_c ‖mean_c f(A(T)) − mean_c f(A(S))‖², f a random network and A an augmentation drawn per class.

    With a bank the real side is looked up; without one it is embedded in every step, unless networks are trained or
    kernels have to be fitted first: those need a bank, which is then made here.
    """

    def __init__(
        self,
        objective: DistributionMatchingObjective,
        data: TrainingData,
        representation: Representation,
        generator: torch.Generator,
        bank: TargetBank | None = None,
    ) -> None:
        if bank is None and (objective.trained or objective.kernel != "linear"):
            bank = build(objective, data, derive("own bank", int(torch.randint(2**62, (), generator=generator))))
        self._objective, self._data, self._representation, self._bank = objective, data, representation, bank
        image, shares = per_class_descent(representation, objective.lr_image, objective.momentum)
        self._optimizers = Optimizers(image, representation, objective.lr_quantizer, shares)
        self._generator = generator
        self._order: list[int] = []

    def step(self) -> float:
        condition, target = self._next_target()
        return self._optimizers.descend(self.loss(condition, target))

    def loss(self, condition: Condition, target: torch.Tensor) -> torch.Tensor:
        """Matching loss under one condition; target: (classes, d) mean embeddings of the real data."""
        labels = self._representation.labels
        features = condition.embed(self._data.standardized(self._representation()), labels)
        return ((class_means(features, labels, self._data.spec.classes) - target) ** 2).sum()

    def state(self) -> State:
        return {"order": self._order, "optimizers": self._optimizers.state()}

    def restore(self, state: State) -> None:
        self._order = list(state["order"])
        self._optimizers.restore(state["optimizers"])

    def _next_target(self) -> tuple[Condition, torch.Tensor]:
        if self._bank is None:
            seed = derive("live", int(torch.randint(2**62, (), generator=self._generator)))
            condition = Condition.from_seed(seed, self._data)
            return condition, real_means(condition, seed, self._objective.real_batch, self._data)
        if not self._order:  # every target once, in a new order, before any comes again
            self._order = torch.randperm(len(self._bank), generator=self._generator).tolist()
        k = self._order.pop()
        target = torch.tensor(self._bank.means[k], device=self._data.device)  # a copy: the bank is mapped read-only
        return self._bank.condition(k, self._data), target
