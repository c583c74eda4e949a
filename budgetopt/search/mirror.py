"""A run that is kept where a URL says: `--out s3://BUCKET/RUN`, or another of the file systems that pyarrow opens.

A run works in a folder of this machine, in the user's cache; what changes in it is copied to the URL while it goes on
and when it ends: files of trials, then the study, which names them, then the front, which is of trials in the study.
Whoever opens the URL elsewhere gets a copy of it first. Checkpoints of unfinished trials, locks and the address of the
driver, which holds a password, stay here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import socket
import sqlite3
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from budgetopt import cache_folder
from budgetopt.errors import BudgetoptError, InputError, first_line
from budgetopt.option_text import resume_command
from budgetopt.search.atomic import write_atomically

INTERVAL = 10.0  # seconds between two copies while a run goes on
STALE = 6 * INTERVAL  # a driver that has not said so for as long is gone
MARKER = "mirror.json"
LOCK = "lock"  # of the process that drives the run in the working copy
STUDY = "study.db"
NAMES = r"lock|driver\.json|mirror\.json|study\.db-(wal|shm|journal)|\..*\.partial(-\w+)?"  # of files that stay here
FRONT = re.compile(r"^(front|best)\b")  # written when the search has ended
HERE = re.compile(rf"(^|/)({NAMES})$|^checkpoints/")


def is_url(path: str | Path) -> bool:
    return isinstance(path, str) and "://" in path


class Mirror:
    """`url` and its working copy `folder` on this machine. Nothing is read or written by the constructor, which raises
    `InputError` for a URL that pyarrow does not open."""

    def __init__(self, url: str) -> None:
        from pyarrow import fs

        parts = urllib.parse.urlsplit(url)
        # keys and settings of the connection are no part of the name
        host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self.name = f"{parts.scheme}://{host}{path}"
        last = re.sub(r"[^\w.-]", "_", urllib.parse.unquote(path.rpartition("/")[2]))
        if not last or not (host or parts.scheme == "file"):
            raise InputError(
                f"{self.name!r} names no folder: write s3://BUCKET/RUN, gs://BUCKET/RUN or hdfs://HOST/RUN"
            )
        try:
            self._files, self._root = fs.FileSystem.from_uri(url)
        except (OSError, ValueError, NotImplementedError) as error:
            raise InputError(f"cannot open {self.name!r}: {first_line(error)}") from None
        key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        self.folder = cache_folder.part(cache_folder.RUNS) / key / last
        self._sent: dict[str, tuple[int, int]] = {}  # path in the folder → size and time of change of what is there
        self._made: set[str] = set()
        self._pushing = threading.Lock()

    # --- from there ----------------------------------------------------------------------------------------------

    def pull(self) -> None:
        """Bring the working copy up to what is at the URL, unless this machine has the later state, or a process that
        works in it. Raises `InputError` where the URL cannot be read, or holds files but no run."""
        with self._idle() as idle:
            if idle:
                self._pull()

    @contextmanager
    def _idle(self) -> Iterator[bool]:
        """Whether nobody drives the run in the working copy; until the end nobody begins to."""
        if not self.folder.is_dir():
            yield True
            return
        with open(self.folder / LOCK, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True

    def _pull(self) -> None:
        marker = self._marker()  # before the list: what comes in between is then fetched once more
        listed = self._listed()
        if marker is None and listed:
            raise InputError(f"{self.name!r} is not empty and holds no run: choose another folder")
        if marker is None or self._generation() >= marker["generation"]:
            self._sent = {path: stamp for path, stamp in self._local().items() if _is_there(path, stamp[0], listed)}
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._local():
            if path not in listed:
                (self.folder / path).unlink()
        for extra in ("-wal", "-shm"):  # of an older study
            (self.folder / f"{STUDY}{extra}").unlink(missing_ok=True)
        for path, size in listed.items():
            target = self.folder / path
            if not (target.exists() and _is_there(path, target.stat().st_size, {path: size})):
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(target, self._read(path))
        write_atomically(self.folder / MARKER, json.dumps(marker).encode())
        self._sent = self._local()

    def _listed(self) -> dict[str, int]:
        """Files at the URL, by path below it → size."""
        from pyarrow import fs

        try:
            found = self._files.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        except OSError as error:
            raise InputError(f"cannot read {self.name!r}: {first_line(error)}") from None
        paths = {i.path[len(self._root.rstrip("/")) + 1 :]: i.size for i in found if i.type == fs.FileType.File}
        for path in paths:
            if path.startswith(("/", "..")) or "/../" in path:
                raise InputError(f"{self.name!r} holds a file {path!r}: no name of a run's files")
        return {path: size for path, size in paths.items() if not HERE.search(path)}

    def _read(self, path: str) -> bytes:
        try:
            with self._files.open_input_stream(f"{self._root}/{path}") as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise InputError(f"cannot read {self.name}/{path}: {first_line(error)}") from None
        return content

    def _marker(self) -> dict[str, Any] | None:
        """What the last driver left at the URL."""
        from pyarrow import fs

        try:
            if self._files.get_file_info(f"{self._root}/{MARKER}").type != fs.FileType.File:
                return None
        except OSError as error:
            raise InputError(f"cannot read {self.name!r}: {first_line(error)}") from None
        return _parsed(self._read(MARKER), self.name)

    def _generation(self) -> int:
        """Of the working copy, -1 where there is none."""
        held = self.folder / MARKER
        return int(_parsed(held.read_bytes(), str(held))["generation"]) if held.exists() else -1

    # --- to there ------------------------------------------------------------------------------------------------

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """While this process drives the run: what it writes is copied every `INTERVAL` seconds, and at the end. Raises
        `InputError` where a driver on another machine is at work, `BudgetoptError` where the last copy fails."""
        marker = self._marker()
        if marker and marker["driver"] not in (None, _host()) and time.time() - marker["time"] < STALE:
            raise InputError(
                f"a process on {marker['driver']} is driving the run {self.name!r}: wait for it, or, if it was killed, "
                f"for {STALE:.0f} s"
            )
        self.push(driving=True)
        ended = threading.Event()

        def copy() -> None:
            while not ended.wait(INTERVAL):
                with suppress(BudgetoptError):  # tried again, and at the end told
                    self.push(driving=True)

        thread = threading.Thread(target=copy, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.push()

    def push(self, driving: bool = False) -> None:
        """Copy what has changed. Raises `BudgetoptError` where that fails: the working copy holds everything."""
        with self._pushing:
            self._check_driver()
            try:
                changed = {path: stamp for path, stamp in self._local().items() if self._sent.get(path) != stamp}
                for path in sorted(changed, key=lambda path: (bool(FRONT.match(path)), path == STUDY, path)):
                    self._send(path)
                    self._sent[path] = changed[path]
                marker = {"generation": self._generation() + bool(changed), "driver": _host() if driving else None}
                content = json.dumps({**marker, "time": time.time()}).encode()
                write_atomically(self.folder / MARKER, content)  # first: a working copy is never taken for older
                self._put(MARKER, content)
            except (OSError, sqlite3.Error) as error:
                raise BudgetoptError(
                    f"{self.name!r} cannot be written: {first_line(error)}; everything is in {str(self.folder)!r}: "
                    f"{resume_command(self.name)} on this machine copies it"
                ) from None

    def _check_driver(self) -> None:
        """Raise `BudgetoptError` where the run has gone on elsewhere, since this process could not be heard."""
        try:
            marker = self._marker()
        except InputError as error:
            raise BudgetoptError(str(error)) from None
        if marker and marker["generation"] > self._generation():
            raise BudgetoptError(
                f"the run {self.name!r} has gone on elsewhere ({marker['driver'] or 'it has ended there'}) while this "
                f"process could not reach it: what it did since lies in {str(self.folder)!r} alone"
            )

    def _local(self) -> dict[str, tuple[int, int]]:
        """Files of the working copy that belong at the URL, with size and time of change; of the study also that of
        the log of its latest writes."""
        found = {}
        for file in self.folder.rglob("*"):
            path = file.relative_to(self.folder).as_posix()
            with suppress(FileNotFoundError):  # a checkpoint or partial file that has just gone
                if file.is_file() and not HERE.search(path):
                    found[path] = _stamp(file)
        log = self.folder / f"{STUDY}-wal"
        if STUDY in found and log.exists():
            found[STUDY] = max(found[STUDY], _stamp(log), key=lambda stamp: stamp[1])
        return found

    def _send(self, path: str) -> None:
        if path != STUDY:
            return self._put(path, (self.folder / path).read_bytes())
        with tempfile.TemporaryDirectory() as scratch:  # one state of a database that is being written
            copy = Path(scratch) / STUDY
            with (
                closing(sqlite3.connect(self.folder / STUDY, timeout=60)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                source.backup(target)
            return self._put(path, copy.read_bytes())

    def _put(self, path: str, content: bytes) -> None:
        target = f"{self._root}/{path}"
        parent = target.rpartition("/")[0]
        if parent not in self._made:
            self._files.create_dir(parent, recursive=True)
            self._made.add(parent)
        with self._files.open_output_stream(target) as stream:
            stream.write(content)


def _is_there(path: str, size: int, listed: Mapping[str, int]) -> bool:
    """Whether the same file is at the URL: of those of trials, which never change, its size says so."""
    return path.startswith("trials/") and listed.get(path) == size


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        table = json.loads(content)
        return {"generation": int(table["generation"]), "driver": table["driver"], "time": float(table["time"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {MARKER} of {where!r}: {first_line(error)}") from None


def _host() -> str:
    return socket.gethostname()
