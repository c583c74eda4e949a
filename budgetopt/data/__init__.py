"""Datasets by name or path. Every source ends in the same `Dataset`; later stages read its spec only."""

from __future__ import annotations

from pathlib import Path

from budgetopt.data.dataset import Dataset, DataSpec, Source, Split
from budgetopt.data.digits import Digits
from budgetopt.data.npz import NpzFile
from budgetopt.data.tabular import Tabular, is_table
from budgetopt.data.torchvision_sets import TorchvisionSet, names
from budgetopt.errors import InputError, unknown_name

__all__ = ["DataSpec", "Dataset", "Source", "Split", "open_source"]


def open_source(name: str, root: str | Path | None = None, label: str | None = None) -> Source:
    """The source called `name`: `digits`, a torchvision classification dataset, or a path: one that ends in `.npz`,
    `.parquet` or `.csv`, or a folder with `train.*` and `test.*` of the last two.

    `root` is the folder with torchvision's files; what is not there is downloaded into it (default: the user's
    cache folder). `label` names the label column of a table. Raises `InputError` with the nearest name for an unknown
    one.
    """
    source = _source(name, None if root is None else Path(root), label)
    if label is not None and not isinstance(source, Tabular):
        raise InputError(f"--label {label!r} names a column of a table (.parquet, .csv); {name} has none")
    return source


def _source(name: str, root: Path | None, label: str | None) -> Source:
    if name == "digits":
        return Digits()
    if name.endswith(".npz"):
        return NpzFile(Path(name))
    known = names()
    by_lower = {n.lower(): n for n in known}
    if name.lower() in by_lower:
        return TorchvisionSet(by_lower[name.lower()], root)
    if is_table(name):
        return Tabular(Path(name), label)
    if Path(name).suffix or "/" in name:
        raise InputError(f"cannot read the dataset {name!r}: a path must be a folder or end in .npz, .parquet or .csv")
    raise unknown_name("dataset", name, ["digits", *known], also=", or a path")
