"""What a search learns of earlier runs: the model's use of it, and the copy that a run keeps."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from tables import CLASSES, VALIDATION, law_table

from budgetopt.allocation import Allocation
from budgetopt.errors import InputError
from budgetopt.search import config as configuration
from budgetopt.search import study as studies
from budgetopt.search.evidence import Earlier, Observed
from budgetopt.search.folder import RunFolder
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.search.simulator import simulate
from budgetopt.search.warm_start import WarmStart

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
FEW = 4  # trials of a search that knows something
SIZE, SAMPLES, ACCURACY, ERROR = 900, 100, 0.9, 0.02


def observed(table, entry, seed=0, easier=0.0):
    """A trial of the table as a study would hold it; easier: log-odds more than the table has."""
    allocation, last = table.allocations[entry], table.last(entry, seed)
    p = table.accuracy[entry, seed, last]
    p = 1 / (1 + (1 - p) / p * np.exp(-easier))
    held = (int(table.initial_bytes[entry, seed]), float(table.bytes[entry, seed]), int(table.samples[entry, seed]))
    error, kind = table.error[entry, seed, last], replace(allocation, ipc=1)
    return Observed(entry, allocation, kind, "complete", *held, p, error, {})


def earlier(table, count=60, comparable=True, easier=0.0):
    entries = np.random.default_rng(1).choice(len(table.allocations), count, replace=False)
    trials = tuple(observed(table, entry, easier=easier) for entry in entries)
    return Earlier(trials, CLASSES, VALIDATION, comparable, same_sizes=comparable)


def view(table, known, finished=()):
    sampler = RateDistortionSampler(table.problem(0), warm_start=known)
    study = optuna.create_study(directions=studies.DIRECTIONS, sampler=sampler)
    grid = table.problem(0).candidates
    for entry in finished:
        one = observed(table, entry)
        rung = {"rung/0": {"bytes": one.bytes, "samples": one.samples, "accuracy": one.accuracy, "error": one.error}}
        study.add_trial(
            optuna.trial.create_trial(
                params=grid.parameters(one.allocation),
                distributions=dict(grid.distributions),
                values=studies.values(one.bytes, one.accuracy),
                user_attrs={"allocation": one.allocation.to_dict(), "initial_bytes": one.initial_bytes} | rung,
            )
        )
    return sampler.view(study, len(study.trials))


def misses(table, seen):
    """Root mean square error of the expected accuracy of all entries, and the spread that the model gives."""
    points, ipc = seen.candidates(tried=True)
    expected = seen.model.predict(points)
    entries = [table.index[seen.allocation(k, n)] for k, n in zip(points.kind, ipc, strict=True)]
    return float(np.sqrt(np.mean((expected.accuracy - table.final[entries, 1]) ** 2)))


def share(table, known, run):
    """Of the table's hypervolume after a few trials, all searches from the same first one."""
    sampler = RateDistortionSampler(table.problem(run % 3), seed=run, warm_start=known)
    first = int(np.random.default_rng(run).integers(len(table.allocations)))
    outcome = simulate(table, run % 3, sampler, trials=FEW, first=[first])
    return table.volume(outcome.finished, run % 3) / table.volume(range(len(table.allocations)), run % 3)


@pytest.mark.parametrize("comparable", [True, False])
def test_a_model_that_knows_another_run_expects_better(comparable):
    """That of the same data with another budget, or of data that are easier by far, told by three trials."""
    table, other = law_table(), law_table(seed=7, budget=2000)
    known = earlier(other, comparable=comparable, easier=0.0 if comparable else 1.5)
    finished = [0, 155, 350]
    cold, warm = (misses(table, view(table, k, finished)) for k in ((), (known,)))
    assert warm < 0.8 * cold


def test_other_data_taken_for_the_same_mislead():
    """Why the two are told apart: without an offset of their own, easier data would raise what is expected."""
    table = law_table()
    easy = earlier(table, easier=1.5)
    finished = [0, 155, 350]
    apart, mixed = (misses(table, view(table, (replace(easy, comparable=c),), finished)) for c in (False, True))
    assert apart < 0.7 * mixed


def test_a_search_that_knows_another_run_gets_further_with_few_trials():
    table, other = law_table(), law_table(seed=7, budget=2000)
    known = earlier(other)
    gain = np.array([share(table, (known,), run) - share(table, (), run) for run in range(12)])
    assert gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5


def test_earlier_trials_are_no_part_of_the_front_and_may_be_proposed():
    table = law_table()
    known = Earlier(tuple(observed(table, e) for e in range(len(table.allocations))), CLASSES, VALIDATION, True, True)
    seen = view(table, (known,))
    assert seen.model.finished == 0
    assert len(seen.model.front_y) == 0
    assert len(seen.candidates()[0]) > 0
    assert seen.known == set()


def test_a_run_of_the_same_data_by_another_protocol(digits):
    """Sizes are the same, accuracies are not: kinds that it alone has are known where they belong."""
    table = law_table()
    problem = table.problem(0)
    strange = Allocation("mtt", levels=5, ipc=7)
    trial = replace(observed(table, 0), allocation=strange, kind=replace(strange, ipc=1), initial_bytes=99)
    coding = problem.measure(replace(table.allocations[0], ipc=1))
    problem = replace(problem, measure=lambda kind: coding)
    known = Earlier((trial,), CLASSES, VALIDATION, comparable=False, same_sizes=True)
    sampler = RateDistortionSampler(problem, warm_start=(known,))
    study = optuna.create_study(directions=studies.DIRECTIONS, sampler=sampler)
    assert len(sampler.view(study, 0).candidates()[0]) > 0


