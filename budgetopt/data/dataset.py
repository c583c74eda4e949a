"""`Dataset(train, val, test, spec)`: validated, split once, the test part loaded only when asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from budgetopt.errors import InputError

Arrays = tuple[np.ndarray, np.ndarray]
MAX_VALIDATION = 10_000
GLYPHS = {"shift": 0.1, "scale": 1.15, "rotate": 12.0}  # a mirrored digit or letter is another one
PICTURES = {"shift": 0.1, "scale": 1.15, "rotate": 10.0, "flip": 0.5}


class Source(ABC):
    """Where raw arrays come from. Reading one part never needs the other."""

    name: str
    protocol: str  # name of the preset that suits it
    space: str = "image"  # name of the search space that suits it
    path: Path | None = None  # of sources that are named by one
    invariances: Mapping[str, float] = {}  # augmentations, by name and strength, that leave the class as it is

    @abstractmethod
    def train_arrays(self) -> Arrays:
        """x: (n, c, h, w) or (n, f), uint8 or float32, in raw units; y: (n,) labels 0 … C−1."""

    @abstractmethod
    def test_arrays(self) -> Arrays:
        """As `train_arrays`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was understood of the data or done to them, one line each."""
        return ()

    def check_test_part(self, shape: tuple[int, ...]) -> None:  # noqa: B027 - most sources always have one
        """Raise `InputError` where the test part is missing or of another shape, without reading its values: a search
        must not find that out at its end."""

    def checked_test(self, shape: tuple[int, ...], classes: int) -> Split:
        """The test part, validated against what a packed file or a training part declares."""
        x, y = self.test_arrays()
        x, y = _validated(x, y, f"{self.name}, test part")
        if x.shape[1:] != shape:
            raise InputError(f"{self.name}: test samples have shape {x.shape[1:]}, expected {shape}")
        if y.max() >= classes:
            raise InputError(f"{self.name}: test label {y.max()} is out of range, expected 0..{classes - 1}")
        return Split(x, y)


@dataclass(frozen=True, eq=False)
class Split:
    """x: (n, c, h, w) or (n, f) in raw units, uint8 or float32; y: (n,) int64."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class DataSpec:
    """What later stages know about a dataset. `mean`, `std`: (c,) float32 of the train part, already rounded to
    the precision of the packed file; `split_hash` is part of every cache key; `invariances`: augmentations under which
    a method may match real and synthetic samples, whatever the protocol trains with."""

    name: str
    shape: tuple[int, ...]
    class_counts: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    split_hash: str
    protocol: str
    invariances: Mapping[str, float] = field(default_factory=dict)

    @property
    def classes(self) -> int:
        return len(self.class_counts)

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    @property
    def values(self) -> int:
        """Stored values of one sample."""
        return int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and validation parts in memory; the test part behind `load_test`, which only the end of a run calls."""

    source: Source
    train: Split
    val: Split
    spec: DataSpec

    def load_test(self) -> Split:
        return self.source.checked_test(self.spec.shape, self.spec.classes)

    @classmethod
    def prepare(cls, source: Source, seed: int) -> Dataset:
        """Read the training arrays, validate them, and carve the validation part: stratified, one sixth, at most
        10,000 samples, seeded. Raises `InputError` naming the offending class, label or value."""
        from sklearn.model_selection import train_test_split

        x, y = _validated(*source.train_arrays(), f"{source.name}, training part")
        counts = np.bincount(y)
        for label in np.flatnonzero(counts < 2):
            number = "no sample" if counts[label] == 0 else "1 sample"
            raise InputError(f"{source.name}: class {label} has {number}; every class 0..{len(counts) - 1} needs 2")
        size = min(MAX_VALIDATION, max(len(counts), round(len(y) / 6)))
        if len(y) - size < len(counts):
            raise InputError(f"{source.name}: {len(y)} samples of {len(counts)} classes are too few to split")
        train_index, val_index = train_test_split(
            np.arange(len(y)), test_size=size, stratify=y, random_state=seed % 2**32
        )
        train_index, val_index = np.sort(train_index), np.sort(val_index)
        train = Split(np.ascontiguousarray(x[train_index]), y[train_index])
        mean, std = _statistics(train.x, source.name)
        digest = hashlib.sha256(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
        digest.update(y.tobytes() + val_index.tobytes() + str(x.shape).encode())
        spec = DataSpec(
            name=source.name,
            shape=x.shape[1:],
            class_counts=tuple(int(c) for c in np.bincount(train.y)),
            mean=mean,
            std=std,
            split_hash=digest.hexdigest()[:16],
            protocol=source.protocol,
            invariances=source.invariances,
        )
        return cls(source, train, Split(np.ascontiguousarray(x[val_index]), y[val_index]), spec)


def to_channels_first(x: np.ndarray) -> np.ndarray:
    """(n, h, w) or (n, h, w, c) with c = 1 or 3 → (n, c, h, w); anything else unchanged."""
    wanted = channels_first_shape(x.shape)
    if x.ndim == 4 and wanted != x.shape:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x.reshape(wanted)


def channels_first_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `to_channels_first` gives to an array of `shape`."""
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:])
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        return (shape[0], shape[3], *shape[1:3])
    return shape


