"""`Dataset(train, val, test, spec)`: validated, split once, the test part loaded only when asked for."""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetopt import mapped
from budgetopt.errors import InputError
from budgetopt.packing.layout import channels_of
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.resized import Resized

if TYPE_CHECKING:
    from budgetopt.data.resizing import Size

Arrays = tuple[np.ndarray, np.ndarray]
MAX_VALIDATION = 10_000
CHUNK = 1 << 24  # values that are converted to floats at once
LARGE_SIDE = 64  # pixels of the shorter side, from which pictures are searched in the space `image-large`
GLYPHS = {"shift": 0.1, "scale": 1.15, "rotate": 12.0}  # a mirrored digit or letter is another one
PICTURES = {"shift": 0.1, "scale": 1.15, "rotate": 10.0, "flip": 0.5}


# names of the preset and of the search space that suit samples of so many axes, where nothing else is known of them
PROTOCOLS = {1: "tabular-2", 3: "image-2", 4: "voxel-2"}
SPACES = {1: "tabular", 3: "image", 4: "voxel"}


class Source(ABC):
    """Where raw arrays come from. Reading one part never needs the other."""

    name: str
    protocol: str  # name of the preset that suits it
    space: str = "image"  # name of the search space that suits it
    path: Path | None = None  # of sources that are named by one
    invariances: Mapping[str, float] = {}  # augmentations, by name and strength, that leave the class as it is

    @abstractmethod
    def train_arrays(self) -> Arrays:
        """x: (n, c, h, w), (n, c, d, h, w) or (n, f), uint8 or float32, in raw units; y: (n,) labels 0 … C−1."""

    @abstractmethod
    def test_arrays(self) -> Arrays:
        """As `train_arrays`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the classes 0 … C−1, where they have any."""
        return ()

    def train_labels(self) -> np.ndarray:
        """The labels of `train_arrays`, where they can be had without the samples."""
        return self.train_arrays()[1]

    def test_labels(self) -> np.ndarray:
        return self.test_arrays()[1]

    def fingerprints(self, test: bool) -> list[bytes]:
        """A hash of every sample of a part as it is stored: equal samples have equal ones."""
        return list(_fingerprints((self.test_arrays if test else self.train_arrays)()[0]))

    def sampled(self, count: int) -> Source:
        """A source with about `count` of the training samples, two or more of every class, for a quick look at data
        that take long to read; itself where they do not."""
        return self

    def resized(self, size: Size) -> Source:
        """This source with its pictures made `size`; what has none says so when it is read."""
        from budgetopt.data.resizing import ResizedArrays

        return ResizedArrays(self, size)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was understood of the data or done to them, one line each."""
        return ()

    def fitted(self, train_rows: Callable[[np.ndarray], np.ndarray]) -> Source:
        """This source with what its samples need of the data themselves, such as the levels of text, taken of the train
        part alone; most need nothing. train_rows: (n,) labels of the training part → its rows that are
        not validation's."""
        return self

    @property
    def preparation(self) -> Preparation | None:
        """How `train_arrays` made samples of the raw data, where these are not samples yet: what a file must hold."""
        return None

    def prepared_by(self, preparation: Preparation | None) -> Source:
        """This source as a receiver of a packed file sees it: its samples are made as the file says. Raises
        `InputError` for data that cannot be prepared in that way."""
        if isinstance(preparation, Resized):
            from budgetopt.data.resizing import Size

            return self.resized(Size.of(preparation))
        if preparation != self.preparation:
            wanted = "values as they are" if preparation is None else preparation.name
            raise InputError(f"{self.name}: the file was made of {wanted}, and these are other data")
        return self

    def check_test_part(self, shape: tuple[int, ...]) -> None:  # noqa: B027 - most sources always have one
        """Raise `InputError` where the test part is missing or of another shape, without reading its values: a search
        must not find that out at its end."""

    def _check_numbering(self, classes: int, *there: int) -> None:
        """Raise `InputError` where classes are numbered by their names and are not as many as a file has. there: how
        many there are, in each way to count them."""
        if classes not in there:
            raise InputError(
                f"{self.name}: {there[0]} classes, the file has {classes}: which is which follows from the training "
                "part, put it beside"
            )

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
    """x: (n, c, h, w), (n, c, d, h, w) or (n, f) in raw units, uint8 or float32; y: (n,) int64."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class DataSpec:
    """What later stages know about a dataset. `mean`, `std`: (c,) float32 of the train part, already rounded to
    the precision of the packed file; `split_hash` is part of every cache key; `invariances`: augmentations under which
    a method may match real and synthetic samples, whatever the protocol trains with; `preparation`: how the samples
    were made of raw data, for the receiver."""

    name: str
    shape: tuple[int, ...]
    class_counts: tuple[int, ...]
    mean: np.ndarray
    std: np.ndarray
    split_hash: str
    protocol: str
    invariances: Mapping[str, float] = field(default_factory=dict)
    preparation: Preparation | None = None

    @property
    def classes(self) -> int:
        return len(self.class_counts)

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

    def repeated(self, test: Split) -> int:
        """Samples of the test part that are in the train or validation part, too, byte by byte."""
        known = {fingerprint for part in (self.train, self.val) for fingerprint in _fingerprints(part.x)}
        return sum(fingerprint in known for fingerprint in _fingerprints(test.x.astype(self.train.x.dtype, copy=False)))

    @classmethod
    def prepare(cls, source: Source, seed: int) -> Dataset:
        """Read the training arrays, validate them, and carve the validation part: stratified, one sixth, at most
        10,000 samples, seeded. Raises `InputError` naming the offending class, label or value."""
        source = source.fitted(lambda y: _carved(y, seed, source.name)[0])
        x, y = _validated(*source.train_arrays(), f"{source.name}, training part")
        train_index, val_index = _carved(y, seed, source.name)
        train = Split(taken(x, train_index), y[train_index])
        mean, std = _statistics(train.x, source.name)
        digest = hashlib.sha256()
        for part in _chunks(x):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
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
            preparation=source.preparation,
        )
        return cls(source, train, Split(taken(x, val_index), y[val_index]), spec)


def validation_size(samples: int, classes: int) -> int:
    """Of the part that is carved from so many training samples."""
    return min(MAX_VALIDATION, max(classes, round(samples / 6)))


def picture_space(height: int, width: int) -> str:
    """The search space that suits pictures of this size."""
    return "image-large" if min(height, width) >= LARGE_SIDE else "image"


def suited(shape: tuple[int, ...]) -> tuple[str, str, Mapping[str, float]]:
    """Preset, search space and invariances for samples of `shape` of which nothing else is known."""
    axes = len(shape)
    space = picture_space(*shape[1:]) if axes == 3 else SPACES.get(axes, SPACES[3])
    return PROTOCOLS.get(axes, PROTOCOLS[3]), space, {} if axes in (1, 4) else PICTURES


def _fingerprints(x: np.ndarray) -> Iterator[bytes]:
    return (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x)


def _chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """Samples by samples, about CHUNK values at a time, 4,096 samples at most."""
    rows = max(1, min(4096, CHUNK // max(1, x[:1].size)))
    return (x[start : start + rows] for start in range(0, len(x), rows))


def taken(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Those rows, in memory; where they are large in a file of the temporary folder (TMPDIR), which is mapped and goes
    with the array."""
    size = len(index) * x[:1].nbytes
    if size < mapped.LARGE:
        return np.ascontiguousarray(x[index])
    rows = max(1, CHUNK // x[:1].size)
    try:
        parts = (x[index[start : start + rows]] for start in range(0, len(index), rows))
        return mapped.written(parts, x.dtype, (len(index), *x.shape[1:]))
    except OSError as error:
        raise InputError(
            f"{size:,} bytes of data find no room in {tempfile.gettempdir()!r}: {error.strerror}"
        ) from None


def to_channels_first(x: np.ndarray) -> np.ndarray:
    """(n, h, w) or (n, h, w, c) with c = 1 or 3 → (n, c, h, w); (n, d, h, w, c) → (n, c, d, h, w); anything else
    unchanged."""
    wanted = channels_first_shape(x.shape)
    if x.ndim in (4, 5) and wanted != x.shape:
        moved = np.moveaxis(x, -1, 1)
        return np.ascontiguousarray(moved) if x.nbytes < mapped.LARGE else taken(moved, np.arange(len(x)))
    return x.reshape(wanted)


def channels_first_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `to_channels_first` gives to an array of `shape`."""
    if len(shape) == 3:
        return (shape[0], 1, *shape[1:])
    if len(shape) in (4, 5) and shape[1] not in (1, 3) and shape[-1] in (1, 3):
        return (shape[0], shape[-1], *shape[1:-1])
    return shape


def _carved(y: np.ndarray, seed: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the training part → rows of the train and of the validation part, each in their order."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(y)
    for label in np.flatnonzero(counts < 2):
        number = "no sample" if counts[label] == 0 else "1 sample"
        raise InputError(f"{where}: class {label} has {number}; every class 0..{len(counts) - 1} needs 2")
    size = validation_size(len(y), len(counts))
    if len(y) - size < len(counts):
        raise InputError(f"{where}: {len(y)} samples of {len(counts)} classes are too few to split")
    train, val = train_test_split(np.arange(len(y)), test_size=size, stratify=y, random_state=seed % 2**32)
    return np.sort(train), np.sort(val)


def check_test_arrays(
    x_shape: tuple[int, ...], y: np.ndarray, train_y: np.ndarray, shape: tuple[int, ...], where: str | Path
) -> None:
    """As `check_test_labels`; also for samples, stored as `x_shape`, that are not of the training part's `shape`."""
    samples, *found = channels_first_shape(x_shape)
    if tuple(found) != shape:
        raise InputError(f"{where}: test samples have shape {tuple(found)}, training samples {shape}")
    check_test_labels(y, samples, train_y, where)


def check_test_labels(y: np.ndarray, samples: int, train_y: np.ndarray, where: str | Path) -> None:
    """Raise `InputError` for labels of a test part that could not be scored: of another number than its samples, or of
    a class that the training part, with labels `train_y`, lacks."""
    classes = int(validated_labels(train_y, len(train_y), f"{where}, training part").max()) + 1
    y = validated_labels(y, samples, f"{where}, test part")
    strange = np.flatnonzero(y >= classes)
    if strange.size:
        raise InputError(f"{where}: test label {y[strange[0]]} of sample {strange[0]} is not in the training part")


def _validated(x: np.ndarray, y: np.ndarray, where: str) -> Arrays:
    if x.ndim not in (2, 4, 5) or x.size == 0:
        raise InputError(f"{where}: samples must be (n, c, h, w), (n, c, d, h, w) or (n, f) with n > 0, got {x.shape}")
    if x.dtype != np.uint8:
        if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
            raise InputError(f"{where}: features must be numbers, got dtype {x.dtype}")
        x = x.astype(np.float32, copy=False)
        bad = np.flatnonzero(np.concatenate([~np.isfinite(part).reshape(len(part), -1).all(1) for part in _chunks(x)]))
        if bad.size:
            raise InputError(f"{where}: {bad.size} samples hold NaN or infinite features, the first is sample {bad[0]}")
    return x, validated_labels(y, len(x), where)


def validated_labels(y: np.ndarray, samples: int, where: str) -> np.ndarray:
    """(n,) int64 classes. Raises `InputError` for what cannot be the labels of so many samples."""
    if y.shape != (samples,):
        raise InputError(f"{where}: {samples} samples but labels of shape {y.shape}")
    if not samples:
        raise InputError(f"{where}: no samples")
    whole: Any = y
    if not np.issubdtype(y.dtype, np.integer):
        if not (np.issubdtype(y.dtype, np.floating) and np.isfinite(y).all() and (y == np.round(y)).all()):
            raise InputError(f"{where}: labels must be whole numbers, got dtype {y.dtype}")
        whole = y.astype(np.int64)
    if whole.min() < 0 or whole.max() >= 1 << 16:
        raise InputError(f"{where}: labels are out of range, got {whole.min()}..{whole.max()}, expected 0..C-1")
    return whole.astype(np.int64)  # type: ignore[no-any-return]


def _statistics(x: np.ndarray, where: str) -> Arrays:
    """Per-channel mean and std of the train part, (c,) float32, rounded to float16 where that loses under 1 %."""
    flat = x.reshape(len(x), channels_of(x.shape[1:]), -1)
    mean = flat.mean(axis=(0, 2), dtype=np.float64)
    # in chunks: a float copy of everything would be eight times the uint8 data
    square = sum(((part.astype(np.float64) - mean[None, :, None]) ** 2).sum(axis=(0, 2)) for part in _chunks(flat))
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
