"""Values as they are, for baselines: float32, float16, or rounded to whole 8-bit numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.inverse import Identity
from budgetopt.packing.layout import Domain
from budgetopt.packing.levels import UniformLevels

if TYPE_CHECKING:
    from budgetopt.packing.inverse import InverseTransform

_TYPES = ("<f4", "<f2")
_BYTES = 2  # the form of 8-bit numbers


@dataclass(frozen=True)
class FloatValues(Dequantizer):
    """Symbols are (n, K) float32, stored as little-endian numbers of `width` 4 or 2 bytes: exact bits, no integers.
    Only without a transform, since those calculate with integers."""

    family: ClassVar[int] = 8
    name: ClassVar[str] = "none"
    width: int
    exponent: int = 0

    @property
    def levels(self) -> int:
        return 256

    @property
    def most(self) -> int:
        return 1 << 62  # no transform can take these

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        raise BadHeader("floating-point values are not whole numbers")

    def samples(
        self, symbols: np.ndarray, index: np.ndarray, domain: Domain, inverse: InverseTransform, shape: tuple[int, ...]
    ) -> np.ndarray:
        if not isinstance(inverse, Identity):
            raise BadHeader(f"floating-point values take no transform, got {inverse.name}")
        return symbols.reshape(-1, *shape)

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(0 if self.width == 4 else 1)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> Dequantizer:  # type: ignore[override]
        form = fields.byte()
        if form == _BYTES:
            return ByteValues.read_scale(fields, domain)
        if form >= len(_TYPES):
            raise BadHeader(f"unknown type of numbers {form}")
        return cls(4 >> form)

    def payload(self, symbols: np.ndarray, domain: Domain) -> tuple[str, bytes]:
        if symbols.dtype != np.float32 or not np.isfinite(symbols).all():
            raise BadHeader("floating-point values must be finite float32")
        with np.errstate(over="ignore"):
            stored = symbols.astype(self._type)
        if not np.isfinite(stored).all():
            raise BadHeader(f"a value is too large for {8 * self.width}-bit floating point")
        return f"float{8 * self.width}", stored.tobytes()

    def read_payload(self, data: bytes, domain: Domain, known: frozenset[int]) -> tuple[str, np.ndarray]:
        if len(data) != domain.samples * domain.values * self.width:
            raise BadPayload(f"{domain.samples}×{domain.values} numbers do not fill {len(data)} bytes")
        values = np.frombuffer(data, self._type).astype(np.float32).reshape(domain.samples, domain.values)
        if not np.isfinite(values).all():
            raise BadPayload("a value is not finite")
        return f"float{8 * self.width}", values

    @property
    def _type(self) -> str:
        return _TYPES[0 if self.width == 4 else 1]


@dataclass(frozen=True)
class ByteValues(UniformLevels):
    """256 uniform levels, 0 … 255 for pictures, that any coder may code."""

    family: ClassVar[int] = FloatValues.family
    name: ClassVar[str] = "none"

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(_BYTES)
        super().write(out, domain)

    @classmethod
    def read_scale(cls, fields: Reader, domain: Domain) -> ByteValues:
        scale = UniformLevels.read(fields, domain)
        if scale.count != 256:
            raise BadHeader(f"8-bit numbers have 256 levels, got {scale.count}")
        return cls(scale.count, scale.low, scale.step, scale.exponent)
