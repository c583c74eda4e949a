"""The example runs, keeps its budgets, and its nodes are as unlike as it says."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "merge_shards.py"
QUICK = ["--width", "4", "--steps", "10", "--seeds", "1", "--node-budget", "600", "--budget", "1500", "--most", "30"]


@pytest.mark.long
@pytest.mark.parametrize("nodes", [5])
def test_five_shards(tmp_path, capsys, nodes):
    threads = torch.get_num_threads()
    try:
        found = runpy.run_path(str(SCRIPT))["main"](["--dataset", "digits", "--out", str(tmp_path), *QUICK])
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out.splitlines()
    assert list(found) == [*(f"node {i}" for i in range(nodes)), "merged", "central"]
    assert len(printed) == 1 + len(found)
    assert all(found[f"node {i}"][0] <= 600 for i in range(nodes))
    assert found["merged"][0] <= 1500
    assert found["central"][0] <= found["merged"][0]


def test_shards_deal_out_everything_once():
    labels = np.repeat(np.arange(10), 100)
    parts = runpy.run_path(str(SCRIPT))["shards"](labels, 5, 0.2, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(1000))
    shares = np.array([np.bincount(labels[part], minlength=10) for part in parts])
    assert (shares.max(0) > 50).sum() >= 7  # most classes lie mostly at one node
