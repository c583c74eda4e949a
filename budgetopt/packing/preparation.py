"""How a receiver makes samples of its own raw data, where these are not samples yet: recordings, rows of a table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from budgetopt.packing.fields import Reader, Writer


class Preparation(ABC):
    """Parameters of the way from raw data to samples of the file's shape: part of the file, and counted. Immutable;
    equal parameters are equal."""

    kind: ClassVar[int]  # what the file stores: never change
    name: ClassVar[str]

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for `budgetopt inspect`."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """By the names of FORMAT.md, for JSON: what a reader without this package needs to prepare its own data."""

    @abstractmethod
    def write(self, out: Writer) -> None: ...

    @classmethod
    @abstractmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Preparation:
        """Raises `BadHeader` for parameters that do not give samples of `shape`."""
