"""Samples of four axes, (c, d, h, w), from a .npz to a file to a trained network."""

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sets import packed_set, sealed
from variants import initial_sets, packed_variant, plain_case, represented

import budgetopt
from budgetopt import protocol, quantizers, single, space, transforms
from budgetopt.allocation import SELECTIONS, Allocation
from budgetopt.api import search
from budgetopt.data import Dataset, open_source
from budgetopt.errors import InputError
from budgetopt.evaluation import TrainingSet, train_network, train_networks
from budgetopt.given import prepare
from budgetopt.packing import Plane, Standardize, UniformLevels, load, pack, unpack
from budgetopt.packing.errors import BadHeader
from budgetopt.packing.inverse_dct import Cosine
from budgetopt.packing.layout import channels_of, layout_of
from budgetopt.packing.offsets import Offsets
from budgetopt.protocol import Protocol
from budgetopt.report.picture import sample_sheet
from budgetopt.search.candidates import SpaceCandidates
from budgetopt.sets import read as read_set
from budgetopt.sets.statistics import of_samples

SCRIPT = Path(__file__).parents[1] / "examples" / "voxel_digits.py"
SHAPE = (1, 8, 8, 8)


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def voxel_digits(example, tmp_path_factory):
    return example["main"]([str(tmp_path_factory.mktemp("voxels") / "voxel digits.npz")])


def archive(path, shape, n=24, classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    x = (rng.integers(0, 90, (n, *shape)) + 60 * y.reshape(-1, *[1] * len(shape))).astype(np.uint8)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return x


# --- files -----------------------------------------------------------------------------------------------------------


def test_slices_are_channels_of_one_plane():
    assert layout_of((2, 3, 4, 5)) == (Plane(6, 4, 5),)
    assert [channels_of(shape) for shape in ((7,), (3, 4, 5), (2, 3, 4, 5))] == [1, 3, 2]


def test_values_come_back_in_their_order():
    x = np.random.default_rng(0).integers(0, 7, (5, 2, 3, 4, 5)).astype(np.uint8)
    mean, std = np.float32([1, 2]), np.float32([3, 4])
    side = Standardize((3, 200), 6, (100, -20), 4)
    packed = packed_set(x, (2, 3), UniformLevels(7, 0, 1, 0), mean=mean, std=std, inverse=side)
    again = unpack(pack(packed))
    per_channel = np.array(side.scale).reshape(2, 1, 1, 1), np.array(side.offset).reshape(2, 1, 1, 1)
    assert np.array_equal(again.decode(), (x * per_channel[0] / 64 + per_channel[1] / 16).astype(np.float32))
    assert again.mean.tolist() == [1, 2]


def test_a_slice_is_coded_given_the_slice_before_it():
    """Eight equal noisy slices take little more than one."""
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2, (40, 1, 1, 8, 8)).astype(np.uint8)
    sizes = [len(pack(packed_set(np.repeat(one, d, 2), dequantizer=2))) for d in (1, 8)]
    unlike = len(pack(packed_set(rng.integers(0, 2, (40, 1, 8, 8, 8)).astype(np.uint8), dequantizer=2)))
    assert sizes[1] < 2 * sizes[0] < unlike / 3


def test_a_file_of_voxels_has_no_cosine_transform():
    cosine = Cosine(False, (1, 4, 5), b"", Offsets((0,), 0))
    packed = packed_set(np.zeros((2, 1, 4, 5), np.uint8), inverse=cosine)
    data = pack(packed)
    at = data.index(bytes([3, 1, 4, 5]))  # axes and shape
    with pytest.raises(BadHeader, match="only pictures and feature vectors have a DCT"):
        unpack(sealed(data[4:at] + bytes([4, 1, 1, 4, 5]) + data[at + 4 : -4]))


def test_the_sample_sheet_looks_along_the_depth():
    x = np.zeros((1, 1, 3, 4, 5), np.uint8)
    x[0, 0, 2, 1, 3] = 1
    sheet = np.asarray(Image.open(io.BytesIO(sample_sheet(packed_set(x)))))
    zoom = sheet.shape[0] // (4 + 2)
    assert np.argwhere(sheet[::zoom, ::zoom]).tolist() == [[1 + 1, 1 + 3]]  # beside a frame of one pixel


def test_load_gives_a_torch_dataset_with_statistics_per_channel(tmp_path):
    path = tmp_path / "v.bopt"
    path.write_bytes(pack(packed_variant(*plain_case("voxels"))))
    loaded = load(path)
    x, y = loaded.to_torch().tensors
    assert x.shape == (7, 2, 3, 5, 4)
    wanted = (loaded.samples - loaded.mean.reshape(2, 1, 1, 1)) / loaded.std.reshape(2, 1, 1, 1)
    assert np.allclose(x.numpy(), wanted)
    assert y.tolist() == [0] * 4 + [2] * 3


