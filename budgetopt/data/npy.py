"""`.npy` files in a folder: x_train, y_train, x_test and y_test, or x and y. Mapped, not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from budgetopt.data.carving import carved, carved_pair, carving_note, whole_pair
from budgetopt.data.dataset import (
    Arrays,
    Source,
    channels_first_shape,
    check_test_arrays,
    suited,
    to_channels_first,
)
from budgetopt.errors import InputError, first_line

NAMES = ("x_train", "y_train", "x_test", "y_test", "x", "y")


class NpyFiles(Source):
    """x: (n, f) features, (n, h, w) grey, (n, c, h, w) or (n, h, w, c) pictures, (n, c, d, h, w) voxels with c = 1
    or 3; y: (n,). Without x_test and y_test a test part is carved."""

    path: Path

    def __init__(self, path: Path) -> None:
        """path: the folder, or its `x.npy`."""
        self.path, self.name = path, str(path)
        self._folder = path.parent if path.suffix == ".npy" else path
        if path.suffix == ".npy" and path.name != "x.npy":
            raise InputError(f"cannot read the dataset {str(path)!r}: an x.npy has a y.npy beside it; or name a folder")
        self._whole = whole_pair([name for name in NAMES if self._file(name).exists()])
        first = self._whole[0] if self._whole else "x_train" if self._file("x_train").exists() else "x_test"
        shape = channels_first_shape(self._mapped(first).shape)[1:]
        self.protocol, self.space, self.invariances = suited(shape)

    @property
    def notes(self) -> tuple[str, ...]:
        return (carving_note(self._file(self._whole[0])),) if self._whole else ()

    def train_arrays(self) -> Arrays:
        return self._part("train")

    def test_arrays(self) -> Arrays:
        return self._part("test")

    def train_labels(self) -> np.ndarray:
        return self._labels("train")

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        if self._whole:
            return
        missing = [name for name in ("x_test", "y_test") if not self._file(name).is_file()]
        if missing:
            raise InputError(f"{self._folder}: no {' and '.join(f'{name}.npy' for name in missing)}")
        x_shape = self._mapped("x_test").shape
        check_test_arrays(x_shape, self._labels("test"), self._labels("train"), shape, self._folder)

    def _part(self, part: str) -> Arrays:
        if self._whole:
            x, y = (self._mapped(name) for name in self._whole)
            x, y = carved_pair(x, y, part == "test", self._folder)
        else:
            x, y = self._mapped(f"x_{part}"), np.array(self._mapped(f"y_{part}"))
        return to_channels_first(x), y

    def _labels(self, part: str) -> np.ndarray:
        if not self._whole:
            return np.array(self._mapped(f"y_{part}"))
        y = self._mapped(self._whole[1])
        if y.ndim != 1 or not len(y):
            raise InputError(f"{self._file(self._whole[1])}: labels must be (n,), got {y.shape}")
        return y[carved(y, self._folder)[part == "test"]]

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _mapped(self, name: str) -> np.ndarray:
        """Nothing is unpickled, and a header that claims more than the file holds is refused."""
        path = self._file(name)
        if not path.is_file():
            raise InputError(f"{self._folder}: no {path.name}")
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # whatever a file that is not what its name says makes numpy raise
            raise InputError(f"cannot read the dataset {str(path)!r}: {first_line(error)}") from None
        if not isinstance(found, np.ndarray) or not found.ndim:
            raise InputError(f"cannot read the dataset {str(path)!r}: it holds no array of samples")
        return found


def is_npy_folder(path: Path) -> bool:
    return any((path / f"{name}.npy").is_file() for name in ("x", "x_train", "x_test"))
