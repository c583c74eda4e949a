"""Rows of a table → feature vectors: columns by name, numbers on one scale, text as one value a level, classes by
name."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from budgetopt.errors import InputError
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.preparation import Preparation

MOST_BYTES = 1 << 18  # of the parameters before deflate: a few bytes of it may claim a thousand times as many
MOST_CENTRE = 1 << 52  # of a centre in parts of the scale, so that float64 holds it
MOST_SCALE = 126  # of a scale's exponent, either way: that of float32's range
CENTRE_BITS = 4  # a centre is a whole number of sixteenths of the scale
MOST_CLASS = 1 << 62  # of a class that is a number
_NUMERIC, _INDICATED, _CATEGORICAL, _OTHER = range(4)  # kinds of columns, as stored
_NUMBERS, _TEXT = range(2)  # kinds of classes, as stored

# what stands for no value in a CSV, as Arrow and pandas read it
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA", "NULL")
) | {"NaN", "n/a", "nan", "null"}


@dataclass(frozen=True)
class Plain:
    """A column of numbers as they are, none missing: what files hold that name no columns."""

    name: str

    @property
    def width(self) -> int:
        """Values of a sample that the column makes."""
        return 1

    def samples(self, values: Any) -> np.ndarray:
        """values: (n,) numbers, or text of numbers → (n, 1) float32."""
        found = numbers(values, self.name)
        missing = np.isnan(found)
        if missing.size and missing.all():
            raise InputError(f"column {self.name!r} holds no value at all: leave it out")
        if missing.any():
            raise InputError(
                f"column {self.name!r} lacks {missing.sum()} values, the first in row {missing.argmax()}, and no value "
                "to put there is known, since the training part has them all: fill them in"
            )
        return _float32(found, found, self.name)[:, None]


@dataclass(frozen=True)
class Numeric:
    """A column of numbers on a scale that it has in common with others: (x − centre·2^(scale − 4)) · 2^−scale, and 0
    where one is missing. indicator: a second value tells which were, 1."""

    name: str
    centre: int = 0
    scale: int = 0
    indicator: bool = False

    @property
    def width(self) -> int:
        """Values of a sample that the column makes."""
        return 1 + self.indicator

    def samples(self, values: Any) -> np.ndarray:
        """values: (n,) numbers, or text of numbers; None, NaN and text in MISSING are gaps → (n, width) float32."""
        found = numbers(values, self.name)
        missing = np.isnan(found)
        with np.errstate(over="ignore"):
            scaled = np.ldexp(found - math.ldexp(self.centre, self.scale - CENTRE_BITS), -self.scale)
        made = np.empty((len(found), self.width), np.float32)
        made[:, 0] = _float32(np.where(missing, 0.0, scaled), found, self.name)
        if self.indicator:
            made[:, 1] = missing
        return made


def numbers(values: Any, name: str) -> np.ndarray:
    """Of the column called `name`: (n,) float64, NaN where a value is missing: None, NaN, text in MISSING."""
    found = np.asarray(values)
    if found.dtype.kind in "biuf":
        return found.astype(np.float64)
    made = np.full(len(found), np.nan)
    for row, value in enumerate(found.tolist()):
        try:
            made[row] = np.nan if value is None or (isinstance(value, str) and value in MISSING) else value
        except (TypeError, ValueError):
            raise InputError(f"column {name!r} is {value!r} in row {row}: it must hold numbers") from None
    return made


def _float32(made: np.ndarray, of: np.ndarray, name: str) -> np.ndarray:
    far = np.flatnonzero(np.abs(made) > np.finfo(np.float32).max)
    if far.size:
        raise InputError(f"column {name!r} is {of[far[0]]:g} in row {far[0]}, too large for float32")
    return made.astype(np.float32)


@dataclass(frozen=True)
class Categorical:
    """A column of text, one value a level: 1 for the level that a row has, else 0. other: one more value for all other
    levels; without it they are all zeros. What is missing has the empty text as its level."""

    name: str
    levels: tuple[str, ...]
    other: bool = False

    @property
    def width(self) -> int:
        """Values of a sample that the column makes."""
        return len(self.levels) + self.other

    def samples(self, values: Any) -> np.ndarray:
        """values: (n,) text, or whole numbers as text → (n, width) float32."""
        unknown = len(self.levels)
        at = {level: place for place, level in enumerate(self.levels)}
        listed = as_list(values)
        texts = [as_text(value) for value in listed]
        # NA is a gap, unless it is a level: an Arrow table may hold it as text
        texts = ["" if text in MISSING and text not in at else text for text in texts]
        places = np.fromiter((at.get(text, unknown) for text in texts), np.int64, len(texts))
        made = np.zeros((len(listed), unknown + 1), np.float32)
        made[np.arange(len(listed)), places] = 1
        return made[:, : self.width]


@dataclass(frozen=True)
class TablePreparation(Preparation):
    """How feature vectors are made of the rows of a table, and classes of its labels.

    columns: in the order of the sample's values; none where these are numbers as they are, without gaps, in the order
    of the training table, which a receiver's has too. classes: labels of the classes 0 … C−1, whole numbers or text;
    none where the numbers themselves are the labels.
    """

    columns: tuple[Numeric | Categorical, ...] = ()
    classes: tuple[int, ...] | tuple[str, ...] = ()
    # as it was read: another zlib may find other bytes, and a file that is packed again must not change
    deflated: bytes | None = field(default=None, compare=False, repr=False)

    kind = 2
    name = "the rows of a table"

    @property
    def summary(self) -> str:
        columns = self.columns
        text = [c for c in columns if isinstance(c, Categorical)]
        gaps = [c for c in columns if isinstance(c, Numeric) and c.indicator]
        facts = [f"{len(columns)} columns by name"] if columns else ["columns by their order"]
        facts += [f"{len(text)} of text in {sum(c.width for c in text)} values"] if text else []
        facts += [f"{len(gaps)} with their gaps indicated"] if gaps else []
        facts += [f"labels {_listed(self.classes)}"] if self.classes else []
        return f"{self.name}: {'; '.join(facts)}"

    def samples(self, table: Any) -> np.ndarray:
        """table: columns by name, a mapping, a data frame or an Arrow table, of n rows; other columns than those named
        are passed over → (n, f) float32. Raises `InputError` for a column that is missing or cannot be used."""
        there = _by_name(table)
        columns = self.columns or [Plain(name) for name in there]
        missing = [column.name for column in columns if column.name not in there]
        if missing:
            raise InputError(f"no column {missing[0]!r}, which the samples are made of: {_listed(there)} are there")
        made = [column.samples(there[column.name]) for column in columns]
        rows = {len(part) for part in made}
        if len(rows) != 1:
            raise InputError(f"the columns have between {min(rows, default=0)} and {max(rows, default=0)} rows")
        return np.concatenate(made, axis=1)

    def labels(self, values: Any) -> np.ndarray:
        """values: (n,) labels as in the table → (n,) int64 classes. Raises `InputError` for an unknown one."""
        at = {name: place for place, name in enumerate(self.classes)}
        listed = as_list(values)
        numbers = np.empty(len(listed), np.int64)
        for row, value in enumerate(listed):
            try:
                numbers[row] = at[value] if self.classes else value
                if not self.classes and numbers[row] != value:
                    raise ValueError(f"{value} is cut off")
            except (KeyError, TypeError, ValueError, OverflowError):
                known = _listed(self.classes) if self.classes else "whole numbers"
                raise InputError(f"label {value!r} of row {row} is not one of {known}") from None
        return numbers

    def parameters(self) -> dict[str, Any]:
        return {"columns": [asdict(column) for column in self.columns], "classes": list(self.classes)}

    def write(self, out: Writer) -> None:
        """Parameters, deflated: names are text. Raises `BadHeader` where they are more than the format allows."""
        deflated = self.deflated if self.deflated is not None else self._deflated()
        out.unsigned(len(deflated))
        out.raw(deflated)

    def _deflated(self) -> bytes:
        body = Writer()
        body.unsigned(len(self.columns))
        for column in self.columns:
            body.byte(_kind(column))
        for column in self.columns:
            _write_text(body, column.name)
        for column in self.columns:
            if isinstance(column, Categorical):
                body.unsigned(len(column.levels))
                for level in column.levels:
                    _write_text(body, level)
            else:
                body.signed(column.scale)
                body.signed(column.centre)
        body.unsigned(len(self.classes))
        if self.classes:
            body.byte(_TEXT if isinstance(self.classes[0], str) else _NUMBERS)
        for name in self.classes:
            if isinstance(name, str):
                _write_text(body, name)
            elif abs(name) > MOST_CLASS:
                raise BadHeader(f"a class that is a number must be within ±{MOST_CLASS:,}, got {name:,}")
            else:
                body.signed(name)
        if len(body.data) > MOST_BYTES:
            raise BadHeader(f"names of columns, levels and classes take {len(body.data):,} bytes, over {MOST_BYTES:,}")
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(bytes(body.data)) + packer.flush()

    @classmethod
    def read(cls, fields: Reader, shape: tuple[int, ...]) -> TablePreparation:
        if len(shape) != 1:
            raise BadHeader(f"rows of a table make feature vectors, not samples of shape {shape}")
        deflated = fields.raw(fields.unsigned(MOST_BYTES, "the length of the table's preparation"))
        body = Reader(_inflated(deflated))
        kinds = [body.byte() for _ in range(body.unsigned(min(shape[0], body.left), "the number of columns"))]
        if any(kind > _OTHER for kind in kinds):
            raise BadHeader(f"unknown kind of column {max(kinds)}")
        names = _read_names(body, len(kinds), "column")
        columns = tuple(_read_column(body, kind, name) for kind, name in zip(kinds, names, strict=True))
        values = sum(column.width for column in columns)
        if columns and values != shape[0]:
            raise BadHeader(f"the columns of the table make {values} values, the samples have {shape[0]}")
        classes: tuple[int, ...] | tuple[str, ...] = ()
        number = body.unsigned(min(1 << 16, body.left), "the number of named classes")
        if number:
            form = body.byte()
            if form > _TEXT:
                raise BadHeader(f"unknown kind of classes {form}")
            if form == _TEXT:
                classes = _read_names(body, number, "class")
            else:
                classes = tuple(body.signed(MOST_CLASS, "a class") for _ in range(number))
                _check_distinct(classes, "class")
        if body.left:
            raise BadHeader(f"{body.left} bytes follow the table's preparation")
        return cls(columns, classes, deflated)


def as_list(values: Any) -> list[Any]:
    """Of an array of numpy or Arrow, a data frame's column, or any sequence."""
    for convert in ("to_pylist", "tolist"):
        if hasattr(values, convert):
            return list(getattr(values, convert)())
    return list(values)


