"""Pictures from folders, Parquet and arrays: one contract for all, then what is peculiar to each."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from refusals import refused

import budgetopt
from budgetopt import api, cli
from budgetopt.allocation import Allocation
from budgetopt.data import Dataset, decoding, open_source, pictures
from budgetopt.data.dataset import Split
from budgetopt.data.resizing import Size
from budgetopt.errors import InputError
from budgetopt.methods.selection import Selector
from budgetopt.packing import pack
from budgetopt.packing.resized import FILTERS, Resized, channels_first, converted_to
from budgetopt.representation import Representation

CLASSES = ("chat", "chien", "été")
COUNTS = {"train": (12, 9, 6), "test": (4, 3, 2)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "budgetopt" / "pictures"


def drawn(part, size=(9, 9), channels=3):
    """{class: [(h, w, c) uint8]}: noise around a colour of the class, the same in every call."""
    rng = np.random.default_rng(len(part))
    found = {}
    for label, (name, count) in enumerate(zip(CLASSES, COUNTS[part], strict=True)):
        noise = rng.integers(0, 60, (count, *size, channels))
        found[name] = list((noise + 80 * label).astype(np.uint8))
    return found


def png(values):
    stream = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(stream, "png")
    return stream.getvalue()


def write_folder(root, parts=("train", "test"), names=None, **drawing):
    """root/PART/CLASS/*.png; of no part names root/CLASS/*.png."""
    for part in parts:
        for name, images in drawn(part, **drawing).items():
            folder = root / (names or {}).get(part, part) / name
            folder.mkdir(parents=True)
            for at, values in enumerate(images):
                (folder / f"{at:02} ö.png").write_bytes(png(values))
    return str(root)


def rows_of(part, **drawing):
    return [(png(v), label) for label, images in enumerate(drawn(part, **drawing).values()) for v in images]


def table_of(rows, names=CLASSES, struct=True):
    encoded = [data for data, _ in rows]
    column = [{"bytes": data, "path": None} for data in encoded] if struct else encoded
    features = {"image": {"_type": "Image"}, "label": {"names": list(names or ()), "_type": "ClassLabel"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    table = pa.table({"image": pa.array(column, kind), "label": [label for _, label in rows]})
    if names is None:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(root, parts=("train", "test"), shards=2, **drawing):
    root.mkdir(parents=True)
    for part in parts:
        rows = rows_of(part, **drawing)
        for shard in range(shards):
            own = rows[shard::shards]
            path = root / f"{part}-{shard:05}-of-{shards:05}.parquet"
            pa.parquet.write_table(table_of(own), path, row_group_size=4)
    return str(root)


def arrays_of(part, **drawing):
    images = drawn(part, **drawing)
    x = np.stack([values for own in images.values() for values in own])
    y = np.repeat(np.arange(len(images)), [len(own) for own in images.values()])
    return x.transpose(0, 3, 1, 2), y


def write_npy(root):
    root.mkdir(parents=True)
    for part in ("train", "test"):
        x, y = arrays_of(part)
        np.save(root / f"x_{part}.npy", x)
        np.save(root / f"y_{part}.npy", y)
    return str(root)


def write_npz(root):
    root.mkdir(parents=True)
    held = {f"{name}_{part}": a for part in ("train", "test") for name, a in zip("xy", arrays_of(part), strict=True)}
    np.savez(root / "a.npz", **held)
    return str(root / "a.npz")


SOURCES = {"folder": write_folder, "parquet": write_parquet, "npy": write_npy, "npz": write_npz}
every_source = pytest.mark.parametrize("kind", SOURCES)


# --- the contract of all sources -------------------------------------------------------------------------------------


def multiset(x, y):
    return sorted((int(label), bytes(sample)) for sample, label in zip(x, y, strict=True))


@every_source
def test_parts_are_what_was_written(kind, tmp_path):
    source = open_source(SOURCES[kind](tmp_path / "mit Leer é"))
    for part, arrays in (("train", source.train_arrays), ("test", source.test_arrays)):
        x, y = arrays()
        wanted_x, wanted_y = arrays_of(part)
        assert x.shape == wanted_x.shape
        assert x.dtype == np.uint8
        assert y.dtype == np.int64
        assert multiset(x, y) == multiset(np.ascontiguousarray(wanted_x), wanted_y)
    assert source.train_labels().tolist() == source.train_arrays()[1].tolist()
    assert source.test_labels().tolist() == source.test_arrays()[1].tolist()
    source.check_test_part((3, 9, 9))
    assert source.space == "image"
    assert source.protocol == "image-2"


@every_source
def test_dataset_of_every_source(kind, tmp_path):
    path = SOURCES[kind](tmp_path / "d")
    one, two = (Dataset.prepare(open_source(path), 3) for _ in range(2))
    assert one.spec.split_hash == two.spec.split_hash
    assert np.array_equal(one.val.x, two.val.x)
    assert one.spec.shape == (3, 9, 9)
    assert one.spec.preparation is None
    assert len(one.train) + len(one.val) == sum(COUNTS["train"])
    assert len(one.load_test()) == sum(COUNTS["test"])


@every_source
def test_reading_one_part_never_needs_the_other(kind, tmp_path):
    path = Path(SOURCES[kind](tmp_path / "d"))
    wanted = open_source(str(path)).train_arrays()[0].copy()
    test = {
        "folder": lambda: list(path.glob("test/*/*")),
        "parquet": lambda: list(path.glob("test*")),
        "npy": lambda: list(path.glob("*_test.npy")),
    }
    if kind == "npz":
        held = dict(np.load(path))
        np.savez(path, **{name: a if "train" in name else np.zeros(0) for name, a in held.items()})
    else:
        for file in test[kind]():
            file.write_bytes(b"damaged")
    assert np.array_equal(open_source(str(path)).train_arrays()[0], wanted)


