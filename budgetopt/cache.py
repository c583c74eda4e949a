"""Arrays that are made once and kept on disk: what methods share of the real data. A cache never decides a result."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

Arrays = dict[str, np.ndarray]
Progress = Callable[[int, int], None]  # (done, total)


def silent(done: int, total: int) -> None:
    """A `Progress` that says nothing."""


def arrays(
    folder: Path, kind: str, key: tuple[object, ...], good: Callable[[Arrays], bool], make: Callable[[], Arrays]
) -> Arrays:
    """`make()`, or the same arrays from `folder`. `key`: all that shapes them, the split's hash among it. What does not
    satisfy `good` is made again."""
    digest = hashlib.sha256(repr((*key, torch.__version__)).encode()).hexdigest()[:16]
    path = folder / f"{kind}-{digest}.npz"
    found = _read(path)
    if found is None or not _is_good(found, good):
        found = make()
        _write(path, found)
    return found


def _is_good(found: Arrays, good: Callable[[Arrays], bool]) -> bool:
    try:
        return good(found)
    except (KeyError, IndexError, TypeError):  # of what another program has written
        return False


def _read(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # whatever zipfile, zlib and numpy raise
        return None  # absent or damaged: make it again


def _write(path: Path, made: Arrays) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as stream:
            np.savez(stream, **cast(dict[str, Any], made))  # its own arguments have names, too
        partial.replace(path)
    except OSError:  # a cache that cannot be written costs time, not results
        with suppress(OSError):
            partial.unlink(missing_ok=True)
