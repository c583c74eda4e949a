"""What is measured of a coding before any trial."""

from dataclasses import replace

import numpy as np
import pytest

from budgetopt.allocation import Allocation
from budgetopt.methods.selection import Selector
from budgetopt.search import problem
from budgetopt.search.problem import Measures
from budgetopt.trial import TrialContext

KINDS = [
    Allocation("coreset", levels=2),
    Allocation("coreset", levels=8, rdoq=0.2),
    Allocation("coreset", quantizer="lloyd-max", levels=4, transform="standardize"),
]


@pytest.fixture
def context(digits):
    from budgetopt.objective import zero_step_coreset
    from budgetopt.protocol import PRESETS

    objectives = {"coreset": zero_step_coreset()}
    return TrialContext(digits.train, digits.val, digits.spec, PRESETS["glyph-1"], objectives, budget=1000)


@pytest.mark.parametrize(("most", "samples"), [(1 << 16, 100), (64 * 25, 25), (64 * 7, 7), (10, 1)])
def test_large_samples_are_measured_on_fewer(context, monkeypatch, most, samples):
    """Evenly over the classes, and to nearly the same bits."""
    whole = Measures(context, Selector(context.train, context.spec))
    monkeypatch.setattr(problem, "MOST_VALUES", most)
    fewer = Measures(context, Selector(context.train, context.spec))
    counts = fewer._bench.init.counts
    assert sum(counts) == len(fewer._bench.init.x) == samples
    assert max(counts) - min(counts) <= 1
    for kind in KINDS:
        few, all_of_them = fewer.coding(kind), whole.coding(kind)
        assert few.values == all_of_them.values == 64
        if samples > 20:
            assert few.bits == pytest.approx(all_of_them.bits, rel=0.1)
            assert few.distortion == pytest.approx(all_of_them.distortion, rel=0.2)


def test_what_a_user_brings_is_measured_too(context, monkeypatch):
    monkeypatch.setattr(problem, "MOST_VALUES", 64 * 5)
    selector = Selector(context.train, context.spec)
    brought = selector.select("herding", 2, 0)
    measures = Measures(replace(context, init=brought), selector)
    assert sum(measures._bench.init.counts) == 5
    assert np.isfinite(measures.coding(KINDS[1]).distortion)


def test_a_trial_that_optimises_costs_as_many_evaluations_as_it_sees_samples(context):
    """150 steps on all samples of a set, against 2½ trainings of 200 steps of 128 samples."""
    from budgetopt import objective, space
    from budgetopt.search.problem import problem_of

    objectives = dict([*context.objectives.items(), objective.resolve("dm")])
    context = replace(context, objectives=objectives)
    measures = Measures(context, Selector(context.train, context.spec))
    found = problem_of(context, space.resolve("image"), 10, measures)
    assert objectives["dm"].steps == 150
    assert found.work == {"coreset": 0.0, "dm": pytest.approx(150 / (2.5 * 200 * 128))}
