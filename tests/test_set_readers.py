"""Sets that users bring along: every layout that public code saves, and whatever else may lie in such a file."""

import io
import os
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sets import packed_set

from budgetopt import initial, sets
from budgetopt.errors import InputError, PackedFileError
from budgetopt.exporting import export
from budgetopt.packing import UniformLevels
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.sets.statistics import of_samples, pooled

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of pixels divided by 255, as public code has them
CIFAR = sets.Units(mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pixels():
    """(20, 3, 8, 8) whole pixels, and labels in class order."""
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8)).astype(np.float32)
    return x, np.repeat(np.arange(10), 2)


@pytest.fixture(scope="module")
def distilled(pixels):
    """The same as tensors, standardised."""
    x, y = pixels
    shape = (1, 3, 1, 1)
    z = (x / 255 - np.array(MEAN).reshape(shape)) / np.array(STD).reshape(shape)
    return torch.from_numpy(z.astype(np.float32)), torch.from_numpy(y)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


# ----------------------------------------------------------------------------------------------------------------------
# .pt: layouts
# ----------------------------------------------------------------------------------------------------------------------
LAYOUTS = {
    "images.pt": lambda x, y: {"images": x, "labels": y},
    "syn.pt": lambda x, y: {"image_syn": x, "label_syn": y},
    "res_DM_CIFAR10_ConvNet_1ipc.pt": lambda x, y: {
        "data": [[x, y], [x + 1, y]],
        "accs_all_exps": {"ConvNet": [np.float64(0.25), np.mean([0.1, 0.2]), np.float32(0.5)], "MLP": []},
    },
    "experiments.pt": lambda x, y: [(x, y)],
    "pair.pth": lambda x, y: (x, y),
    "list.PT": lambda x, y: [x, y],
    "parameter.pt": lambda x, y: {"images": torch.nn.Parameter(x), "labels": y.int()},
    "numbers.pt": lambda x, y: {"images": x, "labels": y.tolist(), "lr": 0.03},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_public_code(tmp_path, pixels, distilled, name):
    found = sets.read(saved(tmp_path / name, LAYOUTS[name](*distilled)), CIFAR)
    np.testing.assert_allclose(found.x, pixels[0], atol=0.01)
    np.testing.assert_array_equal(found.y, pixels[1])
    np.testing.assert_allclose(found.mean, np.array(MEAN) * 255, rtol=1e-6)
    assert any("experiments" in note for note in found.notes) == ("data" in LAYOUTS[name](*distilled))


def test_an_old_file_without_a_zip(tmp_path, distilled, pixels):
    path = saved(
        tmp_path / "a.pt", {"images": distilled[0], "labels": distilled[1]}, _use_new_zipfile_serialization=False
    )
    np.testing.assert_allclose(sets.read(path, CIFAR).x, pixels[0], atol=0.01)


def test_labels_in_a_file_beside_the_images(tmp_path, distilled, pixels):
    path = saved(tmp_path / "images_best.pt", distilled[0])
    with pytest.raises(InputError, match=r"labels_best\.pt' is not beside it"):
        sets.read(path, CIFAR)
    saved(tmp_path / "labels_best.pt", distilled[1])
    np.testing.assert_array_equal(sets.read(path, CIFAR).y, pixels[1])
    with pytest.raises(InputError, match="holds one tensor, and no labels"):
        sets.read(saved(tmp_path / "a.pt", distilled[0]), CIFAR)


@pytest.mark.parametrize("logits", [False, True])
def test_soft_labels(tmp_path, distilled, logits):
    values = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    given = values if logits else values.softmax(1)
    found = sets.read(saved(tmp_path / "a.pt", {"images": distilled[0], "labels": given}), CIFAR)
    np.testing.assert_allclose(found.soft, values.softmax(1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.y, values.argmax(1).numpy())
    assert found.classes == 10


# ----------------------------------------------------------------------------------------------------------------------
# .pt: units
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "units", "message"),
    [
        (lambda z: z, sets.Units(), "cannot tell the units of values from -.*--mean and --std.*--raw.*--dataset"),
        (lambda z: z.sigmoid(), sets.Units(), r"values from 0\.\d+ to 0\.9.*--mean 0 --std 1 makes 0\.\.255"),
        (lambda z: z.sigmoid(), sets.Units(dataset=(np.zeros(3), np.ones(3))), "cannot tell the units"),
        (lambda z: z.flatten(1), sets.Units(dataset=(np.zeros(1), np.ones(1))), "cannot tell the units"),
        (
            lambda z: z,
            sets.Units(mean=(0.5, 0.5), std=(0.5, 0.5)),
            "2 means and 2 stds do not fit samples of 3 channels",
        ),
        (lambda z: z, sets.Units(mean=(0.5,), std=(0.5, 0.5, 0.5)), "1 means and 3 stds"),
        (lambda z: z * torch.inf, CIFAR, "NaN or infinite"),
    ],
)
def test_doubtful_units_are_refused(tmp_path, distilled, change, units, message):
    path = saved(tmp_path / "a.pt", {"images": change(distilled[0]), "labels": distilled[1]})
    with pytest.raises(InputError, match=message) as raised:
        sets.read(path, units)
    assert "\n" not in str(raised.value)


