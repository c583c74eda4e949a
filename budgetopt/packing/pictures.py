"""Lossy JPEG and WebP: samples tiled into pictures, which Pillow decodes. The one exemption from exact decoding."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from budgetopt.packing import coders
from budgetopt.packing.dequantizer import Dequantizer
from budgetopt.packing.errors import BadHeader, BadPayload
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.layout import Domain, Plane
from budgetopt.packing.levels import UniformLevels

MAX_PIXELS = 1 << 26  # of one picture
MAX_SCANS = 16  # of one JPEG: each costs the time of all pixels, however few bytes it has
_PER_CLASS = 1
_SCAN = b"\xff\xda"


@dataclass(eq=False)
class Pictures(Dequantizer):
    """Symbols are the decoded pixels, which `scale` maps to raw units. `columns`: tiles side by side, row by row, of
    one picture, or of one for each class that has samples. `streams`: the pictures as they lie in the file; set once,
    by the encoder or by `read_payload`."""

    format: ClassVar[str]
    limit: ClassVar[int]  # of a side, in pixels
    scale: UniformLevels
    columns: int
    per_class: bool
    streams: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def exponent(self) -> int:  # type: ignore[override]
        return self.scale.exponent

    @property
    def levels(self) -> int:
        return self.scale.count

    @property
    def most(self) -> int:
        return self.scale.most

    def ints(self, symbols: np.ndarray, index: np.ndarray, domain: Domain) -> np.ndarray:
        return self.scale.table()[symbols]

    def write(self, out: Writer, domain: Domain) -> None:
        out.byte(self.per_class * _PER_CLASS)
        out.unsigned(self.columns)
        self.scale.write(out, domain)

    @classmethod
    def read(cls, fields: Reader, domain: Domain) -> Pictures:
        form, columns = fields.byte(), fields.unsigned(cls.limit, "the number of tile columns")
        if form & ~_PER_CLASS:
            raise BadHeader(f"unknown form of tiled pictures {form:#04x}")
        if columns < 1:
            raise BadHeader("tiled pictures need at least one column")
        if len(domain.layout) != 1 or domain.layout[0].channels not in (1, 3):
            raise BadHeader(f"{cls.name} needs pictures of 1 or 3 channels, got {domain.layout}")
        scale = UniformLevels.read(fields, domain)
        if scale.count != 256:
            raise BadHeader(f"pixels have 256 levels, got {scale.count}")
        return cls(scale, columns, bool(form & _PER_CLASS))

    def payload(self, symbols: np.ndarray, domain: Domain) -> tuple[str, bytes]:
        """Every stream but the last after its length; zeros follow where so few bytes could not hold the samples."""
        out = Writer()
        for stream in self.streams[:-1]:
            out.unsigned(len(stream))
            out.raw(stream)
        out.raw(self.streams[-1])
        excess = domain.samples * domain.values - coders.FREE_SYMBOLS
        return self.name, bytes(out.data).ljust(-(-max(0, excess) // coders.SYMBOLS_PER_BYTE), b"\0")

    def read_payload(self, data: bytes, domain: Domain, known: frozenset[int]) -> tuple[str, np.ndarray]:
        plane, pictures = domain.layout[0], picture_samples(domain, self.per_class)
        if domain.samples * domain.values > coders.capacity(len(data)):  # a sheet has less than twice as many pixels
            raise BadPayload(f"{len(data)} coded bytes cannot hold {domain.samples * domain.values:,} pixels")
        fields = Reader(data)
        streams = [fields.raw(fields.unsigned(fields.left, "the length of a picture")) for _ in pictures[:-1]]
        streams.append(fields.raw(fields.left))
        self.streams = tuple(streams)
        return self.name, self.pixels(plane, pictures)

    def pixels(self, plane: Plane, pictures: list[int]) -> np.ndarray:
        """→ (n, K) uint8, decoded from the streams. pictures: the samples of each."""
        parts = [self._decoded(s, plane, n) for s, n in zip(self.streams, pictures, strict=True)]
        return np.concatenate(parts)

    def _decoded(self, stream: bytes, plane: Plane, samples: int) -> np.ndarray:
        height, width = picture_size(plane, samples, self.columns)
        if max(height, width) > self.limit or height * width > MAX_PIXELS:
            raise BadPayload(f"a picture of {width}×{height} pixels is above the limits of {self.name}")
        sheet = decode_picture(stream, self.format, (width, height))
        return untiled(sheet, plane, samples, self.columns)


class JpegPictures(Pictures):
    family: ClassVar[int] = 6
    name: ClassVar[str] = "jpeg"
    format: ClassVar[str] = "JPEG"
    limit: ClassVar[int] = 65_500


class WebpPictures(Pictures):
    family: ClassVar[int] = 7
    name: ClassVar[str] = "webp"
    format: ClassVar[str] = "WEBP"
    limit: ClassVar[int] = 16_383


def picture_samples(domain: Domain, per_class: bool) -> list[int]:
    """Samples of each picture, in file order."""
    return [count for count in domain.counts if count] if per_class else [domain.samples]


def picture_size(plane: Plane, samples: int, columns: int) -> tuple[int, int]:
    """(height, width) in pixels: fewer samples than columns make one narrower row."""
    columns = min(columns, samples)
    return -(-samples // columns) * plane.height, columns * plane.width


def tiled(pixels: np.ndarray, plane: Plane, columns: int) -> np.ndarray:
    """(n, K) uint8 → (height, width) or (height, width, 3); the last row is filled up with the mean of all pixels."""
    n, columns = len(pixels), min(columns, len(pixels))
    rows = -(-n // columns)
    fill = np.full((rows * columns - n, plane.size), round(float(pixels.mean())), np.uint8)
    tiles = np.concatenate([pixels, fill]).reshape(rows, columns, plane.channels, plane.height, plane.width)
    sheet = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * plane.height, columns * plane.width, plane.channels)
    return sheet[:, :, 0] if plane.channels == 1 else sheet


def untiled(sheet: np.ndarray, plane: Plane, samples: int, columns: int) -> np.ndarray:
    """Inverse of `tiled`; of a colour sheet of grey samples the green channel is taken."""
    if sheet.ndim == 2:
        sheet = sheet[:, :, None]
    if plane.channels == 1 and sheet.shape[2] == 3:
        sheet = sheet[:, :, 1:2]
    if sheet.shape[2] != plane.channels:
        raise BadPayload(f"a picture has {sheet.shape[2]} channels, the samples have {plane.channels}")
    rows, columns = sheet.shape[0] // plane.height, sheet.shape[1] // plane.width
    tiles = sheet.reshape(rows, plane.height, columns, plane.width, plane.channels).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(tiles.reshape(rows * columns, plane.size)[:samples])


def decode_picture(stream: bytes, kind: str, size: tuple[int, int]) -> np.ndarray:
    """(height, width) or (height, width, 3) uint8. size: (width, height) that the file's header implies, checked before
    anything is decoded. Raises `BadPayload` for whatever Pillow cannot or should not decode."""
    from PIL import Image

    if stream.count(_SCAN) > MAX_SCANS and kind == "JPEG":
        raise BadPayload(f"a JPEG has {stream.count(_SCAN)} scans, more than {MAX_SCANS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(stream), formats=(kind,)) as picture:
                if picture.size != size or picture.mode not in ("L", "RGB") or getattr(picture, "n_frames", 1) != 1:
                    raise BadPayload(f"expected {kind} of {size} pixels, got {picture.mode} of {picture.size}")
                return np.asarray(picture)
    except BadPayload:
        raise
    except Exception as error:  # whatever a decoder of foreign bytes can raise
        raise BadPayload(f"the {kind} picture cannot be decoded: {error}") from None


def columns_for(plane: Plane, samples: int, block: int, limit: int) -> int:
    """Tiles side by side that waste the fewest pixels in whole blocks of `block`, the most square of equal ones.

    Sides that are whole blocks come first: 28-pixel tiles want an even number for blocks of 8. Raises `BadHeader`
    where no picture within `limit` holds the samples.
    """
    most = min(samples, limit // plane.width)
    candidates = [c for c in range(1, most + 1) if c <= 64 or c * c <= 4 * samples]
    sizes = {c: picture_size(plane, samples, c) for c in candidates}
    fitting = {c: s for c, s in sizes.items() if max(s) <= limit and math.prod(s) <= MAX_PIXELS}
    if not fitting:
        raise BadHeader(f"{samples} samples of {plane.width}×{plane.height} pixels do not fit one picture")

    def waste(columns: int) -> tuple[int, int]:
        height, width = fitting[columns]
        return math.prod(-(-side // block) * block for side in (height, width)), max(height, width)

    return min(fitting, key=waste)
