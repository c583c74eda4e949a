"""The decoded set in formats that others read. Every format keeps soft labels; none loses precision without a note."""

from __future__ import annotations

from collections.abc import Callable

from budgetopt.errors import unknown_name
from budgetopt.exporting.exported import Exported
from budgetopt.packing import PackedSet

Writer = Callable[[PackedSet], Exported]


def _writers() -> dict[str, Writer]:
    from budgetopt.exporting import arrays, parquet, sheet, webdataset

    return {
        "npz": arrays.npz,
        "safetensors": arrays.safetensors,
        "torch": arrays.torch_file,
        "parquet": parquet.write,
        "webdataset": webdataset.write,
        "png": sheet.write,
    }


FORMATS = ("npz", "safetensors", "torch", "parquet", "webdataset", "png")
__all__ = ["FORMATS", "Exported", "export"]


def export(packed: PackedSet, to: str) -> Exported:
    """The set as a file of format `to`, one of `FORMATS`. Raises `InputError` for another one, and for samples that
    the format cannot hold."""
    if to not in FORMATS:
        raise unknown_name("export format", to, FORMATS)
    exported = _writers()[to](packed)
    if packed.preparation is None or to == "png":
        return exported
    return exported.noting(
        f"your own raw data become such samples by `preparation` in the file ({packed.preparation.name}), or by "
        "`load(…).prepare` of the .bopt file"
    )
