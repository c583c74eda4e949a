"""A search in virtual time on a recorded table: workers, stop decisions and costs, without Ray and without training."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from budgetopt.search import study as studies
from budgetopt.search.recorded import Grid, Table


class Scheduler(Protocol):
    """As Ray Tune's, as far as it is used here; `search.halving.FrontHalving` is one."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """ "STOP", or anything else."""


@dataclass
class Outcome:
    """What a simulated search did. finished: entries in order of their end; times: their ends in virtual seconds;
    observed: their accuracies as the search saw them; started: entries in order of their start; cost: worker seconds of
    all trials, stopped ones up to their rung; idle: worker seconds between trials, while there were more; time: of the
    last end."""

    finished: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    cost: float = 0.0
    idle: float = 0.0
    time: float = 0.0


def chosen(table: Table, seed: int, outcome: Outcome, count: int | None = None) -> float:
    """True accuracy of what a search would hand over after `count` finished trials: those within one standard error of
    the best that it saw are retrained, and the best of them is taken, as `search.finish` does. NaN without any."""
    entries, seen = outcome.finished[:count], np.array(outcome.observed[:count])
    if not entries:
        return np.nan
    best = int(seen.argmax())
    error = table.error[entries[best], seed, table.last(entries[best], seed)]
    near = [e for e, accuracy in zip(entries, seen, strict=True) if accuracy >= seen[best] - error]
    return float(np.nanmax(table.truth(seed)[1][near]))


def simulate(
    table: Table,
    seed: int,
    sampler: BaseSampler,
    *,
    trials: int,
    workers: int = 1,
    scheduler: Scheduler | None = None,
    first: Sequence[int] = (),
    time_limit: float = np.inf,
    asking: float = 0.0,
    ahead: int = 0,
) -> Outcome:
    """Run `sampler` on seed `seed` of the table until `trials` have ended or the limit is reached.

    What `StudySearcher` does for every sampler is done here too: a proposal that is known already or too large before
    it starts costs nothing, is told as pruned with its constraint, and the nearest entry that may run takes its place.
    `first`: entries that start the search, as its design does. asking: seconds of the driver for one proposal, during
    which it makes no other; ahead: proposals that wait for a worker, as `engine.proposed_ahead`. Of two events at the
    same time that of the trial that started first comes first.
    """
    search = _Search(table, seed, sampler, scheduler, asking)
    for entry in first:
        search.study.enqueue_trial(search.grid.parameters(table.allocations[entry]))
    while True:
        while (
            len(search.events) + len(search.ready) < workers + ahead and search.proposed < trials and search.propose()
        ):
            if len(search.events) < workers:
                search.begin()
        if not search.events or search.events[0][0] > time_limit:
            return search.outcome
        search.next_event()
        if search.ready and len(search.events) < workers:
            search.begin()


