"""The error model: log-odds of accuracy from the number of samples and the distortion, after BCDC Theorem 4.5.

    g = e_m − A_m·n^(−p_m) − B_m·δ^½ − D_m·δ + w·z,   A, B, D ≥ 0, p in `POWERS`

n: samples a class; δ: mean squared error of the packed initial set over the variance of its values, in place of the
theorem's 2^(−2b), which only scalar quantizers have; m: the method (objective); z: what else an allocation chooses, as
zeros and ones. κ/√n is the case p = ½; L·C·2^(−b) and β·C²·2^(−2b) are the terms of δ^½ and δ. Rising in n and falling
in δ by construction.

All is Bayesian linear regression for given powers: every method's coefficients are drawn to the pool's, the pool's to a
weak prior, w to zero, so that few data, or none, give a wide but sensible answer. The powers go over a small grid.

How large w are, and how far single allocations lie off the law, follows from the marginal likelihood. Residuals of the
fit would not do: a dozen trials leave hardly any beside as many coefficients, whatever the law is worth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import nnls
from scipy.special import logit

POWERS = np.array([0.2, 0.35, 0.5, 0.7, 1.0])
# of the pool's (e, A, B, D), in log-odds: from one sample a class to the whole set accuracy goes from about a third to
# nearly all; a set of 2 levels (δ about 0.2) loses about 0.4. Fits to all recorded trials of digits and Fashion-MNIST
# have A from 1.7 to 3.2, B from 0.4 to 1.2 and D up to 0.4
PRIOR_MEAN = np.array([3.5, 3.0, 0.7, 0.5])
PRIOR_SPREAD = np.array([3.0, 2.0, 0.7, 0.7])
METHOD_SPREAD = np.array([0.7, 0.7, 0.7, 0.7])  # of a method's around the pool's
CHOICE, CHOICE_SPREAD = 0.2, 0.5  # spread of w: prior median, and spread of its logarithm
CHOICES = np.array([0.1, 0.14, 0.2, 0.28, 0.4])
OTHER_DATA = 1.5  # spread of how much easier other data are
POWER_PRIOR, POWER_SPREAD, POWER_METHOD = 0.4, 0.3, 0.2  # mean and spread of the pool's power, of a method's around it
MISFIT, MISFIT_SPREAD = 0.15, 0.7  # lack of fit of single allocations: prior median, and spread of its logarithm
MISFITS = np.geomspace(0.01, 1.0, 30)
TAILS = 4.0  # degrees of freedom of Student's t: how little a trial far off counts
ROUNDS = 3  # of reweighting
TERMS = 4  # e, A, B, D


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured, N rows. n: samples a class; delta: δ; method: index; choices: (N, k) 0 or 1; g: log-odds of
    accuracy; variance: of g, from replicates and the finite validation part."""

    n: np.ndarray
    delta: np.ndarray
    method: np.ndarray
    choices: np.ndarray
    g: np.ndarray
    variance: np.ndarray

    def __len__(self) -> int:
        return len(self.g)

    def joined(self, other: Evidence) -> Evidence:
        return Evidence(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """A fitted model. coefficients: (M, 4) of every method, e, A, B, D; pool: (4,) theirs; powers: (M,); weights:
    (k,) w; choice: their prior spread; misfit: standard deviation of single allocations around the law, in log-odds;
    covariance: (4M + 4 + k + M)² of methods', pool's, w, powers."""

    coefficients: np.ndarray
    pool: np.ndarray
    powers: np.ndarray
    weights: np.ndarray
    choice: float
    misfit: float
    covariance: np.ndarray = field(repr=False)

    def mean(self, n: np.ndarray, delta: np.ndarray, method: np.ndarray, choices: np.ndarray) -> np.ndarray:
        """(N,) log-odds."""
        e, a, b, d = self.coefficients[method].T
        return e - a * n ** -self.powers[method] - b * np.sqrt(delta) - d * delta + choices @ self.weights

    def predict(
        self, n: np.ndarray, delta: np.ndarray, method: np.ndarray, choices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N,) mean and standard deviation of the law's log-odds: what the coefficients leave open, without the misfit
        of a single allocation. O(N·c²) for c coefficients."""
        x = _design(n, delta, method, choices, self.powers)
        methods = len(self.powers)
        slope = self.coefficients[method, 1] * n ** -self.powers[method] * np.log(n)  # ∂g/∂p
        powers = np.zeros((len(x), methods))
        powers[np.arange(len(x)), method] = slope
        x = np.hstack([x, powers])
        variance = np.einsum("ij,ij->i", x @ self.covariance, x)
        return self.mean(n, delta, method, choices), np.sqrt(np.maximum(variance, 0.0))


def log_odds(accuracy: np.ndarray, error: np.ndarray, samples: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of accuracies measured on `samples` validation samples with standard errors `error`, and their
    variances. An accuracy of 1 is taken as half a mistake."""
    edge = 0.5 / samples
    p = np.clip(np.asarray(accuracy, np.float64), edge, 1.0 - edge)
    least = np.sqrt(p * (1.0 - p) / samples)  # of a finite part: a standard error of zero is luck
    return logit(p), (np.maximum(np.asarray(error, np.float64), least) / (p * (1.0 - p))) ** 2


def fit(evidence: Evidence, methods: int, powers: np.ndarray | None = None, foreign: int = 0) -> ErrorModel:
    """The posterior mode of all coefficients, and a Gaussian around it.

    powers: (methods,) if they are known. Else each is the best of `POWERS` given the others, first the same for
    all. foreign: so many of the last choices are no choices, but the other data that an accuracy was measured on. Rows
    far off the law count less (Student's t). The covariance is that of the unbounded regression: no coefficient at its
    bound is taken for certain. O(N·c²) for c coefficients, times `MISFITS`, once a round.
    """
    weight = np.ones(len(evidence))
    misfit, choice = MISFIT, CHOICE
    search = powers is None
    found = np.full(methods, POWER_PRIOR) if powers is None else np.asarray(powers, np.float64)
    for _ in range(ROUNDS):
        normal = _Normal(evidence, methods, weight / (evidence.variance + misfit**2), choice, foreign)
        if search:
            found = _best_powers(normal, methods, found)
        theta, _ = normal.solve(found)
        x = _design(evidence.n, evidence.delta, evidence.method, evidence.choices, found)
        misfit, choice = _scales(x, evidence.g, evidence.variance / weight, weight, methods, foreign)
        residual = evidence.g - x @ theta
        weight = (TAILS + 1.0) / (TAILS + residual**2 / (evidence.variance + misfit**2))
        weight = np.minimum(weight, 1.0)  # near ones do not count for more
    normal = _Normal(evidence, methods, weight / (evidence.variance + misfit**2), choice, foreign)
    theta, _ = normal.solve(found)
    own, pool = theta[: TERMS * methods].reshape(methods, TERMS), theta[TERMS * methods : TERMS * (methods + 1)]
    covariance = normal.covariance(found, own[:, 1])
    return ErrorModel(own, pool, found, theta[TERMS * (methods + 1) :], choice, misfit, covariance)


def _design(
    n: np.ndarray, delta: np.ndarray, method: np.ndarray, choices: np.ndarray, powers: np.ndarray
) -> np.ndarray:
    """(N, 4M + 4 + k) columns of the methods', the pool's (which no row has) and the choices' coefficients."""
    methods, rows = len(powers), np.arange(len(n))
    x = np.zeros((len(n), TERMS * (methods + 1) + choices.shape[1]))
    terms = (np.ones(len(n)), -(n ** -powers[method]), -np.sqrt(delta), -delta)
    for term, column in enumerate(terms):
        x[rows, TERMS * method + term] = column
    x[:, TERMS * (methods + 1) :] = choices
    return x


class _Normal:
    """Weighted normal equations of the evidence and the prior, for all powers of the grid at once: choosing others only
    chooses other rows and columns."""

    def __init__(
        self, evidence: Evidence, methods: int, precision: np.ndarray, choice: float = CHOICE, foreign: int = 0
    ) -> None:
        self._evidence, self._methods, self._precision = evidence, methods, precision
        self._choices = evidence.choices.shape[1]
        self._count = TERMS * (methods + 1) + self._choices
        self._known: dict[tuple[float, ...], tuple[np.ndarray, np.ndarray, float]] = {}
        root = np.sqrt(precision)[:, None]
        same = [
            root * _design(evidence.n, evidence.delta, evidence.method, evidence.choices, np.full(methods, power))
            for power in POWERS
        ]
        # columns: those of the first power, then the A of every method for the others
        self._a = TERMS * np.arange(methods) + 1
        x = np.hstack([same[0], *(s[:, self._a] for s in same[1:])])
        target = root[:, 0] * evidence.g
        self._gram, self._right, self._square = x.T @ x, x.T @ target, float(target @ target)
        self._prior, self._prior_right, self._prior_square = _prior(methods, self._choices, choice, foreign)
        # free ones first: e of every method and of the pool, and the choices
        free = np.ones(self._count, bool)
        for term in (1, 2, 3):
            free[TERMS * np.arange(methods + 1) + term] = False
        self._order = np.concatenate([np.flatnonzero(free), np.flatnonzero(~free)])
        self._free = int(free.sum())

    def _system(self, powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        index = np.arange(self._count)
        at = np.array([int(np.argmin(np.abs(POWERS - p))) for p in powers])
        if np.abs(POWERS[at] - powers).max() > 1e-9:  # off the grid
            e = self._evidence
            x = np.sqrt(self._precision)[:, None] * _design(e.n, e.delta, e.method, e.choices, powers)
            target = np.sqrt(self._precision) * e.g
            return x.T @ x + self._prior, x.T @ target + self._prior_right, float(target @ target) + self._prior_square
        moved = at > 0
        index[self._a[moved]] = self._count + (at[moved] - 1) * self._methods + np.flatnonzero(moved)
        gram, right = self._gram[np.ix_(index, index)], self._right[index]
        return gram + self._prior, right + self._prior_right, self._square + self._prior_square

    def solve(self, powers: np.ndarray) -> tuple[np.ndarray, float]:
        """→ ((c,) coefficients with A, B, D ≥ 0, the squares that they leave). Free ones are eliminated, the rest
        is a small non-negative least squares problem: exact."""
        gram, right, square = self._system(powers)
        upper = cholesky(gram[np.ix_(self._order, self._order)])
        z = solve_triangular(upper, right[self._order], trans="T")
        f = self._free
        bounded, norm = nnls(upper[f:, f:], z[f:])
        free = solve_triangular(upper[:f, :f], z[:f] - upper[:f, f:] @ bounded)
        theta = np.empty(self._count)
        theta[self._order] = np.concatenate([free, bounded])
        return theta, square - float(z @ z) + float(norm) ** 2

    def covariance(self, powers: np.ndarray, a: np.ndarray) -> np.ndarray:
        """(c + M)² posterior covariance of coefficients and powers, the law made linear in the powers at the mode;
        a: (M,) the A of every method."""
        e = self._evidence
        x = _design(e.n, e.delta, e.method, e.choices, powers)
        slopes = np.zeros((len(x), self._methods))
        slopes[np.arange(len(x)), e.method] = a[e.method] * e.n ** -powers[e.method] * np.log(e.n)
        x = np.sqrt(self._precision)[:, None] * np.hstack([x, slopes])
        gram = x.T @ x
        gram[: self._count, : self._count] += self._prior
        gram[self._count :, self._count :] += np.eye(self._methods) / POWER_METHOD**2
        return cho_solve(cho_factor(gram), np.eye(len(gram)))


def _prior(
    methods: int, choices: int, choice: float = CHOICE, foreign: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Normal equations of the prior: (c, c), (c,), and the square of its targets."""
    count = TERMS * (methods + 1) + choices
    gram, right = np.zeros((count, count)), np.zeros(count)
    for term in range(TERMS):
        pool = TERMS * methods + term
        gram[pool, pool] += PRIOR_SPREAD[term] ** -2
        right[pool] += PRIOR_MEAN[term] * PRIOR_SPREAD[term] ** -2
        for method in range(methods):
            own, precision = TERMS * method + term, METHOD_SPREAD[term] ** -2
            gram[own, own] += precision
            gram[pool, pool] += precision
            gram[own, pool] -= precision
            gram[pool, own] -= precision
    rest = np.arange(TERMS * (methods + 1), count)
    gram[rest, rest] = np.where(rest < count - foreign, choice, OTHER_DATA) ** -2.0
    return gram, right, float(((PRIOR_MEAN / PRIOR_SPREAD) ** 2).sum())


def _best_powers(normal: _Normal, methods: int, start: np.ndarray) -> np.ndarray:
    """The power of all that leaves least, then of each method in turn."""

    def loss(powers: np.ndarray) -> float:
        pool = float(powers.mean())
        penalty = ((pool - POWER_PRIOR) / POWER_SPREAD) ** 2 + (((powers - pool) / POWER_METHOD) ** 2).sum()
        return normal.solve(powers)[1] + float(penalty)

    best = min((np.full(methods, p) for p in POWERS), key=loss)
    for method in range(methods if methods > 1 else 0):
        tries = [np.where(np.arange(methods) == method, p, best) for p in POWERS]
        best = min(tries, key=loss)
    return best


def _scales(
    x: np.ndarray, g: np.ndarray, noise: np.ndarray, weight: np.ndarray, methods: int, foreign: int
) -> tuple[float, float]:
    """→ (misfit, spread of w) of highest posterior density on a grid, all coefficients integrated out.

    x: (N, c) design; g: (N,); noise: (N,) variance of their measurement; weight: (N,) as noise already has them.
    """
    choices = x.shape[1] - TERMS * (methods + 1)
    best, found = -np.inf, (MISFIT, CHOICE)
    priors = [_prior(methods, choices, choice, foreign)[:2] for choice in CHOICES]
    logs = [2.0 * float(np.log(np.diag(cholesky(gram))).sum()) for gram, _ in priors]
    left = g - x @ np.linalg.solve(*priors[0])  # w are zero on average, however far they spread
    for misfit in MISFITS:
        precision = 1.0 / (noise + misfit**2 / weight)
        gram, right = x.T @ (precision[:, None] * x), x.T @ (precision * left)
        fixed = 0.5 * float(np.log(precision).sum() - precision @ left**2)
        fixed -= 0.5 * (np.log(misfit / MISFIT) / MISFIT_SPREAD) ** 2
        for choice, (prior, _), log in zip(CHOICES, priors, logs, strict=True):
            upper = cholesky(gram + prior)
            z = solve_triangular(upper, right, trans="T")
            density = fixed + 0.5 * float(log + z @ z) - float(np.log(np.diag(upper)).sum())
            density -= 0.5 * (np.log(choice / CHOICE) / CHOICE_SPREAD) ** 2
            if density > best:
                best, found = density, (float(misfit), float(choice))
    return found
