from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from scipy.stats import rankdata, spearmanr

from budgetopt.allocation import Allocation
from budgetopt.search.halving import GRACE, PAIRS, TRUSTED, FrontHalving, agreement, keeps, trusted
from budgetopt.search.study import Record

CONTINUE, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP
TRIAL = SimpleNamespace(trial_id="t")  # the scheduler reads the result only


def keep(others, size, accuracy, error=0.0):
    table = np.array(others, np.float64).reshape(-1, 2)
    return keeps(table[:, 0], table[:, 1], size, accuracy, error)


LADDER = [(100, 0.5), (200, 0.6), (400, 0.7), (800, 0.8)]  # four others, all of them on the front


# ----------------------------------------------------------------------------------------------------------------------
# the decision
# ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("others", range(GRACE))
def test_nothing_is_stopped_before_enough_others_reported(others):
    assert keep([(10, 0.99)] * others, 1000, 0.1)


def test_a_dominated_report_is_dropped_once_enough_reported():
    assert not keep([(10, 0.99)] * GRACE, 1000, 0.1)


def test_a_small_file_of_low_accuracy_is_on_the_front_and_stays():
    assert keep(LADDER, 50, 0.11)


def test_a_large_file_of_the_highest_accuracy_stays():
    assert keep(LADDER, 10_000, 0.81)


def test_the_front_stays_whatever_has_accumulated():
    assert keep(LADDER * 50, 300, 0.65)


def test_the_better_half_by_rank_stays_although_dominated():
    worse = [(500, 0.2), (500, 0.19), (500, 0.18), (500, 0.17)]
    assert keep([(100, 0.5), *worse], 400, 0.4)  # one of six is ahead of it
    assert not keep([(100, 0.5)] * 5 + worse, 400, 0.4)  # five of ten are ahead of it


def test_one_standard_error_is_forgiven_and_no_more():
    others = [(100, 0.80)] * 8
    assert not keep(others, 100, 0.75, error=0.04)
    assert keep(others, 100, 0.75, error=0.06)


def test_a_repeated_figure_is_no_reason_to_stop():
    assert keep([(100, 0.5)] * 8, 100, 0.5)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=GRACE, max_size=12),
    st.integers(1, 9),
    st.integers(0, 9),
)
def test_whoever_is_dominated_by_nobody_goes_on(others, size, accuracy):
    dominated = any(s <= size and a > accuracy for s, a in others)
    if not dominated:
        assert keep(others, size, accuracy)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=GRACE, max_size=12))
def test_more_accuracy_never_stops_a_trial(others):
    decisions = [keep(others, 5, accuracy) for accuracy in range(10)]
    assert decisions == sorted(decisions)


# ----------------------------------------------------------------------------------------------------------------------
# the scheduler
# ----------------------------------------------------------------------------------------------------------------------
def report(scheduler, key, size, accuracy, rung=0, last=False, error=0.0):
    result = {"rung": rung, "last": last, "key": key, "bytes": size, "accuracy": accuracy, "error": error}
    return scheduler.on_trial_result(None, TRIAL, result)


def filled(rung=0):
    scheduler = FrontHalving()
    for i in range(GRACE):
        assert report(scheduler, f"good{i}", 100, 0.9, rung) == CONTINUE
    return scheduler


def test_scheduler_stops_the_dominated_and_lets_the_front_go_on():
    scheduler = filled()
    assert report(scheduler, "bad", 200, 0.3) == STOP
    assert report(scheduler, "small", 50, 0.3) == CONTINUE
    assert report(scheduler, "better", 200, 0.95) == CONTINUE


def test_every_rung_has_its_own_front():
    scheduler = filled(rung=0)
    assert report(scheduler, "late", 200, 0.3, rung=1) == CONTINUE  # nobody has reported there
    assert report(scheduler, "late", 200, 0.3, rung=0) == STOP


def test_the_last_rung_always_goes_on_and_is_not_counted():
    scheduler = filled()
    assert report(scheduler, "bad", 200, 0.3, last=True) == CONTINUE
    fresh = FrontHalving()
    for i in range(GRACE):
        report(fresh, f"good{i}", 100, 0.9, rung=1, last=True)
    assert report(fresh, "bad", 200, 0.3, rung=1) == CONTINUE


@pytest.mark.parametrize("result", [{"failure": "out of memory", "last": True}, {"over_budget": "x", "last": True}])
def test_results_without_a_rung_go_on(result):
    assert filled().on_trial_result(None, TRIAL, result) == CONTINUE


def test_a_trial_is_not_compared_with_itself():
    scheduler = FrontHalving()
    for _ in range(GRACE + 2):  # the same trial, retried again and again
        assert report(scheduler, "same", 100, 0.5) == CONTINUE
    assert report(scheduler, "worse", 100, 0.4) == CONTINUE  # one other has reported, not six


def test_a_retried_trial_does_not_change_the_rung():
    scheduler = FrontHalving()
    for i in range(GRACE):
        report(scheduler, f"t{i}", 100, 0.5)
    for i in range(GRACE):
        report(scheduler, f"t{i}", 100, 0.99)  # reported again: the first figure stays
    assert report(scheduler, "next", 100, 0.6) == CONTINUE


def record(number, state, rungs):
    allocation = Allocation(ipc=number + 1)
    return Record(number, state, allocation, None, None, None, None, None, None, rungs)


