"""The decoder's side of a quantizer: what its symbols stand for, and how they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from budgetopt.packing import coders
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.layout import Domain, Layout

if TYPE_CHECKING:
    from budgetopt.packing.inverse import InverseTransform


class Dequantizer(ABC):
    """Side information of a quantizer. Immutable; equal ones decode equally.

    Symbols are (n, S) uint8, each below `levels`; S is the size of `symbol_layout` (K, unless one symbol stands for
    several values). The coded value of a symbol is an integer times 2^(−exponent).
    """

    family: ClassVar[int]
    name: ClassVar[str]
    exponent: int

    @property
    @abstractmethod
    def levels(self) -> int:
        """Number of distinct symbols L, 2 … 256."""

    @abstractmethod
    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        """symbols: (m, S) of the samples `index` (m,) of the file → (m, K) int64."""

    @property
    @abstractmethod
    def most(self) -> int:
        """The largest magnitude that `ints` can give, whichever symbols come."""

    @abstractmethod
    def write(self, out: Writer, domain: Domain) -> None:
        """The parameters."""

    @classmethod
    @abstractmethod
    def read(cls, fields: Reader, domain: Domain) -> Dequantizer: ...

    def symbol_layout(self, layout: Layout) -> Layout:
        return layout

    def hint(self, domain: Domain) -> np.ndarray | None:
        """(n, S) uint8 that the decoder knows of each symbol beforehand, a context for coders; or None."""
        return None

    def samples(
        self, symbols: np.ndarray, index: np.ndarray, domain: Domain, inverse: InverseTransform, shape: tuple[int, ...]
    ) -> np.ndarray:
        """→ (m, *shape) float32 in raw units: integers times one power of two, rounded once."""
        ints, exponent = inverse.apply(self.ints(symbols, index, domain), self.exponent, shape)
        return ints.astype(np.float32) * np.float32(2.0**-exponent)

    def payload(self, symbols: np.ndarray, domain: Domain) -> tuple[str, bytes]:
        """→ (name of the coder, its id and the coded symbols)."""
        if symbols.max(initial=0) >= self.levels:
            raise BadHeader(f"symbol {symbols.max()} is not below {self.levels} levels")
        inner = Domain(self.symbol_layout(domain.layout), domain.counts)
        coder, data = coders.shortest(symbols, self.levels, inner, self.hint(domain))
        return coder.name, bytes([coder.ident]) + data

    def read_payload(self, data: bytes, domain: Domain, known: frozenset[int]) -> tuple[str, np.ndarray]:
        """Inverse of `payload`; `known` are the ids of coders that the file's version has."""
        if not data or data[0] not in known:
            raise BadHeader(f"unknown coder {data[:1]!r}")
        inner = Domain(self.symbol_layout(domain.layout), domain.counts)
        coder = coders.CODERS[data[0]]
        return coder.name, coders.decode(coder, data[1:], self.levels, inner, self.hint(domain))
