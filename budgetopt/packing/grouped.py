"""Granularity: one table of levels that every group of values (channel, class, feature, band) shifts and scales."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from budgetopt.packing.coders import AdaptiveRange, RawBits
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import MANTISSA_LIMIT, Reader, Writer
from budgetopt.packing.layout import Domain, Layout, Plane, values_of
from budgetopt.packing.levels import LevelTable

KINDS = ("channel", "class", "feature", "band")  # in a file: 1, 2, 3, 4
MAX_GROUPS = 1 << 16
MANTISSA_BITS = 3
MAX_SCALE = 127  # 15·2^15
MAX_FRACTION = 12
MAX_OFFSET = 1 << 15
_MOST = 1 << 62
PICTURE_CHANNELS = 4  # a plane of more channels is no picture: its channels are bands or columns


def scale_of(codes: np.ndarray) -> np.ndarray:
    """S = (8 + code mod 8)·2^⌊code/8⌋: 3 bits of mantissa below the leading one, 4 of exponent."""
    codes = np.asarray(codes, np.int64)
    return (8 + (codes & 7)) << (codes >> MANTISSA_BITS)


def column_groups(kind: str, layout: Layout) -> list[int]:
    """Sizes of runs of consecutive coded values: one group each. Raises `BadHeader` above 65,536 groups.

    Bands (QuADD eq. 15, two thresholds for frequency data): planes where there are several; else the first quarter of
    the channels against the rest, since channels come from low to high frequency; a picture's bands are its channels.
    """
    (first, *more), total = layout, values_of(layout)
    if kind == "feature":
        runs = total
    elif kind == "band" and (more or first.channels > PICTURE_CHANNELS):
        runs = 0
    else:
        runs = sum(plane.channels for plane in layout)
    if runs > MAX_GROUPS:
        raise BadHeader(f"at most {MAX_GROUPS} groups of values, got {runs}")
    if kind == "feature":
        return [1] * total
    if kind == "band" and more:
        return [plane.size for plane in layout]
    if kind == "band" and first.channels > PICTURE_CHANNELS:
        low = -(-first.channels // 4) * first.height * first.width
        return [low, total - low]
    return [plane.height * plane.width for plane in layout for _ in range(plane.channels)]


def group_count(kind: str, domain: Domain) -> int:
    groups = len(domain.counts) if kind == "class" else len(column_groups(kind, domain.layout))
    if groups > MAX_GROUPS:
        raise BadHeader(f"at most {MAX_GROUPS} groups of values, got {groups}")
    return groups


def group_index(kind: str, domain: Domain, index: np.ndarray) -> np.ndarray:
    """Group of each value of the samples `index`: (m, 1) for classes, else (1, K)."""
    if kind == "class":
        return domain.labels[index][:, None]
    sizes = column_groups(kind, domain.layout)
    return np.repeat(np.arange(len(sizes)), sizes)[None]


@dataclass(frozen=True)
class Grouped(Dequantizer):
    """Level k of group g, from the table T of `inner` with its range R = T_(L−1) − T_0 and the scale S_g:

    without offsets  S_g·T_k·2^(−e)                                  (e of `inner`),
    with offsets     (base + S_g·(t_g/2^q·R + T_k − T_0))·2^(−e),    in integers times 2^(−e−q).

    `scales`: codes of S, see `scale_of`. `offsets`: t, or () for tables that are symmetric. For classes, groups of
    classes beyond the last are left out when written, missing ones repeat the last.
    """

    inner: LevelTable
    kind: str
    scales: tuple[int, ...]
    offsets: tuple[int, ...] = ()
    fraction: int = 0
    base: int = 0

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 0 or max(self.scales) > MAX_SCALE:
            raise BadHeader(f"the scales of groups must be in 0..{MAX_SCALE}")
        if self.offsets and (min(self.offsets) < -MAX_OFFSET or max(self.offsets) >= MAX_OFFSET):
            raise BadHeader("the offsets of groups must fit 16 bits")
        if not 0 <= self.fraction <= MAX_FRACTION:
            raise BadHeader(f"the fraction of the offsets of groups must be in 0..{MAX_FRACTION}, got {self.fraction}")
        if abs(self.base) >= MANTISSA_LIMIT:
            raise BadHeader(f"the common offset of groups must be below 2^24, got {self.base}")
        # in Python's integers: a bound on what `shifts` computes in 64 bits
        scale = int(scale_of(np.array([max(self.scales)]))[0])
        offset = max(abs(min(self.offsets)), abs(max(self.offsets))) + (1 << self.fraction) if self.offsets else 0
        if (abs(self.base) << self.fraction) + scale * (self.range * offset + self.inner.most) >= _MOST:
            raise BadHeader("the levels of the groups need more than 62 bits")

    @property
    def family(self) -> int:  # type: ignore[override]
        return self.inner.family

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @property
    def levels(self) -> int:
        return self.inner.levels

    @property
    def exponent(self) -> int:  # type: ignore[override]
        return self.inner.exponent + self.fraction

    @property
    def range(self) -> int:
        """R"""
        first, last = self.inner.table()[[0, -1]]
        return int(last) - int(first)

    @property
    def most(self) -> int:
        start, factor, shape = self.shifts
        return int(max(np.abs(start + factor * shape[0]).max(), np.abs(start + factor * shape[-1]).max()))

    @cached_property
    def shifts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start (G,), factor (G,), shape (L,)) int64: level k of group g is start_g + factor_g·shape_k."""
        scales, table = scale_of(np.array(self.scales)), self.inner.table()
        if not self.offsets:
            return np.zeros_like(scales), scales, table
        start = (self.base << self.fraction) + scales * np.array(self.offsets, np.int64) * self.range
        return start, scales << self.fraction, table - table[0]

    def tables(self) -> np.ndarray:
        """(G, L) int64, each row increasing."""
        start, factor, shape = self.shifts
        return start[:, None] + factor[:, None] * shape

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        start, factor, shape = self.shifts
        groups = group_index(self.kind, domain, index)
        return start[groups] + factor[groups] * shape[symbols]

    def write(self, out: Writer, domain: Domain) -> None:
        self.inner.write(out, domain)
        groups = group_count(self.kind, domain)
        if self.kind != "class" and groups != len(self.scales):
            raise BadHeader(f"{groups} groups expected, got {len(self.scales)}")
        out.byte(KINDS.index(self.kind) + 1 | bool(self.offsets) << 3 | self.fraction << 4)
        _write_column(out, _resized(self.scales, groups))
        if self.offsets:
            lowest = min(self.offsets)
            high = _resized(self.offsets, groups) - lowest
            out.signed(self.base)
            out.signed(lowest)
            _write_column(out, high >> 8)
            _write_column(out, high & 255)

    @classmethod
    def read(cls, fields: Reader, domain: Domain, inner: Dequantizer | None = None) -> Grouped:
        """What follows the parameters of `inner` in a file with flag 16. Raises `BadHeader` unless that is a table of
        levels."""
        if not isinstance(inner, LevelTable):
            raise BadHeader(f"a quantizer without levels of single values has no groups: {inner}")
        first = fields.byte()
        kind, has_offsets, fraction = first & 7, first & 8, first >> 4
        if not 1 <= kind <= len(KINDS):
            raise BadHeader(f"unknown granularity {kind}")
        groups = group_count(KINDS[kind - 1], domain)
        scales = _read_column(fields, groups)
        base, offsets = 0, np.zeros(0, np.int64)
        if has_offsets:
            base = fields.signed(MANTISSA_LIMIT - 1, "the common offset of the groups")
            lowest = fields.signed(MAX_OFFSET, "the lowest offset of the groups")
            offsets = lowest + (_read_column(fields, groups) << 8) + _read_column(fields, groups)
        elif fraction:
            raise BadHeader("groups without offsets have no fraction of them")
        return cls(inner, KINDS[kind - 1], tuple(scales.tolist()), tuple(offsets.tolist()), fraction, base)


