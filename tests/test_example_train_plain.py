"""A receiver's training in plain PyTorch learns from a small file, with hard and with soft labels."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetopt.allocation import Allocation
from budgetopt.methods.selection import Selector
from budgetopt.packing import SoftLabels, pack
from budgetopt.representation import Representation

SCRIPT = Path(__file__).parents[1] / "examples" / "train_plain.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("train_plain", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("soft", [False, True])
def test_accuracy_on_digits(example, digits, tmp_path, capsys, soft):
    initial = Selector(digits.train, digits.spec).select("random", 20, 0)
    packed = Representation(initial, Allocation(levels=4), digits.spec, 0, torch.device("cpu")).packed()
    if soft:
        packed = replace(packed, soft=SoftLabels.nearest(0.9 * np.eye(10)[packed.labels()] + 0.01, 4))
    (tmp_path / "a.bopt").write_bytes(pack(packed))
    assert example.main(str(tmp_path / "a.bopt")) > 0.9
    assert f"200 samples in {(tmp_path / 'a.bopt').stat().st_size:,} bytes: 9" in capsys.readouterr().out
    if not soft:
        test = digits.load_test()
        np.savez(tmp_path / "test.npz", x_test=test.x[:60], y_test=test.y[:60])
        assert example.main(str(tmp_path / "a.bopt"), str(tmp_path / "test.npz")) > 0.85
