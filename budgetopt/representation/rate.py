"""A differentiable estimate of the coded size, for rate–distortion training: `L + λ·bits` (DESIGN, section 5).

A coder spends −log2 P(symbol | context) bits on a symbol. P comes from the counts of the current set, the context from
the causal neighbours of a value, its band or column, and its class. The estimate is that code length; its gradient is
the one of the expected code length if uniform noise moved a value to the level below or above. The bits of these levels
include what they would do to the values that have this one as a neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F

from budgetopt.checkpoint import State
from budgetopt.errors import InputError
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.layout import Domain, Layout, Plane
from budgetopt.quantizers.base import Quantizer

WIDTH = 1.0  # of the noise, in steps between levels; towards 0 the expected code length is that of the symbols
REFRESH = 5  # estimates between two looks at the symbols and their counts
REDUCED = 4  # neighbours are told apart by at most so many values, as coders do
SMOOTHING = 2.0  # observations that a shorter context counts for
MOST_ENTRIES = 1 << 22  # of the table of counts; the class is left out of the context where it would be larger

# (channel, row, column) of the known neighbours, relative to a value: W, N, NW, NE, the channel before
_PICTURE = ((0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1), (-1, 0, 0))
_GRIDS = ((0, 0, -1), (0, -1, 0))  # of blocks: one channel a band
_MOST_COLOURS = 4  # a plane with more channels holds bands

Turn = tuple[int, int, int]  # parities of channel, row and column of the values that may move


def takes(dequantizer: type[Dequantizer]) -> bool:
    """Whether a family codes one symbol for each value and leaves the symbols to the coders of the package."""
    own = ("symbol_layout", "samples", "payload")
    return all(getattr(dequantizer, name) is getattr(Dequantizer, name) for name in own)


def check(side: Dequantizer, choice: str) -> None:
    """Raise `InputError` where `choice` weighs bits of symbols that are not levels of single values."""
    if not takes(type(side)):
        raise InputError(f"{choice} must be 0 for the quantizer {side.name}: it does not code single values")


class CodedSize:
    """Bits of the symbols of a changing set. Symbols and counts are looked at again every `REFRESH` estimates."""

    def __init__(self, quantizer: Quantizer, layout: Layout, counts: tuple[int, ...]) -> None:
        self._quantizer, self._domain = quantizer, Domain(layout, counts)
        self._estimates = 0
        self.near: Near

    def bits(self, x: torch.Tensor, labels: torch.Tensor, width: float = WIDTH) -> torch.Tensor:
        """Code length of x (n, K) at the last look, a scalar; its gradient to x is that of `expected`. labels: (n,) in
        class order. Raises `InputError` for a family whose symbols are not levels of single values."""
        if self._estimates % REFRESH == 0:
            self.refresh(x.detach(), labels)
        self._estimates += 1
        expected = self.near.expected(x, width)
        return self.near.code_length + (expected - expected.detach())

    def state(self) -> State:
        """Of the last look, too: the next one comes when it would have come."""
        looked = [getattr(self.near, part.name) for part in fields(Near)] if self._estimates else []
        return {"estimates": self._estimates, "near": looked}

    def restore(self, state: State, device: torch.device) -> None:
        self._estimates = state["estimates"]
        if self._estimates:
            self.near = Near(*(part.to(device) for part in state["near"]))

    @torch.no_grad()
    def refresh(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        """Look at the symbols of x and their counts now."""
        stored, side = self._quantizer.encode(x, labels)
        check(side, "rate_weight")
        level, down, up = (torch.from_numpy(a).to(x.device) for a in steps_around(stored, side, self._domain))
        symbols = torch.from_numpy(stored.astype(np.int64)).to(x.device)
        cost = bits_around(symbols, labels, side.levels, self._domain.layout)
        there = torch.stack([down, torch.ones_like(down), up], -1) > 0  # equal levels are one
        cost = cost.where(there, cost[..., 1:2])
        self.near = Near(level, down.where(down > 0, 1.0), up.where(up > 0, 1.0), cost)


@dataclass(frozen=True)
class Near:
    """Around each value: its level, the steps down and up to the next ones, (n, K) each; and the bits (n, K, 3) of the
    level below, of its own, and of the one above, all equal where there is none."""

    level: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    cost: torch.Tensor

    @property
    def code_length(self) -> torch.Tensor:
        """Bits of the symbols at the time of the look."""
        return self.cost[..., 1].sum()

    def expected(self, x: torch.Tensor, width: float) -> torch.Tensor:
        """Σ_i E[bits of the level nearest to x_i + noise], the noise uniform over `width` steps around 0: between two
        levels the bits go from one's to the other's on a straight line of that width. Outside the range of all levels
        they stay: more distance saves no bits."""
        below, own, above = self.cost.unbind(-1)
        away = x - self.level
        total = own
        for steps, more in ((away / self.up, above - own), (-away / self.down, below - own)):
            share = (steps - 0.5) / width + 0.5
            # a value that lies exactly on its level goes where that is cheaper: sets often start on levels
            moving = (share > 0.0) | ((share == 0.0) & (more < 0.0))
            total = total + more * share.clamp(max=1.0).where(moving, 0.0)
        return total.sum()


def steps_around(symbols: np.ndarray, side: Dequantizer, domain: Domain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of any family that has one level for each symbol and value, through its dequantizer: level, step down and step
    up, (n, K) float32 each; a step is 0 where there is no such level."""
    index = np.arange(len(symbols))
    nearby = (symbols, symbols - (symbols > 0), symbols + (symbols < side.levels - 1))
    at, below, above = (side.ints(s, index, domain).astype(np.float64) * 2.0**-side.exponent for s in nearby)
    if (below > at).any() or (above < at).any():
        raise InputError(f"rate_weight must be 0 for the quantizer {side.name}: its levels are in no order")
    return at.astype(np.float32), (at - below).astype(np.float32), (above - at).astype(np.float32)


