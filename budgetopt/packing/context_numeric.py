"""Contexts for many levels: how far the threshold of a decision lies from numeric predictions of the value.

They are the same at all grey levels, so they learn from a few hundred values. Predictions are whole eighths of a level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FINE = 8  # parts of a level
ACTIVITIES = 6  # classes of how uneven the surroundings are: the bit length of a sum of differences, at most 5
MOST_KINDS = 4  # up to so many channels have contexts of their own
NEEDED = ("w", "n", "nw", "ne", "ww", "nn")
NEEDED_COLOUR = ("p", "pw", "pn", "q", "qw", "qn")


def bins(levels: int) -> np.ndarray:
    """→ (16·levels + 1,) the bin of each distance −8·levels … 8·levels: steps of 2 below 16, then four an octave."""
    size = FINE * levels
    rank = np.array([(a >> octave) + 4 * (octave - 1) for a in range(size + 1) if (octave := _octave(a))], np.int64)
    return np.concatenate([rank[-1] - rank[:0:-1], rank[-1] + rank])


def _octave(a: int) -> int:
    return max(a.bit_length() - 3, 1)


@dataclass(frozen=True)
class Near:
    predictions: np.ndarray  # (contexts, k·m) in eighths
    slots: np.ndarray  # (contexts, k·m), of bit 0 and bin 0


class Distances:
    """One context for every prediction, times channel and activity."""

    def __init__(self, levels: int, channels: int) -> None:
        self._size, self._depth = FINE * levels, (levels - 1).bit_length()
        self._bins = bins(levels)
        self._bin_count = int(self._bins[-1]) + 1
        self._colour = channels > 1
        self._kinds = channels if channels <= MOST_KINDS else 1
        self.contexts = 11 if self._colour else 7
        self._each = self._kinds * ACTIVITIES * self._depth * self._bin_count
        self.slots = self.contexts * self._each

    def near(self, exact: dict[str, np.ndarray], channel: np.ndarray, start: int) -> Near:
        """exact: neighbours (k, m); channel: (k, 1); start: the first slot."""
        w, n, nw, ne, ww, nn = (exact[name] for name in NEEDED)
        rough = np.abs(w - nw) + np.abs(n - nw) + np.abs(n - ne)
        predictions = [
            8 * np.maximum(np.minimum(w, n), np.minimum(np.maximum(w, n), w + n - nw)),  # median edge detector
            6 * (w + n) - 4 * nw,
            4 * (w + n) + 2 * (ne - nw),
            3 * (w + n) + nw + ne,
            8 * w + 4 * (ne - n),
            8 * (2 * w - ww),
            8 * (2 * n - nn),
        ]
        if self._colour:
            p, pw, pn, q, qw, qn = (exact[name] for name in NEEDED_COLOUR)
            later, last = channel > 0, channel > 1
            rough = rough + np.where(later, np.abs(p - pw) + np.abs(p - pn), 0)
            mean = 4 * (w + n)
            predictions += [
                np.where(later, mean + 8 * p - 4 * (pw + pn), 8 * w),
                np.where(later, 8 * (w + p - pw), 8 * n),
                np.where(later, 8 * (n + p - pn), 8 * ne),
                np.where(last, mean + 4 * (p + q) - 2 * (pw + pn + qw + qn), 2 * mean - 8 * nw),
            ]
        activity = np.minimum(_BIT_LENGTH.take(np.minimum(rough, 255)), ACTIVITIES - 1)
        kind = channel if self._kinds > 1 else np.zeros_like(channel)
        base = ((kind * ACTIVITIES + activity) * (self._depth * self._bin_count)).reshape(1, -1)
        starts = start + np.arange(self.contexts, dtype=np.int64)[:, None] * self._each
        return Near(np.stack(predictions).reshape(self.contexts, -1), starts + base)

    def slots_at(self, near: Near, prefix: np.ndarray, bit: int) -> np.ndarray:
        """→ (contexts, k·m) slots of the decision whether the value reaches (2·prefix + 1)·2^bit."""
        boundary = ((2 * prefix + 1) << (bit + 3)) - FINE // 2
        away = np.minimum(np.maximum(near.predictions - boundary, -self._size), self._size)
        return near.slots + self._bins.take(away + self._size) + bit * self._bin_count


_BIT_LENGTH = np.array([k.bit_length() for k in range(256)], np.int64)
