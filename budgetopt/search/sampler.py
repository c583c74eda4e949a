"""`RateDistortionSampler`: an Optuna sampler that knows what bytes and samples do to accuracy.

In a study whose search space it was given as a `Problem` it proposes what the rate–distortion model expects to gain
most; in any other study it leaves everything to another sampler. Directions there: (minimise log2 bytes, maximise
accuracy).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from budgetopt.allocation import Allocation
from budgetopt.front import non_dominated
from budgetopt.search import residual
from budgetopt.search import study as studies
from budgetopt.search.evidence import Earlier, KindTable, Observed, observe
from budgetopt.search.problem import Problem
from budgetopt.search.rate_distortion import History, Model, Points

MOST_POINTS = 20_000  # candidates that are scored
IPCS = (8, 40)  # of one kind, spread over its range
QUANTILES = (0.0, 1.0, 2.0)  # standard deviations of the size left below the budget, of further candidates of a kind
RESCORED = 5  # of the best candidates at most, whose gains are computed again from the sizes of their packed sets
CLOSE = 0.8  # of the gain expected of the next candidate: one that is packed and has so much ends the packing
MOST_VALUES = 300_000  # coded values in them, about a second of packing; at least one is packed
MOST_PACKED = 12  # candidates that turn out too large before one is proposed unpacked
WITHIN = 2.33  # standard deviations of the size below the budget that make a candidate: one in a hundred fits


@functools.cache
def _blas() -> ThreadpoolController:
    """Of the libraries loaded by now; looking for them takes milliseconds."""
    return ThreadpoolController()


class RateDistortionSampler(BaseSampler):
    """Every second proposal maximises the expected improvement of the best accuracy within the budget, the others the
    expected improvement of the hypervolume of (log2 bytes, accuracy), both times the probability of fitting, for what a
    trial costs: optimising a large set takes many times as long as evaluating it.

    A proposal is a pure function of the study and the problem; what is kept between proposals only saves time.
    Allocations that were tried, run, wait, or are known to be too large are not proposed again.

    problem: None in a study whose space is unknown. fallback: samples what the model does not, by default TPE with
    `seed`. warm_start: what earlier runs, also of other budgets and on other data, found out about allocations.

    expected_gain: of the last proposal: in accuracy, or in hypervolume as a share of the rectangle from one byte on;
    None where it was not the model's.
    """

    def __init__(
        self,
        problem: Problem | None = None,
        *,
        seed: int | None = None,
        fallback: BaseSampler | None = None,
        warm_start: Sequence[Earlier] = (),
    ) -> None:
        self._problem, self._earlier = problem, tuple(warm_start)
        self.fallback = fallback or optuna.samplers.TPESampler(seed=None if seed is None else seed % 2**32)
        self.expected_gain: float | None = None
        self._observed: dict[int, Observed] = {}  # of ended trials, which never change
        self._theta: dict[tuple[int, ...], np.ndarray] = {}  # hyperparameters by the trials they were fitted to

    def reseed_rng(self) -> None:
        self.fallback.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.expected_gain = None  # a trial that waits in the queue is no proposal
        self.fallback.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self.fallback.after_trial(study, trial, state, values)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        if not self._knows(study):
            return self.fallback.infer_relative_search_space(study, trial)
        assert self._problem is not None
        return {name: d for name, d in self._problem.candidates.distributions.items() if not d.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        problem = self._problem if self._knows(study) else None
        if problem is None or not search_space.keys() <= problem.candidates.distributions.keys():
            return self.fallback.sample_relative(study, trial, search_space)
        chosen = self.propose(study, trial.number)
        parameters = {} if chosen is None else problem.candidates.parameters(chosen)
        return {name: value for name, value in parameters.items() if name in search_space}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.fallback.sample_independent(study, trial, param_name, param_distribution)

    def _knows(self, study: optuna.Study) -> bool:
        return self._problem is not None and study.directions == studies.DIRECTIONS

    def propose(self, study: optuna.Study, number: int) -> Allocation | None:
        """The allocation of trial `number`, None where every candidate is known. Needs a problem."""
        # one thread: rounding must not depend on the machine, and the workers have the cores
        with _blas().limit(limits=1, user_api="blas"):
            return self._proposed(self.view(study, number), number)

    def _proposed(self, view: View, number: int) -> Allocation | None:
        points, ipc = view.candidates()
        if len(points) == 0:
            return None
        at_budget = number % 2 == 0
        order, expected = view.model.ranked(points, at_budget, view.problem.chance)
        offered = ((view.allocation(points.kind[i], ipc[i]), int(points.kind[i])) for i in order)
        cost = view.model.cost(points[order])
        fitting: list[Packed] = []
        gains, worth, values = np.zeros(0), np.zeros(0), 0
        for place, packed in itertools.islice(self._fitting(view, offered), RESCORED):
            fitting.append(packed)
            gains = self._gains(view, fitting, at_budget)
            worth = gains / view.model.cost(view.points_of(fitting))
            values += view.values(packed)
            next_best = expected[place + 1] / cost[place + 1] if place + 1 < len(expected) else 0.0
            if values > MOST_VALUES or worth.max() >= CLOSE * next_best:
                break
        if not fitting:
            return None
        best = int(np.argmax(worth))
        self.expected_gain = float(gains[best]) / (1.0 if at_budget else view.log_rectangle)
        return fitting[best].allocation

    @staticmethod
    def _gains(view: View, fitting: Sequence[Packed], at_budget: bool) -> np.ndarray:
        """Expected gains now that sizes are known: guesses of small files hide who is smallest."""
        sizes = np.array([f.size for f in fitting], np.float64)
        predicted = view.model.with_initial(view.points_of(fitting), sizes)
        return view.model.gain(predicted, at_budget, view.problem.chance)

    def view(self, study: optuna.Study, number: int) -> View:
        """The model as it stands before trial `number`. Raises `ValueError` without a problem."""
        if self._problem is None:
            raise ValueError("this sampler was given no problem: it has no model")
        found = [self._observe(trial) for trial in study.get_trials(deepcopy=False) if trial.number != number]
        observed = [o for o in found if o is not None]
        return View(self._problem, observed, self._theta, number, self._earlier)

    def _observe(self, trial: FrozenTrial) -> Observed | None:
        assert self._problem is not None
        if trial.number in self._observed:
            return self._observed[trial.number]
        found = observe(trial, self._problem.candidates.allocation)
        if found is not None and trial.state.is_finished():
            self._observed[trial.number] = found
        return found

    def _fitting(self, view: View, offered: Iterable[tuple[Allocation, int]]) -> Iterator[tuple[int, Packed]]:
        """Those that are not too large when packed, with their places; one that is a little too large is cut to size.
        After MOST_PACKED packings without any, the next one as it is."""
        problem, known = view.problem, set(view.known)
        ipcs = problem.candidates.ipcs()
        packed, found = 0, False
        for place, (allocation, kind) in enumerate(offered):
            if allocation in known or view.too_large(allocation):
                continue
            if packed >= MOST_PACKED:
                if not found:
                    yield place, Packed(allocation, kind, problem.budget)
                return
            size = problem.initial_bytes(allocation)
            packed += 1
            if size > problem.budget:
                view.remember_too_large(allocation)
                smaller = ipcs[ipcs <= allocation.ipc * problem.budget / size * 0.995]
                if not len(smaller):
                    continue
                allocation = replace(allocation, ipc=int(smaller[-1]))
                if allocation in known or view.too_large(allocation):
                    continue
                packed += 1
                size = problem.initial_bytes(allocation)
            if size <= problem.budget:
                known.add(allocation)
                found = True
                yield place, Packed(allocation, kind, size)


@dataclass(frozen=True)
class Packed:
    """An allocation that may be proposed. kind: its row in the model's table; size: bytes of its initial set."""

    allocation: Allocation
    kind: int
    size: int