class _Search:
    def __init__(
        self, table: Table, seed: int, sampler: BaseSampler, scheduler: Scheduler | None, asking: float = 0.0
    ) -> None:
        self.table, self._seed, self._scheduler, self._asking = table, seed, scheduler, asking
        self.grid, self.outcome = Grid(table), Outcome()
        self.study = optuna.create_study(directions=studies.DIRECTIONS, sampler=sampler)
        self.events: list[tuple[float, int, int, int]] = []  # time, number of the start, entry, rung
        self._live: dict[int, tuple[optuna.Trial, float]] = {}  # number of the start → trial, time of the start
        self._open = table.initial_bytes[:, seed] <= table.budget  # may still be started
        self.ready: deque[tuple[optuna.Trial, int, float]] = deque()  # proposals: entry, time when it was made
        self.proposed, self._begun, self._now, self._driver_free = 0, 0, 0.0, 0.0

    @property
    def under_way(self) -> int:
        """Trials that run, and proposals that wait for a worker."""
        return len(self.events) + len(self.ready)

    def propose(self) -> bool:
        """Make one proposal; False where no entry is left."""
        if not self._open.any():
            return False
        self._driver_free = max(self._now, self._driver_free)
        while True:
            self._driver_free += self._asking
            trial = self.study.ask()
            parameters = self.grid.suggest(trial)
            allocation = self.grid.allocation(parameters)
            entry = self.table.index[allocation]
            size = int(self.table.initial_bytes[entry, self._seed])
            trial.set_user_attr("allocation", allocation.to_dict())
            trial.set_user_attr("initial_bytes", size)
            trial.set_constraint("bytes over the budget", float(size - self.table.budget))
            if self._open[entry]:
                break
            reason = studies.DUPLICATE if size <= self.table.budget else studies.OVER_BEFORE
            trial.set_user_attr("reason", reason)
            self.study.tell(trial, state=TrialState.PRUNED)
            distance = np.where(self._open, self.grid.distances(parameters), np.inf)
            self.study.enqueue_trial(self.grid.parameters(self.table.allocations[int(np.argmin(distance))]))
        self._open[entry] = False
        self.ready.append((trial, entry, self._driver_free))
        self.proposed += 1
        return True

    def begin(self) -> None:
        """Start the first proposal on a worker that is free now."""
        trial, entry, made = self.ready.popleft()
        begin = max(self._now, made)
        self._live[self._begun] = trial, begin
        self.outcome.idle += begin - self._now
        self._schedule(self._begun, entry, 0)
        self.outcome.started.append(entry)
        self._begun += 1

    def _schedule(self, number: int, entry: int, rung: int) -> None:
        seconds = self.table.seconds[entry, self._seed, rung]
        heapq.heappush(self.events, (self._live[number][1] + float(seconds), number, entry, rung))

    def next_event(self) -> None:
        self._now, number, entry, rung = heapq.heappop(self.events)
        trial, _ = self._live[number]
        last = self.table.last(entry, self._seed)
        size = int(self.table.bytes[entry, self._seed])
        if last < 0:  # no file came of it
            if size > self.table.budget:
                self._explained(trial, studies.OVER_AFTER, TrialState.PRUNED)
            else:
                self._explained(trial, "failure", TrialState.FAIL)
            return self._end(number)
        result: dict[str, Any] = {
            "rung": rung,
            "last": rung == last,
            "step": rung + 1 if self.table.allocations[entry].objective in self.table.trained else 0,
            "key": self.table.allocations[entry].key,
            "bytes": size,
            "samples": int(self.table.samples[entry, self._seed]),
            "accuracy": float(self.table.accuracy[entry, self._seed, rung]),
            "error": float(self.table.error[entry, self._seed, rung]),
        }
        trial.set_user_attr(f"rung/{rung}", result)
        stop = self._scheduler is not None and self._scheduler.on_trial_result(None, None, result) == "STOP"
        if rung < last and not stop:
            return self._schedule(number, entry, rung + 1)
        if rung < last:
            self.outcome.stopped.append(entry)
            self._explained(trial, studies.STOPPED, TrialState.PRUNED)
        elif size > self.table.budget:
            self._explained(trial, studies.OVER_AFTER, TrialState.PRUNED)
        else:
            self.outcome.finished.append(entry)
            self.outcome.times.append(self._now)
            self.outcome.observed.append(result["accuracy"])
            self.study.tell(trial, studies.values(size, result["accuracy"]))
        return self._end(number)

    def _explained(self, trial: optuna.Trial, reason: str, state: TrialState) -> None:
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=state)

    def _end(self, number: int) -> None:
        self.outcome.cost += self._now - self._live.pop(number)[1]
        self.outcome.time = self._now


def curve(outcome: Outcome, value: Callable[[list[int]], float], at: Sequence[float], by_time: bool) -> np.ndarray:
    """`value` of the entries that had finished at each of `at`: numbers of trials, or virtual seconds."""
    found = []
    for point in at:
        count = sum(t <= point for t in outcome.times) if by_time else int(point)
        found.append(value(outcome.finished[:count]))
    return np.array(found)
