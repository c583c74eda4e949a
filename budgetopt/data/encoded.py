"""Sources of encoded pictures, files in folders or rows of Parquet: what they share once they list their parts."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from budgetopt.data import decoding
from budgetopt.data.dataset import PICTURES, Arrays, Source, Split, check_test_labels, picture_space
from budgetopt.data.resizing import Size
from budgetopt.errors import InputError
from budgetopt.packing.resized import Resized

LOOKED_AT = 1000  # headers of the test part, before a search


class Shard(decoding.Shard):
    """With a choice of its pictures."""

    @abstractmethod
    def taken(self, rows: np.ndarray) -> Shard:
        """Those of its pictures, (k,) increasing."""


@dataclass(frozen=True, eq=False)
class Part:
    """Pictures as they are stored, y: (n,) int64 labels in their order, where: its folder or file, for messages."""

    shards: Sequence[Shard]
    y: np.ndarray
    where: str

    def taken(self, rows: np.ndarray) -> Part:
        """Those pictures, (k,) increasing."""
        shards, start = [], 0
        for shard in self.shards:
            own = rows[(rows >= start) & (rows < start + len(shard))] - start
            if own.size:
                shards.append(shard.taken(own))
            start += len(shard)
        return Part(shards, self.y[rows], self.where)


class EncodedPictures(Source):
    """Subclasses list the parts; nothing is decoded before its arrays are asked for."""

    path: Path
    protocol = "image-2"
    invariances = PICTURES

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._size: Size | None = None
        self._said: list[str] = []

    @abstractmethod
    def _part(self, test: bool) -> Part:
        """Listed and labelled; reading one never needs the pictures of the other."""

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def _has_train(self) -> bool:
        return True

    @cached_property
    def _train(self) -> Part:
        return self._part(test=False)

    @cached_property
    def _test(self) -> Part:
        return self._part(test=True)

    @cached_property
    def _seen(self) -> decoding.Surveyed:
        """Of the training part; all headers where colours are still to be found out."""
        return decoding.survey(self._train.shards, headers=self._size is not None and self._size.channels is None)

    @cached_property
    def _how(self) -> Resized:
        """What pictures are made; without a size, what the first one is."""
        if self._size is not None and self._size.channels is not None:
            return self._size.to(self._size.channels)
        if self._size is not None:
            return self._size.to(1 if self._seen.grey else 3)
        part = self._train if self._has_train else self._test
        return Resized(*decoding.first_picture(part.shards, part.where), Size(1, 1).filter)

    @property
    def space(self) -> str:  # type: ignore[override]
        size = self._size or self._how
        return picture_space(size.height, size.width)

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._said))

    @property
    def preparation(self) -> Resized | None:
        return None if self._size is None else self._how

    def resized(self, size: Size) -> Self:
        other = copy.copy(self)
        other._size, other._said = size, list(self._said)
        for name in ("_seen", "_how"):
            other.__dict__.pop(name, None)
        return other

    def train_arrays(self) -> Arrays:
        if self._size is not None:
            self._said.append(self._how.summary)
        return self._arrays(self._train, self._seen.digests)

    def test_arrays(self) -> Arrays:
        return self._arrays(self._test, decoding.survey(self._test.shards, headers=False).digests)

    def train_labels(self) -> np.ndarray:
        return self._train.y

    def test_labels(self) -> np.ndarray:
        return self._test.y

    def fingerprints(self, test: bool) -> list[bytes]:
        return list(decoding.survey(self._test.shards, headers=False).digests if test else self._seen.digests)

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        """Labels, and headers of pictures all over the part."""
        part = self._test
        check_test_labels(part.y, len(part.y), self._train.y, part.where)
        if self._size is None:
            few = part.taken(np.unique(np.linspace(0, len(part.y) - 1, LOOKED_AT).astype(np.int64)))
            found = decoding.first_picture(few.shards, part.where)
            if found != shape:
                raise InputError(f"{part.where}: test pictures have shape {found}, training pictures {shape}")
            decoding.check_headers(few.shards, Resized(*shape, Size(1, 1).filter))

    def checked_test(self, shape: tuple[int, ...], classes: int) -> Split:
        # two numbers, where metadata name classes that no training sample has
        used = [int(self._train.y.max()) + 1] if self._has_train else []
        self._check_numbering(classes, len(self.class_names), *used)
        return super().checked_test(shape, classes)

    def sampled(self, count: int) -> Source:
        """Stratified, the same in every call."""
        y = self._train.y
        if count >= len(y):
            return self
        classes, rng = np.unique(y), np.random.default_rng(0)
        each = max(2, count // len(classes))
        rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:each] for c in classes])
        return Sampled(self, self._train.taken(np.sort(rows)))

    def _arrays(self, part: Part, digests: Sequence[bytes]) -> Arrays:
        found = decoding.decode(part.shards, self._how, self._size is None, digests, part.where)
        self._said += found.notes
        return found.x, part.y[found.kept]


class Sampled(Source):
    """Some training pictures of `whole`, decoded in memory; the test part is the whole one's."""

    def __init__(self, whole: EncodedPictures, few: Part) -> None:
        self._whole, self._few = whole, few
        self.name, self.path, self.space = whole.name, whole.path, whole.space
        self.protocol, self.invariances = whole.protocol, whole.invariances

    @property
    def preparation(self) -> Resized | None:
        return self._whole.preparation

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._whole.class_names

    def train_arrays(self) -> Arrays:
        x, kept = decoding.decode_here(self._few.shards, self._whole._how, self._whole._size is None)
        return x, self._few.y[kept]

    def test_arrays(self) -> Arrays:
        return self._whole.test_arrays()
