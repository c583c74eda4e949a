"""The rate–distortion model: the fit of the law, sizes, acquisitions."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import nnls
from scipy.special import expit, logit
from scipy.stats import multivariate_normal, norm

from budgetopt.search import error_model, residual
from budgetopt.search.acquisition import (
    accuracy_moments,
    expected_hypervolume_improvement,
    expected_improvement,
    probability_within,
    staircase,
)
from budgetopt.search.error_model import Evidence, fit, log_odds
from budgetopt.search.rate_distortion import History, Kinds, Model, Points, works
from budgetopt.search.rate_model import Codings, Packings, RateModel, fit_growth

TRUE = np.array([[4.5, 3.0, 1.6, 0.8], [4.2, 2.2, 0.6, 0.4]])  # e, A, B, D of two methods
POWERS = np.array([0.5, 0.7])
EFFECT = np.array([0.3, -0.3])


def law(n, delta, method, choices=None):
    e, a, b, d = TRUE[method].T
    g = e - a * n ** -POWERS[method] - b * np.sqrt(delta) - d * delta
    return g if choices is None else g + choices @ EFFECT


def evidence(count, noise, seed=0):
    rng = np.random.default_rng(seed)
    n, delta = np.exp(rng.uniform(0, np.log(200), count)), rng.choice([0.0, 0.01, 0.05, 0.3], count)
    method = rng.integers(0, 2, count)
    choices = np.eye(2)[rng.integers(0, 2, count)]
    g = law(n, delta, method, choices) + rng.normal(size=count) * noise
    return Evidence(n, delta, method, choices, g, np.full(count, noise**2))


def grid():
    n, delta = (a.ravel() for a in np.meshgrid(np.geomspace(1, 300, 25), np.linspace(0, 0.5, 11), indexing="ij"))
    return n, delta


# ----------------------------------------------------------------------------------------------------------------------
# error model
# ----------------------------------------------------------------------------------------------------------------------
def test_the_fit_recovers_the_law_under_noise():
    model = fit(evidence(400, 0.05), 2)
    np.testing.assert_array_equal(model.powers, POWERS)
    np.testing.assert_allclose(model.coefficients[:, 1], TRUE[:, 1], atol=0.2)
    n, delta = grid()
    for method in range(2):
        which = np.full(len(n), method)
        mean, std = model.predict(n, delta, which, np.zeros((len(n), 2)))
        assert np.abs(mean - law(n, delta, which)).max() < 0.15
        assert std.max() < 0.5
    assert model.weights[0] - model.weights[1] == pytest.approx(0.6, abs=0.05)
    assert model.misfit < 0.08


def test_doubt_is_honest():
    """The true law lies within two standard deviations about as often as it should, with few data and with many."""
    n, delta = grid()
    for count in (12, 60):
        inside = []
        for seed in range(12):
            model = fit(evidence(count, 0.1, seed), 2)
            for method in range(2):
                which = np.full(len(n), method)
                choice = np.tile([1.0, 0.0], (len(n), 1))
                mean, std = model.predict(n, delta, which, choice)
                inside.append(np.abs(mean - law(n, delta, which, choice)) <= 2 * std)
        assert np.mean(inside) > 0.85


def test_data_take_doubt_away():
    n, delta = grid()
    choices, method = np.zeros((len(n), 2)), np.zeros(len(n), int)
    spreads = [fit(evidence(count, 0.1), 2).predict(n, delta, method, choices)[1].mean() for count in (0, 6, 30, 200)]
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 1.0
    assert spreads[-1] < 0.25


@pytest.mark.parametrize("seed", range(6))
def test_monotone_in_samples_and_distortion_whatever_the_data(seed):
    """Even data that say the opposite."""
    rng = np.random.default_rng(seed)
    count = 25
    n, delta = np.exp(rng.uniform(0, 5, count)), rng.uniform(0, 0.5, count)
    g = -law(n, delta, np.zeros(count, int)) + rng.normal(size=count)
    found = fit(Evidence(n, delta, rng.integers(0, 3, count), np.zeros((count, 0)), g, np.full(count, 0.01)), 3)
    assert (found.coefficients[:, 1:] >= 0).all()
    for method in range(3):
        values = np.geomspace(1, 1000, 40)
        rising = found.mean(values, np.full(40, 0.1), np.full(40, method), np.zeros((40, 0)))
        falling = found.mean(np.full(40, 10.0), np.linspace(0, 1, 40), np.full(40, method), np.zeros((40, 0)))
        assert (np.diff(rising) >= 0).all()
        assert (np.diff(falling) <= 0).all()


def test_a_method_without_data_is_drawn_to_the_others():
    known = evidence(200, 0.05)
    only = known.method == 0
    some = Evidence(*(getattr(known, f)[only] for f in ("n", "delta", "method", "choices", "g", "variance")))
    model = fit(some, 2)
    n, delta = grid()
    arguments = n, delta
    first, other = (model.predict(*arguments, np.full(len(n), m), np.zeros((len(n), 2))) for m in range(2))
    assert np.abs(first[0] - other[0]).mean() < 0.5
    assert (other[1] > first[1] + 0.3).all()


def test_a_trial_far_off_hardly_counts():
    known = evidence(60, 0.05)
    g = known.g.copy()
    g[:3] -= 6.0
    broken = Evidence(known.n, known.delta, known.method, known.choices, g, known.variance)
    n, delta = grid()
    arguments = n, delta, np.zeros(len(n), int), np.zeros((len(n), 2))
    found = fit(broken, 2)
    assert np.abs(found.mean(*arguments) - fit(known, 2).mean(*arguments)).max() < 0.1
    assert found.misfit < 0.5


def test_elimination_is_the_bounded_least_squares():
    """Against the stacked problem with every free coefficient split into two non-negative ones."""
    data = evidence(30, 0.3)
    g = data.g - 2.0 * np.sqrt(data.n)  # pushes A to its bound
    data = Evidence(data.n, data.delta, data.method, data.choices, g, data.variance)
    precision = 1.0 / data.variance
    normal = error_model._Normal(data, 2, precision)
    theta, loss = normal.solve(POWERS)
    x = np.sqrt(precision)[:, None] * error_model._design(data.n, data.delta, data.method, data.choices, POWERS)
    prior, right, _ = error_model._prior(2, 2)
    upper = np.linalg.cholesky(prior).T
    stacked = np.vstack([x, upper])
    target = np.concatenate([np.sqrt(precision) * g, np.linalg.solve(upper.T, right)])
    free = [0, 4, 8, 12, 13]
    naive, norm = nnls(np.hstack([stacked, -stacked[:, free]]), target, maxiter=10_000)
    expected = naive[:14].copy()
    expected[free] -= naive[14:]
    np.testing.assert_allclose(theta, expected, atol=1e-5)
    assert loss == pytest.approx(norm**2, rel=1e-6)
    assert (theta[[1, 5]] == 0).any()


def test_covariance_is_that_of_the_regression():
    data = evidence(40, 0.1)
    model = fit(data, 2, POWERS)
    flat = error_model._Normal(data, 2, np.full(40, 1 / 0.02))
    theta, _ = flat.solve(POWERS)
    covariance = flat.covariance(POWERS, theta[[1, 5]])
    x = error_model._design(data.n, data.delta, data.method, data.choices, POWERS)
    slope = np.zeros((40, 2))
    slope[np.arange(40), data.method] = theta[[1, 5]][data.method] * data.n ** -POWERS[data.method] * np.log(data.n)
    x = np.hstack([x, slope])
    prior = np.zeros((16, 16))
    prior[:14, :14] = error_model._prior(2, 2)[0]
    prior[14:, 14:] = np.eye(2) / error_model.POWER_METHOD**2
    np.testing.assert_allclose(covariance, np.linalg.inv(x.T @ x / 0.02 + prior), rtol=1e-6, atol=1e-9)
    assert model.covariance.shape == (16, 16)


def test_scales_are_those_of_the_marginal_likelihood():
    """Against the density of the whole vector, whose covariance is written out."""
    data = evidence(30, 0.1)
    choices = np.hstack([data.choices, np.eye(2)[np.arange(30) % 2][:, :1]])  # the last: other data
    data = Evidence(data.n, data.delta, data.method, choices, data.g + 0.4 * choices[:, 0], data.variance)
    weight = np.linspace(0.5, 1.0, 30)
    x = error_model._design(data.n, data.delta, data.method, choices, POWERS)
    found = error_model._scales(x, data.g, data.variance / weight, weight, 2, foreign=1)
    naive = {}
    for misfit in error_model.MISFITS:
        for choice in error_model.CHOICES:
            prior, right, _ = error_model._prior(2, 3, choice, foreign=1)
            assert prior[-1, -1] == error_model.OTHER_DATA**-2
            spread = x @ np.linalg.inv(prior) @ x.T + np.diag((data.variance + misfit**2) / weight)
            density = multivariate_normal(x @ np.linalg.solve(prior, right), spread).logpdf(data.g)
            density -= 0.5 * (np.log(misfit / error_model.MISFIT) / error_model.MISFIT_SPREAD) ** 2
            naive[misfit, choice] = (
                density - 0.5 * (np.log(choice / error_model.CHOICE) / error_model.CHOICE_SPREAD) ** 2
            )
    assert found == max(naive, key=naive.get)


def test_few_trials_do_not_make_a_law_certain():
    """A dozen trials beside more coefficients: what they are off the law by is not what a fit leaves."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        known = evidence(12, 0.05, seed)
        choices = rng.integers(0, 2, (12, 12)).astype(float)
        g = known.g + rng.normal(size=12) * 0.3
        found.append(fit(Evidence(known.n, known.delta, known.method, choices, g, known.variance), 2).misfit)
    assert 0.1 < np.median(found) < 0.5


