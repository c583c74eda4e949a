"""Uniform levels: ranges, surrogates and companding, against closed forms, finite differences and decimals."""

import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch

from budgetopt.packing import Plane, UniformLevels
from budgetopt.packing.companding import CompandedLevels, expanded, log2_fixed
from budgetopt.packing.errors import BadHeader
from budgetopt.quantizers import build
from budgetopt.quantizers.surrogates import annealed, clamped, noisy_step, sign_noise, soft_round, uniform_noise
from budgetopt.quantizers.uniform_levels import (
    IndexUnits,
    companded_shape,
    companded_table,
    symmetric_table,
)

LABELS = torch.zeros(60, dtype=torch.int64)
LAYOUT = (Plane(10),)


def normal(seed=0):
    return torch.randn(60, 10, generator=torch.Generator().manual_seed(seed))


def fitted(levels=4, clipping="p1", x=None, **options):
    quantizer = build("uniform", levels, clipping, tuple(sorted(options.items())))
    quantizer.fit(normal() if x is None else x, LABELS, LAYOUT)
    return quantizer


# --- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1e-3, 0.7, 3.0, 255.0])
@pytest.mark.parametrize("levels", range(2, 257))
def test_symmetric_levels_are_those_of_fsq(levels, alpha):
    """QuADD eq. 12 and 13: α·(2k/(L − 1) − 1), so odd numbers of levels have a zero and even ones have none."""
    table = symmetric_table(alpha, levels)
    ints = table.table()
    assert (ints == -ints[::-1]).all()
    assert (ints == 0).sum() == levels % 2
    wanted = alpha * (2 * np.arange(levels) / (levels - 1) - 1)
    assert np.allclose(table.values(), wanted, rtol=2.0**-11, atol=0)


@pytest.mark.parametrize("levels", [2, 3, 4, 7, 16])
def test_symbols_are_those_of_eq_13(levels):
    """k = ⌊(L − 1)(t + 1)/2 + 1/2⌋ for t = x/α in [−1, 1]."""
    x, quantizer = normal(), fitted(levels, "symmetric")
    alpha = float(quantizer.side_information().values()[-1])
    t = (x / alpha).clamp(-1, 1)
    wanted = ((levels - 1) * (t + 1) / 2 + 0.5).floor()
    got = torch.from_numpy(quantizer.encode(x, LABELS)[0]).float()
    near = ((levels - 1) * (t + 1) / 2 + 0.5).frac().sub(0.5).abs() > 0.499  # at a boundary
    assert torch.equal(got[~near], wanted[~near])


def test_symmetric_range_is_the_larger_percentile():
    x = normal() + 0.5
    low, high = np.percentile(x.numpy(), [1, 99])
    table = fitted(16, "symmetric", x).side_information()
    assert table.values()[-1] == pytest.approx(max(-low, high), rel=2.0**-11)


# --- a learned range -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "feature"])
def test_gradient_of_a_learned_range_is_that_of_lsq(kind):
    """x̂ = low + Δ·round((x − low)/Δ) clipped, the derivative of round taken as 1: compare autograd of that form."""
    x, weight = normal(), normal(1)
    quantizer = fitted(5, "learned", granularity=kind)
    (quantizer.train()(x, LABELS) * weight).sum().backward()
    side = quantizer.side_information()
    ends = torch.tensor(quantizer._learned_ranges().T, requires_grad=True)
    group = quantizer.groups.of(LABELS)
    low, high = ends[0][group], ends[1][group]
    step = (high - low) / 4
    v = ((x.double() - low) / step).clamp(0, 4)
    stored = torch.from_numpy(quantizer.encode(x, LABELS)[0]).double()
    naive = low + step * (v + (stored - v).detach())
    (naive * weight).sum().backward()
    assert (x < low.min()).any()
    assert (x > high.max()).any()
    # the stored levels are 1/16 of a range or less from the exact ones
    slack = 1e-2 if isinstance(side, UniformLevels) else 6.0
    assert torch.allclose(quantizer.range.grad.double(), ends.grad, atol=slack)


def test_a_learned_range_stays_in_order():
    quantizer = fitted(4, "learned")
    with torch.no_grad():
        quantizer.range[0], quantizer.range[1] = 2.0, -2.0
    assert (np.diff(quantizer.side_information().values()) > 0).all()
    assert torch.isfinite(quantizer(normal(), LABELS)).all()


