"""What a trial will have reached at its last rung, foretold from an earlier one. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# before any trial: log-odds gained to the last rung, how much of a lead at the rung remains, and what e times the
# samples gain more, which train on for longer; mean and standard deviation of each
GAIN, LEAD, SIZE = (0.3, 0.4), (1.0, 0.5), (0.0, 0.3)
LUCK, LUCK_COUNT = 0.3, 2.0  # of a trial, in log-odds, and trials that this counts for
ROUNDS = 3  # coefficients and luck are found in turns


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """Log-odds at the last rung are linear in those at this one and in the logarithm of the samples a class, beside
    luck. centre: (2,) their means over the trials it was fitted to, None without any; coefficients: (3,); covariance:
    (3, 3) of them; luck: standard deviation of a trial, of both trainings together."""

    centre: np.ndarray | None
    coefficients: np.ndarray
    covariance: np.ndarray
    luck: float

    def predict(self, n: np.ndarray, at_rung: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) mean and standard deviation of log-odds at the last rung, from (N,) samples a class and log-odds."""
        n, at_rung = np.asarray(n, np.float64), np.asarray(at_rung, np.float64)
        centre = np.column_stack([at_rung, np.log(n)]) if self.centre is None else self.centre
        x = _features(n, at_rung, centre)
        variance = self.luck**2 + np.einsum("ij,jk,ik->i", x, self.covariance, x)
        base = at_rung if self.centre is None else self.centre[0]
        return base + x @ self.coefficients, np.sqrt(variance)


def _features(n: np.ndarray, at_rung: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(n)), np.column_stack([at_rung, np.log(n)]) - centre])


def extrapolation(n: np.ndarray, at_rung: np.ndarray, at_last: np.ndarray) -> Extrapolation:
    """From trials that have both: (N,) samples a class, log-odds at the rung and at the last. Bayesian linear
    regression whose prior is above; without any trial nothing else."""
    n, at_rung, at_last = (np.asarray(a, np.float64) for a in (n, at_rung, at_last))
    expected, spread = np.array([GAIN, LEAD, SIZE]).T
    precision = np.diag(spread**-2.0)
    if not len(n):
        return Extrapolation(None, expected, np.diag(spread**2.0), LUCK)
    centre = np.array([at_rung.mean(), np.log(n).mean()])
    x, gain = _features(n, at_rung, centre), at_last - centre[0]
    variance = LUCK**2
    for _ in range(ROUNDS):
        covariance = np.linalg.inv(precision + x.T @ x / variance)
        coefficients = covariance @ (precision @ expected + x.T @ gain / variance)
        variance = (LUCK_COUNT * LUCK**2 + ((gain - x @ coefficients) ** 2).sum()) / (LUCK_COUNT + len(n))
    return Extrapolation(centre, coefficients, covariance, float(np.sqrt(variance)))
