import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from refusals import refused

from budgetopt import api, cli
from budgetopt.data import Dataset, open_source, tabular
from budgetopt.data.tabular import Tabular
from budgetopt.errors import InputError
from budgetopt.packing import TablePreparation
from budgetopt.protocol import PRESETS


def columns(n=60, seed=0, **changes):
    """n rows: three features of different types and a label of three classes; None leaves a column out."""
    rng = np.random.default_rng(seed)
    whole = {
        "height": rng.normal(size=n).astype(np.float32),
        "count": rng.integers(-5, 30, n) + 0.5,
        "open": rng.random(n) < 0.5,
        "kind": np.arange(n) % 3,
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


def write(path, table=None, **changes):
    table = pa.table(table if table is not None else columns(**changes))
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def folder(path, suffix=".parquet", train=None, test=None):
    path.mkdir()
    write(path / f"train{suffix}", train if train is not None else columns())
    if test is not False:
        write(path / f"test{suffix}", test if test is not None else columns(12, 1))
    return str(path)


# --- what is understood ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_folder(tmp_path, suffix):
    train, test = columns(), columns(12, 1)
    data = Dataset.prepare(open_source(folder(tmp_path / "größe 1", suffix, train, test)), 0)
    assert data.spec.shape == (3,)
    assert data.spec.classes == 3
    assert (data.source.protocol, data.source.space) == ("tabular-2", "tabular")
    assert len(data.train) + len(data.val) == 60
    found = data.load_test()
    assert found.x.dtype == np.float32
    assert np.array_equal(found.x, np.stack([test["height"], test["count"], test["open"]], 1).astype(np.float32))
    assert found.y.tolist() == test["kind"].tolist()
    rows = {tuple(row) for row in np.concatenate([data.train.x, data.val.x]).tolist()}
    wanted = np.stack([train["height"], train["count"], train["open"]], 1).astype(np.float32)
    assert rows == {tuple(row) for row in wanted.tolist()}
    assert data.source.notes[0] == "label: column 'kind', the only integer or categorical one; 3 features"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_one_file_is_carved_as_said(tmp_path, suffix):
    from sklearn.model_selection import train_test_split

    table = columns(101)
    source = open_source(str(write(tmp_path / f"mine{suffix}", table)))
    train, test = train_test_split(np.arange(101), test_size=0.3, stratify=table["kind"], random_state=0)
    x, y = source.test_arrays()
    assert np.array_equal(x[:, 0], table["height"][np.sort(test)])
    assert y.tolist() == table["kind"][np.sort(test)].tolist()
    assert np.array_equal(source.train_arrays()[0][:, 0], table["height"][np.sort(train)])
    assert any("30% of" in note and "seed 0" in note for note in source.notes)
    assert np.array_equal(Dataset.prepare(source, 7).load_test().x, x)


def test_folder_without_test_part_is_carved(tmp_path):
    source = open_source(folder(tmp_path / "d", test=False))
    assert len(source.test_arrays()[1]) == 18
    assert any("train.parquet, stratified" in note for note in source.notes)


def test_reading_one_part_needs_no_other(tmp_path):
    whole = folder(tmp_path / "d")
    (tmp_path / "d" / "test.parquet").write_bytes(b"damaged")
    assert len(open_source(whole).train_arrays()[1]) == 60
    assert len(Dataset.prepare(open_source(whole), 0).val) == 10
    (tmp_path / "e").mkdir()
    write(tmp_path / "e" / "test.csv", columns(12, 1))
    assert len(open_source(str(tmp_path / "e")).checked_test((3,), 3)) == 12
    refused(open_source(str(tmp_path / "e")).train_arrays, "no train.parquet or train.csv")


def test_training_part_is_read_once_for_its_own_arrays(tmp_path, monkeypatch):
    """The test part's file is not opened before it is asked for."""
    from budgetopt.data import table_files

    opened = []
    real = table_files.read
    monkeypatch.setattr(table_files, "read", lambda path, *names: (opened.append(path.name), real(path, *names))[1])
    source = open_source(folder(tmp_path / "d"))
    source.train_arrays()
    assert set(opened) == {"train.parquet"}


def test_columns_go_by_name(tmp_path):
    test = dict(reversed(columns(12, 1, extra=np.zeros(12)).items()))
    x, _ = open_source(folder(tmp_path / "d", test=test)).test_arrays()
    assert np.array_equal(x[:, 0], test["height"])
    assert x.shape == (12, 3)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"rsrp_{i:02}" for i in range(64)], True),
        ([str(i) for i in range(5, 25)], True),
        ([f"x{i}" for i in range(15)], False),  # few
        ([f"x{i}" for i in range(20) if i != 7], False),  # with a gap
        ([*(f"x{i}" for i in range(19)), "age"], False),
        ([f"{'ab'[i % 2]}{i}" for i in range(20)], False),
    ],
)
def test_numbered_columns_may_be_a_signal(tmp_path, names, expected):
    rng = np.random.default_rng(0)
    table = {name: rng.normal(size=20).astype(np.float32) for name in names}
    pa.parquet.write_table(pa.table(table | {"label": np.arange(20) % 2}), tmp_path / "train.parquet")
    notes = open_source(str(tmp_path)).notes
    assert tabular.numbered(names) is expected
    assert any("are numbered: if neighbours belong together" in note for note in notes) is expected
    assert tabular.SIGNAL in PRESETS


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64, np.float16, np.float64, np.bool_, np.uint8])
def test_types_of_numbers(tmp_path, kind):
    values = (np.arange(60) % 7).astype(kind)
    table = {"a": values, "b": values, "label": np.arange(60) % 3}
    x, _ = open_source(folder(tmp_path / "d", train=table, test=table)).train_arrays()
    assert x.dtype == (np.uint8 if kind in (np.bool_, np.uint8) else np.float32)
    assert np.array_equal(x, np.stack([values, values], 1).astype(np.float32))