def test_log_odds_of_certainty_are_finite():
    g, variance = log_odds(np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.05, 0.0]), 100)
    assert np.isfinite(g).all()
    assert -g[0] == pytest.approx(g[2])
    assert g[2] == pytest.approx(logit(0.995))
    assert variance[1] == pytest.approx((0.05 / 0.25) ** 2)
    assert (variance > 0).all()


def test_failures_are_remembered():
    assert works(np.array([0.0]), np.array([0.0]))[0] > 0.9
    assert works(np.array([3.0]), np.array([3.0]))[0] < 0.3
    assert works(np.array([1.0]), np.array([30.0]))[0] > 0.9


# ----------------------------------------------------------------------------------------------------------------------
# rate model
# ----------------------------------------------------------------------------------------------------------------------
BITS, VALUES = np.array([60.0, 60.0, 100.0, 190.0]), np.full(4, 64.0)
CODINGS = Codings(BITS, VALUES, np.array([0, 1, 0, 1]))
FACTOR = np.array([0.6, 0.7, 0.65, 0.66])


def true_size(coding, n):
    return 50 + FACTOR[coding] * BITS[coding] / 8 * n ** (1 - 0.01 * coding)


def packings(pairs):
    coding, n = (np.array(a) for a in zip(*pairs, strict=True)) if pairs else (np.zeros(0, int), np.zeros(0))
    return Packings(coding, n.astype(float), true_size(coding, n) if len(n) else np.zeros(0))


