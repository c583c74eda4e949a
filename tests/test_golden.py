"""Files written once by each format version and kept for ever: they pin the bytes, not only the round trip.

When the format version changes, these files stay and must still decode to the same bits; only the tests that pack again
are restricted to files of the current version. Write missing files with `python tests/test_golden.py --write`; it never
touches a file that exists. Version 2 has a file for every kind of dequantizer, transform and coder that is registered,
found by `variants.py`; those that a later change to the fitting would make differently stay as they were written.
"""

import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sets import coded_by, coder_name, packed_set, quickly_packed, sealed, table_preparation
from variants import label, one_of_each, packed_variant, plain_case

from budgetopt.packing import (
    ApotLevels,
    LevelTable,
    Standardize,
    UniformLevels,
    families,
    load,
    pack,
    sections,
    unpack,
)
from budgetopt.packing.coders import CODERS
from budgetopt.packing.container import FORMAT_VERSION, header
from budgetopt.packing.log_mel import LogMel
from budgetopt.packing.resized import Resized
from budgetopt.packing.soft_labels import SoftLabels

GOLDEN = Path(__file__).parent / "golden"
FROZEN = 2  # the last version whose files are complete: every family, transform and coder of it has one
LOSSY = ("jpeg", "webp")  # their pixels come from Pillow's own decoders, which may differ by rounding


