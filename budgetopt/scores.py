"""The measures of one training, and of several on one file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Score:
    """One training, tested.

    recalls: of every class the share of its test samples that was found; None for a class without test samples, which
    has none. macro_f1: mean of the F1 over the classes that have test samples, 0 for one that is never found. Runs of
    earlier versions kept the accuracy alone: their macro-F1 is None, and they have no recalls.
    """

    accuracy: float
    macro_f1: float | None = None
    recalls: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, confusion: np.ndarray) -> Score:
        """confusion: (classes, classes) whole numbers, how many samples of the row's class were taken for the
        column's."""
        right, of_class, taken = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        tested = of_class > 0
        f1 = 2.0 * right[tested] / (of_class + taken)[tested]
        recalls = tuple(float(r / n) if n else None for r, n in zip(right, of_class, strict=True))
        return cls(float(right.sum() / confusion.sum()), float(f1.mean()), recalls)

    @classmethod
    def read(cls, stored: float | Mapping[str, Any]) -> Score:
        """Inverse of `to_dict`; earlier versions stored the accuracy alone."""
        if isinstance(stored, Mapping):
            return cls(stored["accuracy"], stored["macro_f1"], tuple(stored["recalls"]))
        return cls(float(stored))

    def to_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "recalls": list(self.recalls)}


@dataclass(frozen=True)
class Evaluation:
    """Scores of independent trainings on one file; every figure is their mean."""

    scores: tuple[Score, ...]
    samples: int  # tested on

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(score.accuracy for score in self.scores)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def macro_f1(self) -> float | None:
        """None where a training kept its accuracy alone."""
        known = [score.macro_f1 for score in self.scores if score.macro_f1 is not None]
        return float(np.mean(known)) if len(known) == len(self.scores) else None

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """One for every class, None for a class without test samples; empty where a training kept its accuracy
        alone."""
        if not all(score.recalls for score in self.scores):
            return ()
        of_class = zip(*(score.recalls for score in self.scores), strict=True)
        return tuple(None if None in found else float(np.mean(found)) for found in of_class)  # type: ignore[arg-type]

    @property
    def half_width(self) -> float:
        """Half of the 95 % Student-t interval of the mean over trainings; NaN for a single training."""
        from scipy.stats import t

        n = len(self.accuracies)
        if n < 2:
            return math.nan
        return float(t.ppf(0.975, n - 1) * np.std(self.accuracies, ddof=1) / math.sqrt(n))

    @property
    def binomial_half_width(self) -> float:
        """Half of the 95 % normal interval from the finite test set: what another test set would change."""
        return 1.96 * math.sqrt(self._binomial_variance)

    @property
    def standard_error(self) -> float:
        """Of the mean over trainings and of the finite test set together; used to choose candidates."""
        n = len(self.accuracies)
        spread = float(np.var(self.accuracies, ddof=1)) / n if n > 1 else 0.0
        return math.sqrt(spread + self._binomial_variance)

    @property
    def _binomial_variance(self) -> float:
        """Of an accuracy on that many samples. All right, or all wrong, are taken as half a mistake from it: a finite
        part does not make certain."""
        edge = 0.5 / self.samples
        p = min(max(self.accuracy, edge), 1.0 - edge)
        return p * (1.0 - p) / self.samples