def _validated(x: np.ndarray, y: np.ndarray, where: str) -> Arrays:
    if x.ndim not in (2, 4) or x.size == 0:
        raise InputError(f"{where}: samples must be (n, c, h, w) or (n, f) with n > 0, got {x.shape}")
    if x.dtype != np.uint8:
        if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
            raise InputError(f"{where}: features must be numbers, got dtype {x.dtype}")
        x = x.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
        if bad.size:
            raise InputError(f"{where}: {bad.size} samples hold NaN or infinite features, the first is sample {bad[0]}")
    if y.shape != (len(x),):
        raise InputError(f"{where}: {len(x)} samples but labels of shape {y.shape}")
    whole: Any = y
    if not np.issubdtype(y.dtype, np.integer):
        if not (np.issubdtype(y.dtype, np.floating) and np.isfinite(y).all() and (y == np.round(y)).all()):
            raise InputError(f"{where}: labels must be whole numbers, got dtype {y.dtype}")
        whole = y.astype(np.int64)
    if whole.min() < 0 or whole.max() >= 1 << 16:
        raise InputError(f"{where}: labels are out of range, got {whole.min()}..{whole.max()}, expected 0..C-1")
    return x, whole.astype(np.int64)


def _statistics(x: np.ndarray, where: str) -> Arrays:
    """Per-channel mean and std of the train part, (c,) float32, rounded to float16 where that loses under 1 %."""
    flat = x.reshape(len(x), x.shape[1], -1) if x.ndim == 4 else x.reshape(len(x), 1, -1)
    mean = flat.mean(axis=(0, 2), dtype=np.float64)
    # in chunks: a float copy of everything would be eight times the uint8 data
    square = sum(
        ((flat[i : i + 4096].astype(np.float64) - mean[None, :, None]) ** 2).sum(axis=(0, 2))
        for i in range(0, len(flat), 4096)
    )
    std = np.sqrt(square / (len(flat) * flat.shape[2]))
    std = np.where(std > 0, std, 1.0)
    if not np.isfinite(std).all() or np.abs(mean).max() > 1e30 or std.max() > 1e30:
        raise InputError(f"{where}: features are too large to standardise: mean {mean}, std {std}")
    with np.errstate(over="ignore"):
        half_mean, half_std = (
            mean.astype(np.float16).astype(np.float64),
            std.astype(np.float16).astype(np.float64),
        )
    if (np.abs(half_std - std) <= 0.01 * std).all() and (np.abs(half_mean - mean) <= 0.01 * std).all():
        mean, std = half_mean, half_std
    return mean.astype(np.float32), std.astype(np.float32)
