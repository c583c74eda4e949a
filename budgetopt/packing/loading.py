"""`load(path)`: decoded samples and labels, or symbols in memory that are dequantized per batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing.container import PackedSet, unpack_file
from budgetopt.packing.log_mel import LogMel
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.resized import Resized
from budgetopt.packing.table import TablePreparation

if TYPE_CHECKING:
    import torch.utils.data


@dataclass(frozen=True, eq=False)
class LoadedSet:
    """A packed dataset, ready to train on. Holds the uint8 symbols only; samples are decoded when asked for."""

    packed: PackedSet
    bytes: int

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def classes(self) -> int:
        return len(self.packed.counts)

    @property
    def mean(self) -> np.ndarray:
        """(c,) float32: subtract from inputs in raw units, the receiver's test data included."""
        return self.packed.mean

    @property
    def std(self) -> np.ndarray:
        """(c,) float32: divide by it afterwards."""
        return self.packed.std

    @property
    def preparation(self) -> Preparation | None:
        """How samples are made of raw data, where these are not samples yet: `prepare` does it."""
        return self.packed.preparation

    @property
    def samples(self) -> np.ndarray:
        """All samples, (n, c, h, w), (n, c, d, h, w) or (n, f) float32 in the dataset's raw units (say 0 … 255)."""
        return self.packed.decode()

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64."""
        return self.packed.labels()

    @property
    def targets(self) -> np.ndarray:
        """(n, classes) float32 probabilities to train towards: the file's soft labels, or certainty of the class."""
        soft = self.packed.targets()
        return np.eye(self.classes, dtype=np.float32)[self.labels] if soft is None else soft

    def batches(self, size: int, seed: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One pass in batches of at most `size`, dequantized one at a time; shuffled if a seed is given: (samples,
        labels), or (samples, targets) where the file has soft labels."""
        if size < 1:
            raise InputError(f"the batch size must be at least 1, got {size}")
        order = np.arange(len(self)) if seed is None else np.random.default_rng(seed).permutation(len(self))
        labels = self._labels_to_train_on
        for start in range(0, len(self), size):
            index = order[start : start + size]
            yield self.packed.decode(index), labels[index]

    def standardize(self, x: np.ndarray) -> np.ndarray:
        """Samples in raw units, (n, …) of the file's or of a receiver's own → (x − mean) / std per channel, float32:
        what networks are trained and tested on."""
        if x.shape[1:] != self.packed.shape:
            raise InputError(f"samples must be (n, {', '.join(map(str, self.packed.shape))}), got {x.shape}")
        shape = (-1,) + (1,) * (len(self.packed.shape) - 1)
        found: np.ndarray = (x.astype(np.float32, copy=False) - self.mean.reshape(shape)) / self.std.reshape(shape)
        return found

    def prepare(self, raw: Any, rate: int | None = None) -> np.ndarray:
        """What a receiver has itself, made samples as those of the file were, float32 in raw units: a recording, (t,)
        or (t, channels) at `rate` Hz → (1, mels, frames); a picture, uint8 (h, w) or (h, w, 3) → (c, height, width);
        rows of a table, columns by name (a mapping to (n,) arrays, a data frame, an Arrow table) or a list of one
        mapping for each row → (n, f), by their order where the file names none. Raises `InputError` for what cannot be
        prepared."""
        how = self.packed.preparation
        if isinstance(how, LogMel):
            if rate is None:
                raise InputError("a recording needs its sampling rate in Hz: prepare(waveform, rate)")
            return how.prepare(raw, rate)
        if rate is not None:
            raise InputError(f"rate {rate}: samples of shape {self.packed.shape} are not made of recordings")
        if isinstance(how, Resized):
            return how.prepare(raw)
        samples = self._table.samples(raw)
        if samples.shape[1:] != self.packed.shape:
            raise InputError(f"the rows make {samples.shape[1]} values, the file's samples have {self.packed.shape[0]}")
        return samples

    def prepare_labels(self, labels: Any) -> np.ndarray:
        """A receiver's own labels, (n,) of those that the file names or of class numbers → (n,) int64 classes."""
        return self._table.labels(labels)

    @property
    def _table(self) -> TablePreparation:
        found = self.packed.preparation or TablePreparation()
        if not isinstance(found, TablePreparation) or len(self.packed.shape) != 1:
            raise InputError(f"samples of shape {self.packed.shape} are not made of the rows of a table")
        return found

    def to_torch(self, standardize: bool = True) -> torch.utils.data.TensorDataset:
        """A `torch.utils.data.Dataset` of (sample float32, label int64), or of (sample, targets) where the file has
        soft labels: `cross_entropy` takes both; imports torch. With `standardize`, samples are ready for a network:
        (x − mean) / std per channel."""
        import torch
        import torch.utils.data

        x = self.standardize(self.samples) if standardize else self.samples
        return torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(self._labels_to_train_on))

    @property
    def _labels_to_train_on(self) -> np.ndarray:
        return self.labels if self.packed.soft is None else self.targets


def load(path: str | Path) -> LoadedSet:
    """Read a `.bopt` file. Imports numpy and constriction, never torch.

    Raises `PackedFileError` (a `ValueError`) for a file that breaks a rule of the format, `InputError` for one
    that cannot be read.
    """
    data, packed = unpack_file(path)
    return LoadedSet(packed, len(data))