def test_decimals_and_many_chunks(tmp_path):
    decimal = pa.array([f"{i}.25" for i in range(60)]).cast(pa.decimal128(6, 2))
    parts = pa.table({"d": decimal, "label": np.arange(60) % 3})
    table = pa.concat_tables([parts.slice(0, 7), parts.slice(7)])
    x, _ = open_source(str(write(tmp_path / "a.parquet", table))).train_arrays()
    assert np.array_equal(np.sort(x[:, 0] % 1), np.full(len(x), 0.25))


# --- labels ----------------------------------------------------------------------------------------------------------

TEXT = np.array(["fir", "oak", "ash"])[np.arange(60) % 3]


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (np.arange(60) % 3 + 5, [5, 6, 7]),
        ((np.arange(60) % 3) * 10 - 10, [-10, 0, 10]),
        ((np.arange(60) % 2).astype(bool), [0, 1]),
        ((np.arange(60) % 3).astype(np.float64), [0, 1, 2]),
        (TEXT, ["ash", "fir", "oak"]),
        (pa.array(TEXT).dictionary_encode(), ["ash", "fir", "oak"]),
        (pa.array(TEXT, pa.large_string()), ["ash", "fir", "oak"]),
        (pa.array((np.arange(60) % 3 + 5).tolist()).dictionary_encode(), [5, 6, 7]),
    ],
)
def test_classes_are_the_sorted_distinct_labels(tmp_path, label, classes):
    table = columns(kind=None, label=label)
    source = open_source(folder(tmp_path / "d", train=table, test=pa.table(table).slice(0, 12)))
    listed = label.to_pylist() if isinstance(label, pa.Array) else label.tolist()
    wanted = [classes.index(value) for value in listed]
    assert source.train_arrays()[1].tolist() == wanted
    assert source.test_arrays()[1].tolist() == wanted[:12]
    fitted = source.fitted(lambda y: np.arange(len(y)))
    named = classes not in ([0, 1], [0, 1, 2])
    said = f"classes 0..{len(classes) - 1} are {', '.join(map(str, classes))}; the packed file names them"
    assert (said in fitted.notes) == named
    assert fitted.preparation == (TablePreparation((), tuple(classes)) if named else None)


