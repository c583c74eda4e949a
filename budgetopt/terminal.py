"""What the command line prints and writes. rich is imported where it is needed: `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from budgetopt.errors import InputError


def write(target: Path, content: bytes) -> None:
    try:
        target.write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror}") from None


def console() -> Any:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160, highlight=False)


def report(console: Any) -> Any:
    from budgetopt.report.display import ConsoleReport

    return ConsoleReport(console)


def say(line: str) -> None:
    print(line, flush=True)


def print_compressed(console: Any, found: Any) -> None:
    from budgetopt.report.compressed import closing_line, tried_table

    for note in found.notes:
        print(f"note: {note}")
    console.print(tried_table(found))
    print(closing_line(found))


def print_front(console: Any, result: Any) -> None:
    from budgetopt.report.plots import text_plot
    from budgetopt.report.tables import closing_lines, front_table

    console.print(f"\nPareto front of {result.dataset} within {result.budget} (figures on the test split)")
    console.print(front_table(result))
    points = [(p.bytes, p.accuracy) for p in result.front]
    print("\n".join(text_plot(points, points)))
    for line in closing_lines(result):
        console.print(line, highlight=False, soft_wrap=True)
