"""The test part of data that come without one: stratified, the same for ever."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from budgetopt.data.dataset import taken
from budgetopt.errors import InputError

TEST_SHARE, TEST_SEED = 0.3, 0


def carved(y: np.ndarray, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test part, in their order. Raises `InputError` where there are too few."""
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=TEST_SEED)
    except ValueError as error:  # fewer rows than classes
        raise InputError(f"{where}: no test part can be carved from {len(y)} samples: {error}") from None
    return np.sort(parts[0]), np.sort(parts[1])


def whole_pair(names: Collection[str]) -> tuple[str, str] | None:
    """Of arrays with these names, the x and y that a test part is carved from; None where there is one."""
    if {"x_test", "y_test"} & set(names):
        return None
    return ("x_train", "y_train") if "x_train" in names else ("x", "y")


def carved_pair(x: np.ndarray, y: np.ndarray, test: bool, where: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Samples and labels of one part of the whole x and y."""
    if y.shape != x.shape[:1] or not len(y):
        raise InputError(f"{where}: {len(x):,} samples but labels of shape {y.shape}")
    rows = carved(y, where)[test]
    return taken(x, rows), y[rows]


def carving_note(where: str | Path) -> str:
    """What a user is told of it."""
    return f"no test part: {TEST_SHARE:.0%} of {where}, stratified, seed {TEST_SEED}"
