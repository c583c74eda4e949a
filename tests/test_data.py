import re
import warnings

import numpy as np
import pytest

from budgetopt.data import Dataset, open_source
from budgetopt.data.carving import carved
from budgetopt.errors import InputError


def write(path, **arrays):
    """An .npz of 60 + 12 samples of 4 features in 3 classes, any array replaced; None leaves it out."""
    rng = np.random.default_rng(0)
    whole = {
        "x_train": rng.normal(size=(60, 4)).astype(np.float32),
        "y_train": np.arange(60) % 3,
        "x_test": rng.normal(size=(12, 4)).astype(np.float32),
        "y_test": np.arange(12) % 3,
    }
    np.savez(path, **{k: v for k, v in (whole | arrays).items() if v is not None})
    return str(path)


def one_line(raised):
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- digits ----------------------------------------------------------------------------------------------------------


def test_digits_sizes(digits):
    test = digits.load_test()
    assert (len(digits.train), len(digits.val), len(test)) == (1047, 210, 540)
    assert digits.spec.shape == (1, 8, 8)
    assert digits.spec.classes == 10
    assert digits.spec.values == 64
    assert digits.spec.protocol == "glyph-1"
    assert digits.train.x.dtype == np.uint8
    assert digits.train.x.max() == 16
    assert digits.train.y.dtype == np.int64


def test_digits_test_part_is_the_same_for_ever(digits):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    _, wanted, _, labels = train_test_split(x, y, test_size=0.3, stratify=y, random_state=0)
    test = digits.load_test()
    assert sorted(map(bytes, wanted.astype(np.uint8))) == sorted(map(bytes, test.x.reshape(-1, 64)))
    assert sorted(test.y) == sorted(labels)
    other = Dataset.prepare(open_source("digits"), 5).load_test()
    assert np.array_equal(other.x, test.x)
    assert np.array_equal(other.y, test.y)


# --- the split -------------------------------------------------------------------------------------------------------


def numbered(tmp_path, counts):
    """A dataset whose only feature is the sample's number."""
    y = np.repeat(np.arange(len(counts)), counts)
    x = np.arange(len(y), dtype=np.float32).reshape(-1, 1)
    return open_source(write(tmp_path / "numbered.npz", x_train=x, y_train=y))


@pytest.mark.parametrize("counts", [(60, 60, 60), (100, 40, 10), (12, 600), (2, 2, 2), (2, 50, 3)])
def test_split_is_stratified_disjoint_and_complete(tmp_path, counts):
    data = Dataset.prepare(numbered(tmp_path, counts), 3)
    train, val = data.train.x.ravel().tolist(), data.val.x.ravel().tolist()
    assert sorted(train + val) == list(range(sum(counts)))
    assert len(val) == max(len(counts), round(sum(counts) / 6))
    for c, count in enumerate(counts):
        share = len(val) / sum(counts)
        assert abs((data.val.y == c).sum() - count * share) <= 1
        assert (data.train.y == c).sum() == data.spec.class_counts[c] >= 1
    starts = np.cumsum([0, *counts])
    assert all(starts[y] <= x < starts[y + 1] for x, y in zip(train, data.train.y, strict=True))


