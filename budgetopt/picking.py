"""`budgetopt pick`: the best finished file of a run within a budget."""

from __future__ import annotations

from pathlib import Path

from budgetopt import result
from budgetopt.budget import Budget
from budgetopt.errors import InputError
from budgetopt.search.folder import RunFolder


def best_within(run: str | Path, budget: Budget) -> tuple[Path, str]:
    """→ (file, one line about it). Members of a fixed front first, by validation accuracy, ties to fewer bytes; where
    none is small enough, or the run is not finished, any finished trial by its validation estimate."""
    folder = RunFolder.existing(run)
    try:
        points = [p for p in result.read(folder.path).front if p.bytes <= budget.bytes]
    except InputError:
        points = []
    if points:
        point = min(points, key=lambda p: (-p.validation, p.bytes))
        accuracy = f"{point.accuracy:.1%} ± {point.half_width:.1%}"
        return point.path, f"{point.bytes:,} bytes, test accuracy {accuracy}, {point.allocation}"
    from budgetopt.search.study import load, records

    done = [r for r in records(load(folder.study)) if r.state == "complete" and r.file and r.bytes]
    fitting = [r for r in done if r.bytes and r.bytes <= budget.bytes]
    if not fitting:
        smallest = min((r.bytes for r in done if r.bytes), default=None)
        have = f"the smallest finished file has {smallest:,}" if smallest else "no trial has finished yet"
        raise InputError(f"no finished file of {str(folder)!r} has at most {budget.bytes:,} bytes: {have}")
    best = min(fitting, key=lambda r: (-(r.accuracy or 0.0), r.bytes))
    assert best.file is not None
    return folder.path / best.file, f"{best.bytes:,} bytes, validation {best.accuracy:.1%}, {best.allocation}"
