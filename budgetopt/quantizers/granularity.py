"""Groups of values that have their own clipping thresholds, and their parameters in few bits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from budgetopt.errors import TrialFailure
from budgetopt.options import OneOf
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT
from budgetopt.packing.grouped import KINDS, MANTISSA_BITS, MAX_OFFSET, MAX_SCALE, Grouped, column_groups, scale_of
from budgetopt.packing.layout import Layout
from budgetopt.packing.levels import LevelTable

GRANULARITY = OneOf(("tensor", *KINDS))
SCALES = scale_of(np.arange(MAX_SCALE + 1)).astype(np.float64)
WORD = 26  # bits that the integers of the levels should stay below: the inverse transforms need room above them
MOST_DIGITS = 11  # bits between the largest scale and the smallest


class Groups:
    """Which group each coded value belongs to. One group only is `tensor`, whatever was asked for."""

    def __init__(self, kind: str, layout: Layout, labels: torch.Tensor) -> None:
        self.kind, self.count = kind, 1
        if kind == "class":
            self.count = int(labels.max()) + 1
        elif kind != "tensor":
            self._sizes = column_groups(kind, layout)
            self.count = len(self._sizes)
            columns = np.repeat(np.arange(self.count), self._sizes)
            self._columns = torch.from_numpy(columns)[None]
        if self.count == 1:
            self.kind = "tensor"

    def of(self, labels: torch.Tensor) -> torch.Tensor:
        """labels: (n,) → group of each value, int64, (n, 1) for classes, (1, K) for columns, (1, 1) for one group."""
        if self.kind == "tensor":
            return torch.zeros(1, 1, dtype=torch.int64, device=labels.device)
        if self.kind == "class":
            return labels[:, None]
        if self._columns.device != labels.device:
            self._columns = self._columns.to(labels.device)
        return self._columns

    def ranges(self, x: torch.Tensor, labels: torch.Tensor, percent: float) -> np.ndarray:
        """(G, 2) float64: percentiles `percent` and 100 − percent of the values x (n, K) of each group; the minimum and
        maximum where those are equal. Groups without values get the range of all."""
        ranges = self._percentiles(x.detach().cpu().numpy(), labels.cpu().numpy(), percent)
        narrow = ranges[:, 1] <= ranges[:, 0]
        if percent and narrow.any():  # more than half of the values are one value: clip nothing
            ranges[narrow] = self._percentiles(x.detach().cpu().numpy(), labels.cpu().numpy(), 0.0)[narrow]
        return ranges

    def _percentiles(self, x: np.ndarray, labels: np.ndarray, percent: float) -> np.ndarray:
        wanted = [percent, 100.0 - percent]
        if self.kind == "tensor":
            return np.percentile(x, wanted).reshape(1, 2).astype(np.float64)
        if self.kind == "class":
            members = [x[labels == group] for group in range(self.count)]
            return np.array([np.percentile(m if m.size else x, wanted) for m in members], np.float64)
        if max(self._sizes) == 1:
            return np.percentile(x, wanted, axis=0).T.astype(np.float64)
        edges = np.cumsum([0, *self._sizes])
        return np.array([np.percentile(x[:, first:last], wanted) for first, last in pairwise(edges)], np.float64)


def symmetric_groups(make: Callable[[int], LevelTable], kind: str, alpha: np.ndarray) -> Grouped:
    """±alpha (G,) as scales of the symmetric table `make(exponent)`, to 3 bits of mantissa."""
    top = int(np.abs(make(0).table()[[0, -1]]).max())
    exponent, codes = _scales(alpha, top, _digits(top.bit_length()))
    exponent, codes = _smallest(exponent, codes)
    return Grouped(make(_checked(exponent)), kind, tuple(codes.tolist()))


def shifted_groups(make: Callable[[int], LevelTable], kind: str, ranges: np.ndarray) -> Grouped:
    """Ranges (G, 2) from lowest to highest level as scales and offsets of the table `make(exponent)`.

    Offsets are multiples of a quarter to a half of a mean step, from the median of the lower ends (so that columns that
    start alike, as pixels do, share one offset, which costs nothing).
    """
    table = make(0).table()
    span, low = int(table[-1] - table[0]), ranges[:, 0]
    if not np.isfinite(ranges).all():
        raise TrialFailure("distillation diverged: a clipping threshold is not finite")
    common = float(np.median(low))
    # the width of a constant group says nothing: take one whose offset is short
    width = np.where(ranges[:, 1] > low, ranges[:, 1] - low, np.abs(low - common))
    fraction = (table.size - 1).bit_length() + 1
    exponent, _ = _scales(width, span, _digits(span.bit_length() + fraction))
    while abs(round(common * 2.0**exponent)) >= MANTISSA_LIMIT:
        exponent -= 1
    codes = _nearest(width / span * 2.0**exponent)
    while True:
        base = round(common * 2.0**exponent)
        middle = ranges.mean(1) - base * 2.0**-exponent
        exact = (middle * 2.0**exponent / (SCALES[codes] * span) - 0.5) * 2.0**fraction
        far = (np.abs(exact) >= MAX_OFFSET - 1) & (codes < MAX_SCALE)
        if not far.any():
            break
        codes = codes + far  # a coarser scale reaches further
    fewer, codes = _smallest(exponent, codes)
    if fewer != exponent:
        base = round(common * 2.0**fewer)
        middle = ranges.mean(1) - base * 2.0**-fewer
        exact = (middle * 2.0**fewer / (SCALES[codes] * span) - 0.5) * 2.0**fraction
    offsets = np.clip(np.round(exact), -MAX_OFFSET, MAX_OFFSET - 1).astype(np.int64)
    inner = make(_checked(fewer))
    return Grouped(inner, kind, tuple(codes.tolist()), tuple(offsets.tolist()), fraction, base)


def _digits(bits: int) -> int:
    """Bits that scales may differ by above levels of `bits` bits."""
    return min(MOST_DIGITS, max(3, WORD - 4 - bits))


def _scales(width: np.ndarray, span: int, digits: int) -> tuple[int, np.ndarray]:
    """→ (exponent, codes) with SCALES[codes]·span·2^(−exponent) nearest to width, the largest of 4 + digits bits."""
    if not np.isfinite(width).all():
        raise TrialFailure("distillation diverged: a clipping threshold is not finite")
    top = float(width.max()) or 1.0
    exponent = min(EXPONENT_LIMIT, digits + 4 - int(np.frexp(top / span)[1]))
    return exponent, _nearest(width / span * 2.0**exponent)


def _nearest(scales: np.ndarray) -> np.ndarray:
    return np.searchsorted((SCALES[1:] + SCALES[:-1]) / 2, scales).astype(np.int64)


def _smallest(exponent: int, codes: np.ndarray) -> tuple[int, np.ndarray]:
    """Factors of two that all scales have move to the exponent, as far as it can hold them."""
    shift = min(int(codes.min()) >> MANTISSA_BITS, max(0, exponent + EXPONENT_LIMIT))
    return exponent - shift, codes - (shift << MANTISSA_BITS)


def _checked(exponent: int) -> int:
    if exponent < -EXPONENT_LIMIT:
        raise TrialFailure("distillation diverged: a clipping threshold is beyond what a file can hold")
    return exponent
