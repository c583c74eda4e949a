"""Searches that are killed, by every signal and at every stage, and gone on with: real processes, real digits."""

import json
import os
import signal

import psutil
import pytest
from command_line import SLOW, alive, command, quick_protocol, start, wait_for

from budgetopt import result
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import load as load_study
from budgetopt.search.study import records

pytestmark = pytest.mark.long


def states(run):
    return [r.state for r in records(load_study(run / "study.db"))]


def finished_files(run):
    return list((run / "trials").glob("*.bopt"))


def slow_search(folder, *arguments):
    """A search on two workers into the folder's `run`, started. It retrains few candidates at its end."""
    limits = ("--workers", 2, "--candidates", 2, "--out", "run", "--protocol", quick_protocol(folder, SLOW))
    return start("search", *arguments, *limits, folder=folder)


def test_kill_of_the_driver_loses_no_finished_trial(tmp_path):
    run = tmp_path / "run"
    search = slow_search(tmp_path, "--budget", "2kb", "--trials", 6, "--time-limit", "10min")
    wait_for(lambda: len(finished_files(run)) >= 2 and "complete" in states(run), search)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    before = [r for r in records(load_study(run / "study.db")) if r.state in ("complete", "stopped")]
    assert before
    resumed = command("resume", "run", folder=tmp_path)
    assert "Pareto front" in resumed.stdout
    after = records(load_study(run / "study.db"))
    assert [after[r.number] for r in before] == before
    ended = [r for r in after if r.state in ("complete", "stopped", "infeasible", "failed")]
    assert len(ended) == 6
    assert len({r.allocation for r in ended}) == 6  # nothing is counted twice
    interrupted = [r.number for r in after if r.state == "interrupted"]
    again = [t.user_attrs["restart_of"] for t in load_study(run / "study.db").trials if "restart_of" in t.user_attrs]
    assert sorted(again) == interrupted  # each is in the queue again, once; it waits its turn behind the design
    assert "running" not in states(run)


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_kill_of_a_run_whose_study_is_elsewhere(kind, tmp_path, request, monkeypatch):
    url = request.getfixturevalue("postgresql") if kind == "postgresql" else f"journal:///{tmp_path}/runs.journal"
    monkeypatch.setenv("BUDGETOPT_STORAGE", url)  # which has the password; the folder does not
    search = start(
        "search", "--budget", "500", "--trials", 3, "--workers", 2, "--out", "run", "--storage", url,
        "--protocol", quick_protocol(tmp_path), "--sampler", "tpe", folder=tmp_path,
    )  # fmt: skip
    run = tmp_path / "run"
    wait_for(lambda: finished_files(run), search)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert not (run / "study.db").exists()
    assert not any("s3cret" in path.read_text(errors="replace") for path in run.glob("*.json"))
    before = [r for r in records(load_study(RunFolder(run).study)) if r.state in ("complete", "stopped")]
    resumed = command("resume", "run", folder=tmp_path)
    assert "Pareto front" in resumed.stdout
    after = records(load_study(RunFolder(run).study))
    assert [after[r.number] for r in before] == before
    assert sum(r.state in ("complete", "stopped", "infeasible") for r in after) == 3
    assert "Pareto front" in command("front", "run", folder=tmp_path).stdout
    again = command("search", "--budget", "500", "--out", "run", "--storage", "sqlite:///other.db", "--protocol",
                    quick_protocol(tmp_path), "--sampler", "tpe", folder=tmp_path, check=False)  # fmt: skip
    assert again.returncode == 2
    assert "kept elsewhere" in again.stderr


def test_kill_after_the_front_is_fixed_does_not_fix_it_again(tmp_path):
    run = tmp_path / "run"
    search = slow_search(tmp_path, "--budget", "500", "--trials", 3)
    wait_for((run / "front.json").exists, search)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    fixed = json.loads((run / "front.json").read_text())
    assert fixed["state"] == "fixed on validation"
    assert all(member["test"] is None for member in fixed["members"])
    known = load_study(run / "study.db").user_attrs
    command("resume", "run", folder=tmp_path)
    final = json.loads((run / "front.json").read_text())
    for before, after in zip(fixed["members"], final["members"], strict=True):
        assert {k: v for k, v in before.items() if k != "test"} == {k: v for k, v in after.items() if k != "test"}
    assert final["best"] == fixed["best"]
    now = load_study(run / "study.db").user_attrs
    kept = {k: v for k, v in known.items() if k.startswith("final/")}
    assert kept
    assert {k: now[k] for k in kept} == kept


def test_ctrl_c_ends_in_order_and_is_resumed(tmp_path):
    run = tmp_path / "run"
    search = slow_search(tmp_path, "--budget", "1kb", "--trials", 4)
    wait_for(lambda: len(finished_files(run)) >= 1, search)
    children = [(c.pid, c.create_time()) for c in psutil.Process(search.pid).children(recursive=True)]
    os.killpg(search.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, err = search.communicate(timeout=600)
    assert search.returncode == 130
    assert err == "budgetopt: error: interrupted: go on with 'budgetopt resume run'\n"
    assert not [pid for pid, created in children if alive(pid, created)]
    assert "not finished" in command("front", "run", folder=tmp_path).stdout
    command("resume", "run", "--candidates", 3, folder=tmp_path)
    assert json.loads((run / "front.json").read_text())["candidates"] == 3
    assert 1 <= len(result.read(run).front) <= 3
    assert "run is finished: nothing was run" in command("resume", "run", "--trials", 9, folder=tmp_path).stdout
    for name in ("front.csv", "front.png"):  # as if killed just before the reports
        (run / name).unlink()
    command("resume", "run", folder=tmp_path)
    assert (run / "front.csv").exists()
    assert (run / "front.png").exists()


def test_death_of_a_worker_costs_one_trial_at_most(tmp_path):
    """Tune mostly starts the trial again in another worker; where it does not, one trial has failed, no more."""
    run = tmp_path / "run"
    search = slow_search(tmp_path, "--budget", "1kb", "--trials", 4)

    def victims():
        children = psutil.Process(search.pid).children(recursive=True)
        return [c for c in children if "ImplicitFunc" in c.name() or any("ImplicitFunc" in a for a in c.cmdline())]

    wait_for(lambda: len(finished_files(run)) >= 1 and victims(), search)
    victims()[0].kill()
    out, err = search.communicate(timeout=600)
    assert search.returncode == 0, out + err
    ended = [r for r in records(load_study(run / "study.db")) if r.state not in ("skipped", "waiting")]
    assert [r.message for r in ended if r.state == "failed"] in ([], ["its worker process died"])
    assert {r.state for r in ended} <= {"complete", "stopped", "infeasible", "failed"}
    assert len(ended) == 4
