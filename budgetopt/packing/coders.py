"""Coders: symbols → bytes → symbols, exactly. The one that makes the file shortest is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import constriction
import numpy as np

from budgetopt.packing.coder import FREE_SYMBOLS, SYMBOLS_PER_BYTE, Coder, capacity
from budgetopt.packing.context import ContextMixing
from budgetopt.packing.errors import BadPayload
from budgetopt.packing.layout import Domain
from budgetopt.packing.tiled import PngTiles, WebpTiles

AT_ONCE = 1 << 20  # symbols that are taken apart into bits


class RawBits(Coder):
    """⌈log2 L⌉ bits a symbol, most significant first."""

    ident: ClassVar[int] = 0
    name: ClassVar[str] = "raw"

    def encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None) -> bytes:
        symbols, width = np.ascontiguousarray(symbols, np.uint8).reshape(-1), _width(levels)
        if width == 8:
            return symbols.tobytes()
        planes = (symbols[:, None] >> np.arange(width - 1, -1, -1, dtype=np.uint8)) & 1
        return np.packbits(planes.astype(np.uint8)).tobytes()

    def decode(self, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None) -> np.ndarray:
        count, width = domain.samples * domain.values, _width(levels)
        if len(payload) != (count * width + 7) // 8:
            raise BadPayload(f"{count} symbols of {width} bits do not fill {len(payload)} bytes")
        packed, symbols = np.frombuffer(payload, np.uint8), np.empty(count, np.uint8)
        weights = 1 << np.arange(width - 1, -1, -1, dtype=np.uint16)
        for start in range(0, count, AT_ONCE):  # of whole bytes, since AT_ONCE is a multiple of 8
            part = symbols[start : start + AT_ONCE]
            own = packed[start * width // 8 : (start * width + part.size * width + 7) // 8]
            part[:] = np.unpackbits(own, count=part.size * width).reshape(-1, width) @ weights
        if symbols.max(initial=0) >= levels:
            raise BadPayload(f"a symbol is {symbols.max()}, above the {levels} levels of the file")
        return symbols.reshape(domain.samples, domain.values)


class AdaptiveRange(Coder):
    """Range coder under adaptive zeroth-order integer counts (Krichevsky–Trofimov: every count starts at ½).

    Counts are kept doubled, so that they are whole numbers: start 1, increment 2. They are updated after blocks
    that grow with what has been seen (1/32 of it), so the number of numpy calls grows like log n. Symbols are
    visited in steps of the golden ratio modulo n: each block is a fair sample of the whole set, so slow
    drifts (class by class, row by row) do not make the counts stale.
    """

    ident: ClassVar[int] = 1
    name: ClassVar[str] = "range"

    def encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None) -> bytes:
        symbols = np.ascontiguousarray(symbols, np.uint8).reshape(-1)
        encoder = constriction.stream.queue.RangeEncoder()
        counts = np.ones(levels, np.int64)
        for start, stop in _blocks(symbols.size):
            block = symbols[_visiting_order(symbols.size, start, stop)].astype(np.int32)
            encoder.encode(block, _model(counts))
            counts += 2 * np.bincount(block, minlength=levels)
        words = encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
        # Nearly constant sets cost almost nothing; zeros, which decode to the same, keep them within `capacity`.
        return words.ljust(-(-max(0, symbols.size - FREE_SYMBOLS) // SYMBOLS_PER_BYTE), b"\0")

    def decode(self, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None) -> np.ndarray:
        count = domain.samples * domain.values
        padded = payload + b"\0" * (-len(payload) % 4)
        words = np.frombuffer(padded, "<u4").astype(np.uint32)
        decoder = constriction.stream.queue.RangeDecoder(words)
        counts = np.ones(levels, np.int64)
        symbols = np.empty(count, np.uint8)
        for start, stop in _blocks(count):
            try:
                block = decoder.decode(_model(counts), stop - start)
            except (AssertionError, ValueError) as error:
                raise BadPayload(f"the range-coded symbols are invalid: {error}") from None
            symbols[_visiting_order(count, start, stop)] = block
            counts += 2 * np.bincount(block, minlength=levels)
        return symbols.reshape(domain.samples, domain.values)


CODERS: dict[int, Coder] = {
    coder.ident: coder for coder in (RawBits(), AdaptiveRange(), ContextMixing(), PngTiles(), WebpTiles())
}


PNG_IS_NEAR = 1.8  # times the shortest of the other coders


def shortest(symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None = None) -> tuple[Coder, bytes]:
    """The coder with the shortest payload; ties go to the lower id. WebP, by far the slowest for its chances, is tried
    only where PNG comes near the shortest: both win on the same kind of set, one that repeats itself."""
    tried: dict[str, tuple[Coder, bytes]] = {}
    for coder in CODERS.values():
        if not coder.supports(levels, domain) or (coder.name == WebpTiles.name and _png_is_far(tried)):
            continue
        tried[coder.name] = coder, coder.encode(symbols, levels, domain, hint)
    return min(tried.values(), key=lambda pair: (len(pair[1]), pair[0].ident))


def _png_is_far(tried: dict[str, tuple[Coder, bytes]]) -> bool:
    """On sets that repeat themselves in many ways, PNG was never above 1.76 of the others where WebP won."""
    least = min(len(payload) for _, payload in tried.values())
    return len(tried[PngTiles.name][1]) > PNG_IS_NEAR * least


def decode(coder: Coder, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None = None) -> np.ndarray:
    """(n, S) uint8, after the checks that bound time and memory. Raises `BadPayload`."""
    if domain.samples * domain.values > capacity(len(payload)):
        raise BadPayload(f"{len(payload)} coded bytes cannot hold {domain.samples * domain.values:,} symbols")
    if not coder.supports(levels, domain):
        raise BadPayload(f"the coder {coder.name} does not take such samples")
    return coder.decode(payload, levels, domain, hint)


def _width(levels: int) -> int:
    return max(1, math.ceil(math.log2(levels)))


def _model(counts: np.ndarray) -> constriction.stream.model.Categorical:
    # Whole numbers below 2^53 are exact in float64: no rounding decides a probability.
    return constriction.stream.model.Categorical(counts.astype(np.float64), perfect=False)


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < count:
        stop = min(count, start + max(1, start // 32))
        yield start, stop
        start = stop


def _visiting_order(count: int, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Elements start … stop of a permutation of 0 … count−1 by a stride near count/φ that is coprime to count."""
    stride = max(1, (count * 4051) // 6555)  # 4051/6555 ≈ 1/φ, in integers
    while math.gcd(stride, count) != 1:
        stride += 1
    return (np.arange(start, count if stop is None else stop, dtype=np.int64) * stride) % max(1, count)
