"""Parquet and CSV on disk: the files of a table, their columns, and one line for what cannot be read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from budgetopt.errors import InputError, first_line
from budgetopt.packing.table import MISSING

SUFFIXES = (".parquet", ".csv")
MOST_VALUES = 1 << 30  # of one part: a few bytes of Parquet may claim any number of rows
SHOWN = 8  # names in a line
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
NEWLINES = pyarrow.csv.ParseOptions(newlines_in_values=True)
INDEX = re.compile(r"__index_level_\d+__|Unnamed: 0|")  # columns that pandas writes beside those of the data


def is_table(name: str) -> bool:
    """Whether `name` is that of a table, or of a folder: where nothing else has that name it is read as tables."""
    return name.endswith(SUFFIXES) or Path(name).is_dir()


def parts(path: Path) -> tuple[Path | None, Path]:
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


def is_index(name: str) -> bool:
    """Whether a column is the numbering of rows that pandas writes: it tells of the order of rows, no more."""
    return INDEX.fullmatch(name) is not None


def schema(path: Path) -> pa.Schema:
    """Names and types of the columns; of CSV the types are those of its first megabyte."""
    with one_line(path):
        if path.suffix == ".csv":
            with path.open("rb") as stream:
                start = stream.readline(1 << 16)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise InputError(f"{path}: the file is in UTF-16: save it as UTF-8")
            _check_delimiter(path, start)
            with pyarrow.csv.open_csv(path, parse_options=NEWLINES) as reader:
                found = reader.schema
        else:
            found = pyarrow.parquet.read_schema(path)
        names = found.names  # decodes them
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{path}: two columns are called {twice!r}")
    if path.suffix == ".csv" and all(map(_is_number, names)):
        raise InputError(f"{path}: the first line must name the columns, got {','.join(names[:SHOWN])}")
    return found


def _check_delimiter(path: Path, header: bytes) -> None:
    """Before anything is parsed: where numbers have decimal commas, later lines have another number of columns."""
    line = header.decode(errors="replace").strip()
    for delimiter, spelt in DELIMITERS.items():
        if delimiter in line and "," not in line:
            raise InputError(
                f"{path}: columns are separated by {spelt}, {line[:80]!r}: separate them by commas, and write "
                "numbers with a point"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read(path: Path, columns: list[str], as_text: Iterable[str] = ()) -> pa.Table:
    """Some columns of the file, at least one row. as_text: those whose values are text in a CSV, whatever they look
    like."""
    with one_line(path):
        if path.suffix == ".csv":
            kinds = {name: pa.string() for name in as_text}
            # NA and the like are missing in text too, as pandas reads them: a receiver may read its rows by it
            options = pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=kinds, strings_can_be_null=True,
                null_values=sorted(MISSING),
            )  # fmt: skip
            table = pyarrow.csv.read_csv(path, parse_options=NEWLINES, convert_options=options)
        else:
            file = pyarrow.parquet.ParquetFile(path)
            if file.metadata.num_rows * len(columns) > MOST_VALUES:
                raise InputError(f"{path}: {file.metadata.num_rows:,} rows of {len(columns):,} columns are too many")
            there = set(file.schema_arrow.names)
            missing = [name for name in columns if name not in there]
            if missing:
                raise InputError(f"{path}: no column {missing[0]!r}")
            table = file.read(columns)
    if not len(table):
        raise InputError(f"{path}: no rows")
    return table


@contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Whatever a file that is not what its name says makes of its reader becomes one line."""
    try:
        yield
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: names of columns are not in UTF-8 ({error.object!r}): save it as UTF-8") from None
    except Exception as error:
        raise InputError(f"cannot read the dataset {str(path)!r}: {first_line(error)}") from None
