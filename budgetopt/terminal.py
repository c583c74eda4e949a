"""What the command line prints and writes. rich is imported where it is needed: `--help` is instant."""

from __future__ import annotations

import sys
from collections.abc import Iterable
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

    # names of files, columns and classes are the user's: brackets in them are no markup
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, highlight=False, markup=False)


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


def print_evaluation(console: Any, network: str | None, found: Any, size: int, per_class: bool) -> None:
    from budgetopt.report.evaluations import line, recall_table

    print(line(network, found, size), flush=True)
    if per_class:
        console.print(recall_table({"recall": found}))


def print_fisher(console: Any, classes: Any) -> None:
    from budgetopt.report.tables import fisher_table

    print("\nFisher information about random weights (BCDC Theorem 4.6)")
    console.print(fisher_table(classes))


def print_compared(console: Any, rows: Iterable[Any], size: int, per_class: bool) -> None:
    """One table, on a terminal a row as soon as a network is trained; after Ctrl-C, those that are."""
    from rich.live import Live

    from budgetopt.report.evaluations import closing_line, comparison_table, evaluations, recall_table

    seen: list[Any] = []
    try:
        with Live(comparison_table(seen), console=console, auto_refresh=False, transient=True) as live:
            for row in rows:
                seen.append(row)
                live.update(comparison_table(seen), refresh=console.is_terminal)
    finally:
        console.print(comparison_table(seen))
    if per_class:
        console.print(recall_table(evaluations(seen)))
    if evaluations(seen):
        console.print(closing_line(evaluations(seen), size), highlight=False, soft_wrap=True)


def print_explanation(console: Any, explanation: Any) -> None:
    from budgetopt.report.explanations import LAW, expected_front, law_table, lines

    console.print(expected_front(explanation))
    console.print(LAW, highlight=False, soft_wrap=True)
    console.print(law_table(explanation))
    for line in lines(explanation):
        console.print(line, highlight=False, soft_wrap=True)


def print_front(console: Any, result: Any) -> None:
    from budgetopt.report.plots import text_plot
    from budgetopt.report.tables import closing_lines, front_table

    console.print(
        f"\nPareto front of {result.title} within {result.budget} (figures on the test split)", soft_wrap=True
    )
    console.print(front_table(result))
    points = [(p.bytes, p.accuracy) for p in result.front]
    print("\n".join(text_plot(points, points)))
    for line in closing_lines(result):
        console.print(line, highlight=False, soft_wrap=True)
