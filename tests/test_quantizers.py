"""One contract for every registered quantizer family, option and granularity; then what each scalar family promises.

A new family is covered by being registered: `variants.py` finds it.
"""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from sets import packed_set, quickly_packed
from variants import cases, initial_sets, offered_levels, one_case_each, one_of_each, parametrize, represented

from budgetopt.errors import InputError
from budgetopt.packing import LevelTable, pack, unpack
from budgetopt.packing import families as formats
from budgetopt.packing.layout import layout_of, values_of
from budgetopt.packing.levels import APOT_PRECISION, apot_magnitudes
from budgetopt.quantizers import QUANTIZERS, build
from budgetopt.quantizers.apot import LEVELS as APOT_LEVELS
from budgetopt.quantizers.apot import UNIT_BITS
from budgetopt.transforms import TRANSFORMS

ALL = parametrize(cases())
EACH = parametrize(one_case_each())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(representation):
    """The coded values that the quantizer of a representation gets."""
    return representation.coded().detach()


def decoded(packed):
    """(n, K) float32 coded values, by the decoder's side alone."""
    if packed.symbols.dtype != np.uint8:  # numbers as they are, in raw units
        return packed.decode().reshape(len(packed), -1)
    domain = packed.domain
    ints = packed.dequantizer.ints(packed.symbols, np.arange(len(packed)), domain)
    return ints.astype(np.float32) * np.float32(2.0**-packed.dequantizer.exponent)


# --- the contract of every family ------------------------------------------------------------------------------------


def test_every_family_has_its_side_in_the_decoder():
    """An id of four bits that is its own, and a name; and every family is reached by the suite."""
    for registry in (formats.QUANTIZERS, formats.TRANSFORMS):
        assert all(0 <= ident < 16 and cls.family == ident for ident, cls in registry.items())
        assert len({cls.name for cls in registry.values()}) == len(registry)
    assert {allocation.quantizer for allocation, _ in cases()} == set(QUANTIZERS)
    used = {type(represented(*case).packed().dequantizer) for case in one_case_each()}
    assert used <= set(formats.QUANTIZERS.values())


@ALL
def test_evaluation_mode_is_the_file(allocation, name):
    """Bit for bit, through real bytes; and training leaves everything that is not a parameter alone."""
    representation = represented(allocation, name)
    x, labels, quantizer = coded(representation), representation.labels, representation.quantizer
    before = x.clone()
    packed = representation.packed()
    data = quickly_packed(packed)
    received = unpack(data)
    out = quantizer.eval()(x, labels)
    assert torch.equal(x, before)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert np.array_equal(out.numpy(), decoded(received))
    assert np.array_equal(quantizer.quantized(x, labels).numpy(), out.numpy())

    # symbols and side information
    domain = packed.domain
    assert domain.layout == representation.transform.layout
    each = values_of(packed.dequantizer.symbol_layout(domain.layout))
    assert packed.symbols.dtype == received.symbols.dtype
    assert packed.symbols.shape == (len(x), each) == received.symbols.shape
    assert np.array_equal(packed.symbols, received.symbols)
    assert packed.dequantizer.levels == received.dequantizer.levels <= 256
    if packed.symbols.dtype == np.uint8:
        assert packed.symbols.max() < packed.dequantizer.levels

    # encoding is deterministic, in any mode, whatever was trained in between without a step
    quantizer.train()
    quantizer(x, labels)
    assert quickly_packed(representation.packed()) == data
    assert np.array_equal(decoded(representation.packed()), out.numpy())
    assert quickly_packed(represented(allocation, name).packed()) == data
    assert quickly_packed(received) == data


@parametrize(one_of_each())
def test_the_shortest_file_is_read_as_it_was_written(allocation, name):
    packed = represented(allocation, name).packed()
    data = pack(packed)
    assert np.array_equal(unpack(data).symbols, packed.symbols)
    assert np.array_equal(unpack(data).decode(), packed.decode())
    assert len(data) <= len(quickly_packed(packed))
    assert pack(unpack(data)) == data


@ALL
def test_no_symbol_decodes_above_the_stated_bound(allocation, name):
    """`most` bounds what any symbols of the payload can give: the check for 64 bits relies on it."""
    packed = represented(allocation, name).packed()
    if packed.symbols.dtype != np.uint8:
        pytest.skip("numbers as they are: no transform takes them")
    rng, dequantizer = np.random.default_rng(0), packed.dequantizer
    extremes = [np.zeros_like(packed.symbols), np.full_like(packed.symbols, dequantizer.levels - 1)]
    drawn = [rng.integers(0, dequantizer.levels, packed.symbols.shape).astype(np.uint8) for _ in range(3)]
    for symbols in [packed.symbols, *extremes, *drawn]:
        ints = dequantizer.ints(symbols, np.arange(len(packed)), packed.domain)
        assert ints.dtype == np.int64
        assert ints.shape == (len(packed), packed.domain.values)
        assert np.abs(ints).max() <= dequantizer.most


