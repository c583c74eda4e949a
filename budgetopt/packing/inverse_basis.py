"""Samples as sums of stored basis vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from budgetopt.packing import coders
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.inverse import InverseTransform
from budgetopt.packing.layout import Domain, Layout, Plane, channels_of, layout_of
from budgetopt.packing.offsets import MOST_MAGNITUDE, Offsets

BASIS_BITS = range(3, 9)
MOST_ENTRIES = 1 << 24  # of a basis: bounds the memory that its integers take


@dataclass(frozen=True)
class Basis(InverseTransform):
    """x = Σ_k z_k·scale_k·2^(−scale_exponent)·mantissas[k] + offset_c.

    mantissas: one byte for each entry (k, x), the entry plus 2^(bits−1) − 1, so that there are 2^bits − 1 of them.
    """

    family: ClassVar[int] = 3
    name: ClassVar[str] = "pca"
    bits: int
    shape: tuple[int, ...]
    mantissas: bytes
    scale: tuple[int, ...]
    scale_exponent: int
    offsets: Offsets

    def __post_init__(self) -> None:
        if self.bits not in BASIS_BITS:
            raise BadHeader(f"the basis must have 3 to 8 bits, got {self.bits}")
        if any(not 1 <= s < MANTISSA_LIMIT for s in self.scale):
            raise BadHeader("a scale of the basis is not in 1..2^24-1")
        if abs(self.scale_exponent) > EXPONENT_LIMIT:
            raise BadHeader(f"the exponent of the basis must be within ±{EXPONENT_LIMIT}, got {self.scale_exponent}")

    @property
    def components(self) -> int:
        return len(self.scale)

    @cached_property
    def matrix(self) -> np.ndarray:
        """(components, K) int64: scale_k·entry, the basis times 2^scale_exponent."""
        entries = np.frombuffer(self.mantissas, np.uint8).astype(np.int64) - largest_entry(self.bits)
        return entries.reshape(self.components, -1) * np.array(self.scale, np.int64)[:, None]

    def layout(self, shape: tuple[int, ...]) -> Layout:
        return (Plane(self.components),)

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        return self.offsets.add((ints @ self.matrix).reshape(-1, *shape), exponent + self.scale_exponent)

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:
        largest = most * sum(self.scale) * largest_entry(self.bits)
        if largest >= MOST_MAGNITUDE:
            raise BadHeader(f"levels up to {most} and the basis of the file do not fit 64-bit integers together")
        self.offsets.check(largest, exponent + self.scale_exponent)

    @cached_property
    def _coded(self) -> bytes:  # a set is packed many times
        symbols = np.frombuffer(self.mantissas, np.uint8).reshape(self.components, -1)
        coder, data = coders.shortest(symbols, 2 * largest_entry(self.bits) + 1, self._domain(self.components))
        return bytes([coder.ident]) + data

    def _domain(self, components: int) -> Domain:
        """Basis vectors are coded as samples of one class."""
        return Domain(layout_of(self.shape), (components,))

    def write(self, out: Writer) -> None:
        out.byte(self.bits)
        out.unsigned(self.components)
        self.offsets.write(out)
        out.signed(self.scale_exponent)
        for scale in self.scale:
            out.unsigned(scale)
        out.unsigned(len(self._coded))
        out.raw(self._coded)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Basis:
        bits, values = fields.byte(), math.prod(shape)
        if bits not in BASIS_BITS:
            raise BadHeader(f"the basis must have 3 to 8 bits, got {bits}")
        components = fields.unsigned(min(values, MOST_ENTRIES // values), "the number of components")
        if components == 0:
            raise BadHeader("the basis has no component")
        offsets = Offsets.read(fields, channels_of(shape))
        scale_exponent = fields.signed(EXPONENT_LIMIT, "the exponent of the basis")
        scale = tuple(fields.unsigned(MANTISSA_LIMIT - 1, "a scale of the basis") for _ in range(components))
        coded = fields.raw(fields.unsigned(fields.left, "the length of the basis"))
        if not coded or coded[0] not in coders.CODERS:
            raise BadHeader(f"unknown coder of the basis {coded[:1]!r}")
        levels, domain = 2 * largest_entry(bits) + 1, Domain(layout_of(shape), (components,))
        try:
            symbols = coders.decode(coders.CODERS[coded[0]], coded[1:], levels, domain)
        except BadPayload as error:
            raise BadHeader(f"the basis: {error}") from None
        return cls(bits, shape, symbols.tobytes(), scale, scale_exponent, offsets)


def largest_entry(bits: int) -> int:
    """Entries of a basis of 3 to 8 bits are −e … e, e = 2^(bits−1) − 1."""
    return (1 << bits - 1) - 1
