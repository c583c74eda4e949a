"""Parents: the finished set that a trial starts from instead of starting anew, as BCDC fine-tunes a distilled set for
fewer bits. The choice is a pure function of what has finished; the study holds it before the trial starts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetopt.allocation import Allocation
from budgetopt.balance import shared_out
from budgetopt.objective import Optimised
from budgetopt.search.study import Record
from budgetopt.trial import TrialContext, class_counts

# What a set was made for or of: a child shares it. All else is how its values are stored, and how many it has.
SHARED = ("objective", "selection", "balance", "transform", "transform_options", "label_bits", "label_temperature")
STORED = ("quantizer_options", "clipping", "rate_weight", "rdoq")

FAMILY = 1.0  # distance of another quantizer family: that of twice the levels
DETAIL = 0.25  # of each of STORED
FARTHEST = 2.0  # a trial whose nearest neighbour is farther starts anew


@dataclass(frozen=True)
class Parent:
    """As the study holds it. file: inside the run folder; steps: distillation steps behind it, those of its own parents
    included."""

    trial: int
    file: str
    steps: int


def distance(parent: Allocation, child: Allocation) -> float:
    """In octaves of samples a class and of levels, FAMILY and DETAIL added for what is stored otherwise; infinite where
    the child cannot start from the parent. One of fewer levels is none: what it has rounded away does not come back in
    the few steps of a child (Fashion-MNIST, 2 to 4 levels: 3.7 points under a set made anew)."""
    if any(getattr(parent, name) != getattr(child, name) for name in SHARED):
        return math.inf
    if parent.ipc < child.ipc or parent.levels < child.levels:
        return math.inf
    octaves = math.log2(parent.ipc / child.ipc) + math.log2(parent.levels / child.levels)
    if parent.quantizer != child.quantizer:  # options and clipping of two families do not compare
        return octaves + FAMILY
    return octaves + DETAIL * sum(getattr(parent, name) != getattr(child, name) for name in STORED)


def holds(kept: int, there: Sequence[int], wanted: Sequence[int]) -> bool:
    """Whether a file has the `wanted` samples of every class, (C,). there: (C,) samples that its allocation asks for;
    kept: those in the file in all, every class cut to the same number where the budget cut some off."""
    most = np.minimum(there, max(wanted))
    return bool((most >= np.asarray(wanted)).all() and kept >= most.sum())


def nearest(child: Allocation, finished: Iterable[Record], of_classes: Sequence[int]) -> Record | None:
    """The nearest of the finished trials that `child` can start from, at most FARTHEST away; of equally near ones the
    more accurate, then the earlier. of_classes: (C,) samples that there are to choose from."""

    def wanted(allocation: Allocation) -> tuple[int, ...]:
        return shared_out(of_classes, allocation.ipc, allocation.balance)

    found = []
    for record in finished:
        allocation = record.allocation
        if record.state != "complete" or allocation is None or allocation == child or record.accuracy is None:
            continue
        far = distance(allocation, child)
        if far <= FARTHEST and holds(record.samples or 0, wanted(allocation), wanted(child)):
            found.append((far, -record.accuracy, record.number, record))
    return min(found, key=lambda entry: entry[:3])[3] if found else None


class ParentChoice:
    """Parents of one run's trials; `folder`: the run's, where files lie."""

    def __init__(self, context: TrialContext, folder: Path) -> None:
        self._context, self._folder = context, folder

    def of(self, child: Allocation, finished: Iterable[Record]) -> Parent | None:
        """None where the trial starts anew: a coreset, or nothing near has finished."""
        if not isinstance(self._context.objectives[child.objective], Optimised):
            return None
        there = [record for record in finished if record.file and self.is_there(record.file)]
        record = nearest(child, there, class_counts(self._context))
        if record is None or record.file is None:
            return None
        return Parent(record.number, record.file, record.total_steps or 0)

    def is_there(self, file: str) -> bool:
        return (self._folder / file).is_file()
