"""What the rate–distortion model believes, for people: the front that it expects, the sweet spot between more samples
and more levels, and what another trial is expected to gain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetopt.allocation import Allocation
from budgetopt.search.sampler import View

SIZES = 16  # on a logarithmic scale
BAND = 1.96  # standard deviations of a 95 % interval


@dataclass(frozen=True)
class Spot:
    """The best allocation for files of at most `bytes`, as the model has it. low, high: 95 % interval of its accuracy;
    tried: whether it was measured."""

    bytes: float
    allocation: Allocation
    accuracy: float
    low: float
    high: float
    tried: bool


@dataclass(frozen=True)
class Law:
    """Fitted constants of the error model of one method, log-odds e − A·n^(−p) − B·δ^½ − D·δ: those of the bound of
    BCDC Theorem 4.5 with κ/√n as the case p = ½."""

    method: str
    e: float
    a: float
    p: float
    b: float
    d: float


@dataclass(frozen=True)
class Explanation:
    """spots: by size, with the sweet spot at each; laws: of every method; misfit: standard deviation of single
    allocations around them, in log-odds; gain_accuracy: that the next trial is expected to add to the best accuracy
    within the budget; gain_volume: that it is expected to add to the hypervolume, as a share of the rectangle; trials:
    finished ones that all of it rests on."""

    spots: tuple[Spot, ...]
    laws: tuple[Law, ...]
    misfit: float
    gain_accuracy: float
    gain_volume: float
    trials: int

    @property
    def sweet_levels(self) -> tuple[tuple[float, int], ...]:
        """(bytes, levels of the best allocation of at most these), where they change."""
        found: list[tuple[float, int]] = []
        for spot in self.spots:
            if not found or found[-1][1] != spot.allocation.levels:
                found.append((spot.bytes, spot.allocation.levels))
        return tuple(found)


def explain(view: View, smallest: float) -> Explanation:
    """smallest: bytes, where the hypervolume begins."""
    model, problem, table = view.model, view.problem, view.table
    points, ipc = view.candidates(tried=True)
    predicted = model.predict(points)
    likely = np.flatnonzero(predicted.valid >= 0.5)
    spots, width = [], model.log_budget - np.log2(smallest)
    for size in np.linspace(np.log2(smallest), model.log_budget, SIZES):
        within = likely[predicted.log_bytes[likely] <= size + 1e-9]
        if not len(within):
            continue
        best = within[np.argmax(predicted.accuracy[within])]
        mean, spread = float(predicted.accuracy[best]), BAND * float(predicted.accuracy_std[best])
        allocation = view.allocation(points.kind[best], ipc[best])
        low, high = max(0.0, mean - spread), min(1.0, mean + spread)
        spots.append(Spot(float(2.0**size), allocation, mean, low, high, allocation in view.known))
    left, _ = view.candidates()
    gains = [model.ranked(left, at_budget, problem.chance)[1] if len(left) else [0.0] for at_budget in (True, False)]
    laws = [
        Law(method, *(float(value) for value in (e, a, p, b, d)))
        for method, (e, a, b, d), p in zip(table.methods, model.error.coefficients, model.error.powers, strict=True)
    ]
    return Explanation(
        tuple(spots),
        tuple(laws),
        model.error.misfit,
        float(max(gains[0])),
        float(max(gains[1])) / (width * (1.0 - problem.chance)),
        model.finished,
    )
