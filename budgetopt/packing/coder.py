"""The coder contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from budgetopt.packing.layout import Domain

# Most symbols of a payload: bounds the memory and time that a small file can ask for.
FREE_SYMBOLS, SYMBOLS_PER_BYTE = 1 << 20, 256


def capacity(payload_bytes: int) -> int:
    """The largest number of symbols that a payload of this length may hold."""
    return FREE_SYMBOLS + SYMBOLS_PER_BYTE * payload_bytes


class Coder(ABC):
    """Lossless coder of n·S symbols in 0 … levels−1, laid out as `domain` says.

    `hint`: (n, S) uint8 that both sides know of each symbol beforehand, or None; a coder is free to ignore it.
    """

    ident: ClassVar[int]
    name: ClassVar[str]

    def supports(self, levels: int, domain: Domain) -> bool:
        """Whether this coder takes such symbols: some are for pictures only, or slow where there are many steps."""
        return True

    @abstractmethod
    def encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None) -> bytes:
        """symbols: (n, S) uint8, each below `levels` → payload."""

    @abstractmethod
    def decode(self, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None) -> np.ndarray:
        """→ (n, S) uint8. Raises `BadPayload` for a payload that contradicts the header."""