@every_source
def test_fingerprints_find_equal_samples(kind, tmp_path):
    source = open_source(SOURCES[kind](tmp_path / "d"))
    train, test = source.fingerprints(test=False), source.fingerprints(test=True)
    assert (len(set(train)), len(set(test))) == (sum(COUNTS["train"]), sum(COUNTS["test"]))
    assert not set(train) & set(test)
    assert source.fingerprints(test=False) == train


@every_source
@pytest.mark.parametrize("text", ["5", "6x4:lanczos", "70"])
def test_resized_pictures_and_what_a_receiver_repeats(kind, text, tmp_path):
    path = SOURCES[kind](tmp_path / "d")
    source = open_source(path, resize=text)
    data = Dataset.prepare(source, 0)
    size = Size.parse(text)
    how = Resized(3, size.height, size.width, size.filter)
    assert data.spec.preparation == how
    assert data.spec.shape == (3, size.height, size.width)
    assert source.space == ("image-large" if text == "70" else "image")
    assert any(f"{size.height}×{size.width}" in note for note in source.notes)
    test = data.load_test()
    received = open_source(path).prepared_by(how).checked_test(data.spec.shape, 3)
    assert np.array_equal(received.x, test.x)
    assert np.array_equal(received.y, test.y)
    image = Image.fromarray(arrays_of("test")[0][0].transpose(1, 2, 0))
    assert how.pixels(image).tobytes() in {sample.tobytes() for sample in test.x}
    file = tmp_path / "a.bopt"
    small_file(path, file, text)
    loaded = budgetopt.load(file)
    made = loaded.prepare(np.asarray(image))
    assert made.dtype == np.float32
    assert np.array_equal(made, how.pixels(image))
    refused(lambda: loaded.prepare(np.zeros((4, 4), np.float32)), "uint8 of (h, w) or (h, w, 3), got float32 of (4, 4)")
    refused(lambda: loaded.prepare(np.zeros((4, 4, 2), np.uint8)), "got uint8 of (4, 4, 2)")
    refused(lambda: loaded.prepare(np.asarray(image), 8000), "rate 8000", "not made of recordings")


def small_file(path, file, resize):
    """A file of one sample a class."""
    data = Dataset.prepare(open_source(path, resize=resize), 0)
    initial = Selector(data.train, data.spec).select("random", 1, 0)
    file.write_bytes(
        pack(Representation(initial, Allocation(ipc=1, levels=2), data.spec, 0, torch.device("cpu")).packed())
    )