# --- what can and what cannot take them ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dct", "resize", "ycbcr"])
def test_transforms_of_pictures_refuse(name):
    with pytest.raises(InputError, match=r"samples of shape \(1, 8, 8, 8\)"):
        transforms.build(name, ()).check_shape(SHAPE)


@pytest.mark.parametrize("family", ["patches", "palette", "jpeg", "webp"])
def test_quantizers_of_pictures_refuse(family):
    with pytest.raises(InputError, match=r"\(1, 8, 8, 8\)"):
        quantizers.QUANTIZERS[family].check_transform("identity", SHAPE)


def test_spaces_leave_out_what_does_not_fit():
    kinds = space.resolve("everything").kinds("coreset", SHAPE)
    assert {a.transform for a in kinds} == {"identity", "standardize", "pca"}
    assert {a.quantizer for a in kinds} == {"uniform", "apot", "ddq", "lloyd-max", "none"}
    assert set(space.resolve("everything").selections(SHAPE)) == {s for s in SELECTIONS if s != "crops"} | {
        "herding:seen=decoded"
    }


def test_the_search_space_of_voxels_can_be_enumerated():
    found = SpaceCandidates(space.resolve("voxel"), {"coreset": 0, "dm": 100}, SHAPE, 100, 0)
    assert 500 < len(found.kinds([], 0)) <= 2500
    assert found.kinds([], 0) == found.kinds([], 1)


def test_pca_of_voxels():
    initial = initial_sets()["voxels"]
    allocation = Allocation("coreset", "random", 9, "pca", "uniform", 256, "minmax", (("bits", 8), ("components", 7)))
    decoded = represented(allocation, initial).packed().decode()
    assert np.sqrt(((decoded - initial.x) ** 2).mean()) < 0.05 * initial.x.std()


# --- sources and sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4, 5, 6), (3, 4, 5, 6), (4, 5, 6, 3), (4, 5, 6, 1)])
def test_npz_of_voxels(tmp_path, shape):
    x = archive(tmp_path / "v.npz", shape)
    source = open_source(str(tmp_path / "v.npz"))
    dataset = Dataset.prepare(source, 0)
    assert (source.protocol, source.space, dict(source.invariances)) == ("voxel-2", "voxel", {})
    channels = 3 if 3 in shape else 1
    assert dataset.spec.shape == (channels, 4, 5, 6)
    source.check_test_part(dataset.spec.shape)
    test = dataset.load_test().x
    assert np.array_equal(test, x if shape[0] == channels else np.moveaxis(x, -1, 1))
    assert np.allclose(dataset.spec.mean, dataset.train.x.mean((0, 2, 3, 4)), rtol=1e-2)
    assert dataset.spec.mean.shape == (channels,)


def test_six_axes_are_refused_in_one_line(tmp_path):
    archive(tmp_path / "v.npz", (1, 2, 2, 2, 2))
    with pytest.raises(InputError, match=r"\(n, c, d, h, w\) or \(n, f\) with n > 0, got \(24, 1, 2, 2, 2, 2\)"):
        Dataset.prepare(open_source(str(tmp_path / "v.npz")), 0)


def test_a_set_of_voxels_is_brought_along(tmp_path):
    x = np.random.default_rng(0).normal(3, 2, (6, 2, 3, 4, 5)).astype(np.float32)
    np.savez(tmp_path / "mine.npz", x=np.abs(x) * 9, y=np.arange(6) % 2)
    given = prepare(read_set(tmp_path / "mine.npz"), None, 0, None)
    assert given.spec.shape == (2, 3, 4, 5)
    assert given.protocol == protocol.PRESETS["voxel-2"]
    mean, std = of_samples(np.abs(x) * 9, "mine")
    assert np.allclose(mean, (np.abs(x) * 9).mean((0, 2, 3, 4)), rtol=1e-2)
    assert np.allclose(std, (np.abs(x) * 9).std((0, 2, 3, 4)), rtol=1e-2)


# --- the example, and the whole way ----------------------------------------------------------------------------------