def test_sizes_without_packings_are_of_the_right_order():
    mean, std = RateModel(CODINGS, packings([])).initial(np.arange(4), np.full(4, 100.0))
    assert (np.abs(np.exp(mean) / true_size(np.arange(4), 100.0) - 1) < 0.5).all()
    assert (std > 0.1).all()


def test_few_packings_give_sizes_between_and_beyond():
    model = RateModel(CODINGS, packings([(c, n) for c in range(3) for n in (20.0, 800.0)]))
    coding = np.repeat(np.arange(3), 6)
    n = np.tile([20.0, 50.0, 150.0, 400.0, 800.0, 1500.0], 3)
    mean, std = model.initial(coding, n)
    error = np.abs(mean - np.log(true_size(coding, n)))
    assert error.max() < 0.07
    assert error[n == 20.0].max() < 0.01
    assert (error < 3 * std).all()
    assert std[n == 20.0].max() < std[n == 150.0].min()


def test_a_coding_learns_from_its_family():
    model = RateModel(CODINGS, packings([(1, n) for n in (20.0, 100.0, 400.0, 900.0)]))
    before = RateModel(CODINGS, packings([]))
    for n in (50.0, 500.0):
        other = [abs(m.initial(np.array([3]), np.array([n]))[0][0] - np.log(true_size(3, n))) for m in (model, before)]
        assert other[0] < other[1]