def test_split_is_seeded(tmp_path):
    source = numbered(tmp_path, (60, 60))
    one, same, other = (Dataset.prepare(source, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.val.x, same.val.x)
    assert not np.array_equal(one.val.x, other.val.x)
    assert one.spec.split_hash == same.spec.split_hash != other.spec.split_hash


def test_split_hash_follows_the_data(tmp_path):
    x, y = np.zeros((60, 4), np.float32), np.arange(60) % 3
    plain = Dataset.prepare(open_source(write(tmp_path / "a.npz", x_train=x, y_train=y)), 0).spec.split_hash
    x[7, 2] = 1e-20
    assert Dataset.prepare(open_source(write(tmp_path / "a.npz", x_train=x, y_train=y)), 0).spec.split_hash != plain


def test_validation_has_a_limit(tmp_path):
    y = np.arange(70_000) % 2
    x = np.zeros((70_000, 1), np.uint8)
    data = Dataset.prepare(open_source(write(tmp_path / "large.npz", x_train=x, y_train=y)), 0)
    assert len(data.val) == 10_000


def test_test_part_is_loaded_only_when_asked(tmp_path):
    """A broken test part does not disturb the search."""
    source = open_source(write(tmp_path / "a.npz", x_test=None))
    data = Dataset.prepare(source, 0)
    with pytest.raises(InputError, match="no x_test; it holds"):
        data.load_test()
    with pytest.raises(InputError, match="no x_test: the front"):
        source.check_test_part((4,))


def parts_of(source):
    """[(sample, label)] of the training part and of the test part."""
    return [sorted((*x.ravel().tolist(), int(y)) for x, y in zip(*p, strict=True)) for p in both(source)]


def both(source):
    return source.train_arrays(), source.test_arrays()


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
@pytest.mark.parametrize("form", ["npz", "npy"])
def test_arrays_without_a_test_part_get_one(tmp_path, form, names):
    x, y = np.arange(100, dtype=np.float32).reshape(100, 1), np.arange(100) % 4
    arrays = dict(zip(names, (x, y), strict=True))
    path = tmp_path / "a.npz" if form == "npz" else tmp_path
    if form == "npz":
        np.savez(path, **arrays)
    else:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
    source = open_source(str(path))
    source.check_test_part((1,))
    train, test = parts_of(source)
    assert sorted(train + test) == [(float(i), i % 4) for i in range(100)]
    assert len(test) == 30
    assert all(7 <= [label for _, label in test].count(c) <= 8 for c in range(4))  # stratified
    assert parts_of(open_source(str(path))) == [train, test]
    assert any("no test part: 30%" in note for note in source.notes)
    assert sorted(source.train_labels()) == sorted(label for _, label in train)
    data = Dataset.prepare(source, 0)
    assert len(data.train) + len(data.val) == 70
    assert len(data.load_test()) == 30
    short = tmp_path / "short.npz"
    np.savez(short, **(arrays | {names[1]: y[:-1]}))
    with pytest.raises(InputError, match=r"100 samples but labels of shape \(99,\)"):
        open_source(str(short)).train_arrays()


# --- statistics ------------------------------------------------------------------------------------------------------


def naive_statistics(x):
    """Per channel, over the train part only; feature vectors have one channel."""
    x = x.astype(np.float64)
    channels = [x[:, c].ravel() for c in range(x.shape[1])] if x.ndim == 4 else [x.ravel()]
    return [float(c.mean()) for c in channels], [float(c.std()) for c in channels]


@pytest.mark.parametrize("kind", ["digits", "colour bytes", "features", "far from zero"])
def test_statistics_against_a_naive_loop(digits, tmp_path, kind):
    rng = np.random.default_rng(1)
    x = {
        "colour bytes": (rng.random((60, 3, 5, 5)) * [[[[50]], [[255]], [[90]]]]).astype(np.uint8),
        "features": rng.normal(size=(60, 7)).astype(np.float32),
        "far from zero": (1e5 + rng.normal(size=(60, 7))).astype(np.float32),
    }
    data = digits
    if kind != "digits":
        data = Dataset.prepare(open_source(write(tmp_path / "a.npz", x_train=x[kind], x_test=x[kind][:12])), 0)
    mean, std = naive_statistics(data.train.x)
    assert data.spec.mean.shape == data.spec.std.shape == (len(mean),)
    assert np.allclose(data.spec.std, std, rtol=0.011)
    assert (np.abs(data.spec.mean - mean) <= 0.011 * np.array(std)).all()
    whole, _ = naive_statistics(np.concatenate([data.train.x, data.val.x]))
    assert whole != mean


def test_statistics_of_a_constant_set(tmp_path):
    data = Dataset.prepare(open_source(write(tmp_path / "a.npz", x_train=np.full((60, 4), 3.0))), 0)
    assert data.spec.std.tolist() == [1.0]
    assert data.spec.mean.tolist() == [3.0]


# --- .npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected", "protocol"),
    [
        ((60, 4), (4,), "tabular-2"),
        ((60, 5, 6), (1, 5, 6), "image-2"),
        ((60, 3, 5, 6), (3, 5, 6), "image-2"),
        ((60, 5, 6, 3), (3, 5, 6), "image-2"),
        ((60, 5, 6, 1), (1, 5, 6), "image-2"),
        ((60, 1, 5, 6), (1, 5, 6), "image-2"),
    ],
)
def test_npz_shapes(tmp_path, shape, expected, protocol):
    x = np.arange(np.prod(shape)).reshape(shape) % 251
    path = write(tmp_path / "a.npz", x_train=x.astype(np.uint8), x_test=x[:12].astype(np.uint8))
    data = Dataset.prepare(open_source(path), 0)
    assert data.spec.shape == expected
    assert data.spec.protocol == protocol
    assert data.load_test().x.shape == (12, *expected)
    if len(shape) == 4 and shape[3] == 3:
        assert data.load_test().x[1, 2, 3, 4] == x[1, 3, 4, 2]


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint16, np.bool_])
def test_npz_other_number_types(tmp_path, dtype):
    x = (np.arange(240).reshape(60, 4) % 7).astype(dtype)
    data = Dataset.prepare(open_source(write(tmp_path / "a.npz", x_train=x)), 0)
    assert data.train.x.dtype == np.float32
    assert data.train.x.max() == x.max()


