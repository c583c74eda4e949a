"""`--init FILE`: a set that every method starts from, of any kind that `budgetopt.sets` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from budgetopt import sets
from budgetopt.data.dataset import DataSpec
from budgetopt.errors import InputError
from budgetopt.representation import InitialSet


def read(path: str | Path, spec: DataSpec) -> InitialSet:
    """Samples in raw units and labels → class order, the file's order inside a class (most useful first). A set that
    was saved standardised is taken back to raw units by the dataset's mean and std.

    Raises `InputError` for what does not match the dataset, `PackedFileError` for a broken `.bopt`.
    """
    found = sets.read(path, sets.Units(dataset=(spec.mean, spec.std)), "--init")
    if found.shape != spec.shape:
        raise InputError(
            f"{path}: samples {found.x.shape} and labels {found.y.shape} do not match {spec.name}, shape {spec.shape}"
        )
    in_range = found.y.min() >= 0 and found.y.max() < spec.classes
    counts = np.bincount(found.y, minlength=spec.classes) if in_range else np.zeros(1)
    if (counts == 0).any():
        raise InputError(f"{path}: every class 0..{spec.classes - 1} of {spec.name} needs a sample, and no other class")
    ordered = found.in_class_order(spec.classes)
    return InitialSet(ordered.x, ordered.counts())