# --- resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "whole", "box"),
    [((30, 20), (12, 8), (2, 0, 10, 8)), ((20, 30), (8, 12), (0, 2, 8, 10)), ((24, 24), (8, 8), (0, 0, 8, 8))],
)
@pytest.mark.parametrize("name", FILTERS)
def test_shorter_side_is_resized_and_the_centre_kept(size, whole, box, name):
    """Against Pillow's resize and crop one after the other, where both come to whole pixels."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8))
    found = Resized(3, 8, 8, name).pixels(image)
    resampling = Image.Resampling["BOX" if name == "area" else name.upper()]
    assert np.array_equal(found, np.asarray(image.resize(whole, resampling).crop(box)).transpose(2, 0, 1))


def test_area_of_whole_blocks_is_their_mean():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    found = Resized(1, 2, 2, "area").pixels(Image.fromarray(values))
    naive = values.reshape(2, 4, 2, 4).astype(float).mean((1, 3))
    assert np.abs(found[0] - naive).max() <= 0.5


def test_long_thin_pictures_take_little_memory():
    found = Resized(1, 200, 200, "bilinear").pixels(Image.new("L", (60_000, 1), 7))
    assert found.shape == (1, 200, 200)
    assert (found == 7).all()


@pytest.mark.parametrize(
    ("text", "height", "width", "kind"),
    [("8", 8, 8, "bilinear"), ("24x32", 24, 32, "bilinear"), ("9:area", 9, 9, "area")],
)
def test_sizes(text, height, width, kind):
    assert Size.parse(text) == Size(height, width, kind)


@pytest.mark.parametrize("text", ["", "0", "-3", "big", "8x", "8x0", "8:nearest", "2000", "8 8", "1e3"])
def test_wrong_sizes(text):
    refused(lambda: open_source("digits", resize=text), f"--resize {text!r}")


def test_digits_and_colour_of_a_receiver(tmp_path):
    data = Dataset.prepare(open_source("digits", resize="16"), 0)
    assert data.spec.shape == (1, 16, 16)
    assert data.train.x.max() <= 16
    grey = open_source(write_folder(tmp_path / "d", channels=3)).prepared_by(Resized(1, 9, 9, "bilinear"))
    x, _ = grey.test_arrays()
    image = Image.fromarray(drawn("test")["chat"][0])
    assert np.array_equal(x[0, 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("kind", ["small", "float"])
def test_what_has_no_pictures_cannot_be_resized(kind, tmp_path, small_npz):
    if kind == "float":
        np.savez(small_npz, x_train=np.zeros((9, 4, 4), np.float32), y_train=np.arange(9) % 3)
    refused(lambda: Dataset.prepare(open_source(str(small_npz), resize="8"), 0), "--resize takes pictures")


def test_mixed_sizes_and_colours(tmp_path):
    root = Path(write_folder(tmp_path / "d"))
    odd = root / "train" / "chien" / "03 ö.png"
    odd.write_bytes(png(np.zeros((12, 7, 3), np.uint8)))
    source = open_source(str(root))
    message = refused(source.train_arrays, "the first is 9×9 colour", "12×7 colour", "--resize 9")
    assert str(odd) in message
    odd.write_bytes(png(np.zeros((9, 9, 1), np.uint8)))
    refused(source.train_arrays, "9×9 grey", "--resize 9")
    found = Dataset.prepare(open_source(str(root), resize="9"), 0)
    assert found.spec.shape == (3, 9, 9)


def test_grey_folders_stay_grey(tmp_path):
    path = write_folder(tmp_path / "d", channels=1)
    assert Dataset.prepare(open_source(path), 0).spec.shape == (1, 9, 9)
    assert Dataset.prepare(open_source(path, resize="5"), 0).spec.preparation == Resized(1, 5, 5, "bilinear")


# --- folders ---------------------------------------------------------------------------------------------------------


def test_one_folder_is_carved_as_tables_are(tmp_path):
    from sklearn.model_selection import train_test_split

    path = write_folder(tmp_path / "d", parts=("train",), names={"train": "."})
    source = open_source(path)
    assert source.class_names == CLASSES
    y = np.repeat(np.arange(3), COUNTS["train"])
    _, test = train_test_split(np.arange(len(y)), test_size=0.3, stratify=y, random_state=0)
    assert source.test_arrays()[1].tolist() == y[np.sort(test)].tolist()
    assert not set(source.fingerprints(True)) & set(source.fingerprints(False))
    assert any("no test part: 30%" in note for note in source.notes)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_folder_becomes_the_test_part(tmp_path, name):
    path = write_folder(tmp_path / "d", names={"test": name})
    source = open_source(path)
    assert len(source.test_arrays()[1]) == sum(COUNTS["test"])
    assert any(f"{name} is the test part" in note for note in source.notes)


def test_numbered_classes_go_by_number(tmp_path):
    for part in ("train", "test"):
        for number in range(11):
            folder = tmp_path / "d" / part / str(number)
            folder.mkdir(parents=True)
            for at in range(2):
                (folder / f"{at}.png").write_bytes(png(np.full((4, 4, 1), 10 * number + at, np.uint8)))
    source = open_source(str(tmp_path / "d"))
    assert source.class_names == tuple(map(str, range(11)))
    x, y = source.train_arrays()
    assert (x[:, 0, 0, 0] // 10 == y).all()


def test_class_only_in_the_test_part(tmp_path):
    root = Path(write_folder(tmp_path / "d"))
    (root / "test" / "zèbre").mkdir()
    source = open_source(str(root))
    assert len(source.train_arrays()[1]) == sum(COUNTS["train"])
    refused(lambda: source.check_test_part((3, 9, 9)), "class 'zèbre' is not in the training part")


def test_test_pictures_of_another_size_are_found_before_the_search(tmp_path):
    root = Path(write_folder(tmp_path / "d", parts=("train",)))
    write_folder(root, parts=("test",), size=(5, 9))
    refused(lambda: open_source(str(root)).check_test_part((3, 9, 9)), "(3, 5, 9)", "(3, 9, 9)")


def test_a_receiver_without_a_training_part_needs_all_classes(tmp_path):
    source = open_source(write_folder(tmp_path / "d", parts=("test",)))
    assert len(source.checked_test((3, 9, 9), 3)) == sum(COUNTS["test"])
    refused(lambda: source.checked_test((3, 9, 9), 4), "3 classes, the file has 4")
    refused(source.train_arrays, "no folder train")


def test_a_receiver_with_fewer_classes_is_refused(tmp_path):
    """Its classes would be numbered anew."""
    root = Path(write_folder(tmp_path / "d", parts=("train",), names={"train": "."}))
    shutil.rmtree(root / CLASSES[0])
    refused(lambda: open_source(str(root)).checked_test((3, 9, 9), 3), "2 classes, the file has 3", "put it beside")
    for part in ("train", "test"):  # numbers of Parquet whose metadata name all classes stay what they are
        rows = [(data, label) for data, label in rows_of(part) if label < 2]
        pa.parquet.write_table(table_of(rows), tmp_path / f"{part}.parquet")
    assert set(open_source(str(tmp_path)).checked_test((3, 9, 9), 3).y.tolist()) == {0, 1}


def test_pictures_of_another_size_late_in_the_test_part(tmp_path):
    root = Path(write_folder(tmp_path / "d"))
    last = sorted((root / "test" / CLASSES[-1]).iterdir())[-1]
    last.write_bytes(png(np.zeros((8, 9, 3), np.uint8)))
    refused(lambda: open_source(str(root)).check_test_part((3, 9, 9)), "one size", last.name, "--resize 9")


def test_odd_metadata_are_no_damage(tmp_path):
    """A JPEG whose EXIF block is cut off: Pillow warns, and opens it."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(stream, "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with pytest.warns(UserWarning, match="EXIF"):
        Image.open(io.BytesIO(stream.getvalue())).getexif()
    root = Path(write_folder(tmp_path / "d"))
    for file in (root / "train" / "chat").iterdir():
        file.unlink()
    for at in range(12):
        (root / "train" / "chat" / f"{at}.jpg").write_bytes(stream.getvalue())
    source = open_source(str(root))
    assert len(source.train_arrays()[1]) == sum(COUNTS["train"])
    assert not any("cannot be read" in note for note in source.notes)