class View:
    """The study as arrays, and the model fitted to them. `theta`: known hyperparameters, to which new ones are
    added."""

    def __init__(
        self,
        problem: Problem,
        observed: list[Observed],
        theta: dict[tuple[int, ...], np.ndarray],
        number: int,
        earlier: Sequence[Earlier] = (),
    ) -> None:
        self.problem = problem
        settled = [o for o in observed if o.settled]
        self.known = {o.allocation for o in settled}
        self._tried = [(o.kind, o.allocation.ipc) for o in settled]
        self._limits: dict[Allocation, int] = {}  # kind → fewest samples a class that are too many
        for o in observed:
            if o.initial_bytes is not None and o.initial_bytes > problem.budget:
                self._limit(o.kind, o.allocation.ipc)
        complete = [o for o in observed if o.accuracy is not None]
        on_front = non_dominated(np.array([o.bytes for o in complete]), np.array([o.accuracy for o in complete]))
        front = [o for o, member in zip(complete, on_front, strict=True) if member]
        front.sort(key=lambda o: -(o.accuracy or 0.0))
        self._offered = problem.candidates.kinds([o.allocation for o in front], number)
        self.table = KindTable(self._offered, observed, problem, earlier)
        history, numbers = self.table.history(observed)
        self.model = self._fitted(history)
        count = residual.fitted_points(len(history.finished))
        if count:
            key = tuple(numbers[:count])
            if key not in theta:  # of nothing but these trials: the same after a restart
                theta[key] = self._fitted(history.first(count)).hyperparameters()
            self.model.refine(theta[key])

    def _fitted(self, history: History) -> Model:
        table, problem = self.table, self.problem
        log_budget = float(np.log2(problem.budget))
        return Model(table.arrays, len(table.methods), table.rate, history, len(problem.class_counts), log_budget)

    def too_large(self, allocation: Allocation) -> bool:
        return allocation.ipc >= self._limits.get(replace(allocation, ipc=1), allocation.ipc + 1)

    def remember_too_large(self, allocation: Allocation) -> None:
        self._limit(replace(allocation, ipc=1), allocation.ipc)

    def _limit(self, kind: Allocation, ipc: int) -> None:
        self._limits[kind] = min(ipc, self._limits.get(kind, ipc))

    @property
    def log_rectangle(self) -> float:
        """Area of all there is to gain, from one byte on: log2 bytes times accuracy."""
        return self.model.log_budget * (1 - self.problem.chance)

    def values(self, packed: Packed) -> int:
        """Coded ones of all its samples."""
        problem = self.problem
        return problem.measure(replace(packed.allocation, ipc=1)).values * int(problem.samples(packed.allocation.ipc))

    def points_of(self, packed: Sequence[Packed]) -> Points:
        kinds, ipcs = [p.kind for p in packed], [p.allocation.ipc for p in packed]
        return self._points(np.array(kinds, np.int64), np.array(ipcs, np.int64))

    def allocation(self, kind: int, ipc: int) -> Allocation:
        return replace(self.table.kinds[kind], ipc=int(ipc))

    def candidates(self, tried: bool = False) -> tuple[Points, np.ndarray]:
        """About MOST_POINTS at most that may fit, and the samples a class of each: over the range of every kind on a
        logarithmic scale, and close to the budget. `tried`: with those that are known already."""
        problem, count = self.problem, len(self._offered)
        ipcs = problem.candidates.ipcs()
        grid = int(np.clip(MOST_POINTS // count - len(QUANTILES), *IPCS))
        if len(ipcs) > grid:
            coarse = np.unique(np.round(np.geomspace(1, len(ipcs), grid)).astype(int)) - 1
            values = ipcs[coarse]
        else:
            values = ipcs
        kind, ipc = np.repeat(np.arange(count), len(values)), np.tile(values, count)
        size, spread = self.model.size(self._points(kind, ipc))
        size, spread = size.reshape(count, -1), spread.reshape(count, -1)
        found_kind, found_ipc = [kind], [ipc]
        logs = np.log(values)
        for quantile in QUANTILES if len(values) > 1 else ():
            edge = self.model.log_budget - quantile * spread
            crosses = (size[:, :-1] <= edge[:, :-1]) & (size[:, 1:] > edge[:, 1:])
            rows, at = np.nonzero(crosses)
            left, right = size[rows, at] - edge[rows, at], size[rows, at + 1] - edge[rows, at + 1]
            exact = np.exp(logs[at] + (logs[at + 1] - logs[at]) * left / (left - right))
            found_kind.append(rows)
            found_ipc.append(ipcs[np.maximum(np.searchsorted(ipcs, exact, side="right") - 1, 0)])
        code = np.unique(np.concatenate(found_kind) * (int(ipcs[-1]) + 1) + np.concatenate(found_ipc))
        kind, ipc = np.divmod(code, int(ipcs[-1]) + 1)
        index = {k: i for i, k in enumerate(self._offered)}
        known = [index[k] * (int(ipcs[-1]) + 1) + samples for k, samples in self._tried if k in index]
        limit = np.full(count, int(ipcs[-1]) + 1)
        for k, least in self._limits.items():
            if k in index:
                limit[index[k]] = least
        points = self._points(kind, ipc)
        size, spread = self.model.size(points)
        fits = size - WITHIN * spread <= self.model.log_budget
        keep = fits & (tried | ~np.isin(code, known)) & (ipc < limit[kind])
        return points[keep], ipc[keep]

    def _points(self, kind: np.ndarray, ipc: np.ndarray) -> Points:
        return Points(kind, self.problem.samples(ipc) / len(self.problem.class_counts))
