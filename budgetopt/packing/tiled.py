"""Lossless picture formats as coders: all planes of all samples tiled into one grey picture, as PNG or WebP."""

from __future__ import annotations

import io
import math
from typing import Any, ClassVar

import numpy as np

from budgetopt.packing.coder import Coder
from budgetopt.packing.errors import BadPayload
from budgetopt.packing.layout import Domain, Plane

MOST_SIDE = 16_383  # WebP's limit
MOST_TRIED = 1 << 14  # symbols: for larger sets, where these formats do not win, they take seconds


class _Tiled(Coder):
    """Sample after sample, channel after channel, tiles from left to right in rows of ⌈√tiles⌉; unused ones are 0. Only
    for one plane. The payload is the stream of the format, every value a grey level (not stretched)."""

    format: ClassVar[str]
    settings: ClassVar[dict[str, Any]]

    def supports(self, levels: int, domain: Domain) -> bool:
        if len(domain.layout) != 1:
            return False
        plane = domain.layout[0]
        rows, columns = self._grid(plane, domain.samples)
        sides = rows * plane.height, columns * plane.width
        return plane.height * plane.width > 1 and max(sides) <= MOST_SIDE and domain.samples * plane.size <= MOST_TRIED

    def encode(self, symbols: np.ndarray, levels: int, domain: Domain, hint: np.ndarray | None) -> bytes:
        from PIL import Image

        plane = domain.layout[0]
        rows, columns = self._grid(plane, domain.samples)
        tiles = np.zeros((rows * columns, plane.height, plane.width), np.uint8)
        tiles[: domain.samples * plane.channels] = symbols.reshape(-1, plane.height, plane.width)
        grid = tiles.reshape(rows, columns, plane.height, plane.width).transpose(0, 2, 1, 3)
        buffer = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(grid.reshape(rows * plane.height, columns * plane.width)))
        picture.save(buffer, self.format, **self.settings)
        return buffer.getvalue()

    def decode(self, payload: bytes, levels: int, domain: Domain, hint: np.ndarray | None) -> np.ndarray:
        from PIL import Image

        plane = domain.layout[0]
        rows, columns = self._grid(plane, domain.samples)
        size = (columns * plane.width, rows * plane.height)
        try:
            with Image.open(io.BytesIO(payload), formats=[self.format]) as picture:
                if picture.size != size or getattr(picture, "n_frames", 1) != 1:
                    raise BadPayload(f"the picture is {picture.size}, expected {size}")
                if picture.mode not in ("L", "RGB"):
                    raise BadPayload(f"the picture has mode {picture.mode}, expected L or RGB")
                pixels = np.asarray(picture)
        except BadPayload:
            raise
        except Exception as error:  # whatever a damaged stream makes Pillow raise
            raise BadPayload(f"the {self.format} stream is invalid: {error}") from None
        grey = pixels if pixels.ndim == 2 else pixels[..., 1]
        tiles = grey.reshape(rows, plane.height, columns, plane.width).transpose(0, 2, 1, 3)
        symbols = tiles.reshape(-1, plane.size // plane.channels)[: domain.samples * plane.channels]
        if symbols.max(initial=0) >= levels:
            raise BadPayload(f"a symbol is {symbols.max()}, above the {levels} levels of the file")
        return symbols.reshape(domain.samples, plane.size)

    @staticmethod
    def _grid(plane: Plane, samples: int) -> tuple[int, int]:
        """Rows and columns of tiles."""
        tiles = samples * plane.channels
        columns = math.isqrt(tiles - 1) + 1 if tiles else 1
        return max(1, -(-tiles // columns)), columns


class PngTiles(_Tiled):
    ident: ClassVar[int] = 3
    name: ClassVar[str] = "png"
    format: ClassVar[str] = "PNG"
    settings: ClassVar[dict[str, Any]] = {"optimize": True}


class WebpTiles(_Tiled):
    ident: ClassVar[int] = 4
    name: ClassVar[str] = "webp"
    format: ClassVar[str] = "WEBP"
    settings: ClassVar[dict[str, Any]] = {"lossless": True, "quality": 100, "method": 6}
