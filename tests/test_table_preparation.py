"""Tables with text, gaps and named classes: what the file must hold of them, and what a receiver makes with it."""

import csv
import io
import json
import math
import re
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from sets import packed_set, table_preparation
from sklearn.model_selection import train_test_split

from budgetopt import api, cli, load
from budgetopt.data import Dataset, open_source, table_fitting
from budgetopt.errors import PackedFileError
from budgetopt.packing import TablePreparation, pack, unpack
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.fields import Reader, Writer
from budgetopt.packing.table import MOST_BYTES, Categorical, Numeric

ROWS = {
    "year": [1999, 2000, 2001, 2002],
    "age": [1.5, -2.0, 3.0, 0.0],
    "income": [1e3, None, 2e3, math.nan],
    "rooms": [None, 4, "", 5],
    "job": ["smith", "", None, "cook"],
    "öffnet": ["ja", "nein", "vielleicht", None],
    "note": ["passed", "over", "by", "all"],
}


def naive(preparation, table):
    """The same row by row, in the words of FORMAT.md."""
    made = []
    for row in range(len(next(iter(table.values())))):
        values = []
        for column in preparation.columns:
            value = table[column.name][row]
            missing = value is None or value == "" or value != value
            if isinstance(column, Numeric):
                centre, scale = column.centre * 2.0 ** (column.scale - 4), 2.0**column.scale
                values.append(0.0 if missing else (float(value) - centre) / scale)
                if column.indicator:
                    values.append(float(missing))
            else:
                ones = [float(level == ("" if missing else value)) for level in column.levels]
                values += ones + [1.0 - sum(ones)] * column.other
        made.append(values)
    return np.array(made, np.float32)


def through_bytes(preparation, width=None):
    out = Writer()
    preparation.write(out)
    return TablePreparation.read(Reader(bytes(out.data)), (width or sum(c.width for c in preparation.columns) or 1,))


# --- samples of rows -------------------------------------------------------------------------------------------------


def test_rows_become_samples():
    made = table_preparation().samples(ROWS)
    assert made.dtype == np.float32
    assert made.tolist() == [
        [(1.5 - 20) / 8, (1000 - 25600) / 4096, 0, 1, 0, 0, 1, 0, 1, 0, -1],
        [(-2 - 20) / 8, 0, 4 - 3 / 16, 0, 1, 0, 0, 0, 0, 1, 0],
        [(3 - 20) / 8, (2000 - 25600) / 4096, 0, 1, 1, 0, 0, 0, 0, 0, 1],
        [(0 - 20) / 8, 0, 5 - 3 / 16, 0, 0, 0, 0, 1, 0, 0, 2],
    ]
    assert np.array_equal(made, naive(table_preparation(), ROWS))


def test_tables_of_any_kind_give_the_same_samples():
    """Lists, arrays, Arrow, what the csv module reads, whatever the order of the columns."""
    numeric = {"age", "income", "rooms", "year"}
    plain = {name: [None if v in ("", None) or v != v else v for v in column] for name, column in ROWS.items()}
    arrow = {n: pa.array(c, pa.float64() if n in numeric else pa.string()) for n, c in plain.items()}
    wanted = table_preparation().samples(ROWS)
    arrays = {n: np.array([math.nan if v is None else v for v in plain[n]]) for n in numeric}
    words = {n: np.array([v or "" for v in c]) for n, c in plain.items() if n not in numeric}
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(plain))
    writer.writeheader()
    writer.writerows(dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True))
    read = list(csv.DictReader(io.StringIO(stream.getvalue())))
    texts = {name: [row[name] for row in read] for name in plain}
    coded = arrow | {"job": arrow["job"].dictionary_encode()}
    kinds = [plain, dict(reversed(plain.items())), arrays | words, pa.table(arrow), pa.table(coded), texts]
    try:
        import pandas
    except ImportError:
        pass
    else:
        kinds += [pandas.DataFrame(plain), pandas.DataFrame(texts)]
    for kind in kinds:
        assert np.array_equal(table_preparation().samples(kind), wanted)


