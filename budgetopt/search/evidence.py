"""What a study says, as arrays for the rate–distortion model: kinds of allocations, trials, rungs and packings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search import study as studies
from budgetopt.search.error_model import log_odds
from budgetopt.search.problem import Problem
from budgetopt.search.rate_distortion import History, Kinds, Points, works
from budgetopt.search.rate_model import GROWTH_SPREAD, Codings, Packings, RateModel, fit_growth
from budgetopt.search.rungs import Extrapolation, extrapolation

CODED = tuple(f.name for f in fields(Allocation) if f.name not in ("objective", "ipc", "rate_weight"))
CHOSEN = tuple(
    f.name
    for f in fields(Allocation)
    if f.name not in ("objective", "ipc", "levels", "clipping", "transform_options", "quantizer_options")
)

TRANSFER = 0.5  # doubt that one trial on other data says something here, in log-odds


@dataclass(frozen=True)
class Observed:
    """One trial. kind: its allocation with one sample a class; settled: it need not be proposed again; bytes, samples,
    accuracy, error: at the last rung of a finished one; rungs: (accuracy, error) below the last, or all there are;
    child: whether it started from another's set. A child's accuracy is evidence like any other: it is that of a file of
    its allocation, and where there are parents the next trial nearby starts from one too. Only its rungs say something
    else: it is nearly done at the first."""

    number: int
    allocation: Allocation
    kind: Allocation
    state: str  # of `study.Record`
    initial_bytes: int | None
    bytes: float | None
    samples: int | None
    accuracy: float | None
    error: float
    rungs: Mapping[int, tuple[float, float]]
    child: bool = False

    @property
    def settled(self) -> bool:
        return self.state != "interrupted"


@dataclass(frozen=True)
class Earlier:
    """Finished trials of another run. classes, validation: of its data; comparable: on the same data by the same
    protocol, so that its accuracies are what this search would have measured; same_sizes: from the same train part, so
    that its initial files are this search's."""

    trials: tuple[Observed, ...]
    classes: int
    validation: int
    comparable: bool = False
    same_sizes: bool = False


def observe(trial: FrozenTrial, allocation_of: Callable[[Mapping[str, Any]], Allocation]) -> Observed | None:
    """None for a trial that is no allocation (yet). Studies written by others have only parameters and values."""
    record = studies.record(trial)
    allocation = record.allocation
    if allocation is None:
        try:
            allocation = allocation_of(trial.params or trial.system_attrs.get("fixed_params", {}))
        except (KeyError, InputError):
            return None
    rungs = {rung: (float(r["accuracy"]), float(r.get("error") or 0.0)) for rung, r in record.rungs.items()}
    size, accuracy, error, samples = record.bytes, record.accuracy, record.error or 0.0, record.samples
    if record.state != "complete":
        size = accuracy = samples = None
    elif accuracy is None or size is None:
        log_size, accuracy = trial.values
        size = 2.0**log_size  # type: ignore[assignment]
    else:
        rungs.pop(max(rungs))
    known = trial.user_attrs.get("initial_bytes")
    kind = replace(allocation, ipc=1)
    held = (known, size, samples, accuracy, error, rungs)
    return Observed(trial.number, allocation, kind, record.state, *held, child=record.parent is not None)


