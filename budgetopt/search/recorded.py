"""A table of recorded trials: every kind with every number of samples, several seeds, all rungs. One `.npz` file.

Samplers are compared on it without training anything: `simulator.py` replays it in virtual time.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.front import hypervolume
from budgetopt.search.problem import Coding, Problem

ARRAYS = ("accuracy", "error", "seconds", "bytes", "samples", "initial_bytes", "codings")


@dataclass(frozen=True, eq=False)
class Table:
    """E allocations, S seeds, R rungs. accuracy, error: (E, S, R) on validation and its standard error, NaN where an
    allocation has fewer rungs, and everywhere where the trial failed; seconds: (E, S, R) since the trial began; bytes,
    samples: (E, S) of the last file; initial_bytes: (E, S); codings: (E, 3) δ, bits and values of a sample as in
    `problem.Coding`. trained: objectives with optimisation steps."""

    allocations: tuple[Allocation, ...]
    accuracy: np.ndarray
    error: np.ndarray
    seconds: np.ndarray
    bytes: np.ndarray
    samples: np.ndarray
    initial_bytes: np.ndarray
    codings: np.ndarray
    budget: int
    chance: float
    class_counts: tuple[int, ...]
    validation: int
    trained: frozenset[str]

    def __post_init__(self) -> None:
        kinds = {replace(a, ipc=1) for a in self.allocations}
        if len(set(self.allocations)) < len(self.allocations) or len(kinds) * len(self.ipcs) != len(self.allocations):
            raise InputError("a table needs every kind of allocation once with every number of samples")

    @cached_property
    def ipcs(self) -> np.ndarray:
        return np.array(sorted({a.ipc for a in self.allocations}))

    @property
    def seeds(self) -> int:
        return self.accuracy.shape[1]

    @cached_property
    def index(self) -> dict[Allocation, int]:
        return {a: i for i, a in enumerate(self.allocations)}

    def last(self, entry: int, seed: int) -> int:
        """The last rung of a trial, −1 for one that failed."""
        return int(np.isfinite(self.accuracy[entry, seed]).sum()) - 1

    @cached_property
    def final(self) -> np.ndarray:
        """(E, S) accuracies at the last rung, NaN where a trial failed."""
        rungs = np.isfinite(self.accuracy)
        last = self.accuracy.shape[2] - 1 - rungs[..., ::-1].argmax(-1)
        return np.take_along_axis(self.accuracy, last[..., None], -1)[..., 0]

    def truth(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(E,) bytes and accuracy of every entry as the other seeds have them, or the only one there is: what a search
        that saw `seed` is judged by. NaN where all failed or are over the budget."""
        others = [s for s in range(self.seeds) if s != seed] or [seed]
        accuracy = np.where(self.bytes <= self.budget, self.final, np.nan)[:, others]
        known = np.isfinite(accuracy)
        count = np.maximum(known.sum(1), 1)
        empty = np.where(known.any(1), 1.0, np.nan)
        size = np.exp2(np.where(known, np.log2(np.maximum(self.bytes[:, others], 1)), 0.0).sum(1) / count)
        return size * empty, np.where(known, accuracy, 0.0).sum(1) / count * empty

    @cached_property
    def smallest(self) -> float:
        return float(self.bytes[self.bytes > 0].min())

    def volume(self, entries: Sequence[int], seed: int) -> float:
        """Hypervolume of the true front of these entries, as DESIGN defines it."""
        size, accuracy = (values[list(entries)] for values in self.truth(seed))
        good = np.isfinite(accuracy)
        return hypervolume(size[good], accuracy[good], 0.999 * self.smallest, self.budget, self.chance)

    def problem(self, seed: int) -> Problem:
        """What the rate–distortion sampler is told: nothing of accuracies."""
        codings = {replace(a, ipc=1): c for a, c in zip(self.allocations, self.codings, strict=True)}
        return Problem(
            candidates=Grid(self),
            budget=self.budget,
            chance=self.chance,
            class_counts=self.class_counts,
            validation=self.validation,
            trained=self.trained,
            measure=lambda kind: Coding(float(codings[kind][0]), float(codings[kind][1]), int(codings[kind][2])),
            initial_bytes=lambda a: int(self.initial_bytes[self.index[a], seed]),
        )

    def save(self, path: Path) -> None:
        facts = {
            "allocations": [a.to_dict() for a in self.allocations],
            "budget": self.budget,
            "chance": self.chance,
            "class_counts": list(self.class_counts),
            "validation": self.validation,
            "trained": sorted(self.trained),
        }
        buffer = io.BytesIO()
        arrays = {name: getattr(self, name) for name in ARRAYS}
        np.savez_compressed(buffer, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)
        path.write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Table:
        """Raises `InputError` for what is no table."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                facts = json.loads(stored["facts"].tobytes())
                arrays = {name: stored[name] for name in ARRAYS}
                return cls(
                    tuple(Allocation.from_dict(a) for a in facts.pop("allocations")),
                    **arrays,
                    class_counts=tuple(facts.pop("class_counts")),
                    trained=frozenset(facts.pop("trained")),
                    **facts,
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read the table {str(path)!r}: {error}") from None


class Grid:
    """The table as Optuna's parameters: indices of objective, samples a class, levels, and everything else."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._objectives = list(dict.fromkeys(a.objective for a in table.allocations))
        self._levels = sorted({a.levels for a in table.allocations})
        self._codings = list(dict.fromkeys(map(_other_choices, table.allocations)))
        self._entry = {tuple(self.parameters(a).values()): a for a in table.allocations}
        self._kinds = list(dict.fromkeys(replace(a, ipc=1) for a in table.allocations))
        self.distributions: Mapping[str, BaseDistribution] = {
            "objective": CategoricalDistribution(self._objectives),
            "ipc": IntDistribution(0, len(table.ipcs) - 1),
            "levels": IntDistribution(0, len(self._levels) - 1),
            "coding": CategoricalDistribution(self._codings),
        }

    def parameters(self, allocation: Allocation) -> dict[str, Any]:
        return {
            "objective": allocation.objective,
            "ipc": int(np.searchsorted(self._table.ipcs, allocation.ipc)),
            "levels": self._levels.index(allocation.levels),
            "coding": _other_choices(allocation),
        }

    def allocation(self, parameters: Mapping[str, Any]) -> Allocation:
        return self._entry[tuple(parameters[name] for name in ("objective", "ipc", "levels", "coding"))]

    def kinds(self, front: Sequence[Allocation], seed: int) -> list[Allocation]:
        return self._kinds

    def ipcs(self) -> np.ndarray:
        return self._table.ipcs

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "objective": trial.suggest_categorical("objective", self._objectives),
            "ipc": trial.suggest_int("ipc", 0, len(self._table.ipcs) - 1),
            "levels": trial.suggest_int("levels", 0, len(self._levels) - 1),
            "coding": trial.suggest_categorical("coding", self._codings),
        }

    def distances(self, parameters: Mapping[str, Any]) -> np.ndarray:
        """(E,) steps between a point of the grid and every entry: indices, and two for another objective or coding."""
        found = [self.parameters(a) for a in self._table.allocations]
        return np.array(
            [
                abs(p["ipc"] - parameters["ipc"])
                + abs(p["levels"] - parameters["levels"])
                + 2 * (p["objective"] != parameters["objective"])
                + 2 * (p["coding"] != parameters["coding"])
                for p in found
            ]
        )


def _other_choices(a: Allocation) -> str:
    """All that is left, as one word: defaults are left out."""
    table = replace(a, objective=Allocation.objective, ipc=Allocation.ipc, levels=Allocation.levels).to_dict()
    plain = Allocation().to_dict()
    return " ".join(f"{name}={value}" for name, value in table.items() if plain.get(name) != value) or "defaults"
