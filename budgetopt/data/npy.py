"""`.npy` files in a folder: x_train, y_train, x_test and y_test, or x and y. Mapped, not read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from budgetopt.data.carving import carved, carving_note
from budgetopt.data.dataset import (
    Arrays,
    Source,
    channels_first_shape,
    suited,
    to_channels_first,
)
from budgetopt.errors import InputError, first_line


class NpyFiles(Source):
    """x: (n, f) features, (n, h, w) grey, (n, c, h, w) or (n, h, w, c) pictures, (n, c, d, h, w) voxels with c = 1
    or 3; y: (n,)."""

    path: Path

    def __init__(self, path: Path) -> None:
        """path: the folder, or its `x.npy`."""
        self.path, self.name = path, str(path)
        self._folder = path.parent if path.suffix == ".npy" else path
        if path.suffix == ".npy" and path.name != "x.npy":
            raise InputError(f"cannot read the dataset {str(path)!r}: an x.npy has a y.npy beside it; or name a folder")
        self._one_pair = not (self._folder / "x_train.npy").exists() and not (self._folder / "x_test.npy").exists()
        first = "x" if self._one_pair else next(n for n in ("x_train", "x_test") if self._file(n).exists())
        shape = channels_first_shape(self._mapped(first).shape)[1:]
        self.protocol, self.space, self.invariances = suited(shape)

    @property
    def notes(self) -> tuple[str, ...]:
        return (carving_note(self._file("x")),) if self._one_pair else ()

    def train_arrays(self) -> Arrays:
        return self._part("train", 0)

    def test_arrays(self) -> Arrays:
        return self._part("test", 1)

    def train_labels(self) -> np.ndarray:
        return self._labels("train", 0)

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        if self._one_pair:
            return
        missing = [name for name in ("x_test", "y_test") if not self._file(name).is_file()]
        if missing:
            raise InputError(f"{self._folder}: no {' and '.join(f'{name}.npy' for name in missing)}")
        found = channels_first_shape(self._mapped("x_test").shape)[1:]
        if found != shape:
            raise InputError(f"{self._folder}: test samples have shape {found}, training samples {shape}")

    def _part(self, part: str, number: int) -> Arrays:
        y = self._labels(part, number)
        x = self._mapped("x" if self._one_pair else f"x_{part}")
        if self._one_pair:
            whole = self._mapped("y")
            if x.shape[:1] != whole.shape:
                raise InputError(f"{self._folder}: {len(x)} samples but labels of shape {whole.shape}")
            x = x[carved(whole, self._file("y"))[number]]
        return to_channels_first(x), y

    def _labels(self, part: str, number: int) -> np.ndarray:
        if not self._one_pair:
            return np.array(self._mapped(f"y_{part}"))
        y = self._mapped("y")
        if y.ndim != 1 or not len(y):
            raise InputError(f"{self._file('y')}: labels must be (n,), got {y.shape}")
        return y[carved(y, self._file("y"))[number]]

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _mapped(self, name: str) -> np.ndarray:
        """Nothing is unpickled (invariant 9), and a header that claims more than the file holds is refused."""
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
