import numpy as np
import pytest
from scipy.optimize import minimize

from budgetopt.search.rungs import GAIN, LEAD, LUCK, LUCK_COUNT, SIZE, extrapolation

NONE = np.zeros(0)


def trials(count, gain, lead, size, luck, seed=0):
    rng = np.random.default_rng(seed)
    n, at_rung = np.exp(rng.uniform(0, 6, count)), rng.normal(2, 1, count)
    return (
        n,
        at_rung,
        at_rung.mean()
        + gain
        + lead * (at_rung - at_rung.mean())
        + size * (np.log(n) - np.log(n).mean())
        + luck * rng.normal(size=count),
    )


def test_a_known_law_is_found_again():
    n, at_rung, at_last = trials(400, 0.8, 0.6, 0.3, 0.2)
    found = extrapolation(n, at_rung, at_last)
    np.testing.assert_allclose(found.coefficients, [0.8, 0.6, 0.3], atol=0.05)
    assert found.luck == pytest.approx(0.2, rel=0.1)
    mean, std = found.predict(n, at_rung)
    assert np.mean(np.abs(at_last - mean) < std) == pytest.approx(0.68, abs=0.06)


@pytest.mark.parametrize("count", [1, 3, 10])
def test_against_the_mode_that_an_optimiser_finds(count):
    """Of the posterior with the luck that was found; and that luck is the one of these coefficients."""
    n, at_rung, at_last = trials(count, 0.5, 0.8, 0.2, 0.3)
    found = extrapolation(n, at_rung, at_last)
    x, y = at_rung - at_rung.mean(), np.log(n) - np.log(n).mean()

    def errors(c):
        return at_last - (at_rung.mean() + c[0] + c[1] * x + c[2] * y)

    def loss(c, luck):
        prior = sum(((value - mean) / std) ** 2 for value, (mean, std) in zip(c, (GAIN, LEAD, SIZE), strict=True))
        return (errors(c) ** 2).sum() / luck**2 + prior

    luck = LUCK
    for _ in range(3):
        mode = minimize(loss, np.zeros(3), args=(luck,), tol=1e-12).x
        luck = np.sqrt((LUCK_COUNT * LUCK**2 + (errors(mode) ** 2).sum()) / (LUCK_COUNT + count))
    np.testing.assert_allclose(found.coefficients, mode, atol=1e-4)
    assert found.luck == pytest.approx(luck, rel=1e-4)


def test_without_trials_it_is_the_prior():
    mean, std = extrapolation(NONE, NONE, NONE).predict(np.array([1.0, 100.0]), np.array([0.0, 2.0]))
    np.testing.assert_allclose(mean, [GAIN[0], 2.0 + GAIN[0]])
    np.testing.assert_allclose(std, np.hypot(GAIN[1], LUCK))


def test_doubt_grows_away_from_what_was_seen():
    n, at_rung, at_last = trials(10, 0.5, 0.8, 0.2, 0.1)
    found = extrapolation(n, at_rung, at_last)
    near, far = found.predict(np.array([np.exp(np.log(n).mean()), 1e6]), np.full(2, at_rung.mean()))[1]
    assert far > 2 * near


def test_a_rung_that_says_nothing_foretells_the_mean():
    rng = np.random.default_rng(0)
    found = extrapolation(np.full(200, 10.0), rng.normal(size=200), rng.normal(2, 0.3, 200))
    mean, _ = found.predict(np.full(2, 10.0), np.array([-2.0, 2.0]))
    np.testing.assert_allclose(mean, 2.0, atol=0.15)


def test_one_trial_is_not_believed():
    """The prior counts: a single lucky trial does not foretell as much for all."""
    mean, std = extrapolation(np.ones(1), np.zeros(1), np.array([3.0])).predict(np.ones(1), np.zeros(1))
    assert GAIN[0] < mean[0] < 2.7
    assert std[0] > LUCK
