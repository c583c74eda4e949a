"""Which earlier columns of a table tell most about a column, learned from what has been coded."""

from __future__ import annotations

import numpy as np

MOST_COLUMNS = 128
MOST_SAMPLES = 1 << 20  # keeps all products below 2^63


class Parents:
    """For each column the two earlier ones of largest squared correlation with it."""

    def __init__(self, columns: int) -> None:
        self._sum = np.zeros(columns, np.int64)
        self._products = np.zeros((columns, columns), np.int64)
        self._count, self._next = 0, 8

    def learn(self, values: np.ndarray) -> bool:
        """values: (columns, m) uint8 → whether it is time to ask for `best`: whenever the samples have doubled."""
        if self._count >= MOST_SAMPLES:
            return False
        wide = values.astype(np.int64)
        self._sum += wide.sum(axis=1)
        self._products += wide @ wide.T
        self._count += values.shape[1]
        if self._count < self._next:
            return False
        self._next = 2 * self._count
        return True

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """→ first and second parent of each column (columns,); the number of columns where there is none.

        covariance² / variance of the candidate, in whole numbers; the nearer column wins ties.
        """
        columns = np.arange(len(self._sum))
        covariance = self._count * self._products - self._sum[:, None] * self._sum
        variance = covariance.diagonal()
        shift = max(0, int(variance.max()).bit_length() - 30)
        score = (covariance >> shift) ** 2 // np.maximum(variance >> shift, 1)
        score[columns[:, None] <= columns] = -1
        ranked = columns[-1] - np.argsort(-score[:, ::-1], axis=1, kind="stable")
        none = len(columns)
        return np.where(columns < 1, none, ranked[:, 0]), np.where(columns < 2, none, ranked[:, 1])
