"""Recorded tables and their replay in virtual time."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState
from tables import IPCS, law_table

from budgetopt.errors import InputError
from budgetopt.search.recorded import ARRAYS, Grid, Table
from budgetopt.search.sampler import RateDistortionSampler
from budgetopt.search.simulator import chosen, curve, simulate

TABLE = law_table()


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


class StopAtFirst:
    """Stops every trial at rung 0, unless its accuracy is high."""

    def __init__(self, above):
        self.above, self.seen = above, []

    def on_trial_result(self, controller, trial, result):
        self.seen.append(result)
        return "STOP" if not result["last"] and result["accuracy"] < self.above else "CONTINUE"


# ----------------------------------------------------------------------------------------------------------------------
# tables
# ----------------------------------------------------------------------------------------------------------------------
def test_a_file_keeps_everything(tmp_path):
    TABLE.save(tmp_path / "t.npz")
    again = Table.load(tmp_path / "t.npz")
    assert again.allocations == TABLE.allocations
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(TABLE, name))
    for name in ("budget", "chance", "class_counts", "validation", "trained"):
        assert getattr(again, name) == getattr(TABLE, name)


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.npz").write_bytes(b"PK no")
    with pytest.raises(InputError, match="cannot read the table"):
        Table.load(tmp_path / "t.npz")
    with pytest.raises(InputError, match="every kind"):
        replace(TABLE, allocations=(*TABLE.allocations[:-1], TABLE.allocations[0]))


def test_truth_is_the_mean_of_the_other_seeds():
    size, accuracy = TABLE.truth(1)
    entry = TABLE.index[TABLE.allocations[3]]
    last = TABLE.last(entry, 0)
    assert accuracy[entry] == pytest.approx(TABLE.accuracy[entry, [0, 2], last].mean())
    assert size[entry] == pytest.approx(np.sqrt(np.prod(TABLE.bytes[entry, [0, 2]])))
    over = (TABLE.bytes > TABLE.budget).all(1)
    assert np.isnan(accuracy[over]).all()
    assert over.any()


def test_volume_grows_with_entries():
    everything = TABLE.volume(range(len(TABLE.allocations)), 0)
    assert 0 < TABLE.volume(range(0, 400, 40), 0) < everything < 1
    assert TABLE.volume([], 0) == 0.0


def test_grid_and_allocations_are_inverse():
    grid = Grid(TABLE)
    for allocation in TABLE.allocations[::37]:
        assert grid.allocation(grid.parameters(allocation)) == allocation
    distance = grid.distances(grid.parameters(TABLE.allocations[5]))
    assert distance.argmin() == 5
    assert distance[5] == 0
    assert sorted(distance)[1] == 1


# ----------------------------------------------------------------------------------------------------------------------
# virtual time
# ----------------------------------------------------------------------------------------------------------------------
def test_one_worker_works_one_trial_after_the_other():
    found = simulate(TABLE, 0, RandomSampler(seed=0), trials=12)
    lengths = [TABLE.seconds[e, 0, TABLE.last(e, 0)] for e in found.started]
    over = [e for e in found.started if e not in found.finished]
    assert all(TABLE.bytes[e, 0] > TABLE.budget for e in over)
    assert found.time == pytest.approx(sum(lengths)) == pytest.approx(found.cost)
    assert found.times == sorted(found.times)
    assert len(set(found.started)) == 12


def test_workers_share_the_work():
    one = simulate(TABLE, 0, RandomSampler(seed=0), trials=24)
    four = simulate(TABLE, 0, RandomSampler(seed=0), trials=24, workers=4)
    assert four.started == one.started  # random does not look at results
    assert four.cost == pytest.approx(one.cost)
    assert one.time / 4 <= four.time < one.time / 3


def test_a_limit_ends_it():
    found = simulate(TABLE, 0, RandomSampler(seed=0), trials=24, time_limit=40.0)
    assert 0 < len(found.finished) < 24
    assert max(found.times) <= 40.0


def test_stopped_trials_cost_what_they_ran():
    scheduler = StopAtFirst(above=2.0)
    found = simulate(TABLE, 0, RandomSampler(seed=0), trials=10, scheduler=scheduler)
    assert found.finished == []
    assert found.cost == pytest.approx(sum(TABLE.seconds[e, 0, 0] for e in found.started))
    assert len(found.stopped) == 10
    kept = StopAtFirst(above=0.0)
    assert simulate(TABLE, 0, RandomSampler(seed=0), trials=10, scheduler=kept).stopped == []
    for before, after in pairwise(kept.seen):
        assert after["rung"] == (0 if before["last"] else before["rung"] + 1)


def test_a_search_may_start_from_a_design():
    first = [4, 3, 11]
    assert simulate(TABLE, 0, RandomSampler(seed=0), trials=5, first=first).started[:3] == first


def test_failed_trials_are_told():
    accuracy = TABLE.accuracy.copy()
    accuracy[4] = np.nan
    broken = replace(TABLE, accuracy=accuracy)
    sampler = RandomSampler(seed=0)
    found = simulate(broken, 0, sampler, trials=2, first=[4, 3])
    assert found.finished == [3]
    assert found.cost == pytest.approx(TABLE.seconds[4, 0, 0] + TABLE.seconds[3, 0, TABLE.last(3, 0)])


def test_an_exhausted_table_ends_it():
    small = law_table(budget=250)
    open_entries = int((small.initial_bytes[:, 0] <= 250).sum())
    found = simulate(small, 0, RandomSampler(seed=0), trials=500)
    assert sorted(found.started) == sorted(np.flatnonzero(small.initial_bytes[:, 0] <= 250))
    assert len(found.started) == open_entries > 3


def test_what_is_too_large_is_pruned_and_never_runs():
    class Giants(RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            return len(IPCS) - 1 if name == "ipc" else super().sample_independent(study, trial, name, distribution)

    sampler = Giants(seed=0)
    seen = []
    sampler.after_trial = lambda study, trial, state, values: seen.append((trial.user_attrs, state))
    found = simulate(TABLE, 0, sampler, trials=8)
    assert (TABLE.initial_bytes[found.started, 0] <= TABLE.budget).all()
    pruned = [a for a, state in seen if state == TrialState.PRUNED and a.get("reason") == "over_budget_before"]
    assert pruned
    assert all(a["initial_bytes"] > TABLE.budget for a in pruned)


def test_curve_counts_what_has_finished():
    found = simulate(TABLE, 0, RandomSampler(seed=0), trials=6)
    assert list(curve(found, len, [0, 1, 3], by_time=False)) == [0, 1, 3]
    assert list(curve(found, len, [0.0, found.times[1], 1e9], by_time=True)) == [0, 2, len(found.finished)]


def test_workers_wait_for_a_driver_that_asks_slowly():
    """One proposal at a time: with a driver that takes `asking` seconds, w workers start w trials `asking` apart."""
    none = simulate(TABLE, 0, RandomSampler(0), trials=40, workers=4)
    assert none.idle == 0.0
    slow = simulate(TABLE, 0, RandomSampler(0), trials=4, workers=4, asking=5.0)
    assert slow.idle >= 5 + 10 + 15 + 20  # a proposal that is taken already costs another
    longer = simulate(TABLE, 0, RandomSampler(0), trials=40, workers=4, asking=5.0)
    assert longer.time >= 40 * 5.0
    assert longer.idle / (longer.idle + longer.cost) > 0.3


def test_proposals_made_ahead_save_the_wait_and_nothing_else():
    """The same entries in another order at most; a driver that has time between two ends keeps nobody waiting."""
    asking = 0.2 * float(np.nanmin(np.nanmax(TABLE.seconds[:, 0], 1)))
    late, early = (
        simulate(TABLE, 0, RandomSampler(0), trials=12, workers=1, asking=asking, ahead=ahead) for ahead in (0, 1)
    )
    assert early.started == late.started
    assert early.cost == pytest.approx(late.cost)
    assert late.idle >= 12 * asking
    assert early.idle < 0.5 * late.idle
    assert late.time == pytest.approx(late.cost + late.idle)
    assert early.time == pytest.approx(early.cost + early.idle)


def test_no_more_trials_run_than_there_are_workers():
    """Of the same trials, as long as nobody waits for the driver, w workers need a w-th of the time and no less."""
    plain, early = (simulate(TABLE, 0, RandomSampler(0), trials=40, workers=4, ahead=ahead) for ahead in (0, 8))
    assert early.started == plain.started
    assert early.time == plain.time
    assert early.idle == plain.idle == 0.0


# ----------------------------------------------------------------------------------------------------------------------
# guidance
# ----------------------------------------------------------------------------------------------------------------------
def test_ours_beats_random_and_tpe():
    """Share of the full hypervolume, and accuracy of what is handed over, after 12 trials, over tables and seeds."""
    makers = {
        "ours": lambda table, seed: RateDistortionSampler(table.problem(seed), seed=seed),
        "random": lambda table, seed: RandomSampler(seed=seed),
        "tpe": lambda table, seed: TPESampler(seed=seed),
    }
    shares, accuracy = {}, {}
    for name, make in makers.items():
        found = []
        for run in range(32):
            table, seed = law_table(run), run % 3
            outcome = simulate(table, seed, make(table, seed), trials=12)
            full = table.volume(range(len(table.allocations)), seed)
            (share,) = curve(outcome, lambda e, t=table, s=seed, f=full: t.volume(e, s) / f, [12], by_time=False)
            found.append((share, chosen(table, seed, outcome)))
        shares[name], accuracy[name] = np.mean(found, 0)
    assert shares["ours"] > 0.93
    assert shares["ours"] > max(shares["random"], shares["tpe"]) + 0.02
    assert accuracy["ours"] > max(accuracy["random"], accuracy["tpe"])


def test_ours_is_soonest_on_recorded_digits():
    """Trials and virtual seconds to 95 % of the hypervolume, means over runs; `examples/benchmarks/search.py` has all
    searches."""
    table = Table.load(Path(__file__).parent / "golden" / "digits-table.npz")
    makers = {
        "ours": lambda seed: RateDistortionSampler(table.problem(seed), seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
        "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    }
    needed = {name: [] for name in makers}
    for seed in range(3):
        full = table.volume(range(len(table.allocations)), seed)
        first = int(np.random.default_rng(seed).choice(np.flatnonzero(table.initial_bytes[:, seed] <= table.budget)))
        for name, make in makers.items():
            outcome = simulate(table, seed, make(seed), trials=40, workers=2, first=[first])
            shares = curve(outcome, lambda e, s=seed, f=full: table.volume(e, s) / f, range(1, 41), by_time=False)
            at = int(np.argmax(shares >= 0.95)) if shares.max() >= 0.95 else 39
            needed[name].append((at + 1, outcome.times[min(at, len(outcome.times) - 1)]))
    trials, seconds = ({name: np.mean(found, 0)[i] for name, found in needed.items()} for i in (0, 1))
    assert trials["ours"] < 0.7 * min(trials["random"], trials["tpe"])
    assert seconds["ours"] < 0.7 * min(seconds["random"], seconds["tpe"])


def test_what_is_handed_over_is_retrained_first():
    outcome = simulate(TABLE, 0, RandomSampler(seed=0), trials=20)
    truth = TABLE.truth(0)[1]
    best = outcome.finished[int(np.argmax(outcome.observed))]
    error = TABLE.error[best, 0, TABLE.last(best, 0)]
    near = [e for e, a in zip(outcome.finished, outcome.observed, strict=True) if a >= max(outcome.observed) - error]
    assert len(near) > 1
    assert chosen(TABLE, 0, outcome) == max(truth[near]) >= truth[best]
    assert np.isnan(chosen(TABLE, 0, outcome, 0))
