"""Lloyd–Max: the levels that err least on the initial set (Lloyd 1957, Max 1960), stored as a small codebook."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from budgetopt.errors import TrialFailure
from budgetopt.options import Number, Options, Schema
from budgetopt.packing.codebook import CodebookLevels
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.layout import Layout
from budgetopt.quantizers.base import ScalarQuantizer
from budgetopt.quantizers.granularity import GRANULARITY, shifted_groups

EXTRA_BITS = 4  # of a level beyond those of L equal steps: rounding adds less than 1 % to the squared error
MOST_VALUES = 1 << 15  # that the levels are fitted to


class LloydMax(ScalarQuantizer):
    """2 to 256 levels. Groups share one codebook, shifted and scaled to each group's range, and fitted to the values of
    all groups in units of their ranges, weighted by the squared ranges: so the squared error in data units is least.

    Clipping: `minmax`, or `p1`, values clipped to percentiles 1 to 99 before the fit; `learned` starts from `minmax`
    and moves the levels by their gradient, d(x̂)/d(level k) = 1 for the values nearest to it. dx̂/dx = 1 everywhere.
    """

    called = "lloyd-max"
    clippings = ("minmax", "p1", "learned")
    options: ClassVar[Schema] = {"granularity": GRANULARITY, "steps": Number(100, 0, 10_000, whole=True)}

    def __init__(self, levels: int, clipping: str, chosen: Options = ()) -> None:
        super().__init__(levels, clipping, chosen)
        if clipping == "learned":
            self.book = nn.Parameter(torch.linspace(0.0, 1.0, levels))

    @torch.no_grad()
    def fit(self, x: torch.Tensor, labels: torch.Tensor, layout: Layout) -> None:
        self.group(labels, layout)
        self._ranges = self.groups.ranges(x, labels, 1.0 if self.clipping == "p1" else 0.0)
        low, width = self._ranges[:, 0], self._ranges[:, 1] - self._ranges[:, 0]
        group = self.groups.of(labels).cpu().numpy()
        values = x.cpu().numpy().astype(np.float64)
        safe = np.where(width > 0, width, 1.0)
        relative = np.clip((values - low[group]) / safe[group], 0.0, 1.0)
        weights = np.broadcast_to((width**2)[group], values.shape)
        book = lloyd_max(*_thinned(relative, weights), self.levels, int(self.chosen["steps"]))
        if self.clipping == "learned":
            self.book = nn.Parameter(torch.from_numpy(book).to(x))
        else:
            self._frozen = self._table(book)

    def side_information(self) -> CodebookLevels | Grouped:
        if self.clipping != "learned":
            return self._frozen
        return self._table(np.sort(self.book.detach().cpu().numpy().astype(np.float64)))

    def _table(self, book: np.ndarray) -> CodebookLevels | Grouped:
        """book: (L,) increasing, in units of the range."""
        if not np.isfinite(book).all():
            raise TrialFailure("distillation diverged: a level is not finite")
        low, high = self._ranges[0]
        if self.groups.count == 1:
            return codebook(low + book * ((high - low) or 1.0))
        # a group's range goes from the first level to the last, which lie inside the range of its values
        width = self._ranges[:, 1:] - self._ranges[:, :1]
        shape = replace(codebook(book), low=0)
        return shifted_groups(
            lambda e: replace(shape, exponent=e), self.groups.kind, self._ranges[:, :1] + book[[0, -1]] * width
        )

    def surrogate(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        out = self.quantized(x, labels) + (x - x.detach())  # the second term is zero in value
        if self.clipping != "learned":
            return out
        with torch.no_grad():
            symbols = self.symbols(x, labels, self.side_information()).long()
            width = torch.from_numpy(self._ranges[:, 1] - self._ranges[:, 0]).to(x)[self.groups.of(labels)]
        order = torch.argsort(self.book.detach())
        moved = (self.book - self.book.detach())[order]
        return out + moved[symbols] * width


def lloyd_max(values: np.ndarray, weights: np.ndarray, levels: int, steps: int) -> np.ndarray:
    """(L,) increasing levels for values (m,) in increasing order: the best of what Lloyd's alternation makes of three
    starts. Each step moves levels to the weighted means of the values nearest to them, which never adds to the error;
    `steps` 0 leaves the best start."""
    sums = [np.concatenate([[0.0], np.cumsum(weights * values**power)]) for power in range(3)]
    found = (_alternate(start, values, sums, steps) for start in _starts(values, weights, levels))
    return min(found, key=lambda book: _error(book, values, sums))


def _starts(values: np.ndarray, weights: np.ndarray, levels: int) -> list[np.ndarray]:
    """Equal steps over the whole range; quantiles; and points of density p^(1/3), best for many levels (Panter and
    Dite, 1951)."""
    shares = (np.arange(levels) + 0.5) / levels
    counts, edges = np.histogram(values, bins=256, weights=weights)
    cumulative = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    mass = np.cumsum(weights)
    equal = np.linspace(values[0], values[-1], levels)
    if mass[-1] <= 0:
        return [equal]
    quantiles = values[np.minimum(np.searchsorted(mass, shares * mass[-1]), len(values) - 1)]
    return [equal, quantiles, np.interp(shares * cumulative[-1], cumulative, edges)]


def _alternate(book: np.ndarray, values: np.ndarray, sums: list[np.ndarray], steps: int) -> np.ndarray:
    for _ in range(steps):
        edges = np.concatenate([[0], np.searchsorted(values, (book[1:] + book[:-1]) / 2), [len(values)]])
        mass, moment = np.diff(sums[0][edges]), np.diff(sums[1][edges])
        moved = np.sort(np.where(mass > 0, moment / np.where(mass > 0, mass, 1.0), book))
        if np.array_equal(moved, book):
            break
        book = moved
    return book


def _error(book: np.ndarray, values: np.ndarray, sums: list[np.ndarray]) -> float:
    """Σ w·(x − nearest level)²"""
    edges = np.concatenate([[0], np.searchsorted(values, (book[1:] + book[:-1]) / 2), [len(values)]])
    mass, moment, square = (np.diff(s[edges]) for s in sums)
    return float((square - 2 * book * moment + book**2 * mass).sum())


def codebook(book: np.ndarray) -> CodebookLevels:
    """Levels (L,) in increasing order, rounded to a grid of 2^4 points for each step of L equal ones; levels that meet
    are moved apart. Raises `TrialFailure` where no file can hold them."""
    width = float(book[-1] - book[0])
    points = len(book) << EXTRA_BITS
    largest = float(np.abs(book).max())
    exponent = int(np.floor(np.log2(points / width))) if width > 0 else 10 - int(np.frexp(largest or 1.0)[1])
    exponent = min(exponent, EXPONENT_LIMIT)
    while largest * 2.0**exponent + 2 * points >= MANTISSA_LIMIT:
        exponent -= 1
    if exponent < -EXPONENT_LIMIT:
        raise TrialFailure("distillation diverged: a level is beyond what a file can hold")
    places = np.round(book * 2.0**exponent).astype(np.int64)
    order = np.arange(len(places))
    places = np.maximum.accumulate(places - order) + order  # strictly increasing
    return CodebookLevels(int(places[0]), tuple(np.diff(places).tolist()), exponent)


def _thinned(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_VALUES` of the values in increasing order, every m-th, with their weights."""
    order = np.argsort(values, axis=None, kind="stable")
    order = order[:: -(-order.size // MOST_VALUES)]
    return values.reshape(-1)[order], weights.reshape(-1)[order]
