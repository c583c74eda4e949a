"""Pictures in Parquet, as Hugging Face lays them out: a column of encoded bytes and one of labels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pyarrow.types as kinds

from budgetopt.data.carving import carved, carving_note
from budgetopt.data.encoded import EncodedPictures, Part, Shard
from budgetopt.errors import InputError, first_line, unknown_name

TEST_NAMES = ("test", "val", "valid", "validation")
PICTURE_COLUMNS, LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label")
NUMBERED = re.compile(r"-(\d+)-of-(\d+)$")
ROWS = 2500  # of a shard
BATCH = 256  # rows that are in memory at once
SHOWN = 8


@dataclass(frozen=True, eq=False)
class Rows(Shard):
    """Rows of one row group, (k,) increasing."""

    path: Path
    column: str
    group: int
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self) -> Iterator[bytes]:
        start = 0
        batches = _opened(self.path).iter_batches(BATCH, [self.group], [self.column])
        while start <= self.rows[-1]:
            batch = _one_line(self.path, lambda: next(batches))
            own = self.rows[(self.rows >= start) & (self.rows < start + len(batch))] - start
            start += len(batch)
            column = batch.column(0)
            values = column.field("bytes") if kinds.is_struct(column.type) else column
            yield from (value or b"" for value in values.take(pa.array(own)).to_pylist())

    def name(self, at: int) -> str:
        return f"{self.path}, row {self.rows[at]} of row group {self.group}"

    def taken(self, rows: np.ndarray) -> Rows:
        return Rows(self.path, self.column, self.group, self.rows[rows])


class PictureParquet(EncodedPictures):
    """One file, or the files of a folder: `train.parquet`, `train-00000-of-00002.parquet`, …, also in subfolders `data`
    or `train`. Classes are those of the schema's metadata, else the sorted distinct labels of the training part."""

    def __init__(self, path: Path, label: str | None = None) -> None:
        super().__init__(path)
        train, test = picture_files(path)
        self._train_files, self._test_files = train, test
        self._wanted_label = label
        self._picture, self._label, self._names = self._columns()
        if not test:
            self._said.append(carving_note(path))
        elif not path.is_file() and _part_of(test[0]) != "test":
            self._said.append(f"no test files: {test[0].name} is the test part")
        self._said.append(f"pictures: column {self._picture!r}; label: column {self._label!r}")

    @property
    def _has_train(self) -> bool:
        return bool(self._train_files)

    @cached_property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        if self._names is not None:
            return self._names
        return tuple(map(str, self._values))

    @cached_property
    def _values(self) -> np.ndarray:
        """The sorted distinct labels, of a column without names."""
        return np.unique(self._labels(self._train_files or self._test_files))

    def _part(self, test: bool) -> Part:
        if test and self._test_files:
            return self._listed(self._test_files)
        if not self._train_files:
            raise InputError(f"{self.name}: no files called train*.parquet")
        whole = self._listed(self._train_files)
        return whole if self._test_files else whole.taken(carved(whole.y, self.path)[test])

    def _listed(self, files: list[Path]) -> Part:
        found = self._labels(files)
        if self._names is not None:
            strange = np.flatnonzero((found < 0) | (found >= len(self._names)))
            y = found
        else:
            y = np.searchsorted(self._values, found).clip(max=len(self._values) - 1)
            strange = np.flatnonzero(self._values[y] != found)
        if strange.size:
            at = strange[0]
            raise InputError(f"{files[0]}: label {found[at]} of row {at} is none of the training part's classes")
        column = f"{self._picture}.bytes" if self._is_struct else self._picture
        shards: list[Shard] = []
        for file in files:
            metadata = _opened(file).metadata
            for group in range(metadata.num_row_groups):
                rows = np.arange(metadata.row_group(group).num_rows)
                shards += [Rows(file, column, group, rows[at : at + ROWS]) for at in range(0, len(rows), ROWS)]
        return Part(shards, y.astype(np.int64), str(files[0] if len(files) == 1 else files[0].parent))

    def _labels(self, files: list[Path]) -> np.ndarray:
        columns = []
        for file in files:
            opened = _opened(file)
            if self._label not in opened.schema_arrow.names or self._picture not in opened.schema_arrow.names:
                raise InputError(f"{file}: no columns {self._picture!r} and {self._label!r}")
            column = _one_line(file, lambda opened=opened: opened.read([self._label])[self._label])
            if column.null_count:
                raise InputError(f"{file}: {column.null_count} rows have no label {self._label!r}")
            if kinds.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            is_text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
            columns.append(np.array(column.to_pylist(), np.str_) if is_text else column.to_numpy().astype(np.int64))
        found = np.concatenate(columns)
        if not len(found):
            raise InputError(f"{files[0]}: no rows")
        return found

    @property
    def _is_struct(self) -> bool:
        return kinds.is_struct(self._schema.field(self._picture).type)

    @cached_property
    def _schema(self) -> pa.Schema:
        return _opened((self._train_files or self._test_files)[0]).schema_arrow

    def _columns(self) -> tuple[str, str, tuple[str, ...] | None]:
        """→ the column of pictures, that of labels, and the names of the classes."""
        schema, path = self._schema, (self._train_files or self._test_files)[0]
        picture = _picture_columns(schema)[0]
        features = _features(schema)
        wanted = self._wanted_label
        if wanted is not None and wanted not in schema.names:
            raise unknown_name(f"column of {path}", wanted, schema.names)
        able = [f.name for f in schema if f.name != picture and _is_label(f.type)]
        named = [name for name in able if features.get(name, {}).get("_type") == "ClassLabel"]
        usual = [name for name in LABEL_COLUMNS if name in able]
        choice = [wanted] if wanted else usual or (named if len(named) == 1 else able)
        if wanted and wanted not in able:
            raise InputError(f"{path}: the label {wanted!r} is of type {schema.field(wanted).type}, expected classes")
        if not choice or (not usual and not wanted and len(choice) > 1):
            which = f"{', '.join(able[:SHOWN])} could be it" if able else "no column is integer or text"
            raise InputError(f"{path}: no column {LABEL_COLUMNS[0]!r}, and {which}: name the label with --label")
        names = features.get(choice[0], {}).get("names")
        is_names = isinstance(names, list) and names and kinds.is_integer(schema.field(choice[0]).type)
        return picture, choice[0], tuple(map(str, names or ())) if is_names else None