def test_named_label(tmp_path):
    other = columns(group=np.arange(60) % 2, label=np.arange(60) % 4)
    path = folder(tmp_path / "d", train=other, test=pa.table(other).slice(0, 12))
    assert Dataset.prepare(open_source(path), 0).spec.classes == 4
    assert Dataset.prepare(open_source(path, label="group"), 0).spec.classes == 2
    refused(lambda: open_source(path, label="grup"), "'grup'", "did you mean 'group'")
    refused(lambda: open_source("digits", label="group"), "--label 'group'", "digits has none")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (columns(group=np.arange(60) % 2), ("no column 'label'", "group", "kind", "--label")),
        (columns(kind=None), ("no column 'label'", "none is integer or categorical", "--label")),
        (columns(label=np.linspace(0, 1, 60)), ("'label' is continuous", "0.0169492 in row 1")),
        (columns(label=np.array([0.0, np.nan, 1.0] * 20)), ("'label'", "continuous")),
        (columns(label=pa.array([1, None, 0] * 20)), ("20 rows have no label 'label'",)),
        (columns(label=np.arange(60)), ("60 distinct values in 60 rows", "--label")),
        (columns(label=np.array([np.datetime64("2026-01-01")] * 60)), ("'label' is of type date32",)),
        ({"label": np.arange(60) % 3}, ("no column beside the label",)),
    ],
)
def test_labels_that_cannot_be(tmp_path, table, words):
    path = folder(tmp_path / "d", train=table, test=pa.table(table))
    refused(lambda: open_source(path).train_arrays(), "train.parquet", *words)


@pytest.mark.parametrize("label", [np.array([0, 1, 3] * 4), np.array(["0", "1", "2"] * 4)])
def test_class_only_in_the_test_part_is_told_before_the_search(tmp_path, label):
    source = open_source(folder(tmp_path / "d", test=columns(12, 1, kind=label)))
    refused(lambda: source.check_test_part((3,)), "test.parquet")
    refused(source.test_arrays, "test.parquet")


def test_text_labels_need_the_training_part(tmp_path):
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "test.parquet", columns(12, kind=None, label=TEXT[:12]))
    refused(open_source(str(tmp_path / "d")).test_arrays, "'label' is text", "numbers its classes")


# --- features and files that cannot be -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (np.array(["1.5", "b"] * 30), ("column 'bad' is 'b' in row 1", "must hold numbers")),
        (pa.array([None] * 60), ("column 'bad' holds no value at all",)),
        (pa.array([b"\xff"] * 60), ("column 'bad' holds bytes that are not text in UTF-8",)),
        (pa.array([{"u": 1}] * 60), ("column 'bad' is of type struct",)),
        (pa.array([1.5, None, 2.0] * 20), ("column 'bad' lacks 20 values",)),
        (np.array([1.5, np.nan] * 30), ("column 'bad' lacks 30 values",)),
        (np.array([1.5, np.inf, 2.0] * 20), ("column 'bad' is inf in row 1", "float32")),
        (np.array([1.5, 2.0, -1e39] * 20), ("column 'bad' is -1e+39 in row 2", "float32")),
        (np.array([np.datetime64("2026-01-01")] * 60), ("column 'bad' is of type date32",)),
        (pa.array([[1, 2]] * 60), ("column 'bad' is of type list",)),
    ],
)
def test_features_that_cannot_be(tmp_path, column, words):
    table = columns(bad=column)
    path = folder(tmp_path / "d", train=table, test=pa.table(table))
    refused(lambda: open_source(path, label="kind").train_arrays(), "train.parquet", *words)