def test_units_that_are_told(tmp_path, distilled, pixels):
    path = saved(tmp_path / "a.pt", {"images": distilled[0], "labels": distilled[1]})
    raw = sets.read(path, sets.Units(raw=True))
    np.testing.assert_array_equal(raw.x, distilled[0].numpy())
    assert raw.mean is None
    of_dataset = np.array(MEAN, np.float32) * 255, np.array(STD, np.float32) * 255
    found = sets.read(path, sets.Units(dataset=of_dataset))
    np.testing.assert_allclose(found.x, pixels[0], atol=0.01)
    assert "became" in found.notes[-1]
    ones = saved(tmp_path / "b.pt", {"images": torch.from_numpy(pixels[0]) / 255, "labels": distilled[1]})
    np.testing.assert_allclose(sets.read(ones, sets.Units(mean=(0,), std=(1,))).x, pixels[0], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixels_need_no_word(tmp_path, pixels, dtype):
    content = {"images": torch.from_numpy(pixels[0]).to(dtype), "labels": torch.from_numpy(pixels[1])}
    np.testing.assert_array_equal(sets.read(saved(tmp_path / "a.pt", content)).x, pixels[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (1.0,)}, "go together"),
        ({"mean": (1.0,), "std": (0.0,)}, "--std must be positive"),
        ({"mean": (1.0,), "std": (1.0,), "raw": True}, "leave out"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(InputError, match=message):
        sets.Units(**options)


# ----------------------------------------------------------------------------------------------------------------------
# .pt: hostile and damaged files
# ----------------------------------------------------------------------------------------------------------------------
class Calls:
    """Unpickles as a call."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused(tmp_path, distilled, zipped):
    mark = tmp_path / "ran"
    evil = Calls(os.mkdir, str(mark))
    content = {"images": distilled[0], "labels": distilled[1], "extra": evil}
    path = saved(tmp_path / "evil.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"evil\.pt: refused, it holds posix\.mkdir") as raised:
        sets.read(path, CIFAR)
    assert "\n" not in str(raised.value)
    assert not mark.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(evil))
    with pytest.raises(InputError):
        sets.read(tmp_path / "plain.pt", CIFAR)
    assert not mark.exists()


def hostile(x, y):
    return {
        "a view of 12 TB": {"images": torch.zeros(1).expand(1_000_000, 3, 1000, 1000), "labels": y},
        "an allocation of 10 TB": {"images": x, "labels": y, "more": Calls(bytearray, 10**13)},
        "sparse": {"images": x.to_sparse(), "labels": y},
        "no memory": {"images": x.to("meta"), "labels": y},
        "complex": {"images": x.to(torch.complex64), "labels": y},
        "numpy": {"images": x.numpy(), "labels": y},
        "words": {"images": "a", "labels": y},
        "fractions": {"images": x, "labels": y + 0.5},
        "no labels": {"images": x},
        "an empty dict": {},
        "an empty list": [],
        "a number": 3,
        "too few labels": {"images": x, "labels": y[:-1]},
        "labels nobody knows": {"images": x, "labels": y.double() * torch.nan},
    }


@pytest.mark.parametrize("what", hostile(torch.zeros(2, 1), torch.zeros(2)))
def test_what_is_no_set(tmp_path, distilled, what):
    path = saved(tmp_path / "a.pt", hostile(*distilled)[what])
    with pytest.raises(InputError, match=r"a\.pt") as raised:
        sets.read(path, CIFAR)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_a_zip_bomb_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("budgetopt.sets.torch_file.MAX_FILE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(1 << 21))
    with pytest.raises(InputError, match=r"takes 2,097,152 bytes, at most"):
        sets.read(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 hello", b"\x80\x02}", b"nothing of the kind"])
def test_foreign_files(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pt"):
        sets.read(tmp_path / "a.pt")
    with pytest.raises(InputError, match="No such file"):
        sets.read(tmp_path / "absent.pt")


def test_damaged_files(tmp_path, distilled):
    good = saved(
        tmp_path / "good.pt", {"images": distilled[0][:10, :1, :2, :2], "labels": distilled[1][:10]}
    ).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(good), 200, replace=False):
        (tmp_path / "a.pt").write_bytes(good[:position] + bytes([good[position] ^ 0x55]) + good[position + 1 :])
        try:
            sets.read(tmp_path / "a.pt", sets.Units(raw=True))
        except InputError:
            continue


# ----------------------------------------------------------------------------------------------------------------------
# folders of images
# ----------------------------------------------------------------------------------------------------------------------
def folder(path, classes, images=2, size=(8, 6), mode="RGB", suffix=".png"):
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for i in range(images):
            shape = size[::-1] + ((3,) if mode == "RGB" else ())
            Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode).save(path / name / f"{i}{suffix}")
    return path


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_folder_of_images(tmp_path, mode, channels):
    found = sets.read(folder(tmp_path / "set", ["cat", "ant", "bee"], mode=mode))
    assert found.x.shape == (6, channels, 6, 8)
    np.testing.assert_array_equal(found.y, [0, 0, 1, 1, 2, 2])
    assert found.notes == ("classes by subfolder: 0 ant, 1 bee, 2 cat",)
    with Image.open(tmp_path / "set" / "bee" / "1.png") as image:
        np.testing.assert_array_equal(found.x[3], np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_numbered_folders_keep_their_numbers(tmp_path):
    found = sets.read(folder(tmp_path / "set", ["2", "10"]))
    np.testing.assert_array_equal(found.y, [2, 2, 10, 10])
    assert found.in_class_order().counts() == (0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2)
    assert found.notes == ("classes by subfolder: 2 2, 10 10; labels are their numbers, and 9 classes below have none",)


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_folders_that_are_refused(tmp_path):
    mixed = folder(tmp_path / "mixed", ["a"])
    folder(mixed / "more", ["b"], size=(5, 5))
    (mixed / "more" / "b").rename(mixed / "b")
    with pytest.raises(
        InputError,
        match=r"pictures must have one size: .*a/0\.png is 6×8 \(height × width\), .*b/0\.png 5×5: .*--resize",
    ):
        sets.read(mixed)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in it; a folder has a subfolder for each class"):
        sets.read(tmp_path / "empty")
    damaged = folder(tmp_path / "damaged", ["a"])
    content = (damaged / "a" / "1.png").read_bytes()
    (damaged / "a" / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot read the image .*1\.png"):
        sets.read(damaged)
    (damaged / "a" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")  # Pillow would call another program
    with pytest.raises(InputError, match=r"cannot read the image .*1\.png"):
        sets.read(damaged)


def test_pictures_of_16_bits_are_refused(tmp_path):
    """Pillow would cut them off at 255."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.arange(0, 63_000, 1000, dtype=np.uint16).reshape(7, 9)).save(
            tmp_path / "set" / name / "1.png"
        )
    with pytest.raises(InputError, match=r"cannot read the image .*1\.png': pixels of type I;16, expected 8 bits"):
        sets.read(tmp_path / "set")


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_files_of_a_file_manager_are_passed_over(tmp_path):
    path = folder(tmp_path / "set", ["a", "b"])
    (path / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    assert len(sets.read(path)) == 4


# ----------------------------------------------------------------------------------------------------------------------
# .npz and others
# ----------------------------------------------------------------------------------------------------------------------
def test_npz_with_statistics_as_export_writes_them(tmp_path, pixels):
    x, y = pixels
    np.savez(tmp_path / "a.npz", x=x, y=y, mean=np.float32([1, 2, 3]), std=np.float32([4, 5, 6]))
    found = sets.read(tmp_path / "a.npz")
    assert found.mean.tolist() == [1, 2, 3]
    assert found.std.tolist() == [4, 5, 6]


def test_what_export_writes_keeps_its_soft_labels(tmp_path):
    """Also where the most probable class is not the sample's own, and where the last class has no sample."""
    rng = np.random.default_rng(0)
    packed = packed_set(rng.integers(0, 4, (5, 1, 2, 2)), (3, 2, 0), UniformLevels(4, 0, 85, 0))
    packed = replace(packed, soft=SoftLabels.nearest(rng.dirichlet(np.ones(3), 5), 4), preparation=None)
    for to, suffix in (("npz", ".npz"), ("torch", ".pt")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(export(packed, to).content)
        found = sets.read(path)
        np.testing.assert_array_equal(found.x, packed.decode())
        np.testing.assert_array_equal(found.y, packed.labels())
        np.testing.assert_allclose(found.soft, packed.targets(), atol=1e-6)
        assert found.in_class_order().counts() == (3, 2, 0)


def test_statistics_of_another_length_are_left_out(tmp_path, pixels):
    x, y = pixels
    np.savez(tmp_path / "a.npz", x=x, y=y, mean=np.float32([1, 2]), std=np.float32([4, 5]))
    found = sets.read(tmp_path / "a.npz")
    assert found.mean is None
    assert found.notes == ("its mean and std of 2 values are left out: the samples have 3 channels",)
    np.savez(tmp_path / "b.npz", x=x, y=y, mean=np.float32([1]), std=np.float32([4]))
    assert sets.read(tmp_path / "b.npz").mean.tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (10, 3, 0, 0)])
def test_no_samples(tmp_path, shape):
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.float32), y=np.zeros((shape[0], 2)))
    with pytest.raises(InputError, match=r"no samples|do not match"):
        sets.read(tmp_path / "a.npz")


