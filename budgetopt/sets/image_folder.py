"""A folder of images: a subfolder for each class, read by Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from budgetopt.data.pictures import SUFFIXES, is_grey, opened, reason
from budgetopt.errors import InputError
from budgetopt.packing.container import MAX_SYMBOLS
from budgetopt.packing.resized import channels_first, converted_to
from budgetopt.sets.arrays import Arrays

_SHOWN = 10  # classes named in a note
T = TypeVar("T")


def read(path: Path) -> Arrays:
    """Pixels 0 … 255, grey if every image is. Classes are the subfolders' numbers where all are called by one, as of a
    set that lacks some, else their alphabetical order; images are in the order of their names. Raises `InputError` for
    mixed sizes."""
    files, classes, named = _listing(path)
    grey, size = _survey([file for file, _ in files], path)
    channels = 1 if grey else 3
    if len(files) * channels * size[0] * size[1] > MAX_SYMBOLS:
        raise InputError(f"{path}: {len(files):,} images of {size[0]}×{size[1]} are more than a file can hold")
    x = np.empty((len(files), channels, size[1], size[0]), np.uint8)
    for i, (file, _) in enumerate(files):
        with _opened(file) as image:
            x[i] = channels_first(_one_line(file, partial(converted_to, image, channels)))
    notes = (f"classes by subfolder: {named}",) if named else ()
    return Arrays(x, np.array([label for _, label in files], np.int64), classes=classes, notes=notes)


def _listing(path: Path) -> tuple[list[tuple[Path, int]], int, str]:
    """→ ([(file, label)], number of classes, names of the classes where they are no numbers)."""
    try:
        folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
        numbered = all(f.name.isascii() and f.name.isdecimal() and int(f.name) < 1 << 16 for f in folders)
        if numbered:
            folders.sort(key=lambda f: int(f.name))
        labels = [int(f.name) if numbered else i for i, f in enumerate(folders)]
        if len(set(labels)) < len(labels):
            raise InputError(f"{path}: two subfolders have the same number: {', '.join(f.name for f in folders)}")
        files = [
            (file, label)
            for folder, label in zip(folders, labels, strict=True)
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
        ]
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not files:
        raise InputError(f"{path}: no images in it; a folder has a subfolder for each class, with {_kinds()} in it")
    names = [f"{label} {folder.name}" for folder, label in zip(folders, labels, strict=True)]
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    lacking = max(labels) + 1 - len(labels)
    if numbered and lacking:
        return files, max(labels) + 1, f"{shown}; labels are their numbers, and {lacking} classes below have none"
    return files, max(labels) + 1, "" if numbered else shown


def _survey(files: list[Path], path: Path) -> tuple[bool, tuple[int, int]]:
    """→ (whether all are grey, (width, height) of all), from the headers alone."""
    grey, size, first = True, (0, 0), files[0]
    for file in files:
        with _opened(file) as image:
            grey &= is_grey(image)
            if file is first:
                size = image.size
            elif image.size != size:
                raise InputError(
                    f"{path}: pictures must have one size: {first} is {size[1]}×{size[0]} (height × width), {file} "
                    f"{image.size[1]}×{image.size[0]}: make them so before, or search with --resize"
                )
    return grey, size


def _opened(file: Path) -> Any:
    return _one_line(file, lambda: opened(file.read_bytes()))


def _one_line(file: Path, call: Callable[[], T]) -> T:
    """Whatever damaged pictures raise becomes one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and transparency
            return call()
    except Exception as error:
        raise InputError(f"cannot read the image {str(file)!r}: {reason(error)}") from None


def _kinds() -> str:
    return ", ".join(sorted(SUFFIXES))