def test_growth_is_a_mean_drawn_to_its_method():
    methods = ["dm"] * 12 + ["dc"] * 3
    kinds = [("dm", 2)] * 8 + [("dm", 4)] * 4 + [("dc", 2)] * 3
    growth = fit_growth(methods, kinds, [0.4] * 8 + [0.1] * 4 + [0.2] * 3)
    many, few, unseen = (growth.of("dm", ("dm", levels))[0] for levels in (2, 4, 8))
    assert 0.3 < many < 0.4
    assert 0.1 < few < 0.25
    assert few < unseen < many
    assert growth.of("new", ("new", 2))[1] > growth.of("dm", ("dm", 2))[1]
    empty = fit_growth([], [], [])
    assert empty.of("dm", ("dm", 2))[0] > 0


# ----------------------------------------------------------------------------------------------------------------------
# acquisitions
# ----------------------------------------------------------------------------------------------------------------------
def area(x, y, reference):
    """Naive: of what points (smaller x, larger y) dominate, corner to corner."""
    corners = sorted({*x, reference[0]})
    total = 0.0
    for left, right in pairwise(corners):
        if right <= reference[0]:
            top = max((b for a, b in zip(x, y, strict=True) if a <= left), default=reference[1])
            total += (right - left) * max(0.0, top - reference[1])
    return total


def test_expected_improvement_against_integration():
    mean, std = np.array([0.2, 0.9, -3.0, 0.5]), np.array([1.0, 0.3, 0.5, 0.01])
    found = expected_improvement(mean, std, 0.6)
    y = np.linspace(-12, 12, 200_001)
    for i in range(4):
        gain = np.maximum(y - 0.6, 0) * norm.pdf(y, mean[i], std[i])
        assert found[i] == pytest.approx(np.trapezoid(gain, y), abs=1e-6)
    assert expected_improvement(np.array([0.7]), np.array([0.0]), 0.6)[0] == pytest.approx(0.1)
    assert expected_improvement(np.array([0.5]), np.array([0.0]), 0.6)[0] == 0.0


FRONT_X, FRONT_Y = np.array([0.2, 0.5, 0.5, 0.7, 0.6]), np.array([0.3, 0.6, 0.5, 0.8, 0.55])
REFERENCE = (1.0, 0.1)


def test_staircase_keeps_the_front_and_ties_once():
    starts, heights = staircase(FRONT_X, FRONT_Y, 0.1)
    np.testing.assert_array_equal(starts, [-np.inf, 0.2, 0.5, 0.7])
    np.testing.assert_array_equal(heights, [0.1, 0.3, 0.6, 0.8])
    starts, heights = staircase(np.array([0.5, 0.5, 0.4]), np.array([0.6, 0.6, 0.6]), 0.1)
    np.testing.assert_array_equal(starts, [-np.inf, 0.4])
    assert len(staircase(np.zeros(0), np.zeros(0), 0.0)[0]) == 1


@pytest.mark.parametrize("front", [slice(None), slice(0)])
def test_hypervolume_improvement_against_monte_carlo(front):
    x, y = FRONT_X[front], FRONT_Y[front]
    at, mean, std = np.array([0.1, 0.4, 0.55, 0.95, 1.2]), np.array([0.2, 0.7, 0.5, 0.9, 0.9]), np.full(5, 0.2)
    found = expected_hypervolume_improvement(at, mean, std, x, y, REFERENCE)
    draws = np.random.default_rng(0).normal(size=4000)
    before = area(x, y, REFERENCE)
    for i in range(5):
        gains = [area([*x, at[i]], [*y, mean[i] + std[i] * z], REFERENCE) - before for z in draws]
        assert found[i] == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / 4000**0.5 + 1e-9)
    assert found[4] == 0.0  # over the reference