def test_methods_and_kinds_that_only_another_run_has_are_never_proposed():
    table = law_table()
    problem = table.problem(0)
    strange = Allocation("mtt", levels=5, ipc=7)
    trial = replace(observed(table, 0), allocation=strange, kind=replace(strange, ipc=1))
    coding = problem.measure(replace(table.allocations[0], ipc=1))
    problem = replace(problem, measure=lambda kind: coding)
    sampler = RateDistortionSampler(problem, warm_start=(Earlier((trial,), CLASSES, VALIDATION),))
    study = optuna.create_study(directions=studies.DIRECTIONS, sampler=sampler)
    seen = sampler.view(study, 0)
    points, _ = seen.candidates()
    assert max(points.kind) < len(table.problem(0).candidates.kinds([], 0))


# ----------------------------------------------------------------------------------------------------------------------
# the copy in a run folder
# ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def make_run(tmp_path, digits):
    """A run folder with one finished trial, as a search leaves it."""

    def make(name="earlier", budget=2000, finished=1, facts=True, **settings):
        config, _ = configuration.resolve(budget, "digits", **settings)
        folder = RunFolder(tmp_path / name)
        folder.create(config.with_time_limit(64), {})
        study = studies.create(folder.study)
        if facts:
            for fact, value in {"split_hash": digits.spec.split_hash, "classes": 10, "validation": 210}.items():
                study.set_user_attr(fact, value)
        for ipc in range(1, finished + 1):
            trial = study.ask()
            trial.set_user_attr("allocation", Allocation("dm", ipc=ipc).to_dict())
            trial.set_user_attr("initial_bytes", SIZE)
            last = {"bytes": SIZE, "samples": SAMPLES, "accuracy": ACCURACY, "error": ERROR}
            trial.set_user_attr("rung/0", last)
            study.tell(trial, studies.values(SIZE, ACCURACY))
        failed = study.ask()
        study.tell(failed, state=optuna.trial.TrialState.FAIL)
        return folder.path

    return make


def config_of(**settings):
    return configuration.resolve(500, "digits", sampler="rate-distortion", **settings)[0]


def test_a_run_is_read_and_kept(make_run, tmp_path, digits):
    kept = WarmStart.of([make_run()])
    (tmp_path / "warm_start.json").write_text(kept.model_dump_json())
    assert WarmStart.load(tmp_path / "warm_start.json") == kept
    (known,) = kept.earlier(config_of(), digits.spec)
    (trial,) = known.trials
    assert (trial.bytes, trial.samples, trial.accuracy, trial.error) == (SIZE, SAMPLES, ACCURACY, ERROR)
    assert trial.allocation == Allocation("dm", ipc=1)
    assert (known.classes, known.validation, known.comparable, known.same_sizes) == (10, 210, True, True)


def test_what_makes_trials_comparable(make_run, digits, tmp_path):
    (tmp_path / "other.toml").write_text('network = "convnet"\nwidth = 8\nsteps = 30\n')
    kept = WarmStart.of([make_run()])
    (of_other_protocol,) = kept.earlier(config_of(protocol_name=str(tmp_path / "other.toml")), digits.spec)
    assert not of_other_protocol.comparable
    other_split = replace(digits.spec, split_hash="another seed")
    (of_other_seed,) = kept.earlier(config_of(), other_split)
    assert of_other_seed.comparable
    assert not of_other_seed.same_sizes
    for changed in ({"dataset": "/elsewhere/digits"}, {"label": "parity"}, {"resize": "4"}, {"spectrogram": "mels=9"}):
        (of_other_data,) = kept.earlier(config_of().model_copy(update=changed), other_split)
        assert not of_other_data.comparable  # whatever the file's name
    older = kept.model_copy(update={"runs": [kept.runs[0].model_copy(update={"source": None})]})
    assert not older.earlier(config_of(), other_split)[0].comparable
    assert older.earlier(config_of(), digits.spec)[0].comparable  # the same split says enough


def test_trials_of_other_hyperparameters_are_left_out(make_run, digits, tmp_path):
    (tmp_path / "dm.toml").write_text('method = "dm"\nsteps = 7\n')
    config = config_of(objectives=(str(tmp_path / "dm.toml"),))
    assert WarmStart.of([make_run()]).earlier(config, digits.spec)[0].trials == ()


def test_the_hash_is_of_what_is_learned(make_run):
    first, again, more = (WarmStart.of([make_run(n, finished=k)]) for n, k in (("a", 1), ("b", 1), ("c", 2)))
    assert first.hash == again.hash != more.hash


def test_runs_that_teach_nothing_are_refused(make_run, tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        WarmStart.of([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="it cannot warm-start another"):
        WarmStart.of([make_run("empty", finished=0)])
    with pytest.raises(InputError, match="does not say"):
        WarmStart.of([make_run("old", facts=False)])
    with pytest.raises(InputError, match="--sampler rate-distortion"):
        configuration.resolve(500, "digits", warm_start=["some"], sampler="tpe")


def test_a_damaged_copy_ends_in_one_line(make_run, tmp_path):
    table = json.loads(WarmStart.of([make_run()]).model_dump_json())
    table["runs"][0]["trials"][0]["accuracy"] = 3.0
    (tmp_path / "warm_start.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="accuracy"):
        WarmStart.load(tmp_path / "warm_start.json")
