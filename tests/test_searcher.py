import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from budgetopt.allocation import Allocation
from budgetopt.methods.selection import Selector
from budgetopt.objective import resolve, zero_step_coreset
from budgetopt.protocol import PRESETS
from budgetopt.report.display import Silent
from budgetopt.search import searcher as module
from budgetopt.search import study as studies
from budgetopt.search.parents import ParentChoice
from budgetopt.search.progress import Progress
from budgetopt.search.searcher import STARTUP, StudySearcher
from budgetopt.space import IpcRange, QuantizerChoice, SearchSpace
from budgetopt.trial import TrialContext, initial_bytes

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
MOST_IPC = 60
BUDGET = 6000
GIANT = Allocation(ipc=MOST_IPC, levels=256)
WIDE = SearchSpace(
    selection=("random",),
    transform=("identity", "standardize"),
    ipc=IpcRange(min=1, max=1000),
    quantizer=(
        QuantizerChoice(family="uniform", levels=(2, 16, 256), clipping=("minmax", "p5")),
        QuantizerChoice(family="apot", levels=(2, 15), clipping=("half",)),
    ),
)
NARROW = SearchSpace(
    selection=("random",),
    transform=("identity",),
    ipc=IpcRange(min=1, max=3),
    quantizer=(QuantizerChoice(family="uniform", levels=(2,), clipping=("minmax",)),),
)


class Watching(Silent):
    def __init__(self):
        self.ended = []

    def trial_ended(self, record):
        self.ended.append(record)


class Bench:
    """A searcher on a study of its own, without Tune."""

    def __init__(
        self, digits, path, space=WIDE, budget=BUDGET, trials=None, seed=0, sampler="tpe", patience=None, parents=False
    ):
        self.places = 100
        objectives = {"coreset": zero_step_coreset()}
        if parents:
            objectives["dm"] = resolve("dm")[1]
        context = TrialContext(digits.train, digits.val, digits.spec, PRESETS["glyph-1"], objectives, budget, seed)
        self.context, self.selector = context, Selector(digits.train, digits.spec)
        self.study = studies.load(path) if path.exists() else studies.create(path)
        self.progress, self.observer = Progress(100.0, 1), Watching()
        most = min(MOST_IPC, space.ipc.max)
        self.searcher = StudySearcher(
            self.study, space, context, self.selector, most, trials, self.progress, self.observer,
            path.parent / "checkpoints", lambda: self.places, sampler, patience,
            parents=ParentChoice(context, path.parent) if parents else None,
        )  # fmt: skip
        self.path = path

    def size(self, allocation):
        return initial_bytes(self.context, allocation, self.selector)

    def report(self, allocation, rung=0, last=False, **more):
        """What a worker would say: the accuracy is a fixed function of the allocation."""
        size = self.size(allocation)
        accuracy = 1 - 30 / (30 + size) + 0.01 * (allocation.transform == "identity")
        return {
            "rung": rung,
            "last": last,
            "step": rung,
            "key": allocation.key,
            "bytes": size,
            "accuracy": accuracy,
            "accuracies": [accuracy],
            "error": 0.01,
            "loss": None,
            "seconds": 1.0,
            "training_seconds": 0.5,
        } | more

    def run(self, count):
        """Suggest and complete `count` trials; → their allocations."""
        found = []
        for i in range(count):
            config = self.searcher.suggest(f"t{i}")
            if config == Searcher.FINISHED:
                break
            allocation = Allocation.from_dict(config["allocation"])
            self.searcher.on_trial_result(f"t{i}", self.report(allocation))
            self.searcher.on_trial_complete(f"t{i}", self.report(allocation, 1, True))
            found.append(allocation)
        return found

    def start(self, name="t"):
        config = self.searcher.suggest(name) or self.searcher.suggest(name)  # as Tune does, which asks again
        return Allocation.from_dict(config["allocation"])

    def only(self):
        (trial,) = [t for t in self.study.trials if t.state != TrialState.WAITING]
        return trial, studies.record(trial)


@pytest.fixture
def bench(digits, tmp_path):
    def make(name="study.db", **options):
        return Bench(digits, tmp_path / name, **options)

    return make


