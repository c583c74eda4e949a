"""Trainings of the final phase are kept, each at once; the reference of the whole training set: exact, or not given."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch

from budgetopt.allocation import Allocation
from budgetopt.data import Dataset
from budgetopt.data.npz import NpzFile
from budgetopt.errors import BudgetoptError, Interrupted
from budgetopt.evaluation import TrainingSet
from budgetopt.packing import pack
from budgetopt.scores import Evaluation, Score
from budgetopt.search import engine
from budgetopt.search.config import resolve
from budgetopt.search.engine import gpu_share
from budgetopt.search.finish import Final, _figure, _fix, _test, lossless_bytes
from budgetopt.search.folder import RunFolder
from budgetopt.search.progress import Progress
from budgetopt.search.study import Record
from budgetopt.trial import TrialContext, initial_representation


@pytest.fixture
def config():
    return resolve("30kb")[0]


class Trainer:
    """Stands for the engine: a score that follows from subject and seed, for groups of seeds."""

    def __init__(self, monkeypatch, most=99, failing=(), diverging=()):
        self.groups, self.most, self.failing, self.diverging = [], most, failing, diverging
        monkeypatch.setattr(engine, "evaluate_many", self)

    def __call__(self, jobs, test, protocol, workers, gpus, done, failed, stop):
        for position, (subject, seeds) in enumerate(jobs[: self.most]):
            self.groups.append((subject, list(seeds)))
            if subject in self.failing:
                failed(position, "killed for memory", False)
            elif subject in self.diverging:
                failed(position, "training diverged", True)
            else:
                done(position, [self.score(subject, seed) for seed in seeds])

    @staticmethod
    def score(subject, seed):
        length = len(subject) if isinstance(subject, bytes) else len(subject.y)
        return Score((seed + length) % 100 / 100, seed % 100 / 100, (seed % 100 / 100, None, 1.0))


class Listener:
    def __init__(self):
        self.lines = []

    def message(self, line):
        self.lines.append(line)


@pytest.fixture
def final(config, digits, tmp_path):
    study = optuna.create_study()
    return Final(config, RunFolder(tmp_path), study, digits, Progress(60, 1), Listener(), lambda: False)


SUBJECTS = {"a": (b"aa", [1, 2, 3, 4, 5]), "b": (b"bbb", [6, 7, 8, 9, 10])}
EXPECTED = {
    name: Evaluation(tuple(Trainer.score(subject, seed) for seed in seeds), 210)
    for name, (subject, seeds) in SUBJECTS.items()
}


def test_scores_of_the_final_phase_are_kept_and_not_measured_again(final, digits, monkeypatch):
    trainer = Trainer(monkeypatch)
    assert final.trainings(SUBJECTS, digits.val, "validation") == EXPECTED
    assert trainer.groups == [(b"aa", [1, 2, 3]), (b"aa", [4, 5]), (b"bbb", [6, 7, 8]), (b"bbb", [9, 10])]
    assert final.study.user_attrs["final/validation/b/7"] == {
        "accuracy": 0.1,
        "macro_f1": 0.07,
        "recalls": [0.07, None, 1],
    }
    assert final.progress.final_done == final.progress.final_total == 10
    assert final.trainings(SUBJECTS, digits.val, "validation") == EXPECTED
    assert len(trainer.groups) == 4
    final.trainings(SUBJECTS, digits.val, "test")  # another part is another matter
    assert len(trainer.groups) == 8


def test_an_interrupted_final_phase_goes_on(final, digits, monkeypatch):
    Trainer(monkeypatch, most=1)
    with pytest.raises(Interrupted):
        replace(final, interrupted=lambda: True).trainings(SUBJECTS, digits.val, "test")
    trainer = Trainer(monkeypatch)
    assert final.trainings(SUBJECTS, digits.val, "test") == EXPECTED
    assert trainer.groups == [(b"aa", [4, 5]), (b"bbb", [6, 7, 8]), (b"bbb", [9, 10])]


def test_a_resumed_run_knows_how_long_a_training_takes():
    """Or it would take trials into the time of the final phase."""
    rungs = {0: {"training_seconds": 3.0}, 1: {"training_seconds": 60.0}}
    older = {0: {"accuracy": 0.5}}  # of a version that did not keep it
    records = [
        Record(i, state, Allocation(ipc=i + 1), 9, 9, 0.5, 0.1, None, None, held)
        for i, (state, held) in enumerate(
            [("complete", rungs), ("stopped", rungs), ("complete", older), ("running", {})]
        )
    ]
    progress = Progress(3600, 2)
    assert progress.training_time() == 2.0
    progress.remember(records)
    assert progress.training_time() == 60.0
    assert [record.number for record in progress.ended] == [0, 1, 2]
    assert progress.final_seconds(16, 5) > 4900


@pytest.mark.parametrize("candidates", [1, 3, 16])
def test_only_candidates_are_retrained(final, monkeypatch, candidates):
    """Ten files, each larger and more accurate than the one before; the reference on the lossless set is left out."""
    monkeypatch.setattr("budgetopt.search.finish.lossless_bytes", lambda *_: None)
    config = final.config.model_copy(update={"candidates": candidates})
    final = replace(final, config=config, progress=Progress(1e6, 1))
    final.study.set_user_attr("smallest_bytes", 10)
    final.folder.path.joinpath("trials").mkdir()
    records = []
    for number in range(10):
        data = bytes(20 * 2**number)
        final.folder.path.joinpath(f"trials/{number}.bopt").write_bytes(data)
        held = (len(data), 10, 0.1 + number / 20, 0.001, f"trials/{number}.bopt", None, {})
        records.append(Record(number, "complete", Allocation(ipc=number + 1), *held))
    trainer = Trainer(monkeypatch)
    table = _fix(final, records)
    trained = {len(subject) for subject, _ in trainer.groups}
    assert len(trained) == table["candidates"] == table["candidates_near_front"] == min(candidates, 10)
    assert 20 * 2**9 in trained
    assert {member["bytes"] for member in table["members"]} <= trained
    assert final.observer.lines[0] == f"search ended: {min(candidates, 10)} candidates retrained on validation"


def test_a_failed_training_costs_its_file(final, digits, monkeypatch):
    Trainer(monkeypatch, failing=(b"bbb",))
    assert final.trainings(SUBJECTS, digits.val, "test") == {"a": EXPECTED["a"]}
    assert final.observer.lines == ["training on b failed: killed for memory"] * 2
    Trainer(monkeypatch, diverging=(b"bbb",))
    assert final.trainings(SUBJECTS, digits.val, "test") == {"a": EXPECTED["a"], "b": None}


def fixed_front(final, *files):
    """Written, with a member for each of the contents; the last is the best."""
    final.folder.front.mkdir()
    final.study.set_user_attr("smallest_bytes", 1)
    members = []
    for number, data in enumerate(files):
        name = f"front/{number}.bopt"
        (final.folder.path / name).write_bytes(data)
        members.append({"file": name, "bytes": len(data), "validation": {"accuracy": 0.5 + number / 10}})
    return {"state": "fixed on validation", "members": members, "best": len(files) - 1, "references": {}}


def test_a_file_on_which_training_diverges_leaves_the_front(final, monkeypatch):
    """Known by the seeds of the test split alone; or the run could never end, since it would diverge again."""
    Trainer(monkeypatch, diverging=(b"cccc",))
    _test(final, fixed_front(final, b"aa", b"bbb", b"cccc"))
    table = json.loads(final.folder.front_json.read_text())
    assert [member["file"] for member in table["members"]] == ["front/0.bopt", "front/1.bopt"]
    assert all(member["test"]["accuracies"] for member in table["members"])
    assert (table["state"], table["best"], table["test_evaluations"]) == ("final", 1, 2 + 1)
    assert final.folder.best.read_bytes() == b"bbb"
    assert sorted(path.name for path in final.folder.front.iterdir()) == ["0.bopt", "1.bopt"]
    assert any("front/2.bopt is left out of the front" in line for line in final.observer.lines)


def test_where_no_file_trains_the_run_says_so(final, monkeypatch):
    Trainer(monkeypatch, diverging=(b"aa", b"bbb"))
    with pytest.raises(BudgetoptError, match="diverges on every file of the front"):
        _test(final, fixed_front(final, b"aa", b"bbb"))
    assert not final.folder.front_json.exists()
    assert (final.folder.path / "front/0.bopt").exists()


def test_a_training_that_may_succeed_next_time_is_tried_again(final, monkeypatch):
    Trainer(monkeypatch, failing=(b"aa",))
    with pytest.raises(BudgetoptError, match="a training on the test split failed: try again"):
        _test(final, fixed_front(final, b"aa", b"bbb"))
    assert not final.folder.front_json.exists()


def test_runs_that_kept_accuracies_alone_are_resumed(final, digits, monkeypatch):
    """What is there stays as it is; a group of which a training is missing is trained as a whole."""
    for seed in (1, 2, 3, 4):
        final.study.set_user_attr(f"final/test/a/{seed}", 0.5)
    trainer = Trainer(monkeypatch)
    found = final.trainings(SUBJECTS, digits.val, "test")
    assert trainer.groups[0] == (b"aa", [4, 5])
    assert found["a"].accuracies == (0.5, 0.5, 0.5, 0.5, 0.07)
    assert found["b"] == EXPECTED["b"]
    figure = json.loads(json.dumps(_figure(found["a"])))
    assert (figure["macro_f1"], figure["recalls"]) == (None, [])


def test_figures_of_the_front_hold_all_measures():
    figure = json.loads(json.dumps(_figure(EXPECTED["a"])))
    assert figure["accuracy"] == pytest.approx(0.05)
    assert figure["macro_f1"] == pytest.approx(0.03)
    assert figure["recalls"] == [pytest.approx(0.03), None, 1.0]
    assert (len(figure["accuracies"]), figure["samples"]) == (5, 210)


def test_lossless_reference_is_an_allocation_of_the_space(config, digits):
    """All samples at 17 levels, identity and minmax: the search may choose what the reference line shows."""
    size = lossless_bytes(digits, config)
    context = TrialContext(digits.train, digits.val, digits.spec, config.protocol, config.objectives)
    everything = Allocation(ipc=max(digits.spec.class_counts), levels=17)
    representation = initial_representation(context, everything, torch.device("cpu"))
    packed = representation.packed()
    # the same samples in another order inside a class: coders that learn on the way differ by a little
    assert len(pack(packed)) == pytest.approx(size, rel=0.005)
    order = np.lexsort(packed.decode().reshape(len(digits.train), -1).T)
    original = np.lexsort(digits.train.x.reshape(len(digits.train), -1).T)
    assert np.array_equal(packed.decode()[order], digits.train.x[original].astype(np.float32))


@pytest.mark.parametrize("shift", [0, -7, 3 * 2**24])
@pytest.mark.parametrize("kind", ["whole", "fractions", "many values"])
def test_lossless_reference_where_there_is_none(config, tmp_path, shift, kind):
    x = np.random.default_rng(0).integers(0, 300 if kind == "many values" else 200, (90, 6)).astype(np.float64)
    x = (x / 3 if kind == "fractions" else x) + shift
    y = np.arange(90) % 3
    np.savez(tmp_path / "a.npz", x_train=x.astype(np.float32), y_train=y, x_test=x.astype(np.float32), y_test=y)
    size = lossless_bytes(Dataset.prepare(NpzFile(tmp_path / "a.npz"), 0), config)
    assert (size is not None) == (kind == "whole" and abs(shift) < 2**24)


@pytest.mark.long
def test_workers_tell_what_would_fail_again(config, digits):
    """A training that diverges, beside a subject that cannot be read, which no worker should ever see."""
    spec, part = digits.spec, digits.val
    subject = TrainingSet(part.x, part.y, spec.classes, spec.mean, spec.std)
    protocol = config.protocol.model_copy(update={"steps": 10, "lr": 1e30})
    told = {}
    with engine.ray_session(1, 0, verbose=False):
        engine.evaluate_many(
            [(subject, [0, 1]), (b"broken", [0])], part, protocol, 1, 0, lambda *_: pytest.fail("it trained"),
            lambda position, message, for_good: told.update({position: (message, for_good)}), lambda: False,
        )  # fmt: skip
    assert "diverged" in told[0][0]
    assert told[0][1]
    assert not told[1][1]


SHARES = [(2, 0, 0.0), (4, 1, 0.25), (3, 2, 0.5), (2, 3, 1.0), (8, 2, 0.25)]


@pytest.mark.parametrize(("workers", "gpus", "share"), SHARES)
def test_every_worker_finds_a_place_on_a_gpu(workers, gpus, share):
    found = gpu_share(workers, gpus)
    assert found == share
    assert gpus == 0 or sum(int(1 / found) for _ in range(gpus)) >= workers


def test_a_front_is_finished_without_its_reference(final, digits, monkeypatch):
    """All data may take more memory than a worker has: that costs the line, not the run."""
    trainer = Trainer(monkeypatch)
    whole = len(digits.train)
    monkeypatch.setattr(
        engine,
        "evaluate_many",
        lambda jobs, test, protocol, workers, gpus, done, failed, stop: [
            failed(i, "killed for memory", False)
            if not isinstance(job[0], bytes) and len(job[0].y) == whole
            else done(i, [trainer.score(job[0], seed) for seed in job[1]])
            for i, job in enumerate(jobs)
        ],
    )
    (final.folder.path / "a.bopt").write_bytes(b"aa")
    _test(final, {"members": [{"file": "a.bopt", "bytes": 2}], "references": {"other": {"bytes": 3}}})
    table = json.loads(final.folder.front_json.read_text())
    assert table["state"] == "final"
    assert table["references"] == {"other": {"bytes": 3}}
    assert table["test_evaluations"] == 1
    assert any("training on all data failed: killed for memory" in line for line in final.observer.lines)


@pytest.mark.parametrize("repeated", [0, 3])
def test_samples_of_both_parts_are_told(final, monkeypatch, repeated):
    Trainer(monkeypatch)
    monkeypatch.setattr(Dataset, "repeated", lambda self, test: repeated)
    (final.folder.path / "a.bopt").write_bytes(b"aa")
    _test(final, {"members": [{"file": "a.bopt", "bytes": 2}], "references": {}})
    assert json.loads(final.folder.front_json.read_text())["test_samples_in_training"] == repeated
    told = [line for line in final.observer.lines if line.startswith("warning: ")]
    assert len(told) == (repeated > 0)
    assert all("3 of 540 test samples are in the training part too" in line for line in told)
