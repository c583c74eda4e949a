"""An allocation: the point that the search moves."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields

from budgetopt.errors import InputError, unknown_name

SELECTIONS = ("random", "herding")


@dataclass(frozen=True)
class Allocation:
    """How a byte budget is spent. Frozen, hashable, and a plain table as JSON.

    objective: name of the objective (method with hyperparameters); ipc: samples a class, classes with fewer give
    all they have; levels: distinct values a stored number can take; selection: which real samples it starts from.
    """

    objective: str = "coreset"
    selection: str = "random"
    ipc: int = 10
    transform: str = "identity"
    quantizer: str = "uniform"
    levels: int = 2
    clipping: str = "minmax"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, expected = getattr(self, field.name), (int if field.type == "int" else str)
            if not isinstance(value, expected) or isinstance(value, bool):
                raise InputError(f"allocation: {field.name} must be {expected.__name__}, got {value!r}")
        if self.ipc < 1:
            raise InputError(f"ipc must be at least 1, got {self.ipc}")
        if not 2 <= self.levels <= 256:
            raise InputError(f"levels must be in 2..256, got {self.levels}")
        if self.selection not in SELECTIONS:
            raise unknown_name("selection", self.selection, SELECTIONS)

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, table: dict[str, str | int]) -> Allocation:
        unknown = table.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise unknown_name("allocation key", sorted(unknown)[0], [f.name for f in fields(cls)])
        return cls(**table)  # type: ignore[arg-type]

    @property
    def key(self) -> str:
        """12 hex digits that name the allocation in seeds, checkpoints and file names."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return (
            f"{self.objective} ({self.selection}), {self.ipc}/class, {self.levels} levels, "
            f"{self.quantizer} {self.clipping}, {self.transform}"
        )
