"""A `.npz` with x_train, y_train, x_test, y_test. Each array is read only when its part is asked for."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from budgetopt.data.dataset import PICTURES, Arrays, Source, channels_first_shape, to_channels_first
from budgetopt.errors import InputError


class NpzFile(Source):
    """x: (n, f) features, (n, h, w) grey, (n, c, h, w) or (n, h, w, c) images with c = 1 or 3."""

    path: Path

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"cannot read the dataset {str(path)!r}: no such file")
        self.path = path
        self.name = str(path)
        arrays = self._read([])
        first = next((k for k in ("x_train", "x_test") if k in arrays), None)
        if first is None:
            raise InputError(f"{path}: no x_train; a dataset has x_train, y_train, x_test and y_test")
        features = len(_shape(path, first)) == 2
        self.protocol, self.space = ("tabular-2", "tabular") if features else ("image-2", "image")
        self.invariances = {} if features else PICTURES

    def train_arrays(self) -> Arrays:
        return self._pair("train")

    def test_arrays(self) -> Arrays:
        return self._pair("test")

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        missing = [name for name in ("x_test", "y_test") if name not in self._read([])]
        if missing:
            raise InputError(f"{self.path}: no {' and '.join(missing)}: the front is reported on a test part")
        found = channels_first_shape(_shape(self.path, "x_test"))[1:]
        if found != shape:
            raise InputError(f"{self.path}: test samples have shape {found}, training samples {shape}")

    def _pair(self, part: str) -> Arrays:
        arrays = self._read([f"x_{part}", f"y_{part}"])
        return to_channels_first(arrays[f"x_{part}"]), arrays[f"y_{part}"]

    def _read(self, wanted: list[str]) -> dict[str, np.ndarray]:
        """The wanted arrays; for none, the names with empty arrays. Nothing is unpickled (invariant 9)."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                missing = [name for name in wanted if name not in archive]
                if missing:
                    raise InputError(f"{self.path}: no {' and '.join(missing)}; it holds {', '.join(archive.files)}")
                if not wanted:
                    return {name: np.empty(0) for name in archive.files}
                return {name: archive[name] for name in wanted}
        except InputError:
            raise
        except Exception as error:  # a damaged archive can raise what zipfile, zlib and numpy can raise
            raise InputError(f"cannot read the dataset {str(self.path)!r}: {error}") from None


def _shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of one array, read from its header alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return tuple(reader(member)[0])
    except Exception as error:  # as above
        raise InputError(f"cannot read the dataset {str(path)!r}: {error}") from None
