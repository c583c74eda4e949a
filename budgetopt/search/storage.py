"""Where a run's Optuna study lies: in the run folder (SQLite, the default), or where a URL says."""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from budgetopt.errors import BudgetoptError, InputError
from budgetopt.option_text import resume_command

NAME = "budgetopt"  # of the study in a run folder's own file
ENVIRONMENT = "BUDGETOPT_STORAGE"  # a URL with its password, which is never written to a run folder
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}  # where the URL names none
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of a disk that takes no more
KINDS = "sqlite:///FILE, journal:///FILE, postgresql://USER@HOST/DATABASE or mysql://USER@HOST/DATABASE"


@dataclass(frozen=True)
class Remote:
    """A study of its own name in a storage that others may share. `url` as `parse` returns it."""

    url: str
    study: str

    @property
    def public(self) -> str:
        """The URL without its password."""
        return sqlalchemy.make_url(self.url).render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """Of a journal or an SQLite file."""
        url = sqlalchemy.make_url(self.url)
        return Path(url.database or "") if url.drivername in ("journal", "sqlite") else None

    def to_json(self) -> str:
        return json.dumps({"url": self.public, "study": self.study}, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Remote:
        """Inverse of `to_json`; the password comes from the environment. Raises `InputError`."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            found = cls(str(table["url"]), str(table["study"]))
            url = sqlalchemy.make_url(found.url)
            hidden = url.password == "***"
        except (OSError, ValueError, KeyError, TypeError, sqlalchemy.exc.ArgumentError) as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from None
        given = os.environ.get(ENVIRONMENT)
        if given and cls(parse(given), found.study).public == found.url:
            return cls(parse(given), found.study)
        strange = sorted(set(url.query) - QUERY)
        if strange:  # the folder may be a stranger's
            raise InputError(
                f"{str(path)!r} asks for {strange[0]!r} of the database: put the whole URL into {ENVIRONMENT} if you "
                "mean it"
            )
        if hidden:
            raise InputError(f"the study is in {found.url}: put this URL with its password into {ENVIRONMENT}")
        return found


QUERY = {"sslmode", "sslrootcert", "sslcert", "sslkey", "ssl_ca", "charset", "connect_timeout"}  # harmless options
Place = Path | Remote  # a Path: a run folder's own SQLite file


def readable(place: Place) -> Place:
    """Where to read from: an SQLite file in a read-only folder, where WAL mode cannot work, as a copy that lasts as
    long as this process."""
    if not isinstance(place, Path) or os.access(place.parent, os.W_OK):
        return place
    file = place
    folder = Path(tempfile.mkdtemp(prefix="budgetopt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for part in (file, file.with_name(f"{file.name}-wal")):  # what a killed process left is in the second
        if part.exists():
            shutil.copyfile(part, folder / part.name)
    return folder / file.name


def parse(url: str) -> str:
    """The URL with the driver that it needs and an absolute path. Raises `InputError` for what is no storage."""
    try:
        made = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise InputError(f"{url!r} is no URL of a storage: write {KINDS}") from None
    kind = made.get_backend_name() if made.drivername != "journal" else "journal"
    if kind not in ("sqlite", "journal", *DRIVERS):
        raise InputError(f"unknown storage {kind!r} in {made.render_as_string()!r}: write {KINDS}")
    if not made.database or made.database == ":memory:":
        raise InputError(f"the storage {made.render_as_string()!r} names no file or database: write {KINDS}")
    if kind in DRIVERS:
        driver = made.drivername if "+" in made.drivername else f"{kind}+{DRIVERS[kind]}"
        return made.set(drivername=driver).render_as_string(hide_password=False)
    file = Path(made.database).absolute()
    if not file.parent.is_dir():
        raise InputError(f"cannot keep a study in {str(file)!r}: no such folder")
    return made.set(database=str(file)).render_as_string()


def opened(place: Place) -> BaseStorage:
    """Raises `InputError` where a database cannot be reached or its driver is missing."""
    if isinstance(place, Path):
        return _sqlite(sqlalchemy.URL.create("sqlite", database=str(place)), place)
    url = sqlalchemy.make_url(place.url)
    if url.drivername == "journal":
        return JournalStorage(WholeLines(str(place.file)))
    if url.get_backend_name() == "sqlite":
        assert place.file is not None
        return _sqlite(url, place.file)
    try:
        return RDBStorage(place.url, engine_kwargs={"pool_pre_ping": True})
    except ImportError:
        extra = url.get_backend_name()
        raise InputError(f"{place.public} needs a driver: pip install 'budgetopt[{extra}]'") from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise InputError(f"cannot reach {place.public}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """One line of what a database said."""
    lines = [line.strip() for line in str(getattr(error, "orig", None) or error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def unwritable(error: BaseException | None) -> str | None:
    """Why a disk or database takes no more, where that is what `error` comes from; None for any other error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.strerror
        if isinstance(error, sqlalchemy.exc.OperationalError):
            return reason(error)
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__  # Ray keeps its own
    return None


def cannot_be_written(run: str, why: str) -> BudgetoptError:
    return BudgetoptError(
        f"the run {run!r} cannot be written: {why}; what is finished is kept: when there is room, go on with "
        f"{resume_command(run)}"
    )


@contextmanager
def explained(run: str) -> Iterator[None]:
    """Raise `BudgetoptError` in place of what a disk that is full, or a folder that became read-only, ends in."""
    try:
        yield
    except BudgetoptError:
        raise
    except Exception as error:
        why = unwritable(error)
        if why is None:
            raise
        raise cannot_be_written(run, why) from error


def _sqlite(url: sqlalchemy.URL, path: Path) -> RDBStorage:
    """SQLite in WAL mode: readers are not disturbed, a write costs a quarter. NORMAL loses nothing on `kill -9`."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    text = url.render_as_string(hide_password=False)  # escapes % and ? in folder names
    made = RDBStorage(text, engine_kwargs={"connect_args": {"timeout": 60}})

    @sqlalchemy.event.listens_for(made.engine, "connect")
    def _normal(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    made.engine.dispose()  # connections made before the listener
    return made


class WholeLines(JournalFileBackend):
    """A journal that holds whole lines alone: Optuna's is unreadable once a line was cut, by a full disk say, and
    another was written after it. There is one writer."""

    def __init__(self, file_path: str) -> None:
        super().__init__(file_path)
        self._path = Path(file_path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        before = self._path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, before)
            raise


def mend(place: Place) -> None:
    """Drop the last line of a journal where a killed process left it unfinished. For the driver of the run alone."""
    if not isinstance(place, Remote) or not place.url.startswith("journal:"):
        return
    assert place.file is not None
    try:
        content = place.file.read_bytes()
    except OSError:
        return
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(place.file, whole)


def name_of(place: Place) -> str:
    return place.study if isinstance(place, Remote) else NAME


def holds_studies(file: Path) -> bool:
    """Whether the SQLite file has Optuna's tables: opening it as a storage would make them. Raises
    `sqlite3.DatabaseError` for what is no database."""
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone() is not None


def exists(place: Place) -> bool:
    """Whether there is a study, or a file that should hold one."""
    if isinstance(place, Path):
        return place.exists()
    file = place.file
    if file is not None and not file.exists():
        return False
    try:
        if file is not None and sqlalchemy.make_url(place.url).drivername == "sqlite" and not holds_studies(file):
            return False
    except sqlite3.DatabaseError as error:
        raise InputError(f"cannot read {place.public}: {error}") from None
    return place.study in optuna.get_all_study_names(opened(place))