def test_half_a_download_is_told(tmp_path):
    root = Path(write_parquet(tmp_path / "d", shards=3))
    (root / "train-00001-of-00003.parquet").unlink()
    refused(lambda: open_source(str(root)), "2 of 3 files of the part train", "00001")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    root = Path(write_folder(tmp_path / "d"))
    (root / "lost+found").mkdir(mode=0)
    refused(lambda: open_source(str(root)), "lost+found", "Permission denied")


def test_empty_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(lambda: open_source(str(tmp_path / "empty")), "it is empty")
    root = Path(write_folder(tmp_path / "d"))
    for file in (root / "train" / "été").iterdir():
        file.unlink()
    refused(open_source(str(root)).train_arrays, "no pictures in it")
    parent = tmp_path / "all of mine"  # of data sets: their classes lie a level deeper
    many(parent / "pets", 2)
    many(parent / "cars" / "train", 2)
    refused(lambda: open_source(str(parent)).train_arrays(), f"did you mean --dataset '{parent}/pets'?")


def many(root, count, broken=()):
    for name in "ab":
        (root / name).mkdir(parents=True)
        for at in range(count):
            data = png(np.full((4, 4, 1), at % 256, np.uint8))
            (root / name / f"{at:04}.png").write_bytes(data[:20] if (name, at) in broken else data)
    return str(root)