def test_a_learned_range_lowers_the_error_it_is_trained_on():
    x = normal() ** 3
    quantizer = fitted(4, "learned", x)
    before = float((quantizer.eval()(x, LABELS) - x).square().mean())
    adam = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(60):
        adam.zero_grad()
        (quantizer.train()(x, LABELS) - x).square().mean().backward()
        adam.step()
    assert float((quantizer.eval()(x, LABELS) - x).square().mean()) < 0.95 * before


# --- surrogates ------------------------------------------------------------------------------------------------------


def naive_soft_round(v, k):
    """BCDC eq. 6-7 with Δ = 1 in 60 digits: tanh by exponentials."""
    getcontext().prec = 60

    def tanh(a):
        e = (2 * a).exp()
        return (e - 1) / (e + 1)

    i = math.floor(v)
    k, inside = Decimal(k), Decimal(v) - i - Decimal("0.5")
    return float(i + (tanh(k * inside) / tanh(k / 2) + 1) / 2)


@pytest.mark.parametrize("k", [1e-8, 1e-3, 0.0099, 0.0101, 0.5, 1.0, 8.0, 64.0, 1e4])
def test_soft_round_against_decimals(k):
    v = torch.linspace(-1.0, 3.0, 41, dtype=torch.float64)
    wanted = [naive_soft_round(value, k) for value in v.tolist()]
    assert np.allclose(soft_round(v, k).numpy(), wanted, rtol=0, atol=1e-9)
    assert np.allclose(soft_round(v.float(), k).numpy()[:-1:3], wanted[:-1:3], atol=1e-5 * max(1.0, k))


@pytest.mark.parametrize("k", [1e-8, 1e-3, 1.0, 8.0, 30.0])
def test_soft_round_gradient_against_finite_differences(k):
    v = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3.9 + 0.02
    v = v[(v - v.round()).abs() > 1e-3].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: soft_round(z, k), v, eps=1e-6, atol=1e-4)


@pytest.mark.parametrize("k", [1e-8, 1e4])
def test_soft_round_limits(k):
    v = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 7
    v.requires_grad_()
    out = soft_round(v, k)
    out.sum().backward()
    assert torch.isfinite(v.grad).all()
    clear = (v.detach() - v.detach().floor() - 0.5).abs() > 1e-2
    wanted = v if k < 1 else v.round()
    assert torch.allclose(out[clear], wanted[clear], atol=1e-6)


def test_sharpness_grows_to_its_end():
    sharpness = [annealed(p, 32.0) for p in (0.0, 0.25, 0.5, 1.0)]
    assert sharpness == sorted(sharpness)
    assert sharpness[0] == 1.0
    assert sharpness[-1] == pytest.approx(32.0)


def test_values_outside_still_move():
    v = torch.tensor([-3.0, 0.5, 9.0], requires_grad=True)
    inside, outside = clamped(v, 4)
    assert torch.equal(inside.detach(), torch.tensor([0.0, 0.5, 3.0]))
    assert not outside.detach().any()
    (inside + outside).sum().backward()
    assert torch.equal(v.grad, torch.ones(3))


def test_noise_is_that_of_one_step():
    generator = torch.Generator().manual_seed(0)
    v = torch.zeros(20_000)
    flat, signs = uniform_noise(v, generator), sign_noise(v, generator)
    assert flat.min() >= -0.5
    assert flat.max() < 0.5
    assert float(flat.var()) == pytest.approx(1 / 12, rel=0.03)
    assert set(signs.tolist()) == {-0.5, 0.5}
    assert abs(float(signs.mean())) < 0.01
    assert 420 < sum(noisy_step(generator) for _ in range(1000)) / 2 + 210 < 480


@pytest.mark.parametrize("surrogate", ["noise", "fsq", "fsq-uniform"])
def test_noisy_surrogates_stay_within_half_a_step(surrogate):
    x, quantizer = normal(), fitted(5, "minmax", surrogate=surrogate)
    step = float(np.diff(quantizer.side_information().values())[0])
    hard = 0
    for _ in range(20):
        z = x.clone().requires_grad_()
        out = quantizer.train()(z, LABELS)
        out.sum().backward()
        assert float((out - x).detach().abs().max()) <= 0.502 * step
        assert torch.allclose(z.grad, torch.ones_like(z), atol=1e-5)
        hard += torch.equal(out.detach(), quantizer.quantized(x, LABELS) + (x - x))
    assert hard == 0 if surrogate == "noise" else 3 < hard < 17


