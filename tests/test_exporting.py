"""One contract for every export format: read by what its users read it with, the file holds what `load` gives."""

import io
import json
import sys
import tarfile
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from sets import packed_set
from typer.testing import CliRunner

from budgetopt import cli, data, exporting, load
from budgetopt.errors import InputError
from budgetopt.packing import Standardize, UniformLevels, pack
from budgetopt.packing.log_mel import LogMel
from budgetopt.packing.resized import Resized
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.packing.table import Categorical, Numeric, TablePreparation

EXACT = ("npz", "safetensors", "torch", "webdataset")


def made(shape, counts, table, soft=False, **changes):
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, table.levels, (sum(counts), *shape)).astype(np.uint8)
    channels = shape[0] if len(shape) == 3 else 1
    statistics = np.linspace(3, 5, channels).astype(np.float32)
    packed = packed_set(symbols, counts, table, mean=statistics, std=statistics + 1, **changes)
    chances = rng.dirichlet(np.ones(len(counts)), sum(counts))
    return replace(packed, soft=SoftLabels.nearest(chances, 4)) if soft else packed


SETS = {
    "grey": made((1, 8, 8), (4, 2, 3), UniformLevels(4, 0, 85, 0)),
    "grey, soft": made((1, 8, 8), (4, 0, 3), UniformLevels(2, 0, 255, 0), soft=True),
    "colour": made((3, 5, 7), (2, 3), UniformLevels(256, 0, 1, 0)),
    "between whole numbers": made((1, 8, 8), (4, 2), UniformLevels(17, 1, 31, 1)),  # ½, 16, 31½, …
    "features, soft": made((6,), (5, 1, 7), UniformLevels(4, -3, 5, 2), soft=True),
    "standardised": made(
        (3, 4, 4), (3, 3), UniformLevels(5, -2, 1, 0), inverse=Standardize((9, 9, 9), 3, (1, 2, 3), 0)
    ),
    "two channels": made((2, 4, 4), (3, 3), UniformLevels(3, 0, 1, 0)),
}


@dataclass
class Read:
    x: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    targets: np.ndarray | None = None
    preparation: str | None = None


