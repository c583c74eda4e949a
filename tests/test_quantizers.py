from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from budgetopt.errors import InputError
from budgetopt.packing import Identity, PackedSet, pack, unpack
from budgetopt.packing.levels import APOT_PRECISION, apot_magnitudes
from budgetopt.quantizers import QUANTIZERS, build
from budgetopt.quantizers.apot import LEVELS as APOT_LEVELS
from budgetopt.quantizers.apot import UNIT_BITS

OFFERED = {"uniform": (2, 3, 4, 7, 16, 100, 256), "apot": APOT_LEVELS}
VARIANTS = [(f, n, c) for f, cls in QUANTIZERS.items() for n in OFFERED[f] for c in cls.clippings]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


INPUTS = {
    "normal images": normal(8, 3, 4, 4),
    "features": normal(50, 7) * 3 + 1,
    "positive integers": (normal(30, 1, 8, 8).abs() * 6).round().clamp(0, 16),
    "narrow": normal(40, 5) * 1e-3,
    "wide": normal(40, 5) * 3e4,
    "one outlier": torch.cat([normal(200, 1), torch.full((1, 1), 50.0)]),
    "mostly one value": torch.cat([torch.zeros(500, 1), normal(3, 1)]),
}


def fitted(family, levels, clipping, x):
    quantizer = build(family, levels, clipping)
    quantizer.fit(x)
    return quantizer


def through_a_file(quantizer, x):
    """What a receiver decodes, through real bytes."""
    symbols, table = quantizer.encode(x)
    channels = x.shape[1] if x.dim() == 4 else 1
    unit = np.ones(channels, np.float32)
    packed = PackedSet(symbols.numpy(), (len(x),), table, Identity(), 0 * unit, unit)
    return unpack(pack(packed))


def test_every_family_is_in_the_contract():
    assert OFFERED.keys() == QUANTIZERS.keys()


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_contract(family, levels, clipping, name):
    """One quantizer on one input, all clauses: the fit is the slow part."""
    x = INPUTS[name]
    quantizer = fitted(family, levels, clipping, x)
    table = quantizer.side_information()
    values = table.values()

    # levels: as many as asked, distinct, increasing
    assert table.levels == values.size == levels
    assert (np.diff(table.table()) > 0).all()
    assert (np.diff(values) > 0).all()

    # evaluation mode is the file, bit for bit
    quantizer.eval()
    out = quantizer(x)
    received = through_a_file(quantizer, x)
    assert np.array_equal(out.numpy(), received.decode())
    assert received.symbols.max() < levels
    assert out.shape == x.shape
    assert out.dtype == torch.float32

    # a level is its own nearest level
    stored = torch.from_numpy(values).reshape(-1, 1)
    assert torch.equal(quantizer(stored), stored)
    assert torch.equal(quantizer.encode(stored)[0].flatten(), torch.arange(levels, dtype=torch.uint8))
    assert torch.equal(quantizer(out), out)

    # training mode has the same values, and a gradient
    quantizer.train()
    z = x.clone().requires_grad_()
    surrogate = quantizer(z)
    scale = np.abs(values).max()
    assert np.allclose(surrogate.detach().numpy(), out.numpy(), rtol=0, atol=2e-7 * max(scale, float(x.abs().max())))
    (surrogate * normal(*x.shape, seed=1)).sum().backward()
    for parameter in [z, *quantizer.parameters()]:
        assert torch.isfinite(parameter.grad).all()
    assert (z.grad != 0).all()


@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_training_values_are_evaluation_values(family, levels, clipping):
    """Bit for bit: what the method sees is what the file holds."""
    x = INPUTS["normal images"]
    quantizer = fitted(family, levels, clipping, x)
    trained = quantizer.train()(x)
    assert torch.equal(trained, quantizer.eval()(x))


@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_symbols_are_nearest_levels(family, levels, clipping):
    x = INPUTS["features"]
    quantizer = fitted(family, levels, clipping, x)
    symbols, table = quantizer.encode(x)
    assert symbols.dtype == torch.uint8
    distances = np.abs(x.numpy().reshape(-1, 1).astype(np.float64) - table.values().astype(np.float64))
    chosen = distances[np.arange(len(distances)), symbols.flatten().numpy()]
    assert np.allclose(chosen, distances.min(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 255.0, 1e-3])
@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_constant_input(family, levels, clipping, value):
    x = torch.full((4, 6), value)
    quantizer = fitted(family, levels, clipping, x).eval()
    out = quantizer(x)
    assert np.array_equal(out.numpy(), through_a_file(quantizer, x).decode())
    if (family, levels, value) != ("apot", 2, 0.0):  # ±α only: there is no level at zero
        assert torch.allclose(out, x, rtol=1e-3, atol=1e-3)
    assert (np.diff(quantizer.side_information().values()) > 0).all()


