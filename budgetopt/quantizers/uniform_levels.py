"""Ranges → tables of uniform and companded levels in file precision, and the index units of such tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from budgetopt.errors import TrialFailure
from budgetopt.packing.companding import EDGE, FRACTION_BITS, CompandedLevels
from budgetopt.packing.fields import EXPONENT_LIMIT, MANTISSA_LIMIT, to_fixed
from budgetopt.packing.grouped import Grouped
from budgetopt.packing.levels import LevelTable, UniformLevels
from budgetopt.quantizers.granularity import Groups, shifted_groups, symmetric_groups

STEP_BITS = 12  # precision of the stored step: the largest of 256 levels is off by less than 3 % of a step
SCALE_BITS = 8  # precision of the stored scale of companded levels
REACH = {"tanh": math.atanh(1 - 1 / EDGE), "laplace": math.log(EDGE)}  # where compressed values are 255/256


def uniform_table(low: float, high: float, levels: int) -> UniformLevels:
    """Levels from low to high. Raises `TrialFailure` where no file can hold them."""
    (mantissa,), exponent = _fixed([(high - low) / (levels - 1) or 1.0], STEP_BITS)
    # `low` may need a finer grid than a round step has, at most 12 bits finer; far from zero a coarser one,
    # since all levels stay below 2^24, where float32 is exact
    finer = 0
    while finer < STEP_BITS and low * 2.0 ** (exponent + finer) != round(low * 2.0 ** (exponent + finer)):
        finer += 1
    finer = min(finer, EXPONENT_LIMIT - exponent)
    while True:
        offset, stored = round(low * 2.0 ** (exponent + finer)), max(1, round(mantissa * 2.0**finer))
        if max(abs(offset), abs(offset + (levels - 1) * stored)) < MANTISSA_LIMIT:
            break
        finer -= 1
    return UniformLevels(levels, offset, stored, exponent + finer)


def symmetric_table(alpha: float, levels: int) -> UniformLevels:
    """±alpha, QuADD eq. 12: spacing 2α/(L − 1), no level at 0 where L is even."""
    (half,), exponent = _fixed([alpha / (levels - 1)], STEP_BITS)
    return UniformLevels(levels, -(levels - 1) * half, 2 * half, exponent)


def companded_shape(relative: np.ndarray, curve: str, levels: int, symmetric: bool) -> CompandedLevels:
    """Curve that follows the values `relative` (m,), in units of the range [0, 1] → a table with scale 1.

    Laplace: u = 2F(x) − 1 around the median, with three times the mean distance from it; tanh: u = tanh of the distance
    from the mean in √3 standard deviations. Levels are then as dense as the cube root of a Laplace or nearly of a
    normal density, which is best for the squared error of many levels (Panter and Dite, 1951); the plain distribution
    function would make all levels equally frequent, and leave few for the tails.
    """
    if curve == "tanh":
        centre, scale = float(relative.mean()), float(relative.std()) * 3**0.5
    else:
        centre = float(np.median(relative))
        scale = 3 * float(np.abs(relative - centre).mean())
    centre = 0.5 if symmetric else centre
    scale = max(scale, max(centre, 1.0 - centre) / REACH[curve])  # the farther end must not be compressed to 1
    ends = np.array([-centre, 1.0 - centre]) / scale
    u = np.tanh(ends) if curve == "tanh" else -np.sign(ends) * np.expm1(-np.abs(ends))
    low, high = (round(EDGE * float(end)) for end in u)
    return CompandedLevels(levels, curve, -high if symmetric else low, high, 0, 1, 0)


def companded_table(shape: CompandedLevels, low: float, high: float, symmetric: bool) -> CompandedLevels:
    """`shape` scaled and shifted so that its levels go from low to high."""
    ends = shape.table()[[0, -1]] * 2.0**-FRACTION_BITS
    width = (high - low) / (ends[1] - ends[0]) or 1.0
    (scale,), exponent = _fixed([width], SCALE_BITS)
    while not symmetric and exponent < EXPONENT_LIMIT and scale < 1 << (SCALE_BITS - 1):
        scale, exponent = 2 * scale, exponent + 1  # room for the centre, which is stored as finely
    centre = 0.0 if symmetric else low - ends[0] * width
    while abs(round(centre * 2.0**exponent)) >= MANTISSA_LIMIT:
        scale, exponent = max(1, round(scale / 2)), exponent - 1
    return replace(shape, centre=round(centre * 2.0**exponent), scale=scale, stored_exponent=exponent)


def grouped_table(
    shape: CompandedLevels | None, kind: str, ranges: np.ndarray, levels: int, symmetric: bool
) -> Grouped:
    """Ranges (G, 2) → uniform or, with a `shape`, companded levels of each group."""

    def make(exponent: int) -> LevelTable:
        if shape is not None:
            return replace(shape, stored_exponent=exponent - FRACTION_BITS)
        return UniformLevels(levels, 1 - levels, 2, exponent) if symmetric else UniformLevels(levels, 0, 1, exponent)

    return symmetric_groups(make, kind, ranges[:, 1]) if symmetric else shifted_groups(make, kind, ranges)


class IndexUnits:
    """Values ↔ index units of any table of levels, differentiable: level k is at k in every group, with straight lines
    between levels and beyond the ends, so that rounding in index units finds the nearest level."""

    def __init__(self, side: LevelTable | Grouped, groups: Groups, labels: torch.Tensor) -> None:
        self._first: torch.Tensor | float = 0.0
        self._factor: torch.Tensor | float = 2.0**-side.exponent
        if isinstance(side, Grouped):
            start, factor, table = side.shifts
            group = groups.of(labels)
            self._first = torch.from_numpy(start * self._factor).to(labels.device)[group]
            self._factor = torch.from_numpy(factor * self._factor).to(labels.device)[group]
        else:
            table = side.table()
        self._table = torch.from_numpy(table.astype(np.float64)).to(labels.device)

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Values → index units, in float64: levels may lie far from zero."""
        place = (x.double() - self._first) / self._factor
        below = torch.bucketize(place.detach(), self._table[1:-1], right=True)
        return below + (place - self._table[below]) / self._table.diff()[below]

    def values(self, v: torch.Tensor) -> torch.Tensor:
        """Index units → values, float64."""
        below = v.detach().floor().long().clamp(0, len(self._table) - 2)
        return self._first + self._factor * (self._table[below] + (v - below) * self._table.diff()[below])


def _fixed(values: list[float], bits: int) -> tuple[list[int], int]:
    try:
        return to_fixed(values, bits)
    except ValueError:  # NaN, infinite, or beyond what a file can hold
        raise TrialFailure(f"distillation diverged: the step of the levels is {values[0]}") from None