def test_npz_whole_labels_may_be_floats(tmp_path):
    data = Dataset.prepare(open_source(write(tmp_path / "a.npz", y_train=(np.arange(60) % 3).astype(np.float64))), 0)
    assert data.train.y.dtype == np.int64


def broken(x=None, y=None):
    rng = np.random.default_rng(0)
    good_x, good_y = rng.normal(size=(60, 4)).astype(np.float32), np.arange(60) % 3
    return {"x_train": good_x if x is None else x(good_x), "y_train": good_y if y is None else y(good_y)}


def with_value(value, at):
    def change(array):
        array = array.astype(np.result_type(array, np.asarray(value)))
        array[at] = value
        return array

    return change


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (broken(x=with_value(np.nan, (7, 2))), "1 samples hold NaN or infinite features, the first is sample 7"),
        (broken(x=with_value(np.inf, (5, 0))), "the first is sample 5"),
        (broken(x=with_value(-np.inf, slice(3, 9))), "6 samples hold .* sample 3"),
        (broken(x=lambda x: x.astype(np.float64) * 1e300), "NaN or infinite"),
        (broken(x=lambda x: x * 1e32), "too large"),
        (broken(y=with_value(-1, 4)), r"out of range, got -1\.\.2"),
        (broken(y=with_value(1 << 16, 4)), r"out of range, got 0\.\.65536"),
        (broken(y=with_value(0.5, 4)), "whole numbers, got dtype float64"),
        (broken(y=with_value(np.nan, 4)), "whole numbers"),
        (broken(y=lambda y: y.astype(str)), "whole numbers"),
        (broken(y=lambda y: y[:-1]), r"60 samples but labels of shape \(59,\)"),
        (broken(y=lambda y: np.eye(3)[y]), r"labels of shape \(60, 3\)"),
        (broken(y=lambda y: np.where(y == 1, 3, y)), r"class 1 has no sample; every class 0\.\.3 needs 2"),
        (broken(y=lambda y: np.where(np.arange(60) == 8, 3, y)), r"class 3 has 1 sample"),
        (broken(x=lambda x: x[:, 0]), r"samples must be .* got \(60,\)"),
        (broken(x=lambda x: x[:0], y=lambda y: y[:0]), r"n > 0"),
        (broken(x=lambda x: x[:, :0]), r"got \(60, 0\)"),
        (broken(x=lambda x: x.astype(str)), "must be numbers"),
        (broken(x=lambda x: x.astype(complex)), "must be numbers"),
        ({"x_train": None}, "no x_train"),
        ({"y_train": None}, "no y_train; it holds x_train, x_test, y_test"),
        (broken(x=lambda x: x[:3], y=lambda y: np.array([0, 0, 0])), None),
        (broken(x=lambda x: x[:2], y=lambda y: np.array([0, 0])), None),
    ],
)
def test_npz_training_part_errors(tmp_path, arrays, message):
    path = write(tmp_path / "broken.npz", **arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow in a cast is what some of these are about
        if message is None:
            assert len(Dataset.prepare(open_source(path), 0).val) == 1
            return
        with pytest.raises(InputError) as raised:
            Dataset.prepare(open_source(path), 0)
    assert re.search(message, one_line(raised))
    assert "broken.npz" in str(raised.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y_test": np.arange(12)}, r"test label 11 is out of range, expected 0\.\.2"),
        ({"y_test": np.arange(12) - 1}, "out of range, got -1"),
        ({"x_test": np.zeros((12, 5))}, r"shape \(5,\), expected \(4,\)"),
        ({"x_test": np.zeros((12, 1, 2, 2))}, r"expected \(4,\)"),
        ({"x_test": np.full((12, 4), np.nan)}, "12 samples hold NaN"),
        ({"x_test": np.zeros((0, 4)), "y_test": np.zeros(0, int)}, "n > 0"),
        ({"x_test": np.zeros((11, 4))}, "11 samples but labels of shape"),
        ({"y_test": None}, "no y_test"),
    ],
)
def test_npz_test_part_errors(tmp_path, arrays, message):
    data = Dataset.prepare(open_source(write(tmp_path / "broken.npz", **arrays)), 0)
    with pytest.raises(InputError) as raised:
        data.load_test()
    assert re.search(message, one_line(raised))
    assert "broken.npz" in str(raised.value)