@ALL
def test_decoding_a_part_is_a_part_of_decoding(allocation, name):
    packed = represented(allocation, name).packed()
    whole = packed.decode()
    assert whole.shape == (len(packed), *packed.shape)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    for index in (slice(1, 3), np.array([len(packed) - 1, 0, 1]), np.array([2])):
        assert np.array_equal(packed.decode(index), whole[index])


@ALL
def test_samples_may_be_left_out(allocation, name):
    """A set is cut to fit a budget: the quantizer goes on with fewer rows, without being fitted again."""
    representation = represented(allocation, name)
    x, labels = coded(representation), representation.labels
    whole = representation.packed()
    for most in (2, 1):
        packed = representation.packed(most)
        assert packed.counts == tuple(min(c, most) for c in whole.counts)
        received = unpack(quickly_packed(packed))
        keep = np.concatenate([np.flatnonzero(whole.labels() == c)[:most] for c in range(len(whole.counts))])
        out = representation.quantizer.eval()(x[keep], labels[keep])
        assert np.array_equal(out.numpy(), decoded(received))
        if isinstance(whole.dequantizer, LevelTable):
            assert packed.dequantizer == whole.dequantizer
            assert np.array_equal(packed.symbols, whole.symbols[keep])
        gradient = representation.quantizer.train()(x[keep].requires_grad_(), labels[keep])
        assert gradient.shape == (len(keep), x.shape[1])
    assert quickly_packed(representation.packed()) == quickly_packed(whole)


@ALL
def test_gradients_flow(allocation, name):
    """Finite for everything, and not zero for the values themselves, at every stage of training."""
    representation = represented(allocation, name)
    labels, quantizer = representation.labels, representation.quantizer
    for progress in (0.0, 0.5, 1.0):
        quantizer.progress = progress
        x = coded(representation).requires_grad_()
        out = quantizer(x, labels)
        assert out.shape == x.shape
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()
        (out * normal(*x.shape, seed=1)).sum().backward()
        assert torch.isfinite(x.grad).all()
        assert (x.grad != 0).any()
        for parameter in quantizer.parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@ALL
def test_the_penalty_is_a_number_that_can_be_added_to_a_loss(allocation, name):
    representation = represented(allocation, name)
    for progress in (0.0, 0.5, 1.0):
        representation.quantizer.progress = progress
        penalty = representation.penalty()
        assert penalty.shape == ()
        assert torch.isfinite(penalty)
        assert penalty >= 0
        (representation().mean() + penalty).backward()
        assert torch.isfinite(representation.latent.grad).all()


@ALL
def test_training_draws_from_its_own_generator_only(allocation, name):
    state = torch.get_rng_state()
    outputs = []
    for _ in range(2):
        representation = represented(allocation, name)
        representation.quantizer.generator.manual_seed(5)
        outputs.append([representation().detach() for _ in range(2)])
    assert torch.equal(torch.get_rng_state(), state)
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second)


@ALL
@torch.no_grad()
def test_parameters_are_rounded_to_the_files_precision_after_every_step(allocation, name):
    """Wherever training moves parameters and values, evaluation is the file."""
    representation = represented(allocation, name)
    quantizer, generator = representation.quantizer, torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in quantizer.parameters():
            parameter *= 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
        representation.latent += 0.3 * torch.randn(representation.latent.shape, generator=generator)
        quantizer.progress += 0.3
        quantizer.train()(coded(representation), representation.labels)
        out = quantizer.eval()(coded(representation), representation.labels)
        assert np.array_equal(out.numpy(), decoded(unpack(quickly_packed(representation.packed()))))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 255.0, 1e-3])
@EACH
def test_constant_samples(allocation, name, value):
    """Nothing to fit: it must still be a valid file of what training sees."""
    initial = initial_sets()[name]
    flat = replace(initial, x=np.full_like(initial.x, value))
    representation = represented(allocation, flat)
    out = representation.quantizer.eval()(coded(representation), representation.labels)
    assert np.array_equal(out.numpy(), decoded(unpack(quickly_packed(representation.packed()))))


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1e3, 0.0), (1.0, -1e3), (1e-2, 1e3)])
@EACH
def test_any_units(allocation, name, scale, offset):
    """Physical units need not be near one, nor near zero."""
    initial = initial_sets()[name]
    moved = replace(initial, x=initial.x * np.float32(scale) + np.float32(offset))
    representation = represented(allocation, moved)
    out = representation.quantizer.eval()(coded(representation), representation.labels)
    received = unpack(quickly_packed(representation.packed()))
    assert np.array_equal(out.numpy(), decoded(received))
    assert np.isfinite(received.decode()).all()


