"""Multi-objective halving over rungs that keeps each rung's own front, asynchronous, as a Ray Tune scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from budgetopt.front import ranks
from budgetopt.search.study import Record

GRACE = 4  # reports a rung needs before anything is stopped there
REDUCTION = 2.0  # keep the better 1/REDUCTION of a rung


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


class FrontHalving(FIFOScheduler):
    """Stops trials that `keeps` rejects. `Record`s of an earlier process rebuild the rungs on resume."""

    def __init__(self, earlier: Iterable[Record] = ()) -> None:
        super().__init__()
        self._rungs: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)
        for record in earlier:
            if record.allocation is not None and record.state in ("complete", "stopped"):
                for rung, report in record.rungs.items():
                    self._rungs[rung][record.allocation.key] = (report["bytes"], report["accuracy"])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # both objectives are ours; Tune's single metric is not used

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if "rung" not in result or result["last"]:
            return TrialScheduler.CONTINUE
        rung, key = self._rungs[result["rung"]], result["key"]
        others = np.array([v for k, v in rung.items() if k != key], np.float64).reshape(-1, 2)
        rung.setdefault(key, (result["bytes"], result["accuracy"]))  # a retried trial reports old rungs again
        goes_on = keeps(others[:, 0], others[:, 1], result["bytes"], result["accuracy"], result["error"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP
