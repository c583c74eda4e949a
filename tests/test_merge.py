"""`merge`: the files of several nodes in one, exactly where that fits, else within the budget."""

import dataclasses
import functools
from dataclasses import replace

import numpy as np
import pytest

import budgetopt
from budgetopt import merging
from budgetopt.errors import InputError
from budgetopt.packing import Identity, PackedSet, UniformLevels, pack, unpack
from budgetopt.packing.soft_labels import SoftLabels
from budgetopt.sets.statistics import pooled

TABLE = UniformLevels(17, 0, 1, 0)


@pytest.fixture(scope="module")
def shards(digits):
    """Three nodes with real digits: classes 0–4, 3–9 and all; the first lacks the last classes."""
    parts = []
    for i, classes in enumerate((range(5), range(3, 10), range(10))):
        rows = np.flatnonzero(np.isin(digits.train.y, list(classes)))[30 * i : 30 * i + 30]
        rows = rows[np.argsort(digits.train.y[rows], kind="stable")]
        counts = tuple(np.bincount(digits.train.y[rows], minlength=10).tolist())
        mean, std = np.float32([4.0 + i]), np.float32([6.0])
        symbols = digits.train.x[rows].reshape(len(rows), -1)
        parts.append(PackedSet(symbols, (1, 8, 8), counts, TABLE, Identity(), mean, std))
    return parts


@pytest.fixture
def merge(tmp_path):
    """`merge` with few ways to store anew."""
    space = tmp_path / "space.toml"
    space.write_text(
        'selection = ["random"]\ntransform = ["identity"]\nlabel_bits = [0, 3]\n'
        '[[quantizer]]\nfamily = "uniform"\nlevels = [2, 4, 17, 256]\n'
    )
    return functools.partial(budgetopt.merge, space=str(space))


@pytest.fixture
def written(tmp_path):
    def write(*parts):
        paths = [tmp_path / f"node{i}.bopt" for i in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            path.write_bytes(pack(part))
        return paths

    return write


def test_the_same_levels_are_kept_exactly(merge, shards, written):
    found = merge(written(*shards), "20kb")
    merged = unpack(found.data)
    assert found.chosen.samples == found.of == 90
    assert merged.counts == tuple(np.sum([s.counts for s in shards], 0))
    expected = pooled([(len(s), s.mean, s.std) for s in shards])
    np.testing.assert_array_equal([merged.mean, merged.std], expected)
    for label in range(10):  # the first of every node, then the second of every node, …
        of_nodes = [s.decode()[s.labels() == label] for s in shards]
        most = max(len(x) for x in of_nodes)
        inside = [x[rank] for rank in range(most) for x in of_nodes if rank < len(x)]
        np.testing.assert_array_equal(merged.decode()[merged.labels() == label], inside)


def test_symbols_are_kept_although_other_ways_would_do(shards, written):
    joined = merging.join(written(*shards))
    assert joined.packed.dequantizer == TABLE
    assert len(joined.packed) == 90


@pytest.mark.parametrize("budget", [150, 400, 900])
def test_budgets_are_kept(merge, shards, written, budget):
    found = merge(written(*shards), budget)
    assert found.bytes <= budget
    assert all(count > 0 for count in unpack(found.data).counts)


def test_different_levels_are_quantized_anew(merge, shards, written):
    other = dataclasses.replace(shards[1], dequantizer=UniformLevels(17, 0, 2, 1))
    twice = dataclasses.replace(shards[1], dequantizer=UniformLevels(17, 0, 2, 0))
    found = merge(written(shards[0], other), "20kb")  # the same values, written otherwise
    assert found.allocation is not None
    np.testing.assert_allclose(
        np.sort(unpack(found.data).decode(), None),
        np.sort(np.concatenate([shards[0].decode(), other.decode()]), None),
        atol=0.1,
    )
    assert merging.join(written(shards[0], twice)).packed is None


def test_twins_go_first(merge, shards, written):
    paths = written(shards[0], shards[0], shards[2])
    kept = merge(paths, "20kb")
    assert kept.chosen.samples == 90  # nothing has to go
    tight = merge(paths, len(kept.data) - 1)
    assert any("30 near twins left out" in note for note in tight.notes)
    assert tight.of <= 60


def test_without_twins_against_all_pairs(shards, written):
    joined = merging.join(written(*shards, shards[1]))
    left = merging.without_twins(joined)
    kept = {x.tobytes() for x in left.x}
    for label in range(10):
        rows = joined.x[joined.y == label].reshape(-1, 64).astype(np.float64)
        near = merging.NEAR * 2 * rows.var(0).sum()
        stays = []
        for row in rows:
            if all(((row - other) ** 2).sum() > near for other in stays):
                stays.append(row)
        assert len(stays) == (left.y == label).sum()
        assert all(row.astype(np.float32).reshape(1, 8, 8).tobytes() in kept for row in stays)
    np.testing.assert_array_equal(left.packed.decode(), left.x)


def test_soft_labels_are_kept(merge, shards, written):
    rng = np.random.default_rng(0)
    parts = [dataclasses.replace(s, soft=SoftLabels.nearest(rng.dirichlet(np.ones(10), len(s)), 3)) for s in shards]
    found = unpack(merge(written(*parts), "20kb").data)
    assert sorted(map(tuple, found.soft.symbols)) == sorted(tuple(r) for p in parts for r in p.soft.symbols)


def test_a_node_that_does_not_know_the_last_classes(merge, shards, written):
    short = dataclasses.replace(shards[0], counts=shards[0].counts[:5])
    paths = written(short, shards[2])
    with pytest.raises(InputError, match=r"node1\.bopt: has 10 classes, expected 5: --classes N"):
        merge(paths, "20kb")
    assert len(unpack(merge(paths, "20kb", classes=10).data).counts) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (1, 4, 16)}, r"node1\.bopt: samples have shape \(1, 4, 16\), those of .*node0"),
        ({"protocol": 1}, r"node1\.bopt: has another protocol than .*node0\.bopt: choose one with --protocol"),
    ],
)
def test_files_that_do_not_belong_together_are_named(merge, shards, written, tmp_path, change, message):
    paths = written(shards[0], dataclasses.replace(shards[1], **change))
    with pytest.raises(InputError, match=message):
        merge(paths, "20kb", out=tmp_path / "out.bopt")
    assert not (tmp_path / "out.bopt").exists()


def test_protocols_may_differ_where_one_is_chosen(merge, shards, written):
    paths = written(shards[0], dataclasses.replace(shards[1], protocol=1))
    assert unpack(merge(paths, "20kb", protocol="glyph-1").data).protocol == 0


def test_one_file_is_not_enough_and_absent_ones_are_named(merge, written, shards, tmp_path):
    (path,) = written(shards[0])
    with pytest.raises(InputError, match="two files or more, got 1"):
        merge([path], "20kb")
    with pytest.raises(InputError, match=r"absent\.bopt"):
        merge([path, tmp_path / "absent.bopt"], "20kb")


def test_soft_labels_keep_their_smoothing(tmp_path):
    """Symbols that are kept stand for the same probabilities as before."""
    rng = np.random.default_rng(0)
    made = []
    for name in ("a", "b"):
        symbols = rng.integers(0, 2, (20, 64)).astype(np.uint8)
        probabilities = rng.dirichlet(np.full(10, 0.6), 20)
        probabilities[np.arange(20), np.repeat(np.arange(10), 2)] += 1.0
        soft = SoftLabels.nearest(probabilities / probabilities.sum(1, keepdims=True), 3)
        soft = replace(soft, smoothing=7)
        packed = PackedSet(
            symbols=symbols,
            shape=(1, 8, 8),
            counts=(2,) * 10,
            dequantizer=UniformLevels(2, 0, 16, 0),
            inverse=Identity(),
            mean=np.float32([4.875]),
            std=np.float32([6.0]),
            soft=soft,
        )
        (tmp_path / f"{name}.bopt").write_bytes(pack(packed))
        made.append(packed)
    joined = merging.join([tmp_path / "a.bopt", tmp_path / "b.bopt"])
    assert joined.packed is not None
    assert joined.packed.soft.smoothing == 7
    ranks = np.concatenate([np.tile([0, 1], 10)] * 2)
    order = np.lexsort((np.repeat([0, 1], 20), ranks, np.concatenate([m.labels() for m in made])))
    expected = np.concatenate([m.targets() for m in made])[order]
    assert np.array_equal(joined.packed.targets(), expected)
