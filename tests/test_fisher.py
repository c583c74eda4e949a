"""Fisher information of a file beside that of the training data, against its definition."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sets import packed_set
from typer.testing import CliRunner

from budgetopt import api, cli, fisher, networks
from budgetopt.data.dataset import Split
from budgetopt.errors import InputError
from budgetopt.packing import SoftLabels, UniformLevels, pack
from budgetopt.protocol import PRESETS, Protocol
from budgetopt.search.error_model import Evidence
from budgetopt.seeding import generator

PROTOCOL = Protocol(network="convnet", width=4, steps=1)


def of_rows(digits, rows, **changes):
    """A file that holds these training samples exactly."""
    rows = rows[np.argsort(digits.train.y[rows], kind="stable")]
    counts = tuple(np.bincount(digits.train.y[rows], minlength=10))
    levels = UniformLevels(17, 0, 1, 0)
    statistics = {"mean": digits.spec.mean, "std": digits.spec.std}
    return packed_set(digits.train.x[rows], tuple(map(int, counts)), levels, **(statistics | changes))


@pytest.mark.parametrize("name", ["convnet", "convnet:norm=batch", "lenet", "mlp"])
def test_traces_are_expected_squared_norms_of_one_gradient_after_another(name):
    shape = (20,) if name == "mlp" else (1, 8, 8)
    network = networks.build(name, shape, 3, 4, generator("test")).eval()
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0))
    targets = torch.softmax(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), 1)
    expected = []
    for one, target in zip(x, targets, strict=True):
        norms = []
        for label in range(3):
            network.zero_grad()
            F.cross_entropy(network(one[None]), torch.tensor([label])).backward()
            norms.append(sum(float(p.grad.square().sum()) for p in network.parameters()))
        expected.append(float(target @ torch.tensor(norms)))
    assert np.allclose(fisher.traces(network, x, targets), expected, rtol=1e-4)


def test_whole_classes_keep_all_and_halves_keep_half(digits, monkeypatch):
    monkeypatch.setattr(fisher, "MOST", 10_000)
    members = [np.flatnonzero(digits.train.y == label) for label in range(10)]
    whole = fisher.retention(of_rows(digits, np.concatenate(members)), digits.train, PROTOCOL)
    assert [c.label for c in whole] == list(range(10))
    assert np.allclose([c.total for c in whole], 1.0)
    half = fisher.retention(
        of_rows(digits, np.concatenate([m[: len(m) // 2] for m in members])), digits.train, PROTOCOL
    )
    assert [c.samples for c in half] == [len(m) // 2 for m in members]
    assert all(c.total == pytest.approx(c.each * c.samples / c.real) for c in half)
    assert all(0.4 < c.total < 0.6 for c in half)


def test_the_seed_repeats(digits):
    packed = of_rows(digits, np.arange(200))
    first = fisher.retention(packed, digits.train, PROTOCOL, seed=3)
    assert fisher.retention(packed, digits.train, PROTOCOL, seed=3) == first
    assert fisher.retention(packed, digits.train, PROTOCOL, seed=4) != first


def test_soft_labels_are_the_labels(digits):
    """As the distribution that y is drawn from: a class that is certain is a hard label, and at random weights, which
    know no class from another, a sample of any class tells about as much."""
    hard = of_rows(digits, np.arange(200))
    certain, even = np.eye(10, dtype=np.float32)[hard.labels()], np.full((200, 10), 0.1, np.float32)
    found = [
        fisher.retention(replace(hard, soft=None if y is None else SoftLabels.nearest(y, 8)), digits.train, PROTOCOL)
        for y in (None, certain, even)
    ]
    for plain, sure, open_ in zip(*found, strict=True):
        assert plain.train == sure.train == open_.train
        assert sure.file == pytest.approx(plain.file, rel=1e-5)
        assert 0.5 * plain.file < open_.file < 2.0 * plain.file
        assert open_.file != pytest.approx(plain.file, rel=1e-3)


def test_classes_that_a_node_lacks_are_left_out(digits):
    rows = np.flatnonzero(digits.train.y % 2 == 0)[:100]
    found = fisher.retention(of_rows(digits, rows), digits.train, PROTOCOL)
    assert [c.label for c in found] == [0, 2, 4, 6, 8]


def test_inspect_prints_a_row_for_every_class(digits, tmp_path):
    file = tmp_path / "a.bopt"
    file.write_bytes(pack(of_rows(digits, np.arange(300), protocol=list(PRESETS).index("glyph-1"))))
    done = CliRunner().invoke(cli.app, ["inspect", str(file), "--fisher", "--dataset", "digits"])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.split("Theorem 4.6)\n")[1].splitlines()[1:]]
    found = api.fisher(file, "digits")
    assert [row[0] for row in rows] == list("0123456789")
    assert [int(row[1]) for row in rows] == [c.samples for c in found]
    assert [row[-1] for row in rows] == [f"{c.total:.2%}" for c in found]
    assert "Fisher" not in CliRunner().invoke(cli.app, ["inspect", str(file)]).output


def test_bad_input_is_one_line(tmp_path, small_npz):
    file = tmp_path / "a.bopt"
    file.write_bytes(pack(packed_set(np.zeros((4, 1, 2, 2)), (2, 2))))
    with pytest.raises(InputError, match="lies in no run folder"):
        api.fisher(file)
    with pytest.raises(InputError, match=r"2 classes of shape \(1, 2, 2\), those of digits are 10 of"):
        api.fisher(file, "digits")


def test_a_split_of_bytes_and_of_floats_is_the_same(digits):
    floats = Split(digits.train.x.astype(np.float32), digits.train.y)
    packed = of_rows(digits, np.arange(100))
    a, b = (fisher.retention(packed, train, PROTOCOL) for train in (digits.train, floats))
    assert a == b


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    return importlib.import_module("fisher")


def test_the_benchmark_predicts_codings_that_it_has_not_seen(benchmark, tmp_path, capsys):
    table = Path(__file__).parent / "golden" / "digits-table.npz"
    benchmark.main(["--quick", "--table", str(table), "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "retention of 25 codings" in out
    assert "with retention; difference" in out


def test_a_covariate_that_explains_the_rest_is_found(benchmark):
    """Accuracies that are a law of n and of a covariate: with it the groups left out are predicted, without it not."""
    rng = np.random.default_rng(0)
    group, n = np.repeat(np.arange(10), 8), np.tile(2.0 ** np.arange(8), 10)
    z = rng.normal(size=10)[group]
    plain = Evidence(
        n, np.full(80, 0.1), np.zeros(80, int), np.empty((80, 0)), 3 - 3 * n**-0.5 + 0.5 * z, np.full(80, 0.01)
    )
    without = benchmark.root(benchmark.left_out(plain, group))
    having = benchmark.root(benchmark.left_out(replace(plain, choices=z[:, None]), group))
    assert having < 0.1 < 0.3 < without