def test_few_unreadable_pictures_are_left_out_and_named(tmp_path, cache):
    source = open_source(many(tmp_path / "d", 200, {("a", 7), ("b", 100)}) + "/")
    parts = source.train_arrays(), source.test_arrays()
    assert sum(len(y) for _, y in parts) == 398
    for x, y in parts:
        assert len(x) == len(y)
        assert all(0 <= x[i, 0, 0, 0] < 200 and (x[i] == x[i, 0, 0, 0]).all() for i in range(len(x)))
    said = [note for note in source.notes if "cannot be read and are left out" in note]
    assert any("0007.png" in note or "0100.png" in note for note in said)
    again = open_source(str(tmp_path / "d")).train_arrays()  # from the cache
    assert np.array_equal(again[0], parts[0][0])
    assert np.array_equal(again[1], parts[0][1])


def test_more_unreadable_pictures_stop(tmp_path):
    source = open_source(many(tmp_path / "d", 100, {("a", at) for at in range(5)}))
    message = refused(source.train_arrays, "pictures cannot be read", "0000.png")
    assert re.search(r"[2345] of 140", message)


def test_files_that_are_not_what_their_names_say(tmp_path):
    root = tmp_path / "d"
    for name in "ab":
        (root / name).mkdir(parents=True)
        for at in range(5):
            (root / name / f"{at}.jpg").write_text("no picture")
    refused(lambda: Dataset.prepare(open_source(str(root)), 0), "no picture can be read", ".jpg: cannot identify")


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_pictures_of_more_than_8_bits_are_refused(tmp_path, mode):
    stream = io.BytesIO()
    Image.new(mode, (4, 4)).save(stream, "tiff")
    with pytest.raises(InputError, match="expected 8 bits a channel"):
        pictures.opened(stream.getvalue())


@pytest.mark.parametrize("mode", sorted((pictures.GREY | pictures.COLOUR) - {"PA", "RGBX", "HSV", "LAB", "YCbCr"}))
def test_modes(mode, tmp_path):
    stream = io.BytesIO()
    Image.new(mode, (4, 3)).save(stream, "tiff" if mode in ("CMYK", "1") else "png")
    image = pictures.opened(stream.getvalue())
    for channels in (1, 3):
        assert channels_first(converted_to(image, channels)).shape == (channels, 3, 4)
    assert pictures.is_grey(image) == (mode in pictures.GREY)


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("names", [CLASSES, None])
def test_one_file_and_its_layouts(tmp_path, struct, names):
    table = table_of(rows_of("train"), names, struct)
    pa.parquet.write_table(table, tmp_path / "mine.parquet", row_group_size=5)
    source = open_source(str(tmp_path / "mine.parquet"))
    assert source.class_names == (names or ("0", "1", "2"))
    (x, y), (test_x, test_y) = source.train_arrays(), source.test_arrays()
    wanted = arrays_of("train")
    got = multiset(np.concatenate([x, test_x]), np.concatenate([y, test_y]))
    assert got == multiset(np.ascontiguousarray(wanted[0]), wanted[1])
    assert any("no test part" in note for note in source.notes)


def test_numeric_tables_stay_tables(tmp_path):
    pa.parquet.write_table(pa.table({"a": np.arange(30.0), "label": np.arange(30) % 3}), tmp_path / "a.parquet")
    assert type(open_source(str(tmp_path / "a.parquet"))).__name__ == "Tabular"


