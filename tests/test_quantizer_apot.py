"""APoT: level sets for all k·n ≤ 7 from the definition, and the gradients of α and γ."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from budgetopt.errors import InputError
from budgetopt.packing import Plane
from budgetopt.packing.levels import APOT_PRECISION
from budgetopt.quantizers import build
from budgetopt.quantizers.apot import LEVELS

LABELS = torch.arange(2).repeat_interleave(20)
FORMS = [(k, n) for k in range(1, 8) for n in range(1, 8) if k * n <= 7]


def values(seed=0):
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(seed))


def fitted(levels, clipping="half", x=None, **options):
    quantizer = build("apot", levels, clipping, tuple(sorted(options.items())))
    quantizer.fit(values() if x is None else x, LABELS, (Plane(8),))
    return quantizer


def definition(k, n):
    """Levels in units of α: ±γ·Σ_{i<n} p_i, p_i ∈ {0, 2^−i, 2^−(i+n), …, 2^−(i+(2^k−2)n)}, the largest of them 1."""
    terms = [[Fraction(0)] + [Fraction(1, 2 ** (i + j * n)) for j in range(2**k - 1)] for i in range(n)]
    kept = [[p for p in term if p == 0 or p >= Fraction(1, 2**APOT_PRECISION)] for term in terms]
    sums = {sum(choice, Fraction(0)) for choice in product(*kept)}
    return sorted({sign * s / max(sums) for s in sums for sign in (-1, 1)})


@pytest.mark.parametrize(("k", "n"), FORMS)
def test_levels_of_every_form(k, n):
    levels = 2 ** (k * n + 1) - 1
    table = fitted(levels, k=k).side_information().table()
    assert [Fraction(int(t), int(table[-1])) for t in table] == definition(k, n)
    assert len(table) == (levels if k < 5 else 2 * (APOT_PRECISION + 1) + 1)


@pytest.mark.parametrize(("k", "n"), FORMS)
@pytest.mark.parametrize("kind", ["tensor", "feature"])
def test_stored_threshold(kind, k, n):
    """To 10 bits, or 5 beside the long magnitudes of k ≥ 5; to 3 bits of mantissa in groups."""
    quantizer = fitted(2 ** (k * n + 1) - 1, k=k, granularity=kind)
    side = quantizer.side_information()
    top = side.values()[-1:] if kind == "tensor" else side.tables()[:, -1] * 2.0**-side.exponent
    precision = 2.0 ** -(10 if k < 5 else 5) if kind == "tensor" else 1 / 16
    assert np.allclose(top, quantizer.alpha.detach().numpy(), rtol=precision)


@pytest.mark.parametrize("k", range(1, 8))
@pytest.mark.parametrize("levels", LEVELS)
def test_which_levels_a_k_offers(levels, k):
    bits = LEVELS.index(levels)
    if k == 2 or bits % k == 0:
        assert fitted(levels, k=k).k == k
    else:
        with pytest.raises(InputError, match=rf"k = {k} offers 2, {2 ** (k + 1) - 1}.*got {levels}"):
            fitted(levels, k=k)


def test_two_bands_have_the_thresholds_of_eq_15():
    x = values() * torch.tensor([9.0, 9.0, *[0.5] * 6])
    quantizer = fitted(7, "quadd", x, granularity="band")
    low, high = (np.percentile(part.numpy(), [1, 99]) for part in (x[:, :2], x[:, 2:]))
    wanted = [low[1] - low[0], high[1] - high[0]]
    assert quantizer.alpha.detach().numpy() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("gamma", ["fixed", "learned"])
@pytest.mark.parametrize("clip", ["no", "yes"])
@pytest.mark.parametrize("kind", ["tensor", "class", "feature"])
@pytest.mark.parametrize("levels", [2, 3, 7, 15])
def test_gradients_against_the_formula(levels, kind, clip, gamma):
    x, weight = values().requires_grad_(), values(2)
    quantizer = fitted(levels, "quarter", granularity=kind, clip_gradient=clip, gamma=gamma)
    (quantizer.train()(x, LABELS) * weight).sum().backward()
    stored = quantizer.quantized(x, LABELS).numpy()
    group = quantizer.groups.of(LABELS).expand(40, 8).numpy()
    alpha = quantizer.alpha.detach().numpy().reshape(-1)
    to_alpha, to_gamma = np.zeros(len(alpha)), np.zeros(len(alpha))
    to_x = weight.numpy().copy()
    for place in np.ndindex(40, 8):
        g, value, w = group[place], float(x.detach()[place]), float(weight[place])
        outside = abs(value) > alpha[g]
        to_alpha[g] += w * (np.sign(value) if outside else (stored[place] - value) / alpha[g])
        to_gamma[g] += w * stored[place]
        if outside and clip == "yes":
            to_x[place] = 0.0
    assert np.allclose(quantizer.alpha.grad.numpy().reshape(-1), to_alpha, atol=1e-3)
    assert np.array_equal(x.grad.numpy(), to_x)
    assert gamma == "fixed" or np.allclose(quantizer.gamma.grad.numpy().reshape(-1), to_gamma, atol=1e-3)


def test_a_learned_gamma_scales_the_stored_levels():
    x, quantizer = values(), fitted(7, gamma="learned")
    before = quantizer.side_information().values()
    with torch.no_grad():
        quantizer.gamma.fill_(1.5)
    assert np.allclose(quantizer.side_information().values(), 1.5 * before, rtol=2e-3)
    assert float(quantizer.eval()(x, LABELS).abs().max()) <= quantizer.side_information().values()[-1]
    with torch.no_grad():
        quantizer.gamma.fill_(-1.0)
    assert (np.diff(quantizer.side_information().values()) > 0).all()


def test_a_learned_threshold_lowers_the_error_it_is_trained_on():
    x, quantizer = values(), fitted(7, "quadd", gamma="learned", granularity="feature")
    before = float((quantizer.eval()(x, LABELS) - x).square().mean())
    adam = torch.optim.Adam(quantizer.parameters(), lr=0.03)
    for _ in range(60):
        adam.zero_grad()
        (quantizer.train()(x, LABELS) - x).square().mean().backward()
        adam.step()
    assert float((quantizer.eval()(x, LABELS) - x).square().mean()) < 0.8 * before
