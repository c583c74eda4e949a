"""Rich tables and lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from budgetopt.budget import Budget
from budgetopt.data.dataset import Dataset
from budgetopt.protocol import Protocol, name_of
from budgetopt.result import Result
from budgetopt.search.config import NO_LIMIT, SearchConfig
from budgetopt.search.study import Record

if TYPE_CHECKING:
    from budgetopt.fisher import Retention

PARENTS = "an optimised set starts from the nearest finished one, where one is near, in a third of the steps"


def duration(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def protocol_line(protocol: Protocol) -> str:
    augment = ", ".join(f"{k} {v:g}" for k, v in protocol.augment.items()) or "no augmentation"
    return (
        f"{name_of(protocol)} ({protocol.hash}): {protocol.network} width {protocol.width}, {protocol.steps} steps of "
        f"{protocol.batch}, {augment}, {protocol.seeds} seeds"
    )


def plan_lines(config: SearchConfig, dataset: Dataset, out: str, smallest: int) -> list[tuple[str, str]]:
    """What a search will do: (what, value) pairs."""
    spec = dataset.spec
    limits = [f"{config.trials} trial{'s' * (config.trials > 1)}"] if config.trials else []
    if config.time_limit and config.time_limit < NO_LIMIT:
        limits.append(f"{duration(config.time_limit)} in all")
    where = f"{config.workers} on {config.gpus} GPU(s)" if config.gpus else f"{config.workers} (CPU)"
    sizes = f"{len(dataset.train):,} train / {len(dataset.val):,} validation"
    return [
        ("budget", f"{Budget(config.budget)}, smallest file about {smallest:,} bytes"),
        ("dataset", f"{spec.name}: {sizes}, {spec.classes} classes, samples {'×'.join(map(str, spec.shape))}"),
        *(("note", note) for note in dataset.source.notes),
        ("protocol", protocol_line(config.protocol)),
        ("objectives", ", ".join(config.objectives)),
        ("search space", config.space_name + (f", starting from {config.init}" if config.init else "")),
        *([("parents", PARENTS)] if config.parents else []),
        ("workers", where),
        ("limit", f"{', '.join(limits)}, seed {config.seed}"),
        ("results", out),
    ]


def plan_table(lines: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for what, value in lines:
        table.add_row(Text(what, style="bold"), Text(value))
    return table


def trials_table(front: Sequence[Record], most: int) -> Table:
    """The current front of a running search, largest files first where there are more than `most`."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name, justify in (("bytes", "right"), ("validation", "right"), ("allocation", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for record in front[-most:]:
        table.add_row(f"{record.bytes:,}", f"{record.accuracy:.1%}", str(record.allocation))
    return table


def fisher_table(classes: Sequence[Retention]) -> Table:
    """Information of a sample in the file and in the training data, and what the file keeps of all, class by class."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("class", "samples", "information each", "real samples", "each", "a sample, in real ones", "kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in classes:
        table.add_row(
            *(str(c.label), f"{c.samples:,}", f"{c.file:.4g}", f"{c.real:,}", f"{c.train:.4g}"),
            *(f"{c.each:.2f}", f"{c.total:.2%}"),
        )
    return table


def front_table(result: Result) -> Table:
    """The final front with intervals, then the reference lines; macro-F1 where classes are of unequal size."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    columns = (
        ("bytes", "right"),
        ("samples", "right"),
        ("test accuracy", "right"),
        *((("macro-F1", "right"),) if result.imbalanced else ()),
        ("validation", "right"),
        ("allocation", "left"),
    )
    for name, justify in (("", "left"), *columns):
        table.add_column(name, justify=justify, no_wrap=name != "allocation")  # type: ignore[arg-type]
    for p in result.front:
        note = "" if p.parent is None else f", from trial {p.parent}, {p.total_steps:,} steps in all"
        note += "  (dominated on test)" if p.dominated_on_test else ""
        mark = "best" if p == result.best else ""
        f1 = [_share(p.macro_f1)] if result.imbalanced else []
        figures = (f"{p.accuracy:.1%} ± {p.half_width:.1%}", *f1, f"{p.validation:.1%}")
        table.add_row(mark, f"{p.bytes:,}", f"{p.samples:,}", *figures, f"{p.allocation}{note}")
    for name, reference in result.references.items():
        size = f"{reference['bytes']:,}" if reference["bytes"] else "n/a"
        accuracy, samples = "as all data", f"{reference['samples']:,}" if "samples" in reference else ""
        if "accuracy" in reference:
            accuracy = f"{reference['accuracy']:.1%} ± {reference['half_width']:.1%}"
        f1 = [_share(reference.get("macro_f1"))] if result.imbalanced else []
        table.add_row("", size, samples, accuracy, *f1, "", name, style="dim")
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def closing_lines(result: Result) -> list[str]:
    binomial = result.best.binomial
    return [
        f"intervals: 95 %, over trainings on one file; the finite test split adds ± {binomial:.1%} at best.bopt",
        f"test evaluations in this run: {result.test_evaluations} ({len(result.front)} of the front, the others of "
        f"all data and by 'eval'); hypervolume {result.hypervolume:.3f} (validation)",
        f"best dataset, chosen on validation: {result.folder / 'best.bopt'} ({result.best.bytes:,} bytes of "
        f"{result.budget.bytes:,})",
    ]
