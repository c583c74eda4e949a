"""A table is recorded once and goes on where it was stopped; the comparison of searches prints its figures."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import quick_protocol
from scipy.stats import norm
from tables import law_table

from budgetopt import result
from budgetopt.search import study as studies
from budgetopt.search.folder import RunFolder
from budgetopt.search.recorded import Table

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """`main` of a benchmark."""
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(str(FOLDER))
    yield lambda name: runpy.run_path(str(FOLDER / name))
    torch.set_num_threads(threads)


@pytest.mark.long
def test_a_recording_is_resumable(tmp_path, script):
    main = script("record_table.py")["main"]
    arguments = ["--quick", "--out", str(tmp_path / "rows"), "--table", str(tmp_path / "t.npz")]
    main(arguments)
    rows = (tmp_path / "rows" / "rows.jsonl").read_text()
    first = Table.load(tmp_path / "t.npz")
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]) + '{"key": {"da')
    main(arguments)
    again = Table.load(tmp_path / "t.npz")
    assert len(first.allocations) == 8
    np.testing.assert_array_equal(first.final, again.final)
    np.testing.assert_array_equal(first.bytes, again.bytes)
    coreset, optimised = (a.objective for a in (first.allocations[0], first.allocations[-1]))
    assert (coreset, optimised) == ("coreset", "dm")
    assert [first.last(i, 0) for i in (0, 7)] == [1, 2]
    assert (np.diff(first.seconds[0, 0, :2]) > 0).all()
    assert (first.codings[:, 0] > 0).all()


def test_the_comparison_prints_every_figure(tmp_path, script, capsys):
    law_table().save(tmp_path / "law.npz")
    names = ["random", "TPE", "NSGA-II", "MO-ASHA, random", "ours"]
    script("search.py")["main"](
        ["--table", str(tmp_path / "law.npz"), "--runs", "2", "--trials", "10", "--searches", *names]
    )
    out = capsys.readouterr().out
    for name in names:
        assert out.count(name) >= 5
    for figure in ("share of the full hypervolume", "virtual seconds", "accuracy", "to 95% of the hypervolume"):
        assert figure in out


def test_stopping_rules_are_judged_by_what_they_cost_and_lose(tmp_path, script, capsys):
    law_table().save(tmp_path / "law.npz")
    script("search.py")["main"](["--table", str(tmp_path / "law.npz"), "--parts", "stopping", "--orders", "2"])
    shares = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0] in ("ASHA", "MO-ASHA", "halving"):
            shares[cells[0]] = [float(cell) for cell in cells[1:]]
    assert len(shares) == 3
    for cost, lost, kept in shares.values():
        assert 20 < cost < 100  # something is stopped, and no lower rung is free
        assert 0 <= lost < 100
        assert 0 < kept <= 100
    assert shares["halving"][1] < shares["ASHA"][1]  # small files are not stopped for their accuracy


def test_starts_of_a_search_are_compared(tmp_path, script, capsys):
    law_table().save(tmp_path / "law.npz")
    script("search.py")["main"](["--table", str(tmp_path / "law.npz"), "--parts", "starts", "--trials", "8"])
    first = {}
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0] in ("one", "one a kind", "four", "ladders"):
            first[cells[0]] = int(cells[1])
            for cell in cells[2:]:
                share, behind = map(float, cell.split(";"))
                assert 50 < share <= 100
                assert 0 <= behind < 50
    assert first["one"] == 1
    assert first["one a kind"] == 2
    assert first["ladders"] > first["four"] > 2


def test_halving_keeps_its_share(script):
    asha = script("search.py")["Asha"](by_rank=False)
    told = [
        asha.on_trial_result(None, None, {"rung": 0, "last": False, "bytes": 100, "accuracy": a})
        for a in (0.5, 0.6, 0.4, 0.55, 0.7)
    ]
    assert told == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE", "CONTINUE"]
    assert asha.on_trial_result(None, None, {"rung": 1, "last": True, "bytes": 1, "accuracy": 0.0}) == "CONTINUE"
    ranked = script("search.py")["Asha"](by_rank=True)
    small = {"rung": 0, "last": False, "bytes": 10, "accuracy": 0.1}
    large = {"rung": 0, "last": False, "bytes": 100, "accuracy": 0.9}
    beaten = {"rung": 0, "last": False, "bytes": 120, "accuracy": 0.05}
    assert [ranked.on_trial_result(None, None, r) for r in (large, small, beaten)] == ["CONTINUE", "CONTINUE", "STOP"]


@pytest.mark.long
def test_overhead_is_measured_on_a_real_search(tmp_path, script, capsys):
    law_table().save(tmp_path / "law.npz")
    arguments = ["--out", str(tmp_path), "--table", str(tmp_path / "law.npz"), "--trials", "5", "--finished", "30"]
    main = script("overhead.py")["main"]
    main([*arguments, "--protocol", str(quick_protocol(tmp_path)), "--proposals", "2", "--megabytes", "20"])
    printed = capsys.readouterr().out
    for text in (
        "trials: 5 on 2 workers",
        "between them: ",
        "workers without a trial: ",
        "replayed, 0.2 s a proposal",
        "asked ahead",
    ):
        assert text in printed
    assert "30 finished trials" in printed
    own = [
        float(line.split(" resident, ")[1].split(" MB")[0]) for line in printed.splitlines() if " resident, " in line
    ]
    assert len(own) == 2
    assert max(own) < 20  # mapped, not copied


@pytest.mark.long
def test_searches_beside_coresets_with_as_many_trials(tmp_path, script, capsys):
    (tmp_path / "quick.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 30\n')
    arguments = [
        "--out",
        str(tmp_path),
        "--task",
        "digits-500",
        "--runs",
        "1",
        "--trials",
        "3",
        "--workers",
        "2",
        "--candidates",
        "2",
    ]
    module = script("datasets.py")
    module["main"]([*arguments, "--protocol", str(tmp_path / "quick.toml")])
    first = capsys.readouterr().out
    counts = {arm: module["trials_of"](tmp_path / "digits-500" / f"{arm}-0") for arm in ("ours", "random", "herding")}
    assert counts == {"ours": 3, "random": 3, "herding": 3}
    for selection in ("random", "herding"):
        front = result.read(tmp_path / "digits-500" / f"{selection}-0").front
        assert {(p.allocation.objective, p.allocation.selection) for p in front} == {("coreset", selection)}
    assert "digits-500" in first
    assert "minus herding" in first
    assert (tmp_path / "digits-500.png").stat().st_size > 10_000
    module["main"](["--out", str(tmp_path), "--runs", "1"])  # without a task nothing is searched
    assert capsys.readouterr().out.strip() == first.partition("\n")[2].strip()
    runs = [tmp_path / "digits-500" / f"{arm}-0" for arm in ("ours", "random")]
    foresight = script("foresight.py")
    measured = [r.accuracy for r in studies.records(studies.load(RunFolder(runs[1]).study)) if r.state == "complete"]
    figures = foresight["foretold"](runs[1], 1, 2)
    assert figures[:, 2].tolist() == measured[1:]
    assert (figures[:, 1] > 0.01).all()
    np.testing.assert_array_equal(foresight["foretold"](runs[1], 1, 1), figures[:1])  # of what came before alone
    foresight["main"]([*map(str, runs), "--first", "1"])
    printed = capsys.readouterr().out
    assert "log density" in printed
    assert "all" in printed


def test_foresight_is_judged_by_its_error_and_its_doubt(script):
    row = script("foresight.py")["row"]
    rng = np.random.default_rng(0)
    measured, doubt = rng.normal(0.8, 0.05, 4000), np.full(4000, 0.05)
    expected = np.full(4000, 0.81)
    name, count, mean, rmse, inside, density = row("a", np.column_stack([expected, doubt, measured]))
    assert (name, count) == ("a", "4000")
    assert inside in ("94", "95")  # 94.6 %
    assert (float(mean), float(rmse)) == (pytest.approx(1.0, abs=0.2), pytest.approx(5.1, abs=0.2))
    assert float(density) == pytest.approx(norm(0.81, 0.05).logpdf(measured).mean(), abs=0.01)
    *_, fewer, less = row("b", np.column_stack([expected, doubt / 3, measured]))
    assert float(fewer) < 60
    assert float(less) < float(density)
