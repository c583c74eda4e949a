"""Inverse DCT-II in integer arithmetic, of whole samples or of blocks of 8."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from budgetopt.packing import kept_positions
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.integer_cosine import COSINE_BITS, MOST_SIDE, reach, synthesize
from budgetopt.packing.inverse import InverseTransform
from budgetopt.packing.kept_positions import Bands, low_to_high
from budgetopt.packing.layout import Layout, Plane, channels_of
from budgetopt.packing.offsets import MOST_MAGNITUDE, Offsets

BLOCK = 8
DROPPED_BITS = 10  # of the 26 that two passes add: leaves room for large offsets, far below a step of any quantizer


MOST_CHANNELS, MOST_BANDS = 256, 1 << 22  # bound what reading the positions takes
LIMITS = f"a DCT takes at most {MOST_CHANNELS} channels, {MOST_SIDE} values an axis and {MOST_BANDS:,} in all"
_BLOCKS, _BITMAP = 1, 2


def sides_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width; a feature vector is one row."""
    return (shape[1], shape[2]) if len(shape) == 3 else (1, shape[0])


def bands_of(shape: tuple[int, ...], blocks: bool) -> Bands:
    """(channels, rows, columns) of one block; a whole sample is one block, (f,) is one row. Sides shorter than a
    block are taken whole."""
    rows, columns = (min(BLOCK, side) if blocks else side for side in sides_of(shape))
    return channels_of(shape), rows, columns


def grid_of(shape: tuple[int, ...], bands: Bands) -> tuple[int, int]:
    """Blocks over each axis, those at the edge included."""
    height, width = sides_of(shape)
    return -(-height // bands[1]), -(-width // bands[2])


@dataclass(frozen=True)
class Cosine(InverseTransform):
    """x = C_hᵀ·Z·C_w + offset_c for every block, with `cosine_table` for C and zeros for what the file leaves out.

    bands: what `bands_of` says of the samples; kept: a byte, 0 or 1, for each band (c, u, v), empty for all.
    """

    family: ClassVar[int] = 2
    name: ClassVar[str] = "dct"
    blocks: bool
    bands: Bands
    kept: bytes
    offsets: Offsets

    def __post_init__(self) -> None:
        if max(self.bands[1:]) > MOST_SIDE or self.bands[0] > MOST_CHANNELS or math.prod(self.bands) > MOST_BANDS:
            raise BadHeader(f"{LIMITS}, got {' × '.join(map(str, self.bands))}")
        if self.kept and 1 not in self.kept:
            raise BadHeader("the transform keeps no coefficient")

    @cached_property
    def places(self) -> np.ndarray:
        """Flat indices (c, u, v) of the kept bands, low to high: the order of the coded values."""
        order = low_to_high(self.bands)
        return order[np.frombuffer(self.kept, np.uint8)[order] > 0] if self.kept else order

    def layout(self, shape: tuple[int, ...]) -> Layout:
        count = self.kept.count(1) if self.kept else math.prod(self.bands)
        return (Plane(count, *grid_of(shape, self.bands)),)

    def apply(self, ints: np.ndarray, exponent: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
        channels, rows, columns = self.bands
        down, across = grid_of(shape, self.bands)
        u, v = self.places // columns % rows, self.places % columns
        high, wide = int(u.max()) + 1, int(v.max()) + 1  # bands beyond are zero
        full = np.zeros((len(ints), channels, high, wide, down * across), np.int64)
        full[:, self.places // (rows * columns), u, v] = ints.reshape(len(ints), len(self.places), -1)
        blocks = np.moveaxis(full, -1, 2)  # (n, c, blocks, u, v)
        blocks = synthesize(np.swapaxes(synthesize(blocks, columns), -1, -2), rows)
        blocks = np.swapaxes(blocks, -1, -2).reshape(len(ints), channels, down, across, rows, columns)
        picture = np.moveaxis(blocks, 4, 3).reshape(len(ints), channels, down * rows, across * columns)
        height, width = sides_of(shape)
        rounded = (picture[:, :, :height, :width] + (1 << DROPPED_BITS - 1)) >> DROPPED_BITS
        samples, exponent = self.offsets.add(rounded, exponent + 2 * COSINE_BITS - DROPPED_BITS)
        return samples.reshape(-1, *shape), exponent

    def check(self, most: int, exponent: int, shape: tuple[int, ...]) -> None:
        _, rows, columns = self.bands
        largest = most * reach(rows) * reach(columns)
        if largest >= MOST_MAGNITUDE:
            raise BadHeader(f"levels up to {most} do not fit 64-bit integers after a DCT of {rows} × {columns}")
        self.offsets.check((largest >> DROPPED_BITS) + 1, exponent + 2 * COSINE_BITS - DROPPED_BITS)

    @cached_property
    def _bitmap(self) -> bytes:  # a set is packed many times
        return kept_positions.encode(np.frombuffer(self.kept, np.uint8).reshape(self.bands) > 0)

    def write(self, out: Writer) -> None:
        out.byte(self.blocks * _BLOCKS | bool(self.kept) * _BITMAP)
        self.offsets.write(out)
        if self.kept:
            out.unsigned(len(self._bitmap))
            out.raw(self._bitmap)

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Cosine:
        if len(shape) == 4:
            raise BadHeader(f"only pictures and feature vectors have a DCT, got samples of shape {shape}")
        flags = fields.byte()
        if flags & ~(_BLOCKS | _BITMAP):
            raise BadHeader(f"unknown flags {flags:#04x} of the DCT")
        bands = bands_of(shape, bool(flags & _BLOCKS))
        offsets = Offsets.read(fields, bands[0])
        whole = cls(bool(flags & _BLOCKS), bands, b"", offsets)  # checks the sides before a bitmap takes memory
        if not flags & _BITMAP:
            return whole
        data = fields.raw(fields.unsigned(fields.left, "the length of the positions"))
        return replace(whole, kept=kept_positions.decode(data, bands).astype(np.uint8).tobytes())
