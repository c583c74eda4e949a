"""Methods by the name that an objective file gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from budgetopt import cache
from budgetopt.methods import experts, gradient_bank, target_bank
from budgetopt.methods.base import Method, TrainingData
from budgetopt.methods.bilevel import Bilevel
from budgetopt.methods.coreset import Refined, Refinement
from budgetopt.methods.distribution_matching import DistributionMatching
from budgetopt.methods.gradient_matching import GradientMatching
from budgetopt.methods.guarded import Guarded
from budgetopt.methods.trajectory_matching import DifficultyAligned, TrajectoryMatching
from budgetopt.objective import Objective, Optimised
from budgetopt.representation import Representation

__all__ = ["METHODS", "Family", "Method", "TrainingData", "build", "shared"]


@dataclass(frozen=True)
class Family:
    """How a method is made, and what it shares of the real data.

    make: (objective, data, representation, generator, shared) → Method. shared: (objective, data, seed, cache folder,
    progress) → arrays in a picklable object that every trial of a run uses, or None where there are none.
    """

    make: Callable[..., Method]
    shared: Callable[..., Any] = lambda *_: None


METHODS: dict[str, Family] = {
    "coreset": Family(Refinement),
    "dm": Family(DistributionMatching, target_bank.cached),
    "dc": Family(GradientMatching, gradient_bank.cached),
    "dsa": Family(GradientMatching, gradient_bank.cached),
    "mtt": Family(TrajectoryMatching, experts.cached),
    "datm": Family(DifficultyAligned, experts.cached),
    "bilevel": Family(Bilevel),
}


def build(
    objective: Objective,
    data: TrainingData,
    representation: Representation,
    generator: torch.Generator,
    shared: Any = None,
) -> Method:
    """The method of `objective`, ready to step. `shared`: what `shared` gave for the objective; without it the method
    makes what it needs itself, once or in every step."""
    method: Method = METHODS[objective.method].make(objective, data, representation, generator, shared)
    if isinstance(objective, Optimised) and objective.refine_steps:
        method = Refined(method, objective, data, representation, generator)
    if isinstance(objective, Optimised) and objective.guard:
        return Guarded(method, objective.all_steps, objective.guard, data, representation, generator)
    return method


def shared(
    objective: Objective, data: TrainingData, seed: int, folder: Path, progress: cache.Progress = cache.silent
) -> Any:
    """What the method knows of the real data once for all trials, made now or read from `folder`."""
    return METHODS[objective.method].shared(objective, data, seed, folder, progress)
