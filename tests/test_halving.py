from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from scipy.special import expit

from budgetopt.allocation import Allocation
from budgetopt.search.halving import GRACE, PAIRS, FrontHalving, Report, goes_on, keeps
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


def test_the_better_third_by_rank_stays_although_dominated():
    worse = [(500, 0.2), (500, 0.19), (500, 0.18), (500, 0.17)]
    assert keep([(100, 0.5), *worse], 400, 0.4)  # one of six is ahead of it
    assert not keep([(100, 0.5)] * 3 + worse, 400, 0.4)  # three of eight are ahead of it


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
VALIDATION = 200


def report(scheduler, key, size, accuracy, rung=0, last=False, error=0.0, step=0, samples=10, **more):
    result = more | {"rung": rung, "last": last, "key": key, "bytes": size, "accuracy": accuracy, "error": error}
    result |= {"step": step, "samples": samples}
    return scheduler.on_trial_result(None, TRIAL, result)


def filled(rung=0):
    scheduler = FrontHalving(VALIDATION)
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
    fresh = FrontHalving(VALIDATION)
    for i in range(GRACE):
        report(fresh, f"good{i}", 100, 0.9, rung=1, last=True)
    assert report(fresh, "bad", 200, 0.3, rung=1) == CONTINUE


@pytest.mark.parametrize("result", [{"failure": "out of memory", "last": True}, {"over_budget": "x", "last": True}])
def test_results_without_a_rung_go_on(result):
    assert filled().on_trial_result(None, TRIAL, result) == CONTINUE


def test_what_is_no_number_is_not_compared_with():
    reports, lasts = rung_of(N, LAST, 0.4), expit(LAST)
    scheduler = FrontHalving(VALIDATION)
    for i, (r, last) in enumerate(zip(reports, lasts, strict=True)):
        report(scheduler, f"t{i}", r.bytes, r.accuracy, samples=r.samples)
        report(scheduler, f"t{i}", r.bytes, last, rung=1, last=True, samples=r.samples)
    for last in (False, True):
        assert report(scheduler, "nan", 100, float("nan"), last=last) == CONTINUE
    assert report(scheduler, "bad", 60_000, float(expit(0.0)), samples=600) == STOP


def test_a_trial_is_not_compared_with_itself():
    scheduler = FrontHalving(VALIDATION)
    for _ in range(GRACE + 2):  # the same trial, retried again and again
        assert report(scheduler, "same", 100, 0.5) == CONTINUE
    assert report(scheduler, "worse", 100, 0.4) == CONTINUE  # one other has reported, not six


def test_a_retried_trial_does_not_change_the_rung():
    scheduler = FrontHalving(VALIDATION)
    for i in range(GRACE):
        report(scheduler, f"t{i}", 100, 0.5)
    for i in range(GRACE):
        report(scheduler, f"t{i}", 100, 0.99)  # reported again: the first figure stays
    assert report(scheduler, "next", 100, 0.6) == CONTINUE


def record(number, state, rungs):
    allocation = Allocation(ipc=number + 1)
    rungs = {rung: {"step": 0, "samples": 10} | figures for rung, figures in rungs.items()}
    return Record(number, state, allocation, None, None, None, None, None, None, rungs)


def test_rungs_are_rebuilt_from_the_study():
    rungs = {rung: {"bytes": 100, "accuracy": 0.9 + 0.01 * rung} for rung in range(3)}
    stopped = {rung: rungs[rung] for rung in (0, 1)}
    earlier = [record(i, *(("complete", rungs) if i % 2 else ("stopped", stopped))) for i in range(GRACE)]
    scheduler = FrontHalving(VALIDATION, earlier)
    assert report(scheduler, "bad", 200, 0.3, rung=0) == STOP
    assert report(scheduler, "bad", 200, 0.3, rung=1) == STOP
    assert report(scheduler, "bad", 200, 0.3, rung=2) == CONTINUE


def test_a_rebuilt_last_rung_is_not_one_to_stop_at():
    """A coreset's second report is its last; an optimised set's second is not."""
    earlier = [record(i, "complete", {r: {"bytes": 100, "accuracy": 0.9} for r in (0, 1)}) for i in range(2 * GRACE)]
    assert report(FrontHalving(VALIDATION, earlier), "bad", 200, 0.3, rung=1) == CONTINUE


def test_a_rebuilt_rung_knows_its_trials():
    rungs = {0: {"bytes": 100, "accuracy": 0.9}, 1: {"bytes": 100, "accuracy": 0.9}}
    earlier = [record(i, "complete", rungs) for i in range(GRACE)]
    scheduler = FrontHalving(VALIDATION, earlier)
    # it is one of the four that reported before, so only three others did
    assert report(scheduler, earlier[0].allocation.key, 200, 0.3) == CONTINUE


@pytest.mark.parametrize("state", ["failed", "interrupted", "skipped", "infeasible", "running"])
def test_only_judged_trials_count(state):
    earlier = [record(i, state, {0: {"bytes": 100, "accuracy": 0.9}}) for i in range(2 * GRACE)]
    assert report(FrontHalving(VALIDATION, earlier), "bad", 200, 0.3) == CONTINUE


