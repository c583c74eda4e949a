"""What an export gives."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Exported:
    """The bytes of the file, the ending its readers expect (with the dot), and what the user should know of it."""

    content: bytes
    suffix: str
    notes: tuple[str, ...] = ()

    def noting(self, note: str) -> Exported:
        return replace(self, notes=(*self.notes, note))
