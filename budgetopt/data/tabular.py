"""Tables with a label: Parquet or CSV, as a folder with `train.*` and `test.*` or as one file.

A receiver prepares its own rows by the packed file alone. Where columns are numbers of similar spread without gaps, and
labels 0 … C−1, it needs no more than their order; else the file names columns, their scale, levels and labels.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.types as kinds

from budgetopt.data import table_files
from budgetopt.data.carving import carved, carving_note
from budgetopt.data.dataset import Arrays, Source
from budgetopt.data.table_files import SHOWN
from budgetopt.data.table_fitting import fitted_columns, is_text, plain
from budgetopt.errors import InputError, unknown_name
from budgetopt.packing.preparation import Preparation
from budgetopt.packing.table import Categorical, Numeric, Plain, TablePreparation

DEFAULT_LABEL = "label"
SIGNAL = "signal-1"  # the protocol for columns in an order
LEAST_SIGNAL = 16  # numbered columns that may be one


def numbered(names: Sequence[str]) -> bool:
    """Whether columns look like one signal: many of one name with consecutive numbers."""
    parts = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if len(parts) < LEAST_SIGNAL or not all(parts):
        return False
    stems, numbers = zip(*((part[1], int(part[2])) for part in parts if part), strict=True)
    return len(set(stems)) == 1 and all(b == a + 1 for a, b in itertools.pairwise(numbers))


class Tabular(Source):
    """Columns of numbers or text, and a label column whose sorted distinct values are the classes 0 … C−1."""

    path: Path
    protocol = "tabular-2"
    space = "tabular"

    def __init__(self, path: Path, label: str | None = None) -> None:
        self.path, self.name = path, str(path)
        self._train, self._test = table_files.parts(path)
        self._wanted = label
        self._made_by: TablePreparation | None = None
        self._numbers_are_classes = False  # of data that a file was made of, which names no classes
        self._said: list[str] = []
        if label is not None and label not in self._schema.names:
            raise unknown_name(f"column of {self._first}", label, self._schema.names)

    @property
    def notes(self) -> tuple[str, ...]:
        label, how = self._label_and_how
        said = [f"label: column {label!r}{how}; {len(self._features)} features", *self._said]
        index = [name for name in self._schema.names if table_files.is_index(name) and name not in self._features]
        if index and label not in index:
            said.append(f"column {index[0]!r} is left out: it looks like the numbering of rows that pandas writes")
        if numbered(self._features):
            first, last = self._features[0], self._features[-1]
            said.append(
                f"columns {first} to {last} are numbered: if neighbours belong together, as beams or moments do, try "
                f"--protocol {SIGNAL}, a ConvNet along them"
            )
        if self._train is not None and self._train == self._test:
            said.append(carving_note(self._train))
        return tuple(said)

    def fitted(self, train_rows: Callable[[np.ndarray], np.ndarray]) -> Tabular:
        """With the levels of text, and centre and scale of numbers, where a column has text or gaps or spreads much
        farther than another; else no file needs names of columns, nor labels that are the numbers of their classes."""
        if self._train is None or self._made_by is not None or self._numbers_are_classes:
            return self
        path, table = self._train, self._table(self._train)
        y = self._numbered(table[self._label], path)
        rows = carved(y, path)[0] if self._train == self._test else np.arange(len(y))
        taken = {name: table[name].take(rows) for name in self._features}
        gaps = {name for name in self._features if _has_gaps(table[name])}
        columns, notes = fitted_columns(taken, train_rows(y[rows]), path, gaps)
        classes = self._class_names(notes)
        made = self._prepared(TablePreparation(columns, classes) if columns or classes else None)
        made._said = [*notes, made._made_by.summary] if made._made_by else notes
        return made

    @property
    def preparation(self) -> Preparation | None:
        return self._made_by

    def prepared_by(self, preparation: Preparation | None) -> Tabular:
        if preparation is not None and not isinstance(preparation, TablePreparation):
            raise InputError(f"{self.name}: the file was made of {preparation.name}, and these are rows of a table")
        made = self._prepared(preparation)
        # else the distinct labels of data that lack a class would be numbered anew
        made._numbers_are_classes = preparation is None or not preparation.classes
        return made

    def _prepared(self, preparation: TablePreparation | None) -> Tabular:
        made = copy.copy(self)
        made._made_by = preparation
        for known in ("_label_and_how", "_classes"):
            made.__dict__.pop(known, None)
        return made

    def train_arrays(self) -> Arrays:
        if self._train is None:
            raise InputError(f"{self.name}: no train.parquet or train.csv")
        return self._arrays(self._train, 0)

    def test_arrays(self) -> Arrays:
        return self._arrays(self._test, 1)

    def check_test_part(self, shape: tuple[int, ...]) -> None:
        """Of the test part its columns are read for types and gaps, and the set of its labels."""
        if self._train == self._test:
            return
        names = table_files.schema(self._test).names
        missing = [name for name in (self._label, *self._features) if name not in names]
        if missing:
            raise InputError(f"{self._test}: no column {missing[0]!r}, which {self._train} has")
        table = self._table(self._test)
        self._numbered(table[self._label], self._test)
        for column in self._columns:
            values = plain(table[column.name], column.name, self._test)
            if not isinstance(column, Categorical):
                self._made(column, values, self._test)

    @property
    def _first(self) -> Path:
        return self._train or self._test

    @cached_property
    def _schema(self) -> pa.Schema:
        return table_files.schema(self._first)

    @cached_property
    def _label_and_how(self) -> tuple[str, str]:
        """The label column, and how it was found, in words."""
        names, taken = self._schema.names, {column.name for column in self._made_by.columns} if self._made_by else set()
        if self._wanted is not None:
            return self._wanted, ""
        if DEFAULT_LABEL in names and DEFAULT_LABEL not in taken:
            return DEFAULT_LABEL, ""
        could = [
            field.name
            for field in self._schema
            if field.name not in taken
            and not table_files.is_index(field.name)
            and (kinds.is_integer(field.type) or is_text(field.type))
        ]
        if len(could) == 1:
            return could[0], ", the only one that is no feature" if taken else ", the only integer or categorical one"
        which = f"{', '.join(could[:SHOWN])} could be it" if could else "none is integer or categorical"
        raise InputError(f"{self._first}: no column {DEFAULT_LABEL!r}, and {which}: name the label with --label")

    @property
    def _label(self) -> str:
        return self._label_and_how[0]

    @property
    def _features(self) -> list[str]:
        """In the order of the sample's values."""
        if self._made_by and self._made_by.columns:
            return [column.name for column in self._made_by.columns]
        found = [name for name in self._schema.names if name != self._label and not table_files.is_index(name)]
        if not found:
            raise InputError(f"{self._first}: no column beside the label {self._label!r}")
        return found

    @property
    def _columns(self) -> Sequence[Plain | Numeric | Categorical]:
        made_by = self._made_by or TablePreparation()
        return made_by.columns or [Plain(name) for name in self._features]

    @cached_property
    def _classes(self) -> np.ndarray | None:
        """The labels of the classes 0 … C−1: those that the file names, else the sorted distinct ones of the training
        part; None where there is neither."""
        if self._made_by and self._made_by.classes:
            return np.array(self._made_by.classes)
        if self._train is None or self._numbers_are_classes:
            return None
        column = _labels(self._label_column(self._train), self._label, self._train)
        classes = np.unique(column)
        if 2 * len(classes) > len(column):
            raise InputError(
                f"{self._train}: the label {self._label!r} has {len(classes)} distinct values in {len(column)} rows: "
                "every class needs 2; name another column with --label"
            )
        return classes

    def _label_column(self, path: Path) -> pa.ChunkedArray:
        """As it is, but whole numbers of a CSV with leading zeros as text: 01 is not 1."""
        column = table_files.read(path, [self._label])[self._label]
        if path.suffix != ".csv" or not kinds.is_integer(column.type):
            return column
        text = table_files.read(path, [self._label], [self._label])[self._label]
        return text if pa.compute.any(pa.compute.match_substring_regex(text, r"^[+-]?0\d")).as_py() else column

    def _class_names(self, notes: list[str]) -> tuple[Any, ...]:
        """What a file must hold of the labels: nothing where they are 0 … C−1."""
        classes = self._classes
        assert classes is not None
        if np.array_equal(classes, np.arange(len(classes)).astype(classes.dtype)):
            return ()
        shown = ", ".join(map(str, classes[:SHOWN])) + (", …" if len(classes) > SHOWN else "")
        notes.append(f"classes 0..{len(classes) - 1} are {shown}; the packed file names them")
        return tuple(classes.tolist())

    def _table(self, path: Path) -> pa.Table:
        text = [column.name for column in self._columns if isinstance(column, Categorical)]
        if self._classes is not None and self._classes.dtype.kind == "U":
            text.append(self._label)
        return table_files.read(path, [*self._features, self._label], text)

    def _arrays(self, path: Path, part: int) -> Arrays:
        table = self._table(path)
        y = self._numbered(table[self._label], path)
        columns = self._columns
        small = all(isinstance(c, Plain) and table[c.name].type in (pa.uint8(), pa.bool_()) for c in columns)
        x = np.empty((len(y), sum(column.width for column in columns)), np.uint8 if small else np.float32)
        at = 0
        for column in columns:
            values = plain(table[column.name], column.name, path)
            x[:, at : at + column.width] = self._made(column, values, path)
            at += column.width
        if self._train == self._test:
            rows = carved(y, path)[part]
            return x[rows], y[rows]
        return x, y

    def _made(self, column: Plain | Numeric | Categorical, values: np.ndarray, path: Path) -> np.ndarray:
        try:
            return column.samples(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _numbered(self, column: pa.ChunkedArray, path: Path) -> np.ndarray:
        """Labels → numbers of the classes, (n,) int64. Raises `InputError` for a class that the training part lacks."""
        labels, classes = _labels(column, self._label, path), self._classes
        if classes is None:  # the labels are the numbers of a file that names no classes
            try:
                return labels.astype(np.int64)
            except ValueError:
                raise InputError(
                    f"{path}: the label {self._label!r} is text, and the packed file numbers its classes 0, 1, …"
                ) from None
        if labels.dtype.kind != classes.dtype.kind and "U" in (labels.dtype.kind, classes.dtype.kind):
            raise InputError(f"{path}: the label {self._label!r} is text in one part and a number in the other")
        order = np.argsort(classes)
        numbers = order[np.searchsorted(classes, labels, sorter=order).clip(max=len(classes) - 1)]
        strange = np.flatnonzero(classes[numbers] != labels)
        if strange.size:
            raise InputError(f"{path}: class {labels[strange[0]]} of row {strange[0]} is not in the training part")
        return numbers.astype(np.int64)


def _has_gaps(column: pa.ChunkedArray) -> bool:
    not_a_number = kinds.is_floating(column.type) and pa.compute.any(pa.compute.is_nan(column)).as_py()
    return bool(column.null_count or not_a_number)


def _labels(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """(n,) int64, or text. Raises `InputError` for a label that is missing or continuous."""
    if column.null_count:
        raise InputError(f"{path}: {column.null_count} rows have no label {name!r}")
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_text(column.type):
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
