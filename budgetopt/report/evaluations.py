"""What `eval` prints: a line for one network, a table for several, the recall of every class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.table import Table

from budgetopt.comparison import Compared
from budgetopt.scores import Evaluation

LEAST_SEEDS = 5  # as in `protocol.Protocol.seeds`


def line(network: str | None, found: Evaluation, size: int) -> str:
    """size: of the file, in bytes."""
    count, few = len(found.scores), ""
    if count < LEAST_SEEDS:
        few = f" (a look: figures are means of {LEAST_SEEDS} or more)"
    return (
        f"{network + ': ' if network else ''}test accuracy {_accuracy(found)}"
        f"{'' if math.isnan(found.half_width) else ' (95 %)'} over {count} training{'s' * (count > 1)}{few}, "
        f"± {found.binomial_half_width:.2%} from {found.samples:,} test samples, macro-F1 {_share(found.macro_f1)}; "
        f"{size:,} bytes"
    )


def comparison_table(rows: Sequence[Compared]) -> Table:
    """One row for each network that is done."""
    table = _table("network", "test accuracy", "macro-F1", "seconds")
    for row in rows:
        found = row.evaluation
        figures = (_accuracy(found), _share(found.macro_f1)) if isinstance(found, Evaluation) else (str(found), "")
        table.add_row(row.network, *figures, f"{row.seconds:.1f}")
    return table


def evaluations(rows: Sequence[Compared]) -> dict[str, Evaluation]:
    """Those of the networks that could be trained."""
    return {row.network: row.evaluation for row in rows if isinstance(row.evaluation, Evaluation)}


def closing_line(found: Mapping[str, Evaluation], size: int) -> str:
    some = next(iter(found.values()))
    wide = max(e.binomial_half_width for e in found.values())
    interval = "" if math.isnan(some.half_width) else "intervals: 95 %, over trainings; "
    return (
        f"{interval}{len(some.scores)} trainings for each network; {some.samples:,} test samples add at most "
        f"± {wide:.2%}; {size:,} bytes"
    )


def recall_table(found: Mapping[str, Evaluation]) -> Table:
    """One row for each class. found: {title of a column: what it shows}."""
    table = _table("class", *found)
    for label, recalls in enumerate(zip(*(e.recalls for e in found.values()), strict=True)):
        table.add_row(str(label), *map(_share, recalls))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _accuracy(found: Evaluation) -> str:
    return f"{found.accuracy:.2%}" + ("" if math.isnan(found.half_width) else f" ± {found.half_width:.2%}")


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.2%}"