def test_a_packed_file_needs_no_units(tmp_path):
    with pytest.raises(InputError, match="holds its units itself: leave out --mean"):
        sets.read(tmp_path / "a.bopt", sets.Units(mean=(1.0,), std=(2.0,)))


def test_an_npz_that_claims_too_much(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 1000)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(InputError, match="x takes 4,000,000,000,000 bytes"):
        sets.read(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.txt", "a.NPY", "a"])
def test_other_kinds(name):
    with pytest.raises(InputError, match=r"the set takes .*a folder of images"):
        sets.read(name)


def test_broken_packed_file(tmp_path):
    (tmp_path / "a.bopt").write_bytes(b"BOP")
    with pytest.raises(PackedFileError, match=r"a\.bopt"):
        sets.read(tmp_path / "a.bopt")


def test_init_takes_them_too(tmp_path, digits):
    x, y = digits.train.x[:200].astype(np.float32), digits.train.y[:200]
    z = torch.from_numpy((x - digits.spec.mean) / digits.spec.std)
    found = initial.read(saved(tmp_path / "a.pt", {"images": z, "labels": torch.from_numpy(y)}), digits.spec)
    np.testing.assert_allclose(found.x, x[np.argsort(y, kind="stable")], atol=1e-4)


# ----------------------------------------------------------------------------------------------------------------------
# statistics
# ----------------------------------------------------------------------------------------------------------------------
def test_pooled_statistics_are_those_of_all_samples():
    rng = np.random.default_rng(0)
    parts = [rng.normal(m, s, (n, 3, 4, 4)) for m, s, n in ((100, 20, 5), (30, 50, 40), (0, 1, 1))]
    each = [(len(p), p.mean((0, 2, 3)), p.std((0, 2, 3))) for p in parts]
    mean, std = pooled(each)
    expected = of_samples(np.concatenate(parts).astype(np.float32), "a")
    np.testing.assert_allclose(mean, expected[0], rtol=2e-3)
    np.testing.assert_allclose(std, expected[1], rtol=2e-3)
    assert np.array_equal(mean.astype(np.float16).astype(np.float32), mean)
