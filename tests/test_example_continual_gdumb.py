"""The benchmark of continual learning runs, goes on where it was, and its memories keep the rules of the game."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sets import packed_set

from budgetopt.packing import UniformLevels, pack, sections, unpack

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def gdumb(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads, path = torch.get_num_threads(), list(sys.path)
    yield importlib.import_module("continual_gdumb")
    torch.set_num_threads(threads)
    sys.path[:] = path
    for name in ("continual_gdumb", "records"):
        sys.modules.pop(name, None)


@pytest.mark.long
def test_quick_run_is_resumable(gdumb, tmp_path, capsys):
    gdumb.main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    gdumb.main(["--quick", "--out", str(tmp_path)])
    second = capsys.readouterr().out.splitlines()
    working = ("packing", "memory ", "training")
    assert [line for line in second if not line.startswith("memory ")] == [
        line for line in first.splitlines() if not line.startswith(working)
    ]
    assert "2 tasks, 700 bytes" in first
    assert all(name in first for name in gdumb.ARMS)
    files = [path.read_bytes() for path in (tmp_path / "files").glob("*.bopt")]
    assert len(files) == len(gdumb.ARMS) * 2
    for data in files:
        counts = np.array(unpack(data).counts)
        assert 0.8 * 700 < len(data) <= 700
        assert counts[counts > 0].min() >= counts.max() - 1  # balanced


def learner(gdumb, tmp_path):
    args = gdumb.records.arguments("", gdumb.OPTIONS).parse_args(["--out", str(tmp_path)])
    return gdumb.Learner(gdumb.records.tiny(args, tasks=3, teacher_steps=2, teacher_samples=9), gdumb.records.console())


@pytest.mark.parametrize("name", ["as stored", "8 bits", "herding", "ours, soft"])
def test_a_task_sees_the_memory_and_its_own_data_alone(gdumb, tmp_path, name):
    taught = learner(gdumb, tmp_path)
    arm = gdumb.replace(gdumb.ARMS[name], levels=gdumb.ARMS[name].levels or 2)
    before, seen = None, set()
    for classes in taught.tasks(0)[:2]:
        data = gdumb.Task(taught, arm, 700, 0, classes, before).memory()
        packed = unpack(data)
        seen |= set(classes.tolist())
        assert {label for label, count in enumerate(packed.counts) if count} == seen
        assert len(data) <= 700
        if name == "as stored":
            assert sections(data)[-2][0] == "symbols (raw)"
        if before is not None:  # what is left of the old samples is as it was: first ones of a class, same symbols
            for label in seen - set(classes.tolist()):
                kept, old = (one.symbols[one.labels() == label] for one in (packed, before))
                assert 0 < len(kept) <= len(old)
                assert np.array_equal(kept, old[: len(kept)])
        before = packed
    assert (before.soft is not None) == (name == "ours, soft")


def test_largest_leaves_little_unused(gdumb):
    symbols = np.random.default_rng(0).integers(0, 2, (300, 16))
    whole = packed_set(symbols, (100, 0, 200), UniformLevels(2, 0, 1, 0))
    for budget in (150, 400, len(pack(whole))):
        assert 0.97 * budget <= len(gdumb.largest(whole, budget, pack)) <= budget
    assert unpack(gdumb.largest(whole, len(pack(gdumb.first(whole, 1))), pack)).counts == (
        1,
        0,
        0,
    )  # too little for all