def test_whole_numbers_are_levels_whatever_their_type():
    column = Categorical("zone", ("", "-3", "7"))
    for values in (
        [7, -3, None],
        np.array([7.0, -3.0, np.nan]),
        ["7", "-3", ""],
        [np.int8(7), -3, ""],
    ):
        assert column.samples(values).tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert column.samples(["7.0", 7.5, math.inf]).tolist() == [[0, 0, 0]] * 3


@given(st.data())
@settings(max_examples=60)
def test_fast_and_naive_agree_and_bytes_keep_everything(data):
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
    number = st.floats(-1e6, 1e6, width=32)
    names = data.draw(st.lists(text, min_size=1, max_size=5, unique=True))
    columns, table = [], {}
    rows = data.draw(st.integers(1, 5))
    for name in names:
        if data.draw(st.booleans()):
            centre, scale = data.draw(st.integers(-(2**20), 2**20)), data.draw(st.integers(-30, 30))
            columns.append(Numeric(name, centre, scale, data.draw(st.booleans())))
            cell = st.none() | number
        else:
            levels = data.draw(st.lists(text, min_size=1, max_size=4, unique=True))
            columns.append(Categorical(name, tuple(levels), data.draw(st.booleans())))
            cell = st.none() | text | st.sampled_from(levels)
        table[name] = data.draw(st.lists(cell, min_size=rows, max_size=rows))
    classes = data.draw(st.lists(text, unique=True, max_size=3) | st.lists(st.integers(-(2**40), 2**40), unique=True))
    preparation = TablePreparation(tuple(columns), tuple(classes))
    assert np.array_equal(preparation.samples(table), naive(preparation, table))
    assert through_bytes(preparation) == preparation
    assert preparation.labels(classes).tolist() == list(range(len(classes)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"job": None}, ("no column 'job'", "'age'")),
        ({"age": [1, "x", 2, 3]}, ("column 'age' is 'x' in row 1",)),
        ({"age": [1, 2, 3, math.inf]}, ("column 'age' is inf in row 3", "float32")),
        ({"age": [1, 2, 3]}, ("between 3 and 4 rows",)),
    ],
)
def test_rows_that_cannot_be(changes, words):
    table = {name: column for name, column in (ROWS | changes).items() if column is not None}
    refused(lambda: table_preparation().samples(table), *words)


def test_labels_by_name_and_by_number():
    assert table_preparation().labels(np.array(["oak", "ash"])).tolist() == [2, 0]
    assert TablePreparation((), (5, -1)).labels([-1, 5.0, np.int8(5)]).tolist() == [1, 0, 0]
    assert TablePreparation().labels([2, 0]).tolist() == [2, 0]
    refused(lambda: table_preparation().labels(["ash", "elm"]), "label 'elm' of row 1", "'yew'")
    refused(lambda: TablePreparation().labels(["0x"]), "label '0x' of row 0", "whole numbers")


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_bytes_are_few_and_stay_when_packed_again():
    """A file by another zlib is packed as it was."""
    packed = packed_set(np.zeros((3, 11)), preparation=table_preparation())
    data, bare = pack(packed), pack(packed_set(np.zeros((3, 11))))
    assert len(data) - len(bare) < 105
    assert unpack(data).preparation == table_preparation()
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    body = zlib.decompress(Reader(written(table_preparation())).raw(len(written(table_preparation())))[1:], -15)
    other = TablePreparation.read(Reader(framed(stored.compress(body) + stored.flush())), (11,))
    assert other == table_preparation()
    longer = pack(packed_set(np.zeros((3, 11)), preparation=other))
    assert len(longer) > len(data)
    assert pack(unpack(longer)) == longer


def written(preparation):
    out = Writer()
    preparation.write(out)
    return bytes(out.data)


def deflated(body):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(body) + packer.flush()


