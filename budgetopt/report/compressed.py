"""What `compress` and `merge` print: every file that was made, and the chosen one."""

from __future__ import annotations

from rich.table import Table

from budgetopt.compression import Compressed


def tried_table(found: Compressed) -> Table:
    """One row for each file that was made, small to large."""
    table = Table(box=None, padding=(0, 1))
    for title in ("", "bytes", "samples", "distortion", "validation"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    table.add_column("stored as")
    for tried in sorted(found.tried, key=lambda t: (t.bytes, t.distortion)):
        accuracy = "" if tried.accuracy is None else f"{tried.accuracy:.1%}"
        table.add_row(
            "best" if tried.data == found.data and tried.what == found.chosen.what else "",
            f"{tried.bytes:,}",
            f"{tried.samples:,}",
            f"{tried.distortion:.4f}",
            accuracy,
            tried.what,
        )
    return table


def closing_line(found: Compressed) -> str:
    """`small.bopt: 812 of 1,000 bytes (6,496 of 8,000 bits), 100 of 100 samples, …`"""
    bytes_, limit = found.bytes, found.budget
    where = "" if found.path is None else f"{found.path}: "
    return (
        f"{where}{bytes_:,} of {limit.bytes:,} bytes ({8 * bytes_:,} of {limit.bits:,} bits), "
        f"{found.chosen.samples:,} of {found.of:,} samples, {found.chosen.what}"
    )