def _resized(values: tuple[int, ...], groups: int) -> np.ndarray:
    padded = np.array(values[:groups], np.int64)
    return np.pad(padded, (0, groups - len(padded)), mode="edge")


def _write_column(out: Writer, values: np.ndarray) -> None:
    """values (G,) in 0 … 255: lowest, span − 1, and the values above the lowest under the shorter coder."""
    lowest = int(values.min())
    span = int(values.max()) - lowest + 1
    out.byte(lowest)
    out.byte(span - 1)
    if span == 1:
        return
    symbols, domain = (values - lowest).astype(np.uint8)[None], _column(len(values))
    raw, coded = (coder.encode(symbols, span, domain, None) for coder in (RawBits(), AdaptiveRange()))
    if len(raw) <= len(coded) + 1:
        out.unsigned(0)
        out.raw(raw)
    else:
        out.unsigned(len(coded))
        out.raw(coded)


def _read_column(fields: Reader, groups: int) -> np.ndarray:
    lowest, span = fields.byte(), fields.byte() + 1
    if lowest + span > 256:
        raise BadHeader(f"parameters of groups end above 255: {lowest} + {span - 1}")
    if span == 1:
        return np.full(groups, lowest, np.int64)
    width = (span - 1).bit_length()
    length = fields.unsigned((groups * width + 7) // 8 + 8, "the length of the parameters of groups")
    coder = AdaptiveRange() if length else RawBits()
    data = fields.raw(length or (groups * width + 7) // 8)
    return lowest + coder.decode(data, span, _column(groups), None)[0].astype(np.int64)


def _column(groups: int) -> Domain:
    return Domain((Plane(groups),), (1,))
