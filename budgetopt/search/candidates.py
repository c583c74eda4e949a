"""What the rate–distortion sampler chooses from: every kind of allocation in a small space, a sample of a large one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from budgetopt.allocation import Allocation
from budgetopt.seeding import derive
from budgetopt.space import SearchSpace, possible

MOST_KINDS = 2500  # in one proposal
SAMPLED = 600  # of a space that has more
NEIGHBOURS = 24  # kinds beside those of the front, in every proposal of such a space
BEST = 3  # of the front, the most accurate, whose neighbours are half of them


class Candidates(Protocol):
    """Kinds are allocations of one sample a class; every kind is offered with every number of samples."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Of every parameter that any allocation has."""

    def parameters(self, allocation: Allocation) -> dict[str, Any]:
        """As Optuna's trials hold them."""

    def allocation(self, parameters: Mapping[str, Any]) -> Allocation:
        """Inverse of `parameters`; raises `KeyError` where one is missing."""

    def kinds(self, front: Sequence[Allocation], seed: int) -> list[Allocation]:
        """Distinct kinds to choose from, given those on the front, the most accurate first. A pure function of its
        arguments."""

    def ipcs(self) -> np.ndarray:
        """Increasing samples a class, of which every one may be chosen."""


class SpaceCandidates:
    """Of a `SearchSpace`. objectives: name → optimisation steps; shape: of a sample; seed: of what is drawn from a
    large space."""

    def __init__(
        self, space: SearchSpace, objectives: Mapping[str, int], shape: tuple[int, ...], most_ipc: int, seed: int
    ) -> None:
        self._space, self._steps, self._shape = space, dict(objectives), shape
        self._most, self._seed = max(space.ipc.min, min(space.ipc.max, most_ipc)), seed
        self.distributions = self._union()
        everything = self._all()
        self._whole = everything is not None
        self._pool = everything if everything is not None else self._drawn()

    def parameters(self, allocation: Allocation) -> dict[str, Any]:
        return self._space.parameters(allocation, self._most)

    def allocation(self, parameters: Mapping[str, Any]) -> Allocation:
        return self._normal(self._suggest(_Given(parameters)))

    def kinds(self, front: Sequence[Allocation], seed: int) -> list[Allocation]:
        return self._pool if self._whole else list(dict.fromkeys([*self._pool, *self._near(front, seed)]))

    def ipcs(self) -> np.ndarray:
        return np.arange(self._space.ipc.min, self._most + 1)

    def _suggest(self, given: _Given) -> Allocation:
        return self._space.suggest(given, list(self._steps), self._most)  # type: ignore[arg-type]

    def _normal(self, allocation: Allocation) -> Allocation:
        """Nothing is trained, nothing weighs in a loss."""
        return allocation if self._steps[allocation.objective] else replace(allocation, rate_weight=0.0)

    def _kind(self, given: _Given) -> Allocation | None:
        allocation = self._normal(self._suggest(given))
        return replace(allocation, ipc=1) if possible(allocation, self._shape) else None

    def _union(self) -> dict[str, BaseDistribution]:
        """Of every branch: each transform and each family is chosen once."""
        found: dict[str, BaseDistribution] = {}
        branches = [{"transform": choice.name} for choice in self._space.transform]
        branches += [{"quantizer": choice.family} for choice in self._space.quantizer]
        for branch in branches:
            given = _Given(branch, first=True)
            self._suggest(given)
            found |= given.distributions
        return found

    def _all(self) -> list[Allocation] | None:
        """Every kind, None if there are more than MOST_KINDS. Depth first over the choices as they are asked for."""
        found: dict[Allocation, None] = {}
        path: list[tuple[str, int]] = []
        while True:
            given = _Given({"ipc": self._space.ipc.min}, first=True, path=path)
            kind = self._kind(given)
            if kind is not None:
                found[kind] = None
            if len(found) > MOST_KINDS:
                return None
            path = given.taken
            while path and path[-1][1] + 1 >= given.counts[path[-1][0]]:
                path = path[:-1]
            if not path:
                return list(found)
            path = [*path[:-1], (path[-1][0], path[-1][1] + 1)]

    def _drawn(self) -> list[Allocation]:
        """SAMPLED kinds, the same number of every objective and family where they go together."""
        strata = [(o, c.family) for o in self._steps for c in self._space.quantizer]
        rng = np.random.default_rng(derive("kinds", self._seed))
        found: dict[Allocation, None] = {}
        for turn in range(4 * SAMPLED):
            objective, family = strata[turn % len(strata)]
            kind = self._kind(_Given({"objective": objective, "quantizer": family}, rng=rng))
            if kind is not None:
                found[kind] = None
            if len(found) == SAMPLED:
                break
        return list(found)

    def _near(self, front: Sequence[Allocation], seed: int) -> list[Allocation]:
        """The kinds on the front, and NEIGHBOURS that differ from one of them in one choice and what hangs on it, in
        turn from one of the BEST and from any."""
        rng = np.random.default_rng(derive("neighbours", self._seed, seed))
        members = list(dict.fromkeys(replace(a, ipc=1) for a in front))
        found = dict.fromkeys(members)
        for turn in range(2 * NEIGHBOURS if members else 0):
            among = members[:BEST] if turn % 2 == 0 else members
            parameters = self.parameters(among[turn // 2 % len(among)])
            free = [name for name in parameters if name != "ipc" and not self.distributions[name].single()]
            if free:
                parameters.pop(free[rng.integers(len(free))])
            kind = self._kind(_Given(parameters, rng=rng))
            if kind is not None:
                found[kind] = None
            if len(found) >= len(members) + NEIGHBOURS:
                break
        return list(found)


class _Given:
    """Stands in for an Optuna trial: answers with given parameters, and notes what was asked. What is not given is the
    first choice, drawn, or the next of a path (name, index); without any of these it is a `KeyError`."""

    def __init__(
        self,
        parameters: Mapping[str, Any],
        first: bool = False,
        rng: np.random.Generator | None = None,
        path: Sequence[tuple[str, int]] = (),
    ) -> None:
        self._parameters, self._first, self._rng, self._path = parameters, first, rng, dict(path)
        self.distributions: dict[str, BaseDistribution] = {}
        self.taken: list[tuple[str, int]] = []
        self.counts: dict[str, int] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.distributions[name] = CategoricalDistribution(tuple(choices))
        if name in self._parameters and self._parameters[name] in choices:
            return self._parameters[name]
        return choices[self._index(name, len(choices))]

    def suggest_int(self, name: str, low: int, high: int, log: bool = False) -> int:
        self.distributions[name] = IntDistribution(low, high, log=log)
        if name in self._parameters:
            return int(min(max(self._parameters[name], low), high))
        return low + self._index(name, high - low + 1)

    def _index(self, name: str, count: int) -> int:
        if self._rng is not None:
            return int(self._rng.integers(count))
        if not self._first:
            raise KeyError(name)
        index = self._path.get(name, 0)
        self.taken.append((name, index))
        self.counts[name] = count
        return index
