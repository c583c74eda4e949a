"""DDQ: the staircase of BCDC eq. 6–7, its limits, its penalty, and that it decodes as uniform levels."""

import math

import numpy as np
import pytest
import torch

from budgetopt.packing import Plane, UniformLevels
from budgetopt.quantizers import build
from budgetopt.quantizers.surrogates import annealed

LABELS = torch.arange(2).repeat_interleave(20)
LAYOUT = (Plane(6),)


def values(scale=1.0, seed=0):
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) * scale


def fitted(levels=5, x=None, **options):
    quantizer = build("ddq", levels, "minmax", tuple(sorted(options.items())))
    quantizer.fit(values() if x is None else x, LABELS, LAYOUT)
    return quantizer.train()


def naive(x, table, k):
    """Eq. 6 and 7 as printed, for one value."""
    low, step = table.low * 2.0**-table.exponent, table.step * 2.0**-table.exponent
    i = min(max(math.floor((x - low) / step), 0), table.count - 2)
    middle = low + (i + 0.5) * step
    phi = math.tanh(k * (x - middle)) / math.tanh(0.5 * k * step)
    return low + (i + (phi + 1) / 2) * step


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_staircase_against_the_printed_formula(progress):
    x, quantizer = values() * 0.9, fitted()
    quantizer.progress = progress
    table = quantizer.side_information()
    assert isinstance(table, UniformLevels)
    k = annealed(progress, quantizer.last_sharpness) / (table.step * 2.0**-table.exponent)
    wanted = [naive(value, table, k) for value in x.flatten().tolist()]
    got = quantizer(x, LABELS).detach().flatten().numpy()
    inside = (x.flatten() >= float(table.values()[0])) & (x.flatten() <= float(table.values()[-1]))
    assert np.allclose(got[inside], np.array(wanted)[inside], atol=1e-5)


def test_training_starts_near_the_values_and_ends_near_the_file():
    x, quantizer = values(), fitted(sharpness=64)
    step = float(np.diff(quantizer.side_information().values())[0])
    soft = quantizer(x, LABELS).detach()
    assert float((soft - x).abs().max()) < 0.05 * step
    quantizer.progress = 1.0
    hard = quantizer.eval()(x, LABELS)
    close = (quantizer.train()(x, LABELS).detach() - hard).abs() < 0.05 * step
    assert close.float().mean() > 0.93


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_gradient_against_finite_differences(progress):
    x, quantizer = values().double(), fitted()
    quantizer.progress = progress
    z = x.clone().requires_grad_()
    quantizer(z, LABELS).sum().backward()
    plus, minus = (quantizer(x + e, LABELS).detach() for e in (1e-6, -1e-6))
    low, high = quantizer.side_information().values()[[0, -1]]
    inside = (x > float(low) + 1e-4) & (x < float(high) - 1e-4)
    assert torch.allclose(z.grad[inside], ((plus - minus) / 2e-6)[inside], rtol=1e-3, atol=1e-3)


def test_penalty_against_a_loop():
    x, quantizer = values(), fitted(weight=0.7)
    quantizer.progress = 0.4
    soft, unit, wanted = quantizer(x, LABELS), float(x.std(correction=0)), 0.0
    for c in range(2):
        rows = (((x - soft) / unit) ** 2)[c == LABELS].sum(1)
        wanted += 0.7 * float(rows.mean())
    assert float(quantizer.penalty(x, LABELS)) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 255.0])
def test_penalty_does_not_know_units_nor_the_number_of_samples(scale):
    x = values(scale)
    quantizer, reference = fitted(x=x), fitted()
    quantizer.progress = reference.progress = 0.5
    wanted = float(reference.penalty(values(), LABELS))
    assert float(quantizer.penalty(x, LABELS)) == pytest.approx(wanted, rel=2e-2)
    twice = x.repeat_interleave(2, 0)
    assert float(quantizer.penalty(twice, LABELS.repeat_interleave(2))) == pytest.approx(wanted, rel=2e-2)


def test_descending_the_penalty_draws_values_to_levels():
    z, quantizer = values().requires_grad_(), fitted()
    quantizer.progress = 0.6
    before = float((quantizer.quantized(z, LABELS) - z).detach().square().mean())
    for _ in range(100):
        (gradient,) = torch.autograd.grad(quantizer.penalty(z, LABELS), z)
        with torch.no_grad():
            z -= 2.0 * gradient
    assert float((quantizer.quantized(z, LABELS) - z).detach().square().mean()) < 0.5 * before


def test_no_weight_no_penalty():
    assert float(fitted(weight=0).penalty(values(), LABELS)) == 0.0


def test_gradients_are_finite_at_any_sharpness():
    x, quantizer = values(), fitted()
    for sharpness in (1e-8, 1e4):
        quantizer.last_sharpness, quantizer.progress = sharpness, 1.0
        z = x.clone().requires_grad_()
        (quantizer(z, LABELS).sum() + quantizer.penalty(z, LABELS)).backward()
        assert torch.isfinite(z.grad).all()
