"""What is kept between runs, not to be downloaded or made again: one folder of the user, a part for each kind."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from budgetopt.errors import InputError, first_line, unknown_name

RUNS = "runs"
PARTS = {
    "banks": "embeddings, trajectories and teachers that searches share",
    "pictures": "decoded pictures",
    "datasets": "downloads of torchvision",
    "hub": "downloads from Hugging Face",
    RUNS: "working copies of runs that are kept at URLs",
}


def part(name: str) -> Path:
    """Folder of one of `PARTS`; it need not be there."""
    return platformdirs.user_cache_path("budgetopt") / name


@dataclass(frozen=True)
class Usage:
    files: int
    bytes: int


def usage(name: str) -> Usage:
    """Of one of `PARTS`; files that go meanwhile are not counted."""
    sizes = []
    for path in part(name).rglob("*"):
        try:
            if path.is_file():
                sizes.append(path.stat().st_size)
        except OSError:
            continue
    return Usage(len(sizes), sum(sizes))


def clear(names: Sequence[str]) -> int:
    """Remove these parts; → bytes that were freed. A search that goes on keeps what it has opened. Raises `InputError`
    for a name that is no part, for working copies of runs, which may hold what is nowhere else, and for what cannot be
    removed; where a name is wrong nothing is removed."""
    for name in names:
        if name not in PARTS:
            raise unknown_name("part of the cache", name, [known for known in PARTS if known != RUNS])
        if name == RUNS:
            raise InputError(
                f"--clear {RUNS}: a copy may hold what is not at its URL yet: remove {str(part(name))!r} yourself"
            )
    freed = 0
    for name in names:
        there = usage(name).bytes
        try:
            shutil.rmtree(part(name))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"cannot remove {str(part(name))!r}: {first_line(error)}") from None
        freed += there
    return freed
