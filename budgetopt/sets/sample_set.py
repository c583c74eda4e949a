"""A set of labelled samples that a user brings along."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing import PackedSet, Preparation

MAX_CLASSES = 1 << 16


@dataclass(frozen=True, eq=False)
class SampleSet:
    """x: (n, c, h, w), (n, c, d, h, w) or (n, f) float32 in raw units, y: (n,) int64, in the file's order (most useful
    first inside a class). soft: (n, C) probabilities, or None. classes: C, 0 where only the labels tell. mean, std:
    (c,) input standardisation, protocol, preparation: the fields of a `.bopt`, packed: what a `.bopt` held; each None
    where the file has none. notes: what the reader had to decide, in sentences for the user."""

    name: str
    x: np.ndarray
    y: np.ndarray
    classes: int = 0
    soft: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None
    protocol: int | bytes | None = None
    packed: PackedSet | None = None
    notes: tuple[str, ...] = ()
    preparation: Preparation | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.x.shape[1:]

    def counts(self) -> tuple[int, ...]:
        """Samples of each class; a class may have none."""
        return tuple(int(c) for c in np.bincount(self.y, minlength=self.classes))

    def in_class_order(self, classes: int | None = None) -> SampleSet:
        """Sorted by class, the file's order inside a class, with `classes` classes (default: what the file says, else
        the highest label + 1). Raises `InputError` for labels out of range."""
        least, most = int(self.y.min()), int(self.y.max())
        total = classes or self.classes or most + 1
        if least < 0 or most >= min(total, MAX_CLASSES):
            raise InputError(f"{self.name}: labels are {least}..{most}, expected 0..{min(total, MAX_CLASSES) - 1}")
        if self.soft is not None and self.soft.shape[1] != total:
            raise InputError(f"{self.name}: soft labels of {self.soft.shape[1]} classes, expected {total}")
        order = np.argsort(self.y, kind="stable")
        soft = None if self.soft is None else self.soft[order]
        packed = self.packed if self.packed is not None and len(self.packed.counts) == total else None
        return replace(self, x=self.x[order], y=self.y[order], soft=soft, classes=total, packed=packed)

    def taken(self, rows: np.ndarray) -> SampleSet:
        """The samples `rows` alone, without what was packed."""
        soft = None if self.soft is None else self.soft[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], soft=soft, packed=None)