def test_the_example_has_the_parts_of_the_digits(example, voxel_digits, digits):
    arrays = np.load(voxel_digits)
    assert arrays["x_train"].shape == (1257, *SHAPE)
    assert arrays["x_test"].dtype == np.uint8
    assert arrays["x_train"].max() == 16
    assert np.array_equal(arrays["y_test"], digits.load_test().y)
    again = example["turned"](digits.source.train_arrays()[0][:3, 0], np.random.default_rng(0))
    assert np.array_equal(arrays["x_train"][:3], again)  # one seed draws all rotations, the training part first


def test_the_example_turns_solids(example):
    solid = np.zeros((8, 8, 8))
    solid[2:6, 1:4, 3:5] = 7
    assert np.allclose(example["rotated"](solid, np.eye(3)), solid)
    quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # about the depth
    assert np.allclose(example["rotated"](solid, quarter), np.rot90(solid, 1, (1, 2)))
    rng = np.random.default_rng(0)
    angles = [np.degrees(np.arccos((np.trace(example["rotation"](rng)) - 1) / 2)) for _ in range(200)]
    assert 40 < max(angles) <= example["MOST_DEGREES"]
    assert min(angles) < 5


@pytest.mark.long
def test_a_search_on_voxels_ends_in_a_file_that_evaluates_to_what_it_said(voxel_digits, tmp_path):
    quick = tmp_path / "quick.toml"
    quick.write_text('network = "convnet3d"\nwidth = 4\nsteps = 20\nsearch_seeds = 1\n')
    result = search(
        "1kb",
        dataset=str(voxel_digits),
        protocol=str(quick),
        objectives=["coreset"],
        trials=3,
        workers=1,
        out=tmp_path / "r",
    )
    assert result.best.bytes <= 1000
    assert Image.open(tmp_path / "r" / "best.png").width > 100
    found = budgetopt.evaluate(result.best.path, str(voxel_digits))
    assert found.accuracy == result.best.accuracy


def test_voxels_are_augmented_side_by_side_as_one_by_one():
    """Three seeds at once: each network is the one it is alone, but for rounding, and not the one without."""
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    x = (rng.integers(0, 9, (20, 1, 5, 6, 4)) + 9 * y.reshape(-1, 1, 1, 1, 1)).astype(np.uint8)
    train = TrainingSet(x, y, 2, np.float32([8]), np.float32([5]))
    plain = Protocol(network="convnet3d", width=4, steps=6, batch=8)
    turned = plain.model_copy(update={"augment": {"rotate3d": 40.0, "shift3d": 0.1, "flip3d": 0.5}})
    cpu, inputs = torch.device("cpu"), (torch.from_numpy(x).float() - 8) / 5
    together, without = (train_networks(train, recipe, [3, 1, 4], cpu) for recipe in (turned, plain))
    alone = [train_network(train, turned, seed, cpu) for seed in (3, 1, 4)]
    with torch.no_grad():
        for net, expected, other in zip(together, alone, without, strict=True):
            assert torch.allclose(net(inputs), expected(inputs), atol=1e-4)
            assert not torch.allclose(net(inputs), other(inputs), atol=1e-2)


@pytest.mark.parametrize("method", ["dm", "dsa", "bilevel", "mtt"])
def test_methods_take_voxels(voxel_digits, tmp_path, method):
    """One step each, with soft labels, through the file, under the augmentation of the protocol."""
    quick = tmp_path / "quick.toml"
    quick.write_text('network = "convnet3d"\nwidth = 4\nsteps = 6\nsearch_seeds = 1\naugment = { rotate3d = 20 }\n')
    short = tmp_path / "mtt.toml"
    short.write_text(
        'method = "mtt"\nexperts = 1\nexpert_epochs = 2\nexpert_steps = 2\nstudent_steps = 2\nmax_start = 1\n'
    )
    allocation = Allocation(method, "k-centre", 2, "standardize", "uniform", 4, "minmax", label_bits=3)
    objective = str(short) if method == "mtt" else method
    reports = list(single.run(str(voxel_digits), objective, allocation, None, 1, str(quick), 0, None, None))
    assert unpack(reports[-1].data).shape == SHAPE
    assert unpack(reports[-1].data).soft is not None


def test_npy_files_of_voxels_are_taken_as_npz_of_them(tmp_path):
    x, y = np.zeros((8, 1, 3, 4, 5), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (tmp_path / "b").mkdir()
    for name in ("x_train", "x_test", "y_train", "y_test"):
        np.save(tmp_path / "b" / f"{name}.npy", x if name[0] == "x" else y)
    packed, apart = (open_source(str(tmp_path / name)) for name in ("a.npz", "b"))
    assert (apart.protocol, apart.space) == (packed.protocol, packed.space) == ("voxel-2", "voxel")
    assert apart.invariances == packed.invariances == {}
