"""Methods by the name that an objective file gives."""

from __future__ import annotations

import torch

from budgetopt.methods.base import Method, TrainingData
from budgetopt.methods.coreset import Refinement
from budgetopt.methods.distribution_matching import DistributionMatching
from budgetopt.methods.target_bank import TargetBank
from budgetopt.objective import CoresetObjective, Objective
from budgetopt.representation import Representation

__all__ = ["Method", "TrainingData", "build"]


def build(
    objective: Objective,
    data: TrainingData,
    representation: Representation,
    generator: torch.Generator,
    bank: TargetBank | None = None,
) -> Method:
    """The method of `objective`, ready to step. `bank`: shared targets, for those that use them."""
    if isinstance(objective, CoresetObjective):
        return Refinement(objective, data, representation, generator)
    return DistributionMatching(objective, data, representation, generator, bank)
