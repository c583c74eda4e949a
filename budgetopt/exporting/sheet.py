"""One picture of the first samples of every class, to look at."""

from __future__ import annotations

from budgetopt.errors import InputError
from budgetopt.exporting.exported import Exported
from budgetopt.packing import PackedSet


def write(packed: PackedSet) -> Exported:
    from budgetopt.report.picture import sample_sheet

    sheet = sample_sheet(packed)
    if sheet is None:
        raise InputError(f"samples of shape {packed.shape} are no pictures: export --to npz")
    return Exported(sheet, ".png")
