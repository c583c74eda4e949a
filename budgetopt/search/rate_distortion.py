"""Rate–distortion guidance: error and rate models fitted to a history, and the acquisition over all candidates.

Pure functions of arrays; what an allocation is, and where figures come from, is known to `sampler.py` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from budgetopt.search import error_model, residual
from budgetopt.search.acquisition import (
    accuracy_moments,
    expected_hypervolume_improvement,
    expected_improvement,
    probability_within,
)
from budgetopt.search.error_model import ErrorModel, Evidence
from budgetopt.search.rate_model import RateModel
from budgetopt.search.residual import Residual

SHORTLIST = 1000  # candidates that the Gaussian process looks at
SOUND, PRIOR_TRIALS = 0.95, 1.0  # share of trials that do not fail, before there are any, and trials that it counts for


@dataclass(frozen=True, eq=False)
class Kinds:
    """K kinds of allocations, their number of samples set aside. method: (K,) index; delta: (K,) δ; levels: (K,);
    choices: (K, k) zeros and ones, the last `foreign` of them other data; coding: (K,) index of the way of coding;
    growth, growth_std: (K,) of the logarithm of optimised over initial bytes; works: (K,) probability that a trial does
    not fail; work: (K,) as in `Problem`."""

    method: np.ndarray
    delta: np.ndarray
    levels: np.ndarray
    choices: np.ndarray
    foreign: int
    coding: np.ndarray
    growth: np.ndarray
    growth_std: np.ndarray
    works: np.ndarray
    work: np.ndarray

    def __len__(self) -> int:
        return len(self.method)


@dataclass(frozen=True, eq=False)
class Points:
    """N allocations. kind: (N,) index; n: (N,) samples a class."""

    kind: np.ndarray
    n: np.ndarray

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: np.ndarray | slice) -> Points:
        return Points(self.kind[index], self.n[index])

    def joined(self, other: Points) -> Points:
        return Points(np.concatenate([self.kind, other.kind]), np.concatenate([self.n, other.n]))


@dataclass(frozen=True, eq=False)
class History:
    """What was measured. finished: N points with log-odds g, their variance, and log2 of their bytes; others: points
    stopped at a rung, log-odds and variance as if they had gone on, and those of earlier runs; pending: points without
    any figure."""

    finished: Points
    g: np.ndarray
    variance: np.ndarray
    log_bytes: np.ndarray
    others: Points
    others_g: np.ndarray
    others_variance: np.ndarray
    pending: Points

    def first(self, count: int) -> History:
        """The first finished points and nothing else."""
        none, nothing = self.others[slice(0)], np.zeros(0)
        finished = self.finished[slice(count)], self.g[:count], self.variance[:count], self.log_bytes[:count]
        return History(*finished, none, nothing, nothing, none)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of N points: mean and standard deviation of accuracy and of log2 bytes, and the probability that a trial fits
    the budget and does not fail."""

    accuracy: np.ndarray
    accuracy_std: np.ndarray
    log_bytes: np.ndarray
    log_bytes_std: np.ndarray
    valid: np.ndarray


