"""Sets that users bring along: one module for each kind of input. Every reader ends in the same `SampleSet`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from budgetopt.data.dataset import to_channels_first
from budgetopt.errors import InputError
from budgetopt.packing.container import MAX_SYMBOLS
from budgetopt.packing.layout import channels_of
from budgetopt.sets import image_folder, npz_file, packed_file, torch_file
from budgetopt.sets.arrays import Arrays, floats, soft_labels
from budgetopt.sets.sample_set import SampleSet
from budgetopt.sets.units import Statistics, Units

__all__ = ["KINDS", "SampleSet", "Units", "files_of", "read"]

KINDS = "a .bopt or .npz file, a .pt or .pth file, or a folder of images with a subfolder for each class"


def read(path: str | Path, units: Units | None = None, asked: str = "the set") -> SampleSet:
    """The set at `path`, in raw units. `asked`: who asks, for messages (`--init`, `compress`).

    Raises `InputError` in one line for what cannot be read, is larger than a packed file can be, or whose units are in
    doubt; `PackedFileError` for a broken `.bopt`. Nothing is unpickled but tensors and plain values.
    """
    path, units = Path(path), units or Units()
    suffix = path.suffix.lower() if path.suffix in (".pt", ".pth", ".PT", ".PTH") else path.suffix
    if suffix == ".bopt":
        if units.mean is not None or units.raw:
            raise InputError(f"{path} holds its units itself: leave out --mean, --std and --raw")
        return packed_file.read(path)
    if path.is_dir():
        arrays = image_folder.read(path)
    elif suffix == ".npz":
        arrays = npz_file.read(path, asked)
    elif suffix in (".pt", ".pth"):
        arrays = torch_file.read(path, asked)
    else:
        raise InputError(f"{asked} takes {KINDS}, got {str(path)!r}")
    return _checked(arrays, path, units)


def files_of(path: Path) -> list[Path]:
    """The files that `read(path)` may look at, in a fixed order."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    labels = torch_file.labels_file(path) if path.suffix.lower() in (".pt", ".pth") else None
    return [path, labels] if labels else [path]


def _of_channels(statistics: tuple[np.ndarray, np.ndarray] | None, channels: int) -> tuple[Statistics | None, str]:
    """→ (mean, std) of each channel, and what to tell of others."""
    if statistics is None:
        return None, ""
    mean, std = statistics
    if mean.size not in (1, channels):
        return None, f"its mean and std of {mean.size} values are left out: the samples have {channels} channels"
    return (np.broadcast_to(mean, channels).copy(), np.broadcast_to(std, channels).copy()), ""


def _checked(arrays: Arrays, path: Path, units: Units) -> SampleSet:
    if math.prod(arrays.x.shape) > MAX_SYMBOLS:
        raise InputError(f"{path}: {math.prod(arrays.x.shape):,} values are more than a file holds ({MAX_SYMBOLS:,})")
    if not arrays.x.size:
        raise InputError(f"{path}: no samples, x has shape {arrays.x.shape}")
    x = to_channels_first(arrays.x)
    soft = soft_labels(arrays.y, path) if arrays.y.ndim == 2 and arrays.y.shape[1] > 1 else None
    y = arrays.y if soft is None else soft.argmax(1)
    if soft is None and arrays.soft is not None:
        if arrays.soft.ndim != 2 or len(arrays.soft) != len(y):
            raise InputError(f"{path}: soft labels {arrays.soft.shape} do not match {len(y)} labels")
        soft = soft_labels(arrays.soft, path)
    if x.ndim not in (2, 4, 5) or y.shape != (len(x),):
        raise InputError(
            f"{path}: samples {x.shape} and labels {arrays.y.shape} do not match (n, c, h, w) or (n, c, d, h, w) "
            "and (n,)"
        )
    whole = arrays.x.dtype.kind in "bui"
    raw, statistics, note = units.to_raw(floats(x, path), path, arrays.certain or whole)
    known, odd = _of_channels(arrays.statistics, channels_of(x.shape[1:]))
    notes = (*arrays.notes, *filter(None, [note, odd]))
    mean, std = statistics or known or (None, None)
    classes = arrays.classes or (0 if soft is None else soft.shape[1])
    return SampleSet(str(path), raw, y, classes, soft, mean, std, None, None, notes)
