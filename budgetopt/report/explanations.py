"""What the rate–distortion model makes of a run, as tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from budgetopt.search.explanation import Explanation

FEW = 8  # trials, under which they say little beside the prior
LAW = "log-odds of accuracy: e − A·n^(−p) − B·√δ − D·δ; n: samples a class, δ: measured distortion"


def expected_front(found: Explanation) -> Table:
    """The best allocation for each size, as the model has it."""
    table = Table(title="expected front (validation)")
    for name in ("at most bytes", "accuracy, % [95 %]", "measured", "allocation"):
        table.add_column(name, justify="right" if name == "at most bytes" else "left")
    previous = None
    for spot in found.spots:
        interval = f"{100 * spot.accuracy:.1f} [{100 * spot.low:.1f}, {100 * spot.high:.1f}]"
        same = "″" if spot.allocation == previous else str(spot.allocation)
        table.add_row(f"{spot.bytes:,.0f}", interval, "yes" if spot.tried else "no", same)
        previous = spot.allocation
    return table


def law_table(found: Explanation) -> Table:
    """The constants of the error model, by method; `LAW` says which."""
    table = Table()
    for name in ("method", "e", "A", "p", "B", "D"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for law in found.laws:
        table.add_row(law.method, *(f"{value:.2f}" for value in (law.e, law.a, law.p, law.b, law.d)))
    return table


def lines(found: Explanation) -> Iterator[str]:
    if found.trials < FEW:
        count = f"{found.trials} trial{'s' * (found.trials > 1)}"
        yield f"after {count} this is mostly what any search expects at its start"
    changes = [f"{levels} levels from {size:,.0f} bytes" for size, levels in found.sweet_levels]
    yield f"sweet spot: {', '.join(changes)}"
    yield f"around the laws single allocations scatter by {found.misfit:.2f} in log-odds ({found.trials} trials)"
    yield (
        f"one more trial is expected to add {100 * found.gain_accuracy:.2f} points at the budget, or "
        f"{found.gain_volume:.2%} of the hypervolume"
    )
