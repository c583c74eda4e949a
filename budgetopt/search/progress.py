"""What is known of a run while it goes on: read by the display, written by the searcher and the final phase."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol as Interface

import numpy as np

from budgetopt.front import non_dominated
from budgetopt.search.study import Record


class Observer(Interface):
    """Told of every event, in the driver's main thread."""

    def message(self, text: str) -> None:
        """A line worth keeping."""

    def trial_ended(self, record: Record) -> None:
        """A trial finished, was stopped, or failed."""

    def close(self) -> None:
        """The run ended, one way or another."""


@dataclass
class Progress:
    """Counts, the records of ended trials, and how long one full training takes."""

    time_limit: float
    workers: int
    earlier: float = 0.0  # seconds that the run took before it was resumed
    started: float = field(default_factory=time.monotonic)
    phase: str = "starting"
    running: set[int] = field(default_factory=set)
    ended: list[Record] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    final_done: int = 0
    final_total: int = 0

    def remember(self, records: Iterable[Record]) -> None:
        """What earlier processes of the run did, and how long a training took them."""
        self.ended = [record for record in records if record.state not in ("running", "waiting")]
        lasts = [record.rungs[max(record.rungs)] for record in self.complete() if record.rungs]
        self.training_seconds = [last["training_seconds"] for last in lasts if last.get("training_seconds")]

    @property
    def elapsed(self) -> float:
        return self.earlier + time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        return max(0.0, self.time_limit - self.elapsed)

    @property
    def counts(self) -> Counter[str]:
        return Counter(r.state for r in self.ended)

    def complete(self) -> list[Record]:
        return [r for r in self.ended if r.state == "complete"]

    def front(self) -> list[Record]:
        """Non-dominated finished trials by their validation estimate, by size."""
        done = self.complete()
        keep = non_dominated(np.array([r.bytes for r in done]), np.array([r.accuracy for r in done]))
        return sorted((r for r, k in zip(done, keep, strict=True) if k), key=lambda r: r.bytes or 0)

    def training_time(self) -> float:
        """Seconds of one full training on one worker; a guess of 2 before the first is measured."""
        return float(np.median(self.training_seconds)) if self.training_seconds else 2.0

    def final_seconds(self, candidates: int, seeds: int) -> float:
        """Expected length of the final phase: candidates retrained on validation, the front (at most all of them) and
        the reference on test, plus the start of its workers and the reports."""
        trainings = (2 * candidates + 1) * seeds
        return trainings * self.training_time() / self.workers + min(15.0, 0.1 * self.time_limit)
