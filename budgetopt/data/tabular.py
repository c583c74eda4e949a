"""Tables of numbers with a label: Parquet or CSV, as a folder with `train.*` and `test.*` or as one file.

A packed file has no place for a vocabulary or for values that replace missing ones, and a receiver must prepare its own
test data by the file alone: columns of text and columns with gaps are refused, not prepared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pyarrow.types as kinds

from budgetopt.data.dataset import Arrays, Source
from budgetopt.errors import InputError, unknown_name

SUFFIXES = (".parquet", ".csv")
DEFAULT_LABEL = "label"
TEST_SHARE, TEST_SEED = 0.3, 0  # of the test part that is carved: stratified, the same for ever
MOST_VALUES = 1 << 30  # of one part: a few bytes of Parquet may claim any number of rows
SHOWN = 8  # class names in a line


class Tabular(Source):
    """Numeric and boolean columns in the order of the training part, and a label column whose sorted distinct values
    are the classes 0 … C−1."""

    path: Path
    protocol = "tabular-2"
    space = "tabular"

    def __init__(self, path: Path, label: str | None = None) -> None:
        self.path, self.name = path, str(path)
        self._train, self._test = _parts(path)
        self._label, how = _label_column(self._schema, label, self._first)
        self._features = [name for name in self._schema.names if name != self._label]
        if not self._features:
            raise InputError(f"{self._first}: no column beside the label {self._label!r}")
        self._said = [f"label: column {self._label!r}{how}; {len(self._features)} features"]
        if self._train is not None and self._train == self._test:
            self._said.append(f"no test part: {TEST_SHARE:.0%} of {self._train}, stratified, seed {TEST_SEED}")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self._said)

    def train_arrays(self) -> Arrays:
        if self._train is None:
            raise InputError(f"{self.name}: no train.parquet or train.csv")
        return self._arrays(self._train, 0)

    def test_arrays(self) -> Arrays:
        return self._arrays(self._test, 1)

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        """Of the test part the names of its columns and the set of its labels are read."""
        if self._train == self._test:
            return
        names = _schema(self._test).names
        missing = [name for name in (self._label, *self._features) if name not in names]
        if missing:
            raise InputError(f"{self._test}: no column {missing[0]!r}, which {self._train} has")
        self._numbered(_read(self._test, [self._label])[self._label], self._test)

    @property
    def _first(self) -> Path:
        return self._train or self._test

    @cached_property
    def _schema(self) -> pa.Schema:
        return _schema(self._first)

    @cached_property
    def _classes(self) -> np.ndarray | None:
        """The sorted distinct labels of the training part; None where there is no training part."""
        if self._train is None:
            return None
        column = _labels(_read(self._train, [self._label])[self._label], self._label, self._train)
        classes = np.unique(column)
        if 2 * len(classes) > len(column):
            raise InputError(
                f"{self._train}: the label {self._label!r} has {len(classes)} distinct values in {len(column)} rows: "
                "every class needs 2; name another column with --label"
            )
        if not np.array_equal(classes, np.arange(len(classes)).astype(classes.dtype)):
            shown = ", ".join(map(str, classes[:SHOWN])) + (", …" if len(classes) > SHOWN else "")
            self._said.append(f"classes 0..{len(classes) - 1} are {shown}; packed files know the numbers only")
        return classes

    def _arrays(self, path: Path, part: int) -> Arrays:
        table = _read(path, [*self._features, self._label])
        y = self._numbered(table[self._label], path)
        columns = [table[name] for name in self._features]
        small = all(kinds.is_uint8(c.type) or kinds.is_boolean(c.type) for c in columns)
        x = np.empty((len(y), len(columns)), np.uint8 if small else np.float32)
        for at, (name, column) in enumerate(zip(self._features, columns, strict=True)):
            x[:, at] = _numbers(column, name, path)
        if self._train == self._test:
            rows = _carved(y, path)[part]
            return x[rows], y[rows]
        return x, y

    def _numbered(self, column: pa.ChunkedArray, path: Path) -> np.ndarray:
        """Labels → numbers of the classes, (n,) int64. Raises `InputError` for a class that the training part lacks."""
        labels, classes = _labels(column, self._label, path), self._classes
        if classes is None:  # a receiver with a test part only: its labels are the file's numbers
            if labels.dtype.kind not in "iu":
                raise InputError(
                    f"{path}: the label {self._label!r} is text, and a packed file numbers its classes: "
                    "put the training part beside it"
                )
            return labels.astype(np.int64)
        if labels.dtype.kind != classes.dtype.kind and "U" in (labels.dtype.kind, classes.dtype.kind):
            raise InputError(f"{path}: the label {self._label!r} is text in one part and a number in the other")
        numbers = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        strange = np.flatnonzero(classes[numbers] != labels)
        if strange.size:
            raise InputError(f"{path}: class {labels[strange[0]]} of row {strange[0]} is not in the training part")
        return numbers.astype(np.int64)


def is_table(name: str) -> bool:
    """Whether `name` is that of a table, or of a folder: where nothing else has that name it is read as tables."""
    return name.endswith(SUFFIXES) or Path(name).is_dir()


def _parts(path: Path) -> tuple[Path | None, Path]:
    """→ the files of the training part, if there is one, and of the test part; the same file where it is to be
    carved."""
    if path.suffix in SUFFIXES and not path.is_dir():
        if not path.is_file():
            raise InputError(f"cannot read the dataset {str(path)!r}: no such file")
        return path, path
    train, test = (_part(path, name) for name in ("train", "test"))
    if train is None and test is None:
        found = sorted(entry.name for entry in path.iterdir())
        held = f"it holds {', '.join(found[:SHOWN])}" if found else "it is empty"
        raise InputError(f"{path}: no train.parquet or train.csv: {held}")
    return train, test or train  # type: ignore[return-value]


def _part(folder: Path, name: str) -> Path | None:
    found = [folder / (name + suffix) for suffix in SUFFIXES if (folder / (name + suffix)).is_file()]
    if len(found) > 1:
        raise InputError(f"{folder}: both {found[0].name} and {found[1].name}; keep one")
    return found[0] if found else None


def _schema(path: Path) -> pa.Schema:
    """Names and types of the columns; of CSV the types are those of its first megabyte."""
    with _one_line(path):
        if path.suffix == ".csv":
            with pyarrow.csv.open_csv(path) as reader:
                schema = reader.schema
        else:
            schema = pyarrow.parquet.read_schema(path)
    twice = [name for at, name in enumerate(schema.names) if name in schema.names[:at]]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}")
    if path.suffix == ".csv" and all(map(_is_number, schema.names)):
        raise InputError(f"{path}: the first line must name the columns, got {','.join(schema.names[:SHOWN])}")
    return schema


def _read(path: Path, columns: list[str]) -> pa.Table:
    with _one_line(path):
        if path.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(include_columns=columns)
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            file = pyarrow.parquet.ParquetFile(path)
            if file.metadata.num_rows * len(columns) > MOST_VALUES:
                raise InputError(f"{path}: {file.metadata.num_rows:,} rows of {len(columns):,} columns are too many")
            missing = [name for name in columns if name not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: no column {missing[0]!r}")
            table = file.read(columns)
    if not len(table):
        raise InputError(f"{path}: no rows")
    return table


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Whatever a file that is not what its name says makes of its reader becomes one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot read the dataset {str(path)!r}: {reason}") from None


def _label_column(schema: pa.Schema, wanted: str | None, path: Path) -> tuple[str, str]:
    """→ the label column, and how it was found, in words."""
    if wanted is not None:
        if wanted not in schema.names:
            raise unknown_name(f"column of {path}", wanted, schema.names)
        return wanted, ""
    if DEFAULT_LABEL in schema.names:
        return DEFAULT_LABEL, ""
    found = [field.name for field in schema if kinds.is_integer(field.type) or _is_text(field.type)]
    if len(found) == 1:
        return found[0], ", the only integer or categorical one"
    which = f"{', '.join(found[:SHOWN])} could be it" if found else "none is integer or categorical"
    raise InputError(f"{path}: no column {DEFAULT_LABEL!r}, and {which}: name the label with --label")


def _is_text(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _is_text(kind.value_type) or kinds.is_integer(kind.value_type)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _labels(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """(n,) int64, or text. Raises `InputError` for a label that is missing or continuous."""
    if column.null_count:
        raise InputError(f"{path}: {column.null_count} rows have no label {name!r}")
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type):
        return np.array(column.to_pylist(), dtype=np.str_)
    if not (kinds.is_integer(column.type) or kinds.is_boolean(column.type) or kinds.is_floating(column.type)):
        raise InputError(f"{path}: the label {name!r} is of type {column.type}, expected whole numbers or text")
    values = column.to_numpy()
    if kinds.is_floating(column.type):
        strange = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))
        if strange.size:
            raise InputError(
                f"{path}: the label {name!r} is continuous, {values[strange[0]]:g} in row {strange[0]}: "
                "classes are whole numbers or text; name another column with --label"
            )
    return values.astype(np.int64)


def _numbers(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """(n,) values of a feature. Raises `InputError` that names the column which is no number or has gaps."""
    if _is_text(column.type):
        raise InputError(
            f"{path}: column {name!r} is text; features must be numbers: packed files have no place for its vocabulary "
            "yet, so encode it or leave it out"
        )
    if kinds.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not (kinds.is_integer(column.type) or kinds.is_boolean(column.type) or kinds.is_floating(column.type)):
        raise InputError(f"{path}: column {name!r} is of type {column.type}; features must be numbers")
    if column.null_count:
        raise _gaps(column.null_count, name, path)
    values = column.to_numpy()
    if kinds.is_floating(column.type):
        missing = np.isnan(values)
        if missing.any():
            raise _gaps(int(missing.sum()), name, path)
        far = np.flatnonzero(np.abs(values.astype(np.float64)) > np.finfo(np.float32).max)
        if far.size:
            raise InputError(f"{path}: column {name!r} is {values[far[0]]:g} in row {far[0]}, too large for float32")
    return values


def _gaps(count: int, name: str, path: Path) -> InputError:
    return InputError(
        f"{path}: column {name!r} lacks {count} values; packed files have no place yet for what would replace them: "
        "fill them in, or leave the column out"
    )


def _carved(y: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the test part, in their order."""
    from sklearn.model_selection import train_test_split

    try:
        parts = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, stratify=y, random_state=TEST_SEED)
    except ValueError as error:  # fewer rows than classes
        raise InputError(f"{path}: no test part can be carved from {len(y)} rows: {error}") from None
    return np.sort(parts[0]), np.sort(parts[1])