def read_npz(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    preparation = arrays.pop("preparation", None)
    return Read(**arrays, preparation=None if preparation is None else preparation.item())


def read_safetensors(content):
    arrays = pytest.importorskip("safetensors.numpy").load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return Read(**arrays, preparation=header["__metadata__"].get("preparation"))


def read_torch(content):
    found = torch.load(io.BytesIO(content), weights_only=True)
    preparation = found.pop("preparation", None)
    return Read(**{name: tensor.numpy() for name, tensor in found.items()}, preparation=preparation)


def read_webdataset(content):
    samples = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        statistics = [np.float32(json.loads(tar.pax_headers[f"budgetopt.{name}"])) for name in ("mean", "std")]
        preparation = tar.pax_headers.get("budgetopt.preparation")
        for member in tar:
            key, _, ending = member.name.partition(".")
            samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
    assert list(samples) == [f"{i:06}" for i in range(len(samples))]
    x = [np.load(io.BytesIO(s["npy"])) if "npy" in s else pixels(s["png"]) for s in samples.values()]
    y = np.array([int(s["cls"]) for s in samples.values()])
    targets = [json.loads(s["json"])["targets"] for s in samples.values() if "json" in s]
    return Read(np.stack(x).astype(np.float32), y, *statistics, np.float32(targets) if targets else None, preparation)


def read_parquet(content):
    table = pyarrow.parquet.read_table(io.BytesIO(content))
    columns = table.to_pydict()
    if "image" in columns:
        x = np.stack([pixels(row["bytes"]) for row in columns["image"]]).astype(np.float32)
    else:
        names = [name for name in columns if name.startswith("x_")]
        assert names == [f"x_{i}" for i in range(len(names))]
        x = np.float32([columns[name] for name in names]).T
    statistics = json.loads(table.schema.metadata[b"budgetopt"])
    targets = np.float32(columns["targets"]) if "targets" in columns else None
    mean, std = (np.float32(statistics[name]) for name in ("mean", "std"))
    preparation = table.schema.metadata.get(b"budgetopt.preparation")
    return Read(x, np.array(columns["label"]), mean, std, targets, preparation and preparation.decode())


def pixels(png):
    array = np.asarray(Image.open(io.BytesIO(png), formats=["PNG"]))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


READERS = {
    "npz": read_npz,
    "safetensors": read_safetensors,
    "torch": read_torch,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
}


def test_every_format_has_a_reader_here():
    assert set(exporting.FORMATS) == {*READERS, "png"}
    assert set(exporting._writers()) == set(exporting.FORMATS)


def holds(to, name):
    """Whether the format can hold the set."""
    return to != "parquet" or name not in ("standardised", "two channels")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("to", READERS)
def test_a_reader_finds_what_load_gives(to, name):
    packed = SETS[name]
    if not holds(to, name):
        with pytest.raises(InputError, match="export --to npz"):
            exporting.export(packed, to)
        return
    exported = exporting.export(packed, to)
    found = READERS[to](exported.content)
    if to in EXACT or name != "between whole numbers":
        assert np.array_equal(found.x, packed.decode())
        assert found.x.dtype == np.float32
    else:
        assert np.abs(found.x - packed.decode()).max() == 0.5
    assert np.array_equal(found.y, packed.labels())
    assert np.array_equal(found.mean, packed.mean)
    assert np.array_equal(found.std, packed.std)
    assert (found.targets is None) == (packed.soft is None)
    if packed.soft is not None:
        assert np.array_equal(found.targets, packed.targets())
    assert exporting.export(packed, to).content == exported.content


def test_what_is_rounded_is_said():
    (note,) = exporting.export(SETS["between whole numbers"], "parquet").notes
    values = SETS["between whole numbers"].decode()
    assert note.startswith(f"{(values != np.rint(values)).sum():,} of {values.size:,} values are not whole")
    assert "by 0.5 at most; --to npz" in note
    assert exporting.export(SETS["grey"], "parquet").notes == ()
    (note,) = exporting.export(SETS["between whole numbers"], "webdataset").notes
    assert note.startswith("samples are .npy")
    assert exporting.export(SETS["colour"], "webdataset").notes == ()


def test_pictures_that_pixels_cannot_hold_are_refused():
    """Fractions of 1, as many sets have them, would all become 0 or 1."""
    fractions = made((1, 8, 8), (4, 2), UniformLevels(5, 0, 1, 2))
    with pytest.raises(InputError, match=r"up to 0\.5, .*export --to npz"):
        exporting.export(fractions, "parquet")
    with pytest.raises(InputError, match=r"up to 245, "):  # clipped
        exporting.export(made((1, 8, 8), (4, 2), UniformLevels(5, 0, 125, 0)), "parquet")


def test_parquet_names_the_classes_as_hugging_face_does():
    table = pyarrow.parquet.read_table(io.BytesIO(exporting.export(SETS["grey, soft"], "parquet").content))
    assert table.schema.field("image").type == pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["0", "1", "2"], "_type": "ClassLabel"}
    assert list(features) == table.column_names


def test_the_package_itself_reads_a_table(tmp_path):
    packed = made((6,), (40, 30), UniformLevels(4, -3, 5, 2))
    (tmp_path / "a.parquet").write_bytes(exporting.export(packed, "parquet").content)
    source = data.open_source(str(tmp_path / "a.parquet"))
    (x, y), (more_x, more_y) = source.train_arrays(), source.test_arrays()
    rows = np.concatenate([np.c_[x, y], np.c_[more_x, more_y]])
    wanted = np.c_[packed.decode(), packed.labels()]
    assert np.array_equal(rows[np.lexsort(rows.T)], wanted[np.lexsort(wanted.T)])


def test_the_package_itself_reads_pictures(tmp_path):
    packed = made((3, 5, 7), (7, 5), UniformLevels(256, 0, 1, 0))
    for part in ("train-0", "test-0"):
        (tmp_path / f"{part}.parquet").write_bytes(exporting.export(packed, "parquet").content)
    source = data.open_source(str(tmp_path))
    for x, y in (source.train_arrays(), source.test_arrays()):
        assert np.array_equal(x, packed.decode())
        assert np.array_equal(y, packed.labels())


