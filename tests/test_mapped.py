"""Large arrays in files, mapped by every process that works on them."""

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from command_line import quick_protocol

import budgetopt
from budgetopt import mapped, scratch
from budgetopt.search import engine

X = np.arange(60, dtype=np.int32).reshape(5, 4, 3)


@pytest.fixture(autouse=True)
def _large(monkeypatch):
    monkeypatch.setattr(mapped, "LARGE", 100)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A temporary folder of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def large():
    return mapped.written((X[i : i + 2] for i in range(0, 5, 2)), X.dtype, X.shape)


def test_the_file_goes_with_the_array(own):
    x = large()
    part = x[1:3]
    assert np.array_equal(x, X)
    assert len(list(own.glob("bo-*/array"))) == 1
    del x
    gc.collect()
    assert np.array_equal(part, X[1:3])  # which needs the file
    del part
    gc.collect()
    assert not list(own.iterdir())


def test_the_file_goes_with_the_process(own):
    code = "import numpy as np; from budgetopt import mapped; x = mapped.written([np.ones(9)], np.dtype(float), (9,))"
    environment = {**os.environ, "TMPDIR": str(own)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(own.iterdir())
    subprocess.run([sys.executable, "-c", code + "; import os; os._exit(1)"], env=environment, check=False)
    assert len(list(own.iterdir())) == 1  # as one that is killed leaves it
    kept = scratch.folder()
    assert list(own.iterdir()) == [kept]


def test_no_room_leaves_nothing(own):
    def parts():
        yield X[:2]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        mapped.written(parts(), X.dtype, X.shape)
    assert not list(own.iterdir())


def test_whole_large_arrays_travel_as_their_file(tmp_path):
    x = large()
    sent = mapped.by_reference(x)
    assert isinstance(sent, tuple)
    there = mapped.opened(sent)
    assert there.dtype == X.dtype
    assert np.array_equal(there, X)
    there[0] = 7
    assert np.array_equal(x, X)  # writing there changes nothing here
    np.save(tmp_path / "f.npy", np.asfortranarray(X))
    stored = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert np.array_equal(mapped.opened(mapped.by_reference(stored)), X)


@pytest.mark.parametrize("what", ["small", "part", "gone"])
def test_others_travel_as_they_are(what, monkeypatch):
    x = large()
    if what == "small":
        monkeypatch.setattr(mapped, "LARGE", 241)
    elif what == "part":
        x = x[1:]
    else:
        Path(x.filename).unlink()
    sent = mapped.by_reference(x)
    assert type(sent) is np.ndarray
    assert np.array_equal(mapped.opened(sent), x)


@pytest.mark.long
def test_a_search_on_mapped_data_is_the_search_on_what_is_in_memory(tmp_path, monkeypatch):
    """Workers map the driver's file: nothing of it passes through Ray's object store."""
    sent = []
    by_reference = mapped.by_reference
    monkeypatch.setattr(engine.mapped, "by_reference", lambda x: (sent.append(by_reference(x)), sent[-1])[1])
    protocol = str(quick_protocol(tmp_path))
    options = {"objectives": ["coreset"], "trials": 2, "workers": 1, "candidates": 1, "seed": 1, "protocol": protocol}
    mapped_run = budgetopt.search("1kb", out=tmp_path / "mapped", **options)
    assert sent
    assert all(isinstance(reference, tuple) for reference in sent)
    monkeypatch.setattr(mapped, "LARGE", 1 << 30)
    plain_run = budgetopt.search("1kb", out=tmp_path / "plain", **options)
    assert [(p.bytes, p.accuracy) for p in mapped_run.front] == [(p.bytes, p.accuracy) for p in plain_run.front]
    assert mapped_run.references == plain_run.references