def test_labels_by_name_and_as_text(tmp_path):
    table = table_of(rows_of("train"), None)
    text = pa.array([CLASSES[i] for i in table["label"].to_pylist()])
    table = table.drop(["label"]).append_column("kind", text).append_column("other", pa.array(range(len(table))))
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    refused(lambda: open_source(str(tmp_path / "a.parquet")), "kind, other could be it", "--label")
    source = open_source(str(tmp_path / "a.parquet"), label="kind")
    assert source.class_names == tuple(sorted(CLASSES))
    refused(lambda: open_source(str(tmp_path / "a.parquet"), label="knd"), "did you mean 'kind'")


@pytest.mark.parametrize(("label", "says"), [(-1, "label -1"), (3, "label 3")])
def test_labels_that_are_no_class(tmp_path, label, says):
    rows = [*rows_of("train"), (png(np.zeros((9, 9, 3), np.uint8)), label)]
    pa.parquet.write_table(table_of(rows), tmp_path / "a.parquet")
    refused(open_source(str(tmp_path / "a.parquet")).train_arrays, says, "row 27")


def test_parquet_cut_anywhere(tmp_path):
    whole = tmp_path / "whole.parquet"
    pa.parquet.write_table(table_of(rows_of("train")), whole)
    data, path = whole.read_bytes(), tmp_path / "cut.parquet"
    for length in range(0, len(data), 397):
        path.write_bytes(data[:length])
        refused(lambda: open_source(str(path)).train_arrays(), "cut.parquet")
    for at in range(0, len(data), 211):  # a flipped bit: one line, or what could still be read
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with contextlib.suppress(InputError):
            x, y = open_source(str(path)).train_arrays()
            assert len(x) == len(y)


# --- the cache -------------------------------------------------------------------------------------------------------


def entries(cache):
    return sorted(cache.glob("*"))


def test_cache_follows_the_content(tmp_path, cache, monkeypatch):
    path = write_folder(tmp_path / "d")
    made = []
    real = decoding._made
    monkeypatch.setattr(decoding, "_made", lambda *a: (made.append(1), real(*a))[1])
    first = open_source(path).train_arrays()[0].copy()
    assert len(made) == 1
    assert {entry.suffix for entry in entries(cache)} == {".npy", ".json"}
    for file in Path(path).rglob("*.png"):
        os.utime(file, (1, 1))
    (tmp_path / "d").rename(tmp_path / "elsewhere")
    again = open_source(str(tmp_path / "elsewhere")).train_arrays()[0]
    assert len(made) == 1
    assert isinstance(again, np.memmap)
    assert np.array_equal(again, first)
    changed = next((tmp_path / "elsewhere" / "train").rglob("*.png"))
    changed.write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    assert not np.array_equal(open_source(str(tmp_path / "elsewhere")).train_arrays()[0], first)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "no json", "bad json", "other shape"])
def test_damaged_entries_are_made_again(tmp_path, cache, damage):
    path = write_folder(tmp_path / "d")
    wanted = open_source(path).train_arrays()[0].copy()
    array, facts = next(cache.glob("*.npy")), next(cache.glob("*.json"))
    data = array.read_bytes()
    if damage == "cut":
        array.write_bytes(data[:-50])
    elif damage == "flipped":
        array.write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
    elif damage == "no json":
        facts.unlink()
    elif damage == "bad json":
        facts.write_text("[1")
    else:
        np.save(array, np.zeros((2, 2), np.uint8))
    assert np.array_equal(open_source(path).train_arrays()[0], wanted)
    assert array.read_bytes() == data
    assert len(entries(cache)) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, cache, monkeypatch):
    path = write_folder(tmp_path / "d")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    assert len(open_source(path).train_arrays()[0]) == sum(COUNTS["train"])
    assert cache.read_text() == "a file in its place"


def test_nothing_is_left_of_what_was_refused(tmp_path, cache):
    root = Path(write_folder(tmp_path / "d"))
    (root / "train" / "chien" / "03 ö.png").write_bytes(png(np.zeros((12, 7, 3), np.uint8)))
    refused(open_source(str(root)).train_arrays)
    assert entries(cache) == []