def test_sets_that_are_optimised_are_compared_among_themselves():
    """A coreset at its first rung has had half of the steps of a training, and nothing else has."""
    scheduler = filled()
    assert report(scheduler, "trained", 200, 0.3, step=50) == CONTINUE
    assert report(scheduler, "bad", 200, 0.3, step=0) == STOP


def test_children_are_compared_among_themselves():
    """They start from a finished set: at their first rung they are nearly done."""
    rungs = {0: {"bytes": 100, "accuracy": 0.9, "step": 50}, 1: {"bytes": 100, "accuracy": 0.9, "step": 100}}
    earlier = [replace(record(i, "complete", rungs), parent={"number": 0}) for i in range(GRACE)]
    for scheduler in (FrontHalving(VALIDATION), FrontHalving(VALIDATION, earlier)):
        for i in range(GRACE):
            report(scheduler, f"child{i}", 100, 0.9, step=50, child=True)
        assert report(scheduler, "anew", 200, 0.3, step=50) == CONTINUE
        assert report(scheduler, "bad", 200, 0.3, step=50, child=True) == STOP


# ----------------------------------------------------------------------------------------------------------------------
# what a rung foretells
# ----------------------------------------------------------------------------------------------------------------------
def rung_of(n, last, behind):
    """Reports of sets of n samples whose log-odds are `behind` those at the last rung, (k,) each."""
    accuracy = expit(np.asarray(last, np.float64) - behind)
    return [Report(100 * int(k), int(k), float(a), 0.0) for k, a in zip(n, accuracy, strict=True)]


N = np.geomspace(10, 1000, 12).round()
LAST = np.linspace(0.5, 2.5, 12)  # more samples, more accuracy


def test_large_sets_that_look_worse_at_a_rung_go_on():
    """Each twofold of the samples costs as much at the rung as it is worth at the end, and a little more."""
    others = rung_of(N, LAST, 0.75 * np.log(N))
    large = Report(150_000, 1500, float(expit(2.8 - 0.75 * np.log(1500))), 0.0)
    assert large.accuracy < min(r.accuracy for r in others)  # dominated by all of them
    lasts = [float(a) for a in expit(LAST)]
    assert goes_on(large, others, lasts, VALIDATION)
    assert not goes_on(large, others, [*lasts[: PAIRS - 1], *[None] * 5], VALIDATION)  # too few have finished
    worse = Report(150_000, 1500, float(expit(0.3 - 0.75 * np.log(1500))), 0.0)
    assert not goes_on(worse, others, lasts, VALIDATION)  # what it foretells is no better than a tenth of its bytes


def test_a_trial_that_falls_behind_what_others_foretell_is_stopped():
    others, lasts = rung_of(N, LAST, 0.4), [float(a) for a in expit(LAST)]
    assert goes_on(Report(60_000, 600, float(expit(2.3 - 0.4)), 0.0), others, lasts, VALIDATION)
    assert not goes_on(Report(60_000, 600, float(expit(0.4 - 0.4)), 0.0), others, lasts, VALIDATION)


def test_a_rung_that_says_nothing_stops_few():
    """Accuracies at the rung are noise: what is below most of them there goes on all the same."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 40)
    others = [Report(10_000 + i, 100, float(expit(g)), 0.02) for i, g in enumerate(noise)]
    lasts = [float(expit(g)) for g in rng.normal(2, 0.3, 40)]
    low = [Report(10_100, 100, float(expit(g)), 0.02) for g in np.quantile(noise, [0.2, 0.3, 0.4, 0.5])]
    assert all(goes_on(own, others, lasts, VALIDATION) for own in low)
    assert not any(keeps(*rows(others), own.bytes, own.accuracy, own.error) for own in low)


def rows(reports):
    return np.array([(r.bytes, r.accuracy) for r in reports], np.float64).T


def test_what_rungs_foretell_is_known_again_after_a_restart():
    reports, lasts = rung_of(N, LAST, 0.75 * np.log(N)), expit(LAST)
    rungs = [
        {
            0: {"bytes": r.bytes, "accuracy": r.accuracy, "samples": r.samples},
            1: {"bytes": r.bytes, "accuracy": float(last), "samples": r.samples},
        }
        for r, last in zip(reports, lasts, strict=True)
    ]
    accuracy = float(expit(2.8 - 0.75 * np.log(1500)))
    earlier = [record(i, "complete", r) for i, r in enumerate(rungs)]
    assert report(FrontHalving(VALIDATION, earlier), "large", 150_000, accuracy, samples=1500) == CONTINUE
    stopped = [record(i, "stopped", {0: r[0]}) for i, r in enumerate(rungs)]
    assert report(FrontHalving(VALIDATION, stopped), "large", 150_000, accuracy, samples=1500) == STOP


def test_tune_may_leave_out_metric_and_mode():
    assert FrontHalving(VALIDATION).set_search_properties(None, None)
