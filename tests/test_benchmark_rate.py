"""The benchmarks of files run, print their tables, and repeat nothing that is finished."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
RUNS = {
    "random_coreset": (["--quick", "--label-bits", "3"], ["levels", "all draws", "target: at least 82.5"]),
    "quantizers": (
        ["--quick", "--refine", "1", "--only", "apot, 7", "ddq", "jpeg:quality=15"],
        ["uniform, 2 levels, minmax", "ddq", "minus uniform", "refined for 1 steps"],
    ),
    "rungs": (["--quick"], ["Spearman [95 %]", "200 to 400", "8 steps", "0.25"]),
    "beam": (["--quick"], ["random, sqrt, soft labels", "all data", "Claim 5", "2 bits, without"]),
    "augmentation": (["--quick"], ["shift, scale, rotate", "minus none"]),
    "methods": (["--quick", "--guards", "0", "0.5"], ["random", "datm, guard 0.5", "minus random"]),
    "recipe": (["--quick"], ["20 epochs of SGD", "dsa, 1 a class", "mean of all files"]),
    "rdoq": (["--quick"], ["2 levels, weight 0.3", "minus weight 0", "bytes of the same samples"]),
    "parents": (["--quick"], ["8 to 4", "3 + 1", "child minus it", "anew, as much in all"]),
    "memory": (["--quick"], ["digits, training set at 2 levels", "float32", "the same bits"]),
    "claims": (["--quick"], ["Claim 1", "Claim 2", "Claim 4", "Claim 6", "control", "GAQ, refined", "lenet"]),
}


@pytest.fixture
def benchmark_named(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in ("records", "gpu", *RUNS):
        sys.modules.pop(name, None)


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_quick_run_is_resumable(name, benchmark_named, tmp_path, capsys):
    arguments, figures = RUNS[name]
    main = benchmark_named(name).main
    main([*arguments, "--out", str(tmp_path)])
    first = capsys.readouterr().out
    rows = (tmp_path / "rows.jsonl").read_text()
    with (tmp_path / "rows.jsonl").open("a") as stream:
        stream.write('{"key": {"deco')  # killed while writing
    main([*arguments, "--out", str(tmp_path)])
    second = capsys.readouterr().out
    for figure in figures:
        assert figure in first
    working = ("packing", "training", "distilling")
    assert any(line.startswith("training") for line in first.splitlines())
    assert not any(line.startswith(working) for line in second.splitlines())
    assert second.splitlines() == [line for line in first.splitlines() if not line.startswith(working)]
    assert (tmp_path / "rows.jsonl").read_text() == rows


@pytest.mark.long
def test_the_benchmark_for_a_gpu_runs_without_one(benchmark_named, tmp_path, capsys):
    main = benchmark_named("gpu").main
    main(["--quick", "--out", str(tmp_path)])
    first = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("distilling") for line in first) == 3
    for name in ("coreset", "dm", "datm"):
        (row,) = [line.split("│") for line in first if f" {name} " in line and " 600 " in line]
        assert 0 < int(row[5]) <= 600
    assert sum(" cpu " in line for line in first) == 2 or torch.cuda.is_available()
    main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == first[3:]  # nothing is made twice


def test_spearman_of_rows_against_scipy(benchmark_named):
    rungs = benchmark_named("rungs")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (5, 9)), rng.integers(0, 6, (5, 9))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert rungs.spearman(a, b) == pytest.approx(expected)
    assert rungs.interval(np.arange(9), np.arange(9)) == "1.00 [1.00, 1.00]"


def test_two_level_interval_against_a_loop(benchmark_named):
    records = benchmark_named("records")
    groups = np.random.default_rng(0).normal([[0.6], [0.7], [0.65]], 0.02, (3, 4))
    rng, means = np.random.default_rng(1), []
    for _ in range(4000):
        files = [groups[rng.integers(3)] for _ in range(3)]
        means.append(np.mean([np.mean([file[rng.integers(4)] for _ in range(4)]) for file in files]))
    assert np.percentile(records.resampled_means(groups), [2.5, 50, 97.5]) == pytest.approx(
        np.percentile(means, [2.5, 50, 97.5]), abs=0.004
    )


def test_trimmed_file_loses_single_samples(benchmark_named, digits):
    records = benchmark_named("records")
    from budgetopt.allocation import Allocation
    from budgetopt.methods.selection import Selector
    from budgetopt.packing import pack, unpack
    from budgetopt.representation import Representation

    initial = Selector(digits.train, digits.spec).select("random", 4, 0)
    representation = Representation(initial, Allocation(levels=4), digits.spec, 0, records.CPU)
    whole = pack(representation.packed())
    cut = records.trimmed(representation, len(whole) - 20)
    assert len(cut) <= len(whole) - 20
    counts = unpack(cut).counts
    assert 34 <= sum(counts) < 40
    assert counts == tuple(sorted(counts, reverse=True))  # the last classes lose their last samples first
    kept = unpack(whole).decode()
    starts = np.arange(10) * 4
    rows = np.concatenate([np.arange(s, s + c) for s, c in zip(starts, counts, strict=True)])
    assert np.array_equal(unpack(cut).decode(), kept[rows])
    assert records.trimmed(representation, len(whole)) == whole


def test_a_set_is_optimised_though_its_cost_is_known(benchmark_named, tmp_path):
    """Killed after the one row and before the other, or run again in the same folder."""
    benchmark, records = benchmark_named("methods"), benchmark_named("records")
    from budgetopt.objective import GradientMatchingObjective

    args = records.arguments("", benchmark.OPTIONS).parse_args(["--out", str(tmp_path)])
    bench = benchmark.Methods(records.tiny(args), records.console())
    recipe = GradientMatchingObjective(method="dc", guard=0, steps=2, bank=0, real_batch=8, lr_image=50.0)
    key = {"method": "dc", "recipe": recipe.model_dump(mode="json"), "ipc": 1, "draw": 0, "levels": 0}
    bench.rows.once(bench._cost(key), lambda: {"seconds": 1.0, "fall": 1.0})
    assert bench.made("dc", recipe, 1, 0) != bench.made("random", None, 1, 0)