def test_hypervolume_improvement_against_a_grid():
    """Of a certain point: cells of the plane that it dominates and the front does not."""
    cells = (np.arange(800) + 0.5) / 800
    gx, gy = np.meshgrid(cells, cells, indexing="ij")
    known = np.zeros_like(gx, bool)
    for a, b in zip(FRONT_X, FRONT_Y, strict=True):
        known |= (gx >= a) & (gy <= b)
    for a, b in ((0.3, 0.7), (0.1, 0.2), (0.55, 0.95), (0.5, 0.6), (0.9, 0.3)):
        new = (gx >= a) & (gy <= b) & ~known & (gy >= REFERENCE[1])
        found = expected_hypervolume_improvement(np.array([a]), np.array([b]), np.zeros(1), FRONT_X, FRONT_Y, REFERENCE)
        assert found[0] == pytest.approx(new.mean(), abs=3e-3)


def test_an_uncertain_size_is_integrated_over():
    x, mean, std, spread = np.array([0.45, 0.8]), np.array([0.7, 0.9]), np.full(2, 0.1), np.array([0.05, 0.1])
    found = expected_hypervolume_improvement(x, mean, std, FRONT_X, FRONT_Y, REFERENCE, spread)
    draws = x + spread * np.random.default_rng(0).normal(size=(4000, 2))
    many = [expected_hypervolume_improvement(d, mean, std, FRONT_X, FRONT_Y, REFERENCE) for d in draws]
    np.testing.assert_allclose(found, np.mean(many, 0), rtol=0.1)
    exact = expected_hypervolume_improvement(x, mean, std, FRONT_X, FRONT_Y, REFERENCE, np.zeros(2))
    np.testing.assert_array_equal(exact, expected_hypervolume_improvement(x, mean, std, FRONT_X, FRONT_Y, REFERENCE))


def test_probability_of_fitting():
    found = probability_within(np.array([1.0, 2.0, 3.0, 1.9]), np.array([0.0, 0.0, 0.0, 0.1]), 2.0)
    np.testing.assert_allclose(found, [1, 1, 0, norm.cdf(1)], atol=1e-12)


def test_moments_of_an_accuracy():
    draws = np.random.default_rng(0).normal(size=200_000)
    for mean, std in ((0.0, 0.5), (3.0, 1.0), (-1.0, 2.0)):
        exact = expit(mean + std * draws)
        first, spread = accuracy_moments(np.array([mean]), np.array([std]))
        assert first[0] == pytest.approx(exact.mean(), abs=3e-3)
        assert spread[0] == pytest.approx(exact.std(), rel=0.05)


# ----------------------------------------------------------------------------------------------------------------------
# both together
# ----------------------------------------------------------------------------------------------------------------------
def made(count, noise=0.05, wave=0.0, seed=0):
    """A model of two methods and four codings fitted to `count` trials whose law has a `wave` that it does not know."""
    rng = np.random.default_rng(seed)
    kinds = Kinds(
        method=np.repeat([0, 1], 4),
        delta=np.tile([0.3, 0.28, 0.05, 0.001], 2),
        levels=np.tile([2.0, 2.0, 4.0, 16.0], 2),
        choices=np.tile(np.eye(2)[[0, 1, 0, 1]], (2, 1)),
        foreign=0,
        coding=np.tile(np.arange(4), 2),
        growth=np.repeat([0.0, 0.1], 4),
        growth_std=np.repeat([0.0, 0.05], 4),
        works=np.ones(8),
        work=np.zeros(8),
    )

    def truth(points):
        g = law(points.n, kinds.delta[points.kind], kinds.method[points.kind])
        return g + wave * np.sin(1.7 * np.log(points.n))

    points = Points(rng.integers(0, 8, count), np.exp(rng.uniform(0, 5, count)))
    none = Points(np.zeros(0, int), np.zeros(0))
    g = truth(points) + rng.normal(size=count) * noise
    size = np.log2(true_size(kinds.coding[points.kind], points.n * 10))
    empty = np.zeros(0)
    history = History(points, g, np.full(count, noise**2), size, none, empty, empty, none)
    rate = RateModel(CODINGS, packings([(c, n) for c in range(4) for n in (20.0, 800.0)]))
    return Model(kinds, 2, rate, history, 10, 14.0), history, truth


