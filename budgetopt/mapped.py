"""Arrays that are too large to be copied: in a file of this machine, mapped into every process that works on them."""

from __future__ import annotations

import mmap
import shutil
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from budgetopt import scratch

Reference = tuple[str, str, tuple[int, ...], int, Literal["C", "F"]]  # file, dtype, shape, offset, order
LARGE = 1 << 30  # bytes of an array, from which it is mapped


def written(parts: Iterable[np.ndarray], dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap:
    """An array of `shape` in a temporary file, which goes with it; parts: its rows in turn. Raises `OSError` where
    they find no room."""
    folder = scratch.folder()
    try:
        with open(folder / "array", "wb") as file:  # written, not mapped: a full disk is an error, not a signal
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
        found = np.memmap(folder / "array", dtype, "r+", shape=shape)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def by_reference(x: np.memmap) -> np.ndarray | Reference:
    """What takes the place of `x` on its way to a process of this machine: where the file lies. Small arrays and parts
    of mapped ones are their own values."""
    whole = isinstance(x.base, mmap.mmap) and x.filename is not None and Path(x.filename).is_file()
    if x.nbytes < LARGE or not whole:
        return x.view(np.ndarray)
    return str(x.filename), x.dtype.str, x.shape, x.offset, "C" if x.flags.c_contiguous else "F"


def opened(stored: np.ndarray | Reference) -> np.ndarray:
    """Inverse of `by_reference`, there. What is written to the array stays in that process."""
    if isinstance(stored, np.ndarray):
        return stored
    path, dtype, shape, offset, order = stored
    return np.memmap(path, np.dtype(dtype), "c", offset, shape, order)
