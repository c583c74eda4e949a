"""The benchmark runs, prints its figures, and repeats nothing that is finished."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "lossless.py"


def test_quick_run_is_resumable_and_ours_is_shortest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    arguments = ["--datasets", "digits", "--levels", "2", "--bytes", "300", "--out", str(tmp_path)]
    main(arguments)
    first = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert set(rows) == {"size digits 2 300", "speed digits 2 300"}
    size = rows["size digits 2 300"]
    assert all(size["ours"] < size[rival] for rival in ("png", "webp", "xz"))
    rows["size digits 2 300"]["ours"] = 123
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    main(arguments)
    second = capsys.readouterr().out
    assert len(first.splitlines()) == len(second.splitlines())
    assert " 123" in second
