"""Temporary folders of this process. Whoever is killed leaves its own behind: the next one removes them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from budgetopt.errors import InputError

PREFIX = "bo-"  # followed by the process id
SHORT = Path("/tmp")
MOST = 19  # characters of the temporary folder that leave room for the names of Ray's sockets (103 on macOS)


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
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=where))


def remove_orphans() -> None:
    """Remove the folders of processes that are gone."""
    for where in {Path(tempfile.gettempdir()), SHORT}:
        for found in where.glob(f"{PREFIX}*-*"):
            owner = found.name.removeprefix(PREFIX).split("-")[0]
            try:
                if owner.isdigit() and found.stat().st_uid == os.getuid():
                    os.kill(int(owner), 0)
            except ProcessLookupError:
                shutil.rmtree(found, ignore_errors=True)
            except OSError:
                pass  # alive and somebody else's, or just removed by another process
