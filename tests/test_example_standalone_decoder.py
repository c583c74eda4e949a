"""The example decodes what it says it does, to the same bits, by FORMAT.md alone: it imports nothing of the package."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sets import coded_by, packed_set, sealed
from test_golden import FILES

from budgetopt import load
from budgetopt.packing import ApotLevels, Standardize, UniformLevels, unpack
from budgetopt.packing.codebook import CodebookLevels
from budgetopt.packing.coders import CODERS
from budgetopt.packing.families import TRANSFORMS
from budgetopt.packing.inverse_resize import Resize
from budgetopt.packing.levels import apot_magnitudes
from budgetopt.packing.soft_labels import SoftLabels

SCRIPT = Path(__file__).parents[1] / "examples" / "standalone_decoder.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("standalone_decoder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def assert_same(example, data):
    found, packed = example.decode(data), unpack(data)
    assert found.x.dtype == np.float32
    assert found.x.shape == (len(packed), *packed.shape)
    assert found.x.tobytes() == packed.decode().tobytes()
    assert np.array_equal(found.y, packed.labels())
    assert np.array_equal(found.mean, packed.mean)
    assert np.array_equal(found.std, packed.std)
    targets = packed.targets()
    assert (found.targets is None) == (targets is None)
    assert targets is None or found.targets.tobytes() == targets.tobytes()


def within_reach(packed, coder_byte):
    plain = isinstance(packed.dequantizer, UniformLevels | ApotLevels | CodebookLevels)
    plain &= packed.dequantizer.family in (0, 1, 3)  # 8-bit values of `none` are uniform levels too
    return plain and packed.inverse.name in ("identity", "standardize", "resize") and coder_byte not in (3, 4)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_files(example, path):
    """Bit for bit as `load`, or one line that says what is not read."""
    data = path.read_bytes()
    tiled = path.stem.endswith(("-png", "-webp"))
    if within_reach(unpack(data), 3 if tiled else 0):
        return assert_same(example, data)
    with pytest.raises(example.CannotRead, match=r"^[^\n]+: use budgetopt.load$"):
        example.decode(data)
    return None


def test_most_golden_files_are_within_reach():
    assert sum(within_reach(unpack(path.read_bytes()), 0) for path in FILES) >= 22


def fresh(shape, levels, counts, seed=0):
    """A smooth random set: neighbours and channels tell of each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(counts), *shape))
    for axis in range(1, x.ndim):
        x = np.cumsum(x, axis) if len(shape) > 1 else x
    x = x + x.mean(axis=1, keepdims=True)
    edges = np.quantile(x, np.linspace(0, 1, levels + 1)[1:-1])
    return packed_set(np.searchsorted(edges, x), counts, UniformLevels(levels, -3, 7, 2))


SHAPES = {
    "grey": ((1, 7, 5), (9, 0, 12)),
    "narrow": ((1, 4, 3), (9, 4)),
    "colour": ((3, 5, 4), (5, 7)),
    "two channels": ((2, 1, 6), (12, 9)),
    "six channels": ((6, 3, 3), (5, 6)),
    "columns": ((12,), (60, 41, 0, 9)),
    "two columns": ((2,), (30, 25)),
    "voxels": ((1, 3, 5, 4), (6, 5)),
    "voxels of two channels": ((2, 2, 4, 3), (4, 7)),
}


@pytest.mark.parametrize("levels", [2, 3, 5, 17, 256])
@pytest.mark.parametrize("name", SHAPES)
def test_context_coder(example, name, levels):
    shape, counts = SHAPES[name]
    assert_same(example, coded_by(CODERS[2], fresh(shape, levels, counts)))


def test_context_coder_where_positions_are_coarser(example):
    assert_same(example, coded_by(CODERS[2], fresh((1, 40, 36), 2, (2, 1))))


@pytest.mark.parametrize("coder", [0, 1])
@pytest.mark.parametrize("levels", [2, 7, 256])
def test_other_coders(example, coder, levels):
    assert_same(example, coded_by(CODERS[coder], fresh((3, 6, 5), levels, (40, 3))))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_soft_labels(example, bits):
    packed = fresh((5,), 4, (30, 0, 21, 40))
    chances = np.random.default_rng(1).dirichlet([0.3] * 4, len(packed))
    assert_same(example, coded_by(CODERS[1], replace(packed, soft=SoftLabels.nearest(chances, bits))))


@pytest.mark.parametrize(
    "inverse",
    [
        Standardize((9, 200, 3), 5, (-4, 77, 0), 2),
        Standardize((9, 200, 3), -3, (-4, 77, 0), 9),
        Resize(4, 5),
        Resize(1, 2),
    ],
)
def test_transforms(example, inverse):
    shape = (3, inverse.height, inverse.width) if isinstance(inverse, Resize) else (3, 9, 8)
    packed = replace(fresh(shape, 5, (4, 3)), inverse=inverse, shape=(3, 9, 8))
    assert_same(example, coded_by(CODERS[1], packed))


def test_standardised_voxels(example):
    packed = replace(fresh((3, 2, 4, 5), 5, (4, 3)), inverse=Standardize((9, 200, 3), 5, (-4, 77, 0), 2))
    assert_same(example, coded_by(CODERS[1], packed))


def test_magnitudes_of_apot(example):
    for bits, k in product(range(1, 9), range(1, 8)):
        if (bits - 1) % k == 0 or k == 2:
            assert sorted(example.apot_magnitudes(bits, k)) == list(apot_magnitudes(bits, k))


def test_what_is_left_out_is_named(example):
    data = coded_by(CODERS[1], fresh((5,), 4, (3, 3)))
    for bad, what in [
        (b"PK" + data, "not a .bopt file"),
        (data[:-1], "checksum"),
        (sealed(data[4:-4], 9), "version 9"),
        (sealed(bytes([data[4] | 32]) + data[5:-4]), "preparation"),
        (sealed(bytes([data[4] | 16]) + data[5:-4]), "groups"),
    ]:
        with pytest.raises(example.CannotRead, match=what):
            example.decode(bad)
    assert {0, 1, 4} <= set(TRANSFORMS)


def test_as_a_command_without_the_package(tmp_path):
    """In an interpreter that cannot import budgetopt."""
    assert not re.search(r"^\s*(import|from) budgetopt", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "a.bopt").write_bytes(coded_by(CODERS[2], fresh((1, 5, 5), 4, (8, 9))))
    blocked = "import sys, runpy; sys.modules['budgetopt'] = None; sys.argv = sys.argv[1:]; "
    command = [sys.executable, "-c", blocked + "runpy.run_path(sys.argv[0], run_name='__main__')", str(SCRIPT)]
    done = subprocess.run([*command, "a.bopt", "a.npz"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "17 samples of shape (1, 5, 5), hard labels\n"
    with np.load(tmp_path / "a.npz") as archive:
        assert np.array_equal(archive["x"], load(tmp_path / "a.bopt").samples)
    done = subprocess.run([*command, "absent.bopt"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
