"""Length-checked reading and writing of header fields, and small fixed-point numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from budgetopt.packing.errors import BadHeader, Truncated


class Writer:
    """Appends fields to a byte string."""

    def __init__(self) -> None:
        self.data = bytearray()

    def byte(self, value: int) -> None:
        self.data.append(value)

    def unsigned(self, value: int) -> None:
        """LEB128: seven bits a byte, least significant first."""
        if value < 0:
            raise ValueError(f"unsigned field cannot hold {value}")
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def signed(self, value: int) -> None:
        """Zigzag, then LEB128: small magnitudes are short."""
        self.unsigned(2 * value if value >= 0 else -2 * value - 1)

    def floats(self, values: np.ndarray, wide: bool) -> None:
        self.data += np.asarray(values, "<f4" if wide else "<f2").tobytes()

    def raw(self, data: bytes) -> None:
        self.data += data


class Reader:
    """Reads fields in order; every read is checked against what is left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.sections: list[tuple[str, int]] = []

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def raw(self, count: int) -> bytes:
        if count > self.left:
            raise Truncated(f"the header needs {count} more bytes at offset {self._at}, {self.left} are left")
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def byte(self) -> int:
        return self.raw(1)[0]

    def unsigned(self, most: int, what: str) -> int:
        value = 0
        for shift in range(0, 64, 7):
            part = self.byte()
            value |= (part & 0x7F) << shift
            if value > most:
                break
            if part < 0x80:
                return value
        raise BadHeader(f"{what} is above its limit of {most}")

    def signed(self, most: int, what: str) -> int:
        value = self.unsigned(2 * most, what)
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def floats(self, count: int, wide: bool, what: str) -> np.ndarray:
        size = 4 if wide else 2
        values = np.frombuffer(self.raw(size * count), "<f4" if wide else "<f2").astype(np.float32)
        if not np.isfinite(values).all():
            raise BadHeader(f"{what} is not finite")
        return values

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Account all bytes read inside to `name` (for `budgetopt inspect`)."""
        start = self._at
        yield
        self.sections.append((name, self._at - start))


MANTISSA_LIMIT = 1 << 24  # any stored mantissa is below this
EXPONENT_LIMIT = 64  # any stored exponent is within ± this


def to_fixed(values: np.ndarray | list[float], bits: int) -> tuple[list[int], int]:
    """Round `values` to integers m with |m| < 2^bits and one exponent e, values ≈ m·2^(−e); trailing zero bits
    common to all m are dropped, so that round numbers are short."""
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"cannot store {array.tolist()} in fixed point")
    top = float(np.abs(array).max(initial=0.0))
    if top == 0.0:
        return [0] * array.size, 0
    exponent = min(bits - math.frexp(top)[1], EXPONENT_LIMIT)  # tiny values keep fewer bits
    mantissas = [round(float(v) * 2.0**exponent) for v in array.ravel()]
    if max(abs(m) for m in mantissas) >= 1 << bits:  # rounding carried into the next power of two
        exponent -= 1
        mantissas = [round(float(v) * 2.0**exponent) for v in array.ravel()]
    if not any(mantissas):
        raise ValueError(f"{array.tolist()} is outside the range of the format (about 2^±{EXPONENT_LIMIT})")
    while all(m % 2 == 0 for m in mantissas):
        mantissas = [m // 2 for m in mantissas]
        exponent -= 1
    if not -EXPONENT_LIMIT <= exponent <= EXPONENT_LIMIT:
        raise ValueError(f"{array.tolist()} is outside the range of the format (about 2^±{EXPONENT_LIMIT})")
    return mantissas, exponent
