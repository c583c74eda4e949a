"""Runs that are kept where a URL says: a plain folder, and a server that speaks the protocol of S3."""

import fcntl
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from command_line import command, quick_protocol, start, wait_for
from pyarrow import fs
from servers import answers, free_port

from budgetopt.errors import BudgetoptError, InputError
from budgetopt.search import mirror
from budgetopt.search.folder import RunFolder
from budgetopt.search.mirror import Mirror
from budgetopt.search.study import load, records

PAGE = (Path(__file__).parents[1] / "examples" / "guide" / "cluster.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def s3():
    """Query of the URLs of a server on loopback."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: answers(port), server)
        yield f"scheme=http&endpoint_override=127.0.0.1%3A{port}&allow_bucket_creation=true"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path):
    if request.param == "file":
        return (tmp_path / "élsewhere" / "my run").as_uri()
    query = request.getfixturevalue("s3")
    return f"s3://key:secret@bucket/{tmp_path.name}/my%20run?{query}"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Go over to a machine of another name, with a cache of its own."""

    def become(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches" / name))
        monkeypatch.setattr(mirror, "_host", lambda: name)

    become("first")
    return become


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def filled(held):
    """A working copy as a search leaves it, its study open and with writes that are in its log alone."""
    for path in ("config.json", "trials/00000-a.bopt", "trials/00000-a.png", "front/00-3B.bopt"):
        (held.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (held.folder / path).write_bytes(path.encode())
    for path in ("lock", "driver.json", ".config.json.7.partial", "checkpoints/a.pt"):
        (held.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (held.folder / path).write_bytes(b"stays here")
    study = sqlite3.connect(held.folder / "study.db")
    study.execute("PRAGMA journal_mode=WAL")
    study.execute("CREATE TABLE trials (number INTEGER)")
    add(study, 1)
    return study


def add(study, number):
    with study:
        study.execute("INSERT INTO trials VALUES (?)", (number,))


def numbers(folder):
    with closing(sqlite3.connect(folder / "study.db")) as study:
        return [number for (number,) in study.execute("SELECT number FROM trials")]


def test_another_machine_gets_all_that_belongs_to_the_run(url, machine):
    here = Mirror(url)
    with closing(filled(here)):
        here.push()
        machine("second")
        there = Mirror(url)
        there.pull()
    assert there.folder != here.folder
    assert there.folder.name == "my_run"
    assert sorted(content(there.folder)) == [
        "config.json", "front/00-3B.bopt", "mirror.json", "study.db", "trials/00000-a.bopt", "trials/00000-a.png",
    ]  # fmt: skip
    assert content(there.folder)["trials/00000-a.bopt"] == b"trials/00000-a.bopt"
    assert numbers(there.folder) == [1]


def test_the_later_state_wins_and_nothing_older_is_left(url, machine):
    here = Mirror(url)
    with closing(filled(here)) as study:
        here.push()
        machine("second")
        there = Mirror(url)
        there.pull()
        add(study, 2)
        (here.folder / "front" / "00-3B.bopt").unlink()
        (here.folder / "config.json").write_text("new")
        here.push()
    Mirror(url).pull()
    assert numbers(there.folder) == [1, 2]
    assert (there.folder / "config.json").read_text() == "new"
    with closing(sqlite3.connect(there.folder / "study.db")) as study:
        add(study, 3)
    there.pull()  # what is only here is not undone
    assert numbers(there.folder) == [1, 2, 3]
    there.push()
    machine("first")
    Mirror(url).pull()
    assert numbers(here.folder) == [1, 2, 3]


def test_only_what_changed_is_copied(url, machine, monkeypatch):
    here, sent = Mirror(url), []
    put = Mirror._put
    monkeypatch.setattr(Mirror, "_put", lambda self, path, content: (sent.append(path), put(self, path, content)))
    with closing(filled(here)) as study:
        here.push()
        assert sent[1:] == ["trials/00000-a.bopt", "trials/00000-a.png", "study.db", "front/00-3B.bopt", "mirror.json"]
        sent.clear()
        here.push()
        assert sent == ["mirror.json"]
        add(study, 2)
        here.push()
        assert sent[1:] == ["study.db", "mirror.json"]
        machine("second")
        there = Mirror(url)
        there.pull()
        sent.clear()
        there.push()
        assert sent == ["mirror.json"]  # what came from there is there
        machine("first")
        again = Mirror(url)  # another process of this machine
        again.pull()
        again.push()
        assert not [path for path in sent if path.startswith("trials/")]


def test_a_copy_that_was_cut_off_is_of_one_state(url, machine, monkeypatch):
    """A front without its trials would end the search of whoever goes on; a study names the files of its trials."""
    here, put, sent, held = Mirror(url), Mirror._put, [], []

    def killed(self, path, content):
        if len(sent) > len(held):
            raise KeyboardInterrupt
        sent.append(path)
        put(self, path, content)

    monkeypatch.setattr(Mirror, "_put", killed)
    with closing(filled(here)):
        (here.folder / "front.json").write_text("{}")
        for _ in range(5):  # killed one file later each time
            sent.clear()
            with pytest.raises(KeyboardInterrupt):
                Mirror(url).push()
            held.append(set(Mirror(url)._listed()))
    trials, study, front = {"trials/00000-a.bopt", "trials/00000-a.png"}, {"study.db"}, {"front.json"}
    assert [(trials <= there, study <= there, front <= there) for there in held] == [
        (False, False, False), (False, False, False), (True, False, False), (True, True, False), (True, True, True),
    ]  # fmt: skip


def test_one_driver_at_a_time_wherever_it_is(url, machine, monkeypatch):
    here = Mirror(url)
    with closing(filled(here)):
        with here.in_step():
            machine("second")
            there = Mirror(url)
            there.pull()
            with pytest.raises(InputError, match=r"a process on first is driving the run '.*my%20run': wait for it"):
                there.in_step().__enter__()
            monkeypatch.setattr(mirror, "STALE", 0.0)  # as if it had been killed a minute ago
            with there.in_step():
                pass
            monkeypatch.setattr(mirror, "STALE", 60.0)
            machine("first")
        machine("second")
        with there.in_step():  # the first has ended
            pass


def test_a_reader_leaves_the_working_copy_of_a_driver_alone(url, machine, monkeypatch):
    """What is at the URL may look later for an instant: the driver's own marker is written last."""
    here = Mirror(url)
    with closing(filled(here)) as study:
        here.push(driving=True)
        add(study, 2)
        (here.folder / "trials" / "00001-b.bopt").write_bytes(b"finished since")
        held = here._marker()
        here._put(mirror.MARKER, json.dumps(held | {"generation": held["generation"] + 1}).encode())
        with RunFolder(url).path.joinpath("lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            Mirror(url).pull()
        assert numbers(here.folder) == [1, 2]
        assert (here.folder / "trials" / "00001-b.bopt").exists()


def test_a_driver_that_was_cut_off_does_not_overwrite_its_successor(url, machine, monkeypatch):
    monkeypatch.setattr(mirror, "STALE", 0.0)
    here = Mirror(url)
    with closing(filled(here)) as study:
        here.push(driving=True)
        machine("second")
        there = Mirror(url)
        there.pull()
        with closing(sqlite3.connect(there.folder / "study.db")) as other:
            add(other, 100)
        there.push(driving=True)
        machine("first")
        add(study, 2)
        with pytest.raises(BudgetoptError, match=r"has gone on elsewhere \(second\)"):
            here.push(driving=True)
        machine("third")
        Mirror(url).pull()
        assert numbers(Mirror(url).folder) == [1, 100]


def test_what_changes_is_copied_while_the_run_goes_on(url, machine, monkeypatch):
    monkeypatch.setattr(mirror, "INTERVAL", 0.05)
    here = Mirror(url)
    with closing(filled(here)) as study, here.in_step():
        add(study, 2)
        machine("second")
        there = Mirror(url)
        end = time.monotonic() + 600
        while not (there.folder.exists() and numbers(there.folder) == [1, 2]) and time.monotonic() < end:
            there.pull()
            time.sleep(0.05)
        assert numbers(there.folder) == [1, 2]
        machine("first")


def test_a_failed_copy_loses_nothing_and_is_made_up_for(url, machine, monkeypatch):
    here = Mirror(url)
    with closing(filled(here)):
        with monkeypatch.context() as broken:
            broken.setattr(Mirror, "_put", lambda *_: (_ for _ in ()).throw(OSError("no route to host\nat all")))
            with pytest.raises(
                BudgetoptError, match=r"cannot be written: no route to host; everything is in '.*my_run'"
            ):
                here.push()
        here.push()
        machine("second")
        there = Mirror(url)
        there.pull()
    assert numbers(there.folder) == [1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("nope://bucket/run", r"cannot open 'nope://bucket/run': Unrecognized filesystem type"),
        ("s3://", r"'s3://' names no folder: write s3://BUCKET/RUN"),
        ("s3://bucket", r"'s3://bucket' names no folder"),
        ("s3://key:secret@bucket/", r"'s3://bucket' names no folder"),
    ],
)
def test_what_is_no_url_of_a_run(wrong, says):
    with pytest.raises(InputError, match=says) as caught:
        RunFolder(wrong)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_ends_in_one_line(machine):
    with pytest.raises(InputError, match=r"cannot read 's3://bucket/run': .*NETWORK_CONNECTION") as caught:
        RunFolder.existing("s3://key:secret@bucket/run?scheme=http&endpoint_override=127.0.0.1%3A1")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_are_no_run_are_left_alone(url, machine):
    files, root = fs.FileSystem.from_uri(url)
    files.create_dir(root, recursive=True)
    with files.open_output_stream(f"{root}/thesis.txt") as stream:
        stream.write(b"mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        Mirror(url).pull()
    with files.open_output_stream(f"{root}/mirror.json") as stream:
        stream.write(b"[]")
    with pytest.raises(InputError, match=r"cannot read mirror\.json of "):
        Mirror(url).pull()


def test_where_there_is_no_run_it_is_said_in_one_line(url, machine):
    with pytest.raises(InputError, match=r"no run folder at '.*my%20run'"):
        RunFolder.existing(url)
    assert not Mirror(url).folder.exists()


@pytest.mark.long
def test_a_killed_search_goes_on_on_another_machine(s3, tmp_path, monkeypatch):
    """With a study and files that came through the server alone; by the guide's own commands."""
    url = f"s3://key:secret@bucket/runs/first?{s3}"
    lines = re.findall(r"^budgetopt (.* s3://bucket/runs/first.*)$", PAGE, re.M)
    searching, resuming, picking = (
        [url if word == "s3://bucket/runs/first" else word for word in shlex.split(line)] for line in lines
    )
    files, root = fs.FileSystem.from_uri(url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    (tmp_path / "space.toml").write_text(
        'selection = ["random"]\ntransform = ["identity"]\n[ipc]\nmin = 1\nmax = 9\n'
        '[[quantizer]]\nfamily = "uniform"\nlevels = [2, 3]\nclipping = ["minmax"]\n'
    )
    search = start(
        *searching, "--trials", 4, "--workers", 1, "--objective", "coreset", "--space", "space.toml",
        "--protocol", quick_protocol(tmp_path), folder=tmp_path,
    )  # fmt: skip

    def copied():
        return files.get_file_info(fs.FileSelector(f"{root}/trials", allow_not_found=True))

    wait_for(copied, search)
    os.killpg(search.pid, signal.SIGKILL)
    search.communicate()
    before = [info.base_name for info in copied()]
    assert files.get_file_info(f"{root}/study.db").type == fs.FileType.File  # before any file of a trial
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    resumed = command(*resuming, folder=tmp_path)
    assert "secret" not in resumed.stdout + resumed.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "three"))
    shown = command("front", url, folder=tmp_path).stdout
    assert "Pareto front of digits within 30,000 bytes" in shown
    picked = command(*picking, folder=tmp_path).stdout
    (best,) = tmp_path.glob("first-10000B.bopt")
    assert f"{best.stat().st_size:,} bytes" in picked
    run = RunFolder.existing(url)
    ended = [r for r in records(load(run.study)) if r.state in ("complete", "stopped")]
    assert len({r.allocation for r in ended}) == len(ended) == 4
    assert set(before) <= {p.name for p in run.trials.iterdir()}
    assert best.read_bytes() in [p.read_bytes() for p in run.trials.glob("*.bopt")]
    marker = json.loads((run.path / "mirror.json").read_text())
    assert marker["driver"] is None
    left = {info.base_name for info in files.get_file_info(fs.FileSelector(root, recursive=True))}
    assert not left & {"lock", "driver.json", "checkpoints"}
