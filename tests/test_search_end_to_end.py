"""Whole runs of the command line on real digits, with real processes."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from command_line import QUICK, SCRIPT, alive, command, quick_protocol, start

import budgetopt
from budgetopt import api, result
from budgetopt.front import non_dominated
from budgetopt.search.study import load as load_study
from budgetopt.search.study import records

pytestmark = pytest.mark.long


def scratch_folders(process):
    return set(Path(tempfile.gettempdir()).glob(f"bo-{process.pid}-*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run to the end, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    search = start(
        "search", "--budget", "2kb", "--trials", 8, "--workers", 2, "--seed", 3, "--protocol", quick_protocol(folder),
        "--time-limit", "20min", "--out", "run", folder=folder,
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
    left = [pid for pid, created in children if alive(pid, created)]
    return {"run": folder / "run", "out": out, "err": err, "left": left, "scratch": scratch_folders(search)}


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
    assert found.trials == sum(r.state == "complete" for r in records(load_study(finished["run"] / "study.db")))
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
        # digits are balanced; what some networks take for the few classes that they know is not
        assert figure["macro_f1"] == pytest.approx(figure["accuracy"], abs=0.05 if figure["accuracy"] > 0.8 else 0.2)
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
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
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
            "--candidates", 2, "--out", name, "--seed", 5, folder=tmp_path,
        )  # fmt: skip
        ended = records(load_study(tmp_path / name / "study.db"))
        sequences.append([(r.state, r.allocation, r.bytes, r.accuracy) for r in ended])
    assert sequences[0] == sequences[1]
    assert any(a is not None and a.objective == "coreset" for _, a, _, _ in sequences[0])  # always in the space
    first, second = (result.read(tmp_path / name) for name in ("first", "second"))
    assert [p.accuracy for p in first.front] == [p.accuracy for p in second.front]


def test_trials_that_fail_are_recorded_and_the_search_goes_on(tmp_path):
    (tmp_path / "explodes.toml").write_text('method = "dm"\nsteps = 9\nlr_image = 1e38\nbank = 3\n')
    command(
        "search", "--budget", "1kb", "--trials", 12, "--workers", 2, "--objective", "explodes.toml", "--out", "run",
        "--candidates", 2, "--protocol", quick_protocol(tmp_path), folder=tmp_path,
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