class Model:
    """Both models fitted to a history. `samples`: in all, of points with n a class."""

    def __init__(
        self,
        kinds: Kinds,
        methods: int,
        rate: RateModel,
        history: History,
        classes: int,
        log_budget: float,
    ) -> None:
        self.kinds, self.rate, self.classes, self.log_budget = kinds, rate, classes, log_budget
        evidence = self._evidence(history.finished, history.g, history.variance)
        known = evidence.joined(self._evidence(history.others, history.others_g, history.others_variance))
        self.error: ErrorModel = error_model.fit(known, methods, foreign=kinds.foreign)
        self._methods, self._history = methods, history
        if len(history.pending):
            # believe what the model says of what runs: its mean stays, its doubt there goes
            pending = history.pending
            guess = self.error.mean(*self._arguments(pending))
            noise = np.full(len(pending), np.median(history.variance) if len(history.variance) else 0.1)
            believed = known.joined(self._evidence(pending, guess, noise))
            self.error = error_model.fit(believed, methods, self.error.powers, kinds.foreign)
        self._left = history.g - self.error.mean(*self._arguments(history.finished))
        self.residual: Residual | None = None
        misfit = self.error.misfit**2
        self._set_front(self._left * misfit / (misfit + history.variance))

    @property
    def finished(self) -> int:
        """Points that finished."""
        return len(self._history.finished)

    def refine(self, theta: np.ndarray) -> None:
        """From now on with a Gaussian process of these hyperparameters."""
        history, last = self._history, slice(-residual.MOST, None)
        features = self._features(history.finished)
        self.residual = residual.condition(theta, features[last], self._left[last], history.variance[last])
        self._set_front(self.residual.smoothed(features, self._left, history.variance))

    def _set_front(self, smooth: np.ndarray) -> None:
        """`smooth`: (N,) of the residuals what is not noise: the front is what files are worth, not how lucky their
        trainings were. What runs is on it as it is expected, so that proposals differ."""
        history = self._history
        self.front_x, self.front_y = history.log_bytes, expit(history.g - self._left + smooth)
        if len(history.pending):
            expected = self.predict(history.pending)
            fits = expected.log_bytes <= self.log_budget
            self.front_x = np.concatenate([self.front_x, expected.log_bytes[fits]])
            self.front_y = np.concatenate([self.front_y, expected.accuracy[fits]])

    def _arguments(self, points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        k = self.kinds
        return points.n, k.delta[points.kind], k.method[points.kind], k.choices[points.kind]

    def _evidence(self, points: Points, g: np.ndarray, variance: np.ndarray) -> Evidence:
        return Evidence(*self._arguments(points), g, variance)

    def _features(self, points: Points) -> np.ndarray:
        k = self.kinds
        methods = np.eye(self._methods)[k.method[points.kind]]
        choices = np.hstack([methods, k.choices[points.kind]])
        return residual.features(points.n, k.delta[points.kind], k.levels[points.kind], choices)

    def hyperparameters(self) -> np.ndarray:
        """Of the Gaussian process, from all finished points."""
        history = self._history
        features = self._features(history.finished)
        return residual.hyperparameters(features, self._left, history.variance, self.error.misfit)

    def size(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """(N,) mean and standard deviation of log2 of the bytes of the optimised set."""
        k = self.kinds
        mean, std = self.rate.initial(k.coding[points.kind], points.n * self.classes)
        growth, spread = k.growth[points.kind], k.growth_std[points.kind]
        return (mean + growth) / np.log(2.0), np.hypot(std, spread) / np.log(2.0)

    def predict(self, points: Points, law_only: bool = False) -> Prediction:
        """`law_only`: without the Gaussian process, whose place the misfit takes."""
        mean, std = self.error.predict(*self._arguments(points))
        if self.residual is None or law_only:
            std = np.hypot(std, self.error.misfit)
        else:
            left, spread = self.residual.predict(self._features(points))
            mean, std = mean + left, np.hypot(std, spread)
        accuracy, accuracy_std = accuracy_moments(mean, std)
        size, size_std = self.size(points)
        valid = probability_within(size, size_std, self.log_budget) * self.kinds.works[points.kind]
        return Prediction(accuracy, accuracy_std, size, size_std, valid)

    def with_initial(self, points: Points, sizes: np.ndarray) -> Prediction:
        """The prediction for sets whose initial files have `sizes` bytes, (N,)."""
        k = self.kinds
        size = np.log2(sizes) + k.growth[points.kind] / np.log(2.0)
        spread = k.growth_std[points.kind] / np.log(2.0)
        valid = probability_within(size, spread, self.log_budget) * k.works[points.kind]
        return replace(self.predict(points), log_bytes=size, log_bytes_std=spread, valid=valid)

    def gain(self, predicted: Prediction, at_budget: bool, chance: float, exact: bool = True) -> np.ndarray:
        """(N,) expected gain of a trial: in accuracy at the budget, or in area under the front, log2 bytes times
        accuracy above chance; `exact`: with the spread of the size."""
        if at_budget:
            best = float(self.front_y.max(initial=chance))
            found = expected_improvement(predicted.accuracy, predicted.accuracy_std, best)
        else:
            found = expected_hypervolume_improvement(
                predicted.log_bytes,
                predicted.accuracy,
                predicted.accuracy_std,
                self.front_x,
                self.front_y,
                (self.log_budget, chance),
                predicted.log_bytes_std if exact else None,
            )
        return found * predicted.valid

    def cost(self, points: Points) -> np.ndarray:
        """(N,) of a trial, in those of its evaluation."""
        return 1.0 + self.kinds.work[points.kind] * points.n * self.classes

    def ranked(self, points: Points, at_budget: bool, chance: float) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the SHORTLIST points that gain most for what they cost, best first, and their expected gains. The
        law alone scores all of them, the whole model those that it leaves; ties to earlier points."""
        rough = self.gain(self.predict(points, law_only=True), at_budget, chance, exact=False)
        order = np.argsort(-rough / self.cost(points), kind="stable")[:SHORTLIST]
        gain = self.gain(self.predict(points[order]), at_budget, chance)
        best = np.argsort(-gain / self.cost(points[order]), kind="stable")
        return order[best], gain[best]


def works(failed: np.ndarray, ended: np.ndarray, prior: np.ndarray | float = SOUND) -> np.ndarray:
    """Probability that a trial does not fail, of groups with `failed` of `ended` trials: the mean of a beta posterior
    whose prior mean counts for PRIOR_TRIALS trials."""
    return (PRIOR_TRIALS * prior + ended - failed) / (PRIOR_TRIALS + ended)
