"""Binary predictions from many contexts: integer counters, logistic mixers with sets of weights, their average.

All decisions of one step are predicted from the state before the step; `update` then learns from all of them at once.
Everything is integer arithmetic on explicit types, and sums of integers do not depend on their order.
"""

from __future__ import annotations

import numpy as np

from budgetopt.packing.context_arithmetic import FAR, ONE, UNIT, inverse_roots, logarithms, logistic

MOST_DECISIONS = 1 << 14  # of one step: keeps 16-bit counts and 64-bit products in range
LIMIT = 1023  # observations a counter remembers; above it both counts are halved
WEIGHT_BITS = 20  # fraction bits of a weight
START = (9 << WEIGHT_BITS) // 5  # of the weights of a set together, shared evenly by the contexts
SLOW, FAST = 4, 28  # learning rate at the end, and what is added to it at the start
COOLING = 4096  # decisions of a set after which half of the addition is left


class Counters:
    """How often each slot was followed by 0 and by 1."""

    def __init__(self, slots: int) -> None:
        self._seen = np.zeros(slots, np.uint32)  # 0s in the low 16 bits, 1s in the high 16 bits
        self._logarithms = logarithms(LIMIT + 1, 5, 2).astype(np.int64)  # counts start at 2/5

    def stretched(self, slots: np.ndarray, out: np.ndarray) -> None:
        """slots: (N, m) → out: (N, m) int64, 256·ln((n1 + 2/5) / (n0 + 2/5)).

        Slots above the limit are halved first.
        """
        pairs = self._seen.take(slots)
        zeros, ones = pairs & 0xFFFF, pairs >> 16
        while (over := zeros + ones > LIMIT).any():
            zeros[over], ones[over] = (zeros[over] + 1) >> 1, (ones[over] + 1) >> 1
            self._seen[slots[over]] = zeros[over] | ones[over] << 16
        np.take(self._logarithms, ones, out=out)
        out -= self._logarithms.take(zeros)

    def update(self, slots: np.ndarray, bits: np.ndarray) -> None:
        """slots: (N, m) of the last `stretched`; bits: (m,) 0 or 1, what followed."""
        news = np.broadcast_to((1 + 0xFFFF * bits).astype(np.uint32), slots.shape)
        np.add.at(self._seen, slots.ravel(), news.ravel())


class Predictor:
    """Counters of all contexts, mixed by several mixers whose answers are averaged.

    A mixer has one weight for every input and set; the set of a decision is chosen by a small context.
    The last input is constant.
    """

    def __init__(self, contexts: int, slots: int, sets: tuple[int, ...], rate: int) -> None:
        """rate: 64 is the usual learning rate."""
        self._counters = Counters(slots)
        self._rate, self._roots = rate, inverse_roots(MOST_DECISIONS + 1)
        self._logistic = logistic().astype(np.int64)
        self._sets = sum(sets)
        self._first_sets = np.cumsum([0, *sets[:-1]])[:, None]
        self._used = np.zeros(self._sets, np.int64)
        self._weights = np.full((contexts + 1, self._sets), START // contexts, np.int64)
        self._weights[contexts] = 0
        self._rows = np.arange(contexts + 1, dtype=np.int64)[:, None] * self._sets

    def predict(self, slots: np.ndarray, sets: np.ndarray) -> np.ndarray:
        """slots: (contexts, m) of this step's decisions; sets: (mixers, m) → (m,) int64, P(1)·65536 in 1 … 65535."""
        self._slots = slots
        self._inputs = np.full((len(slots) + 1, slots.shape[1]), UNIT, np.int64)
        self._counters.stretched(slots, self._inputs[:-1])
        self._chosen = sets + self._first_sets
        self._at = self._rows + self._chosen[:, None]
        mixed = np.einsum("knm,nm->km", self._weights.take(self._at), self._inputs)
        mixed >>= WEIGHT_BITS
        self._mixed = mixed.clip(-FAR, FAR, out=mixed)
        return self._logistic.take(self._mixed.sum(axis=0) // len(sets) + FAR)

    def update(self, bits: np.ndarray) -> None:
        """Learn what the decisions of the last `predict` were. bits: (m,) int64.

        The weights go one step down the gradient of the code length of their own mixer, divided by the square root of
        the number of decisions of this step that share the set.
        """
        error = bits * ONE - self._logistic.take(self._mixed + FAR)
        together = np.bincount(self._chosen.ravel(), minlength=self._sets).astype(np.int64)
        warm = self._rate * SLOW + self._rate * FAST * COOLING // (COOLING + self._used)
        self._used += together
        pace = (error * (self._roots.take(together) * warm).take(self._chosen)) >> 18
        weights = self._weights.reshape(-1)
        for at, own in zip(self._at, pace, strict=True):  # mixer by mixer: all at once would be most of the memory
            change = self._inputs * own
            change >>= 34 - WEIGHT_BITS
            np.add.at(weights, at.ravel(), change.ravel())
        self._counters.update(self._slots, bits)
        del self._slots, self._inputs, self._chosen, self._at, self._mixed  # not kept beside those of the next step


def probabilities(predicted: np.ndarray) -> np.ndarray:
    """P(1)·65536 as whole numbers → float64 in (0, 1): exact, a division by a power of two."""
    return predicted.astype(np.float64) / float(ONE)
