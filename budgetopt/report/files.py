"""Report files of a finished run: `front.csv`, `front.png`, `best.png`."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from budgetopt.packing import read_file, unpack
from budgetopt.report.picture import sample_sheet
from budgetopt.report.plots import front_figure
from budgetopt.result import Result
from budgetopt.search.folder import RunFolder, write_atomically
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
    allocation_keys = list(result.best.allocation.to_dict())
    header = [
        "bytes",
        "samples",
        "accuracy",
        "low",
        "high",
        "binomial_half_width",
        "validation",
        "dominated_on_test",
        "file",
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*header, *allocation_keys])
    for p in result.front:
        figures = [p.bytes, p.samples, p.accuracy, *p.interval, p.binomial, p.validation, p.dominated_on_test]
        writer.writerow([*figures, p.path.relative_to(result.folder), *p.allocation.to_dict().values()])
    for name, reference in result.references.items():
        writer.writerow(
            [reference["bytes"], reference.get("samples", ""), reference.get("accuracy", ""), "", "", "", "", "", name]
        )
    return buffer.getvalue()
