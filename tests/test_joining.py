"""A second process lends its cores to a run that another one drives: real processes, real Ray nodes."""

import json
import signal

import pytest
from command_line import command, start, wait_for

from budgetopt import api
from budgetopt.errors import InputError
from budgetopt.search import config, engine
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import load, records

CONFIG, _ = config.resolve("2kb", "digits", trials=1)


def ended(run):
    return [r for r in records(load(RunFolder(run).study)) if r.state in ("complete", "stopped", "failed")]


def most_at_once(run):
    """Trials that were under way at the same time, by what their workers say."""
    found = [r.rungs[max(r.rungs)] for r in records(load(RunFolder(run).study)) if r.rungs]
    spans = [(rung["began"], rung["began"] + rung["seconds"]) for rung in found]
    return max((sum(b <= begin < e for b, e in spans) for begin, _ in spans), default=0)


@pytest.mark.long
def test_a_joiner_works_beside_the_driver_and_ends_with_it(tmp_path):
    """One worker each; the first joiner is stopped with its trial, which loses nothing that is finished."""
    (tmp_path / "quick.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 300\n')
    limits = ["--budget", "2kb", "--trials", "500", "--time-limit", "10min", "--protocol", "quick.toml"]
    run, join = tmp_path / "run", ("resume", "run", "--join", "--workers", "1")
    driver = start("search", *limits, "--workers", "1", "--out", "run", folder=tmp_path)
    wait_for((run / "driver.json").exists, driver)
    assert (run / "driver.json").stat().st_mode & 0o077 == 0  # it holds a password
    refused = command("resume", "run", folder=tmp_path, check=False)
    assert refused.returncode == 2
    assert "budgetopt resume run --join" in refused.stderr
    first = start(*join, folder=tmp_path)
    wait_for(lambda: most_at_once(run) == 2, driver)
    first.send_signal(signal.SIGTERM)
    assert "1 worker lent to the run 'run'" in "".join(first.communicate(timeout=600))
    second = start(*join, folder=tmp_path)
    assert "1 worker lent" in second.stdout.readline()
    so_far = len(ended(run))
    wait_for(lambda: len(ended(run)) > so_far + 1, driver)
    driver.send_signal(signal.SIGINT)
    printed = "".join(driver.communicate(timeout=600))
    assert driver.returncode == 130, printed
    assert "".join(second.communicate(timeout=600)) == ""
    assert second.returncode == 0
    assert not (run / "driver.json").exists()
    found = ended(run)
    assert len(found) == len({r.allocation for r in found}) > so_far
    assert sum(r.state == "failed" for r in found) <= 1  # of the joiner that was stopped
    assert most_at_once(run) == 2
    assert all((run / r.file).stat().st_size == r.bytes for r in found if r.state == "complete")


def test_where_nobody_drives_the_run_it_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no run folder at"):
        api.join(tmp_path / "absent")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        api.join(run)
    (run / "config.json").write_text(CONFIG.model_dump_json())
    with pytest.raises(InputError, match=r"nobody drives the run .* now: 'budgetopt resume .*' does"):
        api.join(run)
    (run / "driver.json").write_text(json.dumps({"address": "127.0.0.1:1", "token": None, "run": str(run)}))
    with pytest.raises(InputError, match="nobody drives the run"):  # it was killed
        api.join(run)
    (run / "driver.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*driver\.json"):
        api.join(run)
    with pytest.raises(InputError, match="the workers must be positive, got 0"):
        api.join(run, workers=0)


def test_only_the_driver_has_limits(tmp_path):
    (tmp_path / "run").mkdir()
    for option in ("--trials", "--patience", "--candidates"):
        done = command("resume", "run", "--join", option, 3, folder=tmp_path, check=False)
        assert done.returncode == 2
        assert f"{option} 3 is for the process that drives the run" in done.stderr


@pytest.mark.parametrize(
    ("workers", "gpus", "before", "after", "expected"),
    [
        (1, 0, {"CPU": 1}, {"CPU": 1}, (1, 1)),  # alone: nothing is proposed ahead
        (1, 0, {"CPU": 1}, {"CPU": 3}, (1, 3 + 2)),
        (4, 0, {"CPU": 4}, {"CPU": 2}, (4 + 2, 2 + 1)),  # a machine was lost
        (2, 0, {"CPU": 8}, {"CPU": 8}, (2, 2)),  # Ray has room for more: what is proposed runs
        (4, 1, {"CPU": 16, "GPU": 1}, {"CPU": 32, "GPU": 2}, (4 + 2, 8 + 4)),
    ],
)
def test_places_follow_the_machines(monkeypatch, workers, gpus, before, after, expected):
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: before)
    places = engine.Places(workers, gpus)
    first = places()
    monkeypatch.setattr(ray, "cluster_resources", lambda: after)
    places._looked = -1e9  # a second later
    assert (first, places()) == expected