# --- what a family does not offer ------------------------------------------------------------------------------------


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 200
    return text


@pytest.mark.parametrize("family", QUANTIZERS)
@pytest.mark.parametrize("levels", [-1, 0, 1, 257, 1000])
def test_wrong_levels_show_the_value(family, levels):
    with pytest.raises(InputError, match=f"got {levels}") as raised:
        build(family, levels, QUANTIZERS[family].clippings[0])
    one_line(raised)


@pytest.mark.parametrize("family", QUANTIZERS)
@pytest.mark.parametrize("clipping", ["", "p2", "MINMAX"])
def test_wrong_clipping_shows_the_value(family, clipping):
    levels = offered_levels(family)[0][0]
    with pytest.raises(InputError, match=f"got {clipping!r}") as raised:
        build(family, levels, clipping)
    assert all(offered in one_line(raised) for offered in QUANTIZERS[family].clippings)


@pytest.mark.parametrize("family", QUANTIZERS)
def test_wrong_options_show_the_name_or_the_value(family):
    (levels, clipping), *_ = offered_levels(family)
    with pytest.raises(InputError, match="'colour'") as raised:
        build(family, levels, clipping, (("colour", 3),))
    assert all(option in one_line(raised) for option in QUANTIZERS[family].options)
    for option in QUANTIZERS[family].options:
        with pytest.raises(InputError, match="got 'no such choice'") as raised:
            build(family, levels, clipping, ((option, "no such choice"),))
        assert option in one_line(raised)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (3, 11, 9), (2, 5, 5), (1, 1, 1), (7,), (1,)])
@pytest.mark.parametrize("family", QUANTIZERS)
def test_whether_a_family_takes_a_transform_is_one_clear_line(family, shape):
    """Every family works on at least one kind of sample, and says why it does not on another."""
    for transform in TRANSFORMS:
        try:
            QUANTIZERS[family].check_transform(transform, shape)
        except InputError as error:
            text = str(error)
            assert "\n" not in text
            assert family in text
    assert {transform for a, _ in cases() if a.quantizer == family for transform in [a.transform]}


def test_wrong_family_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'uniform'"):
        build("unifrom", 4, "minmax")


# --- scalar families: uniform and APoT --------------------------------------------------------------------------------

OFFERED = {"uniform": (2, 3, 4, 7, 16, 100, 256), "apot": APOT_LEVELS}
VARIANTS = [(f, n, c) for f in OFFERED for n in OFFERED[f] for c in QUANTIZERS[f].clippings]
INPUTS = {
    "normal images": normal(8, 48),
    "features": normal(50, 7) * 3 + 1,
    "positive integers": (normal(30, 64).abs() * 6).round().clamp(0, 16),
    "narrow": normal(40, 5) * 1e-3,
    "wide": normal(40, 5) * 3e4,
    "one outlier": torch.cat([normal(200, 1), torch.full((1, 1), 50.0)]),
    "mostly one value": torch.cat([torch.zeros(500, 1), normal(3, 1)]),
}


def labels_of(x):
    return torch.zeros(len(x), dtype=torch.int64)


def fitted(family, levels, clipping, x):
    quantizer = build(family, levels, clipping)
    quantizer.fit(x, labels_of(x), layout_of(x.shape[1:]))
    return quantizer


def run(quantizer, x):
    return quantizer(x, labels_of(x))


def through_a_file(quantizer, x):
    """What a receiver decodes, through real bytes."""
    symbols, table = quantizer.encode(x, labels_of(x))
    return unpack(quickly_packed(packed_set(symbols, None, table)))


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_scalar_contract(family, levels, clipping, name):
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
    out = run(quantizer, x)
    received = through_a_file(quantizer, x)
    assert np.array_equal(out.numpy(), received.decode())
    assert received.symbols.max() < levels
    assert out.shape == x.shape
    assert out.dtype == torch.float32

    # a level is its own nearest level
    stored = torch.from_numpy(values).reshape(-1, 1)
    assert torch.equal(run(quantizer, stored), stored)
    nearest, _ = quantizer.encode(stored, labels_of(stored))
    assert np.array_equal(nearest[:, 0], np.arange(levels))
    assert torch.equal(run(quantizer, out), out)

    # training mode has the same values, and a gradient
    quantizer.train()
    z = x.clone().requires_grad_()
    surrogate = run(quantizer, z)
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
    trained = run(quantizer.train(), x)
    assert torch.equal(trained, run(quantizer.eval(), x))


