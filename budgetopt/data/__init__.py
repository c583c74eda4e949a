"""Datasets by name or path. Every source ends in the same `Dataset`; later stages read its spec only."""

from __future__ import annotations

from pathlib import Path

from budgetopt.data import hub
from budgetopt.data.audio import Recordings, Spectrograms, holds_recordings
from budgetopt.data.dataset import Dataset, DataSpec, Source, Split
from budgetopt.data.digits import Digits
from budgetopt.data.npy import NpyFiles, is_npy_folder
from budgetopt.data.npz import NpzFile
from budgetopt.data.picture_folder import PictureFolder, is_picture_folder
from budgetopt.data.picture_parquet import PictureParquet, picture_files
from budgetopt.data.resizing import Size
from budgetopt.data.table_files import is_table
from budgetopt.data.tabular import Tabular
from budgetopt.data.torchvision_sets import TorchvisionSet, names
from budgetopt.errors import InputError, unknown_name

__all__ = ["DataSpec", "Dataset", "Source", "Split", "open_source"]


def open_source(
    name: str,
    root: str | Path | None = None,
    label: str | None = None,
    resize: str | None = None,
    spectrogram: str | None = None,
) -> Source:
    """The source called `name`: `digits`, a torchvision classification dataset, `hf:OWNER/NAME`, or a path: one that
    ends in `.npz`, `.npy`, `.parquet` or `.csv`, or a folder of pictures, of `.npy` files, of recordings, or with
    `train*` and `test*` tables.

    `root` is the folder with torchvision's files; what is not there is downloaded into it (default: the user's
    cache folder). `label` names the label column of a table. `resize` makes all pictures one size, `32`, `24x32` or
    `32:lanczos`. `spectrogram` says how those of recordings are made, `mels=32,frames=48,seconds=2` or some of them.
    Raises `InputError` with the nearest name for an unknown one.
    """
    size = None if resize is None else Size.parse(resize)
    asked = None if spectrogram is None else Spectrograms.parse(spectrogram)
    try:
        source = _source(name, None if root is None else Path(root), label)
    except PermissionError as error:
        raise InputError(f"cannot read {error.filename!r}: {error.strerror}") from None
    if label is not None and not isinstance(source, Tabular | PictureParquet):
        raise InputError(f"--label {label!r} names a column of a table (.parquet, .csv); {name} has none")
    if asked is not None:
        if not isinstance(source, Recordings):
            raise InputError(f"--spectrogram {spectrogram} is for folders of recordings (.wav, .flac); {name} is none")
        source = source.asked(asked)
    return source if size is None else source.resized(size)


def _source(name: str, root: Path | None, label: str | None) -> Source:
    if name == "digits":
        return Digits()
    if name.startswith(hub.PREFIX):
        return _at_path(hub.fetched(name), label)
    if name.endswith(".npz"):
        return NpzFile(Path(name))
    is_path = "/" in name or bool(Path(name).suffix)  # of a name, torchvision must be asked, which takes a second
    known = [] if is_path else names()
    by_lower = {n.lower(): n for n in known}
    if name.lower() in by_lower:
        return TorchvisionSet(by_lower[name.lower()], root)
    if Path(name).is_dir() or is_table(name) or name.endswith(".npy"):
        return _at_path(Path(name), label)
    if is_path:
        raise InputError(
            f"cannot read the dataset {name!r}: a path must be a folder or end in .npz, .npy, .parquet or .csv"
        )
    raise unknown_name("dataset", name, ["digits", *known], also=", or a path")


def _at_path(path: Path, label: str | None) -> Source:
    if any(picture_files(path)):
        return PictureParquet(path, label)
    if path.suffix == ".npy" or is_npy_folder(path):
        return NpyFiles(path)
    if path.is_dir() and is_picture_folder(path):
        return PictureFolder(path)
    if path.is_dir() and holds_recordings(path):
        return Recordings(path)
    return Tabular(path, label)