# ----------------------------------------------------------------------------------------------------------------------
# proposals
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def crowded(bench):
    """A bench that has run past some giants."""
    made = bench()
    for levels, transform, ipc in ((256, "identity", 60), (256, "standardize", 50), (16, "identity", 60)):
        giant = Allocation(ipc=ipc, levels=levels, transform=transform)
        made.study.enqueue_trial(WIDE.parameters(giant, MOST_IPC))
        made.run(1)
    return made


def over_budget(study):
    return [t for t in study.trials if t.user_attrs.get("reason") == studies.OVER_BEFORE]


def test_what_is_over_budget_is_recorded_and_never_run(crowded):
    assert len(over_budget(crowded.study)) >= 3
    for trial in over_budget(crowded.study):
        size = crowded.size(Allocation.from_dict(trial.user_attrs["allocation"]))
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["initial_bytes"] == size > BUDGET
        assert list(trial.constraints.values()) == [size - BUDGET]
        assert not any(name.startswith("rung/") for name in trial.user_attrs)
    complete = [t for t in crowded.study.trials if t.state == TrialState.COMPLETE]
    assert len(complete) == 3
    for trial in complete:
        assert list(trial.constraints.values()) == [trial.user_attrs["initial_bytes"] - BUDGET]
        assert trial.user_attrs["initial_bytes"] <= BUDGET


def test_a_smaller_neighbour_is_proposed_in_its_place(crowded):
    for trial in over_budget(crowded.study):
        asked = crowded.study.trials[trial.number + 1].system_attrs["fixed_params"]
        assert asked["ipc"] < trial.params["ipc"]
        assert {**asked, "ipc": 0} == {**trial.params, "ipc": 0}


def test_the_neighbour_of_a_giant_nearly_fills_the_budget(bench):
    made = bench()
    made.study.enqueue_trial(WIDE.parameters(GIANT, MOST_IPC))
    found = made.start()
    assert (found.levels, found.transform, found.quantizer) == (256, "identity", "uniform")
    assert 0.7 * BUDGET < made.size(found) <= BUDGET
    assert len(made.study.trials) <= 3  # the giant, and at most two steps towards what fits


def test_neighbours_do_not_send_each_other_round_in_circles(bench, monkeypatch):
    monkeypatch.setattr(module, "MOST_ASKS", 20)
    made = bench()
    made = bench("tight.db", budget=made.size(Allocation(ipc=4, levels=16)) - 1)  # 3 fit, 4 do not
    for ipc in (3, 4):
        made.study.enqueue_trial(WIDE.parameters(Allocation(ipc=ipc, levels=16), MOST_IPC))
    found = made.run(2)
    assert not made.searcher.exhausted
    assert len(set(found)) == 2
    assert all(made.size(a) <= made.context.budget for a in found)


def test_no_allocation_runs_twice(bench, monkeypatch):
    monkeypatch.setattr(module, "MOST_ASKS", 12)
    made = bench(space=NARROW)
    found = made.run(20)
    assert sorted(a.ipc for a in found) == [1, 2, 3]
    assert made.searcher.exhausted
    repeated = [t for t in made.study.trials if t.user_attrs.get("reason") == studies.DUPLICATE]
    numbers = {Allocation.from_dict(t.user_attrs["allocation"]): t.number for t in made.study.trials[::-1]}
    for trial in repeated:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["duplicate_of"] == numbers[Allocation.from_dict(trial.user_attrs["allocation"])]


def test_a_duplicate_is_replaced_by_its_nearest_neighbour(bench):
    made = bench()
    made.study.enqueue_trial(WIDE.parameters(Allocation(ipc=5), MOST_IPC))
    made.study.enqueue_trial(WIDE.parameters(Allocation(ipc=5), MOST_IPC))
    first, second = made.run(2)
    assert first == Allocation(ipc=5)
    assert second == Allocation(ipc=6)


def test_nothing_is_repeated_after_a_restart(bench):
    earlier = bench().run(6)
    later = bench().run(6)
    assert len(set(earlier + later)) == 12


def test_trial_limit(bench):
    made = bench(trials=4)
    assert len(made.run(10)) == 4
    assert not made.searcher.exhausted
    again = bench(trials=5)  # those of before count, those that never ran do not
    assert len(again.run(10)) == 1


