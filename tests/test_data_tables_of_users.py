"""Tables as users have them: written by pandas or a spreadsheet, with gaps where they hurt, and receivers with fewer
classes."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from refusals import refused

from budgetopt.data import Dataset, open_source
from budgetopt.packing import TablePreparation
from budgetopt.packing.table import Categorical

N = 120


def csv(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def numbers(seed=0, n=N):
    return np.random.default_rng(seed).normal(size=n).round(3)


@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0", ""])
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_the_index_of_pandas_is_no_feature(tmp_path, suffix, name):
    path = tmp_path / f"a{suffix}"
    table = {name: np.arange(N), "x": numbers(), "kind": np.arange(N) % 3}
    if suffix == ".csv":
        csv(path, ",".join(table), [f"{i},{x},{k}" for i, x, k in zip(*table.values(), strict=True)])
    else:
        pyarrow.parquet.write_table(pa.table(table), path)
    data = Dataset.prepare(open_source(str(path)), 0)
    assert data.spec.shape == (1,)
    assert any("is left out" in note and repr(name) in note for note in data.source.notes)
    wanted = Dataset.prepare(open_source(str(path), label="kind"), 0)
    assert np.array_equal(wanted.train.x, data.train.x)
    if name:
        assert open_source(str(path), label=name).notes[0].startswith(f"label: column {name!r}")


@pytest.mark.parametrize("labels", [("1", "2", "3"), ("0", "3")])
def test_labels_of_a_receiver_are_those_of_the_file(tmp_path, labels):
    """They are not numbered anew where a class is missing: the file names none, so that they are 0 … C−1."""
    kinds = np.array(labels)[np.arange(N) % len(labels)]
    path = csv(tmp_path / "mine.csv", "x,kind", [f"{x},{k}" for x, k in zip(numbers(), kinds, strict=True)])
    found = open_source(path, label="kind").prepared_by(None).checked_test((1,), 4)
    assert sorted(set(found.y.tolist())) == [int(label) for label in labels]
    refused(lambda: open_source(path, label="kind").prepared_by(None).checked_test((1,), 3), "test label 3 is out of")


def test_text_labels_that_are_numbers_stay_those_numbers(tmp_path):
    table = pa.table({"x": numbers(), "kind": (np.arange(N) % 2 + 1).astype(str)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    found = open_source(str(tmp_path / "a.parquet"), label="kind").prepared_by(None).checked_test((1,), 3)
    assert set(found.y.tolist()) == {1, 2}


def test_a_row_without_a_text_label_is_told(tmp_path):
    kinds = ["cat", "dog", ""]
    path = csv(tmp_path / "a.csv", "x,kind", [f"{x},{kinds[i % 3]}" for i, x in enumerate(numbers())])
    refused(open_source(path, label="kind").train_arrays, "40 rows have no label 'kind'")


def test_na_in_text_is_missing_as_pandas_reads_it(tmp_path):
    where = ["NA", "EU", "US"]
    rows = [f"{x},{where[i % 3]},{i % 2}" for i, x in enumerate(numbers())]
    data = Dataset.prepare(open_source(csv(tmp_path / "a.csv", "x,region,label", rows)), 0)
    preparation = data.spec.preparation
    assert isinstance(preparation, TablePreparation)
    (region,) = [column for column in preparation.columns if isinstance(column, Categorical)]
    assert region.levels == ("", "EU", "US")
    # None, NaN and "" are what pandas may make of it
    for missing in (None, float("nan"), ""):
        made = preparation.samples({"x": [0.0], "region": [missing]})
        assert made[0, 1:].tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", range(6))
def test_one_gap_is_taken_wherever_it_falls(tmp_path, seed):
    """Also in a row of the part that is carved for the test: which rows those are must not decide."""
    x = list(map(str, numbers()))
    gap = int(np.random.default_rng(seed).integers(N))
    x[gap] = ""
    path = csv(
        tmp_path / "a.csv", "x,z,label", [f"{v},{z},{i % 2}" for i, (v, z) in enumerate(zip(x, x[::-1], strict=True))]
    )
    data = Dataset.prepare(open_source(path), 0)
    test = data.load_test()
    assert len(data.train) + len(data.val) + len(test) == N
    assert np.isfinite(test.x).all()


def test_a_column_that_is_empty_in_the_test_part_alone(tmp_path):
    x = [str(v) if i % 4 else "" for i, v in enumerate(numbers())]
    csv(tmp_path / "train.csv", "a,b,label", [f"{v},{i % 7},{i % 2}" for i, v in enumerate(x)])
    csv(tmp_path / "test.csv", "a,b,label", [f",{i % 7},{i % 2}" for i in range(20)])
    source = open_source(str(tmp_path))
    data = Dataset.prepare(source, 0)
    data.source.check_test_part(data.spec.shape)
    assert np.isfinite(data.load_test().x).all()


def test_text_with_line_breaks(tmp_path):
    word = '"a\nb"', "c"
    path = csv(tmp_path / "a.csv", "x,text,label", [f"{x},{word[i % 2]},{i % 3}" for i, x in enumerate(numbers())])
    data = Dataset.prepare(open_source(path), 0)
    assert data.spec.shape == (3,)
    assert len(data.train) + len(data.val) + len(data.load_test()) == N


def test_decimal_commas_are_told_as_what_they_are(tmp_path):
    path = csv(tmp_path / "a.csv", "x;y;label", ["1,5;2;0", "2,5;3;1"])
    refused(open_source(path).train_arrays, "separated by semicolons", "'x;y;label'", "with a point")


def test_labels_with_leading_zeros_are_names(tmp_path):
    kinds = ["01", "1", "02"]
    rows = [f"{x},{kinds[i % 3]}" for i, x in enumerate(numbers())]
    data = Dataset.prepare(open_source(csv(tmp_path / "a.csv", "x,kind", rows), label="kind"), 0)
    assert data.spec.classes == 3
    assert isinstance(data.spec.preparation, TablePreparation)
    assert data.spec.preparation.classes == ("01", "02", "1")
    assert set(data.load_test().y.tolist()) == {0, 1, 2}


def test_wide_tables(tmp_path):
    """Thousands of columns, as gene expression has them: nothing takes the square of their number."""
    width = 3000
    table = {f"g{i}": np.arange(8, dtype=np.float32) + i for i in range(width)} | {"label": np.arange(8) % 2}
    for part in ("train", "test"):
        pyarrow.parquet.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    x, y = open_source(str(tmp_path)).train_arrays()
    assert x.shape == (8, width)
    assert y.tolist() == [0, 1] * 4


@pytest.mark.parametrize("label", [1.7, float("inf"), float("nan"), 2.0**70])
def test_a_receivers_labels_are_not_cut_off(label):
    with pytest.raises(ValueError, match=r"of row 1 is not one of whole numbers"):
        TablePreparation().labels([57, label])
    assert TablePreparation().labels([57, 2.0]).tolist() == [57, 2]
