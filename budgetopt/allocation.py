"""An allocation: the point that the search moves."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from budgetopt.balance import BALANCES
from budgetopt.errors import InputError, unknown_name
from budgetopt.options import OneOf, Options, Schema, parse, show

SELECTIONS: dict[str, Schema] = {
    "random": {},
    "herding": {"seen": OneOf(("original", "decoded"))},
    "k-centre": {},
    "forgetting": {},
    "memorable": {},
    "crops": {},
}
TEMPERATURE = 4.0  # of soft labels: a teacher is nearly sure of what it was trained on
_OPTIONS = ("transform_options", "quantizer_options")


@dataclass(frozen=True)
class Allocation:
    """How a byte budget is spent. Frozen, hashable, and a plain table as JSON.

    objective: name of the objective (method with hyperparameters); ipc: samples a class, classes with fewer give
    all they have; levels: distinct values a stored number can take; selection: which real samples it starts from, a
    name of `SELECTIONS` with its options as in `herding:seen=decoded`; the other options are those of the family,
    defaults left out; label_bits: of a probability in soft labels, 0 for hard labels; rate_weight: λ, the weight of
    the estimated file size in the loss, relative to the method's first loss; label_temperature: divides the logits of
    the teacher of soft labels, of no effect on hard ones; balance: how these samples are shared out
    among classes of unequal size, a name of `BALANCES`; rdoq: weight of a bit against the error, in variances, in the
    rate–distortion optimised quantization of the samples that a set starts from (0: the nearest levels).
    """

    objective: str = "coreset"
    selection: str = "random"
    ipc: int = 10
    transform: str = "identity"
    quantizer: str = "uniform"
    levels: int = 2
    clipping: str = "minmax"
    transform_options: Options = ()
    quantizer_options: Options = ()
    label_bits: int = 0
    rate_weight: float = 0.0
    balance: str = "equal"
    label_temperature: float = TEMPERATURE
    rdoq: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, expected = (
                getattr(self, field.name),
                {"int": int, "str": str, "float": float}.get(str(field.type), tuple),
            )
            if not isinstance(value, expected) or isinstance(value, bool):
                raise InputError(f"allocation: {field.name} must be {expected.__name__}, got {value!r}")
        if self.ipc < 1:
            raise InputError(f"ipc must be at least 1, got {self.ipc}")
        if not 2 <= self.levels <= 256:
            raise InputError(f"levels must be in 2..256, got {self.levels}")
        if not 0 <= self.label_bits <= 8:
            raise InputError(f"label_bits must be in 0..8, got {self.label_bits}")
        if not 0 <= self.rate_weight < math.inf:
            raise InputError(f"rate_weight must not be negative, got {self.rate_weight}")
        if not 0 <= self.rdoq < math.inf:
            raise InputError(f"rdoq must not be negative, got {self.rdoq}")
        if not 0 < self.label_temperature < math.inf:
            raise InputError(f"label_temperature must be positive, got {self.label_temperature}")
        if not self.label_bits:
            object.__setattr__(self, "label_temperature", TEMPERATURE)
        if self.balance not in BALANCES:
            raise unknown_name("balance", self.balance, BALANCES)
        object.__setattr__(self, "selection", canonical_selection(self.selection))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values. What later versions added is left out where it is at its default: keys stay."""
        table = asdict(self)
        for name in _OPTIONS:
            table[name] = dict(table[name])
        added = {name: {} for name in _OPTIONS} | {"label_bits": 0, "rate_weight": 0.0, "balance": "equal"}
        added |= {"label_temperature": TEMPERATURE, "rdoq": 0.0}
        return {name: value for name, value in table.items() if name not in added or value != added[name]}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Allocation:
        unknown = table.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise unknown_name("allocation key", sorted(unknown)[0], [f.name for f in fields(cls)])
        options = {name: tuple(sorted(dict(table[name]).items())) for name in _OPTIONS if name in table}
        return cls(**(table | options))

    @property
    def key(self) -> str:
        """12 hex digits that name the allocation in seeds, checkpoints and file names."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def _how(self) -> str:
        return "" if self.balance == "equal" else f" ({self.balance})"

    @property
    def _softness(self) -> str:
        return "" if self.label_temperature == TEMPERATURE else f" at temperature {self.label_temperature:g}"

    def __str__(self) -> str:
        return (
            f"{self.objective} ({self.selection}), {self.ipc}/class{self._how}, {self.levels} levels, "
            f"{show(self.quantizer, self.quantizer_options)} {self.clipping}, "
            f"{show(self.transform, self.transform_options)}"
            + (f", {self.label_bits}-bit labels{self._softness}" if self.label_bits else "")
            + (f", RDOQ {self.rdoq:g}" if self.rdoq else "")
            + (f", rate weight {self.rate_weight:g}" if self.rate_weight else "")
        )


def canonical_selection(text: str) -> str:
    """The one spelling of equal selections. Raises `InputError` for an unknown name or option."""
    return show(*parse(text, SELECTIONS, "selection"))