def test_workers_decode_as_this_process_does(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "d")
    alone = open_source(path).train_arrays()[0].copy()
    monkeypatch.setattr(decoding, "WORTH_WORKERS", 1)
    monkeypatch.setattr("budgetopt.data.picture_folder.SHARD", 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    pools = []
    real = decoding.ProcessPoolExecutor
    monkeypatch.setattr(decoding, "ProcessPoolExecutor", lambda *a, **k: (pools.append(a), real(*a, **k))[1])
    assert np.array_equal(open_source(path).train_arrays()[0], alone)
    assert pools
    odd = tmp_path / "d" / "train" / "chien" / "03 ö.png"
    odd.write_bytes(png(np.zeros((12, 7, 3), np.uint8)))
    refused(open_source(path).train_arrays, "12×7")


WORKERS = "import os, time; os.sched_getaffinity = lambda pid: {0, 1}\nfrom budgetopt.data import decoding\n"


def test_workers_need_no_guard_in_the_script_of_the_caller(tmp_path):
    script = tmp_path / "plain.py"
    script.write_text(WORKERS + "print(decoding._on_workers(abs, [-1, -2, -3], 2000), os.getpid())\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("[1, 2, 3]")
    assert len(done.stdout.splitlines()) == 1  # workers did not run the script
    assert done.stderr == ""


def test_workers_end_with_a_killed_caller(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(WORKERS + "decoding._on_workers(time.sleep, [100, 100], 2000)\n")
    caller = psutil.Popen([sys.executable, str(script)])
    deadline = time.monotonic() + 60
    workers = []
    while len(workers) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
        workers = [child for child in caller.children() if "popen_loky" in " ".join(child.cmdline())]
    time.sleep(2)  # until they are at work
    caller.kill()
    caller.wait()
    assert len(workers) == 2
    assert not psutil.wait_procs(workers, timeout=20)[1]


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_npy_pair_is_carved_and_named_by_either(tmp_path):
    x, y = arrays_of("train")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    for name in (tmp_path, tmp_path / "x.npy"):
        source = open_source(str(name))
        assert len(source.train_arrays()[1]) + len(source.test_arrays()[1]) == len(y)
        assert any("no test part" in note for note in source.notes)
    refused(lambda: open_source(str(tmp_path / "y.npy")), "an x.npy has a y.npy beside it")
    (tmp_path / "y.npy").unlink()
    refused(open_source(str(tmp_path)).train_arrays, "no y.npy")


def test_npy_is_mapped_and_never_unpickled(tmp_path):
    path = write_npy(tmp_path / "d")
    x, _ = open_source(path).train_arrays()
    assert isinstance(x, np.memmap) or isinstance(x.base, np.memmap)
    np.save(tmp_path / "d" / "x_train.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(lambda: open_source(path), "x_train.npy")
    (tmp_path / "d" / "x_train.npy").write_bytes(b"\x93NUMPY")
    refused(lambda: open_source(path), "x_train.npy")


@pytest.mark.parametrize("claims", ["zeros", "header"])
def test_zip_bombs(tmp_path, claims, monkeypatch):
    from budgetopt.data import npz

    monkeypatch.setattr(npz, "SUSPICIOUS", 1 << 20)
    path = tmp_path / "bomb.npz"
    held = {"y_train": np.arange(9) % 3, "x_test": np.zeros((3, 4)), "y_test": np.arange(3)}
    if claims == "zeros":
        np.savez_compressed(path, x_train=np.zeros((9, 1 << 19), np.uint8), **held)
        refused(lambda: open_source(str(path)).train_arrays(), "a zip bomb", "4,718,")
        return
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (9, 1 << 40)})
    import zipfile

    np.savez(path, **held)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", stream.getvalue() + bytes(100))
    refused(lambda: open_source(str(path)).train_arrays(), "declares", "holds")


def test_parts_too_large_for_memory_are_mapped(tmp_path, monkeypatch):
    from budgetopt import mapped
    from budgetopt.data import dataset

    path = write_npy(tmp_path / "d")
    plain = Dataset.prepare(open_source(path), 0)
    monkeypatch.setattr(mapped, "LARGE", 100)
    monkeypatch.setattr(dataset, "CHUNK", 1000)
    large = Dataset.prepare(open_source(path), 0)
    assert isinstance(large.train.x, np.memmap)
    assert np.array_equal(large.train.x, plain.train.x)
    assert large.spec.split_hash == plain.spec.split_hash
    assert np.array_equal(large.spec.std, plain.spec.std)


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_torchvision_sets_that_keep_files(monkeypatch):
    import torchvision.datasets as sets

    class Files:
        """As Flowers102 and others: pictures of many sizes, opened one by one."""

        classes = ("a", "b")

        def __init__(self, root, train=True, download=False):
            rng = np.random.default_rng(train)
            sizes = [(8 + i % 3, 9) for i in range(12)]
            self._held = [
                (Image.fromarray(rng.integers(0, 256, (*s, 3)).astype(np.uint8)), i % 2) for i, s in enumerate(sizes)
            ]

        def __len__(self):
            return len(self._held)

        def __getitem__(self, at):
            if at >= len(self):
                raise IndexError
            return self._held[at]

    monkeypatch.setattr(sets, "Flowers102", Files)
    refused(open_source("Flowers102").train_arrays, "mixed sizes", "--resize 8")
    data = Dataset.prepare(open_source("Flowers102", resize="6"), 0)
    assert data.spec.shape == (3, 6, 6)
    assert data.spec.preparation == Resized(3, 6, 6, "bilinear")
    assert data.load_test().x.shape == (12, 3, 6, 6)
    assert data.source.class_names == ("a", "b")


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(lambda: open_source("hf:someone/something"), "pip install 'budgetopt[hf]'")


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:/a"])
def test_hub_names(name):
    refused(lambda: open_source(name), "write hf:OWNER/NAME")


def test_hub_is_downloaded_once(monkeypatch, tmp_path):
    calls = []

    class Splits:
        def __init__(self, part):
            self._part = part

        def to_parquet(self, path):
            pa.parquet.write_table(table_of(rows_of(self._part)), path)

    class Package:
        @staticmethod
        def load_dataset(name):
            calls.append(name)
            if name == "a/none":
                raise ConnectionError("no route\nto host")
            return {"train": Splits("train"), "validation": Splits("test")}

    monkeypatch.setitem(sys.modules, "datasets", Package)
    for _ in range(2):
        source = open_source("hf:a/b")
        assert len(source.test_arrays()[1]) == sum(COUNTS["test"])
        assert source.class_names == CLASSES
    assert calls == ["a/b"]
    refused(lambda: open_source("hf:a/none"), "could not be downloaded (ConnectionError): no route")
    assert not list((tmp_path / "cache" / "budgetopt" / "hub").glob("*.partial"))


# --- as a user runs it -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_search_and_eval_of_a_folder_with_mixed_sizes(tmp_path, monkeypatch, capsys):
    root = tmp_path / "d"
    for part in ("train", "test"):
        for name, images in drawn(part, size=(14, 11)).items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for at, values in enumerate(images):
                (folder / f"{at}.png").write_bytes(png(values[: 14 - at % 4]))
    monkeypatch.chdir(tmp_path)
    Path("p.toml").write_text('network = "convnet"\nsteps = 30\nseeds = 5\nwidth = 4\n')
    found = api.search("900", "d", resize="8", protocol="p.toml", objectives=["coreset"], trials=2, workers=1, out="r")
    assert json.loads(Path("r/config.json").read_text())["resize"] == "8"
    assert found.best.accuracy > 0.8
    for dataset in ("d", None):  # the file alone says how pictures are made
        assert api.evaluate("r/best.bopt", dataset).accuracy == pytest.approx(found.best.accuracy)
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["budgetopt", "inspect", "r/best.bopt"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "centre resized to 8×8 (bilinear)" in capsys.readouterr().out


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar():
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("BUDGETOPT_DATA") or beside) / "cifar10-jpeg"
    if not path.is_dir():
        pytest.skip("the CIFAR-10 copy is not here: name the folder that holds cifar10-jpeg/ in BUDGETOPT_DATA")
    return str(path)


def test_cifar(cifar):
    source = open_source(cifar)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    source.check_test_part((3, 32, 32))
    test = source.checked_test((3, 32, 32), 10)
    assert isinstance(test, Split)
    assert np.bincount(test.y).tolist() == [1000] * 10
    column = pa.parquet.read_table(Path(cifar) / "test-00000-of-00001.parquet")["image"]
    for row in (0, 4_999, 9_999):
        naive = np.asarray(Image.open(io.BytesIO(column[row].as_py()["bytes"])).convert("RGB"))
        assert np.array_equal(test.x[row], naive.transpose(2, 0, 1))
