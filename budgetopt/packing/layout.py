"""How the coded values are laid out: known to the decoder before it reads them, and so a context for coders."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plane:
    """`channels` grids of height × width values, row by row, one channel after the other.

    A picture is one plane of 1 or 3 channels, a volume one with a channel for each slice. Coefficients are one plane
    with a channel for each band (1×1 for a transform of the whole sample, the grid of blocks for 8×8 blocks). A feature
    vector has a 1×1 channel for each column.
    """

    channels: int
    height: int = 1
    width: int = 1

    @property
    def size(self) -> int:
        return self.channels * self.height * self.width


Layout = tuple[Plane, ...]


def layout_of(shape: tuple[int, ...]) -> Layout:
    """The layout of samples that are coded as they are: (c, h, w) is a picture, (f,) are columns, (c, d, h, w) a
    picture of c·d channels, so that a slice is predicted from the one before it."""
    if len(shape) == 4:
        channels, depth, height, width = shape
        return (Plane(channels * depth, height, width),)
    return (Plane(*shape),)


def channels_of(shape: tuple[int, ...]) -> int:
    """Channels of a sample, each with its own mean and std; a feature vector has one."""
    return shape[0] if len(shape) > 1 else 1


def values_of(layout: Layout) -> int:
    """K, the coded values of one sample."""
    return sum(plane.size for plane in layout)


def first_of_each(counts: tuple[int, ...], most: int) -> np.ndarray:
    """Rows, in class order, of the first `most` samples of each class."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.concatenate([np.arange(s, s + min(c, most)) for s, c in zip(starts, counts, strict=True)])


@dataclass(frozen=True)
class Domain:
    """The coded domain of one file: `layout` of a sample's K values, and `counts`, the samples of each class."""

    layout: Layout
    counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """n"""
        return sum(self.counts)

    @property
    def values(self) -> int:
        """K"""
        return values_of(self.layout)

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64 class of each sample: samples are in class order."""
        return np.repeat(np.arange(len(self.counts)), self.counts)