def test_rungs_are_rebuilt_from_the_study():
    rungs = {rung: {"bytes": 100, "accuracy": 0.9 + 0.01 * rung} for rung in range(3)}
    stopped = {rung: rungs[rung] for rung in (0, 1)}
    earlier = [record(i, *(("complete", rungs) if i % 2 else ("stopped", stopped))) for i in range(GRACE)]
    scheduler = FrontHalving(earlier)
    assert report(scheduler, "bad", 200, 0.3, rung=0) == STOP
    assert report(scheduler, "bad", 200, 0.3, rung=1) == STOP
    assert report(scheduler, "bad", 200, 0.3, rung=2) == CONTINUE


def test_a_rebuilt_last_rung_is_not_one_to_stop_at():
    """A coreset's second report is its last; an optimised set's second is not."""
    earlier = [record(i, "complete", {r: {"bytes": 100, "accuracy": 0.9} for r in (0, 1)}) for i in range(2 * GRACE)]
    assert report(FrontHalving(earlier), "bad", 200, 0.3, rung=1) == CONTINUE


def test_a_rebuilt_rung_knows_its_trials():
    rungs = {0: {"bytes": 100, "accuracy": 0.9}, 1: {"bytes": 100, "accuracy": 0.9}}
    earlier = [record(i, "complete", rungs) for i in range(GRACE)]
    scheduler = FrontHalving(earlier)
    # it is one of the four that reported before, so only three others did
    assert report(scheduler, earlier[0].allocation.key, 200, 0.3) == CONTINUE


@pytest.mark.parametrize("state", ["failed", "interrupted", "skipped", "infeasible", "running"])
def test_only_judged_trials_count(state):
    earlier = [record(i, state, {0: {"bytes": 100, "accuracy": 0.9}}) for i in range(2 * GRACE)]
    assert report(FrontHalving(earlier), "bad", 200, 0.3) == CONTINUE


# ----------------------------------------------------------------------------------------------------------------------
# whether a rung can be trusted
# ----------------------------------------------------------------------------------------------------------------------
def naive_agreement(size, at_rung, at_last):
    """Pearson's correlation of ranks that are taken, and centred, octave by octave."""
    pairs = []
    for k in range(20):
        inside = [i for i in range(len(size)) if 2**k <= size[i] < 2 ** (k + 1)]
        first, second = rankdata([at_rung[i] for i in inside]), rankdata([at_last[i] for i in inside])
        pairs += [(a - np.mean(first), b - np.mean(second)) for a, b in zip(first, second, strict=True)]
    a, b = np.array(pairs).T
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=30))
def test_agreement_against_the_naive_one(rows):
    size, at_rung, at_last = np.array(rows, np.float64).T
    with np.errstate(invalid="ignore"):
        assert agreement(size, at_rung, at_last) == pytest.approx(naive_agreement(size, at_rung, at_last), nan_ok=True)


def test_agreement_in_one_octave_is_spearmans():
    rng = np.random.default_rng(0)
    at_rung = rng.integers(0, 20, 30) / 20
    at_last = at_rung + rng.normal(size=30) / 4
    found = agreement(rng.uniform(1024, 2048, 30), at_rung, at_last)
    assert 0.3 < found < 0.95
    assert found == pytest.approx(spearmanr(at_rung, at_last).statistic)


def test_large_files_ahead_of_small_ones_are_no_agreement():
    size = 100.0 * 2 ** np.repeat(np.arange(6), 2)
    at_last = size / 10_000 + np.tile([0.0, 0.001], 6)
    at_rung = size / 10_000 + np.tile([0.001, 0.0], 6)  # in every octave the wrong way round
    assert spearmanr(at_rung, at_last).statistic > 0.9
    assert agreement(size, at_rung, at_last) == pytest.approx(-1)


def test_a_rung_is_trusted_until_enough_trials_have_finished():
    size, up = np.full(PAIRS, 100.0), np.arange(PAIRS, dtype=float)
    assert trusted(size[1:], up[1:], -up[1:])
    assert not trusted(size, up, -up)
    assert trusted(size, up, up)
    assert trusted(size, up, np.zeros(PAIRS))  # all the same: no evidence


def test_the_threshold():
    size, up = np.full(PAIRS, 100.0), np.arange(PAIRS, dtype=float)
    below, above = up[[3, 0, 1, 6, 2, 4, 7, 5]], up[[2, 0, 1, 3, 4, 7, 5, 6]]
    assert 0.6 < agreement(size, up, below) < TRUSTED < agreement(size, up, above) < 0.95
    assert not trusted(size, up, below)
    assert trusted(size, up, above)


def crowded(order):
    """A scheduler that has seen PAIRS trials to their end, ranked `order` at the last rung."""
    scheduler = FrontHalving()
    for i in range(PAIRS):
        assert report(scheduler, f"t{i}", 100, 0.9 + i / 1000) == CONTINUE
    for i, rank in enumerate(order):
        assert report(scheduler, f"t{i}", 100, 0.9 + rank / 1000, rung=1, last=True) == CONTINUE
    return scheduler


def test_a_rung_that_misleads_stops_nobody():
    assert report(crowded(range(PAIRS)), "bad", 200, 0.3) == STOP
    assert report(crowded(reversed(range(PAIRS))), "bad", 200, 0.3) == CONTINUE


def test_whether_a_rung_misleads_is_known_again_after_a_restart():
    for ranks, expected in ((range(PAIRS), STOP), (range(PAIRS)[::-1], CONTINUE)):
        rungs = [
            {0: {"bytes": 100, "accuracy": 0.9 + i / 1000}, 1: {"bytes": 100, "accuracy": 0.9 + rank / 1000}}
            for i, rank in enumerate(ranks)
        ]
        scheduler = FrontHalving([record(i, "complete", r) for i, r in enumerate(rungs)])
        assert report(scheduler, "bad", 200, 0.3) == expected


def test_tune_may_leave_out_metric_and_mode():
    assert FrontHalving().set_search_properties(None, None)