@pytest.mark.parametrize("clipping", ["minmax", "p5", "symmetric", "learned"])
@pytest.mark.parametrize("surrogate", ["fsq", "fsq-uniform"])
def test_free_values_of_fsq_lie_behind_tanh(surrogate, clipping):
    """QuADD eq. 13, put right: the latent starts at atanh(0.99·t) for t in −1 … 1, and no value can leave the range."""
    x, quantizer = normal(), fitted(5, clipping, surrogate=surrogate)
    table = quantizer.side_information().values()
    low, high = float(table[0]), float(table[-1])
    middle, half = (low + high) / 2, (high - low) / 2
    naive = torch.tensor(
        [[half * math.atanh(0.99 * max(-1.0, min(1.0, (float(v) - middle) / half))) for v in r] for r in x]
    )
    free = quantizer.free(x, LABELS)
    assert torch.allclose(free, naive, atol=2e-2 * half)  # the file rounds its levels, and atanh is steep at the ends
    assert torch.allclose(quantizer.coded(free, LABELS), x.clamp(low, high), atol=2e-3 * half)
    far = (100 * torch.randn_like(x)).requires_grad_()
    moved = quantizer.coded(far, LABELS)
    assert float((moved.detach() - middle).abs().max()) <= half / 0.99 * 1.001
    (gradient,) = torch.autograd.grad(moved.sum(), far)
    wanted = (1 - torch.tanh(far.detach() / half) ** 2) / 0.99
    assert torch.allclose(gradient, wanted, atol=5e-3)


@pytest.mark.parametrize("surrogate", ["ste", "noise", "soft"])
def test_free_values_of_the_others_are_the_coded_ones(surrogate):
    x, quantizer = normal(), fitted(5, "p5", surrogate=surrogate)
    assert quantizer.free(x, LABELS) is x
    assert quantizer.coded(x, LABELS) is x


@pytest.mark.parametrize("companding", ["none", "tanh", "laplace"])
def test_soft_surrogate_hardens_to_the_file(companding):
    x, quantizer = normal(), fitted(5, "minmax", surrogate="soft", companding=companding)
    errors = []
    for progress in (0.0, 0.5, 1.0):
        quantizer.progress = progress
        errors.append(float((quantizer.train()(x, LABELS) - quantizer.quantized(x, LABELS)).detach().abs().mean()))
    assert errors[2] < errors[1] < errors[0]


# --- companding ------------------------------------------------------------------------------------------------------


def exact_log2(ratio):
    getcontext().prec = 50
    value = Decimal(ratio.numerator) / Decimal(ratio.denominator)
    return value.ln() / Decimal(2).ln()


@pytest.mark.parametrize("ratio", [(1, 1), (2, 1), (3, 2), (511, 1), (1023, 1024 - 1023), (65_537, 65_536), (10**9, 7)])
def test_log2_against_decimals(ratio):
    wanted = exact_log2(Fraction(*ratio)) * 4096
    assert 0 <= wanted - log2_fixed(*ratio) < 1 + Decimal("1e-12")


@pytest.mark.parametrize(("low", "high"), [(-255, 255), (-100, 200), (0, 32), (-16, 16), (17, 250)])
@pytest.mark.parametrize("levels", [2, 3, 4, 16, 255, 256])
@pytest.mark.parametrize("curve", ["tanh", "laplace"])
def test_expanded_levels_against_decimals(curve, levels, low, high):
    for k, got in enumerate(expanded(curve, levels, low, high)):
        u = (Fraction(low) + Fraction(k * (high - low), levels - 1)) / 256
        ratio = (1 + abs(u)) / (1 - abs(u)) if curve == "tanh" else 1 / (1 - abs(u))
        wanted = exact_log2(ratio) * (1 if u >= 0 else -1)
        assert abs(wanted * 4096 - got) <= 1 + Decimal("1e-12")