def columns(layout: Layout, turn: Turn | None = None) -> torch.Tensor:
    """Which of the K values of a sample have their turn, in ascending order; all of them for None."""
    found, first = [], 0
    for plane in layout:
        grid = torch.arange(first, first + plane.size).reshape(1, plane.channels, plane.height, plane.width)
        found.append(grid[_part(turn)].flatten())
        first += plane.size
    return torch.cat(found)


def bits_around(
    symbols: torch.Tensor, labels: torch.Tensor, levels: int, layout: Layout, turn: Turn | None = None
) -> torch.Tensor:
    """symbols: (n, K) int64; labels: (n,) → (n, K, 3) float32: what the symbols s − 1, s and s + 1 would cost. With
    `turn`, of `columns(layout, turn)` alone.

    The cost of s is −log2 P(s | context), of the counts without the value itself. The others add the change of cost of
    the values that have this one as a neighbour. Sums over all values of the middle column are a code length.
    """
    parts, first = [], 0
    for plane in layout:
        grid = symbols[:, first : first + plane.size].reshape(-1, plane.channels, plane.height, plane.width)
        parts.append(_plane_bits(grid, labels, levels, plane, _part(turn)).reshape(len(symbols), -1, 3))
        first += plane.size
    return torch.cat(parts, 1)


def _part(turn: Turn | None) -> tuple[slice, ...]:
    """Of a grid (n, c, h, w)."""
    return (slice(None), *(slice(None) if turn is None else slice(parity, None, 2) for parity in turn or (0, 0, 0)))


