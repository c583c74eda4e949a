"""Where a study lies: one contract for every kind of storage, PostgreSQL with a real server."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search import storage
from budgetopt.search import study as studies
from budgetopt.search.folder import RunFolder
from budgetopt.search.storage import Remote

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")
ALLOCATION = Allocation(ipc=3, levels=4)
LAST = {"step": 100, "bytes": 310, "accuracy": 0.8, "error": 0.01, "file": "trials/a.bopt"}


@pytest.fixture(params=["own", "sqlite", "journal", "postgresql", "mysql"])
def place(request, tmp_path):
    if request.param == "own":
        return tmp_path / "study.db"
    if request.param in ("postgresql", "mysql"):
        url = request.getfixturevalue(request.param)
    else:
        url = f"{request.param}:///{tmp_path}/shared.file"
    return Remote(storage.parse(url), f"run-{tmp_path.name}")


def filled(place):
    study = studies.create(place)
    trial = study.ask()
    trial.suggest_int("ipc", 1, 9)
    trial.set_user_attr("allocation", ALLOCATION.to_dict())
    trial.set_user_attr("rung/0", LAST)
    study.tell(trial, studies.values(310, 0.8))
    study.set_user_attr("text", "α" * 5000)
    return study


# --- the contract ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_by_another_process(place):
    study = filled(place)
    program = f"""
        from pathlib import PosixPath
        from budgetopt.search import study as studies
        from budgetopt.search.storage import Remote
        found = studies.load({place!r})
        assert found.user_attrs["text"] == "α" * 5000
        print(studies.records(found))
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(studies.records(study))
    assert studies.load(place).directions == studies.DIRECTIONS


def test_a_place_without_a_study_is_named_and_left_alone(place, tmp_path):
    assert not storage.exists(place)
    before = list(tmp_path.iterdir())
    with pytest.raises(InputError, match="study"):
        studies.load(place)
    assert list(tmp_path.iterdir()) == before
    filled(place)
    assert storage.exists(place)


def test_a_killed_writer_loses_nothing_that_it_told(place):
    """`kill -9` in the middle of a stream of trials: all that were told are there, and the study takes more."""
    program = f"""
        import sys
        from pathlib import PosixPath
        from budgetopt.search import study as studies
        from budgetopt.search.storage import Remote
        study = studies.create({place!r})
        while True:
            trial = study.ask()
            trial.suggest_int("ipc", 1, 9)
            study.tell(trial, [1.0, 0.5])
            print(trial.number, flush=True)
    """
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    told = [int(writer.stdout.readline()) for _ in range(12)]
    writer.send_signal(signal.SIGKILL)
    told += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    writer.stdout.close()
    storage.mend(place)
    study = studies.load(place)
    assert [t.number for t in study.trials if t.state.name == "COMPLETE"][: len(told)] == told
    count = len(study.trials)
    study.tell(study.ask(), [1.0, 0.5])
    assert len(studies.load(place).trials) == count + 1


def test_two_runs_share_a_storage(place):
    if isinstance(place, Path):
        pytest.skip("a run folder's own file holds one study")
    filled(place)
    other = Remote(place.url, place.study + "-other")
    assert studies.create(other).trials == []
    assert len(studies.load(place).trials) == 1


# --- a run folder and its storage ------------------------------------------------------------------------------------


def test_a_password_is_never_written(tmp_path, monkeypatch):
    url = storage.parse("postgresql://me:s3cret@db.example/runs")
    folder = RunFolder(tmp_path)
    folder.storage.write_text(Remote(url, "one").to_json())
    assert "s3cret" not in folder.storage.read_text()
    with pytest.raises(InputError, match=r"me:\*\*\*@db\.example/runs.*BUDGETOPT_STORAGE"):
        _ = folder.study
    monkeypatch.setenv("BUDGETOPT_STORAGE", "postgresql://me:s3cret@db.example/runs")
    assert folder.study == Remote(url, "one")
    monkeypatch.setenv("BUDGETOPT_STORAGE", "postgresql://me:s3cret@elsewhere.example/runs")
    with pytest.raises(InputError, match="BUDGETOPT_STORAGE"):
        _ = folder.study


def test_a_strangers_folder_does_not_set_options_of_a_database(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    url = storage.parse("mysql://me@db.example/runs?local_infile=1")
    folder.storage.write_text(Remote(url, "one").to_json())
    with pytest.raises(InputError, match=r"'local_infile' of the database: put the whole URL into BUDGETOPT_STORAGE"):
        _ = folder.study
    monkeypatch.setenv("BUDGETOPT_STORAGE", "mysql://me@db.example/runs?local_infile=1")
    assert folder.study == Remote(url, "one")
    monkeypatch.delenv("BUDGETOPT_STORAGE")
    harmless = storage.parse("postgresql://me@db.example/runs?sslmode=require")
    folder.storage.write_text(Remote(harmless, "one").to_json())
    assert folder.study == Remote(harmless, "one")


def test_a_database_of_something_else_is_left_alone(tmp_path):
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE mine (number INTEGER)")
    before = other.read_bytes()
    with pytest.raises(InputError, match=r"there is no study|without a readable study"):
        studies.load(Remote(storage.parse(f"sqlite:///{other}"), "one"))
    assert other.read_bytes() == before


def test_without_a_password_nothing_is_asked(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.study == tmp_path / "study.db"
    place = Remote(storage.parse(f"journal:///{tmp_path}/j.log"), "one")
    folder.storage.write_text(place.to_json())
    assert folder.study == place


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "no URL"),
        ("mongodb://host/db", "unknown storage 'mongodb'"),
        ("sqlite://", "no file"),
        ("sqlite:///:memory:", "no file"),
        ("postgresql://me:s3cret@host", "no file or database"),
        ("journal:////nowhere/at/all/j.log", "no such folder"),
    ],
)
def test_what_is_no_storage_is_told_in_one_line(url, told):
    with pytest.raises(InputError, match=told) as raised:
        storage.parse(url)
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_server_that_does_not_answer_is_told_in_one_line():
    with pytest.raises(InputError, match="cannot reach postgresql") as raised:
        storage.opened(Remote(storage.parse("postgresql://me:s3cret@127.0.0.1:1/runs"), "one"))
    assert "s3cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


# --- journals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path):
    return Remote(storage.parse(f"journal:///{tmp_path}/j.log"), "one")


def test_a_torn_last_line_is_dropped_at_every_length(journal):
    study = filled(journal)
    whole = journal.file.read_bytes()
    study.tell(study.ask(), [2.0, 0.5])
    more = journal.file.read_bytes()
    for end in range(len(whole), len(more)):
        journal.file.write_bytes(more[:end])
        storage.mend(journal)
        kept = journal.file.read_bytes()
        assert kept == more[: more[:end].rfind(b"\n") + 1]
        assert len(kept) >= len(whole)
    again = studies.load(journal)
    again.tell(again.ask(), [3.0, 0.5])
    assert studies.load(journal).trials[0].values == studies.values(310, 0.8)


def test_a_write_that_fails_half_way_leaves_whole_lines(journal, monkeypatch):
    """A full disk: what went before stays readable, and so does what comes after."""
    study = filled(journal)
    before = journal.file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            study.set_user_attr("lost", 1)
    assert journal.file.read_bytes() == before
    study.set_user_attr("kept", 2)
    assert studies.load(journal).user_attrs["kept"] == 2
    assert "lost" not in studies.load(journal).user_attrs
