"""Objectives: a method with its hyperparameters, from `objectives/*.toml` or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, RootModel

from budgetopt import declarative

Rate = Annotated[float, Field(gt=0, le=1e38)]
Steps = Annotated[int, Field(ge=0, le=1_000_000)]


class CoresetObjective(declarative.Strict):
    """Selected real samples, refined for `steps` steps."""

    method: Literal["coreset"]
    steps: Steps = 0
    lr_image: Rate = 0.002
    lr_quantizer: Rate = 0.01


class DistributionMatchingObjective(declarative.Strict):
    """Distribution matching; `bank` = 0 embeds real samples in every step."""

    method: Literal["dm"]
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 150
    lr_image: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    lr_quantizer: Rate = 0.01
    bank: Annotated[int, Field(ge=0, le=100_000)] = 100
    real_batch: Annotated[int, Field(ge=1, le=100_000)] = 256


Objective = CoresetObjective | DistributionMatchingObjective


class _File(RootModel[Annotated[Objective, Field(discriminator="method")]]):
    pass


def resolve(name: str) -> tuple[str, Objective]:
    """→ (short name, objective) of a shipped objective by name or of a TOML file by path."""
    source, text = declarative.read("objective", name, "budgetopt.objectives")
    return Path(name).stem, declarative.parse(text, source, _File).root


def zero_step_coreset() -> CoresetObjective:
    """The baseline that every search contains, whatever objectives it names."""
    return CoresetObjective(method="coreset")
