import dataclasses

import numpy as np
import pytest
from sets import packed_set

from budgetopt import initial
from budgetopt.allocation import Allocation
from budgetopt.errors import InputError, PackedFileError
from budgetopt.objective import DistributionMatchingObjective, zero_step_coreset
from budgetopt.packing import UniformLevels, pack
from budgetopt.protocol import PRESETS
from budgetopt.trial import TrialContext, initial_set

LABELS = np.array([7, 3, 0, 1, 2, 4, 5, 6, 8, 9, 3, 7, 3])  # not in class order; 3 comes three times, 7 twice


def samples(n=13, shape=(8, 8)):
    return np.random.default_rng(1).integers(0, 17, (n, *shape)).astype(np.float32)


@pytest.fixture
def read(tmp_path, digits):
    def run(**arrays):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return initial.read(path, digits.spec)

    return run


# ----------------------------------------------------------------------------------------------------------------------
# reading
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("x_train", "y_train")])
def test_npz_in_class_order_and_the_files_order_inside_a_class(read, names):
    x = samples()
    found = read(**dict(zip(names, (x, LABELS), strict=True)))
    order = [i for label in range(10) for i in np.flatnonzero(label == LABELS)]
    assert found.counts == (1, 1, 1, 3, 1, 1, 1, 2, 1, 1)
    assert found.x.shape == (13, 1, 8, 8)
    assert found.x.dtype == np.float32
    np.testing.assert_array_equal(found.x[:, 0], x[order])


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.int32])
def test_npz_shapes_and_types(read, shape, dtype):
    x = samples(shape=shape).astype(dtype)
    found = read(x=x, y=np.sort(LABELS))
    np.testing.assert_array_equal(found.x.reshape(13, 64), x.reshape(13, 64))


def test_whole_labels_may_be_floats(read):
    assert read(x=samples(), y=LABELS.astype(np.float64)).counts == read(x=samples(), y=LABELS).counts


def test_packed_file(tmp_path, digits):
    symbols = np.random.default_rng(0).integers(0, 4, (13, 1, 8, 8)).astype(np.uint8)
    counts = (1, 1, 1, 3, 1, 1, 1, 2, 1, 1)
    statistics = np.array([5.0], np.float32)
    packed = packed_set(symbols, counts, UniformLevels(4, 2, 5, 0), mean=statistics, std=statistics)
    (tmp_path / "a.bopt").write_bytes(pack(packed))
    found = initial.read(str(tmp_path / "a.bopt"), digits.spec)
    assert found.counts == counts
    np.testing.assert_array_equal(found.x, 2 + 5 * symbols.astype(np.float32))


# ----------------------------------------------------------------------------------------------------------------------
# errors
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": samples(), "y": np.where(LABELS == 9, 8, LABELS)}, r"every class 0\.\.9 of digits"),
        ({"x": samples(), "y": np.where(LABELS == 9, 10, LABELS)}, r"every class 0\.\.9 of digits"),
        ({"x": samples(), "y": LABELS - 1}, r"every class 0\.\.9 of digits"),
        ({"x": samples(shape=(7, 8)), "y": LABELS}, r"\(13, 1, 7, 8\).*\(1, 8, 8\)"),
        ({"x": samples(shape=(64,)), "y": LABELS}, r"\(13, 64\)"),
        ({"x": samples(), "y": LABELS[:-1]}, r"labels \(12,\)"),
        ({"x": samples(), "y": LABELS[:, None]}, r"labels \(13, 1\)"),
        ({"x": np.float32(3), "y": LABELS}, r"samples \(\)"),
        ({"x": np.where(samples() > 15, np.nan, samples()), "y": LABELS}, "NaN or infinite"),
        ({"x": np.where(samples() > 15, np.inf, samples()), "y": LABELS}, "NaN or infinite"),
        ({"x": samples(), "y": LABELS + 0.5}, "y must hold whole numbers"),
        ({"x": samples(), "y": np.where(LABELS == 9, np.nan, LABELS)}, "y must hold whole numbers"),
        ({"x": samples(), "y": LABELS.astype(str)}, "cannot read"),
        ({"x": samples(0), "y": LABELS[:0]}, "y must hold"),
        ({"x": samples()}, "holds x; --init needs x and y"),
        ({"a": samples()}, "holds a; --init needs x and y"),
        ({"x": np.array([{}] * 13, dtype=object), "y": LABELS}, "cannot read"),
    ],
)
def test_wrong_contents(read, arrays, message):
    with pytest.raises(InputError, match=message) as raised:
        read(**arrays)
    assert "mine.npz" in str(raised.value)