@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_symbols_are_nearest_levels(family, levels, clipping):
    x = INPUTS["features"]
    quantizer = fitted(family, levels, clipping, x)
    symbols, table = quantizer.encode(x, labels_of(x))
    assert symbols.dtype == np.uint8
    distances = np.abs(x.numpy().reshape(-1, 1).astype(np.float64) - table.values().astype(np.float64))
    chosen = distances[np.arange(len(distances)), symbols.flatten()]
    assert np.allclose(chosen, distances.min(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 255.0, 1e-3])
@pytest.mark.parametrize(("family", "levels", "clipping"), VARIANTS)
def test_constant_input(family, levels, clipping, value):
    x = torch.full((4, 6), value)
    quantizer = fitted(family, levels, clipping, x).eval()
    out = run(quantizer, x)
    assert np.array_equal(out.numpy(), through_a_file(quantizer, x).decode())
    around_zero = clipping == "symmetric" or (family, levels) == ("apot", 2)  # ±α: an even number has no level at zero
    if value or not around_zero or levels % 2:
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
    assert np.array_equal(run(quantizer, x).numpy(), received.decode())


@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e15])
@pytest.mark.parametrize(("family", "levels"), [(f, n) for f in OFFERED for n in OFFERED[f]])
def test_extreme_units(family, levels, scale):
    """Physical units need not be near one."""
    x = scale * normal(30, 4)
    quantizer = fitted(family, levels, QUANTIZERS[family].clippings[0], x).eval()
    received = through_a_file(quantizer, x)
    assert np.array_equal(run(quantizer, x).numpy(), received.decode())


@pytest.mark.parametrize("levels", sorted(set(range(2, 257)) - set(APOT_LEVELS)))
def test_apot_offers_some_levels_only(levels):
    with pytest.raises(InputError, match=f"got {levels}"):
        build("apot", levels, "quadd")


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
    out = fitted("uniform", levels, clipping, x).eval()(x, labels_of(x))
    for value, got in zip(x.flatten().tolist()[:200], out.flatten().tolist(), strict=False):
        k = min(max(round((value - low) / step), 0), levels - 1)
        near_a_boundary = abs((value - low) / step % 1 - 0.5) < 1e-4
        assert got == pytest.approx(low + k * step, rel=1e-6, abs=1e-6) or near_a_boundary


def test_uniform_is_lossless_for_digits():
    x = torch.arange(17.0).repeat(3).reshape(-1, 1)
    quantizer = fitted("uniform", 17, "minmax", x).eval()
    assert torch.equal(run(quantizer, x), x)
    assert np.array_equal(through_a_file(quantizer, x).decode(), x.numpy())


@pytest.mark.parametrize("low", [0, 1, 100])
def test_uniform_is_lossless_for_bytes(low):
    x = torch.arange(low, 256).float().reshape(-1, 1)
    quantizer = fitted("uniform", 256 - low, "minmax", x).eval()
    assert torch.equal(run(quantizer, x), x)


def test_uniform_straight_through_gradient_is_one_everywhere():
    x = INPUTS["one outlier"].clone().requires_grad_()
    quantizer = fitted("uniform", 4, "p5", x)
    run(quantizer, x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_uniform_round_numbers_have_a_short_table():
    table = fitted("uniform", 17, "minmax", torch.arange(17.0).reshape(-1, 1)).side_information()
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
    quantizer = fitted("apot", levels, "quadd", normal(50, 1))
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
    quantizer._smallest = 0.0
    largest = quantizer.side_information().values().max()
    assert largest == pytest.approx(alpha, rel=2.0**-UNIT_BITS)


def test_apot_levels_never_turn_around():
    """A step too far leaves positive, increasing levels."""
    x = normal(50, 1)
    quantizer = fitted("apot", 7, "half", x)
    with torch.no_grad():
        quantizer.alpha.fill_(-5.0)
    assert (np.diff(quantizer.side_information().values()) > 0).all()
    assert torch.isfinite(run(quantizer, x)).all()


@pytest.mark.parametrize("levels", APOT_LEVELS)
def test_apot_gradient_of_alpha_against_the_formula(levels):
    """sign(x) outside, Π(x/α) − x/α inside, summed with the incoming gradient; 1 for x everywhere."""
    x = normal(40, 5).requires_grad_()
    weight = normal(40, 5, seed=2)
    quantizer = fitted("apot", levels, "quarter", x)
    (run(quantizer, x) * weight).sum().backward()
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