def test_an_interrupted_trial_does_not_count_after_a_restart(bench):
    made = bench(trials=1)
    made.start()
    made.searcher.abandon_running()
    assert len(bench(trials=1).run(5)) == 1


def test_proposals_are_a_function_of_study_and_seed(bench):
    count = STARTUP + 3  # past the random ones
    first, second = bench("a.db").run(count), bench("b.db").run(count)
    assert first == second
    assert bench("c.db", seed=1).run(5) != first[:5]


@pytest.mark.parametrize(
    ("sampler", "budget", "before", "after"), [("tpe", BUDGET, STARTUP + 1, 2), ("rate-distortion", 400, 3, 2)]
)
def test_a_restart_goes_on_as_if_there_had_been_none(bench, sampler, budget, before, after):
    options = {"sampler": sampler, "budget": budget}
    whole = bench("whole.db", **options).run(before + after)
    parts = bench("parts.db", **options).run(before)
    parts += bench("parts.db", **options).run(after)
    assert parts == whole


def test_guided_proposals_fit_and_do_not_repeat(bench):
    """The sampler knows what was tried and what is too large: nothing is pruned for it."""
    made = bench(sampler="rate-distortion", budget=400)
    found = made.run(6)
    assert len(set(found)) == 6
    assert all(t.state == TrialState.COMPLETE for t in made.study.trials)
    assert max(map(made.size, found)) > 0.6 * 400


def test_a_guided_search_ends_with_its_space(bench, monkeypatch):
    monkeypatch.setattr(module, "MOST_ASKS", 12)
    made = bench(space=NARROW, sampler="rate-distortion")
    assert sorted(a.ipc for a in made.run(20)) == [1, 2, 3]
    assert made.searcher.exhausted


# ----------------------------------------------------------------------------------------------------------------------
# what is told
# ----------------------------------------------------------------------------------------------------------------------
def test_complete(bench):
    made = bench()
    allocation = made.start()
    assert made.progress.running == {made.searcher._live["t"].number}
    made.searcher.on_trial_result("t", made.report(allocation))
    last = made.report(allocation, 1, True, file="trials/a.bopt")
    made.searcher.on_trial_complete("t", last)
    trial = made.study.trials[-1]
    record = studies.record(trial)
    assert trial.state == TrialState.COMPLETE
    assert trial.values == studies.values(last["bytes"], last["accuracy"])
    assert trial.user_attrs["bytes"] == last["bytes"]
    assert trial.user_attrs["accuracy"] == last["accuracy"]
    assert trial.user_attrs["key"] == allocation.key
    assert trial.user_attrs["rung/0"]["accuracies"] == last["accuracies"]
    assert set(record.rungs) == {0, 1}
    assert (record.allocation, record.file) == (allocation, "trials/a.bopt")
    assert made.progress.running == set()
    assert made.progress.ended == made.observer.ended == [record]
    assert made.progress.training_seconds == [0.5]
    assert "seconds" in made.study.user_attrs


@pytest.fixture
def started(bench):
    """A bench whose first trial certainly runs, and that trial's allocation."""
    made = bench()
    made.study.enqueue_trial(WIDE.parameters(Allocation(ipc=2), MOST_IPC))
    return made, made.start()


def test_stopped_by_the_scheduler_keeps_the_report_that_stopped_it(started):
    made, allocation = started
    made.searcher.on_trial_complete("t", made.report(allocation))  # it did not pass through on_trial_result
    trial, record = made.only()
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, studies.STOPPED)
    assert record.state == "stopped"
    assert set(record.rungs) == {0}
    assert trial.values is None
    assert made.progress.training_seconds == []


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ({"failure": "TrialFailure: diverged", "last": True}, False, "TrialFailure: diverged"),
        (None, True, "its worker process died"),
        ({}, True, "its worker process died"),
    ],
)
def test_failed(started, result, error, message):
    made, _ = started
    made.searcher.on_trial_complete("t", result, error=error)
    trial, record = made.only()
    assert trial.state == TrialState.FAIL
    assert (record.state, record.message) == ("failed", message)
    assert made.observer.ended == [record]


def test_a_worker_that_dies_after_a_rung_keeps_it(started):
    made, allocation = started
    made.searcher.on_trial_complete("t", made.report(allocation), error=True)
    _, record = made.only()
    assert record.state == "failed"
    assert set(record.rungs) == {0}


