"""`budgetopt data inspect`: what it says is what a search would find."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from test_data_images import CLASSES, COUNTS, SOURCES, rows_of, table_of, write_folder

from budgetopt import api, cli, data_inspection
from budgetopt.data import Dataset, open_source
from budgetopt.data.encoded import EncodedPictures
from budgetopt.errors import InputError
from budgetopt.packing import PackedSet, UniformLevels, pack
from budgetopt.packing.container import header
from budgetopt.packing.inverse import Identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(arguments, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["budgetopt", "data", "inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


@pytest.mark.parametrize("kind", SOURCES)
def test_sizes_and_classes_of_every_source(kind, tmp_path):
    path = SOURCES[kind](tmp_path / "d")
    found = data_inspection.inspect(path)
    data = Dataset.prepare(open_source(path), 0)
    assert (found.train, found.validation, found.test) == (len(data.train), len(data.val), sum(COUNTS["test"]))
    assert found.shape == data.spec.shape
    assert found.class_counts == COUNTS["train"]
    assert found.test_counts == COUNTS["test"]
    assert found.class_names == (CLASSES if kind in ("folder", "parquet") else ())
    x, _ = open_source(path).train_arrays()
    assert (found.low, found.high) == (x.min(), x.max())
    assert found.looked_at == sum(COUNTS["train"])
    assert found.warnings == ()
    assert (found.protocol, found.space) == ("image-2", "image")


def test_bytes_of_a_sample_and_the_smallest_file(digits):
    found = data_inspection.inspect("digits")
    assert list(found.sample_bytes) == list(range(1, 9))
    assert found.sample_bytes[1] < found.sample_bytes[2] < found.sample_bytes[4]
    order = np.argsort(digits.train.y, kind="stable")
    few = np.concatenate([order[digits.train.y[order] == c][:12] for c in range(10)])
    packed = PackedSet(
        symbols=(digits.train.x[few] >= 8).astype(np.uint8).reshape(120, -1),
        shape=(1, 8, 8),
        counts=(12,) * 10,
        dequantizer=UniformLevels(2, 0, 16, 0),
        inverse=Identity(),
        mean=digits.spec.mean,
        std=digits.spec.std,
    )
    assert found.sample_bytes[1] == pytest.approx((len(pack(packed)) - len(header(packed))) / 120, rel=0.35)
    with pytest.raises(InputError, match=r"takes \d+ bytes") as raised:
        api.search(5, "digits", objectives=["coreset"], trials=1)
    least = int(re.search(r"takes (\d+) bytes", str(raised.value))[1])
    assert least <= found.smallest_budget <= 1.2 * least  # a search looks at more choices before it says no


def test_estimate_follows_from_the_protocol():
    estimate = data_inspection.inspect("digits").estimate
    assert estimate.training_seconds > 0
    assert estimate.trial_seconds > 2 * estimate.training_seconds
    assert estimate.time_limit == 270
    assert estimate.trials == int(estimate.workers * 270 / estimate.trial_seconds)
    assert estimate.memory > 100e6


def test_duplicates_across_the_parts_are_counted(tmp_path):
    root = Path(write_folder(tmp_path / "d"))
    for at, name in enumerate(sorted((root / "train" / "chat").iterdir())[:3]):
        (root / "test" / "chien" / f"copy {at}.png").write_bytes(name.read_bytes())
    (warning,) = data_inspection.inspect(str(root)).warnings
    assert warning.startswith("3 of 12 test samples are training samples too")
    x = np.arange(36, dtype=np.float32).reshape(9, 4)
    np.savez(
        tmp_path / "a.npz",
        x_train=x,
        y_train=np.arange(9) % 3,
        x_test=x[[0, 8]] + np.float32([[0], [0.5]]),
        y_test=[0, 1],
    )
    (warning,) = data_inspection.inspect(str(tmp_path / "a.npz")).warnings
    assert warning.startswith("1 of 2 test samples")


def test_class_only_in_the_test_part(tmp_path):
    x = np.arange(36, dtype=np.float32).reshape(9, 4)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(9) % 3, x_test=x[:2] + 0.5, y_test=[0, 3])
    (warning,) = data_inspection.inspect(str(tmp_path / "a.npz")).warnings
    assert "test label 3 of sample 1 is not in the training part" in warning
    root = Path(write_folder(tmp_path / "d"))
    (root / "test" / "zèbre").mkdir()
    (warning,) = data_inspection.inspect(str(root)).warnings
    assert "class 'zèbre'" in warning


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y_train": np.arange(9.0) % 3}, None),
        ({"y_test": np.array([0, -1])}, "labels are out of range, got -1..0"),
        ({"y_test": np.array([[0], [1]])}, r"2 samples but labels of shape (2, 1)"),
        ({"y_test": np.array(["0", "1"])}, "labels must be whole numbers"),
        ({"y_test": np.arange(3)}, "2 samples but labels of shape (3,)"),
    ],
)
def test_odd_labels(tmp_path, arrays, said):
    """Those that a search takes are taken, others of the test part are told."""
    x = np.arange(36, dtype=np.float32).reshape(9, 4)
    whole = {"x_train": x, "y_train": np.arange(9) % 3, "x_test": x[:2] + 0.5, "y_test": np.arange(2)}
    np.savez(tmp_path / "a.npz", **(whole | arrays))
    found = data_inspection.inspect(str(tmp_path / "a.npz"))
    assert found.class_counts == (3, 3, 3)
    if said is None:
        assert found.warnings == ()
        assert found.test == 2
    else:
        (warning,) = found.warnings
        assert said in warning
        assert found.test is None
        with pytest.raises(InputError, match=re.escape(said)):  # before a search, not at its end
            open_source(str(tmp_path / "a.npz")).check_test_part((4,))


def test_a_table_of_text_with_gaps(tmp_path):
    kinds, numbers = ["a", "b", "c"], ["1.5", "", "7"]
    rows = [f"{kinds[i % 3]},{numbers[i % 3]},{i % 2}" for i in range(60)]
    (tmp_path / "a.csv").write_text("kind,x,label\n" + "\n".join(rows) + "\n")
    found = data_inspection.inspect(str(tmp_path / "a.csv"))
    assert found.shape == (5,)
    assert any("column 'kind', 3 levels" in note for note in found.notes)
    assert found.warnings == () or "are training samples too" in found.warnings[0]


def test_metadata_may_name_more_classes_than_there_are(tmp_path):
    for part in ("train", "test"):
        table = table_of(rows_of(part), names=(*CLASSES, "cheval", "oie"))
        pyarrow.parquet.write_table(table, tmp_path / f"{part}.parquet")
    found = data_inspection.inspect(str(tmp_path))
    assert found.class_names == CLASSES
    assert dict(found.facts())["classes"] == "3: chat 12, chien 9, été 6 (training and validation)"
    more = [*rows_of("test"), (rows_of("test")[0][0], 4)]
    pyarrow.parquet.write_table(table_of(more, names=(*CLASSES, "cheval", "oie")), tmp_path / "test.parquet")
    (warning,) = data_inspection.inspect(str(tmp_path)).warnings
    assert "test label 4 of sample 9 is not in the training part" in warning


def test_large_pictures_are_looked_at_through_a_sample(tmp_path, monkeypatch):
    """No part is decoded as a whole, and every class is in the sample."""
    path = write_folder(tmp_path / "d")
    monkeypatch.setattr(data_inspection, "LOOKED_AT", 12)
    monkeypatch.setattr(EncodedPictures, "_arrays", lambda *_: pytest.fail("decoded as a whole"))
    found = data_inspection.inspect(path)
    assert found.looked_at == 12
    assert found.class_counts == COUNTS["train"]
    assert found.test == sum(COUNTS["test"])


def test_resized_large_pictures(tmp_path):
    found = data_inspection.inspect(write_folder(tmp_path / "d"), resize="64")
    assert (found.shape, found.space) == ((3, 64, 64), "image-large")


def test_text_and_json(capsys, monkeypatch, tmp_path):
    path = write_folder(tmp_path / "d", parts=("train",))
    code, out, _ = said([path], capsys, monkeypatch)
    assert not code
    lines = dict(re.match(r"(\S+(?: \S+)*)  +(.*)", line).groups() for line in out.splitlines())
    assert lines["samples"].endswith("test")
    assert "chien" in lines["classes"]
    assert lines["bytes a sample"].endswith("at 8 bits")
    assert "3 steps" in lines["estimates"]
    assert lines["a search"].endswith(("in the default 4.5 min", "in the default 60 min"))
    code, out, _ = said([path, "--json", "--resize", "8"], capsys, monkeypatch)
    table = json.loads(out)
    assert not code
    assert table["shape"] == [3, 8, 8]
    assert table["class_names"] == list(CLASSES)
    assert set(table["sample_bytes"]) == set("12345678")


@pytest.mark.parametrize("source", ["nowhere/at/all", "digit", "empty folder"])
def test_wrong_sources_end_in_one_line(source, capsys, monkeypatch, tmp_path):
    if source == "empty folder":
        source = tmp_path / "leer é"
        source.mkdir()
    code, out, err = said([source], capsys, monkeypatch)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"budgetopt: error: .*\n", err)


def test_benchmark_of_reading(tmp_path, capsys, monkeypatch):
    """The script runs, and counts all samples of both parts."""
    script = Path(__file__).parents[1] / "examples" / "benchmarks" / "reading.py"
    monkeypatch.setattr(sys, "argv", [str(script), write_folder(tmp_path / "d")])
    runpy.run_path(str(script), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"36 samples, (\w+) cache: ", line)[1] for line in lines] == ["empty", "full"]