def _plane_bits(
    s: torch.Tensor, labels: torch.Tensor, levels: int, plane: Plane, part: tuple[slice, ...]
) -> torch.Tensor:
    """s: (n, c, h, w) → (n, c', h', w', 3), of a part."""
    reduced = min(levels, REDUCED)
    r = s * reduced // levels
    neighbours = _neighbours(plane)
    context, weights = torch.zeros_like(s), [reduced**q for q in range(len(neighbours))]
    for offset, weight in zip(neighbours, weights, strict=True):
        context += weight * _shifted(r, offset, 0)
    contexts = reduced ** len(neighbours)
    if _has_bands(plane):
        context += contexts * torch.arange(plane.channels, device=s.device).reshape(-1, 1, 1)
        contexts *= plane.channels
    classes = int(labels.max()) + 1
    if contexts * classes * levels > MOST_ENTRIES:
        labels, classes = torch.zeros_like(labels), 1
    entry = (context * classes + labels.reshape(-1, 1, 1, 1)) * levels + s
    lengths = CodeLengths(entry.flatten(), contexts, classes, levels)
    now = lengths.same(entry)
    s, r, own, sides = s[part], r[part], entry[part], []
    for move in (-1, 1):
        moved = (s + move).clamp(0, levels - 1)
        cost = lengths.other(own + (moved - s))
        change = (moved * reduced // levels - r) * classes * levels
        for (c, y, x), weight in zip(neighbours, weights, strict=True):
            back = (-c, -y, -x)  # where the value is the neighbour
            theirs = _shifted(entry, back, -1)[part]
            known = (theirs >= 0) & (change != 0)
            then = lengths.fresh((theirs + weight * change).where(known, 0))
            cost = cost + (then - _shifted(now, back, 0)[part]).where(known, 0.0)
        sides.append(cost)
    return torch.stack([sides[0], now[part], sides[1]], -1)


class CodeLengths:
    """In bits, of symbols in contexts, from the counts of a set; looked up by entry: (context · classes + class) ·
    levels + symbol.

    P(s | context, class) = (n_s + a·P(s | context)) / (n + a), P(s | context) = (n_s + a·P(s)) / (n + a), with
    a = `SMOOTHING`; P(s) = (n_s + ½) / (n + L/2).
    """

    def __init__(self, entries: torch.Tensor, contexts: int, classes: int, levels: int) -> None:
        """entries: (values,) of the set."""
        self._classes, self._levels, size = classes, levels, contexts * classes * levels
        fine = torch.bincount(entries, minlength=size).reshape(contexts, classes, levels)
        coarse = fine.sum(1)
        all_of = coarse.sum(0).float()
        self._base = (all_of + 0.5) / (all_of.sum() + 0.5 * levels)
        self._coarse, self._coarse_sums = coarse.float().flatten(), coarse.sum(-1).float()
        self._fine, self._fine_sums = fine.float().flatten(), fine.sum(-1).float().flatten()
        # every entry once, or those that are asked for, whichever is less
        self._all = torch.arange(size, device=entries.device) if size <= len(entries) else None
        self._tables: dict[tuple[float, float], torch.Tensor] = {}

    def fresh(self, entry: torch.Tensor) -> torch.Tensor:
        """Of a symbol from elsewhere."""
        return self._looked_up(entry, 0.0, 0.0)

    def same(self, entry: torch.Tensor) -> torch.Tensor:
        """Of a symbol that is itself among the counts: they are taken without it."""
        return self._looked_up(entry, 1.0, 1.0)

    def other(self, entry: torch.Tensor) -> torch.Tensor:
        """Of what such a one could be instead."""
        return self._looked_up(entry, 0.0, 1.0)

    def _looked_up(self, entry: torch.Tensor, of_symbol: float, of_all: float) -> torch.Tensor:
        if self._all is None:
            return self._computed(entry, of_symbol, of_all)
        if (of_symbol, of_all) not in self._tables:
            self._tables[of_symbol, of_all] = self._computed(self._all, of_symbol, of_all)
        return self._tables[of_symbol, of_all][entry]

    def _computed(self, entry: torch.Tensor, of_symbol: float, of_all: float) -> torch.Tensor:
        row = entry // self._levels
        symbol, context = entry - row * self._levels, row // self._classes
        p = self._base[symbol]
        for counts, sums, at, of in (
            (self._coarse, self._coarse_sums, context * self._levels + symbol, context),
            (self._fine, self._fine_sums, entry, row),
        ):
            total = (sums[of] - of_all).clamp(min=0)
            p = ((counts[at] - of_symbol).clamp(min=0) + SMOOTHING * p) / (total + SMOOTHING)
        return -torch.log2(p)


def _has_bands(plane: Plane) -> bool:
    return plane.channels > _MOST_COLOURS or plane.height * plane.width == 1


def _neighbours(plane: Plane) -> tuple[tuple[int, int, int], ...]:
    if plane.height * plane.width == 1:
        return ()
    if _has_bands(plane):
        return _GRIDS
    return _PICTURE if plane.channels > 1 else _PICTURE[:-1]


def _shifted(a: torch.Tensor, offset: tuple[int, int, int], outside: int) -> torch.Tensor:
    """a: (n, c, h, w) → at every place the value at `offset` from it."""
    c, y, x = (1 + o for o in offset)
    padded = F.pad(a, (1, 1, 1, 1, 1, 1), value=outside)
    return padded[:, c : c + a.shape[1], y : y + a.shape[2], x : x + a.shape[3]]
