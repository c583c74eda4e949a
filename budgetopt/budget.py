"""A byte budget: '30kb' → `Budget(30000)`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from budgetopt.errors import InputError

_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}  # in bytes
_UNITS |= {f"{p}b": 1000**i for i, p in enumerate("kmg", start=1)}
_UNITS |= {f"{p}ib": 1024**i for i, p in enumerate("kmg", start=1)}
_BITS = {"bit": 1, "bits": 1}  # in bits
_BITS |= {f"{p}bit": 1000**i for i, p in enumerate("kmg", start=1)}
_BITS |= {f"{p}ibit": 1024**i for i, p in enumerate("kmg", start=1)}
_NUMBER = r"[+-]?(?:[0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|[+-]?\.[0-9]+"
_WORKS = "write for example 30kb (30,000 bytes), 30KiB (30,720), 240kbit (30,000) or 30000"


@dataclass(frozen=True, order=True)
class Budget:
    """The largest allowed size of the packed file.

    `bytes` is a whole, positive number; every unit except `bit` counts bytes, so `30kb`, `30kB` and
    `30KB` all mean 30,000 bytes.
    """

    bytes: int

    def __post_init__(self) -> None:
        if self.bytes < 1:
            raise InputError(f"the budget must be at least 1 byte, got {self.bytes}: {_WORKS}")

    @property
    def bits(self) -> int:
        return 8 * self.bytes

    @classmethod
    def parse(cls, text: str | int | Budget) -> Budget:
        """Parse a budget; raises `InputError` for what is unparsable, zero, negative or below one byte;
        a fraction of a byte beyond that is dropped."""
        if isinstance(text, Budget):
            return text
        if isinstance(text, int) and not isinstance(text, bool):
            return cls(text)
        match = re.fullmatch(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*", str(text))
        if not match:
            raise InputError(f"cannot read the budget {text!r}: {_WORKS}")
        number, unit = match.group(1).replace(",", "").replace("_", ""), match.group(2).lower()
        try:
            value = Decimal(number)
        except InvalidOperation:
            raise InputError(f"cannot read the budget {text!r}: {_WORKS}") from None
        if unit in _UNITS:
            size = value * _UNITS[unit]
        elif unit in _BITS:
            size = value * _BITS[unit] / 8
        else:
            raise InputError(f"unknown unit {match.group(2)!r} in the budget {text!r}: {_WORKS}")
        if size <= 0:
            raise InputError(f"the budget must be positive, got {text!r}: {_WORKS}")
        if size < 1:
            raise InputError(f"the budget {text!r} is less than one byte: {_WORKS}")
        return cls(int(size))

    def __str__(self) -> str:
        return f"{self.bytes:,} bytes ({self.bits:,} bits)"