def picture_files(path: Path) -> tuple[list[Path], list[Path]]:
    """→ the files of the training and of the test part, both empty where `path` has no Parquet with pictures."""
    if path.is_file():
        found = [path] if path.suffix == ".parquet" else []
        return (found, []) if found and _has_pictures(found[0]) else ([], [])
    if not path.is_dir():
        return [], []
    train = _files(path, "train")
    test = next((files for name in TEST_NAMES if (files := _files(path, name))), [])
    first = (train or test)[:1]
    return (train, test) if first and _has_pictures(first[0]) else ([], [])


def _files(path: Path, part: str) -> list[Path]:
    places = (path, path / "data")
    found = [file for place in places for file in place.glob(f"{part}*.parquet") if _is_part(file.stem, part)]
    found = sorted(found or (path / part).glob("*.parquet"))
    numbered = [match for file in found if (match := NUMBERED.search(file.stem))]
    there, wanted = {int(match[1]) for match in numbered}, max((int(match[2]) for match in numbered), default=0)
    missing = sorted(set(range(wanted)) - there)
    if missing and len(numbered) == len(found):
        raise InputError(
            f"{path}: {len(found)} of {wanted} files of the part {part} are there; the first that is missing is number "
            f"{missing[0]:05}"
        )
    return found


def _is_part(stem: str, part: str) -> bool:
    """`train`, `train-00000-of-00002`, `train_1`, but not `training_notes`."""
    rest = stem[len(part) :]
    return not rest or rest[0] in "-_."


def _part_of(file: Path) -> str:
    named = [name for name in TEST_NAMES if file.stem.startswith(name) and _is_part(file.stem, name)]
    return named[0] if named else file.parent.name


def _has_pictures(path: Path) -> bool:
    try:
        return bool(_picture_columns(_opened(path).schema_arrow))
    except InputError:
        return False  # what reads tables says what is wrong with it


def _picture_columns(schema: pa.Schema) -> list[str]:
    """Those that the metadata call so, then structs that hold bytes, then binary columns of the usual names."""
    features = _features(schema)
    able = [f.name for f in schema if _is_binary(f.type) or _has_bytes(f.type)]
    called = [name for name in able if features.get(name, {}).get("_type") == "Image"]
    usual = [name for name in PICTURE_COLUMNS if name in able]
    structs = [name for name in able if _has_bytes(schema.field(name).type) and "_type" not in features.get(name, {})]
    return list(dict.fromkeys([*called, *usual, *structs]))


def _has_bytes(kind: pa.DataType) -> bool:
    return kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    return kinds.is_binary(kind) or kinds.is_large_binary(kind)


def _is_label(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    return kinds.is_integer(kind) or kinds.is_string(kind) or kinds.is_large_string(kind)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What the schema's `huggingface` metadata say of each column; nothing where they are missing or odd."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _opened(path: Path) -> pa.parquet.ParquetFile:
    return _one_line(path, lambda: pa.parquet.ParquetFile(path))


def _one_line(path: Path, call: Any) -> Any:
    """Whatever a file that is not what its name says makes of its reader becomes one line."""
    try:
        return call()
    except Exception as error:
        raise InputError(f"cannot read the dataset {str(path)!r}: {first_line(error)}") from None
