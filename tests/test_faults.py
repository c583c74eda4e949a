"""Disks that are full or read-only: real file systems of a few hundred kilobytes, where the tests may mount them."""

import errno
import shutil
import subprocess
import urllib.request
from threading import Thread

import pytest
import sqlalchemy
from command_line import command

from budgetopt import api, result
from budgetopt.errors import BudgetoptError, InputError
from budgetopt.report.dashboard import server
from budgetopt.search import storage
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import load, records

pytestmark = pytest.mark.long

PROTOCOL = 'network = "convnet"\nwidth = 8\nsteps = 30\n'
DONE = ("complete", "stopped", "infeasible", "failed")


@pytest.fixture
def disk(tmp_path):
    """A small disk, and how to change it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True)

    if mount("size=1300k").returncode:
        pytest.skip("this user cannot mount a file system")

    def change(options):
        done = mount(f"remount,{options}")
        assert done.returncode == 0, done.stderr

    yield place, change
    subprocess.run(["umount", "-l", str(place)], check=True)


def recorded(run, copy):
    """From a copy: a disk with a file that is open for writing cannot become read-only."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("trials"))
    return records(load(RunFolder(copy).study))


def lines(error):
    return [line for line in error.splitlines() if line.strip()]


def test_a_search_survives_a_full_disk_and_is_read_from_one_that_nobody_can_write(disk, tmp_path):
    place, change = disk
    (tmp_path / "quick.toml").write_text(PROTOCOL)
    arguments = ("search", "--budget", "2kb", "--trials", 12, "--workers", 2, "--candidates", 2)
    arguments += ("--protocol", "quick.toml")
    full = command(*arguments, "--time-limit", "10min", "--out", "disk/run", folder=tmp_path, check=False)
    assert full.returncode == 1
    (line,) = lines(full.stderr)
    assert "cannot be written" in line
    assert "budgetopt resume disk/run" in line

    before = [r for r in recorded(place / "run", tmp_path / "before") if r.state in DONE]
    assert before
    change("ro")
    refused = command("resume", "disk/run", folder=tmp_path, check=False)
    assert refused.returncode == 1
    (line,) = lines(refused.stderr)
    assert "Read-only file system" in line

    change("rw,size=50m")
    resumed = command("resume", "disk/run", folder=tmp_path, check=False)
    assert resumed.returncode == 0, resumed.stderr
    after = recorded(place / "run", tmp_path / "after")
    assert [after[r.number] for r in before] == before
    assert sum(r.state in DONE for r in after) == 12
    assert not [r for r in after if r.state == "failed"]  # a full disk is no trial's fault

    change("ro")
    found = result.read(place / "run")
    assert "Pareto front" in command("resume", "disk/run", folder=tmp_path).stdout
    assert api.explain(place / "run").trials > 0
    assert 0 < api.evaluate(found.best.path).accuracy <= 1
    serving = server(RunFolder(place / "run"), 0)
    Thread(target=serving.serve_forever, daemon=True).start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{serving.server_port}/api/studies", timeout=600) as answer:
            assert b"budgetopt" in answer.read()
    finally:
        serving.shutdown()
        serving.server_close()


def test_a_new_run_on_a_full_disk_ends_in_one_line(disk, tmp_path):
    place, _ = disk
    with pytest.raises(OSError, match="No space"):
        (place / "filler").write_bytes(b"x" * 2 * 10**6)
    refused = command("search", "--budget", "2kb", "--trials", 2, "--out", "disk/run", folder=tmp_path, check=False)
    assert refused.returncode in (1, 2)
    (line,) = lines(refused.stderr)
    assert "disk/run" in line
    assert "No space left on device" in line


def test_what_a_full_disk_says_is_found_behind_other_errors():
    def raised(first, then):
        try:
            try:
                raise first
            except Exception as error:
                raise then from error
        except Exception as error:
            return error

    full, busy = OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EBUSY, "busy")
    database = sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("disk I/O error\nmore"))
    assert storage.unwritable(raised(full, RuntimeError("commit"))) == "No space left on device"
    assert storage.unwritable(raised(database, RuntimeError("commit"))) == "disk I/O error"
    assert storage.unwritable(raised(busy, RuntimeError("commit"))) is None
    with pytest.raises(BudgetoptError, match="No space left"), storage.explained("run"):
        raise full
    with pytest.raises(OSError, match="busy"), storage.explained("run"):
        raise busy
    with pytest.raises(InputError, match="as it was"), storage.explained("run"):
        raise InputError("as it was")
