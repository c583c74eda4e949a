"""A palette: one symbol for all channels of a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.layout import Domain, Layout, Plane
from budgetopt.packing.levels import MAX_LEVELS, UniformLevels
from budgetopt.packing.patches import read_indices, write_indices

MAX_CHANNELS = 4
_PER_CLASS = 1


@dataclass(frozen=True, eq=False)
class PaletteColours(Dequantizer):
    """colours: (p, L, c) uint8 indices into `grid`, the c values of each of L colours; p is 1, or the number of
    classes that have samples, in their order."""

    family: ClassVar[int] = 5
    name: ClassVar[str] = "palette"
    grid: UniformLevels
    colours: np.ndarray
    per_class: bool

    @property
    def exponent(self) -> int:  # type: ignore[override]
        return self.grid.exponent

    @property
    def levels(self) -> int:
        return int(self.colours.shape[1])

    @property
    def most(self) -> int:
        return self.grid.most

    def symbol_layout(self, layout: Layout) -> Layout:
        plane = _picture(layout)
        return (Plane(1, plane.height, plane.width),)

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        table = self.grid.table()[self.colours]
        palette = np.zeros(len(index), np.int64)
        if self.per_class:
            present = np.asarray(domain.counts) > 0
            palette = (np.cumsum(present) - 1)[domain.labels[index]]
        pixels = table[palette[:, None], symbols]  # (m, h·w, c)
        return pixels.transpose(0, 2, 1).reshape(len(index), -1)

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.levels - 1)
        out.byte(self.per_class * _PER_CLASS)
        self.grid.write(out, domain)
        write_indices(out, self.colours, self.grid.count)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> PaletteColours:
        levels, form = fields.byte() + 1, fields.byte()
        if not 2 <= levels <= MAX_LEVELS:
            raise BadHeader("a palette must have at least 2 colours")
        if form & ~_PER_CLASS:
            raise BadHeader(f"unknown form of a palette {form:#04x}")
        grid = UniformLevels.read(fields, domain)
        palettes = sum(count > 0 for count in domain.counts) if form & _PER_CLASS else 1
        channels = _picture(domain.layout).channels
        return cls(grid, read_indices(fields, (palettes, levels, channels), grid.count), bool(form & _PER_CLASS))


def _picture(layout: Layout) -> Plane:
    if len(layout) != 1 or layout[0].channels > MAX_CHANNELS:
        raise BadHeader(f"a palette needs pictures of 1 to {MAX_CHANNELS} channels, got {layout}")
    return layout[0]
