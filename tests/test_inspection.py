import numpy as np
import pytest
from sets import packed_set

from budgetopt import inspection
from budgetopt.errors import InputError, PackedFileError
from budgetopt.packing import UniformLevels, pack, unpack_file
from budgetopt.protocol import Protocol


def packed(shape=(1, 8, 8), counts=(4,) * 10, levels=4, protocol=0):
    symbols = np.random.default_rng(0).integers(0, levels, (sum(counts), *shape)).astype(np.uint8)
    channels = shape[0] if len(shape) == 3 else 1
    statistics = np.linspace(3, 5, channels).astype(np.float32)
    table = UniformLevels(levels, 0, 5, 0)
    return packed_set(symbols, counts, table, mean=statistics, std=statistics, protocol=protocol)


SETS = {
    "digits": packed(),
    "colour": packed((3, 12, 16), (2, 3)),
    "features": packed((20,), (5, 1, 7)),
    "many levels": packed(levels=256),
    "own protocol": packed(protocol=Protocol(network="mlp", steps=7, width=5).to_bytes()),
}
DATA = {name: pack(made) for name, made in SETS.items()}


@pytest.mark.parametrize("name", DATA)
def test_every_byte_is_accounted_for(name):
    facts, parts = inspection.describe(DATA[name])
    assert sum(size for _, size in parts) == len(DATA[name])
    assert all(size >= 0 for _, size in parts)
    assert dict(facts)["format"].startswith(f"version 2, {len(DATA[name]):,} bytes ({8 * len(DATA[name]):,} bits)")


@pytest.mark.parametrize(
    ("name", "what", "value"),
    [
        ("digits", "samples", "40 of shape 1×8×8"),
        ("digits", "classes", "10, 4 samples each"),
        ("digits", "quantizer", "uniform, 4 levels: 0, 5, 10, 15"),
        ("digits", "transform", "identity"),
        ("digits", "bytes a sample", f"{len(DATA['digits']) / 40:.1f}"),
        ("digits", "input statistics", "mean 3, std 3"),
        ("digits", "training", "200 steps of 128, lr 0.01, 5 seeds"),
        ("digits", "augmentation", "shift 0.1, scale 1.15, rotate 12"),
        ("colour", "samples", "5 of shape 3×12×16"),
        ("colour", "classes", "2, 2 to 3 samples each"),
        ("colour", "input statistics", "mean 3, 4, 5, std 3, 4, 5"),
        ("features", "samples", "13 of shape 20"),
        ("features", "classes", "3, 1 to 7 samples each"),
        ("many levels", "quantizer", "uniform, 256 levels: 0, 5, 10, …, 1265, 1270, 1275"),
        ("own protocol", "training", "7 steps of 128, lr 0.01, 5 seeds"),
        ("own protocol", "augmentation", "none"),
    ],
)
def test_facts(name, what, value):
    assert dict(inspection.describe(DATA[name])[0])[what] == value


def test_protocol_is_named():
    assert dict(inspection.describe(DATA["digits"])[0])["protocol"].startswith("glyph-1 (")
    assert dict(inspection.describe(DATA["own protocol"])[0])["protocol"].startswith("custom (")


def test_bits_a_value_are_those_of_the_payload():
    facts, parts = inspection.describe(DATA["digits"])
    payload = next(size for name, size in parts if name.startswith("symbols"))
    assert dict(facts)["bits a value"] == f"{8 * payload / (40 * 64):.3f} coded, 2.000 nominal"


def test_damaged_files():
    with pytest.raises(PackedFileError):
        inspection.describe(DATA["digits"][:-1])


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "absent.bopt", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            unpack_file(path)