def test_a_huge_label(read):
    with pytest.raises(InputError, match=r"every class 0\.\.9"):
        read(x=samples(), y=np.where(LABELS == 9, 10**14, LABELS))


def test_samples_that_are_no_numbers(read):
    with pytest.raises(InputError):
        read(x=np.full((13, 8, 8), "dark"), y=LABELS)


@pytest.mark.parametrize("name", ["a.txt", "a.NPY", "a", "npz"])
def test_wrong_suffix(digits, name):
    with pytest.raises(InputError, match=r"takes a \.bopt or \.npz file") as raised:
        initial.read(name, digits.spec)
    assert repr(name) in str(raised.value)


@pytest.mark.parametrize("name", ["absent.npz", "absent.bopt"])
def test_absent_files(tmp_path, digits, name):
    with pytest.raises(InputError, match=f"cannot read .*{name}"):
        initial.read(tmp_path / name, digits.spec)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 hello", b"\x93NUMPY nothing"])
def test_foreign_files(tmp_path, digits, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*a\.npz"):
        initial.read(tmp_path / "a.npz", digits.spec)
    (tmp_path / "a.bopt").write_bytes(content)
    with pytest.raises(PackedFileError):
        initial.read(tmp_path / "a.bopt", digits.spec)


def test_a_bare_array_with_the_name_of_an_npz(tmp_path, digits):
    with open(tmp_path / "a.npz", "wb") as stream:
        np.save(stream, samples())
    with pytest.raises(InputError, match="cannot read"):
        initial.read(tmp_path / "a.npz", digits.spec)


def test_damaged_compressed_files(tmp_path, digits):
    np.savez_compressed(tmp_path / "a.npz", x=samples(), y=LABELS)
    good = (tmp_path / "a.npz").read_bytes()
    for position in range(30, 300):
        (tmp_path / "a.npz").write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            initial.read(tmp_path / "a.npz", digits.spec)
        except InputError:
            continue
        except Exception as error:
            pytest.fail(f"byte {position}: {error!r}")


# ----------------------------------------------------------------------------------------------------------------------
# use
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def context(digits, read):
    objectives = {"coreset": zero_step_coreset(), "dm": DistributionMatchingObjective(method="dm")}
    init = read(x=samples(), y=LABELS)
    return TrialContext(digits.train, digits.val, digits.spec, PRESETS["glyph-1"], objectives, init=init)


@pytest.mark.parametrize("objective", ["coreset", "dm"])
@pytest.mark.parametrize("selection", ["random", "herding"])
@pytest.mark.parametrize(("ipc", "counts"), [(1, (1,) * 10), (2, (1, 1, 1, 2, 1, 1, 1, 2, 1, 1)), (99, None)])
def test_every_method_starts_from_the_first_samples_of_it(context, objective, selection, ipc, counts):
    found = initial_set(context, Allocation(objective=objective, selection=selection, ipc=ipc))
    given = context.init
    assert found.counts == (counts or given.counts)
    starts = np.cumsum([0, *given.counts])
    expected = [given.x[s : s + n] for s, n in zip(starts, found.counts, strict=False)]
    np.testing.assert_array_equal(found.x, np.concatenate(expected))


def test_without_it_sets_start_from_the_train_part(context, digits):
    found = initial_set(dataclasses.replace(context, init=None), Allocation(ipc=2))
    assert found.counts == (2,) * 10
    train = {sample.tobytes() for sample in digits.train.x.astype(np.float32)}
    assert all(sample.tobytes() in train for sample in found.x)
