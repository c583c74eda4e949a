"""A `.npz` with x_train, y_train, x_test, y_test, or x, y. Each array is read only when its part is asked for."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from budgetopt.data.carving import carved_pair, carving_note, whole_pair
from budgetopt.data.dataset import (
    Arrays,
    Source,
    channels_first_shape,
    check_test_arrays,
    suited,
    to_channels_first,
)
from budgetopt.errors import InputError

SUSPICIOUS = 1 << 28  # bytes of an array, from which it must not be MOST_RATIO times smaller in the file
MOST_RATIO = 200


class NpzFile(Source):
    """x: (n, f) features, (n, h, w) grey, (n, c, h, w) or (n, h, w, c) images, (n, c, d, h, w) or (n, d, h, w, c)
    voxels, with c = 1 or 3. Without x_test and y_test a test part is carved."""

    path: Path

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"cannot read the dataset {str(path)!r}: no such file")
        self.path = path
        self.name = str(path)
        names = self._read([]).keys()
        first = next((name for name in ("x_train", "x_test", "x") if name in names), None)
        if first is None:
            raise InputError(f"{path}: no x_train; a dataset has x_train, y_train, x_test and y_test, or x and y")
        self._whole = whole_pair(names)
        shape = channels_first_shape(_shape(path, first))[1:]
        self.protocol, self.space, self.invariances = suited(shape)

    @property
    def notes(self) -> tuple[str, ...]:
        return (carving_note(self.path),) if self._whole else ()

    def train_arrays(self) -> Arrays:
        return self._pair("train")

    def test_arrays(self) -> Arrays:
        return self._pair("test")

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        if self._whole:
            return
        missing = [name for name in ("x_test", "y_test") if name not in self._read([])]
        if missing:
            raise InputError(f"{self.path}: no {' and '.join(missing)}: the front is reported on a test part")
        _check_sizes(self.path, ["y_train", "y_test"])
        train_y, y = self._read(["y_train", "y_test"]).values()
        check_test_arrays(_shape(self.path, "x_test"), y, train_y, shape, self.path)

    def _pair(self, part: str) -> Arrays:
        names = self._whole or (f"x_{part}", f"y_{part}")
        _check_sizes(self.path, names)
        x, y = self._read(names).values()
        if self._whole:
            x, y = carved_pair(x, y, part == "test", self.path)
        return to_channels_first(x), y

    def _read(self, wanted: Sequence[str]) -> dict[str, np.ndarray]:
        """The wanted arrays; for none, the names with empty arrays. Nothing is unpickled."""
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


def _check_sizes(path: Path, wanted: Sequence[str]) -> None:
    """Refuse a zip bomb by what the archive declares, before anything of it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [m for m in archive.infolist() if m.filename.removesuffix(".npy") in wanted]
    except Exception as error:  # as above
        raise InputError(f"cannot read the dataset {str(path)!r}: {error}") from None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for member in found:
        name = member.filename.removesuffix(".npy")
        if member.file_size > SUSPICIOUS and member.file_size > MOST_RATIO * member.compress_size:
            raise InputError(
                f"{path}: {name} unpacks from {member.compress_size:,} to {member.file_size:,} bytes, a zip bomb: "
                "save it with np.savez, or as .npy files, if it is data"
            )
        if member.file_size > memory:
            raise InputError(
                f"{path}: {name} takes {member.file_size:,} bytes and this machine has {memory:,}: "
                "save x_train, y_train, x_test and y_test as .npy files, which are mapped"
            )
        if (size := _bytes_declared(path, name)) > member.file_size:
            raise InputError(f"{path}: {name} declares {size:,} bytes and holds {member.file_size:,}")


def _shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of one array, read from its header alone."""
    return _header(path, name)[0]


def _bytes_declared(path: Path, name: str) -> int:
    shape, dtype = _header(path, name)
    return math.prod(shape) * dtype.itemsize


def _header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(member)
            return tuple(shape), dtype
    except Exception as error:  # as above
        raise InputError(f"cannot read the dataset {str(path)!r}: {error}") from None
