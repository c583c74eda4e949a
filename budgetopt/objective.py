"""Objectives: a method with its hyperparameters, from `objectives/*.toml` or a file of the user's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, RootModel, ValidationInfo, field_validator, model_validator

from budgetopt import declarative, protocol

Rate = Annotated[float, Field(gt=0, le=1e38)]
Steps = Annotated[int, Field(ge=0, le=1_000_000)]


class CoresetObjective(declarative.Strict):
    """Selected real samples, refined for `steps` steps."""

    method: Literal["coreset"]
    steps: Steps = 0
    lr_image: Rate = 0.002
    lr_quantizer: Rate = 0.01

    @property
    def all_steps(self) -> int:
        return self.steps


class Optimised(declarative.Strict):
    """`steps` of a method, and `refine_steps` after them that draw the features of the quantized samples to those of
    the samples before quantization (PTQ eq. 10). Where `guard` is not 0, the set is put back to its start if that
    trains the better network in this share of the protocol's steps (`methods.guarded`)."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)]
    lr_quantizer: Rate = 0.01
    refine_steps: Steps = 0
    lr_refine: Rate = 0.002
    guard: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def all_steps(self) -> int:
        return self.steps + self.refine_steps

    def shortened(self, share: float) -> Self:
        """With that share of all steps, one at least."""
        steps, refine_steps = max(1, math.ceil(self.steps * share)), math.ceil(self.refine_steps * share)
        return self.model_copy(update={"steps": steps, "refine_steps": refine_steps})

    def refinement(self) -> CoresetObjective:
        """The end of the method as an objective of its own."""
        steps, rate = self.refine_steps, self.lr_refine
        return CoresetObjective(method="coreset", steps=steps, lr_image=rate, lr_quantizer=self.lr_quantizer)


class DistributionMatchingObjective(Optimised):
    """Distribution matching; `bank` = 0 embeds real samples in every step, in random networks and without a kernel."""

    method: Literal["dm"]
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 150
    lr_image: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    bank: Annotated[int, Field(ge=0, le=100_000)] = 100
    real_batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    trained: Annotated[int, Field(ge=0, le=100_000)] = 0
    kernel: Literal["linear", "gaussian"] = "linear"

    @model_validator(mode="after")
    def _prepared(self) -> DistributionMatchingObjective:
        if self.bank == 0 and (self.trained or self.kernel != "linear"):
            raise ValueError("trained networks and the gaussian kernel are prepared in a bank: set bank to 1 or more")
        return self