def as_text(value: Any) -> str:
    """The level that a value of a categorical column is: whole numbers are written as such, whatever their type, and
    what is missing as nothing."""
    if value is None:
        return ""
    if isinstance(value, float | np.floating):  # whole numbers with gaps often are
        return "" if np.isnan(value) else str(int(value)) if np.isfinite(value) and value == int(value) else str(value)
    return str(value)


def _by_name(table: Any) -> Mapping[str, Any]:
    names = getattr(table, "column_names", None)  # Arrow's tables
    if isinstance(table, list | tuple) and table and all(isinstance(row, Mapping) for row in table):
        return {name: [row.get(name) for row in table] for name in table[0]}
    if names is None:
        try:
            names = list(table.keys())
        except AttributeError:
            raise InputError(
                f"rows of a table are columns by name (a mapping to arrays, a data frame, an Arrow table) or a list of "
                f"one mapping for each row, not {type(table).__name__}"
            ) from None
    return {name: table[name] for name in names}


def _listed(names: Iterable[Any], most: int = 8) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:most]) + (", …" if len(shown) > most else "")


def _kind(column: Numeric | Categorical) -> int:
    if isinstance(column, Categorical):
        return _OTHER if column.other else _CATEGORICAL
    return _INDICATED if column.indicator else _NUMERIC