@pytest.mark.parametrize("offset", [10.0, -200.0, 1e4, -1e6])
@pytest.mark.parametrize("spread", [1e-2, 1.0, 50.0])
@pytest.mark.parametrize(("family", "levels"), [(f, n) for f in OFFERED for n in OFFERED[f]])
def test_far_from_zero(family, levels, offset, spread):
    """Raw units may lie far from zero: whatever is fitted can be packed, read and is what training saw."""
    x = offset + spread * normal(30, 4)
    quantizer = fitted(family, levels, QUANTIZERS[family].clippings[0], x).eval()
    received = through_a_file(quantizer, x)
    assert np.array_equal(quantizer(x).numpy(), received.decode())


@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e15])
@pytest.mark.parametrize(("family", "levels"), [(f, n) for f in OFFERED for n in OFFERED[f]])
def test_extreme_units(family, levels, scale):
    """Physical units need not be near one."""
    x = scale * normal(30, 4)
    quantizer = fitted(family, levels, QUANTIZERS[family].clippings[0], x).eval()
    received = through_a_file(quantizer, x)
    assert np.array_equal(quantizer(x).numpy(), received.decode())


@pytest.mark.parametrize("family", QUANTIZERS)
@pytest.mark.parametrize("levels", [-1, 0, 1, 257, 1000])
def test_wrong_levels_show_the_value(family, levels):
    with pytest.raises(InputError, match=f"got {levels}"):
        build(family, levels, QUANTIZERS[family].clippings[0])


@pytest.mark.parametrize("levels", sorted(set(range(2, 257)) - set(APOT_LEVELS)))
def test_apot_offers_some_levels_only(levels):
    with pytest.raises(InputError, match=f"got {levels}"):
        build("apot", levels, "quadd")


@pytest.mark.parametrize("family", QUANTIZERS)
@pytest.mark.parametrize("clipping", ["", "none", "p2", "MINMAX"])
def test_wrong_clipping_shows_the_value(family, clipping):
    with pytest.raises(InputError, match=f"got {clipping!r}"):
        build(family, 3, clipping)


def test_wrong_family_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        build("unifrom", 4, "minmax")


# --- uniform ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", OFFERED["uniform"])
@pytest.mark.parametrize("clipping", ["minmax", "p1", "p5"])
def test_uniform_against_a_naive_loop(levels, clipping):
    x = INPUTS["normal images"]
    table = fitted("uniform", levels, clipping, x).side_information()
    low, step = table.low * 2.0**-table.exponent, table.step * 2.0**-table.exponent
    percent = 0.0 if clipping == "minmax" else float(clipping[1:])
    wanted_low, wanted_high = np.percentile(x.numpy(), [percent, 100 - percent])
    assert low == pytest.approx(wanted_low, abs=2.0**-9 * step)
    assert step == pytest.approx((wanted_high - wanted_low) / (levels - 1), rel=2.0**-11)
    out = fitted("uniform", levels, clipping, x).eval()(x)
    for value, got in zip(x.flatten().tolist()[:200], out.flatten().tolist(), strict=False):
        k = min(max(round((value - low) / step), 0), levels - 1)
        near_a_boundary = abs((value - low) / step % 1 - 0.5) < 1e-4
        assert got == pytest.approx(low + k * step, rel=1e-6, abs=1e-6) or near_a_boundary


def test_uniform_is_lossless_for_digits():
    x = torch.arange(17.0).repeat(3).reshape(-1, 1)
    quantizer = fitted("uniform", 17, "minmax", x).eval()
    assert torch.equal(quantizer(x), x)
    assert np.array_equal(through_a_file(quantizer, x).decode(), x.numpy())


@pytest.mark.parametrize("low", [0, 1, 100])
def test_uniform_is_lossless_for_bytes(low):
    x = torch.arange(low, 256).float().reshape(-1, 1)
    quantizer = fitted("uniform", 256 - low, "minmax", x).eval()
    assert torch.equal(quantizer(x), x)


def test_uniform_straight_through_gradient_is_one_everywhere():
    x = INPUTS["one outlier"].clone().requires_grad_()
    quantizer = fitted("uniform", 4, "p5", x)
    quantizer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_uniform_round_numbers_have_a_short_table():
    table = fitted("uniform", 17, "minmax", torch.arange(17.0)).side_information()
    assert (table.low, table.step, table.exponent) == (0, 1, 0)


# --- APoT ------------------------------------------------------------------------------------------------------------


def naive_magnitudes(bits, k):
    """Σ_{i<n} p_i, p_i ∈ {0, 2^−i, 2^−(i+n), …, 2^−(i+(2^k−2)n)}; odd remainders for k = 2; b = 1 is {1}."""
    if bits == 1:
        return {Fraction(1)}
    n, rest = divmod(bits - 1, k)
    terms = [[Fraction(0)] + [Fraction(1, 2 ** (i + j * n)) for j in range(2**k - 1)] for i in range(n)]
    if rest:
        assert k == 2
        terms = [[Fraction(0)] + [Fraction(1, 2**e) for e in (i, i + n, i + 2 * n + 1)] for i in range(n)]
        terms.append([Fraction(0), Fraction(1, 2 ** (2 * n))])
    terms = [[p for p in term if p == 0 or p >= Fraction(1, 2**APOT_PRECISION)] for term in terms]
    return {sum(ps, Fraction(0)) for ps in product(*terms)}