class TrajectoryObjective(Optimised):
    """What the two methods of trajectory matching have in common."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 400
    lr_image: Rate = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    student_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    student_lr: Rate = 0.1
    lr_step: Rate = 0.02
    batch: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    exact: bool = False
    experts: Annotated[int, Field(ge=1, le=10_000)] = 3
    expert_epochs: Annotated[int, Field(ge=1, le=10_000)] = 6
    expert_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    expert_lr: Rate = 0.1
    expert_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    match_epochs: Annotated[int, Field(ge=1, le=10_000)] = 1
    max_start: Annotated[int, Field(ge=0, le=10_000, validate_default=True)] = 3

    @field_validator("max_start")
    @classmethod
    def _has_targets(cls, latest: int, info: ValidationInfo) -> int:
        epochs, ahead = info.data.get("expert_epochs", math.inf), info.data.get("match_epochs", 1)
        if latest + ahead > epochs:
            raise ValueError(f"must be at most expert_epochs - match_epochs = {epochs - ahead}")
        return latest


class TrajectoryMatchingObjective(TrajectoryObjective):
    """Trajectory matching; `batch` = 0 takes all samples in every student step, `expert_steps` = 0 the whole train part
    in every epoch of an expert."""

    method: Literal["mtt"]


class DifficultyAlignedObjective(TrajectoryObjective):
    """Trajectory matching within a window of epochs that opens to `max_start`, with labels that are learned."""

    method: Literal["datm"]
    lr_label: Rate = 0.1
    momentum_label: Annotated[float, Field(ge=0, lt=1)] = 0.9
    min_start: Annotated[int, Field(ge=0, le=10_000)] = 0
    first_max_start: Annotated[int, Field(ge=0, le=10_000, validate_default=True)] = 1
    growth: Annotated[float, Field(ge=0, le=1)] = 0.2

    @field_validator("first_max_start")
    @classmethod
    def _opens(cls, first: int, info: ValidationInfo) -> int:
        least, most = info.data.get("min_start", 0), info.data.get("max_start", math.inf)
        if not least <= first <= most:
            raise ValueError(f"must be in min_start..max_start, {least}..{most}")
        return first


class Augmentation(declarative.Strict):
    """Strengths as in a protocol (`augmentation.draw`); what is left out is not applied."""

    shift: Annotated[float, Field(ge=0, le=1)] | None = None
    scale: Annotated[float, Field(ge=1, le=10)] | None = None
    rotate: Annotated[float, Field(ge=0, le=180)] | None = None
    flip: Annotated[float, Field(ge=0, le=1)] | None = None
    brightness: Annotated[float, Field(ge=0, le=100)] | None = None
    contrast: Annotated[float, Field(ge=0, le=100)] | None = None
    cutout: Annotated[float, Field(ge=0, le=1)] | None = None
    shift3d: Annotated[float, Field(ge=0, le=1)] | None = None
    rotate3d: Annotated[float, Field(ge=0, le=180)] | None = None
    flip3d: Annotated[float, Field(ge=0, le=1)] | None = None


class GradientMatchingObjective(Optimised):
    """Gradient matching; `bank` = 0 takes real gradients in every step. A network is matched `outer` times, with
    `inner` steps on the synthetic set between. `augment` is the dataset's where it is left out; `dc` has none."""

    method: Literal["dc", "dsa"]
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    lr_image: Rate = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    bank: Annotated[int, Field(ge=0, le=100_000)] = 100
    real_batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    outer: Annotated[int, Field(ge=1, le=10_000)] = 1
    inner: Annotated[int, Field(ge=0, le=10_000)] = 1
    lr_network: Rate = 0.01
    augment: Augmentation | None = None

    @field_validator("outer")
    @classmethod
    def _trained_live(cls, outer: int, info: ValidationInfo) -> int:
        if outer > 1 and info.data.get("bank"):
            raise ValueError(f"a bank of {info.data['bank']} holds random networks only: set bank to 0, or outer to 1")
        return outer

    @field_validator("augment")
    @classmethod
    def _not_for_dc(cls, augment: Augmentation | None, info: ValidationInfo) -> Augmentation | None:
        if augment is not None and info.data.get("method") == "dc":
            raise ValueError("dc matches without augmentation: take dsa, or leave it out")
        return augment


class BilevelObjective(Optimised):
    """Bilevel distillation; the last `unroll` of `inner_steps` carry a graph, all where there are fewer."""

    method: Literal["bilevel"]
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    lr_image: Rate = 0.003
    gradient: Literal["unrolled", "implicit"] = "unrolled"
    inner_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    unroll: Annotated[int, Field(ge=1, le=10_000)] = 20
    lr_network: Rate = 0.2
    weight_decay: Annotated[float, Field(ge=0, le=1e38)] = 5e-4
    batch: Annotated[int, Field(ge=1, le=100_000)] = 50
    augment: bool = True
    restart: Annotated[int, Field(ge=1, le=1_000_000)] = 6
    val_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    val_batch: Annotated[int, Field(ge=1, le=100_000)] = 256
    solver: Literal["cg", "neumann"] = "cg"
    terms: Annotated[int, Field(ge=1, le=10_000)] = 20
    damping: Annotated[float, Field(ge=0, le=1e38)] = 0.01


Objective = (
    CoresetObjective
    | DistributionMatchingObjective
    | TrajectoryMatchingObjective
    | DifficultyAlignedObjective
    | GradientMatchingObjective
    | BilevelObjective
)


def check_augmentation(name: str, chosen: Objective, shape: tuple[int, ...]) -> None:
    """Raise `InputError` where the objective `name` has an augmentation of its own that samples of `shape` cannot
    take."""
    if isinstance(chosen, GradientMatchingObjective) and chosen.augment is not None:
        protocol.check_augmentation(chosen.augment.model_dump(exclude_none=True), shape, f"objective {name}")


class _File(RootModel[Annotated[Objective, Field(discriminator="method")]]):
    pass


def resolve(name: str) -> tuple[str, Objective]:
    """→ (short name, objective) of a shipped objective by name or of a TOML file by path."""
    source, text = declarative.read("objective", name, "budgetopt.objectives")
    return Path(name).stem, declarative.parse(text, source, _File).root


def zero_step_coreset() -> CoresetObjective:
    """The baseline that every search contains, whatever objectives it names."""
    return CoresetObjective(method="coreset")
