"""A `.npz` with x and y, images and labels, or x_train and y_train; mean and std as `budgetopt export` writes them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing.container import MAX_FILE_BYTES
from budgetopt.sets.arrays import EXPORTED, NAMES, TARGETS, UNPREPARED, Arrays, whole_labels


def read(path: Path, asked: str) -> Arrays:
    """The arrays in raw units. Sizes are checked from their headers before anything is read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            for x_name, y_name in NAMES:
                if x_name in archive and y_name in archive:
                    _check_sizes(archive.zip, (x_name, y_name), path)
                    y = whole_labels(archive[y_name], y_name, path)
                    soft: np.ndarray | None = None
                    notes: tuple[str, ...] = ()
                    if (x_name, y_name) == EXPORTED:
                        if TARGETS in archive:
                            _check_sizes(archive.zip, (TARGETS,), path)
                            soft = archive[TARGETS]
                        notes = (UNPREPARED,) if "preparation" in archive else ()
                    return Arrays(archive[x_name], y, statistics=_statistics(archive, path), notes=notes, soft=soft)
            raise InputError(f"{path}: holds {', '.join(archive.files)}; {asked} needs x and y (or images and labels)")
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise what zipfile, zlib and numpy can raise
        raise InputError(f"cannot read {str(path)!r}: {error}") from None


def _check_sizes(archive: zipfile.ZipFile | None, names: tuple[str, ...], path: Path) -> None:
    assert archive is not None
    for name in names:
        with archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
        size = math.prod(shape) * dtype.itemsize
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {name} takes {size:,} bytes, at most {MAX_FILE_BYTES:,} are read")


def _statistics(archive: np.lib.npyio.NpzFile, path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    if "mean" not in archive or "std" not in archive:
        return None
    _check_sizes(archive.zip, ("mean", "std"), path)
    mean, std = archive["mean"], archive["std"]
    if mean.ndim != 1 or mean.shape != std.shape or not (np.isfinite(mean).all() and (std > 0).all()):
        return None  # not what `export` writes: something else of the same name
    return mean.astype(np.float32), std.astype(np.float32)
