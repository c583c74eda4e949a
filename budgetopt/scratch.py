"""Temporary folders of this process. Whoever is killed leaves its own behind: the next one removes them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "bo-"  # followed by the process id; short, since Ray's sockets lie in one and their paths are limited


def folder() -> Path:
    """A new folder in the temporary folder (TMPDIR), which whoever asks for it removes."""
    remove_orphans()
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def remove_orphans() -> None:
    """Remove the folders of processes that are gone."""
    for found in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        owner = found.name.removeprefix(PREFIX).split("-")[0]
        try:
            if owner.isdigit() and found.stat().st_uid == os.getuid():
                os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(found, ignore_errors=True)
        except OSError:
            pass  # alive and somebody else's, or just removed by another process