def test_the_gaussian_process_learns_what_the_law_misses():
    model, _, truth = made(120, wave=0.4)
    at = Points(np.repeat(np.arange(8), 10), np.tile(np.exp(np.linspace(0.2, 4.8, 10)), 8))
    before = np.abs(model.predict(at).accuracy - expit(truth(at))).mean()
    model.refine(model.hyperparameters())
    found = model.predict(at)
    after = np.abs(found.accuracy - expit(truth(at)))
    assert after.mean() < 0.6 * before
    assert (after <= 3 * found.accuracy_std + 0.01).mean() > 0.9


def test_hyperparameters_change_rarely():
    assert [residual.fitted_points(n) for n in (0, 19, 20, 29, 30, 44, 45)] == [0, 0, 20, 20, 30, 30, 45]
    counts = {residual.fitted_points(n) for n in range(20, 1001)}
    assert len(counts) <= 11
    assert all(residual.fitted_points(n) <= n for n in range(1001))


def test_noise_does_not_make_the_front():
    """A lucky training is on the front with what the model makes of it."""
    model, history, truth = made(60, noise=0.4)
    seen, believed, true = expit(history.g), model.front_y, expit(truth(history.finished))
    assert np.abs(believed - true).mean() < 0.6 * np.abs(seen - true).mean()


def test_what_runs_counts_as_expected_and_takes_doubt_away():
    model, history, _ = made(15)
    pending = Points(np.array([5, 5]), np.array([60.0, 70.0]))
    later = Model(model.kinds, 2, model.rate, History(**{**history.__dict__, "pending": pending}), 10, model.log_budget)
    assert len(later.front_y) == 17
    near = Points(np.array([5]), np.array([65.0]))
    gain = [m.gain(m.predict(near), at_budget, 0.1)[0] for m in (model, later) for at_budget in (True, False)]
    assert gain[2] < gain[0]
    assert gain[3] < gain[1]
    assert (
        later.error.predict(near.n, np.array([0.28]), np.array([1]), np.array([[0.0, 1.0]]))[1]
        < (model.error.predict(near.n, np.array([0.28]), np.array([1]), np.array([[0.0, 1.0]]))[1])
    )


def test_ranking_is_by_gain_for_what_a_trial_costs():
    """An optimised set of hundreds of samples has to gain several times as much as one of few."""
    model, _, _ = made(40)
    model.refine(model.hyperparameters())
    dear = replace(model.kinds, work=np.repeat([0.0, 0.01], 4))
    at = Points(np.repeat(np.arange(8), 30), np.tile(np.exp(np.linspace(0, 5.5, 30)), 8))
    plain, _ = model.ranked(at, True, 0.1)
    model.kinds = dear
    order, gain = model.ranked(at, True, 0.1)
    everything = model.gain(model.predict(at), True, 0.1)
    assert gain == pytest.approx(everything[order])
    classes = model.classes
    expected = np.argsort(-everything / (1 + dear.work[at.kind] * at.n * classes), kind="stable")
    np.testing.assert_array_equal(order[:50], expected[:50])
    assert list(order[:50]) != list(plain[:50])


def test_ranking_is_by_gain():
    model, _, _ = made(40)
    model.refine(model.hyperparameters())
    at = Points(np.repeat(np.arange(8), 30), np.tile(np.exp(np.linspace(0, 5.5, 30)), 8))
    for at_budget in (True, False):
        order, gain = model.ranked(at, at_budget, 0.1)
        assert (np.diff(gain) <= 0).all()
        everything = model.gain(model.predict(at), at_budget, 0.1)
        assert gain[0] == pytest.approx(everything.max())
        assert order[0] == everything.argmax()
    over = model.size(at)[0] > 14.5
    assert over.any()
    assert model.gain(model.predict(at), True, 0.1)[over].max() < 1e-3