def framed(data):
    out = Writer()
    out.unsigned(len(data))
    out.raw(data)
    return bytes(out.data)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x00\x00x", ("1 bytes follow",)),
        (b"\x01\x04a\0\x00", ("unknown kind of column 4",)),
        (b"\x03", ("the number of columns is above its limit",)),
        (b"\x02\x00\x00a\0a\0\x00", ("two names of a column",)),
        (b"\x01\x02a\0\x02x\0x\0\x00", ("two names of a level",)),
        (b"\x01\x02a\0\x00\x00", ("column 'a' has no level",)),
        (b"\x01\x00a\0\x00\x00\x00", ("make 1 values, the samples have 2",)),
        (b"\x01\x01a\0\xfe\x01\x00\x00", ("the scale of a column is above",)),
        (b"\x01\x01a\0\x00" + b"\xff" * 7 + b"\x7f\x00", ("the centre of a column is above",)),
        (b"\x02\x00\x00\xff\0b\0\x00", ("not UTF-8",)),
        (b"\x00\x02\x02ab", ("unknown kind of classes 2",)),
        (b"\x00\x02\x00\x02\x02", ("two names of a class",)),
        (b"\x00\x02\x01a\0a\0", ("two names of a class",)),
        (b"\x02\x00\x00a\0b", ("needs 1 more bytes",)),
    ],
)
def test_hostile_parameters(body, words):
    read = lambda: TablePreparation.read(Reader(framed(deflated(body))), (2,))  # noqa: E731
    refused(read, *words, error=PackedFileError)


def test_hostile_deflate():
    good = deflated(b"\x00\x00")
    assert TablePreparation.read(Reader(framed(good)), (2,)) == TablePreparation()
    for data, words in ((good[:-1], "cut short"), (good + b"x", "followed"), (b"\xff" * 9, "cannot be inflated")):
        refused(lambda d=data: TablePreparation.read(Reader(framed(d)), (2,)), words, error=BadHeader)
    refused(lambda: TablePreparation.read(Reader(framed(good)), (1, 2, 2)), "feature vectors", error=BadHeader)


def test_a_bomb_takes_little_memory():
    bomb = deflated(bytes(1 << 28))
    assert len(bomb) < MOST_BYTES + 100_000
    tracemalloc.start()
    refused(lambda: TablePreparation.read(Reader(framed(bomb[:MOST_BYTES])), (2,)), "inflates to more", error=BadHeader)
    many = deflated(b"\x01\x02a\0" + b"\xff\xff\x0f" + b"".join(b"%x\0" % i for i in range(45_000)) + b"\x00")
    refused(lambda: TablePreparation.read(Reader(framed(many)), (2,)), "above its limit", error=BadHeader)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_what_no_file_may_hold_is_not_written():
    refused(lambda: written(TablePreparation((Numeric("a\0b"),))), "zero character", error=BadHeader)
    endless = TablePreparation((Categorical("a", tuple("x" * 9000 + str(i) for i in range(31))),))
    refused(lambda: written(endless), "names of columns, levels and classes take 279", error=BadHeader)


# --- fitting ---------------------------------------------------------------------------------------------------------