class KindTable:
    """All kinds, those offered first, as arrays; the rate model. methods: objectives, sorted.

    Kinds of runs on other data have rows of their own, which share all coefficients of the law but one: a choice that
    every trial of such a run makes and no trial here, how much easier its data are."""

    def __init__(
        self,
        offered: Sequence[Allocation],
        observed: Sequence[Observed],
        problem: Problem,
        earlier: Sequence[Earlier] = (),
    ) -> None:
        self._problem, self._earlier = problem, earlier
        near = [o for run in earlier if run.comparable for o in run.trials]
        self.kinds = list(dict.fromkeys([*offered, *(o.kind for o in observed), *(o.kind for o in near)]))
        self._index = {kind: i for i, kind in enumerate(self.kinds)}
        foreign = [i for i, run in enumerate(earlier) if not run.comparable]
        elsewhere = list(dict.fromkeys((i, o.kind) for i in foreign for o in earlier[i].trials))
        self._elsewhere = {key: len(self.kinds) + row for row, key in enumerate(elsewhere)}
        rows = [*self.kinds, *(kind for _, kind in elsewhere)]
        self.methods = sorted({kind.objective for kind in rows})
        measured = [problem.measure(kind) for kind in rows]
        codings, families = _indices(map(_coding, rows)), _indices(map(_family, rows))
        of_coding = np.unique(codings, return_index=True)[1]
        packed = [(self._at(o), o) for o in observed]
        packed += [(self._row(i, o), o) for i, run in enumerate(earlier) if run.same_sizes for o in run.trials]
        packed = [(row, o) for row, o in packed if o.initial_bytes is not None]
        self.rate = RateModel(
            Codings(
                np.array([measured[k].bits for k in of_coding], np.float64),
                np.array([measured[k].values for k in of_coding], np.float64),
                families[of_coding],
            ),
            Packings(
                codings[[row for row, _ in packed]] if packed else np.zeros(0, np.int64),
                np.array([problem.samples(o.allocation.ipc) for _, o in packed], np.float64),
                np.array([o.initial_bytes for _, o in packed], np.float64),
            ),
        )
        growth = self._growth([*observed, *near], rows)
        of_run = np.zeros((len(rows), len(foreign)))
        for (i, _), row in self._elsewhere.items():
            of_run[row, foreign.index(i)] = 1.0
        self.arrays = Kinds(
            method=np.array([self.methods.index(k.objective) for k in rows]),
            delta=np.array([m.distortion for m in measured], np.float64),
            levels=np.array([k.levels for k in rows], np.float64),
            choices=np.hstack([_one_hot([_choices(k) for k in rows]), of_run]),
            foreign=len(foreign),
            coding=codings,
            growth=growth[0],
            growth_std=growth[1],
            works=self._works([*observed, *near], rows),
            work=np.array([problem.work.get(k.objective, 0.0) for k in rows]),
        )

    def history(self, observed: Sequence[Observed]) -> tuple[History, list[int]]:
        """→ (history, numbers of the finished trials)."""
        samples = self._problem.validation
        complete = [o for o in observed if o.accuracy is not None]
        g, variance = log_odds(
            np.array([o.accuracy for o in complete], np.float64), np.array([o.error for o in complete]), samples
        )
        foretold = self._extrapolations(complete)
        part = [o for o in observed if o.state in ("stopped", "running") and o.rungs]
        points = self._points(part)
        part_g, part_variance = np.zeros(len(part)), np.zeros(len(part))
        for row, o in enumerate(part):
            rung = max(o.rungs)
            at_rung = log_odds(np.array([o.rungs[rung][0]]), np.zeros(1), samples)[0]
            mean, std = foretold[self._rung(o, rung)].predict(points.n[[row]], at_rung)
            part_g[row], part_variance[row] = mean[0], std[0] ** 2
        earlier, earlier_g, earlier_variance = self._of_earlier()
        history = History(
            finished=self._points(complete),
            g=g,
            variance=variance,
            log_bytes=np.log2(np.array([o.bytes for o in complete], np.float64)),
            others=points.joined(earlier),
            others_g=np.concatenate([part_g, earlier_g]),
            others_variance=np.concatenate([part_variance, earlier_variance]),
            pending=self._points([o for o in observed if o.state in ("running", "waiting")]),
        )
        return history, [o.number for o in complete]

    def _of_earlier(self) -> tuple[Points, np.ndarray, np.ndarray]:
        """→ points of earlier runs, their log-odds and variances."""
        kind, n, g, variance = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0)], [np.zeros(0)]
        for i, run in enumerate(self._earlier):
            accuracies = np.array([(o.accuracy, o.error) for o in run.trials], np.float64).reshape(-1, 2)
            found, doubt = log_odds(accuracies[:, 0], accuracies[:, 1], run.validation)
            at = [self._row(i, o) for o in run.trials]
            kind.append(np.array(at, np.int64))
            n.append(np.array([o.samples or 1 for o in run.trials], np.float64) / run.classes)
            g.append(found)
            variance.append(doubt + (0.0 if run.comparable else TRANSFER**2))
        return Points(np.concatenate(kind), np.concatenate(n)), np.concatenate(g), np.concatenate(variance)

    def _at(self, observed: Observed) -> int:
        return self._index[observed.kind]

    def _row(self, earlier: int, observed: Observed) -> int:
        """Of a trial of that earlier run."""
        return self._at(observed) if self._earlier[earlier].comparable else self._elsewhere[earlier, observed.kind]

    def _points(self, observed: Sequence[Observed]) -> Points:
        """Those that were cut to fit have fewer samples than asked for."""
        count = [o.samples or self._problem.samples(o.allocation.ipc) for o in observed]
        n = np.array(count, np.float64) / len(self._problem.class_counts)
        return Points(np.array([self._at(o) for o in observed], np.int64), n)

    def _rung(self, observed: Observed, rung: int) -> tuple[bool, bool, int]:
        """Rungs are shares of different things where nothing is optimised, or fine-tuned only."""
        return observed.allocation.objective in self._problem.trained, observed.child, rung

    def _extrapolations(self, complete: Sequence[Observed]) -> Mapping[tuple[bool, bool, int], Extrapolation]:
        """Of every rung, from trials that went past it; of rungs that no finished trial has, the prior."""
        n, samples = self._points(complete).n, self._problem.validation
        pairs: dict[tuple[bool, bool, int], list[tuple[float, float, float]]] = defaultdict(list)
        for o, of_class in zip(complete, n, strict=True):
            for rung, (accuracy, _) in o.rungs.items():
                pairs[self._rung(o, rung)].append((of_class, accuracy, o.accuracy or 0.0))
        found = defaultdict(lambda: extrapolation(*np.zeros((3, 0))))
        for key, values in pairs.items():
            of_class, below, last = np.array(values).T
            zero = np.zeros(len(values))
            found[key] = extrapolation(of_class, log_odds(below, zero, samples)[0], log_odds(last, zero, samples)[0])
        return found

    def _growth(self, observed: Sequence[Observed], rows: Sequence[Allocation]) -> tuple[np.ndarray, np.ndarray]:
        """(K,) mean and spread of the logarithm; none of sets that are not optimised."""
        trained, problem = self._problem.trained, self._problem
        methods, kinds, values = [], [], []
        for o in observed:
            if o.allocation.objective not in trained or not o.initial_bytes:
                continue
            start = float(problem.samples(o.allocation.ipc))
            if o.bytes is not None:
                grown = float(np.log(o.bytes / (o.samples or start) * start / o.initial_bytes))
            elif o.state == "infeasible":  # at least so much, since not even its smallest part fitted
                grown = float(np.log(problem.budget / o.initial_bytes)) + GROWTH_SPREAD
            else:
                continue
            methods.append(o.allocation.objective)
            kinds.append(_growth_kind(o.allocation))
            values.append(grown)
        growth = fit_growth(methods, kinds, values)
        found = [growth.of(k.objective, _growth_kind(k)) if k.objective in trained else (0.0, 0.0) for k in rows]
        return np.array([mean for mean, _ in found]), np.array([spread for _, spread in found])

    def _works(self, observed: Sequence[Observed], rows: Sequence[Allocation]) -> np.ndarray:
        """(K,) by method and quantizer, drawn to the method's."""
        ended = [o for o in observed if o.state in ("complete", "stopped", "failed")]
        at = [self._at(o) for o in ended]
        failed = np.array([o.state == "failed" for o in ended], np.float64)

        def counted(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            size = int(index.max()) + 1
            return np.bincount(index[at], failed, minlength=size), np.bincount(index[at], minlength=size)

        methods = _indices(k.objective for k in rows)
        families = _indices((k.objective, k.quantizer) for k in rows)
        of_method = works(*counted(methods))[methods]
        of_family = of_method[np.unique(families, return_index=True)[1]]
        return works(*counted(families), of_family)[families]


def _coding(a: Allocation) -> Hashable:
    """What decides the size of an initial set, its number of samples set aside."""
    return tuple(getattr(a, name) for name in CODED)


def _family(a: Allocation) -> Hashable:
    """Packings of these say most about each other."""
    return a.transform, a.transform_options, a.quantizer, a.label_bits


def _growth_kind(a: Allocation) -> Hashable:
    return a.objective, a.levels, a.rate_weight


def _choices(a: Allocation) -> list[str]:
    """Everything that is not a number of the law, clipping and options by what they belong to."""
    return [
        *(f"{name}={getattr(a, name)}" for name in CHOSEN),
        f"{a.quantizer}.clipping={a.clipping}",
        *(f"{a.transform}.{name}={value}" for name, value in a.transform_options),
        *(f"{a.quantizer}.{name}={value}" for name, value in a.quantizer_options),
    ]


def _one_hot(chosen: Sequence[Sequence[str]]) -> np.ndarray:
    """(K, k) of those choices that some have and some have not."""
    counts: dict[str, int] = {}
    for names in chosen:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    column = {name: i for i, name in enumerate(sorted(n for n, c in counts.items() if c < len(chosen)))}
    found = np.zeros((len(chosen), len(column)))
    for row, names in enumerate(chosen):
        found[row, [column[name] for name in names if name in column]] = 1.0
    return found


def _indices(keys: Iterable[Hashable]) -> np.ndarray:
    """Index of every key among the distinct ones, in order of their first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)