def _read_column(body: Reader, kind: int, name: str) -> Numeric | Categorical:
    if kind in (_NUMERIC, _INDICATED):
        scale = body.signed(MOST_SCALE, "the scale of a column")
        return Numeric(name, body.signed(MOST_CENTRE, "the centre of a column"), scale, kind == _INDICATED)
    levels = _read_names(body, body.unsigned(body.left, "the number of levels of a column"), "level")
    if not levels:
        raise BadHeader(f"column {name[:40]!r} has no level")
    return Categorical(name, levels, kind == _OTHER)


def _write_text(out: Writer, text: str) -> None:
    """UTF-8 and a zero, which deflate makes shorter than lengths. Raises `BadHeader` for text with a zero in it."""
    if "\0" in text:
        raise BadHeader(f"a name may hold no zero character, got {text!r}")
    out.raw(text.encode() + b"\0")


def _read_names(body: Reader, count: int, what: str) -> tuple[str, ...]:
    names = []
    for _ in range(count):
        letters = bytearray()
        while letter := body.byte():
            letters.append(letter)
        try:
            names.append(letters.decode())
        except UnicodeDecodeError:
            raise BadHeader(f"the name of a {what} is not UTF-8: {bytes(letters[:40])!r}") from None
    _check_distinct(names, what)
    return tuple(names)


def _check_distinct(names: Sequence[Any], what: str) -> None:
    if len(set(names)) < len(names):
        raise BadHeader(f"two names of a {what} are the same")


def _inflated(deflated: bytes) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        data = unpacker.decompress(deflated, MOST_BYTES + 1)
    except zlib.error as error:
        raise BadHeader(f"the table's preparation cannot be inflated: {error}") from None
    if len(data) > MOST_BYTES:
        raise BadHeader(f"the table's preparation inflates to more than {MOST_BYTES:,} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise BadHeader("the table's preparation is cut short, or followed by something")
    return data