def mixed(n=120, seed=0):
    """Rows whose class shows in a number, in text and in what is missing."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    size = np.round(y + rng.normal(size=n), 2)
    colour = np.array(["red", "green", "blue"])[np.where(rng.random(n) < 0.7, y, rng.integers(0, 3, n))]
    weight = [None if rng.random() < 0.2 else float(v) for v in np.round(100 * y + rng.normal(size=n), 1)]
    return {
        "size": pa.array(size),
        "colour": pa.array(colour),
        "weight": pa.array(weight, pa.float64()),
        "kind": pa.array(np.array(["fir", "oak", "ash"])[y]),
    }


def write(path, table):
    table = pa.table(table)
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table)(table, path)


def folder(path, train, test=None, suffix=".parquet"):
    path.mkdir()
    for name, table in (("train", train), ("test", test)):
        if table is not None:
            write(path / (name + suffix), table)
    return str(path)


def prepared(path, seed=0):
    return Dataset.prepare(open_source(path, label="kind"), seed)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_fitted_to_a_table(tmp_path, suffix):
    train, test = mixed(), mixed(30, 1)
    data = prepared(folder(tmp_path / "d", train, test, suffix))
    preparation = data.spec.preparation
    assert [c.name for c in preparation.columns] == ["size", "colour", "weight"]
    numbers = np.array(train["size"].to_pylist())[rows_of_train(train)]
    assert preparation.columns[0] == Numeric("size", round(16 * np.median(numbers)), 0)
    assert preparation.columns[1] == Categorical("colour", ("blue", "green", "red"))
    assert preparation.columns[2].indicator
    assert preparation.classes == ("ash", "fir", "oak")
    assert data.spec.shape == (6,)
    plain = {name: column.to_pylist() for name, column in test.items()}
    assert np.array_equal(data.load_test().x, naive(preparation, plain))
    assert data.load_test().y.tolist() == [preparation.classes.index(kind) for kind in plain["kind"]]
    assert any("colour" in note and "3 levels" in note for note in data.source.notes)
    assert any("'weight'" in note and "taken as the median" in note for note in data.source.notes)


def rows_of_train(table, seed=0):
    """Those that validation does not take: stratified, a sixth."""
    y = np.unique(np.array(table["kind"].to_pylist()), return_inverse=True)[1]
    return np.sort(train_test_split(np.arange(len(y)), test_size=len(y) // 6, stratify=y, random_state=seed)[0])


def centre(column):
    return math.ldexp(column.centre, column.scale - 4)


def test_scale_and_levels_come_from_the_train_part_alone(tmp_path):
    """Whatever the validation rows hold."""
    table = mixed()
    data = prepared(folder(tmp_path / "a", table, table))
    train = rows_of_train(table)
    assert len(train) == len(data.train) == 100
    weights = [weight for row in train if (weight := table["weight"][row].as_py()) is not None]
    found = data.spec.preparation.columns[2]
    assert abs(centre(found) - np.median(weights)) <= 2.0**found.scale / 32
    assert 2.0**found.scale / 2**0.5 <= np.std(weights) <= 2.0**found.scale * 2**0.5
    lists = {name: column.to_pylist() for name, column in table.items()}
    for row in set(range(120)) - set(train.tolist()):
        lists["weight"][row], lists["colour"][row], lists["size"][row] = 1e9, "violet", None
    changed = prepared(folder(tmp_path / "b", lists, lists))
    assert changed.spec.preparation == data.spec.preparation
    assert np.array_equal(changed.train.x, data.train.x)
    assert (changed.val.x[:, :4] == 0).all()  # a gap, and a level, that the train part lacks


def test_gaps_that_only_validation_has_are_filled(tmp_path):
    table = mixed() | {"weight": pa.array(np.arange(120.0))}
    del table["colour"]
    assert prepared(folder(tmp_path / "a", table, table)).spec.preparation.columns == ()
    train = set(rows_of_train(table).tolist())
    table["weight"] = pa.array([value if row in train else None for row, value in enumerate(range(120))], pa.float64())
    data = prepared(folder(tmp_path / "b", table, table))
    assert not data.spec.preparation.columns[1].indicator
    assert (data.val.x[:, 1] == 0).all()


@pytest.mark.parametrize(("times", "scaled"), [(30, False), (1e4, True), (1e-4, True)])
def test_columns_that_spread_apart_are_brought_to_one_scale(tmp_path, times, scaled):
    table = {"kind": mixed()["kind"], "size": mixed()["size"]}
    table["far"] = pa.array(7e5 * times + times * np.array(table["size"]))
    data = prepared(folder(tmp_path / "a", table, table))
    assert bool(data.spec.preparation.columns) == scaled
    assert any("times as far" in note for note in data.source.notes) == scaled
    if scaled:
        assert np.abs(data.train.x).max() < 8
        assert np.abs(np.median(data.train.x, axis=0)).max() < 0.1
        assert (data.train.x.std(0) > 0.6).all()
        assert (data.train.x.std(0) < 1.5).all()


@pytest.mark.parametrize(
    ("median", "spread"),
    [(0, 1), (5, 0), (0, 0), (3e38, 0), (-1e30, 1e30), (1e9, 1e-9), (3e38, 1e-30), (1e-38, 1e-38), (2.5, 900)],
)
def test_any_scale_can_be_stored(median, spread):
    column = Numeric("a", *table_fitting.on_scale(median, spread))
    assert through_bytes(TablePreparation((column,))).columns == (column,)
    made = column.samples([median, median + spread, median - spread, None])
    assert np.abs(made[0, 0]) <= 1 / 16
    assert made[3, 0] == 0
    if spread > 1e-6 * abs(median):
        assert 0.6 < made[1, 0] < 1.5
        assert -1.5 < made[2, 0] < -0.6


@pytest.mark.parametrize(("gaps", "indicator"), [(4, False), (40, True)])
def test_few_gaps_are_not_indicated(tmp_path, gaps, indicator):
    weights = [None if row < gaps else 1.0 * row for row in range(120)]
    data = prepared(folder(tmp_path / "a", mixed() | {"weight": pa.array(weights)}))
    assert data.spec.preparation.columns[2].indicator is indicator


def test_rare_levels_are_merged(tmp_path):
    rng = np.random.default_rng(0)
    towns = np.array([f"town {min(int(t), 60)}" for t in rng.geometric(0.1, 1200)])
    table = mixed(1200) | {"colour": pa.array(towns)}
    data = prepared(folder(tmp_path / "a", table))
    column = data.spec.preparation.columns[1]
    assert column.width == table_fitting.MOST_LEVELS
    assert column.other
    assert "town 1" in column.levels
    assert (data.train.x[:, 1 : 1 + column.width].sum(1) == 1).all()
    assert 0 < data.train.x[:, column.width].sum() < 200
    assert any("31 most frequent of" in note for note in data.source.notes)


def test_nothing_is_stored_where_nothing_is_needed(tmp_path):
    table = mixed() | {"kind": pa.array(np.arange(120) % 3)}
    del table["colour"], table["weight"]
    assert prepared(folder(tmp_path / "a", table)).spec.preparation is None
    named = table | {"kind": pa.array(np.arange(120) % 3 + 1)}
    data = prepared(folder(tmp_path / "b", named, named))
    assert data.spec.preparation == TablePreparation((), (1, 2, 3))
    assert len(written(data.spec.preparation)) < 10
    assert data.load_test().y.tolist() == [0, 1, 2] * 40


@pytest.mark.parametrize("gap", ["", "NA", "n/a", "NULL", "nan", "#N/A"])
def test_a_receivers_rows_are_read_as_the_search_read_them(tmp_path, gap):
    """Gaps are the same texts in a CSV and in rows of csv.DictReader, one mapping a row."""
    (tmp_path / "d").mkdir()
    lines = ["income,town,kind"]
    lines += [f"{gap if i % 9 == 0 else 100 + i},{gap if i % 7 == 0 else 'ab'[i % 2]},{i % 2}" for i in range(200)]
    for part in ("train", "test"):
        (tmp_path / "d" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    data = prepared(str(tmp_path / "d"))
    test = data.load_test()
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    how = data.spec.preparation
    np.testing.assert_array_equal(how.samples(rows), test.x)
    np.testing.assert_array_equal(how.samples({name: [row[name] for row in rows] for name in rows[0]}), test.x)
    refused(lambda: how.samples(17), "columns by name", "a list of one mapping for each row, not int")
    refused(lambda: how.samples([1, 2]), "not list")


def test_text_that_looks_like_a_gap_may_be_a_level():
    column = Categorical("country", ("NA", "NO"))
    assert column.samples(["NA", "NO", ""]).tolist() == [[1, 0], [0, 1], [0, 0]]
    assert Categorical("country", ("", "NO")).samples(["NA", "NO", ""]).tolist() == [[1, 0], [0, 1], [1, 0]]


def test_constant_columns_are_told(tmp_path):
    table = mixed() | {"size": pa.array([2.5] * 120), "colour": pa.array(["red"] * 120)}
    (note,) = [n for n in prepared(folder(tmp_path / "a", table)).source.notes if "tells nothing" in n]
    assert "'size', 2.5" in note
    assert "'colour', 'red'" in note


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([None] * 120, pa.float64()), ("'bad' holds no value at all",)),
        (pa.array([None] * 120), ("'bad' holds no value at all",)),
        (
            pa.array([f"name {i}" for i in range(120)]),
            ("'bad' has 100 different texts in 100 rows", "remove it from the file"),
        ),
        (pa.array([[1.0]] * 120), ("'bad' is of type list",)),
        (pa.array(np.full(120, "2026-01-01", "datetime64[D]")), ("'bad' is of type date32",)),
    ],
)
def test_columns_that_cannot_be(tmp_path, column, words):
    path = folder(tmp_path / "d", mixed() | {"bad": column}, mixed())
    refused(lambda: prepared(path), "train.parquet", *words)


def test_test_part_is_checked_before_the_search(tmp_path):
    """A gap where training has none, and a number that is text: not at the end of a search."""
    numbers = {"size": mixed()["size"], "kind": mixed()["kind"]}
    gap = {name: column.slice(0, 30) for name, column in numbers.items()} | {"size": pa.array([None, *[1.0] * 29])}
    data = prepared(folder(tmp_path / "a", numbers, gap))
    refused(lambda: data.source.check_test_part((1,)), "test.parquet", "column 'size' lacks 1 values", "fill them in")
    data = prepared(folder(tmp_path / "b", mixed(), mixed(30, 1) | {"size": pa.array(["x"] * 30)}))
    refused(lambda: data.source.check_test_part((6,)), "column 'size' is 'x' in row 0")
    less = mixed(30, 1)
    del less["colour"]
    data = prepared(folder(tmp_path / "c", mixed(), less))
    refused(lambda: data.source.check_test_part((6,)), "no column 'colour'")
    elm = mixed(30, 1) | {"kind": pa.array(["elm"] * 30)}
    data = prepared(folder(tmp_path / "e", mixed(), elm))
    refused(lambda: data.source.check_test_part((6,)), "class elm of row 0 is not in the training part")


def test_codes_with_leading_zeros_stay_text_in_csv(tmp_path):
    """The test part alone would be read as numbers."""
    codes = ["007", "012", "x1"]
    (tmp_path / "d").mkdir()
    for name, kept in (("train", codes), ("test", codes[:2])):
        rows = "".join(f"{row / 10},{kept[row % len(kept)]},{'AB'[row % 2]}\n" for row in range(60))
        (tmp_path / "d" / f"{name}.csv").write_text("size,code,kind\n" + rows)
    data = prepared(str(tmp_path / "d"))
    assert data.spec.preparation.columns[1].levels == tuple(codes)
    assert (data.load_test().x[:, 1:3].sum(1) == 1).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a;b;label\n1;2;0\n", ("separated by semicolons", "'a;b;label'", "commas")),
        (b"a\tb\tlabel\n1\t2\t0\n", ("separated by tabs",)),
        ("größe,b,label\n1,2,0\n".encode("latin-1"), ("not in UTF-8", "save it as UTF-8")),
        ("size,b,label\n1,é,0\n".encode("latin-1") * 1, ("column 'b' holds bytes that are not text in UTF-8",)),
        ("a,b,label\n1,2,0\n".encode("utf-16"), ("UTF-16", "save it as UTF-8")),
    ],
)
def test_csv_that_cannot_be(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content + 9 * content.split(b"\n")[1].join([b"", b"\n"]))
    refused(lambda: Dataset.prepare(open_source(str(tmp_path / "a.csv"), label=None), 0), "a.csv", *words)


# --- as a user runs it -----------------------------------------------------------------------------------------------

PROTOCOL = 'network = "mlp"\nsteps = 60\nseeds = 5\nwidth = 8\nbatch = 32\nlr = 0.02\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the table `d`, a packed file of it, and folders with test parts alone."""
    path = tmp_path_factory.mktemp("table")
    folder(path / "d", mixed(300), mixed(90, 1))
    (path / "p.toml").write_text(PROTOCOL)
    command = [sys.executable, "-c", "from budgetopt.cli import main; main()", "trial", "--dataset", "d"]
    command += ["--label", "kind"]
    options = ["--ipc", "20", "--levels", "8", "--quantizer", "uniform:granularity=feature", "--protocol", "p.toml"]
    subprocess.run([*command, *options, "--out", "a.bopt"], check=True, cwd=path, capture_output=True)
    test = mixed(90, 1)
    folder(path / "alone", None, dict(reversed(test.items())))
    folder(path / "csv", None, test | {"more": pa.array(np.arange(90) / 8)}, ".csv")
    folder(path / "less", None, {name: column for name, column in test.items() if name != "colour"})
    return path