@pytest.mark.filterwarnings("ignore:The value nan is not acceptable")
def test_nan_is_a_failure_with_a_message(started):
    made, allocation = started
    made.searcher.on_trial_complete("t", made.report(allocation, 1, True, accuracy=float("nan")))
    trial, record = made.only()
    assert trial.state == TrialState.FAIL
    assert "nan" in (record.message or "").lower()


def test_over_budget_after_training(started):
    made, _ = started
    made.searcher.on_trial_complete("t", {"over_budget": "one sample a class takes 900 bytes", "last": True})
    trial, record = made.only()
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.PRUNED, studies.OVER_AFTER)
    assert (record.state, record.message) == ("infeasible", "one sample a class takes 900 bytes")


def test_interrupted_without_a_report(started):
    made, _ = started
    made.searcher.abandon_running()
    trial, record = made.only()
    assert (trial.state, record.state) == (TrialState.FAIL, "interrupted")
    assert made.progress.running == set()
    assert [again["number"] for again in studies.release_stale(made.study)] == [trial.number]


def test_interrupted_after_a_rung_is_not_judged(started):
    made, allocation = started
    made.searcher.on_trial_result("t", made.report(allocation))
    made.searcher.closing = True
    made.searcher.on_trial_complete("t", made.report(allocation))
    _, record = made.only()
    assert record.state == "interrupted"
    assert set(record.rungs) == {0}


def test_a_trial_that_finished_while_the_run_was_closing_is_kept(started):
    made, allocation = started
    made.searcher.closing = True
    made.searcher.on_trial_complete("t", made.report(allocation, 1, True))
    assert made.only()[1].state == "complete"


def test_unknown_trials_and_second_endings_are_ignored(started):
    made, allocation = started
    made.searcher.on_trial_result("other", made.report(allocation))
    made.searcher.on_trial_complete("other", made.report(allocation, 1, True))
    made.searcher.on_trial_complete("t", made.report(allocation, 1, True))
    made.searcher.on_trial_complete("t", error=True)
    assert made.only()[1].state == "complete"
    assert len(made.observer.ended) == 1


def test_the_picture_is_shown_beside_the_trial(started, tmp_path):
    made, allocation = started
    (tmp_path / "trials").mkdir()
    (tmp_path / "artifacts").mkdir()
    picture = tmp_path / "trials" / "a.png"
    picture.write_bytes(b"\x89PNG")
    made.searcher.on_trial_complete("t", made.report(allocation, 1, True, picture=str(picture)))
    (meta,) = optuna.artifacts.get_all_artifact_meta(study_or_trial=made.study.trials[0], storage=made.study._storage)
    assert meta.mimetype == "image/png"
    assert (tmp_path / "artifacts" / meta.artifact_id).read_bytes() == picture.read_bytes()


# ----------------------------------------------------------------------------------------------------------------------
# Tune's own state file
# ----------------------------------------------------------------------------------------------------------------------
def test_nothing_of_it_is_pickled(started, tmp_path):
    made, _ = started
    assert made.searcher.__getstate__() == {}
    assert len(pickle.dumps(made.searcher)) < 500
    made.searcher.save(str(tmp_path / "state"))
    assert not Path(tmp_path / "state").exists()
    with pytest.raises(NotImplementedError, match="study"):
        made.searcher.restore(str(tmp_path / "state"))


def test_tune_may_leave_out_metric_and_mode(started):
    assert started[0].searcher.set_search_properties(None, None, {})


# ----------------------------------------------------------------------------------------------------------------------
# patience
# ----------------------------------------------------------------------------------------------------------------------
def gains(study):
    return [t.user_attrs[module.GAIN] for t in study.trials if module.GAIN in t.user_attrs]


def test_every_proposal_of_the_model_says_what_it_expects(bench):
    made = bench(sampler="rate-distortion")
    made.run(6)
    assert len(gains(made.study)) >= 6
    assert all(0.0 <= gain < 1.0 for gain in gains(made.study))
    assert gains(bench("tpe.db").study) == []


