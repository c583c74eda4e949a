"""The run folder: where things lie, and one driver at a time."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetopt.errors import InputError
from budgetopt.option_text import resume_command
from budgetopt.search.atomic import write_atomically
from budgetopt.search.config import SearchConfig
from budgetopt.search.mirror import LOCK, MARKER, Mirror, is_url
from budgetopt.search.storage import Place, Remote

if TYPE_CHECKING:
    from budgetopt.representation import InitialSet


class RunFolder:
    """Paths inside a run folder, or inside the working copy of one that is kept where a URL says (`mirror`). Nothing is
    read or written by the constructor."""

    def __init__(self, path: str | Path) -> None:
        self.mirror = Mirror(str(path)) if is_url(path) else None
        self.path = self.mirror.folder if self.mirror else Path(path)
        self.config, self.storage = self.path / "config.json", self.path / "storage.json"
        self.versions = self.path / "versions.json"
        self.trials, self.artifacts, self.front = self.path / "trials", self.path / "artifacts", self.path / "front"
        self.checkpoints = self.path / "checkpoints"  # of trials that run or were interrupted: one each, no others
        self.front_json, self.front_csv = self.path / "front.json", self.path / "front.csv"
        self.front_png, self.best_png = self.path / "front.png", self.path / "best.png"
        self.init, self.warm_start = self.path / "init.npz", self.path / "warm_start.json"
        self.best = self.path / "best.bopt"
        self.driver = self.path / "driver.json"  # where the Ray of the process that drives the run listens
        self.test_evaluations = self.path / "test_evaluations.jsonl"

    @property
    def study(self) -> Place:
        """The folder's own SQLite file, unless the run was given another storage. Raises `InputError`."""
        return Remote.read(self.storage) if self.storage.exists() else self.path / "study.db"

    def __str__(self) -> str:
        return self.mirror.name if self.mirror else str(self.path)

    @classmethod
    def existing(cls, path: str | Path) -> RunFolder:
        folder = cls(path)
        if folder.mirror:
            folder.mirror.pull()
        if not folder.path.is_dir():
            raise InputError(f"no run folder at {str(folder)!r}")
        return folder

    def prepare(self, config: SearchConfig, pull: bool = True) -> bool:
        """Check the folder for a new run; → True if it already holds this very run, which then goes on. pull: look at
        the URL first, where there is one.

        Raises `InputError` for a folder that holds a different run or other files; writes nothing to it.
        """
        if self.mirror and pull:
            self.mirror.pull()
        if not self.path.exists():
            return False
        if not self.path.is_dir():
            raise InputError(f"--out {str(self)!r} is not a folder")
        if {entry.name for entry in self.path.iterdir()} <= {LOCK, MARKER}:  # of a start that was refused
            return False
        if not self.config.exists():
            raise InputError(f"--out {str(self)!r} is not empty and holds no run: choose another folder")
        held = SearchConfig.load(self.config)
        if held.identity != config.identity:
            raise InputError(
                f"--out {str(self)!r} holds a different run ({held.dataset}, {held.budget:,} bytes, seed {held.seed}): "
                f"choose another folder, or go on with it by {resume_command(self)}"
            )
        return True

    def make(self) -> None:
        """The empty folder. Raises `InputError`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run folder {str(self)!r}: {error.strerror}") from None

    def create(
        self,
        config: SearchConfig,
        versions: dict[str, Any],
        init: InitialSet | None = None,
        storage: Remote | None = None,
        warm_start: str | None = None,
    ) -> None:
        try:
            for folder in (self.trials, self.artifacts):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run folder {str(self)!r}: {error.strerror}") from None
        if init is not None:
            buffer = io.BytesIO()
            y = np.repeat(np.arange(len(init.counts)), init.counts)
            np.savez_compressed(buffer, x=init.x, y=y)
            write_atomically(self.init, buffer.getvalue())
        if storage is not None:
            write_atomically(self.storage, storage.to_json().encode())
        if warm_start is not None:
            write_atomically(self.warm_start, warm_start.encode())
        write_atomically(self.versions, (json.dumps(versions, indent=2) + "\n").encode())
        write_atomically(self.config, (config.model_dump_json(indent=2) + "\n").encode())

    def init_copy(self, config: SearchConfig) -> str | None:
        """The run's own copy of the set that every method starts from."""
        return None if config.init is None else str(self.init)

    @classmethod
    def enclosing(cls, file: Path) -> RunFolder | None:
        """The run folder that `file` lies in, at any depth."""
        for parent in file.resolve().parents:
            if (parent / "config.json").is_file() and any(
                (parent / name).is_file() for name in ("study.db", "storage.json")
            ):
                return cls(parent)
        return None

    def dataset(self) -> tuple[str, str | None, str | None]:
        """(dataset, data root, label column) of the run."""
        try:
            table = json.loads(self.config.read_text(encoding="utf-8"))
            return table["dataset"], table.get("data_root"), table.get("label")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read {str(self.config)!r}: {error}") from None

    def count_test_evaluation(self, file: Path) -> None:
        """Looks at the test split after the end of the run are counted too."""
        with suppress(OSError), open(self.test_evaluations, "a", encoding="utf-8") as stream:  # may be read-only
            stream.write(json.dumps({"file": file.name}) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process drives a run; the lock dies with it."""
        descriptor = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"another process is driving the run {str(self)!r}: wait for it or stop it, or lend it the cores "
                    f"of this machine with {resume_command(self, ' --join')}"
                ) from None
            with self.mirror.in_step() if self.mirror else nullcontext():
                yield
        finally:
            os.close(descriptor)


def dataset_of(
    file: Path, dataset: str | None, data_root: str | Path | None, label: str | None
) -> tuple[str, str | Path | None, str | None]:
    """(dataset, data root, label column): as given, by default those of the run folder around `file`. Raises
    `InputError` where there is neither."""
    if dataset is not None:
        return dataset, data_root, label
    run = RunFolder.enclosing(file)
    if run is None:
        raise InputError(f"{str(file)!r} lies in no run folder: name the dataset with --dataset")
    dataset, root, its_label = run.dataset()
    return dataset, data_root or root, label or its_label
