"""Search spaces: `search_spaces/*.toml` → the choices an allocation may make, as Optuna's define-by-run parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from budgetopt import declarative
from budgetopt.allocation import SELECTIONS, TEMPERATURE, Allocation, canonical_selection
from budgetopt.balance import BALANCES
from budgetopt.errors import InputError
from budgetopt.options import Options, Schema, Value, canonical, complete

if TYPE_CHECKING:
    import optuna

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class _Family(declarative.Strict):
    """A family with lists of values for its options: keys beyond the named ones are options of the family."""

    model_config = ConfigDict(extra="allow")

    @property
    def option_values(self) -> dict[str, tuple[Value, ...]]:
        """Option → the values it may take, only those that the file names, in order."""
        return {name: tuple(values) for name, values in (self.model_extra or {}).items()}

    def option_sets(self) -> list[Options]:
        """Every combination of options, as allocations store them."""
        names = list(self.option_values)
        combinations = itertools.product(*self.option_values.values())
        return [self._canonical(dict(zip(names, values, strict=True))) for values in combinations]

    def suggest_options(self, trial: optuna.Trial) -> Options:
        """Ask `trial` for every option; numbers by index, which keeps their order for the sampler."""
        chosen: dict[str, Value] = {}
        for name, values in self.option_values.items():
            label = f"{self._label}.{name}"
            if _numbers(values):
                chosen[name] = values[trial.suggest_int(label, 0, len(values) - 1)]
            else:
                chosen[name] = trial.suggest_categorical(label, [str(value) for value in values])
        return self._canonical(chosen)

    def option_parameters(self, options: Options) -> dict[str, Any]:
        """Inverse of `suggest_options`."""
        full = complete(self._schema(), options, self._label)
        return {
            f"{self._label}.{name}": values.index(full[name]) if _numbers(values) else full[name]
            for name, values in self.option_values.items()
        }

    def _canonical(self, chosen: dict[str, Value]) -> Options:
        return canonical(self._schema(), chosen, self._label)

    @property
    def _label(self) -> str:
        raise NotImplementedError

    def _schema(self) -> Schema:
        raise NotImplementedError

    @model_validator(mode="after")
    def _offered_options(self) -> Self:
        for name, values in (self.model_extra or {}).items():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"{name} must be a list of values, got {values!r}")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice: {values}")
            for value in values:
                try:
                    self._canonical({name: value})
                except InputError as error:
                    raise ValueError(str(error)) from None
        return self


class TransformChoice(_Family):
    """One transform; written as a name where it has no options."""

    name: str

    @field_validator("name")
    @classmethod
    def _known_transform(cls, name: str) -> str:
        from budgetopt.transforms import TRANSFORMS

        return _known((name,), tuple(TRANSFORMS))[0]

    @property
    def _label(self) -> str:
        return self.name

    def _schema(self) -> Schema:
        from budgetopt.transforms import TRANSFORMS

        return TRANSFORMS[self.name].options


class QuantizerChoice(_Family):
    """One quantizer family with the values it may take; families without a choice of levels or clipping leave them
    out."""

    family: str
    levels: Annotated[tuple[int, ...], Field(strict=False, validate_default=True)] = ()
    clipping: Annotated[tuple[str, ...], Field(strict=False, validate_default=True)] = ()

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
        if not values and info.field_name == "levels":
            if family.fixed_levels is None:
                raise ValueError(f"{info.data['family']} needs a list of levels")
            return (family.fixed_levels,)
        if not values:
            return family.clippings[:1]
        for value in values:
            try:
                if info.field_name == "levels":
                    family.check_levels(value)
                else:
                    family.check_clipping(value)
            except InputError as error:
                raise ValueError(str(error)) from None
        return values

    @property
    def _label(self) -> str:
        return self.family

    def _schema(self) -> Schema:
        from budgetopt.quantizers import QUANTIZERS

        return QUANTIZERS[self.family].options


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
    transform: Annotated[tuple[TransformChoice, ...], Field(min_length=1, strict=False)]
    label_bits: Annotated[tuple[Annotated[int, Field(ge=0, le=8)], ...], Field(min_length=1, strict=False)] = (0,)
    rate_weight: Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(min_length=1, strict=False)] = (
        0.0,
    )
    label_temperature: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1e6)], ...], Field(min_length=1, strict=False)
    ] = (TEMPERATURE,)
    rdoq: Annotated[tuple[Annotated[float, Field(ge=0, le=1e6)], ...], Field(min_length=1, strict=False)] = (0.0,)
    balance: Names = ("equal",)
    ipc: IpcRange = IpcRange()
    quantizer: Annotated[tuple[QuantizerChoice, ...], Field(min_length=1, strict=False)]

    @field_validator("selection")
    @classmethod
    def _known_selections(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        _known(tuple(name.partition(":")[0] for name in names), tuple(SELECTIONS))
        try:
            return tuple(dict.fromkeys(canonical_selection(name) for name in names))
        except InputError as error:
            raise ValueError(str(error)) from None

    @field_validator("balance")
    @classmethod
    def _known_balances(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_known(names, tuple(BALANCES))))

    @field_validator("transform", mode="before")
    @classmethod
    def _plain_names(cls, choices: Any) -> Any:
        if not isinstance(choices, list | tuple):
            return choices
        return [{"name": choice} if isinstance(choice, str) else choice for choice in choices]

    @field_validator("transform")
    @classmethod
    def _distinct_transforms(cls, choices: tuple[TransformChoice, ...]) -> tuple[TransformChoice, ...]:
        if len({choice.name for choice in choices}) < len(choices):
            raise ValueError("a transform appears twice; merge its options")
        return choices

    @field_validator("quantizer")
    @classmethod
    def _distinct_families(cls, choices: tuple[QuantizerChoice, ...]) -> tuple[QuantizerChoice, ...]:
        if len({choice.family for choice in choices}) < len(choices):
            raise ValueError("a family appears twice; merge its levels and clipping")
        return choices

    def suggest(self, trial: optuna.Trial, objectives: list[str], most_ipc: int) -> Allocation:
        """Ask `trial` for every choice; options, levels and clipping are asked for the chosen family only."""
        objective = trial.suggest_categorical("objective", objectives)
        selection = trial.suggest_categorical("selection", self.selection)
        transform = trial.suggest_categorical("transform", [choice.name for choice in self.transform])
        transform_options = self._transform(transform).suggest_options(trial)
        ipc = trial.suggest_int("ipc", self.ipc.min, max(self.ipc.min, min(self.ipc.max, most_ipc)), log=True)
        family = trial.suggest_categorical("quantizer", [choice.family for choice in self.quantizer])
        choice = self._quantizer(family)
        # an index keeps the order of the levels for the sampler; a categorical would lose it
        at = trial.suggest_int(f"{family}.levels", 0, len(choice.levels) - 1)
        clipping = trial.suggest_categorical(f"{family}.clipping", choice.clipping)
        quantizer_options = choice.suggest_options(trial)
        bits = self.label_bits[trial.suggest_int("label_bits", 0, len(self.label_bits) - 1)]
        weight = self.rate_weight[trial.suggest_int("rate_weight", 0, len(self.rate_weight) - 1)]
        temperature = self.label_temperature[trial.suggest_int("label_temperature", 0, len(self.label_temperature) - 1)]
        rdoq = self.rdoq[trial.suggest_int("rdoq", 0, len(self.rdoq) - 1)]
        balance = trial.suggest_categorical("balance", self.balance)
        return Allocation(
            objective,
            selection,
            ipc,
            transform,
            family,
            choice.levels[at],
            clipping,
            transform_options,
            quantizer_options,
            bits,
            weight,
            balance,
            temperature,
            rdoq,
        )

    def parameters(self, allocation: Allocation, most_ipc: int) -> dict[str, Any]:
        """Inverse of `suggest`: the parameters that `Study.enqueue_trial` takes for an allocation of this space."""
        choice = self._quantizer(allocation.quantizer)
        return {
            "objective": allocation.objective,
            "selection": allocation.selection,
            "transform": allocation.transform,
            **self._transform(allocation.transform).option_parameters(allocation.transform_options),
            "ipc": max(self.ipc.min, min(allocation.ipc, self.ipc.max, most_ipc)),
            "quantizer": allocation.quantizer,
            f"{allocation.quantizer}.levels": choice.levels.index(allocation.levels),
            f"{allocation.quantizer}.clipping": allocation.clipping,
            **choice.option_parameters(allocation.quantizer_options),
            "label_bits": self.label_bits.index(allocation.label_bits),
            "rate_weight": self._weight_at(allocation),
            "label_temperature": self._temperature_at(allocation),
            "rdoq": self.rdoq.index(allocation.rdoq),
            "balance": allocation.balance,
        }

    def kinds(self, objective: str, shape: tuple[int, ...]) -> list[Allocation]:
        """One allocation for every transform and quantizer family that samples of `shape` can take, of the fewest
        samples and levels, with the first of every other choice."""
        return [a for a in self._fewest(objective, shape, first=True) if possible(a, shape)]

    def smallest(self, objective: str, shape: tuple[int, ...]) -> list[Allocation]:
        """As `kinds`, with all other choices: one of them makes the smallest file of the space. Selections apart that
        take long, and the luck of random ones, which depends on the allocation."""
        return [a for a in self._fewest(objective, shape, first=False) if possible(a, shape)]

    def selections(self, shape: tuple[int, ...]) -> list[str]:
        """Those that samples of `shape` can take."""
        return [name for name in self.selection if _can_select(name, shape)]

    def _fewest(self, objective: str, shape: tuple[int, ...], first: bool) -> Iterator[Allocation]:
        from budgetopt.methods.selection import takes_long

        one, selections = slice(1) if first else slice(None), self.selections(shape)
        selections = [name for name in selections if first or not takes_long(name)] or selections
        for transform, c in itertools.product(self.transform, self.quantizer):
            choices = transform.option_sets()[one], c.option_sets()[one], c.clipping[one], selections[one]
            for transform_options, quantizer_options, clipping, selection in itertools.product(*choices):
                yield Allocation(
                    objective,
                    selection,
                    self.ipc.min,
                    transform.name,
                    c.family,
                    min(c.levels),
                    clipping,
                    transform_options,
                    quantizer_options,
                    min(self.label_bits),
                    balance=self.balance[0],
                    label_temperature=min(self.label_temperature),
                    rdoq=self.rdoq[0] if first else self.rdoq[-1],
                )

    def sorted_levels(self) -> SearchSpace:
        """Levels in increasing order, so that neighbours in the index are neighbours in bits."""
        choices = tuple(c.model_copy(update={"levels": tuple(sorted(set(c.levels)))}) for c in self.quantizer)
        ordered = {
            "label_bits": tuple(sorted(set(self.label_bits))),
            "rate_weight": tuple(sorted(set(self.rate_weight))),
            "label_temperature": tuple(sorted(set(self.label_temperature))),
            "rdoq": tuple(sorted(set(self.rdoq))),
        }
        return self.model_copy(update={"quantizer": choices, **ordered})

    def _weight_at(self, allocation: Allocation) -> int:
        """A set that is not optimised has no weight; the parameter is there all the same."""
        return self.rate_weight.index(allocation.rate_weight) if allocation.rate_weight in self.rate_weight else 0

    def _temperature_at(self, allocation: Allocation) -> int:
        """Hard labels have none, the parameter has."""
        return self.label_temperature.index(allocation.label_temperature) if allocation.label_bits else 0

    def _transform(self, name: str) -> TransformChoice:
        return next(c for c in self.transform if c.name == name)

    def _quantizer(self, family: str) -> QuantizerChoice:
        return next(c for c in self.quantizer if c.family == family)


def possible(allocation: Allocation, shape: tuple[int, ...]) -> bool:
    """Whether samples of `shape` can take the selection and the transform, and its coded values the quantizer."""
    from budgetopt import quantizers, transforms

    if not _can_select(allocation.selection, shape):
        return False
    try:
        transform = transforms.build(allocation.transform, allocation.transform_options)
        transform.check_shape(shape)
        options = allocation.quantizer_options
        family = quantizers.build(allocation.quantizer, allocation.levels, allocation.clipping, options)
        family.check_transform(allocation.transform, shape)
        if (allocation.rate_weight or allocation.rdoq) and not family.has_rate:
            return False
    except InputError:
        return False
    return True


def _can_select(selection: str, shape: tuple[int, ...]) -> bool:
    from budgetopt.methods.selection import check_shape

    try:
        check_shape(selection, shape)
    except InputError:
        return False
    return True


def resolve(name: str) -> SearchSpace:
    """A shipped search space by name, or a TOML file of the user's by path."""
    source, text = declarative.read("search space", name, "budgetopt.search_spaces")
    return declarative.parse(text, source, SearchSpace).sorted_levels()


def _known(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {name!r}, known are {', '.join(known)}")
    return names


def _numbers(values: tuple[Value, ...]) -> bool:
    return all(isinstance(value, int | float) for value in values)
