"""The benchmark runs, prints its figures, and repeats nothing that is finished."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "distribution_matching.py"


def test_quick_run_is_resumable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    main = runpy.run_path(str(SCRIPT))["main"]
    try:
        main(["--quick", "--out", str(tmp_path)])
        first = capsys.readouterr().out
        results = (tmp_path / "results.jsonl").read_text()
        with (tmp_path / "results.jsonl").open("a") as stream:
            stream.write('{"key": {"part": "st')  # killed while writing
        main(["--quick", "--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    second = capsys.readouterr().out
    assert "running" in first
    for figure in ("share of the achievable ratio", "bank / naive", "÷ start", "over 2 seeds"):
        assert figure in first
    assert second.splitlines() == [line for line in first.splitlines() if not line.startswith("running")]
    assert (tmp_path / "results.jsonl").read_text() == results
