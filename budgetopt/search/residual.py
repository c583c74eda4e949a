"""What the error model misses, where data suffices: a Gaussian process over the residuals of its log-odds."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

LEAST = 20  # points before there is a process
GROWTH = 1.5  # factor in points between two fits of the hyperparameters
MOST_FIT = 150  # points that hyperparameters are fitted to
MOST = 500  # points that predictions rest on
CHOICE = 0.7  # distance between two allocations that differ in one choice, beside log n and log2 of levels
ROOT_DELTA = 2.0  # scale of δ^½, which goes from 0 to about 0.6


@dataclass(frozen=True, eq=False)
class Residual:
    """A process with known hyperparameters, conditioned on residuals."""

    process: Any
    white: float  # variance of single allocations that no feature explains

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mean and standard deviation at (n, f) features, of an allocation not measured yet."""
        mean, std = self.process.predict(features, return_std=True)
        return mean, std

    def smoothed(self, features: np.ndarray, residual: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """(n,) best guess of the true residual of allocations that were measured: the process, and of what is left the
        share that is not measurement."""
        mean = self.process.predict(features)
        return mean + self.white / (self.white + variance) * (residual - mean)


def features(n: np.ndarray, delta: np.ndarray, levels: np.ndarray, choices: np.ndarray) -> np.ndarray:
    """(N, k + 3) in units in which one step matters about as much in each. n: samples a class; choices: (N, k) zeros
    and ones, methods among them."""
    numbers = np.column_stack([np.log(n), np.log2(levels), ROOT_DELTA * np.sqrt(delta)])
    return np.hstack([numbers, CHOICE / np.sqrt(2.0) * choices])


def fitted_points(count: int) -> int:
    """How many of `count` points hyperparameters are fitted to: LEAST, then GROWTH times as many, and so on; 0 below
    LEAST. They change rarely, and follow from the points alone."""
    points = LEAST
    while points * GROWTH <= count:
        points = int(points * GROWTH)
    return points if count >= LEAST else 0


def hyperparameters(features: np.ndarray, residual: np.ndarray, variance: np.ndarray, misfit: float) -> np.ndarray:
    """(3,) logarithms of amplitude, length and white variance, by maximum likelihood from the points given, the last
    MOST_FIT of them."""
    features, residual, variance = features[-MOST_FIT:], residual[-MOST_FIT:], variance[-MOST_FIT:]
    process = GaussianProcessRegressor(_kernel(misfit), alpha=variance, normalize_y=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # at a bound: the bounds are the prior
        process.fit(features, residual)
    return process.kernel_.theta


def condition(theta: np.ndarray, features: np.ndarray, residual: np.ndarray, variance: np.ndarray) -> Residual:
    """The process of hyperparameters `theta` given at most MOST points. O(N³)."""
    kernel = _kernel(1.0).clone_with_theta(theta)
    process = GaussianProcessRegressor(kernel, alpha=variance, optimizer=None)
    process.fit(features, residual)
    return Residual(process, float(np.exp(theta[2])))


def _kernel(misfit: float) -> Any:
    """Amplitude and white variance share the misfit at the start; lengths from one step to the whole space."""
    half = 0.5 * misfit**2
    amplitude = ConstantKernel(half, (1e-4, 4.0))
    return amplitude * Matern(2.0, (0.5, 20.0), nu=2.5) + WhiteKernel(half, (1e-4, 1.0))
