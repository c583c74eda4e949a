"""`--init FILE`: a set that every method starts from, `.bopt` or `.npz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from budgetopt.data.dataset import DataSpec, to_channels_first
from budgetopt.errors import InputError
from budgetopt.packing import load
from budgetopt.representation import InitialSet

_NAMES = (("x", "y"), ("images", "labels"), ("x_train", "y_train"))


def read(path: str | Path, spec: DataSpec) -> InitialSet:
    """Samples in raw units and labels → class order, the file's order inside a class (most useful first).

    Raises `InputError` for what does not match the dataset, `PackedFileError` for a broken `.bopt`.
    """
    path = Path(path)
    if path.suffix == ".bopt":
        loaded = load(path)
        x, y = loaded.samples, loaded.labels
    elif path.suffix == ".npz":
        x, y = _from_npz(path)
    else:
        raise InputError(f"--init takes a .bopt or .npz file, got {str(path)!r}")
    if not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise InputError(f"{path}: samples must be numbers, got dtype {x.dtype}")
    x = to_channels_first(x).astype(np.float32)
    if x.shape[1:] != spec.shape or y.shape != (len(x),):
        raise InputError(f"{path}: samples {x.shape} and labels {y.shape} do not match {spec.name}, shape {spec.shape}")
    if not np.isfinite(x).all():
        raise InputError(f"{path}: samples hold NaN or infinite values")
    in_range = y.min() >= 0 and y.max() < spec.classes
    counts = np.bincount(y, minlength=spec.classes) if in_range else np.zeros(1)
    if (counts == 0).any():
        raise InputError(f"{path}: every class 0..{spec.classes - 1} of {spec.name} needs a sample, and no other class")
    return InitialSet(x[np.argsort(y, kind="stable")], tuple(int(c) for c in counts))


def _from_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            for x_name, y_name in _NAMES:
                if x_name in archive and y_name in archive:
                    y = archive[y_name]
                    if y.size == 0 or not np.array_equal(y, np.round(y)):
                        raise InputError(f"{path}: {y_name} must hold whole numbers")
                    return archive[x_name], y.astype(np.int64)
            raise InputError(f"{path}: holds {', '.join(archive.files)}; --init needs x and y (or images and labels)")
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise what zipfile, zlib and numpy can raise
        raise InputError(f"cannot read {str(path)!r}: {error}") from None