def test_test_part_of_a_file_without_a_training_part(tmp_path):
    source = open_source(write(tmp_path / "test only.npz", x_train=None, y_train=None))
    test = source.checked_test((4,), 3)
    assert len(test) == 12
    with pytest.raises(InputError, match="no x_train and y_train"):
        source.train_arrays()


class Trap:
    """Leaves a mark if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_objects_are_not_unpickled(tmp_path, name):
    mark = tmp_path / "mark"
    trap = np.array([Trap(str(mark))] * 60, dtype=object)
    path = write(tmp_path / "objects.npz", **{name: trap})
    with pytest.raises(InputError) as raised:
        Dataset.prepare(open_source(path), 0)
    one_line(raised)
    assert not mark.exists()


def test_npz_cut_anywhere(tmp_path):
    data = (tmp_path / "a.npz", write(tmp_path / "a.npz"))[0].read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as raised:
            open_source(str(path)).train_arrays()
        one_line(raised)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_damaged_anywhere(tmp_path, save):
    """Every other byte of a small file: one clear line or the right arrays, never another exception."""
    x, y = np.arange(24, dtype=np.float32).reshape(12, 2), np.arange(12) % 2
    save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    data = (tmp_path / "a.npz").read_bytes()
    path = tmp_path / "damaged.npz"
    for at in range(0, len(data), 2):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at // 2 % 8
        path.write_bytes(damaged)
        try:
            source = open_source(str(path))
            got_x, got_y = source.train_arrays()
        except InputError:
            continue
        # a directory that has lost the test part: the training part is carved, which is said
        rows = carved(y, path)[0] if source.notes else slice(None)
        assert np.array_equal(got_x, x[rows])
        assert np.array_equal(got_y, y[rows])


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"not a zip at all"])
def test_foreign_npz(tmp_path, content):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        open_source(str(path))
    assert str(path) in one_line(raised)


def test_bare_array_with_the_name_of_an_npz(tmp_path):
    path = tmp_path / "bare.npz"
    with open(path, "wb") as stream:
        np.save(stream, np.zeros((3, 3)))
    with pytest.raises(InputError) as raised:
        open_source(str(path))
    one_line(raised)


# --- names -----------------------------------------------------------------------------------------------------------


def test_repeated_samples_are_counted(tmp_path):
    x = np.arange(240, dtype=np.float32).reshape(60, 4)
    arrays = {"x_train": x, "x_test": np.concatenate([x[[3, 59, 3]], x[:9] + 0.5])}
    data = Dataset.prepare(open_source(write(tmp_path / "a.npz", **arrays)), 0)
    assert data.repeated(data.load_test()) == 3


@pytest.mark.parametrize("content", [b"", b"not what its name says", bytes(40)])
def test_files_of_torchvision_that_are_something_else(tmp_path, content):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for what in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{what}-ubyte").write_bytes(content)
    with pytest.raises(InputError) as raised:
        open_source("FashionMNIST", tmp_path).train_arrays()
    message = one_line(raised)
    assert "FashionMNIST" in message
    assert str(tmp_path) in message


def test_fashion_mnist(fashion_mnist_root):
    data = Dataset.prepare(open_source("fashionmnist", fashion_mnist_root), 0)
    assert data.source.name == "FashionMNIST"
    assert data.spec.shape == (1, 28, 28)
    assert data.spec.protocol == "image-2"
    assert (len(data.train), len(data.val)) == (50_000, 10_000)
    assert data.spec.class_counts == (5_000,) * 10
    assert np.bincount(data.val.y).tolist() == [1_000] * 10
    assert data.spec.mean == pytest.approx([72.9], abs=0.5)
    assert data.spec.std == pytest.approx([90.0], abs=0.5)
    assert len(data.load_test()) == 10_000


@pytest.mark.parametrize(
    ("wrong", "right"), [("FashonMNIST", "FashionMNIST"), ("digit", "digits"), ("cifar-10", "CIFAR10")]
)
def test_unknown_name_suggests_the_nearest(wrong, right):
    with pytest.raises(InputError, match=f"did you mean '{right}'") as raised:
        open_source(wrong)
    assert repr(wrong) in one_line(raised)


@pytest.mark.parametrize("name", ["data.csv", "folder/data", "/absent/a.npz", "absent.npz"])
def test_paths_that_cannot_be_read(name):
    with pytest.raises(InputError, match="cannot read the dataset") as raised:
        open_source(name)
    assert name in one_line(raised)
