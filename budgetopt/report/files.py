"""Report files of a finished run: `front.csv`, `front.png`, `best.png`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from budgetopt.packing import read_file, unpack
from budgetopt.report.picture import sample_sheet
from budgetopt.report.plots import front_figure
from budgetopt.result import Result
from budgetopt.search.atomic import write_atomically
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import Record


def write_reports(result: Result, trials: Sequence[Record]) -> None:
    folder = RunFolder(result.folder)
    write_atomically(folder.front_csv, front_csv(result).encode())
    buffer = io.BytesIO()
    front_figure(result, trials).savefig(buffer, format="png")
    write_atomically(folder.front_png, buffer.getvalue())
    sheet = sample_sheet(unpack(read_file(result.best.path)))
    if sheet is not None:
        write_atomically(folder.best_png, sheet)


def front_csv(result: Result) -> str:
    """One row a member, by size; the references last."""
    allocations = [point.allocation.to_dict() for point in result.front]
    allocation_keys = list(dict.fromkeys(key for allocation in allocations for key in allocation))
    header = [
        "bytes",
        "samples",
        "accuracy",
        "low",
        "high",
        "binomial_half_width",
        "macro_f1",
        "validation",
        "dominated_on_test",
        "file",
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*header, *allocation_keys])
    for p, allocation in zip(result.front, allocations, strict=True):
        figures: list[object] = [p.bytes, p.samples, p.accuracy, *p.interval, p.binomial, p.macro_f1]
        writer.writerow(
            [
                *figures,
                p.validation,
                p.dominated_on_test,
                p.path.relative_to(result.folder),
                *(allocation.get(key, "") for key in allocation_keys),  # what is at its default is left out
            ]
        )
    for name, reference in result.references.items():
        known = [reference.get(what, "") for what in ("samples", "accuracy")]
        writer.writerow([reference["bytes"], *known, "", "", "", reference.get("macro_f1", ""), "", "", name])
    return buffer.getvalue()
