"""Which coefficients a file holds: a bitmap over (channel, u, v), low frequencies first, range-coded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import constriction
import numpy as np

from budgetopt.packing.errors import BadHeader

Bands = tuple[int, int, int]  # channels, vertical frequencies, horizontal frequencies
_CONTEXTS = 9  # kept neighbours (0, 1, 2) × the same band of the channel before (dropped, kept, none)


@lru_cache(maxsize=4)
def low_to_high(bands: Bands) -> np.ndarray:
    """(c·a·b,) int64: flat indices of the bands by (u/a)² + (v/b)², then u, then channel."""
    _, rows, columns = bands
    c, u, v = (axis.ravel() for axis in np.indices(bands))
    order: np.ndarray = np.lexsort((c, u, (u * columns) ** 2 + (v * rows) ** 2))
    order.setflags(write=False)
    return order


def encode(kept: np.ndarray) -> bytes:
    """kept: (c, a, b) bool → bytes."""
    coder = constriction.stream.queue.RangeEncoder()
    grid = np.ones((kept.shape[0], kept.shape[1] + 1, kept.shape[2] + 1), np.int64)

    def code(channel: int, u: np.ndarray, v: np.ndarray, counts: np.ndarray) -> np.ndarray:
        bits = kept[channel, u, v].astype(np.int32)
        coder.encode(bits, _family(), counts.astype(np.float64))
        return bits

    _walk(grid, code)
    return bytes(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))


def decode(data: bytes, bands: Bands) -> np.ndarray:
    """→ (c, a, b) bool. Raises `BadHeader` for bytes that the coder cannot have written."""
    padded = data + b"\0" * (-len(data) % 4)
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(padded, "<u4").astype(np.uint32))
    grid = np.ones((bands[0], bands[1] + 1, bands[2] + 1), np.int64)
    try:
        _walk(grid, lambda _channel, _u, _v, counts: coder.decode(_family(), counts.astype(np.float64)))
    except (AssertionError, ValueError) as error:
        raise BadHeader(f"the positions of the coefficients are invalid: {error}") from None
    return grid[:, 1:, 1:].astype(bool)


def _family() -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(perfect=False)


def _walk(grid: np.ndarray, code: Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Visit the bands by u + v, channel by channel, and let `code` give each step's bits under the counts as they stood
    before it. grid: (c, a + 1, b + 1) int64; row and column 0 lie outside and count as kept."""
    counts = np.ones((_CONTEXTS, 2), np.int64)  # doubled, so that Krichevsky–Trofimov's half is whole
    channels, rows, columns = grid.shape[0], grid.shape[1] - 1, grid.shape[2] - 1
    for step in range(rows + columns - 1):
        u = np.arange(max(0, step - columns + 1), min(rows, step + 1))
        v = step - u
        for channel in range(channels):
            before = grid[channel - 1, u + 1, v + 1] if channel else 2
            context = grid[channel, u, v + 1] + grid[channel, u + 1, v] + 3 * before
            bits = code(channel, u, v, counts[context])
            grid[channel, u + 1, v + 1] = bits
            np.add.at(counts, (context, bits), 2)
