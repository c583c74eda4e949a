"""`--resize`: what the user asks for, and array sources whose pictures are made another size."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from budgetopt.data.dataset import Arrays, Source, picture_space
from budgetopt.errors import InputError
from budgetopt.packing.resized import FILTERS, MODES, Resized

DEFAULT_FILTER = "bilinear"
MOST_SIDE = 1024


@dataclass(frozen=True)
class Size:
    """A size in pixels; channels None: as many as the training pictures have."""

    height: int
    width: int
    filter: str = DEFAULT_FILTER
    channels: int | None = None

    @classmethod
    def parse(cls, text: str) -> Size:
        """`32`, `24x32` (height × width), with a filter `32:lanczos`. Raises `InputError`."""
        found = re.fullmatch(r"(\d{1,6})(?:[x×](\d{1,6}))?(?::(\w+))?", text.strip())
        wanted = f"expected pixels as in 32 or 24x32 (height x width), or with a filter as in 32:{FILTERS[-1]}"
        if found is None:
            raise InputError(f"--resize {text!r}: {wanted}")
        height, width = int(found[1]), int(found[2] or found[1])
        if not (1 <= height <= MOST_SIDE and 1 <= width <= MOST_SIDE):
            raise InputError(f"--resize {text!r}: sides must be in 1..{MOST_SIDE}")
        if found[3] is not None and found[3] not in FILTERS:
            raise InputError(f"--resize {text!r}: the filter must be one of {', '.join(FILTERS)}")
        return cls(height, width, found[3] or DEFAULT_FILTER)

    @classmethod
    def of(cls, made: Resized) -> Size:
        return cls(made.height, made.width, made.filter, made.channels)

    def to(self, channels: int) -> Resized:
        """What a file stores, for data of `channels` where the size leaves them open."""
        return Resized(self.channels or channels, self.height, self.width, self.filter)


class ResizedArrays(Source):
    """Pictures of `inner`, which come as arrays of one size, made another."""

    def __init__(self, inner: Source, size: Size) -> None:
        self._inner, self._size = inner, size
        self.name, self.path = inner.name, inner.path
        self.protocol, self.invariances = inner.protocol, inner.invariances
        self.space = picture_space(size.height, size.width)
        self._how: Resized | None = None if size.channels is None else size.to(size.channels)
        self._from: tuple[int, ...] = ()  # shape of the inner training samples, once they were read

    @property
    def notes(self) -> tuple[str, ...]:
        said = (f"{self._how.summary}, from {_times(self._from[1:])}",) if self._how and self._from else ()
        return (*self._inner.notes, *said)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._inner.class_names

    @property
    def preparation(self) -> Resized:
        if self._how is None:
            self.train_arrays()
        assert self._how is not None
        return self._how

    def train_arrays(self) -> Arrays:
        x, y = self._inner.train_arrays()
        self._from = x.shape[1:]
        return self._made(x, y)

    def test_arrays(self) -> Arrays:
        return self._made(*self._inner.test_arrays())

    def train_labels(self) -> np.ndarray:
        return self._inner.train_labels()

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        self._inner.check_test_part(self._from or self._inner.train_arrays()[0].shape[1:])

    def _made(self, x: np.ndarray, y: np.ndarray) -> Arrays:
        if x.ndim != 4 or x.shape[1] not in MODES or x.dtype != np.uint8:
            raise InputError(
                f"{self.name}: --resize takes pictures of 1 or 3 channels and 8 bits, these are {_times(x.shape[1:])} "
                f"values of type {x.dtype}"
            )
        self._how = self._how or self._size.to(x.shape[1])
        return resized_arrays(x, self._how), y


def resized_arrays(x: np.ndarray, how: Resized) -> np.ndarray:
    """x: (n, c, h, w) uint8 with 1 or 3 channels → (n, channels, height, width) uint8."""
    from PIL import Image

    made = np.empty((len(x), how.channels, how.height, how.width), np.uint8)
    for at, picture in enumerate(x):
        made[at] = how.pixels(Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0)))
    return made


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
