"""Beam-management data from their physics. What needs Sionna skips where it is not installed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from budgetopt import cli
from budgetopt.data import Dataset, beam, open_source
from budgetopt.errors import InputError

SAMPLES = 2 * beam.BATCH


@pytest.fixture(scope="session")
def simulated():
    """(x, y, whether torch's random state is what it was before Sionna was imported and used)"""
    pytest.importorskip("sionna", reason="Sionna is not installed: pip install 'budgetopt[wireless]'")
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    x, y = beam.simulate(SAMPLES, 1)
    return x, y, torch.equal(before, torch.random.get_rng_state())


def test_codebook_points_where_it_says():
    """A wave from the direction of a beam is strongest in it, by the number of antennas of a polarisation."""
    wavelength = 299_792_458.0 / beam.CARRIER
    side = (np.arange(beam.PANEL) - (beam.PANEL - 1) / 2) * wavelength / 2
    places = np.stack([np.zeros(16), np.repeat(side, 4), np.tile(side, 4)], 1)
    weights = beam.codebook(torch.tensor(places, dtype=torch.float32)).numpy()
    assert np.allclose(np.linalg.norm(weights, axis=1), 1)
    for number in (0, 9, 28, 63):
        elevation, azimuth = (np.deg2rad(15.0 * part - 52.5) for part in divmod(number, 8))
        way = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        received = np.exp(2j * np.pi / wavelength * places @ way)
        gains = np.abs(weights @ received) ** 2
        assert gains.argmax() == number
        assert gains.max() == pytest.approx(16, rel=1e-3)


def test_samples_are_what_the_task_says(simulated):
    x, y, _ = simulated
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((SAMPLES, 64), np.float32, (SAMPLES,), np.int64)
    assert ((x > 0).sum(1) == 32).all()
    assert (x.max(1) == 1).all()
    assert 0 <= y.min() <= y.max() < 64
    assert (x.argmax(1) == y).mean() == pytest.approx(0.407, abs=0.05)
    of_measured = x[np.arange(SAMPLES), y] > 0
    assert of_measured.mean() == pytest.approx(0.5, abs=0.05)
    assert (x.argmax(1) == y)[of_measured].mean() == pytest.approx(0.82, abs=0.06)


def test_random_state_of_torch_is_left_alone(simulated):
    """Though importing Sionna seeds torch, and so does giving it a seed."""
    assert simulated[2]


def test_import_alone_leaves_the_random_state(simulated):
    program = """
import torch
torch.manual_seed(5)
before = torch.random.get_rng_state()
from budgetopt.data import beam
import sys
assert "sionna" not in sys.modules
with torch.random.fork_rng():
    beam._sionna()
    changed = torch.random.get_rng_state()
assert not torch.equal(before, changed), "Sionna does not seed torch any more"
assert torch.equal(before, torch.random.get_rng_state())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_one_seed_explains_everything(simulated):
    x, y, _ = simulated
    torch.manual_seed(99)
    again, labels = beam.simulate(beam.BATCH - 3, 1)
    assert np.array_equal(again, x[: beam.BATCH - 3])
    assert np.array_equal(labels, y[: beam.BATCH - 3])
    assert not np.array_equal(beam.simulate(beam.BATCH, 2)[1], y[: beam.BATCH])


def test_classes_are_those_of_the_shipped_data(simulated, fashion_mnist_root):
    """Of the marginals by elevation and azimuth: no further apart than two samples of one distribution."""
    path = fashion_mnist_root / "beam" / "train.parquet"
    if not path.is_file():
        pytest.skip("the beam-management data is not here: name the folder that holds beam/ in BUDGETOPT_DATA")
    wanted = np.bincount(pyarrow.parquet.read_table(path)["beam"].to_numpy(), minlength=64)
    found = np.bincount(simulated[1], minlength=64)
    for axis in (0, 1):
        shipped, ours = (counts.reshape(8, 8).sum(axis) for counts in (wanted, found))
        share = shipped / shipped.sum()
        chi = ((ours - SAMPLES * share) ** 2 / (SAMPLES * share)).sum()
        assert chi < 26.1  # 7 degrees of freedom, 0.05 %


def fake(monkeypatch, rows):
    """A simulation of no channels: how its samples are written does not depend on them."""
    rng = np.random.default_rng(0)
    x, y = rng.random((rows, 64)).astype(np.float32), rng.integers(0, 60, rows)
    y[:3] = 63, 62, 62
    monkeypatch.setattr(beam, "simulate", lambda samples, seed, progress: (x[:samples], y[:samples]))
    return x, y


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["budgetopt", "data", "beam", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_code:
        cli.main()
    return exit_code.value.code


def test_command_writes_a_dataset(tmp_path, monkeypatch, capsys):
    x, y = fake(monkeypatch, 900)
    assert run(monkeypatch, "--samples", 900, "--seed", 4, "--out", tmp_path / "a b") == 0
    out = capsys.readouterr().out
    assert "beams have under 2 training samples: simulate more" in out
    assert "the strongest measured beam is the best one in" in out
    train, test = (pyarrow.parquet.read_table(tmp_path / "a b" / f"{part}.parquet") for part in ("train", "test"))
    assert train.schema.metadata[b"made"] == b"budgetopt data beam --samples 900 --seed 4"
    assert train.column_names == [f"rsrp_{i:02d}" for i in range(64)] + ["beam"]
    assert str(train.schema.field("beam").type) == "int16"
    assert sorted([*train["beam"].to_pylist(), *test["beam"].to_pylist()]) == sorted(y.tolist())
    counts, tested = (np.bincount(part["beam"].to_numpy(), minlength=64) for part in (train, test))
    assert np.array_equal(tested, (counts + tested) // 5)
    rows = {tuple(row) for row in np.stack([train[f"rsrp_{i:02d}"].to_numpy() for i in range(64)], 1).tolist()}
    assert rows <= {tuple(row) for row in x.tolist()}
    source = open_source(str(tmp_path / "a b"))
    source.check_test_part((64,))
    assert source.notes[0].startswith("label: column 'beam', the only integer")


def test_nothing_is_written_over(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, 50)
    (tmp_path / "test.parquet").write_bytes(b"mine")
    assert run(monkeypatch, "--samples", 50, "--out", tmp_path) == 2
    assert "exists already: name another folder with --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test.parquet"]


@pytest.mark.parametrize("samples", [0, -3, 10_000_001])
def test_numbers_that_cannot_be(samples):
    with pytest.raises(InputError, match=f"must be in 1..10,000,000, got {samples}"):
        beam.simulate(samples, 0)


def test_without_sionna_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "sionna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sionna", None)
    assert run(monkeypatch, "--samples", 50, "--out", tmp_path / "a") == 2
    err = capsys.readouterr().err
    assert "pip install 'budgetopt[wireless]'" in err
    assert err.count("\n") == 1
    assert not Path(tmp_path / "a").exists()


def test_searchable_as_it_is(simulated, tmp_path):
    """Enough samples of every beam that occurs: what is rarer is left out here, where few are simulated."""
    x, y, _ = simulated
    often = np.flatnonzero(np.bincount(y, minlength=64) >= 5)
    kept = np.isin(y, often)
    beam.write(tmp_path / "d", x[kept], y[kept], 1)
    data = Dataset.prepare(open_source(str(tmp_path / "d")), 0)
    assert data.spec.shape == (64,)
    assert data.spec.classes == len(often)
