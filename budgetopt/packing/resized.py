"""Preparation 3: pictures of any size made one size, so that a receiver makes its own test pictures the same way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.preparation import Preparation

FILTERS = ("area", "bilinear", "bicubic", "lanczos")  # the position is what a file stores: append only
MODES = {1: "grey", 3: "colour"}  # by channels


@dataclass(frozen=True)
class Resized(Preparation):
    """The largest centred box of the aspect ratio height : width, scaled by `filter` to height × width pixels of 1 or
    3 channels. Size and channels are the shape of the file's samples: only the filter costs a byte."""

    kind: ClassVar[int] = 3
    name: ClassVar[str] = "resized pictures"

    channels: int
    height: int
    width: int
    filter: str

    @property
    def summary(self) -> str:
        return f"pictures in {MODES[self.channels]}, centre resized to {self.height}×{self.width} ({self.filter})"

    def parameters(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, out: Writer) -> None:
        out.byte(FILTERS.index(self.filter))

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> Resized:
        number = fields.byte()
        if number >= len(FILTERS):
            raise BadHeader(f"unknown resampling filter {number}")
        if len(shape) != 3 or shape[0] not in MODES:
            raise BadHeader(f"samples of shape {shape} are no pictures that were resized")
        return cls(*shape, FILTERS[number])

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """picture: uint8 (h, w) or (h, w, 3) → (channels, height, width) float32 in the raw units of the file. Raises
        `InputError` for what is no picture."""
        from PIL import Image

        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.shape[2:] not in ((), (3,)) or picture.ndim < 2 or not picture.size:
            raise InputError(f"a picture is uint8 of (h, w) or (h, w, 3), got {picture.dtype} of {picture.shape}")
        return self.pixels(Image.fromarray(picture)).astype(np.float32)

    def pixels(self, image: Any) -> np.ndarray:
        """(channels, height, width) uint8 of a `PIL.Image` of any size, as FORMAT.md says."""
        from PIL import Image

        resampling = {"area": "BOX"}.get(self.filter, self.filter.upper())
        width, height = image.size
        # whole numbers decide which side is cut, so that a picture of the right aspect ratio is not cut at all
        if width * self.height > height * self.width:
            wide, high = height * self.width / self.height, float(height)
        else:
            wide, high = float(width), width * self.height / self.width
        left, top = (width - wide) / 2, (height - high) / 2
        box = (left, top, left + wide, top + high)
        converted = converted_to(image, self.channels)
        return channels_first(converted.resize((self.width, self.height), Image.Resampling[resampling], box=box))


def converted_to(image: Any, channels: int) -> Any:
    """The `PIL.Image` in grey or RGB."""
    return image.convert("L" if channels == 1 else "RGB")


def channels_first(image: Any) -> np.ndarray:
    """(channels, height, width) uint8 of a grey or RGB `PIL.Image`."""
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