def test_eval_needs_the_test_part_alone(made):
    """Columns in another order, another kind of file, one column more: the same figure."""
    whole = api.evaluate(made / "a.bopt", str(made / "d"))
    assert whole.accuracy > 0.8
    for other in ("alone", "csv"):
        assert api.evaluate(made / "a.bopt", str(made / other)).accuracies == whole.accuracies
    refused(lambda: api.evaluate(made / "a.bopt", str(made / "less")), "no column 'colour'")


def test_eval_refuses_other_data_in_one_line(made, monkeypatch, capsys):
    for dataset, words in (("digits", "the file was made of the rows of a table"), (str(made / "less"), "'colour'")):
        monkeypatch.setattr("sys.argv", ["budgetopt", "eval", str(made / "a.bopt"), "--dataset", dataset])
        with pytest.raises(SystemExit) as exit_code:
            cli.main()
        assert exit_code.value.code == 2
        assert re.fullmatch(rf"budgetopt: error: .*{words}.*\n", capsys.readouterr().err)


def test_receiver_prepares_its_rows_with_numpy_alone(made):
    """What a receiver writes: neither torch nor Arrow is imported."""
    program = """
import csv, json, sys, numpy as np
import budgetopt
packed = budgetopt.load("a.bopt")
rows = list(csv.DictReader(open("csv/test.csv")))
table = {name: [row[name] for row in rows] for name in rows[0]}
x, y = packed.prepare(table), packed.prepare_labels(table["kind"])
assert not {"torch", "pyarrow", "pandas"} & set(sys.modules)
print(json.dumps([x.tolist(), y.tolist()]))
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, cwd=made, capture_output=True, text=True)
    x, y = json.loads(found.stdout)
    test = open_source(str(made / "d"), label="kind").prepared_by(load(made / "a.bopt").packed.preparation)
    assert np.array_equal(test.checked_test((6,), 3).x, np.float32(x))
    assert test.checked_test((6,), 3).y.tolist() == y


def test_files_without_names_take_columns_in_their_order(tmp_path):
    (tmp_path / "a.bopt").write_bytes(pack(packed_set(np.zeros((3, 2)))))
    packed = load(tmp_path / "a.bopt")
    assert packed.prepare({"u": [1, 2], "v": [3, 4]}).tolist() == [[1, 3], [2, 4]]
    refused(lambda: packed.prepare({"u": [1, 2]}), "make 1 values, the file's samples have 2")
    (tmp_path / "b.bopt").write_bytes(pack(packed_set(np.zeros((3, 1, 2, 2)))))
    refused(lambda: load(tmp_path / "b.bopt").prepare({"u": [1]}), "(1, 2, 2)", "not made of the rows of a table")


def test_inspect_accounts_for_the_preparation(made, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["budgetopt", "inspect", str(made / "a.bopt")])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert re.search(r"made of +the rows of a table: 3 columns by name; 1 of text in 3 values; 1 with their", out)
    assert re.search(r" \d\d  preparation\n", out)


def test_compress_with_another_split_is_refused(made, tmp_path):
    """Its validation part would be prepared otherwise."""
    settings = {"dataset": str(made / "d"), "label": "kind", "protocol": str(made / "p.toml"), "trials": 1}
    kept = api.compress(made / "a.bopt", "600", **settings)
    assert unpack(kept.data).preparation == load(made / "a.bopt").packed.preparation
    refused(lambda: api.compress(made / "a.bopt", "600", seed=2, **settings), "otherwise", "with seed 2")
