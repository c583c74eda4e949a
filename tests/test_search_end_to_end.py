"""Whole runs of the command line on real digits, one killed and resumed, with real processes and real signals."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import budgetopt
from budgetopt import api, result
from budgetopt.errors import InputError
from budgetopt.front import non_dominated
from budgetopt.search.folder import RunFolder
from budgetopt.search.study import load as load_study
from budgetopt.search.study import record, records

pytestmark = pytest.mark.long

# A protocol that trains in a tenth of a second; nothing else about the runs is smaller than life.
QUICK = """network = "convnet"
width = 8
steps = 30
search_seeds = 2
augment = { shift = 0.1 }
"""
SLOW = QUICK.replace("steps = 30", "steps = 150")
SCRIPT = str(Path(sys.executable).with_name("budgetopt"))


def command(*arguments, folder, check=True):
    done = subprocess.run([SCRIPT, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=900)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def start(*arguments, folder):
    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def quick_protocol(folder, text=QUICK):
    path = folder / "quick.toml"
    path.write_text(text)
    return path


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def states(run):
    return [r.state for r in records(load_study(run / "study.db"))]


def running(run):
    """Trials that run now; none while there is no study yet."""
    try:
        return [r for r in records(load_study(run / "study.db")) if r.state == "running"]
    except InputError:
        return []


def finished_files(run):
    return list((run / "trials").glob("*.bopt"))


def scratch_folders(process):
    return set(Path(tempfile.gettempdir()).glob(f"bo-{process.pid}-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run to the end, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    search = start(
        "search", "--budget", "2kb", "--trials", 8, "--workers", 2, "--seed", 3, "--protocol", quick_protocol(folder),
        "--time-limit", "4min", "--out", "run", folder=folder,
    )  # fmt: skip
    watched, children, scratch = psutil.Process(search.pid), set(), set()
    while search.poll() is None:
        try:
            scratch |= scratch_folders(search)
            children |= {(c.pid, c.create_time()) for c in watched.children(recursive=True)}
        except psutil.NoSuchProcess:
            break
        time.sleep(0.2)
    out, err = search.communicate()
    assert search.returncode == 0, out + err
    assert len(scratch) == 1  # it had one while it ran
    left = [pid for pid, created in children if _alive(pid, created)]
    return {"run": folder / "run", "out": out, "err": err, "left": left, "scratch": scratch_folders(search)}


def _alive(pid, created):
    for _ in range(50):
        try:
            process = psutil.Process(pid)
            if process.create_time() != created or process.status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.1)
    return True


def test_search_prints_its_plan_and_only_its_own_lines(finished):
    out = finished["out"]
    for text in ("budget: 2,000 bytes (16,000 bits)", "dataset: digits", "protocol: custom", "objectives: coreset, dm"):
        assert text in out
    assert "search space: image" in out
    assert "workers: 2" in out
    assert "Pareto front of digits" in out
    assert "all data" in out
    assert "whole training set, losslessly coded" in out
    assert finished["err"] == ""


def test_search_leaves_no_process_and_no_temporary_folder(finished):
    assert finished["left"] == []
    assert finished["scratch"] == set()


def test_run_folder_holds_all_that_is_promised(finished):
    names = {p.name for p in finished["run"].iterdir()}
    promised = {"front.json", "front.csv", "front.png", "best.bopt", "best.png", "study.db", "config.json"}
    assert promised | {"versions.json", "front", "trials"} <= names
    config = json.loads((finished["run"] / "config.json").read_text())
    assert (config["seed"], config["budget"], config["dataset"]) == (3, 2000, "digits")
    assert {"torch", "ray", "optuna", "constriction"} <= json.loads(
        (finished["run"] / "versions.json").read_text()
    ).keys()


def test_explain_reads_any_run_and_writes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished["run"].rglob("*") if "study.db" not in path.name}
    found = api.explain(finished["run"])
    assert found.trials == states(finished["run"]).count("complete")
    assert {law.method for law in found.laws} == {"coreset", "dm"}
    accuracies = [spot.accuracy for spot in found.spots]
    assert accuracies == sorted(accuracies)
    assert all(spot.low <= spot.accuracy <= spot.high for spot in found.spots)
    assert max(spot.bytes for spot in found.spots) == pytest.approx(2000)
    printed = command("explain", "run", folder=finished["run"].parent).stdout
    for text in (
        "expected front",
        "sweet spot: ",
        "log-odds of accuracy",
        f"({found.trials} trials)",
        "one more trial",
    ):
        assert text in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_front_is_fixed_on_validation_and_bytes_are_the_files(finished):
    found = result.read(finished["run"])
    sizes = np.array([p.bytes for p in found.front])
    validation = np.array([p.validation for p in found.front])
    assert [p.path.stat().st_size for p in found.front] == sizes.tolist()
    assert (sizes <= 2000).all()
    assert non_dominated(sizes, validation).all()
    assert found.best.validation == validation.max()
    assert (finished["run"] / "best.bopt").read_bytes() == found.best.path.read_bytes()
    table = json.loads((finished["run"] / "front.json").read_text())
    for member in table["members"]:
        assert len(member["validation"]["accuracies"]) >= 5
        assert len(member["test"]["accuracies"]) >= 5
        assert member["validation"]["samples"] == 210
        assert member["test"]["samples"] == 540
    figures = [member[part] for member in table["members"] for part in ("validation", "test")]
    for figure in [*figures, table["references"]["all data"]]:
        assert figure["macro_f1"] == pytest.approx(figure["accuracy"], abs=0.05)  # digits are balanced
        assert np.mean(figure["recalls"]) == pytest.approx(figure["accuracy"], abs=0.02)
        assert len(figure["recalls"]) == 10
    assert found.test_evaluations == len(found.front) + 1
    assert 0 < found.hypervolume <= 1


def test_study_records_every_trial_with_its_reports(finished):
    study = load_study(finished["run"] / "study.db")
    ended = [r for r in records(study) if r.state not in ("skipped", "waiting")]
    assert len(ended) == 8
    assert {r.state for r in ended} <= {"complete", "stopped", "infeasible"}
    for one in ended:
        if one.state == "complete":
            assert (finished["run"] / one.file).stat().st_size == one.bytes
            assert study.trials[one.number].values == pytest.approx([np.log2(one.bytes), one.accuracy])
            assert 0 in one.rungs
    assert any(r.allocation.objective == "coreset" for r in ended)


def test_front_pick_inspect_export_work_on_the_run(finished, tmp_path):
    run = finished["run"]
    assert "best" in command("front", run, folder=tmp_path).stdout
    smallest = min(p.bytes for p in result.read(run).front)
    picked = command("pick", run, "--budget", smallest, "--out", "small.bopt", folder=tmp_path)
    assert f"{smallest:,} bytes" in picked.stdout
    assert (tmp_path / "small.bopt").stat().st_size == smallest
    assert "in all" in command("inspect", "small.bopt", folder=tmp_path).stdout
    command("export", "small.bopt", "--to", "npz", folder=tmp_path)
    with np.load(tmp_path / "small.npz") as archive:
        assert np.array_equal(archive["x"], budgetopt.load(tmp_path / "small.bopt").samples)


def test_eval_inside_the_run_needs_no_dataset_and_repeats_the_report(finished):
    found = result.read(finished["run"])
    again = api.evaluate(found.best.path)
    assert again.accuracy == pytest.approx(found.best.accuracy, abs=1e-9)
    assert result.read(finished["run"]).test_evaluations == found.test_evaluations + 1


def test_eval_works_on_the_file_alone(finished, tmp_path):
    """Only the file and the receiver's own test data: no run folder, no cache, no training split."""
    from budgetopt.data.digits import Digits

    found = result.read(finished["run"])
    shutil.copy(found.best.path, tmp_path / "received.bopt")
    x, y = Digits().test_arrays()
    np.savez(tmp_path / "mine.npz", x_test=x, y_test=y)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "nobody"),
        "XDG_CACHE_HOME": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [SCRIPT, "eval", "received.bopt", "--dataset", "mine.npz"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    accuracy = float(done.stdout.split("test accuracy ")[1].split("%")[0]) / 100
    low, high = found.best.interval
    assert low - 1e-4 <= accuracy <= high + 1e-4


def test_one_worker_repeats_the_whole_sequence(tmp_path):
    protocol = quick_protocol(tmp_path)
    sequences = []
    for name in ("first", "second"):
        command(
            "search", "--budget", "1kb", "--trials", 6, "--workers", 1, "--protocol", protocol, "--objective", "dm",
            "--out", name, "--seed", 5, folder=tmp_path,
        )  # fmt: skip
        ended = records(load_study(tmp_path / name / "study.db"))
        sequences.append([(r.state, r.allocation, r.bytes, r.accuracy) for r in ended])
    assert sequences[0] == sequences[1]
    assert any(a is not None and a.objective == "coreset" for _, a, _, _ in sequences[0])  # always in the space
    first, second = (result.read(tmp_path / name) for name in ("first", "second"))
    assert [p.accuracy for p in first.front] == [p.accuracy for p in second.front]


def test_kill_of_the_driver_loses_no_finished_trial(tmp_path):
    run = tmp_path / "run"
    arguments = ("search", "--budget", "2kb", "--trials", 7, "--workers", 2, "--out", "run", "--time-limit", "10min")
    search = start(*arguments, "--protocol", quick_protocol(tmp_path, SLOW), folder=tmp_path)
    wait_for(lambda: len(finished_files(run)) >= 2 and "complete" in states(run))
    search.send_signal(signal.SIGKILL)
    search.communicate()
    before = [r for r in records(load_study(run / "study.db")) if r.state in ("complete", "stopped")]
    assert before
    resumed = command("resume", "run", folder=tmp_path)
    assert "Pareto front" in resumed.stdout
    after = records(load_study(run / "study.db"))
    assert [after[r.number] for r in before] == before
    ended = [r for r in after if r.state in ("complete", "stopped", "infeasible", "failed")]
    assert len(ended) == 7
    assert len({r.allocation for r in ended}) == 7  # nothing is counted twice
    interrupted = [r.number for r in after if r.state == "interrupted"]
    again = [t.user_attrs["restart_of"] for t in load_study(run / "study.db").trials if "restart_of" in t.user_attrs]
    assert sorted(again) == interrupted  # each is in the queue again, once; it waits its turn behind the design
    assert "running" not in states(run)


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_kill_of_a_run_whose_study_is_elsewhere(kind, tmp_path, request, monkeypatch):
    url = request.getfixturevalue("postgresql") if kind == "postgresql" else f"journal:///{tmp_path}/runs.journal"
    monkeypatch.setenv("BUDGETOPT_STORAGE", url)  # which has the password; the folder does not
    search = start(
        "search", "--budget", "500", "--trials", 4, "--workers", 2, "--out", "run", "--storage", url,
        "--protocol", quick_protocol(tmp_path), folder=tmp_path,
    )  # fmt: skip
    run = tmp_path / "run"
    wait_for(lambda: finished_files(run))
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert not (run / "study.db").exists()
    assert not any("s3cret" in path.read_text(errors="replace") for path in run.glob("*.json"))
    before = [r for r in records(load_study(RunFolder(run).study)) if r.state in ("complete", "stopped")]
    resumed = command("resume", "run", folder=tmp_path)
    assert "Pareto front" in resumed.stdout
    after = records(load_study(RunFolder(run).study))
    assert [after[r.number] for r in before] == before
    assert sum(r.state in ("complete", "stopped", "infeasible") for r in after) == 4
    assert "Pareto front" in command("front", "run", folder=tmp_path).stdout
    again = command("search", "--budget", "500", "--out", "run", "--storage", "sqlite:///other.db", "--protocol",
                    quick_protocol(tmp_path), folder=tmp_path, check=False)  # fmt: skip
    assert again.returncode == 2
    assert "kept elsewhere" in again.stderr


def test_a_killed_trial_goes_on_from_its_last_rung(tmp_path):
    """What it reported before the kill comes again to the last digit of its seconds: it was not worked for twice."""
    (tmp_path / "dm.toml").write_text('method = "dm"\nsteps = 450\nbank = 0\nreal_batch = 64\n')
    (tmp_path / "space.toml").write_text(
        'selection = ["random"]\n[ipc]\nmin = 2\nmax = 3\n[[transform]]\nname = "identity"\n'
        '[[quantizer]]\nfamily = "uniform"\nlevels = [2]\nclipping = ["minmax"]\n'
    )
    run, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    search = start(
        "search", "--budget", "2kb", "--workers", 1, "--out", "run", "--time-limit", "10min", "--trials", 4,
        "--objective", "dm.toml", "--space", "space.toml", "--protocol", quick_protocol(tmp_path), folder=tmp_path,
    )  # fmt: skip

    def killable():
        """A DM trial that is past its first rung; a coreset's checkpoint, too, is there for a moment."""
        return any(r.rungs and r.allocation.objective == "dm" for r in running(run))

    wait_for(killable)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert len(list(checkpoints.glob("*.pt"))) == 1
    command("resume", "run", folder=tmp_path)
    after = load_study(run / "study.db").trials
    (again,) = (t for t in after if "restart_of" in t.user_attrs)
    twin = after[again.user_attrs["restart_of"]]
    assert record(again).state in ("complete", "stopped")
    kept = {name: value for name, value in twin.user_attrs.items() if name.startswith("rung/")}
    assert kept
    assert {name: again.user_attrs[name] for name in kept} == kept
    assert not checkpoints.exists()


def test_kill_after_the_front_is_fixed_does_not_fix_it_again(tmp_path):
    run = tmp_path / "run"
    search = start(
        "search", "--budget", "500", "--trials", 4, "--workers", 2, "--out", "run",
        "--protocol", quick_protocol(tmp_path, SLOW), folder=tmp_path,
    )  # fmt: skip
    wait_for((run / "front.json").exists, seconds=200)
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
    search = start(
        "search", "--budget", "1kb", "--trials", 5, "--workers", 2, "--out", "run",
        "--protocol", quick_protocol(tmp_path, SLOW), folder=tmp_path,
    )  # fmt: skip
    wait_for(lambda: len(finished_files(run)) >= 1)
    children = [(c.pid, c.create_time()) for c in psutil.Process(search.pid).children(recursive=True)]
    os.killpg(search.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, err = search.communicate(timeout=60)
    assert search.returncode == 130
    assert err == "budgetopt: error: interrupted: go on with 'budgetopt resume run'\n"
    assert not [pid for pid, created in children if _alive(pid, created)]
    assert "not finished" in command("front", "run", folder=tmp_path).stdout
    command("resume", "run", folder=tmp_path)
    assert result.read(run).front
    for name in ("front.csv", "front.png"):  # as if killed just before the reports
        (run / name).unlink()
    command("resume", "run", folder=tmp_path)
    assert (run / "front.csv").exists()
    assert (run / "front.png").exists()


def test_death_of_a_worker_costs_one_trial_at_most(tmp_path):
    """Tune mostly starts the trial again in another worker; where it does not, one trial has failed, no more."""
    run = tmp_path / "run"
    search = start(
        "search", "--budget", "1kb", "--trials", 6, "--workers", 2, "--out", "run",
        "--protocol", quick_protocol(tmp_path, SLOW), folder=tmp_path,
    )  # fmt: skip

    def victims():
        children = psutil.Process(search.pid).children(recursive=True)
        return [c for c in children if "ImplicitFunc" in c.name() or any("ImplicitFunc" in a for a in c.cmdline())]

    wait_for(lambda: len(finished_files(run)) >= 1 and victims())
    victims()[0].kill()
    out, err = search.communicate(timeout=250)
    assert search.returncode == 0, out + err
    ended = [r for r in records(load_study(run / "study.db")) if r.state not in ("skipped", "waiting")]
    assert [r.message for r in ended if r.state == "failed"] in ([], ["its worker process died"])
    assert {r.state for r in ended} <= {"complete", "stopped", "infeasible", "failed"}
    assert len(ended) == 6


def test_trials_that_fail_are_recorded_and_the_search_goes_on(tmp_path):
    (tmp_path / "explodes.toml").write_text('method = "dm"\nsteps = 9\nlr_image = 1e38\nbank = 3\n')
    command(
        "search", "--budget", "1kb", "--trials", 12, "--workers", 2, "--objective", "explodes.toml", "--out", "run",
        "--protocol", quick_protocol(tmp_path), folder=tmp_path,
    )  # fmt: skip
    ended = records(load_study(tmp_path / "run" / "study.db"))
    failed = [r for r in ended if r.state == "failed"]
    assert failed
    assert all(r.message for r in failed)
    assert all(r.allocation.objective == "explodes" for r in failed)
    assert {p.allocation.objective for p in result.read(tmp_path / "run").front} == {"coreset"}


def test_search_where_every_trial_fails_says_why(tmp_path):
    protocol = quick_protocol(tmp_path, QUICK + "lr = 1e30\n")
    hard = 'selection = ["random"]\ntransform = ["identity"]\n[[quantizer]]\nfamily = "uniform"\nlevels = [2, 3, 4]\n'
    (tmp_path / "hard.toml").write_text(hard)
    for space, says in (("hard.toml", "all 3 trials failed"), ("image", "the teacher of the soft labels: ")):
        done = command(
            "search", "--budget", "1kb", "--trials", 3, "--workers", 2, "--protocol", protocol, "--space", space,
            "--out", f"run-{space}", folder=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith(f"budgetopt: error: {says}")
        assert "diverged" in done.stderr


def test_every_method_starts_from_the_given_set(finished, tmp_path):
    """A search from `--init` gives, for a 0-step coreset of all samples, that very set again."""
    best = result.read(finished["run"]).best
    (tmp_path / "small.npz").write_bytes(b"")
    loaded = budgetopt.load(best.path)
    np.savez(tmp_path / "small.npz", x=loaded.samples, y=loaded.labels)
    per_class = max(loaded.packed.counts)
    done = command(
        "trial", "--init", "small.npz", "--ipc", per_class, "--levels", 256, "--out", "same.bopt",
        "--protocol", quick_protocol(tmp_path), folder=tmp_path,
    )  # fmt: skip
    assert "bytes" in done.stdout
    again = budgetopt.load(tmp_path / "same.bopt")
    step = float(loaded.samples.max() - loaded.samples.min()) / 255
    assert np.abs(again.samples - loaded.samples).max() <= step
    assert hashlib.sha256(again.labels.tobytes()).digest() == hashlib.sha256(loaded.labels.tobytes()).digest()
