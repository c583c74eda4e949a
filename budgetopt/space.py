"""Search spaces: `search_spaces/*.toml` → the choices an allocation may make, as Optuna's define-by-run parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from budgetopt import declarative
from budgetopt.allocation import SELECTIONS, Allocation
from budgetopt.errors import InputError

if TYPE_CHECKING:
    import optuna

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class QuantizerChoice(declarative.Strict):
    """One quantizer family with the values it may take."""

    family: str
    levels: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    clipping: Names

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str) -> str:
        from budgetopt.quantizers import QUANTIZERS

        return _known((family,), tuple(QUANTIZERS))[0]

    @field_validator("levels", "clipping")
    @classmethod
    def _offered(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        from budgetopt.quantizers import QUANTIZERS

        if "family" not in info.data:  # already reported
            return values
        family = QUANTIZERS[info.data["family"]]
        for value in values:
            try:
                if info.field_name == "levels":
                    family.check_levels(value)
                else:
                    family.check_clipping(value)
            except InputError as error:
                raise ValueError(str(error)) from None
        return values


class IpcRange(declarative.Strict):
    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] = 100_000

    @model_validator(mode="after")
    def _ordered(self) -> IpcRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class SearchSpace(declarative.Strict):
    """The domain of allocations. `suggest` is the only place that turns it into parameters."""

    selection: Names
    transform: Names
    ipc: IpcRange = IpcRange()
    quantizer: Annotated[tuple[QuantizerChoice, ...], Field(min_length=1, strict=False)]

    @field_validator("selection")
    @classmethod
    def _known_selections(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, SELECTIONS)

    @field_validator("transform")
    @classmethod
    def _known_transforms(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from budgetopt.transforms import TRANSFORMS

        return _known(names, tuple(TRANSFORMS))

    @field_validator("quantizer")
    @classmethod
    def _distinct_families(cls, choices: tuple[QuantizerChoice, ...]) -> tuple[QuantizerChoice, ...]:
        if len({choice.family for choice in choices}) < len(choices):
            raise ValueError("a family appears twice; merge its levels and clipping")
        return choices

    def suggest(self, trial: optuna.Trial, objectives: list[str], most_ipc: int) -> Allocation:
        """Ask `trial` for every choice; levels and clipping are asked for the chosen family only."""
        objective = trial.suggest_categorical("objective", objectives)
        selection = trial.suggest_categorical("selection", self.selection)
        transform = trial.suggest_categorical("transform", self.transform)
        ipc = trial.suggest_int("ipc", self.ipc.min, max(self.ipc.min, min(self.ipc.max, most_ipc)), log=True)
        family = trial.suggest_categorical("quantizer", [choice.family for choice in self.quantizer])
        choice = next(c for c in self.quantizer if c.family == family)
        # an index keeps the order of the levels for the sampler; a categorical would lose it
        at = trial.suggest_int(f"{family}.levels", 0, len(choice.levels) - 1)
        clipping = trial.suggest_categorical(f"{family}.clipping", choice.clipping)
        return Allocation(objective, selection, ipc, transform, family, choice.levels[at], clipping)

    def parameters(self, allocation: Allocation, most_ipc: int) -> dict[str, Any]:
        """Inverse of `suggest`: the parameters that `Study.enqueue_trial` takes for an allocation of this space."""
        choice = next(c for c in self.quantizer if c.family == allocation.quantizer)
        return {
            "objective": allocation.objective,
            "selection": allocation.selection,
            "transform": allocation.transform,
            "ipc": max(self.ipc.min, min(allocation.ipc, self.ipc.max, most_ipc)),
            "quantizer": allocation.quantizer,
            f"{allocation.quantizer}.levels": choice.levels.index(allocation.levels),
            f"{allocation.quantizer}.clipping": allocation.clipping,
        }

    def smallest(self, objective: str) -> list[Allocation]:
        """Allocations of the fewest samples and levels, with every other choice: one of them makes the smallest file of
        the space (random selection apart, which depends on the allocation)."""
        return [
            Allocation(objective, selection, self.ipc.min, transform, c.family, min(c.levels), clipping)
            for transform in self.transform
            for c in self.quantizer
            for clipping in c.clipping
            for selection in self.selection
        ]

    def sorted_levels(self) -> SearchSpace:
        """Levels in increasing order, so that neighbours in the index are neighbours in bits."""
        choices = tuple(c.model_copy(update={"levels": tuple(sorted(set(c.levels)))}) for c in self.quantizer)
        return self.model_copy(update={"quantizer": choices})


def resolve(name: str) -> SearchSpace:
    """A shipped search space by name, or a TOML file of the user's by path."""
    source, text = declarative.read("search space", name, "budgetopt.search_spaces")
    return declarative.parse(text, source, SearchSpace).sorted_levels()


def _known(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {name!r}, known are {', '.join(known)}")
    return names