def test_expanded_symmetric_levels_are_symmetric():
    for curve in ("tanh", "laplace"):
        table = np.array(expanded(curve, 9, -200, 200))
        assert (table == -table[::-1]).all()


def test_expanded_levels_that_meet_are_refused():
    with pytest.raises(BadHeader, match="not distinct"):
        CompandedLevels(256, "laplace", 0, 1, 0, 1, 0)


@pytest.mark.parametrize("curve", ["tanh", "laplace"])
def test_compressing_finds_the_levels_equally_far_apart(curve):
    """The textbook compressors, tanh and the distribution function of Laplace, undo the expansion."""
    shape = companded_shape(np.clip(np.random.default_rng(0).laplace(0.6, 0.1, 999), 0, 1), curve, 12, False)
    z = shape.table() / 4096 * math.log(2)
    u = np.tanh(z / 2) if curve == "tanh" else np.where(z < 0, np.exp(np.minimum(z, 0)), 2 - np.exp(-np.abs(z))) - 1
    assert np.allclose(u * 256, np.linspace(shape.low, shape.high, 12), atol=0.1)


@pytest.mark.parametrize("companding", ["none", "tanh", "laplace"])
@pytest.mark.parametrize("kind", ["tensor", "feature"])
def test_soft_gradient_against_finite_differences(kind, companding):
    x = normal()[:6].double()
    quantizer = fitted(6, "p5", surrogate="soft", companding=companding, granularity=kind)
    quantizer.progress = 0.4
    units = IndexUnits(quantizer.side_information(), quantizer.groups, LABELS[:6])
    v = units.of(x)
    inside = ((v > 0) & (v < 5) & ((v - v.round()).abs() > 1e-3)).expand(x.shape)
    z = x.clone().requires_grad_()
    quantizer.train()(z, LABELS[:6]).sum().backward()
    plus, minus = (quantizer(x + e, LABELS[:6]).detach() for e in (1e-5, -1e-5))
    assert inside.float().mean() > 0.5
    assert torch.allclose(z.grad[inside], ((plus - minus) / 2e-5)[inside], rtol=1e-3, atol=1e-3)
    assert torch.allclose(z.grad[(v < 0) | (v > 5)], torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("curve", ["tanh", "laplace"])
@pytest.mark.parametrize(("low", "high"), [(-3.0, 3.0), (0.0, 255.0), (1e4, 1e4 + 1), (-1e-3, 2e-3)])
def test_companded_table_spans_the_range(low, high, curve, symmetric):
    low = -high if symmetric else low
    rng = np.random.default_rng(0)
    shape = companded_shape(np.clip(rng.normal(0.4, 0.1, 500), 0, 1), curve, 8, symmetric)
    values = companded_table(shape, low, high, symmetric).values()
    assert values[[0, -1]] == pytest.approx([low, high], abs=0.01 * (high - low))
    assert (np.diff(values) > 0).all()
    middle = int(np.argmin(np.diff(values)))  # densest where the values are
    assert (low + 0.4 * (high - low) if not symmetric else 0.0) == pytest.approx(
        values[middle : middle + 2].mean(), abs=0.2 * (high - low)
    )


@pytest.mark.parametrize("options", [{}, {"granularity": "feature"}])
@pytest.mark.parametrize("companding", ["none", "tanh", "laplace"])
@pytest.mark.parametrize("clipping", ["minmax", "symmetric"])
def test_index_units_put_level_k_at_k(clipping, companding, options):
    quantizer = fitted(6, clipping, companding=companding, **options)
    side = quantizer.side_information()
    units = IndexUnits(side, quantizer.groups, LABELS)
    for k in range(6):
        symbols = torch.full((60, 10), k, dtype=torch.uint8)
        level = quantizer.decoded(symbols, LABELS, side)
        assert torch.allclose(units.of(level), symbols.double(), atol=1e-3)
        assert torch.allclose(units.values(symbols.double()).float(), level, atol=1e-5)


def test_companding_errs_less_on_peaked_data():
    x = normal() ** 3
    errors = {c: float((fitted(8, "minmax", x, companding=c).eval()(x, LABELS) - x).square().mean())
              for c in ("none", "tanh", "laplace")}  # fmt: skip
    assert errors["tanh"] < errors["none"]
    assert errors["laplace"] < errors["none"]
