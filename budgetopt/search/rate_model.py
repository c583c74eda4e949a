"""The rate model: the length of a file before it is packed, and how it grows while its set is optimised.

Initial sizes start from the zeroth-order entropy of the symbols, measured on a small set without packing it, and are
corrected by what packings turned out to be: a line in log n, h and log n · h (h: entropy of a value) for all, then the
mean of its family and transform, then its own packings, interpolated in log n. Growth is a mean per method, levels and
λ, drawn to the method's and that to all methods'.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

OVERHEAD = 40.0  # bytes of a file without samples: header, counts, levels, checksum
LINE_MEAN = np.array([-0.3, 0.0, 0.0, 0.0])  # contexts save a quarter of the zeroth-order entropy
LINE_SPREAD = np.array([0.3, 0.05, 0.1, 0.03])
FAMILY_COUNT, OWN_COUNT = 1.0, 0.3  # packings that the mean above counts for
SPREAD, SPREAD_COUNT = 0.12, 4.0  # of the logarithm of a size around the model, before there are packings
EXACT = 0.01  # left beside a packing of the same coding at nearly the same n
PER_LOG_N = 0.05  # that a known packing loses with distance in log n
GROWTH_MEAN, GROWTH_SPREAD = 0.10, 0.12  # of the logarithm of optimised over initial bytes a sample
GROWTH_COUNT = 2.0  # trials that the mean above counts for


@dataclass(frozen=True, eq=False)
class Packings:
    """N known sizes. coding: index of a way of coding; n: samples in all; bytes: of the file."""

    coding: np.ndarray
    n: np.ndarray
    bytes: np.ndarray


@dataclass(frozen=True, eq=False)
class Codings:
    """K ways of coding. bits: entropy of a sample; values: symbols a sample; family: (K,) index of the group whose
    packings say most about each other."""

    bits: np.ndarray
    values: np.ndarray
    family: np.ndarray


class RateModel:
    """Fitted to packings. O(P + K) to fit, O(N) to predict."""

    def __init__(self, codings: Codings, packings: Packings) -> None:
        self._codings = codings
        coding, log_n = packings.coding, np.log(packings.n)
        left = np.log(packings.bytes) - self._entropy(coding, packings.n)
        x = self._line_columns(coding, packings.n)
        noise = SPREAD**2
        gram = x.T @ x / noise + np.diag(LINE_SPREAD**-2)
        self._line = np.linalg.solve(gram, x.T @ left / noise + LINE_MEAN / LINE_SPREAD**2)
        left = left - x @ self._line
        family = codings.family[coding]
        self._family, _ = _means(left, family, int(codings.family.max(initial=-1)) + 1, FAMILY_COUNT)
        left = left - self._family[family]
        self._own, count = _means(left, coding, len(codings.bits), OWN_COUNT)
        self._spread = np.sqrt((SPREAD_COUNT * SPREAD**2 + (left**2).sum()) / (SPREAD_COUNT + len(left)))
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for k in np.flatnonzero(count):
            mine = coding == k
            at, inverse = np.unique(log_n[mine], return_inverse=True)
            self._known[int(k)] = at, np.bincount(inverse, left[mine]) / np.bincount(inverse)

    def initial(self, coding: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) mean and standard deviation of the logarithm of the initial bytes of n samples."""
        coding, n = np.asarray(coding), np.asarray(n, np.float64)
        mean = self._entropy(coding, n) + self._line_columns(coding, n) @ self._line
        mean = mean + self._family[self._codings.family[coding]]
        std = np.full(len(n), self._spread)
        log_n = np.log(n)
        order = np.argsort(coding, kind="stable")
        ends = np.searchsorted(coding[order], np.arange(len(self._codings.bits) + 1))
        for k, (at, left) in self._known.items():
            mine = order[ends[k] : ends[k + 1]]
            if len(mine) == 0:
                continue
            place = log_n[mine]
            before = np.searchsorted(at, place).clip(1, len(at)) - 1  # the known size before it, or the first
            distance = np.minimum(np.abs(place - at[before]), np.abs(place - at[np.minimum(before + 1, len(at) - 1)]))
            trust = EXACT + PER_LOG_N * distance
            std[mine] = np.minimum(trust, self._spread)
            known = np.interp(place, at, left)
            # far from every packing of its own, only its mean says something
            near = np.clip(1.0 - trust / self._spread, 0.0, 1.0)
            mean[mine] += near * known + (1.0 - near) * self._own[k]
        return mean, std

    def _entropy(self, coding: np.ndarray, n: np.ndarray) -> np.ndarray:
        return np.log(OVERHEAD + n * self._codings.bits[coding] / 8.0)

    def _line_columns(self, coding: np.ndarray, n: np.ndarray) -> np.ndarray:
        h = self._codings.bits[coding] / self._codings.values[coding] - 2.0
        u = np.log(n) - 5.0
        return np.column_stack([np.ones(len(h)), u, h, u * h])


@dataclass(frozen=True, eq=False)
class Growth:
    """log(optimised over initial bytes a sample) by (method, levels, λ)."""

    of_all: tuple[float, float]
    of_method: dict[Hashable, tuple[float, float]]
    of_kind: dict[Hashable, tuple[float, float]]
    spread: float

    def of(self, method: Hashable, kind: Hashable) -> tuple[float, float]:
        """Mean and standard deviation for an allocation of `method` whose (method, levels, λ) is `kind`."""
        mean, count = self.of_kind.get(kind) or (self.of_method.get(method, self.of_all)[0], 0.0)
        return mean, self.spread * np.sqrt(1.0 + 1.0 / (GROWTH_COUNT + count))


def fit_growth(methods: Sequence[Hashable], kinds: Sequence[Hashable], growth: Sequence[float]) -> Growth:
    """From finished trials of optimised sets: three lists of the same length."""
    values = np.asarray(growth, np.float64)

    def shrunk(keys: Sequence[Hashable], above: Sequence[float]) -> dict[Hashable, tuple[float, float]]:
        found: dict[Hashable, tuple[float, float]] = {}
        for key in dict.fromkeys(keys):
            mine = [i for i, k in enumerate(keys) if k == key]
            total = float(values[mine].sum()) + GROWTH_COUNT * above[mine[0]]
            found[key] = total / (len(mine) + GROWTH_COUNT), float(len(mine))
        return found

    (everything,) = shrunk([None] * len(values), [GROWTH_MEAN] * len(values)).values() or [(GROWTH_MEAN, 0.0)]
    of_method = shrunk(list(methods), [everything[0]] * len(values))
    of_kind = shrunk(list(kinds), [of_method[m][0] for m in methods])
    left = values - np.array([of_kind[k][0] for k in kinds]) if len(values) else values
    spread = float(np.sqrt((SPREAD_COUNT * GROWTH_SPREAD**2 + (left**2).sum()) / (SPREAD_COUNT + len(values))))
    return Growth(everything, of_method, of_kind, spread)


def _means(values: np.ndarray, group: np.ndarray, count: int, prior: float) -> tuple[np.ndarray, np.ndarray]:
    """(count,) means of every group, drawn to zero by `prior` pseudo-values, and the numbers of values."""
    number = np.bincount(group, minlength=count)
    return np.bincount(group, values, minlength=count) / (number + prior), number
