"""Files written once by format version 1 and kept for ever: they pin the bytes, not only the round trip.

When the format version changes, these files stay and must still decode to the same bits; `FILES` then gains new ones
of the new version, and only the test that packs again is restricted to those. Write missing files with
`python tests/test_golden.py --write`; it never touches a file that exists.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from budgetopt.packing import (
    ApotLevels,
    Identity,
    PackedSet,
    Standardize,
    UniformLevels,
    load,
    pack,
    sections,
    unpack,
)
from budgetopt.packing.container import coder_name

GOLDEN = Path(__file__).parent / "golden"
CURRENT_VERSION = 1  # files of this version are what `pack` writes today


def scans():
    """(40, 1, 8, 8) real digits of classes 0 … 9 in class order, 0 … 16."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    index = np.concatenate([np.flatnonzero(y == c)[:4] for c in range(10)])
    return x[index].reshape(-1, 1, 8, 8).astype(np.uint8)


def noise(levels, shape, seed):
    return np.random.Generator(np.random.PCG64(seed)).integers(0, levels, shape).astype(np.uint8)


def new_sets():
    """{name: set} of version 1: every family, transform and coder, every flag, both shapes."""
    x, four = scans(), (4,) * 10
    mean, std = np.float32([4.8828125]), np.float32([6.015625])  # float16 holds them; colour needs float32
    colour = np.float32([125.3, 122.95, 113.87]), np.float32([62.99, 62.09, 66.7])
    side = Standardize((200, 13, 77), 6, (1000, -3, 77), 3)
    glyph = {"inverse": Identity(), "mean": mean, "std": std}
    return {
        "uniform-2-range": PackedSet((x > 8).astype(np.uint8), four, UniformLevels(2, 0, 16, 0), **glyph),
        "uniform-17-range": PackedSet(x, four, UniformLevels(17, 0, 1, 0), **glyph),
        "uniform-5-standardize-range": PackedSet(
            np.minimum(x, 4), four, UniformLevels(5, -1303, 651, 10), Standardize((193,), 5, (2500,), 9), mean, std
        ),
        "uniform-16-raw": PackedSet(
            noise(16, (6, 3, 4, 4), 1), (3, 0, 3), UniformLevels(16, -5, 17, -1), Identity(), *colour
        ),
        "uniform-256-raw": PackedSet(
            noise(256, (9, 13), 2), (4, 5), UniformLevels(256, -1234, 3, 12), Identity(), mean / 3, std / 3, 2
        ),
        "apot-3-range": PackedSet((x > 4) + (x > 11).astype(np.uint8), four, ApotLevels(2, 2, 9, 0), **glyph),
        "apot-15-standardize-range": PackedSet(
            noise(15, (12, 3, 5, 5), 3) // 3, (4,) * 3, ApotLevels(4, 2, 601, 9), side, *colour, b'{"network":"mlp"}'
        ),
        "apot-127-standardize-raw": PackedSet(
            noise(127, (2, 3, 3, 2), 4), (1, 1), ApotLevels(7, 2, 3, 6), side, *colour, 1
        ),
        "apot-15-power-of-two-raw": PackedSet(
            noise(9, (3, 7), 5), (3,), ApotLevels(4, 3, 11, 20), Identity(), mean, std, b""
        ),
        "apot-2-standardize-raw": PackedSet(
            noise(2, (2, 5), 6), (0, 2), ApotLevels(1, 1, 77, 5), Standardize((5,), -2, (-9,), 1), mean, std
        ),
    }


def record(data):
    """What a decoded file must still be; the decoded float32 as bytes, so that every bit counts."""
    packed = unpack(data)
    return {
        "version": data[3],
        "bytes": len(data),
        "sha256_of_file": hashlib.sha256(data).hexdigest(),
        "sha256_of_samples": hashlib.sha256(packed.decode().astype("<f4").tobytes()).hexdigest(),
        "shape": list(packed.symbols.shape),
        "counts": list(packed.counts),
        "table": packed.levels.table().tolist(),
        "exponent": packed.levels.exponent,
        "mean": packed.mean.tolist(),
        "std": packed.std.tolist(),
        "protocol": packed.protocol if isinstance(packed.protocol, int) else packed.protocol.decode(),
        "coder": coder_name(data),
        "sections": [list(part) for part in sections(data)],
        "symbols": bytes(packed.symbols.reshape(-1)).hex(),
    }


def write():
    GOLDEN.mkdir(exist_ok=True)
    for name, packed in new_sets().items():
        path = GOLDEN / f"v{CURRENT_VERSION}-{name}.bopt"
        if not path.exists():
            path.write_bytes(pack(packed))
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in record(path.read_bytes()).items()]
            path.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
            print(path.name, path.stat().st_size)


FILES = sorted(GOLDEN.glob("*.bopt"))


def expected(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_golden_files_are_complete():
    """A lost file must not go unnoticed."""
    coded = {(unpack(p.read_bytes()).levels.name, expected(p)["coder"]) for p in FILES}
    assert coded >= {(family, coder) for family in ("uniform", "apot") for coder in ("raw", "range")}
    transforms = {(unpack(p.read_bytes()).inverse.name, unpack(p.read_bytes()).levels.name) for p in FILES}
    assert transforms >= {(t, f) for t in ("identity", "standardize") for f in ("uniform", "apot")}
    assert {p.stem for p in FILES} == {p.stem for p in GOLDEN.glob("*.json")}
    assert {f"v1-{name}" for name in new_sets()} <= {p.stem for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_bytes_decode_to_the_same_bits(path):
    assert record(path.read_bytes()) == expected(path)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden_files_load(path):
    loaded = load(path)
    assert loaded.bytes == expected(path)["bytes"]
    digest = hashlib.sha256(loaded.samples.astype("<f4").tobytes()).hexdigest()
    assert digest == expected(path)["sha256_of_samples"]


@pytest.mark.parametrize("path", [p for p in FILES if expected(p)["version"] == CURRENT_VERSION], ids=lambda p: p.stem)
def test_packing_again_gives_the_golden_bytes(path):
    assert pack(unpack(path.read_bytes())) == path.read_bytes()


@pytest.mark.parametrize("name", new_sets())
def test_packing_from_scratch_gives_the_golden_bytes(name):
    assert pack(new_sets()[name]) == (GOLDEN / f"v{CURRENT_VERSION}-{name}.bopt").read_bytes()


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_golden.py --write")
    write()
