"""Accuracy against bytes: a matplotlib figure for files, a few lines of text for terminals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from budgetopt.result import Result
from budgetopt.search.study import Record

LEAST_SPAN = 0.01  # of accuracies in a plot of text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def front_figure(result: Result, trials: Sequence[Record] = ()) -> Figure:
    """The front on the test split with 95 % intervals, all trials (validation) behind it, and the reference lines."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    done = [(r.bytes, r.accuracy) for r in trials if r.state == "complete" and r.bytes and r.accuracy is not None]
    if done:
        axes.scatter(
            [size for size, _ in done],
            [accuracy for _, accuracy in done],
            s=14,
            color="0.75",
            label="trials (validation estimate)",
        )
    points = result.front
    kept, beaten = ([p for p in points if p.dominated_on_test == dominated] for dominated in (False, True))
    axes.step([p.bytes for p in kept], [p.accuracy for p in kept], where="post", color="C0", lw=1, alpha=0.5)
    axes.errorbar(
        [p.bytes for p in points],
        [p.accuracy for p in points],
        yerr=[
            [p.accuracy - p.interval[0] for p in points],
            [p.interval[1] - p.accuracy for p in points],
        ],
        fmt="o",
        ms=5,
        capsize=3,
        color="C0",
        label="front (test, 95 % interval over trainings)",
    )
    axes.plot(
        [p.bytes for p in beaten],
        [p.accuracy for p in beaten],
        "o",
        ms=5,
        color="C0",
        mfc="white",
        zorder=4,
        label="on the front by validation, dominated on test" if beaten else None,
    )
    widest = 2 * result.budget.bytes
    for name, reference in result.references.items():
        if "accuracy" in reference:
            axes.axhline(reference["accuracy"], color="C2", ls="--", lw=1, label=f"{name}: {reference['accuracy']:.1%}")
        elif reference["bytes"]:
            label = f"{name}: {reference['bytes']:,} bytes"
            if reference["bytes"] <= widest:
                axes.axvline(reference["bytes"], color="C3", ls=":", lw=1, label=label)
            else:  # a line far outside would leave most of the plane to nothing
                axes.plot([], [], color="C3", ls=":", lw=1, label=f"{label} (outside)")
    axes.axvline(result.budget.bytes, color="0.3", ls="-", lw=1, label=f"budget: {result.budget.bytes:,} bytes")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("bytes of the packed file")
    axes.set_ylabel("accuracy")
    axes.set_title(f"{result.title}: accuracy of networks trained on the packed file")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="best")
    return figure


def text_plot(
    points: Sequence[tuple[int, float]], front: Sequence[tuple[int, float]], width: int = 56, height: int = 10
) -> list[str]:
    """Lines of text: `·` a trial, `●` the front; x is log2(bytes), y accuracy. Empty for fewer than two
    different points."""
    if len(set(points)) < 2:
        return []
    xs = [math.log2(b) for b, _ in points]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)
    ys = sorted(a for _, a in points)
    y0, y1 = ys[len(ys) // 20], ys[-1]  # a single failure must not flatten the rest
    if y1 - y0 < LEAST_SPAN:
        y0 = y1 - LEAST_SPAN
    grid = [[" "] * width for _ in range(height)]
    for marked, mark in ((points, "·"), (front, "●")):
        for size, accuracy in marked:
            column = round((math.log2(size) - x0) / (x1 - x0) * (width - 1))
            share = min(1.0, max(0.0, (accuracy - y0) / (y1 - y0 or 1.0)))
            grid[height - 1 - round(share * (height - 1))][min(width - 1, max(0, column))] = mark
    lines = []
    for row, cells in enumerate(grid):
        label = f"{y1:6.1%}" if row == 0 else f"{y0:6.1%}" if row == height - 1 else " " * 6
        lines.append(f"{label} ┤{''.join(cells)}")
    low, high = f"{min(b for b, _ in points):,} B", f"{max(b for b, _ in points):,} B"
    lines.append(" " * 7 + "└" + "─" * width)
    lines.append(" " * 8 + low + high.rjust(width - len(low)))
    return lines
