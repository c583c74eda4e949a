"""Levels for each patch of a picture, or for each group of patches (PTQ for condensation, eq. 2–7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from budgetopt.packing import coders
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.layout import Domain, Layout, Plane, values_of
from budgetopt.packing.levels import UniformLevels

MAX_GROUPS = 256  # their numbers are bytes; beyond, levels for each patch at lower precision are as good
FRACTION_BITS = 8  # of a level, below the step of the parameters' grid
_JOINT, _ZERO_POINT, _GROUPED = 1, 2, 4


@dataclass(frozen=True, eq=False)
class PatchLevels(Dequantizer):
    """A patch has a lowest and a highest level, both indices into `grid`, and `count` levels between them.

    side: of a patch; those at the right and lower edge are smaller. joint: a patch covers all channels of its plane,
    else each channel has its own. zero_point: the levels are moved to whole multiples of their step (eq. 3–4). low,
    high: (n, P) uint8, one pair for each patch (PAQ), or (G,) for each group (GAQ) with `group` (n, P) uint8.
    """

    family: ClassVar[int] = 4
    name: ClassVar[str] = "patches"
    count: int
    side: int
    joint: bool
    zero_point: bool
    grid: UniformLevels
    low: np.ndarray
    high: np.ndarray
    group: np.ndarray | None = None

    @property
    def exponent(self) -> int:  # type: ignore[override]
        return self.grid.exponent + FRACTION_BITS

    @property
    def levels(self) -> int:
        return self.count

    @property
    def most(self) -> int:
        # a zero-point moves the levels by at most half of their step, which is at most the span of the grid
        return (2 * self.grid.most + self.grid.step * self.grid.count) << FRACTION_BITS

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        patch = patch_of(domain.layout, self.side, self.joint)
        # of these samples alone, where every patch has its own
        low, high = (self.low[index], self.high[index]) if self.group is None else (self.low, self.high)
        first, span = starts_and_spans(self.grid, low, high, self.count, self.zero_point)
        if self.group is not None:
            first, span = first[self.group[index]], span[self.group[index]]
        first, span = first[:, patch], span[:, patch]
        steps = self.count - 1
        return first + (2 * span * symbols + steps) // (2 * steps)

    def hint(self, domain: Domain) -> np.ndarray | None:
        """The group of each value; with parameters for each patch, the bits of the width of its range."""
        patch = patch_of(domain.layout, self.side, self.joint)
        if self.group is not None:
            return self.group[:, patch]
        bits = np.frexp(np.arange(256))[1].astype(np.uint8)  # of every width that there may be
        return bits[self.high - self.low][:, patch]

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.count - 1)
        out.byte(self.side - 1)
        grouped = self.group is not None
        out.byte(self.joint * _JOINT | self.zero_point * _ZERO_POINT | grouped * _GROUPED)
        self.grid.write(out, domain)
        planes = patch_layout(domain.layout, self.side, self.joint)
        if self.group is None:
            both = np.concatenate([self.low, self.high], axis=1)
            _write_coded(out, both, self.grid.count, Domain(planes + planes, domain.counts))
            return
        out.byte(self.low.size - 1)
        write_indices(out, np.stack([self.low, self.high]), self.grid.count)
        if self.low.size > 1:
            _write_coded(out, self.group, self.low.size, Domain(planes, domain.counts))

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> PatchLevels:
        count, side, form = fields.byte() + 1, fields.byte() + 1, fields.byte()
        if count < 2:
            raise BadHeader("patches must have at least 2 levels")
        if form & ~(_JOINT | _ZERO_POINT | _GROUPED):
            raise BadHeader(f"unknown form of patches {form:#04x}")
        joint, zero_point = bool(form & _JOINT), bool(form & _ZERO_POINT)
        grid = UniformLevels.read(fields, domain)
        planes = patch_layout(domain.layout, side, joint)
        group = None
        if form & _GROUPED:
            groups = fields.byte() + 1
            low, high = read_indices(fields, (2, groups), grid.count)
            group = np.broadcast_to(np.uint8(0), (domain.samples, values_of(planes)))
            if groups > 1:
                group = _read_coded(fields, groups, Domain(planes, domain.counts))
        else:
            both = _read_coded(fields, grid.count, Domain(planes + planes, domain.counts))
            low, high = np.split(both, 2, axis=1)
        if (high < low).any():
            raise BadHeader("the range of a patch is upside down")
        return cls(count, side, joint, zero_point, grid, low, high, group)

    def read_payload(self, data: bytes, domain: Domain, known: frozenset[int]) -> tuple[str, np.ndarray]:
        if domain.samples * domain.values > coders.capacity(len(data)):  # before `hint` takes memory
            raise BadPayload(f"{len(data)} coded bytes cannot hold {domain.samples * domain.values:,} symbols")
        return super().read_payload(data, domain, known)


def patch_layout(layout: Layout, side: int, joint: bool) -> Layout:
    """The layout of one number for each of the P patches of a sample."""
    return tuple(
        Plane(1 if joint else plane.channels, -(-plane.height // side), -(-plane.width // side)) for plane in layout
    )


@lru_cache(maxsize=8)
def patch_of(layout: Layout, side: int, joint: bool) -> np.ndarray:
    """The patch of each coded value, (K,) int32: row by row, channel by channel, plane by plane."""
    parts, before = [], 0
    for plane, patches in zip(layout, patch_layout(layout, side, joint), strict=True):
        rows, columns = (np.arange(n, dtype=np.int32) // side for n in (plane.height, plane.width))
        channels = np.arange(plane.channels, dtype=np.int32) % patches.channels
        first = before + channels * (patches.height * patches.width)
        parts.append((first[:, None, None] + rows[:, None] * patches.width + columns).ravel())
        before += patches.size
    return np.concatenate(parts)


def starts_and_spans(
    grid: UniformLevels, low: np.ndarray, high: np.ndarray, count: int, zero_point: bool
) -> tuple[np.ndarray, np.ndarray]:
    """low, high: indices into the grid, of any shape → (first level, last − first), int64 times 2^(−exponent −
    FRACTION_BITS). With `zero_point`, α = (high − low) / (count − 1), z = −⌊low/α⌉ and the first level is −z·α; a flat
    patch has the smallest α there is, and so keeps its constant."""
    table, steps = grid.table() << FRACTION_BITS, count - 1
    first, span = table[low], table[high] - table[low]
    if zero_point:
        scale = np.maximum(1, (2 * span + steps) // (2 * steps))
        first = (2 * first + scale) // (2 * scale) * scale
        span = np.where(span == 0, 0, scale * steps)
    return first, span


def write_indices(out: Writer, indices: np.ndarray, levels: int) -> None:
    """⌈log2 levels⌉ bits each, padded to whole bytes."""
    out.raw(coders.RawBits().encode(indices, levels, Domain((Plane(indices.size),), (1,)), None))


def read_indices(fields: Reader, shape: tuple[int, ...], levels: int) -> np.ndarray:
    """Inverse of `write_indices`, uint8. Raises `BadPayload` for an index that is not below `levels`."""
    count = int(np.prod(shape, dtype=np.int64))
    data = fields.raw((count * (levels - 1).bit_length() + 7) // 8)
    return coders.RawBits().decode(data, levels, Domain((Plane(count),), (1,)), None).reshape(shape)


def _write_coded(out: Writer, symbols: np.ndarray, levels: int, domain: Domain) -> None:
    coder, data = coders.shortest(symbols, levels, domain)
    out.unsigned(len(data))
    out.byte(coder.ident)
    out.raw(data)


def _read_coded(fields: Reader, levels: int, domain: Domain) -> np.ndarray:
    size, ident = fields.unsigned(fields.left, "the length of the patches' parameters"), fields.byte()
    if ident not in coders.CODERS:
        raise BadHeader(f"unknown coder {ident}")
    return coders.decode(coders.CODERS[ident], fields.raw(size), levels, domain)
