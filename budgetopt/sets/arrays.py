"""What a reader finds, before it is checked: arrays, and what the kind of file says of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetopt.errors import InputError

# by what names images and labels go in archives and in what public distillation code saves
NAMES: tuple[tuple[str, str], ...] = (("x", "y"), ("images", "labels"), ("x_train", "y_train"))
NAMES += (("image_syn", "label_syn"), ("data", "targets"), ("image", "label"), ("syn_images", "syn_labels"))


EXPORTED, TARGETS = ("x", "y"), "targets"  # what `budgetopt export` calls samples, classes and soft labels
UNPREPARED = "how its samples were made of raw data is left out: pack the .bopt file itself to keep it"


@dataclass(frozen=True, eq=False)
class Arrays:
    """x: (n, …) numbers; y: (n,) int64, or (n, C) soft labels; certain: x is in raw units for sure; classes: 0 where
    only the labels tell; statistics: (mean, std) of the receiver's input standardisation, where the file has them;
    soft: (n, C) soft labels beside whole ones."""

    x: np.ndarray
    y: np.ndarray
    certain: bool = True
    classes: int = 0
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    notes: tuple[str, ...] = ()
    soft: np.ndarray | None = None


def floats(x: np.ndarray, path: Path) -> np.ndarray:
    """x as float32. Raises `InputError` for what are not finite numbers."""
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
        raise InputError(f"{path}: samples must be numbers, got dtype {x.dtype}")
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise InputError(f"{path}: samples hold NaN or infinite values")
    return x


def whole_labels(y: np.ndarray, name: str, path: Path) -> np.ndarray:
    """(n,) int64. Raises `InputError` for fractions and NaN; (n, C) soft labels pass as they are."""
    if y.ndim == 2 and y.shape[1] > 1 and np.issubdtype(y.dtype, np.floating):
        return y
    if y.size == 0 or not np.array_equal(y, np.round(y)):
        raise InputError(f"{path}: {name} must hold whole numbers")
    return y.astype(np.int64)


def soft_labels(y: np.ndarray, path: Path) -> np.ndarray:
    """(n, C) probabilities float32: rows of them as they are, other values taken as logits."""
    y = y.astype(np.float64)
    if not np.isfinite(y).all():
        raise InputError(f"{path}: soft labels hold NaN or infinite values")
    if (y >= 0).all() and np.allclose(y.sum(1), 1.0, atol=1e-2):
        return (y / y.sum(1, keepdims=True)).astype(np.float32)
    powers = np.exp(y - y.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True)).astype(np.float32)