def test_absent_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match=r"pip install 'budgetopt\[safetensors\]'"):
        exporting.export(SETS["grey"], "safetensors")


@pytest.mark.parametrize("to", ["jpeg", "", "NPZ", "pt"])
def test_unknown_formats(to):
    with pytest.raises(InputError, match=f"unknown export format '{to}': .*known are npz, parquet, png"):
        exporting.export(SETS["grey"], to)


COLUMNS = (Numeric("größe", 3, -2, indicator=True), Categorical("Farbe", ("rot", "grün"), other=True), Numeric("t"))
PREPARED = {
    "recordings": replace(SETS["grey"], preparation=LogMel(8000, 256, 80, 60, 3800, 60, 8, 8)),
    "pictures": replace(SETS["colour"], preparation=Resized(3, 5, 7, "area")),
    "table": replace(SETS["features, soft"], preparation=TablePreparation(COLUMNS, ("ja", "nein", "vielleicht"))),
}


def rebuilt(preparation):
    """A `Preparation` of JSON: its name and parameters."""
    parameters = json.loads(preparation)
    name = parameters.pop("name")
    if name != TablePreparation.name:
        return {kind.name: kind for kind in (LogMel, Resized)}[name](**parameters)
    columns = [
        Categorical(**{**column, "levels": tuple(column["levels"])}) if "levels" in column else Numeric(**column)
        for column in parameters["columns"]
    ]
    return TablePreparation(tuple(columns), tuple(parameters["classes"]))


@pytest.mark.parametrize("name", PREPARED)
@pytest.mark.parametrize("to", READERS)
def test_a_reader_finds_how_samples_were_made_of_raw_data(to, name):
    exported = exporting.export(PREPARED[name], to)
    assert rebuilt(READERS[to](exported.content).preparation) == PREPARED[name].preparation
    (note,) = exported.notes
    assert note.startswith("your own raw data")
    assert READERS[to](exporting.export(SETS["grey"], to).content).preparation is None


def test_parquet_names_the_classes_of_a_table():
    table = pyarrow.parquet.read_table(io.BytesIO(exporting.export(PREPARED["table"], "parquet").content))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == ["ja", "nein", "vielleicht"]


@pytest.mark.parametrize(
    ("shape", "counts", "mode", "tile"),
    [((1, 8, 8), (4,) * 10, "L", (91, 91)), ((3, 12, 16), (2, 3), "RGB", (171, 27)), ((20,), (5, 1, 7), "L", (20, 13))],
)
def test_png_is_a_picture_of_sane_size(shape, counts, mode, tile):
    image = Image.open(io.BytesIO(exporting.export(made(shape, counts, UniformLevels(4, 0, 5, 0)), "png").content))
    image.verify()
    assert image.mode == mode
    zoom = image.width // tile[0]
    assert image.size == (tile[0] * zoom, tile[1] * zoom)
    assert 240 <= image.width <= 720


def test_samples_that_are_no_pictures():
    with pytest.raises(InputError, match=r"\(2, 4, 4\) are no pictures: export --to npz"):
        exporting.export(SETS["two channels"], "png")


@pytest.mark.parametrize(
    ("to", "name"),
    [("npz", "a.npz"), ("torch", "a.pt"), ("webdataset", "a.tar"), ("parquet", "a.parquet"), ("png", "a.png")],
)
def test_command(tmp_path, monkeypatch, to, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.bopt").write_bytes(pack(SETS["between whole numbers"]))
    done = CliRunner().invoke(cli.app, ["export", "a.bopt", "--to", to], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.splitlines()[-1] == f"{name}: {(tmp_path / name).stat().st_size:,} bytes"
    assert ("note: " in done.output) == (to in ("webdataset", "parquet"))
    before = (tmp_path / name).read_bytes()
    again = CliRunner().invoke(cli.app, ["export", "a.bopt", "--to", to])
    assert "exists already: name another file with --out" in str(again.exception)
    assert (tmp_path / name).read_bytes() == before
    if to in READERS:
        found = READERS[to]((tmp_path / name).read_bytes())
        assert np.array_equal(found.y, load(tmp_path / "a.bopt").labels)
