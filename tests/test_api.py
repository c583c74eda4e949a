"""The public names, in a fresh process: what is imported when, and what they are afterwards."""

import fcntl
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import budgetopt
from budgetopt import api


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_there():
    for name in budgetopt.__all__:
        assert callable(getattr(budgetopt, name))
    assert set(budgetopt.__all__) <= set(dir(budgetopt))


def test_search_is_a_function_also_after_its_package_was_imported():
    """`budgetopt.search` is a package too, and importing any part of it sets that attribute."""
    printed = python(
        "import budgetopt\n"
        "for number in range(2):\n"
        "    try:\n"
        "        budgetopt.search('nonsense')\n"
        "    except budgetopt.InputError as error:\n"
        "        print(error)\n"
        "    import budgetopt.search.sampler\n"
        "print(budgetopt.search.sampler.RateDistortionSampler.__name__)\n"
    )
    first, second, name = printed.splitlines()
    assert "'nonsense'" in first
    assert first == second
    assert name == "RateDistortionSampler"


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"dataset": Path("digits")}, r"cannot read the dataset '\./digits'"),
        ({"space": Path("image")}, r"search space file '\./image'"),
        ({"protocol": Path("glyph-1")}, r"protocol file '\./glyph-1'"),
        ({"objectives": [Path("dm")]}, r"objective file '\./dm'"),
    ],
)
def test_a_path_is_one_also_where_a_name_is_spelled_like_it(tmp_path, monkeypatch, named, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(budgetopt.InputError, match=said):
        budgetopt.search("2kb", **named)
    assert not any(tmp_path.iterdir())


def test_a_second_start_changes_nothing_of_the_first(tmp_path):
    """Of two searches that begin at once into one folder, the second is refused before it writes."""
    folder = tmp_path / "run"
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(budgetopt.InputError, match="another process is driving"):
            budgetopt.search("2kb", out=folder, trials=1)
    assert [entry.name for entry in folder.iterdir()] == ["lock"]


def test_folders_of_the_same_second_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for wanted in ("digits-9B-now", "digits-9B-now-2", "digits-9B-now-3"):
        found = api.default_out("digits", 9)
        assert found == Path("runs") / wanted
        found.mkdir(parents=True)


def test_files_may_be_named_by_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quick.toml").write_text('network = "convnet"\nwidth = 4\nsteps = 2\n')
    one = 'selection = ["random"]\ntransform = ["identity"]\n[ipc]\nmin = 1\nmax = 3\n'
    Path("two.toml").write_text(one + '[[quantizer]]\nfamily = "uniform"\nlevels = [2]\n')
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez("data.npz", x_train=x, y_train=y, x_test=x[:8], y_test=y[:8])
    np.savez("set.npz", x=x[:6].astype(np.float32), y=y[:6])
    found = budgetopt.compress(
        Path("set.npz"), 300, out=Path("set.bopt"), dataset=Path("data.npz"), space=Path("two.toml"),
        protocol=Path("quick.toml"), raw=True, trials=1,
    )  # fmt: skip
    assert found.path == Path("set.bopt")
    assert 0 <= budgetopt.evaluate("set.bopt", Path("data.npz"), protocol=Path("quick.toml")).accuracy <= 1
