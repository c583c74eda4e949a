"""Temporary folders of this process. Whoever is killed leaves its own behind: the next one removes them."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import tempfile
from functools import cache
from pathlib import Path

from budgetopt.errors import InputError

PREFIX = "bo-"  # followed by the process id, and by whose ids these are
SHORT = Path("/tmp")
MOST = 14  # characters of the temporary folder that leave room for the names of Ray's sockets (103 on macOS)


def folder(sockets: bool = False) -> Path:
    """A new folder in the temporary folder (TMPDIR), which whoever asks for it removes; for `sockets` in `SHORT` where
    that one's name is too long for them, as it is on macOS. Raises `InputError` where neither will do."""
    remove_orphans()
    where = Path(tempfile.gettempdir())
    if sockets and len(str(where)) > MOST:
        if not (SHORT.is_dir() and os.access(SHORT, os.W_OK)):
            raise InputError(
                f"the temporary folder {str(where)!r} has too long a name for Ray's sockets: set TMPDIR to one of at "
                f"most {MOST} characters"
            )
        where = SHORT
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_whose()}-", dir=where))


@cache
def _whose() -> str:
    """Where process ids are those of this process: containers and machines may share a temporary folder."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:4]


def remove_orphans() -> None:
    """Remove the folders of processes that are gone."""
    for where in {Path(tempfile.gettempdir()), SHORT}:
        for found in where.glob(f"{PREFIX}*-{_whose()}-*"):
            owner = found.name.removeprefix(PREFIX).split("-")[0]
            try:
                if owner.isdigit() and found.stat().st_uid == os.getuid():
                    os.kill(int(owner), 0)
            except ProcessLookupError:
                shutil.rmtree(found, ignore_errors=True)
            except OSError:
                pass  # alive and somebody else's, or just removed by another process
