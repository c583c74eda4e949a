"""Samples as 8-bit pixels, and what that costs them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from budgetopt.packing import PackedSet


@dataclass(frozen=True, eq=False)
class Pixels:
    """x: (n, c, h, w) uint8, samples rounded and clipped to 0 … 255. changed: values that were something else; most: by
    how much at most; loss: root mean square of the change, in standard deviations of the values."""

    x: np.ndarray
    changed: int
    most: float
    loss: float


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether PNG can hold samples of `shape`: (c, h, w), grey or colour."""
    return len(shape) == 3 and shape[0] in (1, 3)


def to_pixels(packed: PackedSet) -> Pixels:
    """Of samples that are pictures."""
    samples = packed.decode()
    x = np.clip(np.rint(samples), 0, 255).astype(np.uint8)
    change = np.abs(samples - x)
    spread = float(samples.std(dtype=np.float64)) or 1.0
    loss = float(np.sqrt((change**2).mean(dtype=np.float64))) / spread
    return Pixels(x, int((change > 0).sum()), float(change.max()), loss)


def png(pixels: np.ndarray) -> bytes:
    """pixels: (c, h, w) uint8, c = 1 or 3."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()
