"""What an export gives."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from budgetopt.packing import PackedSet


@dataclass(frozen=True)
class Exported:
    """The bytes of the file, the ending its readers expect (with the dot), and what the user should know of it."""

    content: bytes
    suffix: str
    notes: tuple[str, ...] = ()

    def noting(self, note: str) -> Exported:
        return replace(self, notes=(*self.notes, note))


def preparation_of(packed: PackedSet) -> dict[str, str]:
    """{"preparation": JSON of its name and parameters} where samples were made of raw data, else nothing."""
    made = packed.preparation
    return {} if made is None else {"preparation": json.dumps({"name": made.name, **made.parameters()})}