def test_what_waits_in_the_queue_has_no_proposals_gain(bench):
    made = bench(sampler="rate-distortion")
    (first,) = made.run(1)
    before = len(gains(made.study))
    made.searcher._enqueue(first, first.ipc + 1)
    made.start("queued")
    assert made.study.trials[-1].user_attrs["key"] == replace(first, ipc=first.ipc + 1).key
    assert len(gains(made.study)) == before


def test_a_search_ends_where_proposals_in_a_row_promise_nothing(bench, monkeypatch):
    patient = bench("patient.db", sampler="rate-distortion")
    assert len(patient.run(9)) == 9
    found = sorted(gains(patient.study))
    monkeypatch.setattr(module, "LEAST_GAIN", found[-3])  # all but three of the same search's promise less
    made = bench("impatient.db", sampler="rate-distortion", patience=2)
    count = len(made.run(9))
    known = gains(made.study)
    assert count < 9
    assert known == gains(patient.study)[: len(known)]
    assert max(known[-2:]) < module.LEAST_GAIN
    assert all(max(pair) >= module.LEAST_GAIN for pair in itertools.pairwise(known[:-1]))
    assert made.searcher.exhausted
    assert "of the last 2 proposals" in made.searcher.reason


def test_patience_is_the_same_after_a_restart(bench, monkeypatch):
    monkeypatch.setattr(module, "LEAST_GAIN", 2.0)  # no proposal can promise that
    assert len(bench(sampler="rate-distortion", patience=3).run(9)) == 3
    assert bench(sampler="rate-distortion", patience=3).run(9) == []
    assert len(bench(sampler="rate-distortion", patience=5).run(9)) == 2


# ----------------------------------------------------------------------------------------------------------------------
# parents
# ----------------------------------------------------------------------------------------------------------------------
SET = Allocation("dm", ipc=6, levels=16)


def ask(made, allocation, name="t"):
    """The config of a trial that is proposed next."""
    made.study.enqueue_trial(WIDE.parameters(allocation, MOST_IPC))
    config = made.searcher.suggest(name) or made.searcher.suggest(name)
    assert Allocation.from_dict(config["allocation"]) == allocation
    return config


