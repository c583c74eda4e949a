"""What a preparation of a table needs of the data: centre and scale of numbers, and the levels of text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from budgetopt.data.table_files import SHOWN
from budgetopt.errors import InputError
from budgetopt.packing.table import CENTRE_BITS, MOST_SCALE, Categorical, Numeric, as_list, as_text, numbers

MOST_LEVELS = 32  # of a column: each is a value of every sample
CONSTANT = "the same in all of the train part, so that it tells nothing"
FARTHEST = float(np.finfo(np.float32).max)
# Ratio of standard deviations that a network bears: digits beside four columns of noise that spread 64 times as far are
# told at 96.1 %, 256 times at 93.4 %, 4,096 times by chance (97.6 % at equal spread; tabular-2 with 300 steps)
SPREADS_APART = 64.0
INDICATED_SHARE = 0.05  # of the rows: where fewer lack a value, telling which ones is not worth a value of every sample


def fitted_columns(
    columns: Mapping[str, pa.ChunkedArray], train: np.ndarray, path: Path, gaps: Collection[str] = ()
) -> tuple[tuple[Numeric | Categorical, ...], list[str]]:
    """→ how each of the columns is prepared, by the rows `train` of it alone, and what to tell the user of that. No
    columns where none needs it: all are numbers without gaps, of similar spread. gaps: columns that have some in other
    rows, too, so that a value must be known to put there."""
    said: dict[str, list[str]] = {"text": [], "gaps": [], CONSTANT: []}
    made: list[Numeric | Categorical] = []
    spreads = []
    for name, column in columns.items():
        values = plain(column, name, path)
        if is_text(column.type):
            made.append(_categorical([as_text(v) for v in as_list(values[train])], name, path, said))
        else:
            numeric, spread = _numeric(numbers(values, name), name, train, path, said, name in gaps)
            made.append(numeric)
            spreads += [spread] if spread else []
    apart = max(spreads, default=1.0) / min(spreads, default=1.0)
    shown = {what: names[:SHOWN] + ["…"] * (len(names) > SHOWN) for what, names in said.items() if names}
    notes = [f"{what}: {'; '.join(names)}" for what, names in shown.items()]
    if apart > SPREADS_APART:
        notes.append(f"one column spreads {apart:,.0f} times as far as another: all are brought to one scale")
    needed = apart > SPREADS_APART or said["gaps"] or any(isinstance(column, Categorical) for column in made)
    return tuple(made) if needed else (), notes


def _numeric(
    values: np.ndarray, name: str, train: np.ndarray, path: Path, said: dict[str, list[str]], gaps: bool
) -> tuple[Numeric, float]:
    """values: (n,) float64 of all rows, NaN where one is missing → the column, and its standard deviation, 0 where it
    is constant."""
    missing = np.isnan(values)
    known = values[train][~missing[train]].clip(-FARTHEST, FARTHEST)
    if not len(known):
        raise InputError(f"{path}: column {name!r} holds no value at all in the train part: remove it from the file")
    if missing.any() or gaps:
        said["gaps"].append(f"column {name!r}, {missing[train].mean():.1%}, taken as the median {np.median(known):g}")
    spread = float(known.std()) if known.min() < known.max() else 0.0
    if not spread:
        said[CONSTANT].append(f"column {name!r}, {known[0]:g}")
    centre, scale = on_scale(float(np.median(known)), spread)
    return Numeric(name, centre, scale, bool(missing[train].mean() >= INDICATED_SHARE)), spread


def on_scale(median: float, spread: float) -> tuple[int, int]:
    """→ centre and scale of a column with that median and standard deviation: a power of two next to the spread, 1 for
    none, not so fine that float64 could not hold the centre."""
    least = max(abs(median) / 2.0**40, 2.0**-MOST_SCALE if spread else 1.0)
    scale = min(round(math.log2(max(spread, least))), MOST_SCALE)
    return round(math.ldexp(median, CENTRE_BITS - scale)), scale


def _categorical(values: list[str], name: str, path: Path, said: dict[str, list[str]]) -> Categorical:
    """values: of the train part."""
    counts = Counter(values)
    if len(counts) == 1:
        said[CONSTANT].append(f"column {name!r}, {values[0]!r}")
    elif len(counts) <= MOST_LEVELS:
        said["text"].append(f"column {name!r}, {len(counts)} levels")
    if len(counts) <= MOST_LEVELS:
        return Categorical(name, tuple(sorted(counts)))
    if 2 * len(counts) > len(values):
        raise InputError(
            f"{path}: column {name!r} has {len(counts)} different texts in {len(values)} rows of the train part: names "
            "tell nothing of other rows, remove it from the file"
        )
    often = sorted(counts, key=lambda level: (-counts[level], level))[: MOST_LEVELS - 1]
    said["text"].append(f"column {name!r}, {len(often)} most frequent of {len(counts)} levels, others as one")
    return Categorical(name, tuple(sorted(often)), other=True)


def is_text(kind: pa.DataType) -> bool:
    """Of strings, or of codes into a dictionary."""
    if kinds.is_dictionary(kind):
        return is_text(kind.value_type) or kinds.is_integer(kind.value_type)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)


def plain(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """(n,) values of a feature: text, or numbers with NaN or None where one is missing. Raises `InputError` for a type
    that is neither."""
    kind = column.type
    if kinds.is_dictionary(kind):
        column = column.cast(kind.value_type)
    elif kinds.is_decimal(kind):
        column = column.cast(pa.float64())
    elif kinds.is_null(kind):
        return np.full(len(column), None, object)
    elif kinds.is_binary(kind) or kinds.is_large_binary(kind):
        raise InputError(f"{path}: column {name!r} holds bytes that are not text in UTF-8")
    elif not (is_text(kind) or kinds.is_integer(kind) or kinds.is_boolean(kind) or kinds.is_floating(kind)):
        raise InputError(f"{path}: column {name!r} is of type {kind}; features must be numbers or text")
    return column.to_numpy()