def test_a_gap_in_csv_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("u,v,label\n" + "1,2,0\n3,,1\n" * 10)
    refused(lambda: open_source(str(tmp_path / "a.csv")).train_arrays(), "column 'v' lacks 10 values")


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(lambda: open_source(str(tmp_path / "empty")), "no train.parquet or train.csv: it is empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("?")
    refused(lambda: open_source(str(tmp_path / "other")), "it holds notes.txt")
    both = folder(tmp_path / "both")
    write(tmp_path / "both" / "train.csv")
    refused(lambda: open_source(both), "both train.parquet and train.csv")
    refused(lambda: open_source(str(tmp_path / "absent.csv")), "no such file", "absent.csv")
    less = folder(tmp_path / "less", test=columns(12, 1, count=None))
    refused(lambda: open_source(less).check_test_part((3,)), "test.parquet", "no column 'count'")
    refused(open_source(less).test_arrays, "test.parquet", "no column 'count'")


@pytest.mark.parametrize("name", ["train.parquet", "train.csv"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe\x00" * 50, b"PAR1" + bytes(40), b"PAR1 not at all PAR1"])
def test_files_that_are_not_what_their_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(lambda: open_source(str(tmp_path)).train_arrays(), name)


@pytest.mark.parametrize(
    "text", ["1,2,0\n3,4,1\n", "a,a,label\n1,2,0\n", "a,label\n", "a,b,label\n1,2\n", "a;label\n1;0\n"]
)
def test_csv_that_cannot_be(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    refused(lambda: open_source(str(tmp_path / "a.csv")).train_arrays(), "a.csv")


def test_damaged_parquet_is_one_line_or_right(tmp_path):
    table = columns(30)
    data = write(tmp_path / "a.parquet", table).read_bytes()
    wanted = open_source(str(tmp_path / "a.parquet")).train_arrays()
    for at in range(0, len(data), 23):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "b.parquet").write_bytes(damaged)
        try:
            x, y = Tabular(tmp_path / "b.parquet", "kind").train_arrays()
        except InputError as error:
            lines = str(error).splitlines()
        else:
            lines = ["none"]
            assert x.shape[1] == wanted[0].shape[1]
            assert len(x) == len(y)
        assert len(lines) == 1
    for length in range(0, len(data), 41):
        (tmp_path / "b.parquet").write_bytes(data[:length])
        refused(lambda: Tabular(tmp_path / "b.parquet", "kind").train_arrays(), "b.parquet")


def test_rows_that_a_few_bytes_claim(tmp_path, monkeypatch):
    from budgetopt.data import table_files

    monkeypatch.setattr(table_files, "MOST_VALUES", 200)
    refused(lambda: open_source(folder(tmp_path / "d")).train_arrays(), "60 rows of 4 columns are too many")


# --- as a user runs it -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_search_and_eval_of_a_table(tmp_path, monkeypatch, capsys):
    """The space and the protocol follow from the data; `eval` finds the table and its label again through the run."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, 5))

    def table(n):
        y = np.arange(n) % 3
        x = centres[y] + rng.normal(size=(n, 5))
        return {f"f{i}": x[:, i].astype(np.float32) for i in range(5)} | {"group": y, "other": y[::-1].copy()}

    folder(tmp_path / "d", train=table(120), test=table(30))
    monkeypatch.chdir(tmp_path)
    protocol = 'network = "mlp"\nsteps = 40\nseeds = 5\nwidth = 4\n'
    (tmp_path / "p.toml").write_text(protocol)
    found = api.search(
        "400", "d", label="group", protocol="p.toml", objectives=["coreset"], trials=2, workers=1, out="r"
    )
    config = json.loads(Path("r/config.json").read_text())
    assert (config["label"], config["space_name"]) == ("group", "tabular")
    assert config["dataset"] == str(tmp_path / "d")
    assert found.best.accuracy > 0.8
    assert found.best.bytes <= 400
    again = api.evaluate("r/best.bopt")
    assert again.accuracy == pytest.approx(found.best.accuracy)
    capsys.readouterr()  # what Ray says where the API starts it
    monkeypatch.setattr("sys.argv", ["budgetopt", "eval", "r/best.bopt", "--dataset", "d", "--label", "grup"])
    with pytest.raises(SystemExit) as exit_code:
        cli.main()
    assert exit_code.value.code == 2
    assert re.fullmatch(r"budgetopt: error: .*did you mean 'group'\?.*\n", capsys.readouterr().err)


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beam():
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BUDGETOPT_DATA") or beside) / "beam"
    if not (path / "train.parquet").is_file():
        pytest.skip("the beam-management data is not here: name the folder that holds beam/ in BUDGETOPT_DATA")
    return str(path)


def test_beam(beam):
    data = Dataset.prepare(open_source(beam), 0)
    assert data.spec.shape == (64,)
    assert data.spec.classes == 64
    assert (len(data.train), len(data.val)) == (19_856, 3_971)
    data.source.check_test_part((64,))
    test = data.load_test()
    assert len(test) == 5_957
    assert (test.x == 0).mean() == pytest.approx(0.5)
    assert (test.x.argmax(1) == test.y).mean() == pytest.approx(0.407, abs=5e-4)