def finish(made, allocation, config, steps, name="t"):
    """As if a worker had run it, its file included."""
    file = f"trials/{config['number']:05d}.bopt"
    (made.path.parent / "trials").mkdir(exist_ok=True)
    (made.path.parent / file).write_bytes(b"")
    samples = 10 * allocation.ipc
    made.searcher.on_trial_result(name, made.report(allocation, step=steps // 3, samples=samples))
    made.searcher.on_trial_complete(name, made.report(allocation, 1, True, step=steps, samples=samples, file=file))


def test_a_trial_has_the_nearest_finished_one_as_parent(bench):
    """In the study before it starts; what all of them took adds up from parent to child."""
    made = bench(parents=True)
    chain = [(SET, None, 150), (replace(SET, ipc=4), (0, 150), 50), (replace(SET, ipc=3), (1, 200), 50)]
    for number, (allocation, parent, steps) in enumerate(chain):
        config = ask(made, allocation)
        expected = parent and {"trial": parent[0], "file": f"trials/{parent[0]:05d}.bopt", "steps": parent[1]}
        trial = made.study.trials[number]
        assert config["parent"] == trial.user_attrs["parent"] == expected
        assert trial.state == TrialState.RUNNING
        finish(made, allocation, config, steps)
    found = studies.records(made.study)
    assert [r.parent for r in found] == [None, 0, 1]
    assert [r.total_steps for r in found] == [150, 200, 250]
    assert [r.rungs[1]["step"] for r in found] == [150, 50, 50]  # its own
    assert [t.user_attrs["total_steps"] for t in made.study.trials] == [150, 200, 250]
    anew = bench("anew.db")
    assert "parent" not in anew.searcher.suggest("t")
    assert "parent" not in anew.study.trials[-1].user_attrs


def test_stopped_trials_say_what_they_took_and_are_no_parents(bench):
    made = bench(parents=True)
    first = ask(made, SET)
    finish(made, SET, first, 150)
    stopped = replace(SET, ipc=4)
    ask(made, stopped)
    made.searcher.on_trial_complete("t", made.report(stopped, step=17))
    assert (studies.record(made.study.trials[1]).state, made.study.trials[1].user_attrs["total_steps"]) == (
        "stopped",
        167,
    )
    assert ask(made, replace(SET, ipc=3))["parent"]["trial"] == 0


def test_coresets_start_anew(bench):
    made = bench(parents=True)
    for ipc in (6, 4):
        allocation = Allocation(ipc=ipc, levels=16)
        config = ask(made, allocation)
        assert config["parent"] is None
        finish(made, allocation, config, 0)


@pytest.mark.parametrize("had_one", [True, False])
def test_a_restarted_trial_keeps_its_parent(bench, had_one):
    """Also where something nearer has finished meanwhile, and where it had none."""
    made = bench(parents=True)
    if had_one:
        finish(made, SET, ask(made, SET), 150)
    child, nearer = replace(SET, ipc=3), replace(SET, ipc=4)
    ask(made, child)
    config = ask(made, nearer, "other")
    finish(made, nearer, config, 50, "other")
    for again in studies.release_stale(made.study):  # the driver was killed
        made.study.enqueue_trial(again["params"], user_attrs={"restart_of": again["number"]}, skip_if_exists=False)
    made = bench(parents=True)
    made.progress.ended = [r for r in studies.records(made.study) if r.state == "complete"]
    assert made.searcher._parents.of(child, made.progress.complete()).trial == config["number"]
    kept = made.searcher.suggest("t")
    assert Allocation.from_dict(kept["allocation"]) == child
    assert kept["parent"] == ({"trial": 0, "file": "trials/00000.bopt", "steps": 150} if had_one else None)
    assert made.study.trials[kept["number"]].user_attrs["parent"] == kept["parent"]


def test_a_restarted_trial_whose_parent_is_gone_finds_another(bench):
    made = bench(parents=True)
    finish(made, SET, ask(made, SET), 150)
    child = replace(SET, ipc=3)
    number = ask(made, child)["number"]
    (made.path.parent / "trials" / "00000.bopt").unlink()
    made.searcher.abandon_running()
    made.study.enqueue_trial(made.study.trials[number].params, user_attrs={"restart_of": number})
    assert made.searcher.suggest("t")["parent"] is None


# ----------------------------------------------------------------------------------------------------------------------
# while workers are busy
# ----------------------------------------------------------------------------------------------------------------------
def looked_at(b, count, looks):
    """As `Bench.run` with one place, and `looks` more questions while each trial runs; → allocations, and which of
    them had been packed before they were asked for."""
    b.places, found, packed = 1, [], []
    for i in range(count):
        known = set(b.searcher._measures._sizes)
        found.append(b.start(f"t{i}"))
        packed.append(found[-1] in known)
        for _ in range(looks):
            assert b.searcher.suggest("next") is None
        b.searcher.on_trial_complete(f"t{i}", b.report(found[-1], 1, True))
    return found, packed


def test_thinking_ahead_changes_no_proposal(bench, monkeypatch):
    monkeypatch.setattr(module, "IDLE", 60.0)
    plain, not_before = looked_at(bench("plain.db", sampler="rate-distortion"), 12, 0)
    ahead, before = looked_at(bench("ahead.db", sampler="rate-distortion"), 12, 2)
    assert ahead == plain
    assert sum(before) > sum(not_before)
    numbers = [len(bench(name).study.get_trials(deepcopy=False)) for name in ("plain.db", "ahead.db")]
    assert numbers[0] == numbers[1]  # a thought is no trial


def test_several_workers_only_measure_what_the_model_will_ask(bench, monkeypatch):
    monkeypatch.setattr(module, "IDLE", 60.0)
    b = bench("study.db", sampler="rate-distortion")
    b.places = 2
    for name in "ab":
        b.start(name)
    monkeypatch.setattr(b.searcher._guided, "propose", None)  # it would fail
    assert b.searcher.suggest("c") is None
    assert len(b.searcher._measures._codings) > 5
    assert next(b.searcher._unmeasured, None) is None


def test_what_waits_for_a_worker_starts_before_the_next_is_asked(bench):
    b = bench("study.db")
    b.places = 3  # two workers, and one proposal ahead
    started = {name: b.start(name) for name in "abc"}
    b.searcher.on_trial_complete("a", b.report(started["a"], 1, True))
    assert b.searcher.suggest("d") is None  # once
    assert b.start("d") != started["a"]