def scans():
    """(40, 1, 8, 8) real digits of classes 0 … 9 in class order, 0 … 16."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    index = np.concatenate([np.flatnonzero(y == c)[:4] for c in range(10)])
    return x[index].reshape(-1, 1, 8, 8).astype(np.uint8)


def noise(levels, shape, seed):
    return np.random.Generator(np.random.PCG64(seed)).integers(0, levels, shape).astype(np.uint8)


def sets_of_version_1():
    """{name: set} of version 1: every family, transform and coder, every flag, both shapes."""
    x, four = scans(), (4,) * 10
    mean, std = np.float32([4.8828125]), np.float32([6.015625])  # float16 holds them; colour needs float32
    colour = {"mean": np.float32([125.3, 122.95, 113.87]), "std": np.float32([62.99, 62.09, 66.7])}
    side = Standardize((200, 13, 77), 6, (1000, -3, 77), 3)
    glyph = {"mean": mean, "std": std}
    return {
        "uniform-2-range": packed_set((x > 8).astype(np.uint8), four, UniformLevels(2, 0, 16, 0), **glyph),
        "uniform-17-range": packed_set(x, four, UniformLevels(17, 0, 1, 0), **glyph),
        "uniform-5-standardize-range": packed_set(
            np.minimum(x, 4),
            four,
            UniformLevels(5, -1303, 651, 10),
            inverse=Standardize((193,), 5, (2500,), 9),
            **glyph,
        ),
        "uniform-16-raw": packed_set(noise(16, (6, 3, 4, 4), 1), (3, 0, 3), UniformLevels(16, -5, 17, -1), **colour),
        "uniform-256-raw": packed_set(
            noise(256, (9, 13), 2), (4, 5), UniformLevels(256, -1234, 3, 12), mean=mean / 3, std=std / 3, protocol=2
        ),
        "apot-3-range": packed_set((x > 4) + (x > 11).astype(np.uint8), four, ApotLevels(2, 2, 9, 0), **glyph),
        "apot-15-standardize-range": packed_set(
            noise(15, (12, 3, 5, 5), 3) // 3,
            (4,) * 3,
            ApotLevels(4, 2, 601, 9),
            inverse=side,
            protocol=b'{"network":"mlp"}',
            **colour,
        ),
        "apot-127-standardize-raw": packed_set(
            noise(127, (2, 3, 3, 2), 4), (1, 1), ApotLevels(7, 2, 3, 6), inverse=side, protocol=1, **colour
        ),
        "apot-15-power-of-two-raw": packed_set(
            noise(9, (3, 7), 5), (3,), ApotLevels(4, 3, 11, 20), protocol=b"", **glyph
        ),
        "apot-2-standardize-raw": packed_set(
            noise(2, (2, 5), 6), (0, 2), ApotLevels(1, 1, 77, 5), inverse=Standardize((5,), -2, (-9,), 1), **glyph
        ),
    }


def files_of_this_version():
    """{name: bytes}: every kind of dequantizer and transform; every coder, on pictures and on columns; every flag."""
    found = {re.sub(r"[^a-z0-9.]+", "-", label(*case)): quickly_packed(packed_variant(*case)) for case in one_of_each()}
    for name in ("digits", "columns", "voxels"):
        packed = packed_variant(*plain_case(name))
        for coder in CODERS.values():
            if coder.supports(packed.dequantizer.levels, packed.domain):
                found[f"{name}-{coder.name}"] = coded_by(coder, packed)
    plain = packed_variant(*plain_case("digits"))
    sure = np.where(np.arange(len(plain.counts)) == plain.labels()[:, None], 5.0, 1.0)
    found["soft-labels"] = quickly_packed(replace(plain, soft=SoftLabels.nearest(sure / sure.sum(1, keepdims=True), 3)))
    own = {"protocol": b'{"network":"mlp"}', "mean": np.float32([1 / 3]), "std": np.float32([2 / 3])}
    table = replace(packed_variant(*plain_case("columns")), preparation=table_preparation())
    found["table"] = quickly_packed(table)
    found["own-protocol"] = quickly_packed(replace(plain, **own))
    how = LogMel(8000, 300, 150, 60, 4000, 60, *plain.shape[1:])
    found["log-mel"] = quickly_packed(replace(plain, preparation=how))
    found["resized"] = quickly_packed(replace(plain, preparation=Resized(1, 8, 8, "bicubic")))
    return found


def kinds(data):
    """What a file has an example of."""
    packed = unpack(data)
    flags = {f"flag {1 << bit}" for bit in range(8) if data[4] >> bit & 1}
    flags |= {f"{len(packed.shape)} axes", f"preparation {packed.preparation and packed.preparation.kind}"}
    return {type(packed.dequantizer).__name__, type(packed.inverse).__name__, coder_name(data), *flags}


def record(data):
    """What a decoded file must still be; the decoded float32 as bytes, so that every bit counts."""
    packed = unpack(data)
    levels = packed.dequantizer
    tables = {"table": levels.table().tolist(), "exponent": levels.exponent} if isinstance(levels, LevelTable) else {}
    soft = packed.targets()
    return {
        "version": data[3],
        "bytes": len(data),
        "sha256_of_file": hashlib.sha256(data).hexdigest(),
        "sha256_of_samples": hashlib.sha256(packed.decode().astype("<f4").tobytes()).hexdigest(),
        "shape": [len(packed), *packed.shape],
        "counts": list(packed.counts),
        **tables,
        "mean": packed.mean.tolist(),
        "std": packed.std.tolist(),
        "protocol": packed.protocol if isinstance(packed.protocol, int) else packed.protocol.decode(),
        "coder": coder_name(data),
        "sections": [list(part) for part in sections(data)],
        "symbols": packed.symbols.tobytes().hex(),
        **({} if packed.preparation is None else {"preparation": repr(packed.preparation)}),
        **({} if soft is None else {"targets": soft.astype("<f4").tobytes().hex()}),
        **({} if packed.preparation is None else {"preparation": repr(packed.preparation)}),
    }


def write(folder):
    """Files of this version that are not there yet."""
    folder.mkdir(exist_ok=True)
    for name, data in files_of_this_version().items():
        path = folder / f"v{FORMAT_VERSION}-{name}.bopt"
        if not path.exists():
            path.write_bytes(data)
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record(path.read_bytes()).items()]
            path.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


FILES = sorted(GOLDEN.glob("*.bopt"))


def expected(path):
    return json.loads(path.with_suffix(".json").read_text())


def check(path):
    found, wanted = record(path.read_bytes()), expected(path)
    if ["coder", 1] in wanted["sections"]:  # the first account named the coder's id apart from the symbols
        at = wanted["sections"].index(["coder", 1])
        name, size = wanted["sections"][at + 1]
        wanted["sections"][at : at + 2] = [[name, size + 1]]
    if wanted["coder"] in LOSSY:
        for exact in ("sha256_of_samples", "symbols"):
            pixels, first = (np.frombuffer(bytes.fromhex(r["symbols"]), np.uint8).astype(int) for r in (found, wanted))
            assert np.abs(pixels - first).max() <= 3
            found[exact] = wanted[exact] = None
    assert found == wanted


def test_golden_files_are_complete():
    """A lost file must not go unnoticed."""
    first = [p for p in FILES if expected(p)["version"] == 1]
    coded = {(unpack(p.read_bytes()).dequantizer.name, expected(p)["coder"]) for p in first}
    assert coded >= {(family, coder) for family in ("uniform", "apot") for coder in ("raw", "range")}
    transforms = {(unpack(p.read_bytes()).inverse.name, unpack(p.read_bytes()).dequantizer.name) for p in first}
    assert transforms >= {(t, f) for t in ("identity", "standardize") for f in ("uniform", "apot")}
    assert {p.stem for p in FILES} == {p.stem for p in GOLDEN.glob("*.json")}
    assert {f"v1-{name}" for name in sets_of_version_1()} <= {p.stem for p in FILES}


@pytest.mark.skipif(FROZEN < FORMAT_VERSION, reason=f"format version {FORMAT_VERSION} may still change")
def test_every_registered_family_transform_and_coder_has_a_golden_file():
    """Whoever registers one adds its file: `python tests/test_golden.py --write`."""
    there = set().union(*(kinds(p.read_bytes()) for p in FILES if expected(p)["version"] == FORMAT_VERSION))
    assert set().union(*map(kinds, files_of_this_version().values())) <= there


def test_files_of_this_version_have_one_of_everything_that_is_registered(tmp_path):
    """And writing them is what the golden tests check, twice over without touching what is there."""
    write(tmp_path)
    paths = sorted(tmp_path.glob("*.bopt"))
    assert paths
    for path in paths:
        check(path)
        assert expected(path)["version"] == FORMAT_VERSION
    found = set().union(*(kinds(p.read_bytes()) for p in paths))
    reached = {unpack(p.read_bytes()).dequantizer.family for p in paths}
    assert reached == set(families.QUANTIZERS)
    assert {unpack(p.read_bytes()).inverse.family for p in paths} == set(families.TRANSFORMS)
    assert {coder.name for coder in CODERS.values()} <= found
    assert {f"flag {1 << bit}" for bit in range(6)} <= found
    assert {f"preparation {kind}" for kind in families.PREPARATIONS} <= found
    assert {"1 axes", "3 axes", "4 axes"} <= found
    paths[0].write_bytes(b"mine")
    write(tmp_path)
    assert paths[0].read_bytes() == b"mine"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_bytes_decode_to_the_same_bits(path):
    check(path)


@pytest.mark.parametrize("path", [p for p in FILES if expected(p)["coder"] not in LOSSY], ids=lambda p: p.stem)
def test_golden_files_load(path):
    loaded = load(path)
    assert loaded.bytes == expected(path)["bytes"]
    digest = hashlib.sha256(loaded.samples.astype("<f4").tobytes()).hexdigest()
    assert digest == expected(path)["sha256_of_samples"]


CURRENT = [p for p in FILES if expected(p)["version"] == FORMAT_VERSION]


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: p.stem)
def test_packing_again_gives_the_golden_bytes(path):
    """Where `pack` chooses the coder itself; a file by another coder is packed as the one by the shortest."""
    data, again = path.read_bytes(), pack(unpack(path.read_bytes()))
    assert again == data or (coder_name(again) != coder_name(data) and len(again) <= len(data))


@pytest.mark.parametrize("path", CURRENT, ids=lambda p: p.stem)
def test_the_header_written_again_is_the_golden_one(path):
    """Whatever coder its symbols have."""
    data = path.read_bytes()
    assert data[4:].startswith(header(unpack(data)))


@pytest.mark.parametrize("path", [p for p in FILES if p not in CURRENT], ids=lambda p: p.stem)
def test_older_files_are_packed_as_this_version_without_loss(path):
    data = path.read_bytes()
    again = pack(unpack(data))
    assert again[3] == FORMAT_VERSION
    assert len(again) <= len(data)
    assert np.array_equal(unpack(again).decode(), unpack(data).decode())
    assert np.array_equal(unpack(again).labels(), unpack(data).labels())


@pytest.mark.parametrize("name", sets_of_version_1())
def test_the_header_and_the_coders_of_version_1_are_those_of_today(name):
    """Made from scratch, by the coder that its file names: the same bytes but for the version."""
    path = GOLDEN / f"v1-{name}.bopt"
    coder = next(c for c in CODERS.values() if c.name == expected(path)["coder"])
    assert sealed(coded_by(coder, sets_of_version_1()[name])[4:-4], 1) == path.read_bytes()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    if FROZEN < FORMAT_VERSION:
        sys.exit(f"format version {FORMAT_VERSION} may still change: set FROZEN to {FORMAT_VERSION} once it does not")
    write(GOLDEN)
