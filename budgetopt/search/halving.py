"""Multi-objective halving over rungs that keeps each rung's own front, asynchronous, as a Ray Tune scheduler."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from scipy.stats import rankdata

from budgetopt.front import ranks
from budgetopt.search.study import Record

GRACE = 4  # reports a rung needs before anything is stopped there
REDUCTION = 2.0  # keep the better 1/REDUCTION of a rung
PAIRS = 8  # trials past a rung that have finished, before it is judged
TRUSTED = 0.7  # agreement below which a rung stops nobody


def keeps(size: np.ndarray, accuracy: np.ndarray, own_size: float, own_accuracy: float, own_error: float) -> bool:
    """Whether a trial goes on past a rung where others reported (size, accuracy), each (n,).

    It does if it is on the rung's front, its accuracy taken one standard error higher (one training on a small
    validation part is noisy), or in the better half by non-dominated rank, or if fewer than GRACE others reported.
    Accuracy alone would stop small files, which are worth the most bytes.
    """
    if len(size) < GRACE:
        return True
    if not ((size <= own_size) & (accuracy > own_accuracy + own_error)).any():
        return True
    rank = ranks(np.append(size, own_size), np.append(accuracy, own_accuracy))
    return bool((rank[:-1] < rank[-1]).sum() < len(rank) / REDUCTION)


def agreement(size: np.ndarray, at_rung: np.ndarray, at_last: np.ndarray) -> float:
    """Spearman's correlation of the accuracies that n files of `size` bytes had at a rung and at their last, each (n,),
    within an octave of bytes: ranks are taken in each octave 2^k … 2^(k+1) alone and compared to its mean rank, then
    all are correlated. Large files beat small ones at every rung: across octaves any rung would look good. NaN where
    there is nothing to compare.
    """
    octave = np.floor(np.log2(size))
    ranks = np.zeros((2, len(size)))
    for k in np.unique(octave):
        inside = octave == k
        for row, accuracy in zip(ranks, (at_rung, at_last), strict=True):
            row[inside] = rankdata(accuracy[inside]) - (inside.sum() + 1) / 2
    norm = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / norm if norm else math.nan


def trusted(size: np.ndarray, at_rung: np.ndarray, at_last: np.ndarray) -> bool:
    """Whether a rung may stop trials: until PAIRS trials that went past it have finished, and then as long as their
    `agreement` is at least TRUSTED. Those that it stopped are not among them, which makes it look worse than it is:
    stopping nobody for a while is what mends that."""
    return len(size) < PAIRS or not agreement(size, at_rung, at_last) < TRUSTED  # NaN is no evidence


class FrontHalving(FIFOScheduler):
    """Stops trials that `keeps` rejects, at rungs that are `trusted`. `Record`s of an earlier process rebuild both on
    resume."""

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        super().__init__()
        self._rungs: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)  # but for last ones
        self._finished: dict[str, float] = {}  # accuracy at the last rung
        for record in earlier:
            if record.allocation is not None and record.state in ("complete", "stopped"):
                last = max(record.rungs, default=None) if record.state == "complete" else None
                for rung, report in record.rungs.items():
                    if rung == last:
                        self._finished[record.allocation.key] = report["accuracy"]
                    else:
                        self._rungs[rung][record.allocation.key] = (report["bytes"], report["accuracy"])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # both objectives are ours; Tune's single metric is not used

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "rung" not in result:
            return TrialScheduler.CONTINUE
        key = result["key"]
        if result["last"]:
            self._finished[key] = result["accuracy"]
            return TrialScheduler.CONTINUE
        rung = self._rungs[result["rung"]]
        others = np.array([v for k, v in rung.items() if k != key], np.float64).reshape(-1, 2)
        rung.setdefault(key, (result["bytes"], result["accuracy"]))  # a retried trial reports old rungs again
        goes_on = keeps(others[:, 0], others[:, 1], result["bytes"], result["accuracy"], result["error"])
        return TrialScheduler.CONTINUE if goes_on or not self._trusted(rung) else TrialScheduler.STOP

    def _trusted(self, rung: dict[str, tuple[float, float]]) -> bool:
        pairs = [(*rung[key], last) for key, last in self._finished.items() if key in rung]
        return trusted(*np.array(pairs, np.float64).reshape(-1, 3).T)