FORMS = [(k * n + 1, k) for k in range(1, 8) for n in range(1, 8) if k * n <= 7]
FORMS += [(b, 2) for b in (2, 4, 6, 8)] + [(1, k) for k in range(1, 8)]


@pytest.mark.parametrize(("bits", "k"), sorted(set(FORMS)))
def test_apot_magnitudes_against_fractions(bits, k):
    ours = apot_magnitudes(bits, k)
    naive = sorted(naive_magnitudes(bits, k))
    assert [Fraction(m, ours[-1]) for m in ours] == [m / naive[-1] for m in naive]
    assert any(m % 2 for m in ours)  # scaled by the smallest power of two


@pytest.mark.parametrize("bits", range(2, 9))
def test_apot_with_k_1_is_uniform(bits):
    assert apot_magnitudes(bits, 1) == tuple(range(2 ** (bits - 1)))


@pytest.mark.parametrize("k", range(1, 5))
def test_apot_with_one_term_is_powers_of_two(k):
    assert apot_magnitudes(k + 1, k) == (0, *(2**j for j in range(2**k - 1)))


@pytest.mark.parametrize("k", [5, 6, 7])
def test_apot_terms_below_the_precision_are_dropped(k):
    assert apot_magnitudes(k + 1, k) == (0, *(2**j for j in range(APOT_PRECISION + 1)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_apot_with_two_bits_a_term_has_all_distinct_levels(bits):
    """2^b codes, sign and magnitude, with two zeros."""
    table = fitted("apot", 2**bits - 1, "half", normal(9, 9)).side_information()
    assert table.levels == 2**bits - 1 == len(set(table.table().tolist()))
    assert (table.table() == -table.table()[::-1]).all()
    assert (table.table() == 0).sum() == 1


def test_apot_with_one_bit_has_no_zero():
    table = fitted("apot", 2, "half", normal(9, 9)).side_information()
    assert table.levels == 2
    assert table.table()[0] == -table.table()[1] != 0


def test_apot_refuses_other_remainders():
    with pytest.raises(ValueError, match="k = 3"):
        apot_magnitudes(6, 3)


@pytest.mark.parametrize(("clipping", "share"), [("quadd", 1.0), ("half", 0.5), ("quarter", 0.25)])
def test_apot_initial_clip(clipping, share):
    x = normal(500, 4) + 2
    p1, p99 = np.percentile(x.numpy(), [1, 99])
    quantizer = fitted("apot", 7, clipping, x)
    assert float(quantizer.alpha.detach()) == pytest.approx(share * (p99 - p1), rel=1e-6)


@pytest.mark.parametrize("levels", APOT_LEVELS)
@pytest.mark.parametrize("alpha", [1e-3, 0.37, 1.0, 3.1416, 777.7])
def test_apot_stored_alpha_is_precise(levels, alpha):
    quantizer = fitted("apot", levels, "quadd", normal(50))
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
    quantizer._smallest = 0.0
    largest = quantizer.side_information().values().max()
    assert largest == pytest.approx(alpha, rel=2.0**-UNIT_BITS)


def test_apot_levels_never_turn_around():
    """A step too far leaves positive, increasing levels."""
    x = normal(50)
    quantizer = fitted("apot", 7, "half", x)
    with torch.no_grad():
        quantizer.alpha.fill_(-5.0)
    assert (np.diff(quantizer.side_information().values()) > 0).all()
    assert torch.isfinite(quantizer(x)).all()


@pytest.mark.parametrize("levels", APOT_LEVELS)
def test_apot_gradient_of_alpha_against_the_formula(levels):
    """sign(x) outside, Π(x/α) − x/α inside, summed with the incoming gradient; 1 for x everywhere."""
    x = normal(40, 5).requires_grad_()
    weight = normal(40, 5, seed=2)
    quantizer = fitted("apot", levels, "quarter", x)
    (quantizer(x) * weight).sum().backward()
    alpha = float(quantizer.alpha.detach())
    grid = [s * float(m / max(naive_magnitudes(quantizer.bits, 2))) for m in naive_magnitudes(quantizer.bits, 2)
            for s in (-1, 1)]  # fmt: skip
    expected, slack = 0.0, 0.0
    for value, w in zip(x.flatten().tolist(), weight.flatten().tolist(), strict=True):
        ratio = value / alpha
        nearest = min(grid, key=lambda level: abs(level - ratio))
        expected += w * (np.sign(value) if abs(ratio) > 1 else nearest - ratio)
        slack += abs(w) * 2.0**-UNIT_BITS  # the stored levels are that close to the exact ones
    assert (np.abs(x.detach().numpy()) > alpha).any()
    assert (np.abs(x.detach().numpy()) < alpha).any()
    assert float(quantizer.alpha.grad) == pytest.approx(expected, abs=slack)
    assert torch.equal(x.grad, weight)
