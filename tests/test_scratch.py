"""Temporary folders."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from budgetopt import scratch
from budgetopt.errors import InputError


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A temporary folder of the test's own, whose name is too long for sockets, and one in place of /tmp."""
    (tmp_path / "short").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(scratch, "SHORT", tmp_path / "short")
    return tmp_path


def gone():
    """Id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_folders_of_processes_that_are_gone_are_removed_wherever_they_are(own):
    for where in ("short", "temporary"):
        (own / where / f"bo-{gone()}-{scratch._whose()}-a" / "b").mkdir(parents=True)
        (own / where / f"bo-{gone()}-another-a").mkdir()  # of another container or machine: the id says nothing here
        (own / where / f"bo-{os.getpid()}-{scratch._whose()}-a").mkdir()
        (own / where / f"bo-x-{scratch._whose()}-a").mkdir()
    made = scratch.folder()
    assert made.parent == own / "temporary"
    kept = [f"bo-{os.getpid()}-{scratch._whose()}-a", f"bo-x-{scratch._whose()}-a"]
    for where, more in (("short", []), ("temporary", [made.name])):
        found = [p.name for p in (own / where).iterdir()]
        assert sorted(name for name in found if "another" not in name) == sorted([*kept, *more])
        assert len([name for name in found if "another" in name]) == 1


def test_sockets_lie_where_names_are_short(own, monkeypatch):
    assert scratch.folder(sockets=True).parent == own / "short"
    monkeypatch.setattr(scratch, "MOST", 1000)
    assert scratch.folder(sockets=True).parent == own / "temporary"


def test_where_no_name_is_short_one_line_says_so(own, monkeypatch):
    monkeypatch.setattr(scratch, "SHORT", Path("/nowhere"))
    with pytest.raises(InputError, match=r"temporary' has too long a name for Ray's sockets: set TMPDIR"):
        scratch.folder(sockets=True)


def test_names_of_the_sockets_fit():
    """As Ray 2 makes them: the longest allowed is 103 bytes on macOS, 107 on Linux."""
    folder = Path("/" + "x" * (scratch.MOST - 1)) / "bo-4194304-0a1b-abcdefgh"
    assert len(str(folder / "session_2026-11-23_13-17-20_339325_4194304" / "sockets" / "plasma_store")) <= 103
