"""Folders of picture files: FOLDER/train/CLASS/FILE and FOLDER/test/CLASS/FILE, or FOLDER/CLASS/FILE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from budgetopt.data.carving import carved, carving_note
from budgetopt.data.encoded import EncodedPictures, Part, Shard
from budgetopt.data.pictures import SUFFIXES
from budgetopt.errors import InputError

TEST_NAMES = ("test", "val", "valid", "validation")  # the first that is there is the test part
SHARD = 500  # files


@dataclass(frozen=True)
class Files(Shard):
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self) -> Iterator[bytes]:
        for path in self.paths:
            try:
                yield path.read_bytes()
            except OSError:
                yield b""

    def name(self, at: int) -> str:
        return str(self.paths[at])

    def taken(self, rows: np.ndarray) -> Files:
        return Files(tuple(self.paths[row] for row in rows))


class PictureFolder(EncodedPictures):
    """Classes are the subfolders of the training part, in the order of their names, or of the numbers that they are all
    called by."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        parts = [path / name for name in TEST_NAMES if (path / name).is_dir()]
        train = path / "train"
        self._train_folder: Path | None = train if train.is_dir() else (None if parts else path)
        self._test_folder: Path | None = parts[0] if parts else None
        if self._test_folder is None:
            self._said.append(carving_note(self._first))
        elif self._test_folder.name != "test":
            self._said.append(f"no folder test: {self._test_folder} is the test part")

    @property
    def _first(self) -> Path:
        first = self._train_folder or self._test_folder
        assert first is not None
        return first

    @property
    def _has_train(self) -> bool:
        return self._train_folder is not None

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        names = [folder.name for folder in _subfolders(self._first)]
        if len(names) < 2:
            raise InputError(f"{self._first}: {len(names)} subfolders; a class is a subfolder, and two are needed")
        return tuple(sorted(names, key=int) if all(map(_is_number, names)) else sorted(names))

    def _part(self, test: bool) -> Part:
        if test and self._test_folder is not None:
            return self._listed(self._test_folder, complete=False)
        if self._train_folder is None:
            raise InputError(f"{self.path}: no folder train")
        whole = self._listed(self._train_folder, complete=True)
        if self._test_folder is not None:
            return whole
        return whole.taken(carved(whole.y, self._train_folder)[test])

    def _listed(self, folder: Path, complete: bool) -> Part:
        """complete: every class must have a picture."""
        strange = sorted({found.name for found in _subfolders(folder)} - set(self.class_names))
        if strange:
            raise InputError(f"{folder}: class {strange[0]!r} is not in the training part {self._first}")
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            own = _pictures(folder / name) if (folder / name).is_dir() else []
            if complete and not own:
                deeper = [found for found in _subfolders(folder) if any(map(_pictures, _subfolders(found)))]
                hint = f": did you mean --dataset {str(deeper[0])!r}?" if deeper else ""
                raise InputError(f"{folder / name}: no pictures in it; known are {', '.join(sorted(SUFFIXES))}{hint}")
            files += own
            labels += [label] * len(own)
        if not files:
            raise InputError(f"{folder}: no pictures in its subfolders; known are {', '.join(sorted(SUFFIXES))}")
        shards = [Files(tuple(files[at : at + SHARD])) for at in range(0, len(files), SHARD)]
        return Part(shards, np.array(labels, np.int64), str(folder))


def is_picture_folder(path: Path) -> bool:
    """Whether a folder in it, or in one of those, holds a picture."""
    folders = _subfolders(path)
    return any(_holds_picture(one) or any(_holds_picture(two) for two in _subfolders(one)) for one in folders)


def _holds_picture(folder: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())


def _subfolders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        entry for entry in folder.iterdir() if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()
