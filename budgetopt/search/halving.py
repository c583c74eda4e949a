"""Multi-objective halving over rungs that keeps each rung's own front, asynchronous, as a Ray Tune scheduler."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from scipy.special import expit

from budgetopt.front import ranks
from budgetopt.search.error_model import log_odds
from budgetopt.search.rungs import extrapolation
from budgetopt.search.study import Record

GRACE = 4  # reports a rung needs before anything is stopped there
REDUCTION = 3.0  # keep the better 1/REDUCTION of a rung
PAIRS = 8  # trials past a rung that have finished, before what they reached at their last decides
DOUBT = 0.75  # standard deviations of what is foretold that a trial is forgiven


def keeps(size: np.ndarray, accuracy: np.ndarray, own_size: float, own_accuracy: float, own_error: float) -> bool:
    """Whether a trial goes on past a rung where others reported (size, accuracy), each (n,).

    It does if it is on the rung's front, its accuracy taken `own_error` higher, or in the better third by
    non-dominated rank, or if fewer than GRACE others reported.
    Accuracy alone would stop small files, which are worth the most bytes.
    """
    if len(size) < GRACE:
        return True
    if not ((size <= own_size) & (accuracy > own_accuracy + own_error)).any():
        return True
    rank = ranks(np.append(size, own_size), np.append(accuracy, own_accuracy))
    return bool((rank[:-1] < rank[-1]).sum() < len(rank) / REDUCTION)


@dataclass(frozen=True)
class Report:
    """Of a rung below the last. samples: in all."""

    bytes: int
    samples: int
    accuracy: float
    error: float

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Report:
        return cls(result["bytes"], result["samples"], result["accuracy"], result.get("error") or 0.0)


def goes_on(own: Report, others: Sequence[Report], lasts: Sequence[float | None], validation: int) -> bool:
    """Whether a trial goes on past a rung that others reported, too. lasts: their accuracies at the last rung, None of
    those that have none; validation: samples that accuracies are measured on.

    Once PAIRS others have finished, not accuracies at the rung are compared, but what these foretell for the last one:
    large sets need more steps than small ones, and look worse at a rung than they will be. Where a rung says little,
    what it foretells is doubtful, and few are stopped.
    """
    reports = [own, *others]
    size, accuracy = np.array([(r.bytes, r.accuracy) for r in reports], np.float64).T
    error = own.error
    finished = np.array([last is not None for last in (None, *lasts)])
    if finished.sum() >= PAIRS:
        n, none = np.array([r.samples for r in reports], np.float64), np.zeros(len(reports))
        at_rung = log_odds(accuracy, none, validation)[0]
        at_last = log_odds(np.array([last for last in lasts if last is not None]), none[finished], validation)[0]
        mean, std = extrapolation(n[finished], at_rung[finished], at_last).predict(n, at_rung)
        accuracy, error = expit(mean), float(expit(mean[0] + DOUBT * std[0]) - expit(mean[0]))
    return keeps(size[1:], accuracy[1:], size[0], accuracy[0], error)


class FrontHalving(FIFOScheduler):
    """Stops trials that do not go on (`goes_on`). Compared among themselves are sets that are not optimised, those that
    are, and of these those that started from a parent, which are nearly done at their first rung. `Record`s of an
    earlier process rebuild it on resume. validation: samples of that part."""

    def __init__(self, validation: int, earlier: Iterable[Record] = ()) -> None:
        super().__init__()
        self._validation = validation
        # by (whether the set is optimised, has a parent, rung), but for last ones, and by the allocation's key
        self._rungs: dict[tuple[bool, bool, int], dict[str, Report]] = defaultdict(dict)
        self._finished: dict[str, float] = {}  # accuracy at the last rung
        for record in earlier:
            if record.allocation is not None and record.state in ("complete", "stopped"):
                last = max(record.rungs, default=None) if record.state == "complete" else None
                for rung, report in record.rungs.items():
                    if rung == last:
                        self._finished[record.allocation.key] = report["accuracy"]
                    else:
                        kind = report["step"] > 0, record.parent is not None, rung
                        self._rungs[kind][record.allocation.key] = Report.of(report)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # both objectives are ours; Tune's single metric is not used

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "rung" not in result or not math.isfinite(result["accuracy"]):  # the searcher judges these
            return TrialScheduler.CONTINUE
        key = result["key"]
        if result["last"]:
            self._finished[key] = result["accuracy"]
            return TrialScheduler.CONTINUE
        rung = self._rungs[result["step"] > 0, result.get("child", False), result["rung"]]
        others = {k: report for k, report in rung.items() if k != key}
        own = Report.of(result)
        rung.setdefault(key, own)  # a retried trial reports old rungs again
        lasts = [self._finished.get(k) for k in others]
        on = goes_on(own, list(others.values()), lasts, self._validation)
        return TrialScheduler.CONTINUE if on else TrialScheduler.STOP
